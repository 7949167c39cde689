"""The metrics that score a source on the target's labeled images.

Every metric has one signature, numpy in and a float out, higher is more similar:

    METRICS[name].score(features_ND, probs_NK, labels_N, **options) -> float

A source without classes has no probabilities: it is scored by the metrics that need none, with None in their place.
Its keyword-only parameters are its recipe options. Inputs that come from the weighing, not from the recipe (the
source's name, the reference of RSA), are a fourth, positional parameter of the metrics that use them.

N probe images, D features (the input of the source's last linear layer), K classes of the source, S sources.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgedistill.errors import InputError
from edgedistill.similarity.likelihood import hscore, label_entropy, leep, logme, logme_bounds, logme_chance, nce
from edgedistill.similarity.separability import Floats, Ints, cka, knn, over_chance, parc, parc_ceiling, probe, rsa


def static(
    features_ND: Floats, probs_NK: Floats | None, labels_N: Ints, source: str = "", *, prior: dict[str, float]
) -> float:
    """A source's score on other targets: a baseline that looks at no image and that any similarity should beat.

    Args:
        features_ND: not used.
        probs_NK: not used.
        labels_N: not used.
        source: the source's name.
        prior: score by source name, on one scale for all: 0 for a useless source, 1 for the best possible.

    Raises:
        InputError: the prior has no score for this source, or one that is not a number up to 1.
    """
    if source not in prior:
        names = ", ".join(sorted(prior)) or "no source"
        raise InputError(
            f"static: the prior has no score for the source {source or '(no name)'}, it knows {names}",
            "add it under prior:",
        )
    if not -math.inf < prior[source] <= 1.0:
        raise InputError(f"static: the prior of {source} is {prior[source]}", "write a fraction, 1 for the best")
    return float(prior[source])


def ceiling_one(labels_N: Ints) -> float:
    """Ceiling 1."""
    return 1.0


def zero(labels_N: Ints) -> float:
    """0 for all labels."""
    return 0.0


def ceiling_hundred(labels_N: Ints) -> float:
    """Ceiling 100."""
    return 100.0


def unbounded(labels_N: Ints) -> float:
    """No finite ceiling."""
    return math.inf


def entropy_below_zero(labels_N: Ints) -> float:
    """-H(labels): the log-likelihood of an uninformative source."""
    return -label_entropy(labels_N)


def classes_less_one(labels_N: Ints) -> float:
    """C - 1, C the number of classes."""
    return len(np.unique(labels_N)) - 1.0


def symmetric(reach: Callable[[Ints], float]) -> Callable[[Ints], tuple[float, float]]:
    """Bounds -reach and +reach."""
    return lambda labels_N: (-reach(labels_N), reach(labels_N))


def accuracies(labels_N: Ints) -> tuple[float, float]:
    """Bounds of an accuracy over chance: no image correct, and all."""
    return over_chance(0.0, len(np.unique(labels_N))), 1.0


def information(labels_N: Ints) -> tuple[float, float]:
    """Bounds -H(labels) and 0."""
    return entropy_below_zero(labels_N), 0.0


def share_of_variance(scores_S: Floats) -> Floats:
    """Curve whose differences are the R^2 of Cox and Snell 1989: 1 - exp(-2 (E - E_0)), E log-likelihood per image."""
    return np.asarray(-np.exp(-2.0 * scores_S))


def unchanged(scores_S: Floats) -> Floats:
    """Identity: differences of the scores themselves are comparable."""
    return scores_S


Need = Literal["features", "classes", "pairs"]
NOTHING: frozenset[Need] = frozenset()
FEATURES: frozenset[Need] = frozenset({"features"})
CLASSES: frozenset[Need] = frozenset({"classes"})
PAIRS: frozenset[Need] = frozenset({"pairs"})


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A similarity metric and the range of its scores.

    Attributes:
        score: function of features, probabilities and labels; keyword-only parameters are recipe options.
        needs: the outputs of a source that it looks at; a source without classes gets no score if it needs them. A
            metric that does not say is taken to need both. "pairs": two images of a class, one to learn from and one
            to predict; no source gets a score where fewer than two classes have them.
        ceiling: the score of a perfect source on these labels; infinite if there is no bound.
        bounds: the lowest and the highest score on these labels; None for a score without sampling error, which uses no
            image.
        chance: the score of an uninformative source.
        version: increased when the score for the same input changes, as distill.methods.Method.version.
        curve: transform that makes differences of scores comparable: those of likelihoods are, of their logarithms not.
    """

    score: Callable[..., float]
    ceiling: Callable[[Ints], float]
    bounds: Callable[[Ints], tuple[float, float]] | None
    chance: Callable[[Ints], float] = zero
    curve: Callable[[Floats], Floats] = unchanged
    version: int = 1
    needs: frozenset[Need] = FEATURES | CLASSES


METRICS: dict[str, Metric] = {
    "parc": Metric(score=parc, needs=FEATURES, ceiling=parc_ceiling, bounds=symmetric(parc_ceiling)),
    "rsa": Metric(score=rsa, needs=FEATURES, ceiling=ceiling_hundred, bounds=symmetric(ceiling_hundred)),
    "cka": Metric(score=cka, needs=FEATURES, ceiling=ceiling_one, bounds=symmetric(ceiling_one)),
    # e^LEEP and e^NCE are geometric means of the probability of the right label: from e^-H(labels) to 1
    "leep": Metric(
        score=leep, needs=CLASSES, ceiling=zero, bounds=information, chance=entropy_below_zero, curve=np.exp
    ),
    "nce": Metric(score=nce, needs=CLASSES, ceiling=zero, bounds=information, chance=entropy_below_zero, curve=np.exp),
    "hscore": Metric(score=hscore, needs=FEATURES, ceiling=classes_less_one, bounds=symmetric(classes_less_one)),
    # LogME's evidence has no bound
    "logme": Metric(
        score=logme,
        needs=FEATURES,
        ceiling=unbounded,
        bounds=logme_bounds,
        chance=logme_chance,
        curve=share_of_variance,
    ),
    "knn": Metric(score=knn, needs=FEATURES | PAIRS, ceiling=ceiling_one, bounds=accuracies),
    "probe": Metric(score=probe, needs=FEATURES | PAIRS, ceiling=ceiling_one, bounds=accuracies),
    "static": Metric(score=static, needs=NOTHING, ceiling=ceiling_one, bounds=None),
}


def share(metric: str, scores_S: Floats, labels_N: Ints) -> Floats:
    """Scores as shares of a perfect source: 0 at chance and below, 1 for perfect; comparable across targets.

    All shares are 0 if a perfect source scores no better than chance (PARC of one image per class).
    """
    entry = METRICS[metric]
    chance, perfect = entry.curve(np.array([entry.chance(labels_N), entry.ceiling(labels_N)]))
    if perfect <= chance:
        return np.zeros_like(scores_S)
    return np.asarray(np.clip((entry.curve(scores_S) - chance) / (perfect - chance), 0.0, 1.0))
