"""`bundle.unknown`: what it takes, and what a mistake is answered with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgedistill import check
from edgedistill.errors import InputError
from edgedistill.recipe.file import read_recipe
from edgedistill.recipe.schema import Recipe
from edgedistill.run.files import digest

TEXT = "name: x\ndata: {kind: digits}\nstudent: {families: {micro: {input_px: 16}}}\ndistill: {method: transfer}\n"


def load(folder: Path, unknown: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(TEXT + f"bundle: {{unknown: {unknown}}}\n")
    return check.load(read_recipe(path))


@pytest.mark.parametrize(
    ("written", "wish"),
    [
        ("{accuracy: 0.95}", (None, 0.95)),
        ("{coverage: 0.8}", (0.8, None)),
        ("true", (0.9, None)),
        ("false", None),
    ],
)
def test_operating_point(tmp_path: Path, written: str, wish: Any) -> None:
    unknown = load(tmp_path, written).bundle.unknown
    assert (unknown and (unknown.coverage, unknown.accuracy)) == wish


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{coverage: 90}", "bundle.unknown.coverage: input should be less than 1 (got 90)"),
        ("{accuracy: 0}", "bundle.unknown.accuracy: input should be greater than 0 (got 0)"),
        ("{coverage: 0.9, accuracy: 0.9}", "takes coverage or accuracy, one of the two"),
        ("{}", "takes coverage or accuracy, one of the two"),
        ("{coverag: 0.9}", "bundle.unknown.coverag: unknown key"),
        ("0.9", "bundle.unknown: input should be a valid dictionary"),
    ],
)
def test_mistake_is_told_by_line(tmp_path: Path, written: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, written)
    assert "recipe.yaml:5: bundle.unknown" in str(caught.value) and message in str(caught.value)


def test_default_enters_no_key_and_another_point_does(tmp_path: Path) -> None:
    plain = load(tmp_path, "{coverage: 0.9}")
    assert plain.sections(["bundle"]) == {} and "bundle" not in plain.for_key()
    keys = {digest(load(tmp_path, written).sections(["bundle"])) for written in ("false", "{coverage: 0.8}", "true")}
    assert len(keys) == 3
