"""The search: the candidates it scores, their order, and its resumption after a kill."""

from __future__ import annotations

import csv
import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
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
from edgedistill.search.search import COLUMNS, Rungs, explain_choice, name_of, search
from tests.helpers.search_space import quality, space

Objective = Callable[[StudentSpec, int, Rungs], tuple[float, dict[str, float]]]


def recording_objective(names: list[str], killed_at: int = -1) -> Objective:
    """Return an objective that records its candidates, and is interrupted at the candidate numbered `killed_at`."""

    def objective(spec: StudentSpec, seed: int, rungs: Rungs) -> tuple[float, dict[str, float]]:
        if len(names) == killed_at:
            raise KeyboardInterrupt
        names.append(name_of(spec))
        return quality(spec), {"standard_error": 0.0, "loss": 1.25, "seconds": 1.5}

    return objective


def run(
    folder: Path,
    objective: Objective,
    trials: int,
    specs: list[StudentSpec] | None = None,
    budget: Budget | None = None,
) -> StudentSpec:
    return search(specs or space(), budget or Budget(), Search(trials=trials), objective, seed=11, folder=folder)


def test_small_space_is_searched_completely(tmp_path: Path) -> None:
    names: list[str] = []
    winner = run(tmp_path, recording_objective(names), trials=24)
    assert sorted(names) == sorted(map(name_of, space())) and len(names) == 24
    assert (winner.family, winner.options, winner.input_px) == ("resnet", {"width": 32}, 64)


def test_winner_is_the_best_scored_candidate(tmp_path: Path) -> None:
    names: list[str] = []
    winner = run(tmp_path, recording_objective(names), trials=9)
    assert len(set(names)) == len(names) == 9
    best = max(quality(spec) for spec in space() if name_of(spec) in names)
    assert quality(winner) == pytest.approx(best)


def test_largest_of_each_family_is_scored_first(tmp_path: Path) -> None:
    names: list[str] = []
    budget = Budget(macs_m=20.0)  # at most 24 wide at 64 px, 32 wide at 32 px
    run(tmp_path, recording_objective(names), trials=4, budget=budget)
    expected = [
        name_of(
            max(
                (spec for spec in space() if spec.family == family and spec.cost.macs_m <= 20.0),
                key=lambda spec: spec.cost.macs_m,
            )
        )
        for family in ("micro", "resnet")
    ]
    assert names[:2] == expected


def test_next_of_family_follows_one_that_is_too_slow(tmp_path: Path) -> None:
    """A candidate refused for its latency does not count against its family."""
    names: list[str] = []
    budget = Budget.model_validate({"latency_ms": 15})
    search(
        space(),
        budget,
        Search(trials=2),
        recording_objective(names),
        seed=11,
        folder=tmp_path,
        latency=lambda spec: spec.cost.macs_m,
    )
    assert [json.loads(name)[0] for name in names] == ["micro", "resnet"]


def test_first_of_equal_candidates_wins(tmp_path: Path) -> None:
    names: list[str] = []

    def alike(spec: StudentSpec, seed: int, rungs: Rungs) -> tuple[float, dict[str, float]]:
        names.append(name_of(spec))
        return 0.5, {"standard_error": 0.0, "loss": 0.0}

    assert name_of(run(tmp_path, alike, trials=5)) == names[0]


@given(bound=st.floats(2.6, 40.0), trials=st.integers(1, 8), seed=st.integers(0, 3))
@settings(max_examples=12, deadline=None)
def test_candidates_over_budget_are_never_scored(bound: float, trials: int, seed: int) -> None:
    scored: list[StudentSpec] = []

    def objective(spec: StudentSpec, given_seed: int, rungs: Rungs) -> tuple[float, dict[str, float]]:
        assert given_seed == seed
        scored.append(spec)
        return spec.cost.macs_m, {
            "standard_error": 0.0,
            "loss": 0.0,
        }  # costlier is better, which draws the search toward refused candidates

    budget = Budget(macs_m=bound)
    affordable = [spec for spec in space() if spec.cost.macs_m <= bound]
    with tempfile.TemporaryDirectory() as folder:
        winner = search(space(), budget, Search(trials=trials), objective, seed=seed, folder=Path(folder))
    assert all(spec in affordable for spec in scored)
    assert len({name_of(spec) for spec in scored}) == len(scored) == min(trials, len(affordable))
    assert winner in scored and winner.cost.macs_m == max(spec.cost.macs_m for spec in scored)


def test_budget_without_candidates_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"student\.budget: no candidate meets it"):
        run(tmp_path, recording_objective([]), trials=3, budget=Budget(macs_m=0.1))


