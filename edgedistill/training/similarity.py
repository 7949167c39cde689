"""How much does each source know about the target? Scores on the probe, their intervals, and the weights.

Every metric has one signature, numpy in and a float out, higher is more similar:

    METRICS[name](features_ND, probs_NK, labels_N, **options) -> float

N probe images, D features (the input of the source's last linear layer), K classes of the source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgedistill.agent import metrics
from edgedistill.recipe import Weigh, bound_options
from edgedistill.records import InputError, MetricScore, SourceWeight, SourceWeights

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Rows = NDArray[np.intp]
Metric = Callable[..., float]


def parc(
    features_ND: Floats, probs_NK: Floats, labels_N: Ints, *,
    dims: int | None = None, compat: Literal["exact", "dbolya"] = "exact",
) -> float:  # fmt: skip
    """PARC: rank correlation between distances of features and distances of labels, times 100.

    Bolya, Mittapalli, Hoffman, "Scalable Diverse Model Selection for Accessible Transfer Learning", NeurIPS 2021.
    Label distances of one-hot rows take two values; "exact" keeps those ties exact, "dbolya" repeats the float noise
    of the authors' code, which breaks them (at 7 classes 60.3 becomes 42-45 on separable data) and differs from one
    processor's matrix kernels to the next.

    Args:
        features_ND: [N, D].
        probs_NK: not used.
        labels_N: [N], two classes at least.
        dims: reduce the features to this many dimensions by PCA first.
        compat: how label distances are made.

    Raises:
        InputError: the probe holds a single class.
    """
    _needs_two_classes(labels_N)
    features_ND = _standardised(_reduced(np.asarray(features_ND, dtype=np.float64), dims))
    above = np.triu_indices(len(labels_N), k=1)
    feature_distances = 1.0 - _row_correlation(features_ND)[above]
    if compat == "exact":
        label_distances = (labels_N[:, None] != labels_N[None, :])[above].astype(np.float64)
    else:
        label_distances = (1.0 - np.asarray(np.corrcoef(np.eye(int(labels_N.max()) + 1)[labels_N])))[above]
    return 100.0 * _spearman(feature_distances, label_distances)


def parc_ceiling(labels_N: Ints) -> float:
    """The PARC of perfectly separated classes: 100 sqrt(3 q (1 - q)), q = share of pairs that share a class.

    Label distances have two tied groups, so even a perfect ranking of feature distances stays below 100.
    """
    counts, n = np.bincount(labels_N), len(labels_N)
    same = float((counts * (counts - 1)).sum()) / (n * (n - 1))
    return 100.0 * float(np.sqrt(3.0 * same * (1.0 - same)))


def probe(
    features_ND: Floats, probs_NK: Floats, labels_N: Ints, *,
    folds: int = 5, repeats: int = 5, l2: float = 1.0, seed: int = 0,
) -> float:  # fmt: skip
    """What a linear head learns: k-fold balanced accuracy of a ridge classifier, 0 at chance and 1 when perfect.

    Unlike a rank correlation of distances it is not fooled by an untrained net whose few effective dimensions follow
    a nuisance that the label follows too. Below chance it is negative.

    Args:
        features_ND: [N, D].
        probs_NK: not used.
        labels_N: [N]; a class with fewer images than `folds` lowers the number of folds to its size.
        folds: number of stratified folds, two at least.
        repeats: how often the folds are cut anew; the score is the mean.
        l2: ridge penalty, in units of the number of features.
        seed: of the cuts.

    Raises:
        InputError: the probe holds a single class, or a class with one image only.
    """
    from sklearn.model_selection import RepeatedStratifiedKFold

    _needs_two_classes(labels_N)
    classes, targets_N, counts_C = np.unique(labels_N, return_inverse=True, return_counts=True)
    if counts_C.min() < 2:
        raise InputError("probe: a class has a single labeled image", "give two labels a class at least")
    standard_ND = _standardised(np.asarray(features_ND, dtype=np.float64))
    gram_NN = standard_ND @ standard_ND.T / features_ND.shape[1] + 1.0  # the 1 is an intercept
    penalty_N = l2 * counts_C[targets_N] * len(classes) / len(labels_N)  # classes weigh the same, however many images
    cuts = RepeatedStratifiedKFold(n_splits=min(folds, int(counts_C.min())), n_repeats=repeats, random_state=seed)
    shares = []
    for fit, held in cuts.split(gram_NN, targets_N):
        predicted = _ridge(gram_NN, np.eye(len(classes))[targets_N], penalty_N, fit, held).argmax(axis=1)
        shares.append(metrics.balanced(targets_N[held], predicted)[0])
    chance = 1.0 / len(classes)
    return float((np.mean(shares) - chance) / (1.0 - chance))


def _ridge(gram_NN: Floats, targets_NC: Floats, penalty_N: Floats, fit: Rows, held: Rows) -> Floats:
    """Scores [held, C] of a ridge regression fitted on the rows `fit`, in its dual form.

    There are fewer labels than features, and the dual needs the Gram matrix alone, once for all cuts: a bootstrapped
    score takes a second where a classifier refitted on the features took ten.
    """
    kernel = gram_NN[np.ix_(fit, fit)] + np.diag(penalty_N[fit])
    return np.asarray(gram_NN[np.ix_(held, fit)] @ np.linalg.solve(kernel, targets_NC[fit]))


METRICS: dict[str, Metric] = {"parc": parc, "probe": probe}
CEILINGS: dict[str, Callable[[Ints], float]] = {"parc": parc_ceiling, "probe": lambda labels_N: 1.0}


def _needs_two_classes(labels_N: Ints) -> None:
    if len(np.unique(labels_N)) < 2:
        raise InputError("similarity: the probe holds a single class", "label images of a second class")


def _reduced(features_ND: Floats, dims: int | None) -> Floats:
    if dims is None or dims >= min(features_ND.shape):
        return features_ND
    from sklearn.decomposition import PCA

    # the arguments of the authors' code (dbolya/parc), so that scores can be compared
    reducer = PCA(n_components=dims, svd_solver="randomized", random_state=1919, iterated_power=1)
    return np.asarray(reducer.fit_transform(features_ND))


def _standardised(features_ND: Floats) -> Floats:
    deviation = features_ND.std(axis=0)
    return np.asarray((features_ND - features_ND.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0))


def _row_correlation(rows_ND: Floats) -> Floats:
    """Pearson correlation of every pair of rows, [N, N]; a constant row correlates with nothing (0)."""
    centred = rows_ND - rows_ND.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = centred / np.where(length > 0, length, 1.0)
    return np.asarray(np.clip(unit @ unit.T, -1.0, 1.0))


def _spearman(first: Floats, second: Floats) -> float:
    from scipy.stats import rankdata

    ranks = np.stack([rankdata(first), rankdata(second)])
    return float(_row_correlation(ranks)[0, 1])


def half_sample_interval(metric: Metric, features_ND: Floats, probs_NK: Floats, labels_N: Ints, *,
                         repeats: int, seed: int) -> tuple[float, float, float]:  # fmt: skip
    """Score with a 95 % interval by the half-sample bootstrap: (score, low, high).

    Each repeat scores a random half of every class, without replacement. A half has the sampling variance of the
    whole (McCarthy 1969), and no image stands in it twice: the ordinary bootstrap's copies would be pairs at distance
    zero to PARC and leak across the folds of a probe. The halves' spread is centred on the whole's score.
    """
    rng = np.random.default_rng(seed)
    score = metric(features_ND, probs_NK, labels_N)
    halves = []
    for _ in range(repeats):
        keep = np.concatenate([_half(np.flatnonzero(labels_N == label), rng) for label in np.unique(labels_N)])
        halves.append(metric(features_ND[keep], probs_NK[keep], labels_N[keep]))
    low, high = np.quantile(halves, [0.025, 0.975]) - np.mean(halves)
    # one half far off pulls the mean beyond a quantile; the interval never leaves its own score out
    return score, score + min(0.0, float(low)), score + max(0.0, float(high))


def _half(rows: Rows, rng: np.random.Generator) -> Rows:
    """Half of a class, two images at least: fewer cannot be cut into folds."""
    return rng.permutation(rows)[: max(min(2, len(rows)), len(rows) // 2)]


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


def weigh(
    outputs: Mapping[str, tuple[Floats, Floats]], labels_N: Ints, settings: Weigh, seed: int,
    progress: Callable[[int], object] = lambda done: None,
) -> SourceWeights:  # fmt: skip
    """Score every source on the probe by every metric asked for, and turn `settings.metric` into weights.

    Args:
        outputs: per source name, (features_ND, probs_NK) on the probe images.
        labels_N: target labels of the probe, [N].
        settings: the recipe's `weigh` section.
        seed: of the bootstrap; the same half-samples serve every source, so that their scores are paired.
        progress: called with 1 after each source and metric.

    Raises:
        InputError: the probe holds a single class or the metric's options do not fit.
    """
    scores: dict[str, dict[str, MetricScore]] = {name: {} for name in outputs}
    for choice in {one.name: one for one in (*settings.also, settings.metric)}.values():
        metric = partial(METRICS[choice.name], **bound_options(METRICS[choice.name], choice.options))
        for name, (features_ND, probs_NK) in outputs.items():
            found = half_sample_interval(metric, np.asarray(features_ND), np.asarray(probs_NK), labels_N,
                                         repeats=settings.bootstrap, seed=seed)  # fmt: skip
            scores[name][choice.name] = MetricScore(*found)
            progress(1)
    alphas = {
        metric: weights_of(np.array([scores[name][metric].score for name in outputs]),
                           CEILINGS[metric](labels_N), settings.power, settings.rescale)
        for metric in next(iter(scores.values()))
    }  # fmt: skip
    chosen = settings.metric.name
    sources = tuple(
        SourceWeight(name, float(alphas[chosen][at]), {metric: scores[name][metric] for metric in alphas})
        for at, name in enumerate(outputs)
    )
    return SourceWeights(chosen, len(labels_N), settings.power, sources, _disagreement(chosen, alphas, list(outputs)))


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
