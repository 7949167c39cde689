"""Presets give defaults below the written keys; a preset equals its values written out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from edgedistill import check
from edgedistill.pipeline import TRAIN
from edgedistill.recipe.file import Document, RecipeError, read_recipe
from edgedistill.recipe.presets import AUTO, PRESETS, WITHOUT_SOURCES, fill
from edgedistill.recipe.schema import Recipe
from edgedistill.run.directory import Run, run_directory
from edgedistill.run.files import read_json
from edgedistill.steps.context import Context
from tests.helpers import miniature

BARE = """\
name: mini
preset: paper_style
data: {kind: folder, root: pictures}
sources:
  - {name: first, kind: timm, model: resnet10t, pretrained: false}
student:
  families:
    micro: {width: 4, input_px: 32}
"""
WRITTEN_OUT = """\
weigh:
  metric: {name: parc, dims: 32}
  rescale: minmax
  power: 12
distill:
  method: {name: weighted, lam: 0.8, temperature: 1, normalise: false}
"""
WEIGHTED = {"lam": 0.8, "temperature": 1, "normalise": False}


def document(folder: Path, text: str, *sets: str) -> Document:
    path = folder / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return read_recipe(path, sets)


def load(folder: Path, text: str, *sets: str) -> Recipe:
    return check.load(document(folder, text, *sets))


def error_lines(folder: Path, text: str, *sets: str) -> list[str]:
    """The lines of the error that the recipe raises, without the folder's name."""
    with pytest.raises(RecipeError) as caught:
        load(folder, text, *sets)
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def test_paper_style_sets_values_of_the_paper(tmp_path: Path) -> None:
    recipe = load(tmp_path, BARE)
    assert (recipe.weigh.metric.name, recipe.weigh.metric.options) == ("parc", {"dims": 32})
    assert (recipe.weigh.rescale, recipe.weigh.power) == ("minmax", 12.0)
    assert (recipe.distill.method.name, recipe.distill.method.options) == ("weighted", WEIGHTED)
    # keys outside the preset keep their defaults
    plain = load(tmp_path, BARE.replace("preset: paper_style\n", ""))
    assert (recipe.weigh.bootstrap, recipe.distill.steps) == (plain.weigh.bootstrap, plain.distill.steps)
    assert plain.weigh.metric.name == "probe" and plain.preset is None


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_and_fills_two_sections_only(tmp_path: Path, name: str) -> None:
    assert load(tmp_path, BARE.replace("paper_style", name)).preset == name
    assert PRESETS[name].keys() <= {"weigh", "distill"}


def test_preset_and_its_values_written_out_are_one_run(tmp_path: Path) -> None:
    project = miniature.write(tmp_path)
    raw = yaml.safe_load(project.recipe.read_text())
    del raw["weigh"], raw["distill"]["method"]
    named = document(tmp_path, yaml.safe_dump({**raw, "preset": "paper_style"}))
    values = yaml.safe_load(WRITTEN_OUT)
    written = document(tmp_path, yaml.safe_dump({**raw, **values, "distill": raw["distill"] | values["distill"]}))
    first, second = (
        Context(recipe=check.load(source), base=source.base, run=run_directory(check.load(source), project.runs))
        for source in (named, written)
    )
    assert first.run.path == second.run.path
    keys = [[step.key(context) for step in TRAIN] for context in (first, second)]
    assert keys[0] == keys[1] and len(set(keys[0])) == len(TRAIN)
    # another method gives other keys
    default = check.load(document(tmp_path, yaml.safe_dump(raw)))
    assert run_directory(default, project.runs).path != first.run.path
    assert TRAIN[0].key(Context(recipe=default, base=tmp_path, run=first.run)) != keys[0][0]


def test_run_directory_holds_values_of_preset(tmp_path: Path) -> None:
    source = document(tmp_path, BARE, "weigh.power=3")
    run = Run(path=tmp_path / "run")
    recipe = check.load(source)
    source.path.write_text("edited: while it ran\n")
    run.save_recipe(recipe, source)
    lock = read_json(run / "recipe.lock.json")["recipe"]
    assert lock["preset"] == "paper_style"
    assert lock["weigh"]["metric"] == {"name": "parc", "dims": 32} and lock["weigh"]["power"] == 3
    assert lock["distill"]["method"] == {"name": "weighted", **WEIGHTED}
    assert (run / "recipe.yaml").read_text() == BARE
    reread, _ = run.recipe()
    assert reread == recipe


