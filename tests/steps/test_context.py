"""What the steps of a run share is loaded once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgedistill.data import load
from edgedistill.recipe.data_section import Data
from edgedistill.recipe.file import read_recipe
from edgedistill.run.directory import Run
from edgedistill.steps.context import Context
from tests.helpers import miniature
from tests.helpers.trees import folder_tree


def test_last_training_divides_no_data_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgedistill import check

    folder_tree(tmp_path / "set", train=10, test=0)
    section = Data.model_validate({"kind": "folder", "root": "set"})
    recipe = check.load(read_recipe(miniature.write(tmp_path / "mini").recipe))
    context = Context(recipe=recipe.model_copy(update={"data": section}), base=tmp_path, run=Run(path=tmp_path / "run"))
    vars(context)["splits"] = load.load_splits(section, tmp_path, cache=tmp_path / "cache", seed=0, px=12)
    monkeypatch.setattr(load, "load_splits", None)
    splits = context.shipping().splits
    np.testing.assert_array_equal(splits.labeled_rows, np.arange(20))
    assert not len(splits.val_rows) and len(context.splits.val_rows) == 4
