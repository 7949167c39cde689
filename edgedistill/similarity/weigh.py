"""Source weights: each source's similarity to the target on the probe, with intervals, and the mixture weights.

N probe images, D features (the input of the source's last linear layer), K classes of the source, S sources.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np

from edgedistill.console import say
from edgedistill.errors import InputError
from edgedistill.labels.units import representatives
from edgedistill.recipe.options import bound_options
from edgedistill.recipe.schema import Weigh
from edgedistill.recipe.section import Choice
from edgedistill.records import MetricScore, SourceWeight, SourceWeights
from edgedistill.similarity import alike
from edgedistill.similarity.chance import better_than_chance
from edgedistill.similarity.metrics import METRICS, share
from edgedistill.similarity.separability import (
    Floats,
    Ints,
    Rows,
    held_out_scores,
)

Pair = tuple[Floats, Floats | None]  # features and class probabilities; None for a source without classes
MIN_CLASS_LABELS = 4  # images of a class for a half-sample: half of fewer is no sample
MAX_PROBE_IMAGES = 2000  # PARC and the Gram matrices grow with the square of the number of images


def half_sample_interval(
    metric: Callable[..., float],
    features_ND: Floats,
    probs_NK: Floats | None,
    labels_N: Ints,
    *,
    repeats: int,
    seed: int,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    aligned: Mapping[str, Floats] | None = None,
) -> tuple[float, float, float]:
    """Score with a 95 % interval by the half-sample bootstrap: (score, low, high).

    Each repeat scores a random half of every class, drawn without replacement. The spread of the halves estimates the
    sampling variance of the full sample (McCarthy 1969), and a half contains no image twice: the copies of the ordinary
    bootstrap would be pairs at distance zero to PARC and leak across the folds of a probe. The interval is centered on
    the score of the full sample.

    Args:
        metric: a metric of `METRICS` with its options bound.
        features_ND: [N, D].
        probs_NK: [N, K]; None for a source without classes.
        labels_N: [N]; with fewer than four labels in a class the interval is all of `bounds`.
        repeats: number of halves.
        seed: seed of the halves.
        bounds: the lowest and the highest possible score; the interval stays within.
        aligned: more arrays of N rows that the metric takes by name.
    """
    rng, more, classes = np.random.default_rng(seed), aligned or {}, np.unique(labels_N)
    score, halves = metric(features_ND, probs_NK, labels_N, **more), []
    if min((labels_N == label).sum() for label in classes) < MIN_CLASS_LABELS:
        return score, min(score, bounds[0]), max(score, bounds[1])
    for _ in range(repeats):
        keep = np.concatenate([_half(np.flatnonzero(labels_N == label), rng) for label in classes])
        rest = {name: rows[keep] for name, rows in more.items()}
        half_NK = None if probs_NK is None else probs_NK[keep]
        halves.append(metric(features_ND[keep], half_NK, labels_N[keep], **rest))
    low, high = score + np.quantile(halves, [0.025, 0.975]) - np.mean(halves)
    # an outlying half can pull the mean beyond a quantile; the interval always contains the score
    return score, min(score, max(float(low), bounds[0])), max(score, min(float(high), bounds[1]))


def _half(rows: Rows, rng: np.random.Generator) -> Rows:
    return rng.permutation(rows)[: len(rows) // 2]


def weights_of(scores_S: Floats, ceiling: float, power: float, rescale: Literal["ceiling", "minmax"]) -> Floats:
    """alpha_s = e_s^power / sum e^power with e the scores rescaled to [0, 1]; shapes [S] -> [S].

    "ceiling" divides by the score of a perfect source, and negative scores become 0; "minmax" maps the range of the
    scores to [0, 1]: the worst source gets 0, and any two sources get (1, 0). Uniform if all scores are 0 or equal.
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
    mass = (
        evidence / top
    ) ** power  # divided by the top first: a small score to a high power must not underflow to 0 / 0
    return np.asarray(mass / mass.sum())


