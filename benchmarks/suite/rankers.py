"""Which source is best? Every way to rank the sources, against how good the students of each source became.

The truth of a source on a target is the mean score, over seeds, of the student distilled from it alone; where those
students were not all trained, it is the accuracy of a linear probe of the source, learnt from the draw's labels and
scored on held-out images.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from benchmarks.suite import protocol, statistics
from benchmarks.suite.board import Board
from benchmarks.suite.statistics import Across, Targets

STATIC, WEIGHTS, ORACLE, RANDOM = "static (other targets)", "weights used", "oracle", "random source"
NEAREST = "nearest, its students"
HINDSIGHT = ("oracle nearest", "static best")  # need the test images of this or the other targets: no methods

Draws = dict[str, dict[int, tuple[dict[str, float], dict[str, float]]]]  # target -> seed -> (scores, truth)


@dataclass(frozen=True, kw_only=True)
class Truth:
    """How good each source is on a target, in points, and what says so; `seeds` are those averaged over."""

    by: Literal["students", "probes"]
    values: dict[str, float]
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A ranker over targets and draws: Spearman against the truth, regret in points, share of draws it chose the best.

    Against the static ranker, in pairs: `over_static` is its Spearman minus static's, `regret_saved` static's regret
    minus its own, so that over 0 is better in both. None: undefined or not measured.
    """

    name: str
    spearman: Across | None
    regret: Across | None
    chose_best: float | None
    over_static: Across | None
    regret_saved: Across | None = None


def metric(board: Board) -> str | None:
    """The metric that made the weights: what the profile says.

    Of a profile without a file "probe", where that was scored, or else the first metric of the draws; None without.
    """
    if (protocol.HERE / f"{board.profile}.yaml").is_file():
        return protocol.load(board.profile).weigh.metric.name
    scored = [name for draws in board.draws.values() for draw in draws.values() for name in draw.get("scores", {})]
    return "probe" if "probe" in scored else next(iter(scored), None)


def truth(board: Board, target: str) -> Truth | None:
    """The truth of every source on a target; None where neither students nor probes were measured for all of them.

    Only seeds that every source has are averaged: a source must not gain from an easy label draw.
    """
    names = board.sources(target)
    singles = board.singles(target)
    found = _mean_over_common_seeds("students", names, singles)
    if found is None:
        found = _mean_over_common_seeds("probes", names, probes(board, target))
    return found


def probes(board: Board, target: str) -> dict[str, dict[int, float]]:
    """Source -> seed -> points of a linear probe of it, scored on the unlabeled images."""
    found: dict[str, dict[int, float]] = {}
    for seed, draw in board.draws.get(target, {}).items():
        for name, one in draw.get("source_probes", {}).items():
            found.setdefault(name, {})[seed] = 100 * one[board.score]
    return found


def best_probes(board: Board) -> dict[str, tuple[str, dict[int, float]]]:
    """Target -> the source whose probe has the highest mean over the draws, and its points by seed: hindsight."""
    found = {target: probes(board, target) for target in board.draws}
    best = {
        target: max(ones, key=lambda name: float(np.mean(list(ones[name].values()))))
        for target, ones in found.items()
        if ones
    }
    return {target: (name, found[target][name]) for target, name in best.items()}


def _mean_over_common_seeds(
    by: Literal["students", "probes"], names: list[str], scores: Mapping[str, Mapping[int, float]]
) -> Truth | None:
    if not names or any(name not in scores for name in names):
        return None
    seeds = sorted(set.intersection(*(set(scores[name]) for name in names)))
    if not seeds:
        return None
    means = {name: float(np.mean([scores[name][seed] for seed in seeds])) for name in names}
    # rounded, so that sources that are equally good tie whatever the last bit of a float says
    return Truth(by=by, values={name: round(value, 9) for name, value in means.items()}, seeds=tuple(seeds))


def truths(board: Board) -> dict[str, Truth]:
    """Every target whose truth is known."""
    found = {target: truth(board, target) for target in board.targets}
    return {target: one for target, one in found.items() if one is not None}


def scores(board: Board, known: Mapping[str, Truth]) -> dict[str, dict[str, dict[int, dict[str, float]]]]:
    """ranker -> target -> seed -> source -> score.

    Rankers: the metrics of the draws, the weights that the runs used, static, and the oracle. A draw in which a
    ranker lacks a finite score of any source is left out.
    """
    values = {target: one.values for target, one in known.items()}
    found: dict[str, dict[str, dict[int, dict[str, float]]]] = {}
    for target, one in known.items():
        fixed = {STATIC: statistics.static(values, target), ORACLE: one.values}
        for seed, draw in sorted(board.draws.get(target, {}).items()):
            for name, mine in {**draw.get("scores", {}), WEIGHTS: draw.get("alphas"), **fixed}.items():
                if mine and all(_finite(mine.get(source)) for source in one.values):
                    found.setdefault(name, {}).setdefault(target, {})[seed] = dict(mine)
    return found


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def judge(board: Board) -> list[Judged]:
    """Every ranker, the smallest regret first; then the random source, and what the students of `nearest` lost."""
    known = truths(board)
    ranked = _ranked(board, known)
    judged = [_judged(name, pairs, ranked.get(STATIC, {})) for name, pairs in ranked.items()]
    judged.sort(key=lambda one: (one.regret.mean if one.regret else math.inf, one.name != ORACLE))
    return [*judged, *_random(board, known), *_nearest(board, known)]


