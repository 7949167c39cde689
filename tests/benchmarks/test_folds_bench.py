"""The proof of the folds on a miniature pack: the product's own division, and lines that are written once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import lines
from benchmarks.folds import __main__ as command
from benchmarks.folds import cells, table
from benchmarks.folds.cells import Cell
from benchmarks.folds.draws import DividedDraw
from benchmarks.suite import protocol
from benchmarks.suite.bank import Bank
from tests.helpers.packs import pack


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    packs = tmp_path_factory.mktemp("packs")
    pack(packs / "squares", 0)
    settings = protocol.load("folds").model_dump()
    source = {"kind": "timm", "model": "resnet10t", "pretrained": False, "input_px": 32, "seed": 0}
    settings |= {
        "store_px": 32,
        "initial": "",
        "labels_per_class": {"default": 6},
        "targets": ("squares",),
        "student": {"family": "micro", "width": 8, "input_px": 16},
        "ready": {"net": source},
        "distill": settings["distill"] | {"steps": 3, "batch_labeled": 4, "batch_unlabeled": 4},
    }
    profile = protocol.Profile.model_validate(settings)
    return Bank(packs=packs, runs=tmp_path_factory.mktemp("runs"), profile=profile)


@pytest.fixture(autouse=True)
def own_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lines, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def draw(bank: Bank, **fields: Any) -> DividedDraw:
    return DividedDraw(bank=bank, target="squares", seed=0, per_class=6, **fields)


def test_fold_trains_on_nothing_of_its_own(bank: Bank) -> None:
    ships = draw(bank)
    labeled = ships.splits.labeled_rows
    assignment = ships.splits.folds
    assert assignment is not None and assignment.count == 5 and len(labeled) == 12
    scored = np.concatenate([assignment.rows(fold) for fold in range(5)])
    assert sorted(scored.tolist()) == labeled.tolist()
    for fold in range(5):
        splits = ships.changed(fold=fold).splits
        tested = set(assignment.rows(fold).tolist())
        trained = {*splits.labeled_rows.tolist(), *splits.unlabeled_rows.tolist()}
        assert tested and not tested & trained and not set(splits.reserve_rows.tolist()) & trained
        assert splits.test_set.labels_N.tolist() == ships.pool.labels_N[sorted(tested)].tolist()


def test_teacher_of_a_fold_does_not_see_its_images(bank: Bank) -> None:
    part = draw(bank, fold=1)
    assignment = part.splits.folds
    assert assignment is not None
    assert np.ptp(part.teacher_probs[assignment.rows(1)]) == 0.0
    assert np.ptp(part.teacher_probs[part.splits.labeled_rows]) > 0.0


def test_holdout_uses_the_same_labels(bank: Bank) -> None:
    ships = draw(bank)
    held = ships.changed(protocol="holdout", val=True)
    splits, division = held.splits, held.division
    parts = [splits.labeled_rows, splits.val_rows, division.test]
    assert [len(part) for part in parts] == [2 * 3, 2 * 1, 2 * 2]  # of six: 30 % test, and 20 % of the rest val
    assert sorted(np.concatenate(parts).tolist()) == ships.splits.labeled_rows.tolist()


def test_cells_are_written_once_and_in_tables(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name, setting in ((cells, "DRAWS", 1), (cells, "SIZES", (16, 24)), (cells, "TRIAL_STEPS", 2)):
        monkeypatch.setattr(owner, name, setting)
    monkeypatch.setattr(command, "load", lambda name: bank.profile)
    monkeypatch.setattr(table, "load", lambda name: bank.profile)
    argv = ["folds", "--packs", str(bank.packs), "--runs", str(bank.runs)]
    monkeypatch.setattr("sys.argv", argv)
    assert command.main() == 0
    written = list(lines.read("folds"))
    assert [line["question"] for line in written] == ["folds", "holdout", "search"]
    assert written[0]["pooled"]["n"] == 12 and written[0]["ships"]["n"] == 12 and written[0]["folds"] == 5
    assert written[1]["ships"]["labels"] > written[1]["holdout"]["labels"]
    assert len(written[2]["chosen_px"]) == 6 and set(written[2]["chosen_px"]) <= {16, 24}
    assert command.main() == 0
    assert list(lines.read("folds")) == written
    text = table.markdown()
    assert "| squares | 12 | 5 |" in text and "1 of 24 cells so far" in text and "With a search" in text
    monkeypatch.setattr(cells, "VERSION", cells.VERSION + 1)
    assert cells.line(bank, Cell(question="folds", target="squares", draw=0))["pooled"] == written[0]["pooled"]
