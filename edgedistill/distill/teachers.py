"""The teacher of the methods that distil in the target's own classes: probes on the sources' features, mixed.

A probe is a ridge regression of the labels on one source's features. With a few hundred labels and a thousand features
its dual form needs the Gram matrix of the labeled images alone, and its leave-one-out predictions come for nothing:
temperature, penalty and mixing weights are chosen by them, inside the labeled images. Numpy in, numpy out.

N images of the train store, L of them labeled, D features of a source, C target classes, S sources.

    TEACHERS[name].fit(features, alphas, rows, labels, classes, **options) -> Teacher
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from edgedistill.agent import metrics

Floats = NDArray[np.floating[Any]]
Rows = NDArray[np.int64]
Features = Mapping[str, Floats]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
PENALTIES = (0.01, 0.1, 1.0)  # of unit-length features
TEMPERATURES = tuple(float(one) for one in np.geomspace(0.02, 1.0, 16))
NEGLIGIBLE = 0.1  # a source with less than this share of an equal weight adds dimensions and no knowledge


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """What the sources say of every image in the target's classes.

    Attributes:
        probs_NC: rows sum to 1.
        weights: share of each source in it; they sum to 1.
        accuracy: leave-one-out balanced accuracy of the mixed probes on the labeled images, before any use of the
            unlabeled ones. Weights, penalties and temperatures are chosen on the same answers: with many sources and
            few labels it flatters (0.76 on pure noise with 16 sources and 40 labels).
        answer: what the same probes say of other images: from each source's features [M, D] to [M, C].
    """

    probs_NC: Floats
    weights: dict[str, float]
    accuracy: float
    answer: Callable[[Features], Floats]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One fitted probe: probabilities of every image [N, C], and of the labeled ones by the others alone [L, C].

    `temperature` is what its scores were divided by. What it says of an image is the softmax of the image's inner
    products with the labeled ones times `duals_LC`; `answer` does that from features [M, D].
    """

    probs_NC: Floats
    held_LC: Floats
    temperature: float
    duals_LC: Floats
    answer: Callable[[Floats], Floats] | None = None


def similarity(features: Features, alphas: Mapping[str, float], rows: Rows, labels_L: Rows, classes: int) -> Teacher:
    """A probe a source, mixed by the sources' weights (Vemulapalli et al. 2023, arXiv 2311.18237, for one source)."""
    probes = {name: probe(features[name], rows, labels_L, classes) for name, alpha in alphas.items() if alpha > 0.0}
    return _mixed(probes, {name: alphas[name] for name in probes}, labels_L)


def stacked(
    features: Features,
    alphas: Mapping[str, float],
    rows: Rows,
    labels_L: Rows,
    classes: int,
    *,
    shrink: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.1,
) -> Teacher:
    """A probe a source, mixed by weights that explain the labels best (stacking, Wolpert 1992; H-ensemble 2312.12489).

    Args:
        features: per source, [N, D].
        alphas: not used but for the sources' names.
        rows: rows of the labeled images, [L].
        labels_L: their classes.
        classes: C.
        shrink: strength of the pull towards equal weights: pseudo-observations over all sources, as a share of L.
    """
    probes = {name: probe(features[name], rows, labels_L, classes) for name in alphas}
    likelihood_LS = np.stack([one.held_LC[np.arange(len(rows)), labels_L] for one in probes.values()], axis=1)
    weights_S = mixing_weights(likelihood_LS, shrink) if several_of_each(labels_L) else np.ones(len(probes))
    return _mixed(probes, dict(zip(probes, weights_S, strict=True)), labels_L)


def _mixed(probes: Mapping[str, Probe], weights: Mapping[str, float], labels_L: Rows) -> Teacher:
    total = sum(weights.values())
    shares = {name: float(weight / total) for name, weight in weights.items()}
    probs_NC = sum(share * probes[name].probs_NC for name, share in shares.items())
    held_LC = sum(share * probes[name].held_LC for name, share in shares.items())

    def answer(others: Features) -> Floats:
        said = (share * _answer(probes[name], others[name]) for name, share in shares.items())
        return np.asarray(sum(said), dtype=np.float32)

    accuracy = metrics.balanced(labels_L, np.asarray(held_LC).argmax(axis=1))[0]
    return Teacher(probs_NC=np.asarray(probs_NC), weights=shares, accuracy=accuracy, answer=answer)


