"""Linear probes on source features: ridge regressions of the labels on one source's features.

With a few hundred labels and a thousand features the dual form of a ridge needs only the Gram matrix of the labeled
images, and its leave-one-out predictions have a closed form: temperature and penalty are chosen by them, on the labeled
images alone. Inputs and outputs are numpy arrays.

N images of the train store, L of them labeled, D features of a source, C target classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedistill.labels.units import representatives, several

Floats = NDArray[np.floating[Any]]
Rows = NDArray[np.int64]
PENALTIES = (0.01, 0.1, 1.0)  # for unit-length features
TEMPERATURES = tuple(float(temperature) for temperature in np.geomspace(0.02, 1.0, 16))


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A fitted probe: probabilities of every image [N, C], and leave-one-out probabilities of the labeled ones [L, C].

    Its scores are divided by `temperature`. Its probabilities for an image are the softmax of the image's inner
    products with the labeled images times `duals_LC`; `predict` computes them from features [M, D].
    """

    probs_NC: Floats
    loo_probs_LC: Floats
    temperature: float
    duals_LC: Floats
    predict: Callable[[Floats], Floats] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Labels:
    """The labeled images: their rows [L], classes [L], units [L] (None where each is alone), and C."""

    rows: Rows
    labels_L: Rows
    units_L: Rows | None
    classes: int

    @property
    def independent(self) -> Rows:
        """Positions of one image per unit and class."""
        if self.units_L is None:
            return np.arange(len(self.rows))
        return representatives(self.labels_L, self.units_L)

    def at(self, positions: Rows) -> Labels:
        """Some of them, as the rows from 0 of a matrix that holds no others."""
        units_R = None if self.units_L is None else self.units_L[positions]
        return replace(self, rows=np.arange(len(positions)), labels_L=self.labels_L[positions], units_L=units_R)


def feature_mean(features_ND: Floats) -> Floats:
    """The mean over all images, [D]."""
    return np.asarray(np.mean(features_ND, axis=0, dtype=np.float32))


def unit_directions(features_ND: Floats, mean_D: Floats) -> Floats:
    """Center features on the mean over all images and scale them to unit length, so that ridge compares angles only.

    A constant row stays zero.
    """
    centered = np.asarray(features_ND, dtype=np.float32) - mean_D
    length = np.linalg.norm(centered, axis=1, keepdims=True)
    informative = length > 1e-5 * np.linalg.norm(mean_D)  # below it are rounding errors of constant features
    return np.asarray(
        np.where(informative, centered, 0.0) / np.where(informative & (length > 0), length, 1.0), dtype=np.float32
    )


def probe(features_ND: Floats, rows: Rows, labels_L: Rows, classes: int, *, units_L: Rows | None = None) -> Probe:
    """Fit a ridge probe on one source, its penalty and temperature chosen by leave-one-out likelihood.

    With `units_L` whole units are left out, as in `probe_from_gram`.
    """
    mean_D = feature_mean(features_ND)
    directions_ND = unit_directions(features_ND, mean_D)
    gram_NL = (directions_ND @ directions_ND[rows].T).astype(np.float64)
    fitted = probe_from_gram(gram_NL, rows, labels_L, classes, units_L=units_L)
    weights_DC = directions_ND[rows].T @ fitted.duals_LC
    return replace(fitted, predict=lambda features_MD: softmax(unit_directions(features_MD, mean_D) @ weights_DC))


def class_balance(labels_L: Rows) -> Floats:
    """How often the class of each labeled image occurs, over the mean of all classes that occur, [L].

    An image that weighs one over this makes all classes count alike.
    """
    counts_C = np.bincount(labels_L)
    return np.asarray(counts_C[labels_L] * np.count_nonzero(counts_C) / len(labels_L))


