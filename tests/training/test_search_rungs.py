"""Successive halving on the way: who falls behind is not trained to the end, and a kill changes nothing."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from test_search import quality, space

from edgedistill.recipe import Budget, Search
from edgedistill.records import StudentSpec
from edgedistill.training.search import Rungs, name_of, rung_steps, search

SETTINGS = Search(trials=24, steps=80, rungs=2, keep_one_in=2)


class Trainer:
    """Its candidates reach their quality in proportion to the steps; it counts steps, and may die."""

    def __init__(self, killed_at: int = 10**6) -> None:
        self.steps: dict[str, int] = {}
        self.killed_at = killed_at

    def __call__(self, spec: StudentSpec, seed: int, rungs: Rungs) -> tuple[float, dict[str, float]]:
        if len(self.steps) == self.killed_at:
            raise KeyboardInterrupt
        for step in (*rungs, SETTINGS.steps):
            self.steps[name_of(spec)] = step
            if step in rungs:
                rungs[step](quality(spec) * step / SETTINGS.steps)
        return quality(spec), {"standard_error": 0.0, "loss": 1.0}

    def search(self, folder: Path) -> StudentSpec:
        return search(space(), Budget(), SETTINGS, self, seed=5, folder=folder)


def test_rungs_by_hand() -> None:
    assert rung_steps(SETTINGS) == [20, 40]
    assert rung_steps(Search(steps=90, rungs=3, keep_one_in=3)) == [3, 10, 30]
    assert rung_steps(Search(steps=3, rungs=5, keep_one_in=3)) == [1]
    assert rung_steps(Search()) == []


def test_the_best_is_found_for_less(tmp_path: Path) -> None:
    trainer = Trainer()
    winner = trainer.search(tmp_path)
    assert quality(winner) == max(map(quality, space()))
    assert len(trainer.steps) == 24  # everyone was begun,
    spent = sum(trainer.steps.values())
    assert spent < 0.7 * 24 * SETTINGS.steps  # and not everyone went on
    with (tmp_path / "trials.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    ended = {state: sum(row["state"] == state for row in rows) for state in ("complete", "pruned")}
    assert ended["complete"] == sum(steps == SETTINGS.steps for steps in trainer.steps.values()) >= 1
    assert ended["complete"] + ended["pruned"] == 24
    assert all(row["value"] == "" for row in rows if row["state"] == "pruned")


@pytest.mark.parametrize("killed_at", [1, 7, 20])
def test_a_kill_changes_nothing(tmp_path: Path, killed_at: int) -> None:
    first, second, whole = Trainer(killed_at), Trainer(), Trainer()
    with pytest.raises(KeyboardInterrupt):
        first.search(tmp_path / "cut")
    winner = second.search(tmp_path / "cut")
    assert winner == whole.search(tmp_path / "whole")
    assert first.steps | second.steps == whole.steps and not first.steps.keys() & second.steps.keys()
