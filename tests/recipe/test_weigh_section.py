"""A metric has one score: the recipe does not name it twice with different options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgedistill import check
from edgedistill.recipe.file import RecipeError, parse_recipe
from edgedistill.recipe.schema import Weigh

RECIPE = """\
data: {kind: digits}
distill: {method: transfer}
weigh:
"""


@pytest.mark.parametrize(
    "lines", ["  also: [{name: parc, dims: 2}, parc]", "  metric: parc\n  also: [{name: parc, dims: 2}]"]
)
def test_metric_with_two_sets_of_options_is_refused(lines: str, tmp_path: Path) -> None:
    problem = r"recipe\.yaml:3: weigh: value error, also: parc is there twice with different options"
    with pytest.raises(RecipeError, match=problem):
        check.load(parse_recipe(RECIPE + lines, tmp_path / "recipe.yaml"))


@pytest.mark.parametrize(
    "section",
    [
        {"metric": {"name": "parc", "dims": 32}},
        {"metric": "parc", "also": ["parc", "knn", "knn"]},
        {"metric": {"name": "parc", "dims": 2}, "also": [{"name": "parc", "dims": 2}]},
    ],
)
def test_metric_that_is_named_twice_alike_stays_a_recipe(section: dict[str, Any]) -> None:
    """Also in the lock of a run, where the default is written out."""
    weigh = Weigh.model_validate(section)
    assert Weigh.model_validate(weigh.model_dump(mode="json")) == weigh
