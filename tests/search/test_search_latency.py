"""A bound in milliseconds: candidates are measured and refused before training, and an unmet bound is reported."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from edgedistill.errors import EdgeDistillError, InputError
from edgedistill.recipe.schema import Budget, Search
from edgedistill.records import StudentSpec
from edgedistill.search.search import Rungs, explain_choice, name_of, search
from tests.helpers.search_space import quality, space


class Bench:
    """A device on which one million MACs take a millisecond, and a trainer; both record their candidates."""

    def __init__(self, away_after: int = 10**6) -> None:
        self.measured: list[str] = []
        self.trained: list[str] = []
        self.away_after = away_after

    def latency(self, spec: StudentSpec) -> float:
        if len(self.measured) == self.away_after:
            raise EdgeDistillError("jetson: cannot be reached", "is it on?")
        self.measured.append(name_of(spec))
        return spec.cost.macs_m

    def objective(self, spec: StudentSpec, seed: int, rungs: Rungs) -> tuple[float, dict[str, float]]:
        self.trained.append(name_of(spec))
        return quality(spec), {"standard_error": 0.0, "loss": 1.0}

    def search(self, folder: Path, at_most: float, trials: int, budget: Budget | None = None) -> StudentSpec:
        limits = budget or Budget(latency_ms=at_most)  # type: ignore[arg-type]
        return search(
            space(), limits, Search(trials=trials), self.objective, seed=3, folder=folder, latency=self.latency
        )


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("trials", [4, 24])
def test_slow_candidates_never_train_and_never_win(tmp_path: Path, trials: int) -> None:
    bench, fast = Bench(), {name_of(spec): spec for spec in space() if spec.cost.macs_m <= 8.0}
    winner = bench.search(tmp_path, 8.0, trials)
    assert set(bench.trained) <= set(fast) and winner.cost.macs_m <= 8.0
    assert len(bench.trained) == min(trials, len(fast))  # only trials that were trained count
    assert len(set(bench.measured)) == len(bench.measured)
    assert winner == max((fast[name] for name in bench.trained), key=quality)


def test_trials_table_lists_measured_latency(tmp_path: Path) -> None:
    bench = Bench()
    winner = bench.search(tmp_path, 8.0, 24)
    table = rows(tmp_path)
    rows_by_state = {state: [row for row in table if row["state"] == state] for state in ("complete", "over budget")}
    assert len(rows_by_state["complete"]) == len(bench.trained) and len(table) == 24
    assert all(float(row["latency_ms"]) == pytest.approx(float(row["macs_m"]), abs=1e-3) for row in table)
    assert all(float(row["latency_ms"]) > 8.0 and row["value"] == "" for row in rows_by_state["over budget"])
    assert f", {winner.cost.macs_m:.3g} ms on the device: score" in explain_choice(winner, tmp_path)


def test_only_candidates_within_other_bounds_are_measured(tmp_path: Path) -> None:
    bench = Bench()
    budget = Budget(macs_m=10.0, latency_ms=5.0)  # type: ignore[arg-type]
    bench.search(tmp_path, 5.0, 24, budget)
    assert set(bench.measured) == {name_of(spec) for spec in space() if spec.cost.macs_m <= 10.0}


def test_unmet_latency_bound_names_nearest_candidate(tmp_path: Path) -> None:
    bench = Bench()
    with pytest.raises(InputError) as caught:
        bench.search(tmp_path, 1.0, 5)
    # 8 * 32 px / 100 = 2.56 is the cheapest
    assert str(caught.value) == (
        "student.budget.latency_ms: none of 24 candidates meets it on local; the nearest is micro width=8 at 32 px "
        "with 2.56 ms (budget 1, int8, p50); raise the budget, or offer a smaller family or input_px"
    )
    assert bench.trained == [] and len(rows(tmp_path)) == 24


def test_lost_device_loses_no_trial(tmp_path: Path) -> None:
    first, second, uninterrupted = Bench(away_after=4), Bench(), Bench()
    with pytest.raises(EdgeDistillError, match="jetson: cannot be reached"):
        first.search(tmp_path / "cut", 8.0, 6)
    winner = second.search(tmp_path / "cut", 8.0, 6)
    assert winner == uninterrupted.search(tmp_path / "whole", 8.0, 6)
    assert first.trained + second.trained == uninterrupted.trained
    assert first.measured + second.measured == uninterrupted.measured


def test_latency_bound_is_a_number_or_a_mapping() -> None:
    number_only = Budget.model_validate({"latency_ms": 5})
    assert number_only.latency_ms is not None
    assert (number_only.latency_ms.at_most, number_only.latency_ms.device, number_only.latency_ms.precision) == (
        5.0,
        "local",
        "int8",
    )
    detailed = Budget.model_validate({"latency_ms": {"at_most": 2.5, "device": "my-jetson", "percentile": 90}})
    assert detailed.latency_ms is not None and (detailed.latency_ms.device, detailed.latency_ms.percentile) == (
        "my-jetson",
        90,
    )
    for invalid in (-1, 0, "fast", True, {"device": "local"}):
        with pytest.raises(ValueError, match="latency_ms"):
            Budget.model_validate({"latency_ms": invalid})