@pytest.mark.parametrize("trials", [9, 24], ids=["tpe", "whole"])
@pytest.mark.parametrize("killed_at", [0, 2, 6, 8])
def test_killed_search_resumes_with_the_same_sequence(tmp_path: Path, trials: int, killed_at: int) -> None:
    uninterrupted: list[str] = []
    winner = run(tmp_path / "whole", recording_objective(uninterrupted), trials)
    resumed: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", recording_objective(resumed, killed_at), trials)
    assert len(resumed) == killed_at
    assert run(tmp_path / "parts", recording_objective(resumed), trials) == winner
    assert resumed == uninterrupted


def test_finished_search_scores_no_candidate_again(tmp_path: Path) -> None:
    winner = run(tmp_path, recording_objective([]), trials=5)
    assert run(tmp_path, recording_objective([], killed_at=0), trials=5) == winner


def test_trial_left_running_is_resumed(tmp_path: Path) -> None:
    """A killed process cannot record its end in the journal."""
    uninterrupted: list[str] = []
    resumed: list[str] = []
    run(tmp_path / "whole", recording_objective(uninterrupted), trials=4)
    cut_study = study.open_study(tmp_path / "cut", Search(trials=4))
    first = {name_of(spec): spec for spec in space()}[uninterrupted[0]]
    params = {"family": first.family}
    assert (
        study.begin_trial(cut_study, uninterrupted[0], params, {"family": CategoricalDistribution(("micro", "resnet"))})
        is not None
    )
    assert [trial.state for trial in trials_of(tmp_path / "cut")] == [TrialState.RUNNING]
    run(tmp_path / "cut", recording_objective(resumed), trials=4)
    assert resumed == uninterrupted
    states = [trial.state for trial in trials_of(tmp_path / "cut")]
    assert TrialState.RUNNING not in states and states.count(TrialState.COMPLETE) == 4


def test_interrupted_trial_is_not_left_running(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, recording_objective([], killed_at=0), trials=4)
    assert TrialState.RUNNING not in [trial.state for trial in trials_of(tmp_path)]


def trials_of(folder: Path) -> list[optuna.trial.FrozenTrial]:
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
    return optuna.load_study(study_name="students", storage=optuna.storages.JournalStorage(backend)).get_trials()


def test_lock_of_dead_process_on_the_journal_is_removed(tmp_path: Path) -> None:
    run(tmp_path, recording_objective([]), trials=5)
    lock = tmp_path / "study.journal.lock"
    lock.symlink_to(tmp_path / "study.journal")  # Optuna waits 30 s for it before it takes it over
    (tmp_path / "study.journal.lock0.rename").touch()
    run(tmp_path, recording_objective([], killed_at=0), trials=5)
    assert not list(tmp_path.glob("study.journal.lock*"))


@pytest.mark.parametrize("left", [1, 40], ids=["without its end", "a few bytes"])
def test_half_line_of_dead_process_in_the_journal_is_cut(tmp_path: Path, left: int) -> None:
    """A full disk or a power loss may end an append anywhere."""
    uninterrupted: list[str] = []
    winner = run(tmp_path / "whole", recording_objective(uninterrupted), trials=5)
    resumed: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", recording_objective(resumed, killed_at=3), trials=5)
    journal = tmp_path / "cut/study.journal"
    content = journal.read_bytes()
    last = content.rstrip(b"\n").rfind(b"\n") + 1
    journal.write_bytes(content[: len(content) - 1 if left == 1 else last + left])
    for _ in range(2):  # the second one reads what the first one appended
        assert run(tmp_path / "cut", recording_objective(resumed), trials=5) == winner
    assert resumed == uninterrupted


def test_seed_changes_the_sequence(tmp_path: Path) -> None:
    sequences = []
    for seed in (1, 2):
        names: list[str] = []
        search(space(), Budget(), Search(trials=6), recording_objective(names), seed=seed, folder=tmp_path / str(seed))
        sequences.append(names)
    assert sequences[0] != sequences[1]


def test_scores_guide_the_choice_after_four_trials(tmp_path: Path) -> None:
    def negated(spec: StudentSpec, seed: int, rungs: Rungs) -> tuple[float, dict[str, float]]:
        names_of_negated.append(name_of(spec))
        return -quality(spec), {"standard_error": 0.0, "loss": 0.0}

    names: list[str] = []
    names_of_negated: list[str] = []
    run(tmp_path / "one", recording_objective(names), trials=12)
    run(tmp_path / "two", negated, trials=12)
    assert names[:4] == names_of_negated[:4] and names[4:] != names_of_negated[4:]


