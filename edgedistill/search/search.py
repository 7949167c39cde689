"""The search for a student: an Optuna study of all families under a budget, compared after a short distillation.

Optuna's constraints are soft and therefore not used: a candidate over budget is refused before it is trained. Each
choice comes from a sampler seeded by the number of candidates already tried, so that a killed search resumes with the
same choices. Several processes may work on one study (study.py).
"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import TrialState

from edgedistill.console import say
from edgedistill.errors import EdgeDistillError, InputError, UnfitError
from edgedistill.recipe.schema import Budget, Search
from edgedistill.records import StudentSpec
from edgedistill.run import artifacts
from edgedistill.run.files import atomic, canonical
from edgedistill.search import study
from edgedistill.search.study import CandidateStates, SharedStudy, Trials
from edgedistill.students.space import describe, feasible, over_budget, rounded_up

Rungs = Mapping[int, Callable[[float], object]]  # training step -> function of the score after it
Objective = Callable[[StudentSpec, int, Rungs], tuple[float, dict[str, float]]]
Latency = Callable[[StudentSpec], float]
FACTS = ("standard_error", "loss", "seconds", "agreement", "agreement_error")
COSTS = ("macs_m", "params_m", "weights_mb", "activation_mb")
COLUMNS = ("number", "state", "family", "options", "input_px", *COSTS, "latency_ms", "value", *FACTS)
POLL_S = 1.0
OVER_BUDGET, PRUNED = "over budget", "pruned"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that is constant over the trials of a search: candidates within the budget, and `search`'s arguments."""

    eligible: list[StudentSpec]
    budget: Budget
    settings: Search
    objective: Objective
    latency: Latency | None
    seed: int


def search(
    candidates: list[StudentSpec],
    budget: Budget,
    settings: Search,
    objective: Objective,
    *,
    seed: int,
    folder: Path,
    latency: Latency | None = None,
    name: str = "students",
    identity: str = "",
) -> StudentSpec:
    """Find the best student within the budget by `objective`; trials are recorded in study.journal and trials.csv.

    If there are no more feasible candidates than trials, all of them are scored; otherwise Optuna's TPE (Bergstra et
    al. 2011) chooses which.

    Args:
        candidates: all candidates, with costs.
        budget: upper bounds; a candidate over one of them is never scored.
        settings: the recipe's `search` section.
        objective: from a candidate, a seed and rungs to its score (higher is better) and facts to record:
            "standard_error" of the score, "loss" on held-out images, and, where there is a teacher, "agreement" and
            "agreement_error" (see `chosen`); further ones become columns of trials.csv. A rung is called with a score
            after its number of steps, and raises to prune the trial.
        seed: seed of the sampler and of the objective: every candidate is trained from the same seed.
        folder: the run's search folder.
        latency: from a candidate to its milliseconds on the device, measured before training and only for candidates
            that meet the other bounds. Required if the budget bounds latency.
        name: name of the study; workers that share a storage share it by name.
        identity: hash of the inputs of the search; all workers of a study must have the same.

    Raises:
        InputError: no candidate meets the budget; the storage cannot be reached or holds another recipe's study.
        EdgeDistillError: a candidate's score is not finite; the connection to the storage was lost.
    """
    eligible = feasible(candidates, budget)
    plan = Plan(eligible=eligible, budget=budget, settings=settings, objective=objective, latency=latency, seed=seed)
    shared = study.open_study(folder, settings, name, identity)
    with study.storage_errors(shared):
        states = _run_trials(shared, plan)
    _write_table(folder / artifacts.TRIALS.name, candidates, budget, states)
    if not states.scored:
        raise _no_winner_error(eligible, states.eliminated, budget)
    winner = chosen(states.scored)
    return next(spec for spec in eligible if name_of(spec) == winner)


