"""A preset stands behind what is written; once read, it is the same as its values written out."""

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


def said(folder: Path, text: str, *sets: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(folder, text, *sets)
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def test_paper_style_is_our_reading_of_the_paper(tmp_path: Path) -> None:
    found = load(tmp_path, BARE)
    assert (found.weigh.metric.name, found.weigh.metric.options) == ("parc", {"dims": 32})
    assert (found.weigh.rescale, found.weigh.power) == ("minmax", 12.0)
    assert (found.distill.method.name, found.distill.method.options) == ("weighted", WEIGHTED)
    # what the preset does not speak of keeps its default
    plain = load(tmp_path, BARE.replace("preset: paper_style\n", ""))
    assert (found.weigh.bootstrap, found.distill.steps) == (plain.weigh.bootstrap, plain.distill.steps)
    assert plain.weigh.metric.name == "probe" and plain.preset is None


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_right_recipe_and_fills_two_sections_only(tmp_path: Path, name: str) -> None:
    assert load(tmp_path, BARE.replace("paper_style", name)).preset == name
    assert PRESETS[name].keys() <= {"weigh", "distill"}


def test_a_preset_and_its_values_written_out_are_one_run(tmp_path: Path) -> None:
    project = miniature.write(tmp_path)
    raw = yaml.safe_load(project.recipe.read_text())
    del raw["weigh"], raw["distill"]["method"]
    named = document(tmp_path, yaml.safe_dump({**raw, "preset": "paper_style"}))
    values = yaml.safe_load(WRITTEN_OUT)
    written = document(tmp_path, yaml.safe_dump({**raw, **values, "distill": raw["distill"] | values["distill"]}))
    first, second = (
        Context(recipe=check.load(one), base=one.base, run=run_directory(check.load(one), project.runs))
        for one in (named, written)
    )
    assert first.run.path == second.run.path
    keys = [[step.key(context) for step in TRAIN] for context in (first, second)]
    assert keys[0] == keys[1] and len(set(keys[0])) == len(TRAIN)
    # and what is done by another method has other keys
    other = check.load(document(tmp_path, yaml.safe_dump(raw)))
    assert run_directory(other, project.runs).path != first.run.path
    assert TRAIN[0].key(Context(recipe=other, base=tmp_path, run=first.run)) != keys[0][0]


def test_the_run_directory_holds_the_values(tmp_path: Path) -> None:
    given = document(tmp_path, BARE, "weigh.power=3")
    run = Run(path=tmp_path / "run")
    run.keep(check.load(given), given)
    kept = read_json(run / "recipe.lock.json")["recipe"]
    assert kept["preset"] == "paper_style"
    assert kept["weigh"]["metric"] == {"name": "parc", "dims": 32} and kept["weigh"]["power"] == 3
    assert kept["distill"]["method"] == {"name": "weighted", **WEIGHTED}
    assert (run / "recipe.yaml").read_text() == BARE
    again, _ = run.recipe()
    assert again == check.load(given)


def test_what_is_written_wins_key_by_key(tmp_path: Path) -> None:
    found = load(tmp_path, BARE + "weigh: {power: 2, also: []}\ndistill: {steps: 7}\n")
    assert (found.weigh.power, found.weigh.rescale, found.weigh.metric.options) == (2.0, "minmax", {"dims": 32})
    assert (found.distill.steps, found.distill.method.options) == (7, WEIGHTED)


@pytest.mark.parametrize(
    ("written", "name", "options"),
    [
        # the preset's own method keeps the preset's options, key by key
        ("weighted", "weighted", WEIGHTED),
        ("{name: weighted, lam: 0.5}", "weighted", {**WEIGHTED, "lam": 0.5}),
        ("{name: nearest, temperature: 2}", "nearest", {"temperature": 2}),
        ("transfer", "transfer", {}),
        # so does one without a name
        ("{lam: 0.5}", "weighted", {**WEIGHTED, "lam": 0.5}),
    ],
)
@pytest.mark.parametrize("by", ["file", "set"])
def test_another_method_stands_alone_and_the_same_one_is_refined(
    tmp_path: Path, by: str, written: str, name: str, options: dict[str, Any]
) -> None:
    method = (
        load(tmp_path, BARE, f"distill.method={written}")
        if by == "set"
        else load(tmp_path, f"{BARE}distill: {{method: {written}}}\n")
    ).distill.method
    assert (method.name, method.options) == (name, options)


def test_set_wins_and_can_name_the_preset(tmp_path: Path) -> None:
    found = load(tmp_path, BARE, "distill.method.lam=0.25", "weigh.metric.dims=16", "weigh.rescale=ceiling")
    assert found.distill.method.options == {**WEIGHTED, "lam": 0.25}
    assert found.weigh.metric.options == {"dims": 16} and found.weigh.rescale == "ceiling"
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
def test_a_mistake_is_a_line(tmp_path: Path, old: str, new: str, lines: list[str]) -> None:
    assert BARE.count(old) == 1
    assert said(tmp_path, BARE.replace(old, new)) == lines


def test_a_mistake_in_what_the_preset_brings_is_on_its_line(tmp_path: Path) -> None:
    none = "weighted learns from sources, and the recipe lists none; add `sources:`"
    alone = BARE.replace("sources:\n  - {name: first, kind: timm, model: resnet10t, pretrained: false}\n", "")
    assert said(tmp_path, alone) == [f"r.yaml:2: distill.method: {none}"]
    assert said(tmp_path, alone + "distill: {steps: 3}\n") == [f"r.yaml:2: distill.method: {none}"]
    assert said(tmp_path, alone + "distill: {method: weighted}\n") == [f"r.yaml:7: distill.method: {none}"]
    unset = alone.replace("preset: paper_style\n", "about: x\n")
    assert said(tmp_path, unset, "preset=paper_style") == [f"r.yaml:1: distill.method: {none}"]


def test_a_wrong_preset_by_set_names_itself(tmp_path: Path) -> None:
    line = "--set preset: no preset is called paper; did you mean paper_style?"
    assert said(tmp_path, BARE, "preset=paper") == [line]


VALUES = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(max_size=3)),
    lambda inner: st.dictionaries(st.sampled_from(("metric", "method", "name", "lam", "dims")), inner, max_size=3),
    max_leaves=8,
)


