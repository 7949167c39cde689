"""Whose licenses a student inherits: data, sources of every kind, initial weights, runs within runs."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from edgedistill.recipe.schema import Recipe
from edgedistill.records import LicensedInput
from edgedistill.run import artifacts
from edgedistill.run.directory import Run
from edgedistill.sources import licenses
from edgedistill.students.pretrained import package_license, timm_license
from tests.helpers.baselines import baseline
from tests.helpers.report_runs import SPEC

Row = tuple[str, str, str, str]


def make_run(folder: Path, sources: list[dict[str, Any]], initial: str = "random", **data: Any) -> Run:
    """A run with a chosen student, as far as licenses need it; `data` are further keys of its section."""
    run = Run(path=folder)
    fields = {
        "name": "licensed",
        "data": {"kind": "elpv", **data},
        "sources": sources,
        "student": {"families": {"micro": {}}},
    }
    run.save_resolved_recipe(Recipe.model_validate(fields), folder)
    artifacts.DATA.write(run, {"licence": "CC BY-NC-SA 4.0"})
    family, options = ("resnet", {}) if initial != "random" else ("micro", {})
    artifacts.STUDENT.write(run, replace(SPEC, family=family, options=options, initial_weights=initial))
    return run


def rows(run: Run) -> list[Row]:
    return [(entry.what, entry.name, entry.licence, entry.commercial) for entry in licenses.of_run(run)]


def test_publishers_are_asked_and_what_nobody_states_is_not_stated(tmp_path: Path) -> None:
    sources = [
        {"name": "a", "kind": "timm", "model": "resnet18.a1_in1k"},
        {"name": "b", "kind": "timm", "model": "convnextv2_tiny"},
        {"name": "random", "kind": "timm", "model": "resnet18", "pretrained": False},
        {"name": "c", "kind": "pypi", "package": "timm", "model": "resnet18"},
        {"name": "d", "kind": "weights", "file": "w.safetensors", "model": "resnet18"},
        {"name": "e", "kind": "onnx", "file": "secret/net.onnx"},
    ]
    assert rows(make_run(tmp_path, sources, initial="hub (resnet18)")) == [
        ("data", "elpv", "CC BY-NC-SA 4.0", "no"),
        ("source", "a", "apache-2.0", "yes"),
        ("source", "b", "cc-by-nc-4.0", "no"),
        ("source", "c", "Apache-2.0", "yes"),
        ("source", "d", "not stated", "not stated"),
        ("source", "e", "not stated", "not stated"),
        ("initial weights", "hub (resnet18)", "apache-2.0", "yes"),
    ]


def test_recipe_takes_precedence(tmp_path: Path) -> None:
    sources = [{"name": "a", "kind": "timm", "model": "convnextv2_tiny", "license": "MIT"}]
    run = make_run(tmp_path, sources, license="own")
    assert rows(run) == [("data", "elpv", "own", "yes"), ("source", "a", "MIT", "yes")]


@pytest.mark.parametrize("license_text", ["", 2.0, ["MIT"]])
def test_license_is_a_text(license_text: Any) -> None:
    fields = {"name": "x", "data": {"kind": "digits", "license": license_text}, "student": {"families": {"micro": {}}}}
    with pytest.raises(ValidationError, match=r"data\.license"):
        Recipe.model_validate(fields)


def test_unlabeled_shards_are_an_input(tmp_path: Path) -> None:
    run = make_run(tmp_path, [])
    recipe, base = run.recipe()
    fields = recipe.model_dump(mode="json") | {"unlabeled": {"kind": "wds", "urls": "/home/me/x.tar"}}
    run.save_resolved_recipe(Recipe.model_validate(fields), base)
    assert rows(run)[1:] == [("unlabeled data", "wds", "not stated", "not stated")]


def test_student_on_labels_alone_has_no_license_of_a_source(tmp_path: Path) -> None:
    run = make_run(tmp_path, [{"name": "b", "kind": "timm", "model": "convnextv2_tiny"}])
    artifacts.BASELINE.write(run, baseline("distilled"))
    assert [row[0] for row in rows(run)] == ["data", "source"]
    artifacts.BASELINE.write(run, baseline("labels alone"))
    assert [row[0] for row in rows(run)] == ["data"]


def test_published_data_set_is_named_and_a_path_is_not(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for fields, name in (
        ({"kind": "hf", "path": "owner/cells"}, "hf owner/cells"),
        ({"kind": "hf", "path": "pictures"}, "hf"),
        ({"kind": "folder", "root": "/home/me/pictures"}, "folder"),
        ({"kind": "torchvision", "name": "EuroSAT", "root": "/home/me"}, "torchvision EuroSAT"),
    ):
        assert rows(make_run(tmp_path, [], **fields))[0][1] == name


def test_run_brings_all_its_inputs(tmp_path: Path) -> None:
    inner_sources = [{"name": "x", "kind": "timm", "model": "convnextv2_tiny"}]
    make_run(tmp_path / "inner", inner_sources, initial="hub (resnet18)")
    make_run(tmp_path / "middle", [{"name": "in", "kind": "run", "path": "../inner"}], license="MIT")
    outer = make_run(tmp_path / "outer", [{"name": "mid", "kind": "run", "path": "../middle"}], license="MIT")
    assert rows(outer) == [
        ("data", "elpv", "MIT", "yes"),
        ("data", "mid/elpv", "MIT", "yes"),
        ("data", "mid/in/elpv", "CC BY-NC-SA 4.0", "no"),
        ("source", "mid/in/x", "cc-by-nc-4.0", "no"),
        ("initial weights", "mid/in/hub (resnet18)", "apache-2.0", "yes"),
    ]
    stated = [{"name": "mid", "kind": "run", "path": "../middle", "license": "Apache-2.0"}]
    assert rows(make_run(tmp_path / "outer", stated))[1:] == [("source", "mid", "Apache-2.0", "yes")]


@pytest.mark.parametrize("path", ["../nowhere", ".", "../latest"])
def test_run_that_is_missing_or_its_own_source_is_not_stated(tmp_path: Path, path: str) -> None:
    (tmp_path / "latest").symlink_to("outer")
    outer = make_run(tmp_path / "outer", [{"name": "in", "kind": "run", "path": path}])
    assert rows(outer)[1:] == [("source", "in", "not stated", "not stated")]
    assert licenses.fingerprint(*outer.recipe())


def test_bundle_of_a_source_knows_what_cannot_be_looked_up_any_more(tmp_path: Path) -> None:
    sources = [{"name": "x", "kind": "pypi", "package": "no-such-package-here", "model": "resnet18"}]
    inner = make_run(tmp_path / "inner", sources)
    recorded = LicensedInput(what="source", name="x", licence="CC-BY-NC-4.0", commercial="no")
    artifacts.DESCRIPTION.write(inner, {"licences": [asdict(recorded)]})
    outer = make_run(tmp_path / "outer", [{"name": "in", "kind": "run", "path": "../inner"}])
    assert ("source", "in/x", "CC-BY-NC-4.0", "no") in rows(outer)
    assert ("data", "in/elpv", "CC BY-NC-SA 4.0", "no") in rows(outer)


def test_fingerprint_follows_what_recipes_state(tmp_path: Path) -> None:
    outer = make_run(tmp_path / "outer", [{"name": "in", "kind": "run", "path": "../inner"}])
    prints = [licenses.fingerprint(*outer.recipe())]
    for inner in ({}, {"license": "MIT"}):
        make_run(tmp_path / "inner", [], **inner)
        prints.append(licenses.fingerprint(*outer.recipe()))
    assert len(set(prints)) == 3


@pytest.mark.parametrize(
    ("fields", "stated"),
    [
        ("License-Expression: MIT\nLicense: BSD", "MIT"),
        ("License: BSD", "BSD"),
        ("License: UNKNOWN\nClassifier: Topic :: X\nClassifier: License :: OSI Approved :: MIT License", "MIT License"),
        ("License: UNKNOWN", ""),
        ("Summary: nothing is stated", ""),
    ],
)
def test_package_license_prefers_the_expression(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: str, stated: str
) -> None:
    folder = tmp_path / "stated_weights-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: stated-weights\nVersion: 1.0\n{fields}\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert package_license("stated-weights") == stated
    assert package_license("no-such-package-here") == ""


def test_text_of_a_license_is_kept_by_its_first_line(tmp_path: Path) -> None:
    text = f"\nMy terms\nFor research purposes only.\n{'x' * 300}"
    assert rows(make_run(tmp_path, [], license=text))[0] == ("data", "elpv", "My terms", "no")


def test_model_of_the_hub_states_its_license_in_the_cached_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.json"
    cached: list[str | None] = [None]
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, name: cached[0])
    assert timm_license("hf-hub:owner/net") == ""
    cached[0] = str(config)
    for fields, stated in (
        ({"pretrained_cfg": {"license": "cc-by-nc-4.0"}}, "cc-by-nc-4.0"),
        ({"license": "mit"}, "mit"),
        ({"pretrained_cfg": []}, ""),
        ([], ""),
    ):
        config.write_text(json.dumps(fields), encoding="utf-8")
        assert timm_license("hf-hub:owner/net@main") == stated
    assert timm_license("no_such_model") == ""
