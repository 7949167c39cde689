"""A recipe of an earlier release keeps its run directory and its steps' keys: later keys enter neither."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import create_model

from edgedistill.pipeline import TRAIN
from edgedistill.recipe.file import read_recipe, validate_recipe
from edgedistill.recipe.options import LATER, NOTE, options_for_key
from edgedistill.recipe.schema import Distill, Recipe
from edgedistill.recipe.section import Section, without_later
from edgedistill.run.directory import run_directory
from edgedistill.run.files import digest
from edgedistill.sources import registry

FOLDER = Path(__file__).parent / "recipes_0_1"
DIGESTS: dict[str, dict[str, str]] = json.loads((FOLDER / "digests.json").read_text(encoding="utf-8"))
HELP = (
    "a key of the recipe schema entered a hash: mark it `Annotated[..., LATER]` if it was added, and raise the version "
    "of its step if its default changed (CONTRIBUTING.md, Recipe keys and versions)"
)


def recipe(name: str) -> Recipe:
    validated, problems = validate_recipe(read_recipe(FOLDER / f"{name}.yaml"))
    assert validated is not None, problems
    return validated


def test_ten_recipes_are_covered() -> None:
    assert len(DIGESTS) == 10 and {path.stem for path in FOLDER.glob("*.yaml")} == DIGESTS.keys()


@pytest.mark.parametrize("name", DIGESTS)
def test_old_recipe_keeps_its_digests(name: str) -> None:
    old, bench = recipe(name), {"devices", "backends", "inventory"}
    digests = {
        "run": run_directory(old, Path("runs")).path.name,
        **{step.name: digest(old.sections(step.sections)) for step in TRAIN if step.name in DIGESTS[name]},
        "keep": digest(old.sections(("quantize",))),
        "report": digest(old.sections(("name", "about", "data"))),
        "export": digest(old.export.for_key(exclude={"engines"})),
        "quantize": digest(old.quantize.for_key(exclude={"min_speedup"})),
        "bench": digest(old.bench.for_key(exclude=bench)),
        "candidate": digest(old.export.for_key(exclude={"fp16", "engines"})),
        "latency": digest(old.bench.for_key(exclude={*bench, "offline"})),
        "sources": digest([registry.own_settings(section) for section in old.sources]),
    }
    assert digests == DIGESTS[name], HELP


class Grown(Distill):
    """The section as a later release may have it."""

    patience: Annotated[int, LATER] = 3


def test_later_key_at_its_default_enters_no_key() -> None:
    assert Grown().for_key() == Grown(patience=3).for_key() == Distill().for_key()
    assert Grown(patience=4).for_key() == {**Distill().for_key(), "patience": 4}


class Noted(Distill):
    """A section with a remark that changes nothing."""

    remark: Annotated[str | None, NOTE] = None


def test_note_enters_no_key_and_stays_in_the_recipe() -> None:
    assert Noted(remark="x").for_key() == Distill().for_key()
    assert Noted(remark="x").model_dump(mode="json")["remark"] == "x"


def test_licenses_enter_no_key() -> None:
    old, stated = recipe("shards"), recipe("shards").model_dump(mode="json")
    for section in (stated["data"], stated["unlabeled"], *stated["sources"]):
        section["license"] = "MIT"
    new = Recipe.model_validate(stated)
    assert new.data.license == "MIT" and new.for_key() == old.for_key()
    assert [registry.own_settings(section) for section in new.sources] == [
        registry.own_settings(section) for section in old.sources
    ]


def test_key_that_is_not_marked_enters_and_is_found() -> None:
    careless = create_model("Careless", __base__=Distill, patience=(int, 3))
    assert careless().for_key() != Distill().for_key()


def test_later_keys_are_left_out_at_any_depth() -> None:
    class Outer(Section):
        inner: Grown = Grown()
        several: tuple[Grown, ...] = (Grown(), Grown(patience=5))
        extra: Annotated[Grown | None, LATER] = None

    plain = Outer().for_key()
    assert plain == {"inner": Distill().for_key(), "several": [Distill().for_key(), Grown(patience=5).for_key()]}
    assert without_later(Outer(extra=Grown()), Outer(extra=Grown()).model_dump(mode="json"))["extra"] == (
        Distill().for_key()
    )


def test_later_section_of_the_recipe_enters_only_when_it_is_set() -> None:
    class Labels(Section):
        audit: bool = True

    class Next(Recipe):
        labels: Annotated[Labels, LATER] = Labels()

    fields = {"name": "next", "data": {"kind": "digits"}, "student": {"families": {"micro": {}}}}
    names = ("data", "labels", "student")
    assert Next.model_validate(fields).sections(names) == Recipe.model_validate(fields).sections(names[::2])
    changed = Next.model_validate({**fields, "labels": {"audit": False}})
    assert changed.sections(names)["labels"] == {"audit": False}


def method(batch: Any, alphas: Any, *, lam: float = 0.8, smoothing: Annotated[float, LATER] = 0.0) -> dict[str, Any]:
    """A method as a later release may have it."""
    return {}


def test_later_option_at_its_default_enters_no_key() -> None:
    assert options_for_key(method, {"lam": 0.8, "smoothing": 0.0}) == {"lam": 0.8}
    assert options_for_key(method, {"name": "m", "smoothing": 0.1}) == {"name": "m", "smoothing": 0.1}
