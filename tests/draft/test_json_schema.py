"""The JSON schema of recipes knows the options of each name, and takes what `check` takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgedistill.distill.methods import METHODS, Batch, Method, Terms
from edgedistill.draft import json_schema
from edgedistill.draft.recipe import SCHEMA
from edgedistill.students.families import FAMILIES
from tests.helpers import miniature
from tests.helpers.paths import ROOT

RECIPES = sorted((ROOT / "recipes").rglob("*.yaml")) + sorted((ROOT / "tests/recipe/recipes_0_1").glob("*.yaml"))
WHOLE: dict[str, Any] = {"data": {"kind": "folder", "root": "photos"}}


def mistakes(recipe: Any) -> list[str]:
    library = pytest.importorskip("jsonschema")
    schema = json_schema.schema()
    library.Draft7Validator.check_schema(schema)
    return [error.message for error in library.Draft7Validator(schema).iter_errors(recipe)]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_valid(path: Path) -> None:
    assert mistakes(yaml.safe_load(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "sections",
    [
        {"sources": "auto"},
        {"distill": {"method": "auto", "teacher": {"name": "stacked"}}},
        {"quantize": {"qat": True}, "bundle": {"unknown": False}},
        {"student": {"families": {"micro": {"width": [4, 8], "input_px": 32}}, "budget": {"latency_ms": 5}}},
        {"preset": "paper_style", "distill": {"method": {"lam": 0.5}}},
    ],
)
def test_short_forms_are_valid(sections: dict[str, Any]) -> None:
    assert mistakes(WHOLE | sections) == []


@pytest.mark.parametrize(
    "sections",
    [
        {"data": {"kind": "folder"}},
        {"data": {"kind": "folder", "root": "photos", "delimiter": ";"}},
        {"data": {"kind": "foldr", "root": "photos"}},
        {"sources": [{"name": "a", "kind": "timm", "modle": "resnet10t"}]},
        {"distill": {"method": "weigthed"}},
        {"distill": {"method": {"name": "weighted", "lamb": 0.5}}},
        {"weigh": {"metric": {"name": "knn", "k": "many"}}},
        {"student": {"families": {"micro": {"widht": 4}}}},
        {"student": {"families": {"macro": {}}}},
        {"preset": "paper"},
        {"stuff": {}},
    ],
)
def test_mistakes_are_told(sections: dict[str, Any]) -> None:
    assert mistakes(WHOLE | sections)


def test_every_name_has_its_options_with_their_meaning() -> None:
    text = json.dumps(json_schema.schema())
    assert "$defs" not in json.dumps(json_schema.schema()["$defs"]).replace("#/$defs/", "")
    families = json_schema.schema()["$defs"]["Student"]["properties"]["families"]["properties"]
    assert families.keys() == FAMILIES.keys() and all(entry["description"] for entry in families.values())
    assert all(f'"const": "{name}"' in text for name in METHODS)


def test_method_of_somebody_else_is_in_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    def own(batch: Batch, alphas: Any, *, strength: float = 1.0) -> Terms:
        """A method."""
        return {}

    recipe = WHOLE | {"distill": {"method": {"name": "own", "strength": 2.0}}}
    assert mistakes(recipe)
    monkeypatch.setitem(METHODS, "own", Method(loss=own))
    assert mistakes(recipe) == []


def test_command_writes_what_the_package_holds(tmp_path: Path) -> None:
    assert miniature.call("schema", "-o", tmp_path / "schema.json").out == ""
    assert (tmp_path / "schema.json").read_bytes() == SCHEMA.read_bytes()
    assert miniature.call("schema").out == SCHEMA.read_text(encoding="utf-8")
