"""Which student? An Optuna study over the families, under the budget, scored by a short distillation on val.

Optuna's constraints are soft, so they are not used: a candidate over budget is refused before it trains, and what
cannot train cannot win. Each choice is drawn from a sampler seeded by how many candidates were already tried, so that a
killed search continues as if it had never stopped. Several processes may work on one study (study.py).
"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from edgedistill.console import say
from edgedistill.errors import EdgeDistillError, InputError, UnfitError
from edgedistill.recipe.schema import Budget, Search
from edgedistill.records import StudentSpec
from edgedistill.run import artifacts
from edgedistill.run.files import atomic, canonical
from edgedistill.search import study
from edgedistill.search.study import Shared, Standing, Trials
from edgedistill.students.space import describe, feasible, over_budget

Rungs = Mapping[int, Callable[[float], object]]
Objective = Callable[[StudentSpec, int, Rungs], tuple[float, dict[str, float]]]
Latency = Callable[[StudentSpec], float]
FACTS = ("standard_error", "loss", "seconds")
COSTS = ("macs_m", "params_m", "weights_mb", "activation_mb")
COLUMNS = ("number", "state", "family", "options", "input_px", *COSTS, "latency_ms", "value", *FACTS)
POLL_S = 1.0
OVER, PRUNED = "over budget", "pruned"


def search(
    found: list[StudentSpec],
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
    """The best student within the budget, by `objective`; every trial is kept in study.journal and trials.csv.

    With no more feasible candidates than trials every one of them is scored; otherwise Optuna's TPE (Bergstra et al.
    2011) chooses which.

    Args:
        found: the whole space, with costs.
        budget: upper bounds; a candidate over one of them is never scored.
        settings: the recipe's `search` section.
        objective: from a candidate, a seed and rungs to its score (higher is better) and facts to keep:
            "standard_error" of the score and "loss" on held-out images (which choose among equals), and what else
            trials.csv should tell. A rung is called with the score after so many steps, and ends what is not worth
            going on with.
        seed: of the sampler, and handed to the objective: every candidate is trained from the same seed.
        folder: the run's search folder.
        latency: from a candidate to its milliseconds on the device, before it trains; asked of those alone that meet
            the other bounds, when their turn comes. Needed where the budget bounds it.
        name: of the study, where workers share a storage.
        identity: hash of what the search depends on; workers of one study must agree in it.

    Raises:
        InputError: no candidate meets the budget; the storage cannot be reached or holds another recipe's study.
        EdgeDistillError: a candidate's score is not finite; the storage went away.
    """
    within = feasible(found, budget)
    shared = study.opened(folder, settings, name, identity)
    with study.reachable(shared):
        now = _work(shared, within, budget=budget, settings=settings, objective=objective, latency=latency, seed=seed)
    _write_table(folder / artifacts.TRIALS.name, found, budget, now)
    if not now.scored:
        raise _none_left(within, now.out, budget)
    winner = one_standard_error(now.scored)
    return next(spec for spec in within if name_of(spec) == winner)


def _work(
    shared: Shared,
    within: list[StudentSpec],
    budget: Budget,
    settings: Search,
    objective: Objective,
    latency: Latency | None,
    seed: int,
) -> Standing:
    """Try candidate after candidate until nobody has one left to try; how they stand then."""
    while True:
        now = study.standing(shared)
        if len(now.scored) + len(now.busy) >= min(settings.trials, len(within) - len(now.out)):
            if not now.busy:
                return now
            time.sleep(POLL_S)  # somebody else is at the last ones; what dies there is to be taken up here
            continue
        spec = _next(shared, within, now=now, settings=settings, seed=seed)
        trial = study.begin(shared, name_of(spec), _params(spec), _space(within))
        if trial is None:
            continue
        with study.beating(shared, trial):
            _try(
                shared,
                trial,
                spec=spec,
                budget=budget,
                settings=settings,
                objective=objective,
                latency=latency,
                seed=seed,
            )


def _try(
    shared: Shared,
    trial: optuna.Trial,
    spec: StudentSpec,
    budget: Budget,
    settings: Search,
    objective: Objective,
    latency: Latency | None,
    seed: int,
) -> None:
    """Measure the candidate, then train it; the trial ends as refused, pruned or complete."""
    try:
        if budget.latency_ms:
            assert latency is not None, "a bound needs someone to measure"
            took = latency(spec)
            trial.set_user_attr("latency_ms", took)
            if took > budget.latency_ms.at_most:
                _refuse(shared, trial, OVER)
                return
        rungs = {
            step: partial(_compare, shared, trial, name=name_of(spec), settings=settings, step=step)
            for step in rung_steps(settings)
        }
        value, facts = objective(spec, seed, rungs)
    except UnfitError as error:
        say(f"  search: {describe(spec)} is out: {error}")
        _refuse(shared, trial, str(error))
        return
    except optuna.TrialPruned:
        study.end(shared, trial, None, TrialState.PRUNED)
        return
    if not math.isfinite(value):  # Optuna would fail the trial, and the same candidate would be next for ever
        raise EdgeDistillError(f"search: the score of {describe(spec)} is not finite", "lower distill.lr")
    for name, fact in facts.items():
        trial.set_user_attr(name, fact)
    study.end(shared, trial, value)


def _refuse(shared: Shared, trial: optuna.Trial, reason: str) -> None:
    trial.set_user_attr(study.REFUSED, reason)
    study.end(shared, trial, None, TrialState.FAIL)


def _compare(shared: Shared, trial: optuna.Trial, value: float, *, name: str, settings: Search, step: int) -> None:
    """Raise TrialPruned where the candidate is not among the best of every `keep_one_in` that came this far."""
    trial.report(value, step)
    if not goes_on(value, study.at_step(shared, step, name), settings.keep_one_in):
        raise optuna.TrialPruned


def goes_on(value: float, others: list[float], keep_one_in: int) -> bool:
    """Asynchronous successive halving (Li et al. 2020): is the value among the best (n / keep_one_in) of all n?"""
    kept = max(1, (len(others) + 1) // keep_one_in)
    return sum(other > value for other in others) < kept


def rung_steps(settings: Search) -> list[int]:
    """After how many steps candidates are compared: the whole length over keep_one_in, over its square, and so on."""
    lengths = [settings.steps // settings.keep_one_in**at for at in range(settings.rungs, 0, -1)]
    return sorted({one for one in lengths if one >= 1})


def one_standard_error(scored: dict[str, FrozenTrial]) -> str:
    """The candidate with the lowest held-out loss among those that val cannot tell from the best.

    Val holds a few dozen images: taking the best score would take the luckiest candidate. The rule of one standard
    error (Breiman et al. 1984, "Classification and Regression Trees", section 3.4.3) keeps all within the best one's
    standard error, and lets a quieter measure decide.
    """
    best = max(scored.values(), key=lambda one: one.values[0])
    bar = best.values[0] - best.user_attrs["standard_error"]
    equals = {name: one for name, one in scored.items() if one.values[0] >= bar}
    return min(equals, key=lambda name: (equals[name].user_attrs["loss"], equals[name].number))


def name_of(spec: StudentSpec) -> str:
    """What tells one candidate from another, as text."""
    return canonical([spec.family, spec.options, spec.input_px]).decode()


def _none_left(within: list[StudentSpec], out: Trials, budget: Budget) -> EdgeDistillError:
    """Nobody was trained to the end. Where all were too slow: by how much does the nearest miss?"""
    timed = {name: one.user_attrs["latency_ms"] for name, one in out.items() if "latency_ms" in one.user_attrs}
    bound, slow = budget.latency_ms, [one for one in out.values() if one.user_attrs.get(study.REFUSED) == OVER]
    if bound is None or len(slow) < len(within):
        return EdgeDistillError(
            f"search: none of {len(within)} candidates was trained to the end: {len(slow)} were too slow, the others "
            "fell behind or could not be exported; trials.csv says which",
            "offer other families, or set search.rungs to 0",
        )
    nearest = min(within, key=lambda spec: float(timed[name_of(spec)]))
    return InputError(
        f"student.budget.latency_ms: none of {len(within)} candidates meets it on {bound.device}; the nearest is "
        f"{describe(nearest)} with {timed[name_of(nearest)]:.3g} ms (budget {bound.at_most:g}, {bound.precision}, "
        f"p{bound.percentile:g})",
        "raise the budget, or offer a smaller family or input_px",
    )


def _next(shared: Shared, within: list[StudentSpec], now: Standing, settings: Search, seed: int) -> StudentSpec:
    """A candidate that was not tried yet. Where all get a turn, the next; else first of each family the largest that
    meets the budget, and then the one nearest to what TPE proposes.

    Families differ by more than sizes do, and within one the larger student is mostly the better: a sampler that knows
    neither spends a small number of trials on small students (benchmarks/README.md, The search).
    """
    tried = {*now.scored, *now.out, *now.busy}
    left = [spec for spec in within if name_of(spec) not in tried]
    if len(within) > settings.trials:
        behind = {name for name, one in now.out.items() if study.REFUSED not in one.user_attrs}
        known = {spec.family for spec in within if name_of(spec) in {*now.scored, *now.busy, *behind}}
        fresh = [spec for spec in left if spec.family not in known]
        if fresh:
            return max(fresh, key=lambda one: one.cost.macs_m)
        # a fresh sampler a trial: its draws follow from how many were tried, not from what a dead process drew
        drawn = int(np.random.SeedSequence([seed, len(tried)]).generate_state(1)[0])
        wanted = study.proposal(shared, _space(within), drawn).items()
        return max(left, key=lambda one: len(_params(one).items() & wanted))
    # a recipe lists the small ones first: each better than those before it, none would ever fall behind
    order = np.random.default_rng(seed).permutation(len(within)) if settings.rungs else range(len(within))
    return next(within[at] for at in order if within[at] in left)


def _params(spec: StudentSpec) -> dict[str, Any]:
    return {
        "family": spec.family,
        f"{spec.family}.input_px": spec.input_px,
        **{f"{spec.family}.{name}": value for name, value in spec.options.items()},
    }


def _space(within: list[StudentSpec]) -> dict[str, BaseDistribution]:
    choices: dict[str, list[Any]] = {}
    for name, value in (item for spec in within for item in _params(spec).items()):
        if value not in choices.setdefault(name, []):
            choices[name].append(value)
    return {name: CategoricalDistribution(tuple(values)) for name, values in choices.items()}


def _write_table(path: Path, found: list[StudentSpec], budget: Budget, now: Standing) -> None:
    """trials.csv: the candidates in the order they were scored, then those that are out or were never tried."""
    by_name = {name_of(spec): spec for spec in found}
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(COLUMNS)
        for at, (name, trial) in enumerate(sorted(now.scored.items(), key=lambda item: item[1].number)):
            facts = [trial.user_attrs.get(fact, "") for fact in FACTS]
            row = _row(by_name.pop(name))
            table.writerow([at, "complete", *row, trial.user_attrs.get("latency_ms", ""), trial.value, *facts])
        for name, spec in by_name.items():
            gone = now.out.get(name)
            state = OVER if over_budget(spec.cost, budget) else "not tried"
            if gone:
                state = str(gone.user_attrs.get(study.REFUSED, PRUNED))
            took = gone.user_attrs.get("latency_ms", "") if gone else ""
            table.writerow(["", state, *_row(spec), took, "", *("" for _ in FACTS)])


def _row(spec: StudentSpec) -> list[Any]:
    figures = [f"{getattr(spec.cost, name):.4f}" for name in COSTS]
    return [spec.family, json.dumps(spec.options), str(spec.input_px), *figures]


def why(spec: StudentSpec, folder: Path) -> str:
    """One sentence: what won, with what score, against how many others."""
    with (folder / artifacts.TRIALS.name).open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    tried = [row for row in rows if row["state"] == "complete"]
    refused, pruned = (sum(row["state"] == state for row in rows) for state in (OVER, PRUNED))
    own = next(row for row in tried if [row["family"], row["options"], row["input_px"]] == _row(spec)[:3])
    best = max(float(row["value"]) for row in tried)
    took = f", {float(own['latency_ms']):.3g} ms on the device" if own["latency_ms"] else ""
    told = "the best" if float(own["value"]) == best else f"within one standard error of the best, {best:.3f}"
    return (
        f"{describe(spec)}{took}: score {float(own['value']):.3f} ({told}), with the lowest held-out loss of such "
        f"({float(own['loss']):.3f}); {len(tried)} trained to the end, {pruned} left behind, {refused} refused by "
        "the budget"
    )