def test_written_keys_override_preset(tmp_path: Path) -> None:
    recipe = load(tmp_path, BARE + "weigh: {power: 2, also: []}\ndistill: {steps: 7}\n")
    assert (recipe.weigh.power, recipe.weigh.rescale, recipe.weigh.metric.options) == (2.0, "minmax", {"dims": 32})
    assert (recipe.distill.steps, recipe.distill.method.options) == (7, WEIGHTED)


@pytest.mark.parametrize(
    ("written", "name", "options"),
    [
        # the preset's own method keeps the preset's options, key by key
        ("weighted", "weighted", WEIGHTED),
        ("{name: weighted, lam: 0.5}", "weighted", {**WEIGHTED, "lam": 0.5}),
        ("{name: nearest, temperature: 2}", "nearest", {"temperature": 2}),
        ("transfer", "transfer", {}),
        # so does a method without a name
        ("{lam: 0.5}", "weighted", {**WEIGHTED, "lam": 0.5}),
    ],
)
@pytest.mark.parametrize("origin", ["file", "set"])
def test_method_of_preset_keeps_its_options_and_another_does_not(
    tmp_path: Path, origin: str, written: str, name: str, options: dict[str, Any]
) -> None:
    method = (
        load(tmp_path, BARE, f"distill.method={written}")
        if origin == "set"
        else load(tmp_path, f"{BARE}distill: {{method: {written}}}\n")
    ).distill.method
    assert (method.name, method.options) == (name, options)


def test_set_overrides_preset_and_can_name_it(tmp_path: Path) -> None:
    recipe = load(tmp_path, BARE, "distill.method.lam=0.25", "weigh.metric.dims=16", "weigh.rescale=ceiling")
    assert recipe.distill.method.options == {**WEIGHTED, "lam": 0.25}
    assert recipe.weigh.metric.options == {"dims": 16} and recipe.weigh.rescale == "ceiling"
    bare = BARE.replace("preset: paper_style\n", "")
    assert load(tmp_path, bare, "preset=paper_style") == load(tmp_path, BARE)
    assert load(tmp_path, BARE, "preset=null") == load(tmp_path, bare)


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        (
            "paper_style",
            "paper_stile",
            ["r.yaml:2: preset: no preset is called paper_stile; did you mean paper_style?"],
        ),
        ("paper_style", "zzz", ["r.yaml:2: preset: no preset is called zzz; one of: paper_style"]),
        ("paper_style", "[paper_style]", ["r.yaml:2: preset: input should be a valid string (got ['paper_style'])"]),
        ("preset: paper_style", "prest: paper_style", ["r.yaml:2: prest: unknown key; did you mean preset?"]),
        (
            "paper_style",
            "paper_style\nseed: -1\nweigh: {metric: {dims: x}}",
            [
                "r.yaml:3: seed: input should be greater than or equal to 0 (got -1)",
                "r.yaml:4: weigh.metric.dims: input should be a valid integer, unable to parse string as an integer "
                "(got 'x')",
            ],
        ),
        (
            "paper_style",
            "paper\nseed: -1",
            [
                "r.yaml:2: preset: no preset is called paper; did you mean paper_style?",
                "r.yaml:3: seed: input should be greater than or equal to 0 (got -1)",
            ],
        ),
        (
            "paper_style",
            "paper_style\nweigh:",
            ["r.yaml:3: weigh: input should be a valid dictionary or instance of Weigh (got None)"],
        ),
        (
            "paper_style",
            "paper_style\ndistill: 3",
            ["r.yaml:3: distill: input should be a valid dictionary or instance of Distill (got 3)"],
        ),
    ],
)
def test_each_mistake_is_one_line(tmp_path: Path, old: str, new: str, lines: list[str]) -> None:
    assert BARE.count(old) == 1
    assert error_lines(tmp_path, BARE.replace(old, new)) == lines