def probe_rows(labels_N: Ints, units_N: Ints | None, limit: int) -> tuple[Rows, bool]:
    """Rows of the images to score on, ascending, and whether two classes at least have two of them.

    One image of each class in each unit; of those the images whose class has another one, where two classes have; of
    these a stratified subset. Where `limit` is less than two images a class, it holds pairs of some classes, drawn with
    a fixed seed.

    Args:
        labels_N: classes of the images.
        units_N: their groups or sets of copies; None where each is alone.
        limit: most rows, four at least.
    """
    rows = np.arange(len(labels_N)) if units_N is None else representatives(labels_N, units_N)
    classes_C, index_R, counts_C = np.unique(labels_N[rows], return_inverse=True, return_counts=True)
    paired = int((counts_C >= 2).sum())
    if paired < 2:
        return rows[stratified_rows(labels_N[rows], limit)], False
    rows = rows[counts_C[index_R] >= 2]
    if 2 * paired > limit:
        say(f"similarity {limit} images hold no two of each of {paired} classes: {limit // 2} of the classes take part")
        drawn = np.random.default_rng(0).permutation(classes_C[counts_C >= 2])[: limit // 2]
        rows = rows[np.isin(labels_N[rows], drawn)]
    return rows[stratified_rows(labels_N[rows], limit)], True


def asked_rows(labels_N: Ints, units_N: Ints, limit: int) -> Rows:
    """Rows of the few images that many models are asked about, ascending.

    Where `limit` does not hold MIN_CLASS_LABELS of every class, no image is asked about that cannot be scored.

    Args:
        labels_N: classes of the images.
        units_N: their groups or sets of copies.
        limit: most rows, four at least.
    """
    counts_C = np.unique(labels_N, return_counts=True)[1]
    if np.minimum(counts_C, MIN_CLASS_LABELS).sum() <= limit:
        return stratified_rows(labels_N, limit)
    return probe_rows(labels_N, units_N, limit)[0]


def weigh_sources(
    outputs: Mapping[str, Pair],
    labels_N: Ints,
    settings: Weigh,
    seed: int,
    progress: Callable[[int], object] = lambda done: None,
    *,
    units_N: Ints | None = None,
    max_images: int = MAX_PROBE_IMAGES,
) -> SourceWeights:
    """Score every source on the probe by every metric of the settings; `settings.metric` gives the weights.

    A source without classes gets no score by a metric that needs classes, and weight 0 if that is `settings.metric`.
    The only image of a class takes no part: no metric can learn from it and predict it. Where so few labels are left
    that `settings.metric` scores nothing, all sources weigh the same. Of a unit one image of each class takes part:
    images of one recording are alike, and a source that knows recordings would look as if it knew the classes.

    Args:
        outputs: (features_ND, probs_NK) on the probe images, by source name; None in place of absent classes.
        labels_N: target labels of the probe, [N].
        settings: the recipe's `weigh` section.
        seed: seed of the bootstrap; all sources use the same half-samples, so that their scores are paired.
        progress: called with 1 after each source and metric.
        units_N: the group or set of copies of each probe image; None where each is alone.
        max_images: of a larger probe a fixed subset of this size, stratified by class, is used (`probe_rows`).

    Raises:
        InputError: the probe holds a single class, a metric's options do not fit, an output is not finite, or
            `settings.metric` needs classes and no source has any.
    """
    rows, paired = probe_rows(labels_N, units_N, max_images)
    outputs, labels_N = {name: _finite(name, pair, rows) for name, pair in outputs.items()}, labels_N[rows]
    choices = {choice.name: choice for choice in (*settings.also, settings.metric)}
    scores = {
        name: _scored(choice, outputs, labels_N=labels_N, repeats=settings.bootstrap, seed=seed, progress=progress)
        for name, choice in choices.items()
        if paired or "pairs" not in METRICS[name].needs
    }
    chosen, names = settings.metric.name, list(outputs)
    if chosen not in scores:
        even_S = np.full(len(names), 1.0 / len(names))
        return _record(outputs, even_S, scores, settings=settings, n_images=len(labels_N))
    require_scores(chosen, scored=scores[chosen])
    alphas = {
        name: _alphas(name, scores[name], settings, labels_N=labels_N, names=names) for name in scores if scores[name]
    }
    features = {name: pair[0] for name, pair in outputs.items()}
    blind = _blind(features, labels_N, settings)
    alphas[chosen] = _without(_shared(alphas[chosen], features, labels_N, settings), [name in blind for name in names])
    weights = _record(outputs, alphas[chosen], scores, settings=settings, n_images=len(labels_N))
    return replace(weights, disagreement=_disagreement(chosen, alphas, names), blind=blind)


def _record(
    outputs: Mapping[str, Pair],
    alphas_S: Floats,
    scores: Mapping[str, Mapping[str, MetricScore]],
    *,
    settings: Weigh,
    n_images: int,
) -> SourceWeights:
    """The record of the sources' weights, and of their scores by metric and source."""
    sources = tuple(
        SourceWeight(
            name=name,
            weight=float(alphas_S[index]),
            scores={metric: by_source[name] for metric, by_source in scores.items() if name in by_source},
        )
        for index, name in enumerate(outputs)
    )
    return SourceWeights(
        metric=settings.metric.name,
        probe_images=n_images,
        power=settings.power,
        sources=sources,
        features_only=tuple(name for name, (_, probs_NK) in outputs.items() if probs_NK is None),
    )


def _shared(alphas_S: Floats, features: Mapping[str, Floats], labels_N: Ints, settings: Weigh) -> Floats:
    """The weights; with `alike: once` sources that are nearly the same share what one of them would have."""
    if settings.alike == "each" or len(features) < 2:
        return alphas_S
    counts = alike.counts(features, labels_N)
    shared_S = alphas_S / np.array([counts[name] for name in features])
    return np.asarray(shared_S / shared_S.sum())


def _blind(features: Mapping[str, Floats], labels_N: Ints, settings: Weigh) -> tuple[str, ...]:
    """The sources that are not told from chance; none if none is. `minmax` has no test, as in the paper."""
    if settings.rescale == "minmax":
        return ()
    informed = better_than_chance(features, labels_N, settings.level)
    return tuple(name for name in features if name not in informed)


def _without(alphas_S: Floats, left_out: list[bool]) -> Floats:
    """The weights without those of some sources, divided by their sum; as they are where nothing would be left."""
    kept_S = np.where(left_out, 0.0, alphas_S)
    return kept_S / kept_S.sum() if any(left_out) and kept_S.sum() > 0 else alphas_S


def require_scores(metric: str, scored: Collection[str]) -> None:
    """Raise InputError if the deciding metric scores no source, because it needs classes and no source has any."""
    if not scored:
        raise InputError(
            f"weigh.metric: {metric} needs the sources' classes, and no source has any",
            "use a metric that needs features alone, such as probe, or add a source with classes",
        )


def _scored(
    choice: Choice,
    outputs: Mapping[str, Pair],
    labels_N: Ints,
    repeats: int,
    seed: int,
    progress: Callable[[int], object],
) -> dict[str, MetricScore]:
    """Score the sources that have what a metric needs, in their order."""
    metric = METRICS[choice.name]
    bound = partial(metric.score, **bound_options(metric.score, choice.options))
    parameters, bounds = inspect.signature(metric.score).parameters, metric.bounds
    scores: dict[str, MetricScore] = {}
    ceiling = metric.ceiling(labels_N)
    aligned = {"reference_NE": _reference_scores(outputs, labels_N)} if "reference_NE" in parameters else {}
    for name, (features_ND, probs_NK) in outputs.items():
        if probs_NK is None and "classes" in metric.needs:
            progress(1)
            continue
        source_metric: Callable[..., float] = partial(bound, source=name) if "source" in parameters else bound
        if bounds is None:
            score = source_metric(features_ND, probs_NK, labels_N)
            triple = (score, score, score)
        else:
            triple = half_sample_interval(
                source_metric,
                features_ND,
                probs_NK,
                labels_N,
                repeats=repeats,
                seed=seed,
                bounds=bounds(labels_N),
                aligned=aligned,
            )
        top = ceiling if math.isfinite(ceiling) else None
        scores[name] = MetricScore(score=triple[0], low=triple[1], high=triple[2], ceiling=top)
        progress(1)
    return scores


def _alphas(
    metric: str, scores: Mapping[str, MetricScore], settings: Weigh, labels_N: Ints, names: Collection[str]
) -> Floats:
    """Weights [S] of the named sources; 0 for those without a score."""
    scores_S = np.array([score.score for score in scores.values()])
    evidence_S = share(metric, scores_S, labels_N) if settings.rescale == "ceiling" else scores_S
    alphas = dict(zip(scores, weights_of(evidence_S, 1.0, settings.power, settings.rescale), strict=True))
    return np.array([alphas.get(name, 0.0) for name in names])


def _reference_scores(outputs: Mapping[str, Pair], labels_N: Ints) -> Floats:
    """Mean of the sources' held-out scores, [N, C]: RSA's reference before a net is trained on the target."""
    return np.asarray(np.mean([held_out_scores(features_ND, labels_N) for features_ND, _ in outputs.values()], axis=0))


def stratified_rows(labels_N: Ints, limit: int) -> Rows:
    """Rows of a stratified subset, ascending; MIN_CLASS_LABELS images of every class are taken first.

    Where `limit` is too small for these, every class has one image before any has a second one, and so on.
    """
    if len(labels_N) <= limit:
        return np.arange(len(labels_N))
    rng, rank_N, share_N = np.random.default_rng(0), np.empty(len(labels_N)), np.empty(len(labels_N))
    for label in np.unique(labels_N):
        class_rows = rng.permutation(np.flatnonzero(labels_N == label))
        rank_N[class_rows], share_N[class_rows] = (
            np.arange(len(class_rows)),
            (np.arange(len(class_rows)) + 0.5) / len(class_rows),
        )
    return np.sort(np.lexsort((share_N, np.minimum(rank_N, MIN_CLASS_LABELS)))[:limit])


def _finite(name: str, pair: Pair, rows: Rows) -> Pair:
    features_ND, probs_NK = np.asarray(pair[0])[rows], None if pair[1] is None else np.asarray(pair[1])[rows]
    if not all(np.isfinite(array).all() for array in (features_ND, probs_NK) if array is not None):
        raise InputError(f"similarity: the outputs of the source {name} are not finite", "leave it out")
    return features_ND, probs_NK


def _disagreement(chosen: str, alphas: Mapping[str, Floats], names: list[str]) -> str:
    """A sentence if another metric ranks another source first; empty if all agree."""
    first = int(alphas[chosen].argmax())
    sentences = [
        f"{metric} would put {names[int(weight_S.argmax())]} first (weight {weight_S.max():.2f}), "
        f"{chosen} puts {names[first]} first (and {names[int(weight_S.argmax())]} at "
        f"{alphas[chosen][int(weight_S.argmax())]:.2f})"
        for metric, weight_S in alphas.items()
        if int(weight_S.argmax()) != first
    ]
    return f"{'; '.join(sentences)}. The weights follow {chosen}." if sentences else ""
