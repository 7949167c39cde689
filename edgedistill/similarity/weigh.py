"""How much does each source know about the target? Scores on the probe, their intervals, and the weights.

N probe images, D features (the input of the source's last linear layer), K classes of the source, S sources.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import numpy as np

from edgedistill.errors import InputError
from edgedistill.recipe.options import bound_options
from edgedistill.recipe.schema import Choice, Weigh
from edgedistill.records import MetricScore, SourceWeight, SourceWeights
from edgedistill.similarity.metrics import METRICS, share
from edgedistill.similarity.separability import (
    Floats,
    Ints,
    Rows,
    held_out_scores,
)

Pair = tuple[Floats, Floats]
FEW = 4  # labels of a class: half of fewer is no sample of them
MOST_IMAGES = 2000  # PARC and the Gram matrices grow with the square of the images


def half_sample_interval(
    metric: Callable[..., float],
    features_ND: Floats,
    probs_NK: Floats,
    labels_N: Ints,
    *,
    repeats: int,
    seed: int,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    aligned: Mapping[str, Floats] | None = None,
) -> tuple[float, float, float]:
    """Score with a 95 % interval by the half-sample bootstrap: (score, low, high).

    Each repeat scores a random half of every class, without replacement. A half has the sampling variance of the
    whole (McCarthy 1969), and no image stands in it twice: the ordinary bootstrap's copies would be pairs at distance
    zero to PARC and leak across the folds of a probe. The halves' spread is centred on the whole's score.

    Args:
        metric: of `METRICS`, its options bound.
        features_ND: [N, D].
        probs_NK: [N, K].
        labels_N: [N]; a class with fewer than four labels has no halves to speak of, and the interval is all of
            `bounds`: nothing is known.
        repeats: number of halves.
        seed: of the halves.
        bounds: the least and the highest score there can be; the interval stays within.
        aligned: more arrays of N rows that the metric takes by name.
    """
    rng, more, classes = np.random.default_rng(seed), aligned or {}, np.unique(labels_N)
    score, halves = metric(features_ND, probs_NK, labels_N, **more), []
    if min((labels_N == label).sum() for label in classes) < FEW:
        return score, min(score, bounds[0]), max(score, bounds[1])
    for _ in range(repeats):
        keep = np.concatenate([_half(np.flatnonzero(labels_N == label), rng) for label in classes])
        rest = {name: rows[keep] for name, rows in more.items()}
        halves.append(metric(features_ND[keep], probs_NK[keep], labels_N[keep], **rest))
    low, high = score + np.quantile(halves, [0.025, 0.975]) - np.mean(halves)
    # one half far off pulls the mean beyond a quantile; the interval never leaves its own score out
    return score, min(score, max(float(low), bounds[0])), max(score, min(float(high), bounds[1]))


def _half(rows: Rows, rng: np.random.Generator) -> Rows:
    return rng.permutation(rows)[: len(rows) // 2]


def weights_of(scores_S: Floats, ceiling: float, power: float, rescale: Literal["ceiling", "minmax"]) -> Floats:
    """alpha_s = e_s^power / sum e^power with e the scores rescaled to [0, 1]; shapes [S] -> [S].

    "ceiling" divides by the score of a perfect source, negative scores become 0; "minmax" stretches the scores over
    the sources at hand, which gives the worst exactly 0 and is (1, 0) for any two. No mass or no spread: uniform.
    """
    if not np.isfinite(scores_S).all():
        raise InputError("similarity: a score is not finite", "leave that source out, or weigh by another metric")
    if rescale == "minmax":
        spread = scores_S.max() - scores_S.min()
        evidence = (scores_S - scores_S.min()) / spread if spread > 0 else np.ones_like(scores_S)
    else:
        evidence = np.clip(scores_S / ceiling, 0.0, 1.0) if ceiling > 0 else np.zeros_like(scores_S)
    top = evidence.max()
    if top <= 0:
        return np.full(len(scores_S), 1.0 / len(scores_S))
    mass = (evidence / top) ** power  # by the top first: a small score to a high power must not underflow to 0 / 0
    return np.asarray(mass / mass.sum())


def weigh_sources(
    outputs: Mapping[str, Pair],
    labels_N: Ints,
    settings: Weigh,
    seed: int,
    progress: Callable[[int], object] = lambda done: None,
    *,
    max_images: int = MOST_IMAGES,
) -> SourceWeights:
    """Score every source on the probe by every metric asked for, and turn `settings.metric` into weights.

    Args:
        outputs: per source name, (features_ND, probs_NK) on the probe images.
        labels_N: target labels of the probe, [N].
        settings: the recipe's `weigh` section.
        seed: of the bootstrap; the same half-samples serve every source, so that their scores are paired.
        progress: called with 1 after each source and metric.
        max_images: of a larger probe a subset of this size is used, stratified by class, always the same.

    Raises:
        InputError: the probe holds a single class, a metric's options do not fit, or an output is not finite.
    """
    rows = _at_most(labels_N, max_images)
    outputs, labels_N = {name: _finite(name, pair, rows) for name, pair in outputs.items()}, labels_N[rows]
    choices = {one.name: one for one in (*settings.also, settings.metric)}
    scores = {
        name: _scored(choice, outputs, labels_N=labels_N, repeats=settings.bootstrap, seed=seed, progress=progress)
        for name, choice in choices.items()
    }
    alphas = {name: _alphas(name, found, labels_N, settings) for name, found in scores.items()}
    chosen = settings.metric.name
    sources = tuple(
        SourceWeight(
            name=name, weight=float(alphas[chosen][at]), scores={metric: found[at] for metric, found in scores.items()}
        )
        for at, name in enumerate(outputs)
    )
    return SourceWeights(
        metric=chosen,
        probe_images=len(labels_N),
        power=settings.power,
        sources=sources,
        disagreement=_disagreement(chosen, alphas, list(outputs)),
    )


def _scored(
    choice: Choice,
    outputs: Mapping[str, Pair],
    labels_N: Ints,
    repeats: int,
    seed: int,
    progress: Callable[[int], object],
) -> list[MetricScore]:
    """One metric's scores of all sources, in their order."""
    metric = METRICS[choice.name]
    bound = partial(metric.score, **bound_options(metric.score, choice.options))
    wanted, bounds, found = inspect.signature(metric.score).parameters, metric.bounds, []
    ceiling = metric.ceiling(labels_N)
    aligned = {"reference_NE": _together(outputs, labels_N)} if "reference_NE" in wanted else {}
    for name, (features_ND, probs_NK) in outputs.items():
        one: Callable[..., float] = partial(bound, source=name) if "source" in wanted else bound
        if bounds is None:
            score = one(features_ND, probs_NK, labels_N)
            triple = (score, score, score)
        else:
            triple = half_sample_interval(
                one,
                features_ND,
                probs_NK,
                labels_N,
                repeats=repeats,
                seed=seed,
                bounds=bounds(labels_N),
                aligned=aligned,
            )
        top = ceiling if math.isfinite(ceiling) else None
        found.append(MetricScore(score=triple[0], low=triple[1], high=triple[2], ceiling=top))
        progress(1)
    return found