def judge_one(board: Board, name: str) -> Judged | None:
    """One ranker; None where it ranked the sources of no target whose truth is known."""
    ranked = _ranked(board, truths(board))
    return _judged(name, ranked[name], ranked.get(STATIC, {})) if name in ranked else None


def _ranked(board: Board, known: Mapping[str, Truth]) -> dict[str, Draws]:
    return {
        name: {
            target: {seed: (mine, known[target].values) for seed, mine in seeds.items()}
            for target, seeds in targets.items()
        }
        for name, targets in scores(board, known).items()
    }


def _judged(name: str, pairs: Draws, static: Draws) -> Judged:
    agree, lost = _each(pairs, statistics.spearman), _each(pairs, statistics.regret)
    if name == STATIC:
        static = {}  # nothing to hold it against
    return Judged(
        name=name,
        spearman=statistics.across(agree),
        regret=statistics.across(lost),
        chose_best=_mean(_each(pairs, statistics.hit)),
        over_static=statistics.across(statistics.minus(agree, _each(static, statistics.spearman))),
        regret_saved=statistics.across(statistics.minus(_each(static, statistics.regret), lost)),
    )


def _each(
    pairs: Mapping[str, Mapping[int, tuple[dict[str, float], dict[str, float]]]], measure: statistics.Measure
) -> dict[str, dict[int, float]]:
    """A measure of (scores, truth) for every target and seed where it is defined."""
    found = {target: {seed: measure(*pair) for seed, pair in seeds.items()} for target, seeds in pairs.items()}
    return {
        target: {seed: value for seed, value in seeds.items() if value is not None} for target, seeds in found.items()
    }


def _mean(values: Targets) -> float | None:
    means = [float(np.mean(list(seeds.values()))) for seeds in values.values() if seeds]
    return float(np.mean(means)) if means else None


def _random(board: Board, known: Mapping[str, Truth]) -> list[Judged]:
    """A source drawn blindly: scores that all tie, so every measure is its expectation."""
    blind = {
        target: {seed: (dict.fromkeys(one.values, 0.0), one.values) for seed in board.draws.get(target, {})}
        for target, one in known.items()
    }
    regret = statistics.across(_each(blind, statistics.regret))
    return (
        [
            Judged(
                name=RANDOM,
                spearman=None,
                regret=regret,
                chose_best=_mean(_each(blind, statistics.hit)),
                over_static=None,
            )
        ]
        if regret
        else []
    )


def _nearest(board: Board, known: Mapping[str, Truth]) -> list[Judged]:
    """The student of the truly best source minus the student of `nearest`, on the same seeds."""
    lost = statistics.across(statistics.minus(oracle_nearest(board, known), board.methods.get("nearest", {})))
    return [Judged(name=NEAREST, spearman=None, regret=lost, chose_best=None, over_static=None)] if lost else []


def oracle_nearest(board: Board, known: Mapping[str, Truth]) -> dict[str, dict[int, float]]:
    """The students of the source that turned out best on the test images: an upper bound, no method."""
    return {
        target: dict(board.singles(target)[statistics.chosen(one.values)[0]])
        for target, one in known.items()
        if one.by == "students"
    }


def static_best(board: Board, known: Mapping[str, Truth]) -> dict[str, dict[int, float]]:
    """The students of the source that did best on the other targets."""
    values = {target: one.values for target, one in known.items()}
    found = {}
    for target, one in known.items():
        ranking = statistics.static(values, target)
        if one.by == "students" and ranking is not None:
            found[target] = dict(board.singles(target)[statistics.chosen(ranking)[0]])
    return found


def random_control(board: Board) -> dict[str, dict[int, float]]:
    """The mean over the students of all single sources, for seeds that have them all; else the line "random"."""
    found = {target: dict(seeds) for target, seeds in board.methods.get("random", {}).items()}
    for target in board.targets:
        singles, names = board.singles(target), board.sources(target)
        if names and all(name in singles for name in names):
            for seed in set.intersection(*(set(singles[name]) for name in names)):
                found.setdefault(target, {})[seed] = float(np.mean([singles[name][seed] for name in names]))
    return found


def with_controls(board: Board) -> Board:
    """The board with the controls that follow from the students of single sources; without those, unchanged."""
    known = truths(board)
    hindsight = zip(HINDSIGHT, (oracle_nearest(board, known), static_best(board, known)), strict=True)
    derived = {"random": random_control(board), **dict(hindsight)}
    return dataclasses.replace(board, methods={**board.methods, **{name: one for name, one in derived.items() if one}})
