"""What the steps of a run share is loaded once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgedistill.data import load
from edgedistill.recipe.data_section import Data
from edgedistill.recipe.file import read_recipe
from edgedistill.report import facts
from edgedistill.run import artifacts
from edgedistill.run.directory import Run
from edgedistill.steps.context import Context
from tests.helpers import miniature
from tests.helpers.miniature import Project
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


def test_export_after_other_labels_is_refused_until_the_run_is_trained_again(tmp_path: Path) -> None:
    project = miniature.write(tmp_path)
    short = ("search.trials=1", "search.steps=1", "distill.steps=4", "distill.method=transfer")
    command = (
        "train",
        project.recipe,
        "--runs",
        project.runs,
        *(part for setting in short for part in ("--set", setting)),
    )
    assert miniature.call(*command).code == 0
    for path in sorted((project.root / "pictures/train").rglob("*.png"))[:3]:  # images that trained are in test now
        path.rename(project.root / "pictures/test" / path.parent.name / f"moved-{path.name}")
    refused = miniature.call("export", project.run, "--no-int8")
    assert refused.code == 2 and "images or labels have changed since" in refused.err, refused.err
    assert miniature.call(*command).code == 0
    exported = miniature.call("export", project.run, "--no-int8")
    assert exported.code == 0, exported.err


def test_report_of_a_student_trained_anew_leaves_its_former_graphs_out(project_copy: Project) -> None:
    run = Run(path=project_copy.run)
    assert not facts.read(run).outdated and facts.read(run).bench
    record = artifacts.RESULT.read(run)
    artifacts.RESULT.write(run, replace(record, sha256="0" * 64))
    after = facts.read(run)
    assert after.outdated and not after.models and after.ladder is None and not after.bench
    assert any("are of an earlier student" in text for text in facts.warnings(after))
    assert "are of an earlier student" in " ".join(miniature.call("report", project_copy.run).out.split())