SECTIONS = st.dictionaries(st.sampled_from(("weigh", "distill", "name")), VALUES)


@given(SECTIONS, st.one_of(st.just("paper_style"), VALUES))
def test_filling_loses_nothing_written_and_shares_nothing(sections: dict[str, Any], name: Any) -> None:
    raw = {**sections, "preset": name}
    before, known = copy.deepcopy(raw), copy.deepcopy(PRESETS)
    filled, _ = fill(raw, {("preset",): 1})
    assert raw == before
    assert holds(filled, raw)
    spoil(filled)
    assert known == PRESETS


def holds(filled: Any, written: Any) -> bool:
    """Everything in `written` is in `filled`, at its place."""
    if isinstance(written, dict) and isinstance(filled, dict):
        return all(key in filled and holds(filled[key], value) for key, value in written.items())
    return bool(filled == written)


def spoil(value: Any) -> None:
    """Change every mapping within."""
    if isinstance(value, dict):
        for inner in list(value.values()):
            spoil(inner)
        value["spoilt"] = True


@pytest.mark.parametrize("written", ["", "  method: auto\n", "  method: {name: auto}\n"])
@pytest.mark.parametrize("sources", [True, False])
def test_auto_is_what_it_stands_for(tmp_path: Path, written: str, sources: bool) -> None:
    head = "name: auto\ndata: {kind: digits}\nstudent: {families: {micro: {}}}\ndistill:\n  steps: 7\n" + written
    path = tmp_path / "auto.yaml"
    path.write_text(
        head + ("sources: [{name: one, kind: timm, model: resnet10t, pretrained: false}]\n" if sources else "")
    )
    found = check.load(read_recipe(path)).distill
    expected = AUTO if sources else WITHOUT_SOURCES
    assert {"name": found.method.name, **found.method.options} == expected["method"] and found.steps == 7
    if sources:
        assert found.teacher.name == expected["teacher"]["name"]


def test_auto_leaves_a_written_teacher_and_takes_no_options(tmp_path: Path) -> None:
    head = "name: auto\ndata: {kind: digits}\nstudent: {families: {micro: {}}}\n"
    head += "sources: [{name: one, kind: timm, model: resnet10t, pretrained: false}]\n"
    path = tmp_path / "auto.yaml"
    path.write_text(head + "distill: {method: auto, teacher: stacked}\n")
    assert check.load(read_recipe(path)).distill.teacher.name == "stacked"
    path.write_text(head + "distill: {method: {name: auto, lam: 0.5}}\n")
    with pytest.raises(RecipeError, match=r"distill\.method\.lam: unknown key"):
        check.load(read_recipe(path))
