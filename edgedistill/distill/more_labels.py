"""Do more labels pay? What the next labels are worth, from fits on subsets of those that there are.

The teacher (`stacked`) is fitted again and again without a fifth of the labels that may score, and on half of the
others, and both fits are scored on that fifth. The difference tells how fast the error falls when labels double. It is
continued as a power law of the number of labels, error = a * labels ** -b, as learning curves are (Hestness et al.
2017, arXiv 1712.00409). The interval is that of Nadeau and Bengio (2003, "Inference for the generalization error"),
which knows that the fits share labels.

L labeled pictures, D features of a source, C classes, J repeats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from scipy.stats import t

from edgedistill.distill.probes import Floats, Rows
from edgedistill.distill.teachers import stacked
from edgedistill.records import MoreLabels
from edgedistill.similarity.chance import OFF

NEXT = 50
REPEATS = 20
LEAST = 20  # labels below which nothing can be said
MOST = 300  # labels of a fit: a ridge probe inverts a matrix of that many rows
SCORED = 0.2


def worth(
    features: Mapping[str, Floats], labels_L: Rows, units_L: Rows, *, is_random_L: np.ndarray | None = None
) -> MoreLabels:
    """What the next NEXT labels are worth to the teacher, in points of top-1 accuracy, with a 95 % interval.

    Args:
        features: each source's features of the labeled pictures, [L, D].
        labels_L: their classes.
        units_L: number of each picture's set of copies or group, which is never divided.
        is_random_L: which of them were drawn at random; if these are LEAST or more, the fits are scored on them alone,
            else on all labels, and the record says so. None: all were.
    """
    n = len(labels_L)
    counts = np.unique(labels_L, return_counts=True)[1] if n else np.zeros(0)
    every_L = np.ones(n, dtype=bool)
    is_scored_L = every_L if is_random_L is None else np.asarray(is_random_L)
    biased = not is_scored_L.all() and int(is_scored_L.sum()) < LEAST
    is_scored_L = every_L if biased else is_scored_L
    record = MoreLabels(labels=n, next=NEXT, biased=biased)
    if n < LEAST or len(counts) < 2 or np.sort(counts)[-2] < 2:
        return record
    fits = [_fits(features, labels_L, units_L, is_scored_L=is_scored_L, seed=seed) for seed in range(REPEATS)]
    fits_J4 = np.array([fit for fit in fits if fit is not None])
    if len(fits_J4) < 2:
        return record
    gains_J = fits_J4[:, 1] - fits_J4[:, 0]
    error = max(1.0 - float(fits_J4[:, 1].mean()), 0.5 / n)
    trained, scored = (float(counts_J.mean()) for counts_J in (fits_J4[:, 2], fits_J4[:, 3]))
    deviation = float(gains_J.std(ddof=1)) * math.sqrt(1.0 / len(gains_J) + scored / trained)
    half = float(t.ppf(0.975, len(gains_J) - 1)) * deviation
    gain, low, high = (
        100.0 * _continued(error, doubling, trained=trained, labels=n)
        for doubling in (gains_J.mean(), gains_J.mean() - half, gains_J.mean() + half)
    )
    return MoreLabels(labels=n, next=NEXT, biased=biased, gain=gain, low=low, high=high)


def _fits(
    features: Mapping[str, Floats], labels_L: Rows, units_L: Rows, *, is_scored_L: np.ndarray, seed: int
) -> tuple[float, float, int, int] | None:
    """Fit teachers on half and on all of the labels but a fifth of those to score on; None if one has a single class.

    Returns:
        The accuracy of both on that fifth; the number of labels of the larger fit, and of those that it is scored on.
    """
    random = np.random.default_rng(seed)
    rank_U = random.permutation(int(units_L.max()) + 1)
    order = np.argsort(rank_U[units_L], kind="stable")
    scored_order = order[is_scored_L[order]]
    scored = scored_order[: max(1, round(SCORED * len(scored_order)))]
    scored = np.flatnonzero(np.isin(units_L, units_L[scored]) & is_scored_L)
    others = order[~np.isin(units_L[order], units_L[scored])][:MOST]
    accuracies = []
    for rows in (others[: len(others) // 2], others):
        if len(rows) < 2 or len(np.unique(labels_L[rows])) < 2:
            return None
        teacher = stacked(
            features={name: features_LD[np.concatenate([rows, scored])] for name, features_LD in features.items()},
            alphas=dict.fromkeys(features, 1.0),
            rows=np.arange(len(rows)),
            labels_L=labels_L[rows],
            classes=int(labels_L.max()) + 1,
            level=OFF,
            units_L=units_L[rows],
        )
        accuracies.append(float((teacher.probs_NC[len(rows) :].argmax(axis=1) == labels_L[scored]).mean()))
    return accuracies[0], accuracies[1], len(others), len(scored)


def _continued(error: float, doubling: float, *, trained: float, labels: int) -> float:
    """The fall of the error from `labels` to NEXT more.

    Args:
        error: with `trained` labels.
        doubling: how much more it was with half of them; negative if it was less.
        trained: number of labels of the larger fit.
        labels: number of labels that there are.
    """
    exponent = math.log2(max(error + doubling, 0.5 * error) / error)
    now = error * (trained / labels) ** exponent
    return float(now * (1.0 - (labels / (labels + NEXT)) ** exponent))
