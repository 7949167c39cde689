"""The metrics that score a source on the target's labeled images.

Every metric has one signature, numpy in and a float out, higher is more similar:

    METRICS[name].score(features_ND, probs_NK, labels_N, **options) -> float

Its keyword-only parameters are its recipe options. What the weighing itself knows and a recipe does not say (the
source's name, the reference of RSA) is a fourth, positional parameter of the metrics that want it.

N probe images, D features (the input of the source's last linear layer), K classes of the source, S sources.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgedistill.errors import InputError
from edgedistill.similarity.likelihood import hscore, label_entropy, leep, logme, logme_bounds, logme_chance, nce
from edgedistill.similarity.separability import Floats, Ints, cka, knn, over_chance, parc, parc_ceiling, probe, rsa


def static(
    features_ND: Floats, probs_NK: Floats, labels_N: Ints, source: str = "", *, prior: dict[str, float]
) -> float:
    """How well a source did on other targets; it looks at no image, and a similarity must beat it to mean anything.

    Args:
        features_ND: not used.
        probs_NK: not used.
        labels_N: not used.
        source: the source's name.
        prior: score by source name, on one scale for all: 0 for a source of no use, 1 for the best there can be.

    Raises:
        InputError: the prior has no score for this source, or one that is not a number up to 1.
    """
    if source not in prior:
        known = ", ".join(sorted(prior)) or "no source"
        raise InputError(
            f"static: the prior has no score for the source {source or '(no name)'}, it knows {known}",
            "add it under prior:",
        )
    if not -math.inf < prior[source] <= 1.0:
        raise InputError(f"static: the prior of {source} is {prior[source]}", "write a fraction, 1 for the best")
    return float(prior[source])


def perfect_one(labels_N: Ints) -> float:
    """The best there can be is 1."""
    return 1.0


def zero(labels_N: Ints) -> float:
    """0, whatever the labels are."""
    return 0.0


def hundred(labels_N: Ints) -> float:
    """The best there can be is 100."""
    return 100.0


def unbounded(labels_N: Ints) -> float:
    """There is no best."""
    return math.inf


def entropy_below_zero(labels_N: Ints) -> float:
    """-H of the labels: the log-likelihood of a source that knows nothing."""
    return -label_entropy(labels_N)


def classes_less_one(labels_N: Ints) -> float:
    """C - 1."""
    return len(np.unique(labels_N)) - 1.0


def within(reach: Callable[[Ints], float]) -> Callable[[Ints], tuple[float, float]]:
    """Bounds of both signs."""
    return lambda labels_N: (-reach(labels_N), reach(labels_N))


def accuracies(labels_N: Ints) -> tuple[float, float]:
    """From no image right to all, over chance."""
    return over_chance(0.0, len(np.unique(labels_N))), 1.0


def information(labels_N: Ints) -> tuple[float, float]:
    """From -H of the labels to 0."""
    return entropy_below_zero(labels_N), 0.0


def share_of_variance(scores_S: Floats) -> Floats:
    """Differences are the R^2 of Cox and Snell 1989: 1 - exp(-2 (E - E_0)), E and E_0 log likelihoods an image."""
    return np.asarray(-np.exp(-2.0 * scores_S))


def unchanged(scores_S: Floats) -> Floats:
    """Differences of scores are comparable as they are."""
    return scores_S


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A similarity metric, and where its scores lie.

    Attributes:
        score: from features, probabilities and labels to a score; keyword-only parameters are recipe options.
        ceiling: the score of a perfect source on these labels; infinite where there is no bound.
        bounds: the least and the greatest score on these labels. Without bounds a score has no sampling error: it is
            read off no image.
        chance: the score of a source that knows nothing.
        curve: makes differences of scores comparable: likelihoods are shares of what is known, their logarithms not.
    """

    score: Callable[..., float]
    ceiling: Callable[[Ints], float]
    bounds: Callable[[Ints], tuple[float, float]] | None
    chance: Callable[[Ints], float] = zero
    curve: Callable[[Floats], Floats] = unchanged


METRICS: dict[str, Metric] = {
    "parc": Metric(score=parc, ceiling=parc_ceiling, bounds=within(parc_ceiling)),
    "rsa": Metric(score=rsa, ceiling=hundred, bounds=within(hundred)),
    "cka": Metric(score=cka, ceiling=perfect_one, bounds=within(perfect_one)),
    # e^LEEP and e^NCE are geometric means of the probability of the right label: from e^-H(labels) to 1
    "leep": Metric(score=leep, ceiling=zero, bounds=information, chance=entropy_below_zero, curve=np.exp),
    "nce": Metric(score=nce, ceiling=zero, bounds=information, chance=entropy_below_zero, curve=np.exp),
    "hscore": Metric(score=hscore, ceiling=classes_less_one, bounds=within(classes_less_one)),
    # LogME's evidence has no bound
    "logme": Metric(score=logme, ceiling=unbounded, bounds=logme_bounds, chance=logme_chance, curve=share_of_variance),
    "knn": Metric(score=knn, ceiling=perfect_one, bounds=accuracies),
    "probe": Metric(score=probe, ceiling=perfect_one, bounds=accuracies),
    "static": Metric(score=static, ceiling=perfect_one, bounds=None),
}


def share(metric: str, scores_S: Floats, labels_N: Ints) -> Floats:
    """Scores as shares of a perfect source: 0 at chance and below, 1 for perfect; comparable across targets.

    Where even a perfect source scores no better than chance (PARC of one image a class) all shares are 0.
    """
    entry = METRICS[metric]
    chance, perfect = entry.curve(np.array([entry.chance(labels_N), entry.ceiling(labels_N)]))
    if perfect <= chance:
        return np.zeros_like(scores_S)
    return np.asarray(np.clip((entry.curve(scores_S) - chance) / (perfect - chance), 0.0, 1.0))