def test_mistake_in_value_of_preset_is_reported_at_line_of_preset(tmp_path: Path) -> None:
    none = "weighted learns from sources, and the recipe lists none; add `sources:`"
    alone = BARE.replace("sources:\n  - {name: first, kind: timm, model: resnet10t, pretrained: false}\n", "")
    assert error_lines(tmp_path, alone) == [f"r.yaml:2: distill.method: {none}"]
    assert error_lines(tmp_path, alone + "distill: {steps: 3}\n") == [f"r.yaml:2: distill.method: {none}"]
    assert error_lines(tmp_path, alone + "distill: {method: weighted}\n") == [f"r.yaml:7: distill.method: {none}"]
    unset = alone.replace("preset: paper_style\n", "about: x\n")
    assert error_lines(tmp_path, unset, "preset=paper_style") == [f"r.yaml:1: distill.method: {none}"]


def test_unknown_preset_in_set_is_named(tmp_path: Path) -> None:
    line = "--set preset: no preset is called paper; did you mean paper_style?"
    assert error_lines(tmp_path, BARE, "preset=paper") == [line]


VALUES = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(max_size=3)),
    lambda inner: st.dictionaries(st.sampled_from(("metric", "method", "name", "lam", "dims")), inner, max_size=3),
    max_leaves=8,
)


SECTIONS = st.dictionaries(st.sampled_from(("weigh", "distill", "name")), VALUES)


@given(SECTIONS, st.one_of(st.just("paper_style"), VALUES))
def test_fill_keeps_written_keys_and_shares_no_objects(sections: dict[str, Any], name: Any) -> None:
    raw = {**sections, "preset": name}
    before, presets = copy.deepcopy(raw), copy.deepcopy(PRESETS)
    filled, _ = fill(raw, {("preset",): 1})
    assert raw == before
    assert holds(filled, raw)
    change_mappings(filled)
    assert presets == PRESETS


def holds(filled: Any, written: Any) -> bool:
    """Whether every key and value of `written` is in `filled`, at the same position."""
    if isinstance(written, dict) and isinstance(filled, dict):
        return all(key in filled and holds(filled[key], inner) for key, inner in written.items())
    return bool(filled == written)


def change_mappings(tree: Any) -> None:
    """Add a key to every mapping in the tree."""
    if isinstance(tree, dict):
        for inner in list(tree.values()):
            change_mappings(inner)
        tree["changed"] = True


@pytest.mark.parametrize("written", ["", "  method: auto\n", "  method: {name: auto}\n"])
@pytest.mark.parametrize("sources", [True, False])
def test_auto_selects_method_by_presence_of_sources(tmp_path: Path, written: str, sources: bool) -> None:
    head = "name: auto\ndata: {kind: digits}\nstudent: {families: {micro: {}}}\ndistill:\n  steps: 7\n" + written
    path = tmp_path / "auto.yaml"
    path.write_text(
        head + ("sources: [{name: one, kind: timm, model: resnet10t, pretrained: false}]\n" if sources else "")
    )
    distill = check.load(read_recipe(path)).distill
    expected = AUTO if sources else WITHOUT_SOURCES
    assert {"name": distill.method.name, **distill.method.options} == expected["method"] and distill.steps == 7
    if sources:
        assert distill.teacher.name == expected["teacher"]["name"]


def test_auto_keeps_written_teacher_and_refuses_options(tmp_path: Path) -> None:
    head = "name: auto\ndata: {kind: digits}\nstudent: {families: {micro: {}}}\n"
    head += "sources: [{name: one, kind: timm, model: resnet10t, pretrained: false}]\n"
    path = tmp_path / "auto.yaml"
    path.write_text(head + "distill: {method: auto, teacher: stacked}\n")
    assert check.load(read_recipe(path)).distill.teacher.name == "stacked"
    path.write_text(head + "distill: {method: {name: auto, lam: 0.5}}\n")
    with pytest.raises(RecipeError, match=r"distill\.method\.lam: unknown key"):
        check.load(read_recipe(path))