def _run_trials(shared: SharedStudy, plan: Plan) -> CandidateStates:
    """Run trials until no worker has a candidate left; returns the states of all candidates."""
    while True:
        states = study.candidate_states(shared)
        enough = min(plan.settings.trials, len(plan.eligible) - len(states.eliminated))
        if len(states.scored) + len(states.running) >= enough:
            if not states.running:
                return states
            time.sleep(POLL_S)  # other workers run the last candidates; those of dead workers become free again
            continue
        spec = _next_candidate(shared, states, plan)
        trial = study.begin_trial(shared, name_of(spec), _params(spec), _space(plan.eligible))
        if trial is None:  # another worker has begun this candidate
            continue
        with study.heartbeat(shared, trial):
            _run_trial(shared, trial, spec, plan)


def _next_candidate(shared: SharedStudy, states: CandidateStates, plan: Plan) -> StudentSpec:
    """Choose a candidate that was not tried yet.

    If all candidates can be tried, this is the next in order. Otherwise the largest of each family within the budget
    comes first, then the candidate nearest to TPE's proposal. Families differ by more than sizes do, and within a
    family the larger student is mostly better: a sampler without that knowledge spends a small number of trials on
    small students (benchmarks/README.md, The search).
    """
    eligible, settings = plan.eligible, plan.settings
    tried = {*states.scored, *states.eliminated, *states.running}
    untried = [spec for spec in eligible if name_of(spec) not in tried]
    if len(eligible) > settings.trials:
        pruned = {name for name, trial in states.eliminated.items() if study.REFUSED not in trial.user_attrs}
        within_budget = {*states.scored, *states.running, *pruned}
        families_tried = {spec.family for spec in eligible if name_of(spec) in within_budget}
        of_new_families = [spec for spec in untried if spec.family not in families_tried]
        if of_new_families:
            return max(of_new_families, key=lambda spec: spec.cost.macs_m)
        # a fresh sampler per trial: its draws depend on the number of tried candidates, not on a dead process's state
        sampler_seed = int(np.random.SeedSequence([plan.seed, len(tried)]).generate_state(1)[0])
        proposed = study.propose(shared, _space(eligible), sampler_seed)
        return max(untried, key=partial(_nearness, proposed=proposed))
    # a recipe lists small candidates first: as each is better than those before it, none would ever be pruned
    order = np.random.default_rng(plan.seed).permutation(len(eligible)) if settings.rungs else range(len(eligible))
    return next(eligible[index] for index in order if eligible[index] in untried)


def _nearness(spec: StudentSpec, proposed: Mapping[str, Any]) -> tuple[bool, int]:
    """How near a candidate is to a proposal: the family first, as TPE proposes options of every family."""
    return spec.family == proposed["family"], len(_params(spec).items() & proposed.items())


def _params(spec: StudentSpec) -> dict[str, Any]:
    """A candidate as Optuna's parameters; each family has its own, as their options differ."""
    return {
        "family": spec.family,
        f"{spec.family}.input_px": spec.input_px,
        **{f"{spec.family}.{name}": setting for name, setting in spec.options.items()},
    }


def _space(eligible: list[StudentSpec]) -> dict[str, BaseDistribution]:
    """The parameters of all candidates with their settings, as Optuna's search space."""
    choices: dict[str, list[Any]] = {}
    for name, setting in (param for spec in eligible for param in _params(spec).items()):
        if setting not in choices.setdefault(name, []):
            choices[name].append(setting)
    return {name: CategoricalDistribution(tuple(values)) for name, values in choices.items()}


def name_of(spec: StudentSpec) -> str:
    """The candidate's unique name: its family, options and input size, as canonical JSON."""
    return canonical([spec.family, spec.options, spec.input_px]).decode()