def probe_from_gram(
    gram_NL: Floats,
    rows: Rows,
    labels_L: Rows,
    classes: int,
    *,
    units_L: Rows | None = None,
    mean_of_labeled: bool = False,
) -> Probe:
    """Fit a probe from inner products of all images with the labeled ones; classes have equal weight at any size.

    Args:
        gram_NL: inner products of features that are centered on a mean.
        rows: rows of the labeled images, [L].
        labels_L: their classes.
        classes: C.
        units_L: the group or set of copies of each labeled image: an image is left out with all of its unit, which
            would tell it; None where each is alone.
        mean_of_labeled: the mean is that of the labeled images, classes weighing alike. It is then part of what is
            fitted, the intercept of the ridge, and leave-one-out fits it again without the image. With a fixed mean of
            few images, the others would tell the one left out.
    """
    targets_LC = np.eye(classes)[labels_L] - 1.0 / classes
    balance_L = class_balance(labels_L)
    share_L = 1.0 / (balance_L * len(labels_L)) if mean_of_labeled else np.zeros(len(labels_L))
    members = [] if units_L is None else several(units_L)
    best: tuple[float, Floats, Floats, float] | None = None
    # leaving out the only image of a class leaves none to fit that class to: then there is no leave-one-out choice
    choosable = at_least_two_per_class(labels_L, units_L)
    penalties, temperatures = (PENALTIES, TEMPERATURES) if choosable else ((0.1,), (0.1,))
    for penalty in penalties:
        inverse_LL = np.linalg.inv(gram_NL[rows] + np.diag(penalty * balance_L))
        duals_LC = inverse_LL @ targets_LC
        # leave-one-out of a linear smoother: the residual divided by one minus the leverage (Hastie, Tibshirani and
        # Friedman 2009, eq. 7.64), here that of the weights and that of the mean
        spare_L = np.diag(inverse_LL) - share_L / (penalty * balance_L)
        residuals_LC = duals_LC / np.maximum(spare_L, 1e-12)[:, None]
        for positions in members:
            spare = (
                inverse_LL[np.ix_(positions, positions)] - (share_L / penalty)[positions] / balance_L[positions, None]
            )
            residuals_LC[positions] = np.linalg.lstsq(spare, duals_LC[positions])[0]
        loo_LC = (targets_LC - residuals_LC).round(9)  # ties stay ties
        for temperature in temperatures:
            likelihood = log_likelihood(loo_LC / temperature, labels_L)
            if best is None or likelihood > best[0]:
                best = likelihood, duals_LC / temperature, loo_LC / temperature, temperature
    assert best is not None, "there are penalties to try"
    return Probe(
        probs_NC=softmax(gram_NL @ best[1]), loo_probs_LC=softmax(best[2]), temperature=best[3], duals_LC=best[1]
    )


def at_least_two_per_class(labels_L: Rows, units_L: Rows | None = None) -> bool:
    """Whether every class with a labeled image has at least two, in two units."""
    kept_L = labels_L if units_L is None else labels_L[representatives(labels_L, units_L)]
    counts_C = np.bincount(kept_L)
    return bool(counts_C[counts_C > 0].min() >= 2)


def principal_components(directions_ND: Floats, dims: int) -> tuple[Floats, Floats]:
    """Project rows on their `dims` leading principal directions, [N, dims]; returns those, too, [D, dims].

    If `dims` is not below N and D, the rows are returned as they are.
    """
    from sklearn.utils.extmath import randomized_svd

    if dims >= min(directions_ND.shape):
        return directions_ND, np.eye(directions_ND.shape[1], dtype=np.float32)
    rows_NK, singular_values, directions_KD = randomized_svd(directions_ND, dims, n_iter=2, random_state=0)
    return np.asarray(rows_NK * singular_values, dtype=np.float32), np.asarray(directions_KD.T, dtype=np.float32)


def weighted_ridge(features_ND: Floats, weight_N: Floats, targets_NC: Floats, penalty: float) -> Floats:
    """Weights [D, C] of a ridge regression in which image n has weight weight_N[n], all above zero.

    Where features outnumber images, the same weights come from a system of N equations instead of D.
    """
    n, width = features_ND.shape
    if width > n:
        moments_NN = features_ND @ features_ND.T
        moments_NN[np.diag_indices(n)] += penalty / weight_N
        return np.asarray(features_ND.T @ np.linalg.solve(moments_NN, targets_NC))
    scaled_DN = (features_ND * weight_N[:, None]).T
    moments_DD = scaled_DN @ features_ND
    moments_DD[np.diag_indices_from(moments_DD)] += penalty
    return np.asarray(np.linalg.solve(moments_DD, scaled_DN @ targets_NC))


def as_sure(scores_NC: Floats, probs_NC: Floats) -> float:
    """The temperature at which scores are as sure, on average, as other answers to the same images."""
    wanted = float(probs_NC.max(axis=1).mean()) if len(probs_NC) else 1.0
    return min(TEMPERATURES, key=lambda degree: abs(float(softmax(scores_NC / degree).max(axis=1).mean()) - wanted))


def softmax(logits_NC: Floats) -> Floats:
    """Softmax over the classes of each row."""
    exponentials = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def log_likelihood(logits_LC: Floats, labels_L: Rows, weight_L: Floats | float = 1.0) -> float:
    """Mean log-probability of the labels, each with its weight."""
    likelihood_L = np.maximum(softmax(logits_LC)[np.arange(len(labels_L)), labels_L], 1e-12)
    return float((weight_L * np.log(likelihood_L)).mean())
