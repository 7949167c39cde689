"""Successive halving on the way: who falls behind is not trained to the end, and a kill changes nothing."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from edgedistill.errors import EdgeDistillError, UnfitError
from edgedistill.recipe.schema import Budget, Search
from edgedistill.records import StudentSpec
from edgedistill.search.search import Rungs, goes_on, name_of, rung_steps, search
from tests.helpers.search_space import quality, space

SETTINGS = Search(trials=24, steps=80, rungs=2, keep_one_in=2)


class Trainer:
    """Its candidates reach their quality in proportion to the steps; it counts steps, and may die after a rung."""

    def __init__(self, killed_at: int = 10**6) -> None:
        self.steps: dict[str, int] = {}
        self.killed_at = killed_at

    def __call__(self, spec: StudentSpec, seed: int, rungs: Rungs) -> tuple[float, dict[str, float]]:
        for step in (*rungs, SETTINGS.steps):
            self.steps[name_of(spec)] = step
            if step in rungs:
                rungs[step](quality(spec) * step / SETTINGS.steps)
            if len(self.steps) == self.killed_at:  # one of those that go on
                raise KeyboardInterrupt
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


@pytest.mark.parametrize("killed_at", [1, 7, 18])
def test_a_kill_changes_nothing(tmp_path: Path, killed_at: int) -> None:
    first, second, whole = Trainer(killed_at), Trainer(), Trainer()
    with pytest.raises(KeyboardInterrupt):
        first.search(tmp_path / "cut")
    winner = second.search(tmp_path / "cut")
    assert winner == whole.search(tmp_path / "whole")
    assert first.steps | second.steps == whole.steps
    assert len(first.steps.keys() & second.steps.keys()) == 1  # what it was at


def test_who_goes_on_by_hand() -> None:
    # of one, and of two or three, the best; of four the two best; of six with one in three the two best
    assert goes_on(0.1, [], 2) and goes_on(0.5, [0.4], 2) and not goes_on(0.5, [0.6, 0.1], 2)
    assert goes_on(0.5, [0.6, 0.1, 0.2], 2) and not goes_on(0.5, [0.6, 0.7, 0.2], 2)
    assert goes_on(0.5, [0.6, 0.1, 0.2, 0.3, 0.4], 3) and not goes_on(0.5, [0.6, 0.7, 0.2, 0.3, 0.4], 3)
    assert goes_on(0.5, [0.5, 0.5, 0.5], 2)  # a tie is no reason to leave


def test_nobody_comes_to_the_end(tmp_path: Path) -> None:
    def unfit(spec: StudentSpec, seed: int, rungs: Rungs) -> tuple[float, dict[str, float]]:
        raise UnfitError("no such operator")

    with pytest.raises(EdgeDistillError, match="none of 24 candidates was trained to the end: 0 were too slow"):
        search(space(), Budget(), SETTINGS, unfit, seed=5, folder=tmp_path)
    with (tmp_path / "trials.csv").open(newline="", encoding="utf-8") as stream:
        assert {row["state"] for row in csv.DictReader(stream)} == {"no such operator"}


def test_one_that_cannot_be_exported_is_no_end(tmp_path: Path) -> None:
    trainer = Trainer()

    def unfit(spec: StudentSpec, seed: int, rungs: Rungs) -> tuple[float, dict[str, float]]:
        if spec.family == "resnet":
            raise UnfitError("no such operator")
        return trainer(spec, seed, rungs)

    winner = search(space(), Budget(), Search(trials=24), unfit, seed=5, folder=tmp_path)
    assert winner.family == "micro" and len(trainer.steps) == 12
