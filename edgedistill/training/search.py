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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from edgedistill.recipe import Budget, Search
from edgedistill.records import EdgeDistillError, InputError, StudentSpec
from edgedistill.run import atomic, canonical
from edgedistill.training import study
from edgedistill.training.student import describe, feasible, over_budget

Rungs = dict[int, Callable[[float], None]]
Objective = Callable[[StudentSpec, int, Rungs], tuple[float, dict[str, float]]]
Latency = Callable[[StudentSpec], float]
FACTS = ("standard_error", "loss", "seconds")
COSTS = ("macs_m", "params_m", "weights_mb", "activation_mb")
COLUMNS = ("number", "state", "family", "options", "input_px", *COSTS, "latency_ms", "value", *FACTS)
Trials = dict[str, FrozenTrial]
POLL_S = 1.0
OVER, PRUNED = "over budget", "pruned"


def search(
    found: list[StudentSpec], budget: Budget, settings: Search, objective: Objective, *, seed: int, folder: Path,
    latency: Latency | None = None, name: str = "students", identity: str = "",
    on_trial: Callable[[int, StudentSpec, float | None], object] = lambda done, spec, value: None,
) -> StudentSpec:  # fmt: skip
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
        on_trial: called after each candidate of this process with how many were scored so far.

    Raises:
        InputError: no candidate meets the budget; the storage cannot be reached or holds another recipe's study.
        EdgeDistillError: a candidate's score is not finite.
    """
    within = feasible(found, budget)
    shared = study.opened(folder, settings, name, identity)
    shared.pruner = _pruner(settings)
    while True:
        scored, out, busy = study.scored(shared), study.out(shared), study.busy(shared)
        if len(scored) + len(busy) >= min(settings.trials, len(within) - len(out)):
            if not busy:
                break
            time.sleep(POLL_S)  # somebody else is at the last ones; what dies there is to be taken up here
            continue
        spec = _next(shared, within, {*scored, *out, *busy}, settings, seed)
        trial = study.begin(shared, name_of(spec), _params(spec), _space(within))
        if trial is None:
            continue
        with study.beating(shared, trial):
            if _too_slow(trial, spec, budget, latency):
                shared.tell(trial, state=TrialState.FAIL)
            else:
                _train(shared, trial, spec, objective, settings, seed)
        ended = study.scored(shared)
        on_trial(len(ended), spec, ended[name_of(spec)].value if name_of(spec) in ended else None)
    _write_table(folder / "trials.csv", found, budget, scored, out)
    if not scored:
        raise _none_fast_enough(within, out, budget)
    winner = one_standard_error(scored)
    return next(spec for spec in within if name_of(spec) == winner)


def _too_slow(trial: optuna.Trial, spec: StudentSpec, budget: Budget, latency: Latency | None) -> bool:
    if not budget.latency_ms:
        return False
    assert latency is not None, "a bound needs someone to measure"
    took = latency(spec)
    trial.set_user_attr("latency_ms", took)
    trial.set_user_attr("refused", took > budget.latency_ms.at_most)
    return took > budget.latency_ms.at_most


def _train(shared: optuna.Study, trial: optuna.Trial, spec: StudentSpec, objective: Objective, settings: Search,
           seed: int) -> None:  # fmt: skip
    def at(step: int) -> Callable[[float], None]:
        def compare(value: float) -> None:
            trial.report(value, step)
            if trial.should_prune():
                raise optuna.TrialPruned

        return compare

    try:
        value, facts = objective(spec, seed, {step: at(step) for step in rung_steps(settings)})
    except optuna.TrialPruned:
        shared.tell(trial, state=TrialState.PRUNED)
        return
    if not math.isfinite(value):  # Optuna would fail the trial, and the same candidate would be next for ever
        raise EdgeDistillError(f"search: the score of {describe(spec)} is not finite", "lower distill.lr")
    for name, fact in facts.items():
        trial.set_user_attr(name, fact)
    shared.tell(trial, value)


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


def _pruner(settings: Search) -> optuna.pruners.BasePruner:
    steps = rung_steps(settings)
    if not steps:
        return optuna.pruners.NopPruner()
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=steps[0], reduction_factor=settings.keep_one_in)


def _none_fast_enough(within: list[StudentSpec], refused: dict[str, FrozenTrial], budget: Budget) -> InputError:
    """Every candidate was measured and none is fast enough: by how much does the nearest miss?"""
    assert budget.latency_ms is not None, "only a bound on latency refuses all"
    nearest = min(within, key=lambda spec: float(refused[name_of(spec)].user_attrs["latency_ms"]))
    took = refused[name_of(nearest)].user_attrs["latency_ms"]
    bound = budget.latency_ms
    return InputError(
        f"student.budget.latency_ms: none of {len(within)} candidates meets it on {bound.device}; the nearest is "
        f"{describe(nearest)} with {took:.3g} ms (budget {bound.at_most:g}, {bound.precision}, p{bound.percentile:g})",
        "raise the budget, or offer a smaller family or input_px",
    )


def _next(shared: optuna.Study, within: list[StudentSpec], tried: set[str], settings: Search,
          seed: int) -> StudentSpec:  # fmt: skip
    """A candidate that was not tried yet: the one nearest to what TPE proposes, or where all get a turn, the next."""
    left = [spec for spec in within if name_of(spec) not in tried]
    if len(within) > settings.trials:
        # a fresh sampler a trial: its draws follow from how many were tried, not from what a dead process drew
        drawn = int(np.random.SeedSequence([seed, len(tried)]).generate_state(1)[0])
        wanted = study.proposal(shared, _space(within), drawn).items()
        return max(left, key=lambda one: len(_params(one).items() & wanted))
    # a recipe lists the small ones first: each better than those before it, none would ever fall behind
    order = np.random.default_rng(seed).permutation(len(within)) if settings.rungs else range(len(within))
    return next(within[at] for at in order if within[at] in left)


def _params(spec: StudentSpec) -> dict[str, Any]:
    return {"family": spec.family, f"{spec.family}.input_px": spec.input_px,
            **{f"{spec.family}.{name}": value for name, value in spec.options.items()}}  # fmt: skip


def _space(within: list[StudentSpec]) -> dict[str, BaseDistribution]:
    choices: dict[str, list[Any]] = {}
    for name, value in (item for spec in within for item in _params(spec).items()):
        if value not in choices.setdefault(name, []):
            choices[name].append(value)
    return {name: CategoricalDistribution(tuple(values)) for name, values in choices.items()}


def _write_table(path: Path, found: list[StudentSpec], budget: Budget, scored: Trials, out: Trials) -> None:
    """trials.csv: the candidates in the order they were scored, then those never tried or refused by the budget."""
    by_name = {name_of(spec): spec for spec in found}
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(COLUMNS)
        for at, (name, trial) in enumerate(sorted(scored.items(), key=lambda item: item[1].number)):
            facts = [trial.user_attrs.get(fact, "") for fact in FACTS]
            row = _row(by_name.pop(name))
            table.writerow([at, "complete", *row, trial.user_attrs.get("latency_ms", ""), trial.value, *facts])
        for name, spec in by_name.items():
            trial_of = out.get(name)
            over = over_budget(spec.cost, budget) or (trial_of and trial_of.user_attrs.get("refused"))
            state = OVER if over else PRUNED if trial_of else "not tried"
            took = trial_of.user_attrs.get("latency_ms", "") if trial_of else ""
            table.writerow(["", state, *_row(spec), took, "", *("" for _ in FACTS)])


def _row(spec: StudentSpec) -> list[Any]:
    figures = [f"{getattr(spec.cost, name):.4f}" for name in COSTS]
    return [spec.family, json.dumps(spec.options), str(spec.input_px), *figures]


def why(spec: StudentSpec, folder: Path) -> str:
    """One sentence: what won, with what score, against how many others."""
    with (folder / "trials.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    tried = [row for row in rows if row["state"] == "complete"]
    refused, pruned = (sum(row["state"] == state for row in rows) for state in (OVER, PRUNED))
    own = next(row for row in tried if [row["family"], row["options"], row["input_px"]] == _row(spec)[:3])
    best = max(float(row["value"]) for row in tried)
    took = f", {float(own['latency_ms']):.3g} ms on the device" if own["latency_ms"] else ""
    told = "the best" if float(own["value"]) == best else f"within one standard error of the best, {best:.3f}"
    return (f"{describe(spec)}{took}: score {float(own['value']):.3f} ({told}), with the lowest held-out loss of such "
            f"({float(own['loss']):.3f}); {len(tried)} trained to the end, {pruned} left behind, {refused} refused by "
            "the budget")  # fmt: skip