def _run_trial(shared: SharedStudy, trial: optuna.Trial, spec: StudentSpec, plan: Plan) -> None:
    """Measure the candidate's latency, then train it; the trial ends as refused, pruned or complete."""
    bound, settings = plan.budget.latency_ms, plan.settings
    try:
        if bound:
            assert plan.latency is not None, "a latency budget needs a function that measures it"
            latency_ms = plan.latency(spec)
            trial.set_user_attr("latency_ms", latency_ms)
            if latency_ms > bound.at_most:
                _refuse(shared, trial, OVER_BUDGET)
                return
        rungs = {
            step: partial(_check_rung, shared, trial, name=name_of(spec), settings=settings, step=step)
            for step in rung_steps(settings)
        }
        score, facts = plan.objective(spec, plan.seed, rungs)
    except UnfitError as error:
        say(f"  search: {describe(spec)} is out: {error}")
        _refuse(shared, trial, str(error))
        return
    except optuna.TrialPruned:
        study.end_trial(shared, trial, None, TrialState.PRUNED)
        return
    if not math.isfinite(score):  # Optuna would fail the trial, and the same candidate would be chosen forever
        raise EdgeDistillError(f"search: the score of {describe(spec)} is not finite", "lower distill.lr")
    for name, fact in facts.items():
        trial.set_user_attr(name, fact)
    study.end_trial(shared, trial, score)


def _refuse(shared: SharedStudy, trial: optuna.Trial, reason: str) -> None:
    trial.set_user_attr(study.REFUSED, reason)
    study.end_trial(shared, trial, None, TrialState.FAIL)


def _check_rung(
    shared: SharedStudy, trial: optuna.Trial, score: float, *, name: str, settings: Search, step: int
) -> None:
    """Raise TrialPruned if the candidate is not among the best 1 in `keep_one_in` of those that reached this step."""
    trial.report(score, step)
    if not survives_rung(score, study.scores_at_step(shared, step, name), settings.keep_one_in):
        raise optuna.TrialPruned