def _alphas(metric: str, found: list[MetricScore], labels_N: Ints, settings: Weigh) -> Floats:
    scores_S = np.array([one.score for one in found])
    evidence_S = share(metric, scores_S, labels_N) if settings.rescale == "ceiling" else scores_S
    return weights_of(evidence_S, 1.0, settings.power, settings.rescale)


def _together(outputs: Mapping[str, Pair], labels_N: Ints) -> Floats:
    """What the sources together know of the target, [N, C]: RSA's reference where no net was trained on it."""
    return np.asarray(np.mean([held_out_scores(features_ND, labels_N) for features_ND, _ in outputs.values()], axis=0))


def _at_most(labels_N: Ints, most: int) -> Rows:
    """The rows of a stratified subset, in order; the first few of every class come before any share is filled."""
    if len(labels_N) <= most:
        return np.arange(len(labels_N))
    rng, place_N, share_N = np.random.default_rng(0), np.empty(len(labels_N)), np.empty(len(labels_N))
    for label in np.unique(labels_N):
        mine = rng.permutation(np.flatnonzero(labels_N == label))
        place_N[mine], share_N[mine] = np.arange(len(mine)), (np.arange(len(mine)) + 0.5) / len(mine)
    return np.sort(np.lexsort((share_N, place_N >= FEW))[:most])


def _finite(name: str, pair: Pair, rows: Rows) -> Pair:
    features_ND, probs_NK = (np.asarray(one)[rows] for one in pair)
    if not (np.isfinite(features_ND).all() and np.isfinite(probs_NK).all()):
        raise InputError(f"similarity: the source {name} answers with values that are not finite", "leave it out")
    return features_ND, probs_NK


def _disagreement(chosen: str, alphas: Mapping[str, Floats], names: list[str]) -> str:
    """A sentence where another metric would put another source first; empty where all agree."""
    first = int(alphas[chosen].argmax())
    others = [
        f"{metric} would put {names[int(weight_S.argmax())]} first (weight {weight_S.max():.2f}), "
        f"{chosen} puts {names[first]} first (and {names[int(weight_S.argmax())]} at "
        f"{alphas[chosen][int(weight_S.argmax())]:.2f})"
        for metric, weight_S in alphas.items()
        if int(weight_S.argmax()) != first
    ]
    return f"{'; '.join(others)}. The weights follow {chosen}." if others else ""