def _answer(probe: Probe, features_MD: Floats) -> Floats:
    assert probe.answer is not None, "it was made of features"
    return probe.answer(features_MD)


def mixing_weights(likelihood_LS: Floats, shrink: float, rounds: int = 200) -> Floats:
    """Weights [S] of a mixture that make the labels most likely, by expectation maximisation; concave, so one optimum.

    Args:
        likelihood_LS: probability that each source gives to each image's own label.
        shrink: Dirichlet prior towards equal weights: pseudo-observations over all sources, as a share of L.
        rounds: of the iteration.
    """
    count, sources = likelihood_LS.shape
    weights_S = np.full(sources, 1.0 / sources)
    for _ in range(rounds):
        mass_LS = likelihood_LS * weights_S
        owed_S = (mass_LS / np.maximum(mass_LS.sum(axis=1, keepdims=True), 1e-12)).sum(axis=0)
        weights_S = (owed_S + shrink * count / sources) / (owed_S.sum() + shrink * count)
    return weights_S


def middle(features_ND: Floats) -> Floats:
    """The mean over all images, [D]."""
    return np.asarray(np.mean(features_ND, axis=0, dtype=np.float32))


def directions(features_ND: Floats, middle_D: Floats) -> Floats:
    """Features as unit vectors around the mean over all images: ridge then compares images by angle, not by length.

    A constant row stays zero.
    """
    centred = np.asarray(features_ND, dtype=np.float32) - middle_D
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    told = length > 1e-5 * np.linalg.norm(middle_D)  # what rounding leaves of constant features tells nothing
    return np.asarray(np.where(told, centred, 0.0) / np.where(told & (length > 0), length, 1.0), dtype=np.float32)


def probe(features_ND: Floats, rows: Rows, labels_L: Rows, classes: int) -> Probe:
    """A ridge probe on one source, its penalty and temperature chosen by leave-one-out likelihood."""
    middle_D = middle(features_ND)
    units_ND = directions(features_ND, middle_D)
    found = probe_of_gram((units_ND @ units_ND[rows].T).astype(np.float64), rows, labels_L, classes)
    weights_DC = units_ND[rows].T @ found.duals_LC
    return replace(found, answer=lambda others_MD: softmax(directions(others_MD, middle_D) @ weights_DC))


def probe_of_gram(gram_NL: Floats, rows: Rows, labels_L: Rows, classes: int) -> Probe:
    """The same from inner products of all images with the labeled ones; classes weigh the same, however many images."""
    counts_C = np.bincount(labels_L, minlength=classes)
    wanted_LC = np.eye(classes)[labels_L] - 1.0 / classes
    balance_L = counts_C[labels_L] * np.count_nonzero(counts_C) / len(labels_L)
    best: tuple[float, Floats, Floats, float] | None = None
    # left out, the only image of its class leaves nothing to know the class by: there is nothing to choose with then
    choice = (PENALTIES, TEMPERATURES) if several_of_each(labels_L) else ((0.1,), (0.1,))
    for penalty in choice[0]:
        inverse_LL = np.linalg.inv(gram_NL[rows] + np.diag(penalty * balance_L))
        duals_LC = inverse_LL @ wanted_LC
        # leave-one-out of a linear smoother, in closed form (Rasmussen and Williams 2006, eq. 5.12)
        held_LC = (wanted_LC - duals_LC / np.diag(inverse_LL)[:, None]).round(9)  # a tie stays one
        for temperature in choice[1]:
            found = log_likelihood(held_LC / temperature, labels_L)
            if best is None or found > best[0]:
                best = found, duals_LC / temperature, held_LC / temperature, temperature
    assert best is not None, "there are penalties to try"
    return Probe(probs_NC=softmax(gram_NL @ best[1]), held_LC=softmax(best[2]), temperature=best[3], duals_LC=best[1])


def several_of_each(labels_L: Rows) -> bool:
    """Does every class that has a labeled image have two?"""
    counts_C = np.bincount(labels_L)
    return bool(counts_C[counts_C > 0].min() >= 2)


def softmax(logits_NC: Floats) -> Floats:
    """Rows to probabilities."""
    raised = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def log_likelihood(logits_LC: Floats, labels_L: Rows) -> float:
    """Mean log-probability of the labels."""
    return float(np.log(np.maximum(softmax(logits_LC)[np.arange(len(labels_L)), labels_L], 1e-12)).mean())


