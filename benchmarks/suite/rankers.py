"""Rankers of the sources, compared with the truth: the scores of the students of each source.

The truth of a source on a target is the mean score, over seeds, of the student distilled from it alone; where those
students were not all trained, it is the accuracy of a linear probe of the source, trained on the draw's labels and
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
from benchmarks.suite.statistics import Summary, Targets

STATIC, WEIGHTS, ORACLE, RANDOM = "static (other targets)", "weights used", "oracle", "random source"
NEAREST = "nearest, its students"
HINDSIGHT = ("oracle nearest", "static best")  # use test images of this or the other targets, so they are not methods

Draws = dict[str, dict[int, tuple[dict[str, float], dict[str, float]]]]  # target -> seed -> (scores, truth)


@dataclass(frozen=True, kw_only=True)
class Truth:
    """The truth of each source on a target, in points, and its basis; `seeds` are the seeds averaged over."""

    basis: Literal["students", "probes"]
    values: dict[str, float]
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class RankerEvaluation:
    """A ranker over targets and draws: Spearman with the truth, regret in points, share of draws it chose the best.

    Paired differences to the static ranker: `over_static` is its Spearman minus static's, `regret_saved` static's
    regret minus its own, so that over 0 is better in both. None: undefined or not measured.
    """

    name: str
    spearman: Summary | None
    regret: Summary | None
    chose_best: float | None
    over_static: Summary | None
    regret_saved: Summary | None = None


def weight_metric(board: Board) -> str | None:
    """The metric of the source weights, from the profile.

    For a profile without a file: "probe" if it was scored, or else the first metric of the draws; None without metrics.
    """
    if (protocol.HERE / f"{board.profile}.yaml").is_file():
        return protocol.load(board.profile).weigh.metric.name
    scored = [name for draws in board.draws.values() for draw in draws.values() for name in draw.get("scores", {})]
    return "probe" if "probe" in scored else next(iter(scored), None)


def target_truth(board: Board, target: str) -> Truth | None:
    """The truth of every source on a target; None where neither students nor probes were measured for all of them.

    Only seeds that every source has are averaged, so that no source gains from an easy label draw.
    """
    names = board.sources(target)
    singles = board.singles(target)
    average = _mean_over_common_seeds("students", names, singles)
    if average is None:
        average = _mean_over_common_seeds("probes", names, probe_points(board, target))
    return average


def probe_points(board: Board, target: str) -> dict[str, dict[int, float]]:
    """Source -> seed -> points of its linear probe, scored on the unlabeled images."""
    points: dict[str, dict[int, float]] = {}
    for seed, draw in board.draws.get(target, {}).items():
        for name, scores in draw.get("source_probes", {}).items():
            points.setdefault(name, {})[seed] = 100 * scores[board.score]
    return points


def best_probes(board: Board) -> dict[str, tuple[str, dict[int, float]]]:
    """Target -> the source whose probe has the highest mean over the draws, and its points by seed; uses hindsight."""
    by_target = {target: probe_points(board, target) for target in board.draws}
    best = {
        target: max(by_source, key=lambda name: float(np.mean(list(by_source[name].values()))))
        for target, by_source in by_target.items()
        if by_source
    }
    return {target: (name, by_target[target][name]) for target, name in best.items()}


def _mean_over_common_seeds(
    basis: Literal["students", "probes"], names: list[str], scores: Mapping[str, Mapping[int, float]]
) -> Truth | None:
    if not names or any(name not in scores for name in names):
        return None
    seeds = sorted(set.intersection(*(set(scores[name]) for name in names)))
    if not seeds:
        return None
    means = {name: float(np.mean([scores[name][seed] for seed in seeds])) for name in names}
    # rounded, so that equally good sources tie regardless of the last bit of a float
    return Truth(basis=basis, values={name: round(value, 9) for name, value in means.items()}, seeds=tuple(seeds))


def known_truths(board: Board) -> dict[str, Truth]:
    """The truth of every target that has one."""
    candidates = {target: target_truth(board, target) for target in board.targets}
    return {target: truth for target, truth in candidates.items() if truth is not None}


def ranker_scores(board: Board, truths: Mapping[str, Truth]) -> dict[str, dict[str, dict[int, dict[str, float]]]]:
    """ranker -> target -> seed -> source -> score.

    Rankers: the metrics of the draws, the weights that the runs used, static, and the oracle. A draw in which a
    ranker lacks a finite score of any source is left out.
    """
    values = {target: truth.values for target, truth in truths.items()}
    by_ranker: dict[str, dict[str, dict[int, dict[str, float]]]] = {}
    for target, truth in truths.items():
        fixed = {STATIC: statistics.static_scores(values, target), ORACLE: truth.values}
        for seed, draw in sorted(board.draws.get(target, {}).items()):
            for name, source_scores in {**draw.get("scores", {}), WEIGHTS: draw.get("alphas"), **fixed}.items():
                if source_scores and all(_finite(source_scores.get(source)) for source in truth.values):
                    by_ranker.setdefault(name, {}).setdefault(target, {})[seed] = dict(source_scores)
    return by_ranker


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def evaluate_rankers(board: Board) -> list[RankerEvaluation]:
    """Evaluate every ranker, smallest regret first; then the random source, and the students of `nearest`."""
    truths = known_truths(board)
    ranked = _scores_with_truth(board, truths)
    evaluations = [_evaluate(name, pairs, ranked.get(STATIC, {})) for name, pairs in ranked.items()]
    evaluations.sort(key=_regret_then_oracle)
    return [*evaluations, *_random(board, truths), *_nearest(board, truths)]


def _regret_then_oracle(ranker: RankerEvaluation) -> tuple[float, bool]:
    """Sort key: by regret; of equals the oracle first."""
    return (ranker.regret.mean if ranker.regret else math.inf, ranker.name != ORACLE)


def evaluate_ranker(board: Board, name: str) -> RankerEvaluation | None:
    """Evaluate one ranker; None where it ranked the sources of no target with a truth."""
    ranked = _scores_with_truth(board, known_truths(board))
    return _evaluate(name, ranked[name], ranked.get(STATIC, {})) if name in ranked else None


def _scores_with_truth(board: Board, truths: Mapping[str, Truth]) -> dict[str, Draws]:
    return {
        name: {
            target: {seed: (source_scores, truths[target].values) for seed, source_scores in seeds.items()}
            for target, seeds in targets.items()
        }
        for name, targets in ranker_scores(board, truths).items()
    }


def _evaluate(name: str, pairs: Draws, static: Draws) -> RankerEvaluation:
    correlations, regrets = _each(pairs, statistics.spearman), _each(pairs, statistics.regret)
    if name == STATIC:
        static = {}  # it is not compared with itself
    return RankerEvaluation(
        name=name,
        spearman=statistics.summarize(correlations),
        regret=statistics.summarize(regrets),
        chose_best=_mean(_each(pairs, statistics.hit_rate)),
        over_static=_paired_summary(correlations, _each(static, statistics.spearman)),
        regret_saved=_paired_summary(_each(static, statistics.regret), regrets),
    )


def _paired_summary(first: Targets, second: Targets) -> Summary | None:
    return statistics.summarize(statistics.paired_differences(first, second))


def _each(
    pairs: Mapping[str, Mapping[int, tuple[dict[str, float], dict[str, float]]]], measure: statistics.Measure
) -> dict[str, dict[int, float]]:
    """A measure of (scores, truth) for every target and seed where it is defined."""
    measured = {target: {seed: measure(*pair) for seed, pair in seeds.items()} for target, seeds in pairs.items()}
    return {
        target: {seed: value for seed, value in seeds.items() if value is not None}
        for target, seeds in measured.items()
    }


def _mean(values: Targets) -> float | None:
    means = [float(np.mean(list(seeds.values()))) for seeds in values.values() if seeds]
    return float(np.mean(means)) if means else None


def _random(board: Board, truths: Mapping[str, Truth]) -> list[RankerEvaluation]:
    """A random source: all scores tie, so every measure is its expectation."""
    ties = {
        target: {seed: (dict.fromkeys(truth.values, 0.0), truth.values) for seed in board.draws.get(target, {})}
        for target, truth in truths.items()
    }
    regret = statistics.summarize(_each(ties, statistics.regret))
    return (
        [
            RankerEvaluation(
                name=RANDOM,
                spearman=None,
                regret=regret,
                chose_best=_mean(_each(ties, statistics.hit_rate)),
                over_static=None,
            )
        ]
        if regret
        else []
    )


def _nearest(board: Board, truths: Mapping[str, Truth]) -> list[RankerEvaluation]:
    """The student of the truly best source minus the student of `nearest`, on the same seeds."""
    regret = _paired_summary(oracle_nearest(board, truths), board.methods.get("nearest", {}))
    return (
        [RankerEvaluation(name=NEAREST, spearman=None, regret=regret, chose_best=None, over_static=None)]
        if regret
        else []
    )


def oracle_nearest(board: Board, truths: Mapping[str, Truth]) -> dict[str, dict[int, float]]:
    """The students of the source that is best on the test images: an upper bound, not a method."""
    return {
        target: dict(board.singles(target)[statistics.top_sources(truth.values)[0]])
        for target, truth in truths.items()
        if truth.basis == "students"
    }


def static_best(board: Board, truths: Mapping[str, Truth]) -> dict[str, dict[int, float]]:
    """The students of the source that is best on the other targets."""
    values = {target: truth.values for target, truth in truths.items()}
    points = {}
    for target, truth in truths.items():
        ranking = statistics.static_scores(values, target)
        if truth.basis == "students" and ranking is not None:
            points[target] = dict(board.singles(target)[statistics.top_sources(ranking)[0]])
    return points


def random_control(board: Board) -> dict[str, dict[int, float]]:
    """The mean over the students of all single sources for seeds that have them all; else the line "random"."""
    points = {target: dict(seeds) for target, seeds in board.methods.get("random", {}).items()}
    for target in board.targets:
        singles, names = board.singles(target), board.sources(target)
        if names and all(name in singles for name in names):
            for seed in set.intersection(*(set(singles[name]) for name in names)):
                points.setdefault(target, {})[seed] = float(np.mean([singles[name][seed] for name in names]))
    return points


def with_controls(board: Board) -> Board:
    """Add the controls that are derived from the students of single sources; without such students, no change."""
    truths = known_truths(board)
    hindsight = zip(HINDSIGHT, (oracle_nearest(board, truths), static_best(board, truths)), strict=True)
    derived = {"random": random_control(board), **dict(hindsight)}
    controls = {name: points for name, points in derived.items() if points}
    return dataclasses.replace(board, methods={**board.methods, **controls})
