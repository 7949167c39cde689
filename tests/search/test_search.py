"""The search: what it may score, in which order, and that a kill changes nothing."""

from __future__ import annotations

import csv
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from edgedistill.errors import EdgeDistillError, InputError
from edgedistill.recipe.schema import Budget, Search
from edgedistill.records import StudentSpec
from edgedistill.search import study
from edgedistill.search.search import COLUMNS, Rungs, name_of, search, why
from tests.helpers.search_space import quality, space

Objective = Callable[[StudentSpec, int, Rungs], tuple[float, dict[str, float]]]


def remember(seen: list[str], killed_at: int = -1) -> Objective:
    """An objective that notes its candidates, and dies when it is to score the one numbered `killed_at`."""

    def objective(spec: StudentSpec, seed: int, rungs: Rungs) -> tuple[float, dict[str, float]]:
        if len(seen) == killed_at:
            raise KeyboardInterrupt
        seen.append(name_of(spec))
        return quality(spec), {"standard_error": 0.0, "loss": 1.25, "seconds": 1.5}

    return objective


def run(
    folder: Path,
    objective: Objective,
    trials: int,
    found: list[StudentSpec] | None = None,
    budget: Budget | None = None,
) -> StudentSpec:
    return search(found or space(), budget or Budget(), Search(trials=trials), objective, seed=11, folder=folder)


def test_a_small_space_is_searched_whole(tmp_path: Path) -> None:
    seen: list[str] = []
    winner = run(tmp_path, remember(seen), trials=24)
    assert sorted(seen) == sorted(map(name_of, space())) and len(seen) == 24
    assert (winner.family, winner.options, winner.input_px) == ("resnet", {"width": 32}, 64)


def test_the_winner_is_the_best_that_was_scored(tmp_path: Path) -> None:
    seen: list[str] = []
    winner = run(tmp_path, remember(seen), trials=9)
    assert len(set(seen)) == len(seen) == 9
    best = max(quality(spec) for spec in space() if name_of(spec) in seen)
    assert quality(winner) == pytest.approx(best)


def test_the_largest_of_each_family_comes_first(tmp_path: Path) -> None:
    seen: list[str] = []
    run(tmp_path, remember(seen), trials=4, budget=Budget(macs_m=20.0))  # at most 24 wide at 64 px, 32 wide at 32 px
    expected = [
        name_of(
            max(
                (spec for spec in space() if spec.family == family and spec.cost.macs_m <= 20.0),
                key=lambda spec: spec.cost.macs_m,
            )
        )
        for family in ("micro", "resnet")
    ]
    assert seen[:2] == expected


def test_where_the_largest_of_a_family_is_too_slow_the_next_one_comes(tmp_path: Path) -> None:
    """A refusal by the device says nothing of a family's worth."""
    seen: list[str] = []
    budget = Budget.model_validate({"latency_ms": 15})
    search(
        space(),
        budget,
        Search(trials=2),
        remember(seen),
        seed=11,
        folder=tmp_path,
        latency=lambda spec: spec.cost.macs_m,
    )
    assert [json.loads(one)[0] for one in seen] == ["micro", "resnet"]


def test_the_first_of_equals_wins(tmp_path: Path) -> None:
    seen: list[str] = []

    def alike(spec: StudentSpec, seed: int, rungs: Rungs) -> tuple[float, dict[str, float]]:
        seen.append(name_of(spec))
        return 0.5, {"standard_error": 0.0, "loss": 0.0}

    assert name_of(run(tmp_path, alike, trials=5)) == seen[0]


@given(bound=st.floats(2.6, 40.0), trials=st.integers(1, 8), seed=st.integers(0, 3))
@settings(max_examples=12, deadline=None)
def test_nothing_over_budget_is_ever_scored(bound: float, trials: int, seed: int) -> None:
    seen: list[StudentSpec] = []

    def objective(spec: StudentSpec, given_seed: int, rungs: Rungs) -> tuple[float, dict[str, float]]:
        assert given_seed == seed
        seen.append(spec)
        return spec.cost.macs_m, {
            "standard_error": 0.0,
            "loss": 0.0,
        }  # dearer is better: the pull is towards what is refused

    budget = Budget(macs_m=bound)
    affordable = [spec for spec in space() if spec.cost.macs_m <= bound]
    with tempfile.TemporaryDirectory() as folder:
        winner = search(space(), budget, Search(trials=trials), objective, seed=seed, folder=Path(folder))
    assert all(spec in affordable for spec in seen)
    assert len({name_of(spec) for spec in seen}) == len(seen) == min(trials, len(affordable))
    assert winner in seen and winner.cost.macs_m == max(spec.cost.macs_m for spec in seen)


def test_no_candidate_within_the_budget(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"student\.budget: no candidate meets it"):
        run(tmp_path, remember([]), trials=3, budget=Budget(macs_m=0.1))


@pytest.mark.parametrize("trials", [9, 24], ids=["tpe", "whole"])
@pytest.mark.parametrize("killed_at", [0, 2, 6, 8])
def test_a_killed_search_goes_on_as_if_nothing_had_happened(tmp_path: Path, trials: int, killed_at: int) -> None:
    whole: list[str] = []
    winner = run(tmp_path / "whole", remember(whole), trials)
    parts: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", remember(parts, killed_at), trials)
    assert len(parts) == killed_at
    assert run(tmp_path / "parts", remember(parts), trials) == winner
    assert parts == whole


