"""Successive halving: weak candidates are pruned at rungs, and a killed search resumes to the same trials."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from edgedistill.errors import EdgeDistillError, UnfitError
from edgedistill.recipe.schema import Budget, Search
from edgedistill.records import StudentSpec
from edgedistill.search.search import Rungs, name_of, rung_steps, search, survives_rung
from tests.helpers.search_space import quality, space

SETTINGS = Search(trials=24, steps=80, rungs=2, keep_one_in=2)


class Trainer:
    """An objective whose scores grow in proportion to the steps; it counts steps and may be killed after a rung."""

    def __init__(self, killed_at: int = 10**6) -> None:
        self.steps: dict[str, int] = {}
        self.killed_at = killed_at

    def __call__(self, spec: StudentSpec, seed: int, rungs: Rungs) -> tuple[float, dict[str, float]]:
        for step in (*rungs, SETTINGS.steps):
            self.steps[name_of(spec)] = step
            if step in rungs:
                rungs[step](quality(spec) * step / SETTINGS.steps)
            if len(self.steps) == self.killed_at:  # a candidate that passed the rung
                raise KeyboardInterrupt
        return quality(spec), {"standard_error": 0.0, "loss": 1.0}

    def search(self, folder: Path) -> StudentSpec:
        return search(space(), Budget(), SETTINGS, self, seed=5, folder=folder)


def test_rungs_by_hand() -> None:
    assert rung_steps(SETTINGS) == [20, 40]
    assert rung_steps(Search(steps=90, rungs=3, keep_one_in=3)) == [3, 10, 30]
    assert rung_steps(Search(steps=3, rungs=5, keep_one_in=3)) == [1]
    assert rung_steps(Search()) == []


def test_best_candidate_is_found_with_fewer_steps(tmp_path: Path) -> None:
    trainer = Trainer()
    winner = trainer.search(tmp_path)
    assert quality(winner) == max(map(quality, space()))
    assert len(trainer.steps) == 24  # every candidate was started,
    total_steps = sum(trainer.steps.values())
    assert total_steps < 0.7 * 24 * SETTINGS.steps  # and some were pruned
    with (tmp_path / "trials.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    ended = {state: sum(row["state"] == state for row in rows) for state in ("complete", "pruned")}
    assert ended["complete"] == sum(steps == SETTINGS.steps for steps in trainer.steps.values()) >= 1
    assert ended["complete"] + ended["pruned"] == 24
    assert all(row["value"] == "" for row in rows if row["state"] == "pruned")


@pytest.mark.parametrize("killed_at", [1, 7, 18])
def test_killed_search_resumes_with_the_same_steps(tmp_path: Path, killed_at: int) -> None:
    first, second, uninterrupted = Trainer(killed_at), Trainer(), Trainer()
    with pytest.raises(KeyboardInterrupt):
        first.search(tmp_path / "cut")
    winner = second.search(tmp_path / "cut")
    assert winner == uninterrupted.search(tmp_path / "whole")
    assert first.steps | second.steps == uninterrupted.steps
    assert len(first.steps.keys() & second.steps.keys()) == 1  # the interrupted trial


def test_continuation_by_hand() -> None:
    # of one, and of two or three, the best; of four the two best; of six with one in three the two best
    assert survives_rung(0.1, [], 2) and survives_rung(0.5, [0.4], 2) and not survives_rung(0.5, [0.6, 0.1], 2)
    assert survives_rung(0.5, [0.6, 0.1, 0.2], 2) and not survives_rung(0.5, [0.6, 0.7, 0.2], 2)
    assert survives_rung(0.5, [0.6, 0.1, 0.2, 0.3, 0.4], 3) and not survives_rung(0.5, [0.6, 0.7, 0.2, 0.3, 0.4], 3)
    assert survives_rung(0.5, [0.5, 0.5, 0.5], 2)  # a tie is not pruned


def test_search_without_finished_candidate_is_an_error(tmp_path: Path) -> None:
    def unfit(spec: StudentSpec, seed: int, rungs: Rungs) -> tuple[float, dict[str, float]]:
        raise UnfitError("no such operator")

    with pytest.raises(EdgeDistillError, match="none of 24 candidates was trained to the end: 0 were too slow"):
        search(space(), Budget(), SETTINGS, unfit, seed=5, folder=tmp_path)
    with (tmp_path / "trials.csv").open(newline="", encoding="utf-8") as stream:
        assert {row["state"] for row in csv.DictReader(stream)} == {"no such operator"}


def test_search_continues_after_unfit_candidates(tmp_path: Path) -> None:
    trainer = Trainer()

    def unfit(spec: StudentSpec, seed: int, rungs: Rungs) -> tuple[float, dict[str, float]]:
        if spec.family == "resnet":
            raise UnfitError("no such operator")
        return trainer(spec, seed, rungs)

    winner = search(space(), Budget(), Search(trials=24), unfit, seed=5, folder=tmp_path)
    assert winner.family == "micro" and len(trainer.steps) == 12