def survives_rung(score: float, other_scores: list[float], keep_one_in: int) -> bool:
    """Whether a score is among the best n / keep_one_in of all n (asynchronous successive halving, Li et al. 2020)."""
    survivors = max(1, (len(other_scores) + 1) // keep_one_in)
    return sum(other_score > score for other_score in other_scores) < survivors


def rung_steps(settings: Search) -> list[int]:
    """The steps at which candidates are compared: the full length divided by keep_one_in, by its square, and so on."""
    lengths = [settings.steps // settings.keep_one_in**power for power in range(settings.rungs, 0, -1)]
    return sorted({length for length in lengths if length >= 1})


def chosen(scored: Trials) -> str:
    """Choose a candidate: by the agreement with the teacher, then by the score on val, then by the held-out loss.

    Val holds a few dozen images, so the best score on it partly reflects luck; hundreds of images can be asked whether
    a student says what its teacher says. Of both, the one-standard-error rule keeps the candidates that may be the best
    (Breiman et al. 1984, "Classification and Regression Trees", section 3.4.3), and a measure with less noise decides
    between those. Without a teacher, labels alone make the first cut.
    """
    contenders = scored
    if all("agreement" in trial.user_attrs for trial in scored.values()):
        agreements = {name: trial.user_attrs["agreement"] for name, trial in scored.items()}
        contenders = _within_one_error(contenders, agreements, "agreement_error")
    values = {name: trial.values[0] for name, trial in contenders.items()}
    contenders = _within_one_error(contenders, values, "standard_error")
    return min(contenders, key=lambda name: (contenders[name].user_attrs["loss"], contenders[name].number))


def _within_one_error(trials: Trials, scores: Mapping[str, float], error: str) -> Trials:
    """The candidates whose score is within the best one's standard error of it."""
    best = max(trials, key=scores.__getitem__)
    threshold = scores[best] - trials[best].user_attrs[error]
    return {name: trial for name, trial in trials.items() if scores[name] >= threshold}


def _no_winner_error(eligible: list[StudentSpec], eliminated: Trials, budget: Budget) -> EdgeDistillError:
    """The error if no candidate was trained to the end; if all were too slow, with the latency of the fastest."""
    bound = budget.latency_ms
    too_slow = {name: trial for name, trial in eliminated.items() if trial.user_attrs.get(study.REFUSED) == OVER_BUDGET}
    if bound is None or len(too_slow) < len(eligible):
        return EdgeDistillError(
            f"search: none of {len(eligible)} candidates was trained to the end: {len(too_slow)} were too slow, the "
            "others were pruned or could not be exported; trials.csv says which",
            "offer other families, or set search.rungs to 0",
        )
    latencies_ms = {name: float(trial.user_attrs["latency_ms"]) for name, trial in too_slow.items()}
    nearest = min(eligible, key=lambda spec: latencies_ms[name_of(spec)])
    return InputError(
        f"student.budget.latency_ms: none of {len(eligible)} candidates meets it on {bound.device}; the nearest is "
        f"{describe(nearest)} with {rounded_up(latencies_ms[name_of(nearest)])} ms (budget {bound.at_most:g}, "
        f"{bound.precision}, p{bound.percentile:g})",
        "raise the budget, or offer a smaller family or input_px",
    )


def _write_table(path: Path, candidates: list[StudentSpec], budget: Budget, states: CandidateStates) -> None:
    """Write trials.csv: scored candidates in the order of their trials, then those eliminated or never tried."""
    by_name = {name_of(spec): spec for spec in candidates}
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(COLUMNS)
        for position, name in enumerate(sorted(states.scored, key=lambda name: states.scored[name].number)):
            trial = states.scored[name]
            facts = [trial.user_attrs.get(fact, "") for fact in FACTS]
            row = _row(by_name.pop(name))
            table.writerow([position, "complete", *row, trial.user_attrs.get("latency_ms", ""), trial.value, *facts])
        for name, spec in by_name.items():
            state, latency_ms = OVER_BUDGET if over_budget(spec.cost, budget) else "not tried", ""
            if name in states.eliminated:
                attributes = states.eliminated[name].user_attrs
                state, latency_ms = str(attributes.get(study.REFUSED, PRUNED)), attributes.get("latency_ms", "")
            table.writerow(["", state, *_row(spec), latency_ms, "", *("" for _ in FACTS)])


def _row(spec: StudentSpec) -> list[Any]:
    """A candidate's columns from family to the last of COSTS."""
    figures = [f"{getattr(spec.cost, name):.4f}" for name in COSTS]
    return [spec.family, json.dumps(spec.options), str(spec.input_px), *figures]


def explain_choice(spec: StudentSpec, folder: Path) -> str:
    """Explain the choice in one sentence: the student, its score, and how many other candidates there were."""
    with (folder / artifacts.TRIALS.name).open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    trained = [row for row in rows if row["state"] == "complete"]
    refused, pruned = (sum(row["state"] == state for row in rows) for state in (OVER_BUDGET, PRUNED))
    winner_row = next(row for row in trained if [row["family"], row["options"], row["input_px"]] == _row(spec)[:3])
    latency_note = f", {float(winner_row['latency_ms']):.3g} ms on the device" if winner_row["latency_ms"] else ""
    agreed = f"; agrees with the teacher {_rank(trained, winner_row, 'agreement')}" if winner_row["agreement"] else ""
    score = _rank(trained, winner_row, "value")
    return (
        f"{describe(spec)}{latency_note}: score {score}{agreed}, with the lowest held-out "
        f"loss of such ({float(winner_row['loss']):.3f}); {len(trained)} trained to the end, {pruned} pruned, "
        f"{refused} refused by the budget"
    )


def _rank(rows: list[dict[str, str]], row: dict[str, str], column: str) -> str:
    """`0.660 (within one standard error of the best, 0.700)`; a score below that is said to be below the best."""
    best = max(rows, key=lambda other: float(other[column]))
    top, score = float(best[column]), float(row[column])
    near = score >= top - float(best["standard_error" if column == "value" else "agreement_error"])
    rank = "the best" if score == top else f"{'within one standard error of' if near else 'below'} the best, {top:.3f}"
    return f"{score:.3f} ({rank})"