def test_a_finished_search_scores_nothing_again(tmp_path: Path) -> None:
    winner = run(tmp_path, remember([]), trials=5)
    assert run(tmp_path, remember([], killed_at=0), trials=5) == winner


def test_a_trial_left_running_is_taken_up_again(tmp_path: Path) -> None:
    """A process that is killed outright has no time to say so in the journal."""
    seen: list[str] = []
    again: list[str] = []
    run(tmp_path / "whole", remember(seen), trials=4)
    dying = study.opened(tmp_path / "cut", Search(trials=4))
    first = {name_of(spec): spec for spec in space()}[seen[0]]
    params = {"family": first.family}
    assert study.begin(dying, seen[0], params, {"family": CategoricalDistribution(("micro", "resnet"))}) is not None
    assert [trial.state for trial in trials_of(tmp_path / "cut")] == [TrialState.RUNNING]
    run(tmp_path / "cut", remember(again), trials=4)
    assert again == seen
    states = [trial.state for trial in trials_of(tmp_path / "cut")]
    assert TrialState.RUNNING not in states and states.count(TrialState.COMPLETE) == 4


def test_what_ends_in_an_error_is_free_at_once(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, remember([], killed_at=0), trials=4)
    assert TrialState.RUNNING not in [trial.state for trial in trials_of(tmp_path)]


def trials_of(folder: Path) -> list[optuna.trial.FrozenTrial]:
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
    return optuna.load_study(study_name="students", storage=optuna.storages.JournalStorage(backend)).get_trials()


def test_the_seed_changes_the_sequence(tmp_path: Path) -> None:
    sequences = []
    for seed in (1, 2):
        seen: list[str] = []
        search(space(), Budget(), Search(trials=6), remember(seen), seed=seed, folder=tmp_path / str(seed))
        sequences.append(seen)
    assert sequences[0] != sequences[1]


def test_the_scores_steer_the_choice_after_four_trials(tmp_path: Path) -> None:
    def wrong_way(spec: StudentSpec, seed: int, rungs: Rungs) -> tuple[float, dict[str, float]]:
        contrary.append(name_of(spec))
        return -quality(spec), {"standard_error": 0.0, "loss": 0.0}

    seen: list[str] = []
    contrary: list[str] = []
    run(tmp_path / "one", remember(seen), trials=12)
    run(tmp_path / "two", wrong_way, trials=12)
    assert seen[:4] == contrary[:4] and seen[4:] != contrary[4:]


def test_a_score_that_is_no_number_ends_the_search(tmp_path: Path) -> None:
    calls: list[str] = []

    def broken(spec: StudentSpec, seed: int, rungs: Rungs) -> tuple[float, dict[str, float]]:
        calls.append(name_of(spec))
        assert len(calls) < 5, "the same candidate over and over"
        return math.nan, {"standard_error": 0.0, "loss": 0.0}

    with pytest.raises(EdgeDistillError, match=r"search: the score of .* is not finite; lower distill\.lr"):
        run(tmp_path, broken, trials=3)


def test_the_table_of_trials(tmp_path: Path) -> None:
    seen: list[str] = []
    winner = run(tmp_path, remember(seen), trials=5, budget=Budget(macs_m=20.0))
    with (tmp_path / "trials.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == COLUMNS and len(rows) == len(space())
    refused = sum(spec.cost.macs_m > 20.0 for spec in space())
    states = [row["state"] for row in rows]
    assert states == sorted(states, key=lambda state: state != "complete")
    assert [states.count(state) for state in ("complete", "over budget", "not tried")] == [5, refused, 24 - 5 - refused]
    by_name = {name_of(spec): spec for spec in space()}
    for at, row in enumerate(rows[:5]):
        spec = by_name[seen[at]]
        assert (row["number"], row["family"], row["input_px"]) == (str(at), spec.family, str(spec.input_px))
        assert row["options"] == f'{{"width": {spec.options["width"]}}}'
        assert float(row["value"]) == quality(spec) and float(row["seconds"]) == 1.5
        assert float(row["macs_m"]) == pytest.approx(spec.cost.macs_m, abs=1e-3)
    assert why(winner, tmp_path) == (
        f"{winner.family} width={winner.options['width']} at {winner.input_px} px: "
        f"score {quality(winner):.3f} (the best), with the lowest held-out loss of such (1.250); "
        f"5 trained to the end, 0 left behind, {refused} refused by the budget"
    )


def test_among_equals_the_held_out_loss_decides(tmp_path: Path) -> None:
    """Scores 0.70 +- 0.05, 0.66, 0.64: the second is within one standard error of the first, the third is not."""
    told = iter([(0.70, 0.9), (0.66, 0.8), (0.64, 0.1)])

    def objective(spec: StudentSpec, seed: int, rungs: Rungs) -> tuple[float, dict[str, float]]:
        score, loss = next(told)
        seen.append(spec)
        return score, {"standard_error": 0.05, "loss": loss, "seconds": 1.0}

    seen: list[StudentSpec] = []
    winner = search(space()[:3], Budget(), Search(trials=3), objective, seed=0, folder=tmp_path)
    assert winner == seen[1]
    assert "score 0.660 (within one standard error of the best, 0.700)" in why(winner, tmp_path)