def test_proposed_family_counts_before_equal_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TPE proposes options of every family, and a family with many would have most of them equal."""
    specs = [spec for spec in space(sizes=(32,)) if spec.family == "micro"]
    specs += [
        replace(spec, options={**spec.options, "depth": depth})
        for spec in space(sizes=(32, 64))
        for depth in (1, 2)
        if spec.family == "resnet"
    ]
    largest = {"micro.width": 32, "micro.input_px": 32}  # tried first
    others = {"resnet.width": 8, "resnet.depth": 1, "resnet.input_px": 32}
    monkeypatch.setattr(study, "propose", lambda *_: {"family": "micro", **largest, **others})
    names: list[str] = []
    run(tmp_path, recording_objective(names), trials=3, specs=specs)
    assert [json.loads(name)[0] for name in names] == ["resnet", "micro", "micro"]


def test_non_finite_score_ends_the_search(tmp_path: Path) -> None:
    calls: list[str] = []

    def broken(spec: StudentSpec, seed: int, rungs: Rungs) -> tuple[float, dict[str, float]]:
        calls.append(name_of(spec))
        assert len(calls) < 5, "the same candidate over and over"
        return math.nan, {"standard_error": 0.0, "loss": 0.0}

    with pytest.raises(EdgeDistillError, match=r"search: the score of .* is not finite; lower distill\.lr"):
        run(tmp_path, broken, trials=3)


def test_trials_table_lists_all_candidates(tmp_path: Path) -> None:
    names: list[str] = []
    winner = run(tmp_path, recording_objective(names), trials=5, budget=Budget(macs_m=20.0))
    with (tmp_path / "trials.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == COLUMNS and len(rows) == len(space())
    refused = sum(spec.cost.macs_m > 20.0 for spec in space())
    states = [row["state"] for row in rows]
    assert states == sorted(states, key=lambda state: state != "complete")
    assert [states.count(state) for state in ("complete", "over budget", "not tried")] == [5, refused, 24 - 5 - refused]
    by_name = {name_of(spec): spec for spec in space()}
    for number, row in enumerate(rows[:5]):
        spec = by_name[names[number]]
        assert (row["number"], row["family"], row["input_px"]) == (str(number), spec.family, str(spec.input_px))
        assert row["options"] == f'{{"width": {spec.options["width"]}}}'
        assert float(row["value"]) == quality(spec) and float(row["seconds"]) == 1.5
        assert float(row["macs_m"]) == pytest.approx(spec.cost.macs_m, abs=1e-3)
    assert explain_choice(winner, tmp_path) == (
        f"{winner.family} width={winner.options['width']} at {winner.input_px} px: "
        f"score {quality(winner):.3f} (the best), with the lowest held-out loss of such (1.250); "
        f"5 trained to the end, 0 pruned, {refused} refused by the budget"
    )


def test_held_out_loss_decides_among_equal_scores(tmp_path: Path) -> None:
    """Scores 0.70 +- 0.05, 0.66, 0.64: the second is within one standard error of the first, the third is not."""
    score_and_loss = iter([(0.70, 0.9), (0.66, 0.8), (0.64, 0.1)])

    def objective(spec: StudentSpec, seed: int, rungs: Rungs) -> tuple[float, dict[str, float]]:
        score, loss = next(score_and_loss)
        scored.append(spec)
        return score, {"standard_error": 0.05, "loss": loss, "seconds": 1.0}

    scored: list[StudentSpec] = []
    winner = search(space()[:3], Budget(), Search(trials=3), objective, seed=0, folder=tmp_path)
    assert winner == scored[1]
    assert "score 0.660 (within one standard error of the best, 0.700)" in explain_choice(winner, tmp_path)


def test_agreement_with_teacher_makes_the_first_cut(tmp_path: Path) -> None:
    """Agreements 0.80 +- 0.03, 0.78 and 0.70: the third is out, though it is the best on val; val then decides."""
    facts = iter([(0.50, 0.80, 0.9), (0.60, 0.78, 0.8), (0.75, 0.70, 0.1)])

    def objective(spec: StudentSpec, seed: int, rungs: Rungs) -> tuple[float, dict[str, float]]:
        score, agreement, loss = next(facts)
        scored.append(spec)
        errors = {"standard_error": 0.05, "agreement_error": 0.03}
        return score, {**errors, "agreement": agreement, "loss": loss, "seconds": 1.0}

    scored: list[StudentSpec] = []
    winner = search(space()[:3], Budget(), Search(trials=3), objective, seed=0, folder=tmp_path)
    assert winner == scored[1]
    explanation = explain_choice(winner, tmp_path)
    assert "score 0.600 (below the best, 0.750); agrees with the teacher 0.780 (within one" in explanation
