"""Facts that say by which rules folds were divided, where most data sets do not need them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgedistill.data.load import load_splits
from edgedistill.labels import divide
from edgedistill.recipe.data_section import Data
from edgedistill.steps.data_facts import odd_facts
from tests.helpers.trees import folder_tree, write_picture


def facts(folder: Path, **options: object) -> dict[str, int]:
    section = Data.model_validate({"kind": "folder", "root": "set", "protocol": "folds", **options})
    return odd_facts(load_splits(section, folder, cache=folder / "cache", seed=0, px=12), section.val_fraction)


@pytest.mark.parametrize(
    ("options", "is_odd"),
    [
        ({}, False),
        ({"group": r"((ant|bee)/\d\d)\d\.png"}, False),
        ({"group": r"(\d\d)\d\.png"}, True),  # of both classes
        ({"group": r"((ant|bee)/\d\d)\d\.png", "unlabeled": "more"}, True),
        ({"group": r"((ant|bee)/\d\d)\d\.png", "unlabeled": "more", "protocol": "holdout"}, False),
        ({"val_fraction": 0.6}, True),
    ],
)
def test_version_of_the_division_is_told_where_folds_are_odd(
    tmp_path: Path, options: dict[str, object], is_odd: bool
) -> None:
    folder_tree(tmp_path / "set", train=60, test=0)
    for name in ("ant", "bee"):
        for index in range(60):
            write_picture(tmp_path / "more" / name / f"{index:03d}.png", f"more{name}{index}")
    assert facts(tmp_path, **options) == ({"division": divide.VERSION} if is_odd else {})