def selftrained(
    features: Features,
    alphas: Mapping[str, float],
    rows: Rows,
    labels_L: Rows,
    classes: int,
    *,
    rounds: PositiveInt = 5,
    weight: Positive = 0.2,
    penalty: Positive = 0.5,
    dims: PositiveInt = 128,
    shrink: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.1,
) -> Teacher:
    """`stacked`, and then one joint probe on all sources' features that learns from its own answers, too.

    Self-training in feature space: each round fits a ridge probe to the labels and, with less weight, to the last
    round's probabilities for the unlabeled images (after Yarowsky 1995; Vemulapalli et al. 2023 stop at one round).

    Args:
        features: per source, [N, D]; every image but the labeled ones counts as unlabeled.
        alphas: not used but for the sources' names.
        rows: rows of the labeled images, [L].
        labels_L: their classes.
        classes: C.
        rounds: of self-training.
        weight: of an unlabeled image, a labeled one's being 1.
        penalty: of the joint probe.
        dims: leading principal directions that each source is reduced to.
        shrink: as for `stacked`.
    """
    first = stacked(features, alphas, rows=rows, labels_L=labels_L, classes=classes, shrink=shrink)
    middles = {
        name: middle(features[name])
        for name, share in first.weights.items()
        if share >= NEGLIGIBLE / len(first.weights)
    }
    reduced = {name: leading(directions(features[name], middle_D), dims) for name, middle_D in middles.items()}
    joint_ND = np.concatenate([np.sqrt(first.weights[name]) * one for name, (one, _) in reduced.items()], axis=1)
    known_LC = np.eye(classes, dtype=np.float32)[labels_L]
    weight_N = np.full(len(joint_ND), weight, dtype=np.float32)
    weight_N[rows] = 1.0
    temperature = probe_of_gram((joint_ND @ joint_ND[rows].T).astype(np.float64), rows, labels_L, classes).temperature
    probs_NC = first.probs_NC
    for _ in range(rounds):
        wanted_NC = probs_NC.astype(np.float32)
        wanted_NC[rows] = known_LC
        weights_DC = weighted_ridge(joint_ND, weight_N, wanted_NC - 1.0 / classes, penalty)
        probs_NC = softmax(joint_ND @ weights_DC / temperature)

    def answer(others: Features) -> Floats:
        seen = [
            np.sqrt(first.weights[name]) * (directions(others[name], middle_D) @ reduced[name][1])
            for name, middle_D in middles.items()
        ]
        return np.asarray(softmax(np.concatenate(seen, axis=1) @ weights_DC / temperature), dtype=np.float32)

    return Teacher(probs_NC=probs_NC, weights=first.weights, accuracy=first.accuracy, answer=answer)


def leading(units_ND: Floats, dims: int) -> tuple[Floats, Floats]:
    """The rows in their `dims` leading principal directions, [N, dims], and those, [D, dims]; all where D is small."""
    from sklearn.utils.extmath import randomized_svd

    if dims >= min(units_ND.shape):
        return units_ND, np.eye(units_ND.shape[1], dtype=np.float32)
    left, sizes, right = randomized_svd(units_ND, dims, n_iter=2, random_state=0)
    return np.asarray(left * sizes, dtype=np.float32), np.asarray(right.T, dtype=np.float32)


def weighted_ridge(features_ND: Floats, weight_N: Floats, wanted_NC: Floats, penalty: float) -> Floats:
    """Weights [D, C] of a ridge regression in which image n counts weight_N[n] times."""
    scaled_DN = (features_ND * weight_N[:, None]).T
    moments_DD = scaled_DN @ features_ND
    moments_DD[np.diag_indices_from(moments_DD)] += penalty
    return np.asarray(np.linalg.solve(moments_DD, scaled_DN @ wanted_NC))


@dataclass(frozen=True, kw_only=True)
class TeacherKind:
    """A way to mix the sources' probes: from features, weights and labels to a teacher; keyword-only are options."""

    fit: Callable[..., Teacher]


TEACHERS: dict[str, TeacherKind] = {
    "similarity": TeacherKind(fit=similarity),
    "stacked": TeacherKind(fit=stacked),
    "selftrained": TeacherKind(fit=selftrained),
}
