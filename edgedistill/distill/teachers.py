"""Teachers for the methods that distill in the target's own classes: mixtures of linear probes on source features.

Mixing weights are chosen by the probes' leave-one-out predictions, on the labeled images alone. Inputs and outputs are
numpy arrays.

N images of the train store, L of them labeled, D features of a source, C target classes, S sources.

    TEACHERS[name].fit(features, alphas, rows, labels, classes, **options) -> Teacher
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from pydantic import Field, PositiveInt

from edgedistill.agent import metrics
from edgedistill.distill.probes import (
    Floats,
    Probe,
    Rows,
    at_least_two_per_class,
    feature_mean,
    probe,
    probe_from_gram,
    softmax,
    unit_directions,
)
from edgedistill.labels.prior import Prior
from edgedistill.recipe.options import LATER
from edgedistill.similarity.chance import LEVEL, Level, better_than_chance

Features = Mapping[str, Floats]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
ChanceLevel = Annotated[
    Level,
    Field(description="Level of the test that gives a source which is not told from chance no share; 1: no test."),
    LATER,
]
NEGLIGIBLE_SHARE = 0.1  # a source with less than this share of an equal weight adds dimensions but no information


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Probabilities of the target's classes for every image, from probes on the sources' features.

    Attributes:
        probs_NC: probabilities; rows sum to 1.
        weights: share of each source in the mixture; they sum to 1.
        accuracy: leave-one-out balanced accuracy of the mixed probes on the labeled images, before any use of the
            unlabeled ones. Weights, penalties and temperatures are chosen on the same predictions: with many sources
            and few labels it is optimistic (0.76 on pure noise with 16 sources and 40 labels).
        predict: applies the same probes to other images: from each source's features [M, D] to [M, C].
    """

    probs_NC: Floats
    weights: dict[str, float]
    accuracy: float
    predict: Callable[[Features], Floats]


def similarity(features: Features, alphas: Mapping[str, float], rows: Rows, labels_L: Rows, classes: int) -> Teacher:
    """Mix one probe per source by the sources' weights (Vemulapalli et al. 2023, arXiv 2311.18237, for one source)."""
    probes = {name: probe(features[name], rows, labels_L, classes) for name, alpha in alphas.items() if alpha > 0.0}
    return _mixed_teacher(probes, {name: alphas[name] for name in probes}, labels_L)


def stacked(
    features: Features,
    alphas: Mapping[str, float],
    rows: Rows,
    labels_L: Rows,
    classes: int,
    *,
    shrink: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.1,
    level: ChanceLevel = LEVEL,
) -> Teacher:
    """Mix one probe per source by the weights of largest likelihood (stacking, Wolpert 1992; H-ensemble 2312.12489).

    Args:
        features: features of each source, [N, D].
        alphas: used for the sources' names only.
        rows: rows of the labeled images, [L].
        labels_L: classes of the labeled images.
        classes: C.
        shrink: strength of the prior towards equal weights: pseudo-observations over all sources, as a share of L.
        level: a source whose leave-one-out answers are not told from chance at this level (similarity/chance.py) has
            no share. If none is, the test decides nothing. With a class of one label there is no test.
    """
    probes = {name: probe(features[name], rows, labels_L, classes) for name in alphas}
    if not at_least_two_per_class(labels_L):
        return _mixed_teacher(probes, dict.fromkeys(probes, 1.0), labels_L)
    informed = better_than_chance({name: features[name][rows] for name in probes}, labels_L, level)
    likelihood_LS = np.stack([probes[name].loo_probs_LC[np.arange(len(rows)), labels_L] for name in informed], axis=1)
    weights = dict(zip(informed, mixing_weights(likelihood_LS, shrink).tolist(), strict=True))
    return _mixed_teacher(probes, {name: weights.get(name, 0.0) for name in probes}, labels_L)


def _mixed_teacher(probes: Mapping[str, Probe], weights: Mapping[str, float], labels_L: Rows) -> Teacher:
    total = sum(weights.values())
    shares = {name: float(weight / total) for name, weight in weights.items()}
    mixed = {name: share for name, share in shares.items() if share > 0.0}
    probs_NC = sum(share * probes[name].probs_NC for name, share in mixed.items())
    loo_probs_LC = sum(share * probes[name].loo_probs_LC for name, share in mixed.items())

    def predict(other_features: Features) -> Floats:
        weighted_probs = (share * _predict(probes[name], other_features[name]) for name, share in mixed.items())
        return np.asarray(sum(weighted_probs), dtype=np.float32)

    accuracy = metrics.balanced(labels_L, np.asarray(loo_probs_LC).argmax(axis=1))[0]
    return Teacher(probs_NC=np.asarray(probs_NC), weights=shares, accuracy=accuracy, predict=predict)


def _predict(probe: Probe, features_MD: Floats) -> Floats:
    assert probe.predict is not None, "the probe was fitted to features"
    return probe.predict(features_MD)


def mixing_weights(likelihood_LS: Floats, shrink: float, rounds: int = 200) -> Floats:
    """Maximum-likelihood mixture weights [S] by expectation maximization; the problem is concave, so one optimum.

    Args:
        likelihood_LS: probability that each source gives to each image's own label.
        shrink: Dirichlet prior towards equal weights: pseudo-observations over all sources, as a share of L.
        rounds: number of iterations.
    """
    count, sources = likelihood_LS.shape
    weights_S = np.full(sources, 1.0 / sources)
    for _ in range(rounds):
        mass_LS = likelihood_LS * weights_S
        expected_S = (mass_LS / np.maximum(mass_LS.sum(axis=1, keepdims=True), 1e-12)).sum(axis=0)
        weights_S = (expected_S + shrink * count / sources) / (expected_S.sum() + shrink * count)
    return weights_S


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
    level: ChanceLevel = LEVEL,
) -> Teacher:
    """`stacked`, followed by self-training of one joint probe on all sources' features.

    Self-training in feature space: each round fits a ridge probe to the labels and, with less weight, to the last
    round's probabilities for the unlabeled images (after Yarowsky 1995; Vemulapalli et al. 2023 stop at one round).

    Args:
        features: features of each source, [N, D]; every image but the labeled ones counts as unlabeled.
        alphas: used for the sources' names only.
        rows: rows of the labeled images, [L].
        labels_L: classes of the labeled images.
        classes: C.
        rounds: rounds of self-training.
        weight: weight of an unlabeled image; a labeled one has weight 1.
        penalty: ridge penalty of the joint probe.
        dims: number of principal components that each source is reduced to.
        shrink: as for `stacked`.
        level: as for `stacked`.
    """
    first = stacked(features, alphas, rows=rows, labels_L=labels_L, classes=classes, shrink=shrink, level=level)
    reduced = _reduced(features, first.weights, dims)
    joint_ND = np.concatenate(
        [np.sqrt(first.weights[name]) * reduced_ND for name, (_, reduced_ND, _) in reduced.items()], axis=1
    )
    labels_LC = np.eye(classes, dtype=np.float32)[labels_L]
    weight_N = np.full(len(joint_ND), weight, dtype=np.float32)
    weight_N[rows] = 1.0
    temperature = probe_from_gram((joint_ND @ joint_ND[rows].T).astype(np.float64), rows, labels_L, classes).temperature
    probs_NC = first.probs_NC
    for _ in range(rounds):
        targets_NC = probs_NC.astype(np.float32)
        targets_NC[rows] = labels_LC
        weights_DC = weighted_ridge(joint_ND, weight_N, targets_NC - 1.0 / classes, penalty)
        probs_NC = softmax(joint_ND @ weights_DC / temperature)

    def predict(other_features: Features) -> Floats:
        projected = [
            np.sqrt(first.weights[name]) * (unit_directions(other_features[name], mean_D) @ directions_DK)
            for name, (mean_D, _, directions_DK) in reduced.items()
        ]
        return np.asarray(softmax(np.concatenate(projected, axis=1) @ weights_DC / temperature), dtype=np.float32)

    return Teacher(probs_NC=probs_NC, weights=first.weights, accuracy=first.accuracy, predict=predict)


def _reduced(features: Features, weights: Mapping[str, float], dims: int) -> dict[str, tuple[Floats, Floats, Floats]]:
    """Mean [D], principal components [N, dims] and directions [D, dims] of the sources with a share worth it."""
    least = NEGLIGIBLE_SHARE / sum(share > 0.0 for share in weights.values())
    means = {name: feature_mean(features[name]) for name, share in weights.items() if share >= least}
    return {
        name: (mean_D, *principal_components(unit_directions(features[name], mean_D), dims))
        for name, mean_D in means.items()
    }


def adjusted(teacher: Teacher, prior: Prior, rows: Rows) -> Teacher:
    """The teacher with its answers shifted to the prior by those on the images `rows`, which were drawn at it.

    Where these do not tell the shift, it counts as trained on classes of equal shares, as its probes are.
    """
    logits_NC = np.log(np.maximum(teacher.probs_NC, 1e-12))
    shift_C = prior.shift(logits_NC[rows])
    if shift_C is None:
        shift_C = np.log(prior.aim)

    def predict(features: Features) -> Floats:
        return np.asarray(softmax(np.log(np.maximum(teacher.predict(features), 1e-12)) + shift_C), dtype=np.float32)

    return replace(teacher, probs_NC=softmax(logits_NC + shift_C), predict=predict)


def principal_components(units_ND: Floats, dims: int) -> tuple[Floats, Floats]:
    """Project rows on their `dims` leading principal directions, [N, dims]; returns those, too, [D, dims].

    If `dims` is not below N and D, the rows are returned as they are.
    """
    from sklearn.utils.extmath import randomized_svd

    if dims >= min(units_ND.shape):
        return units_ND, np.eye(units_ND.shape[1], dtype=np.float32)
    rows_NK, singular_values, directions_KD = randomized_svd(units_ND, dims, n_iter=2, random_state=0)
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


@dataclass(frozen=True, kw_only=True)
class TeacherKind:
    """A way to mix the sources' probes.

    Attributes:
        fit: from features, source weights and labels to a teacher; keyword-only parameters are recipe options.
        version: raised when it gives another teacher for the same input, as Method.version.
    """

    fit: Callable[..., Teacher]
    version: int = 1


TEACHERS: dict[str, TeacherKind] = {
    "similarity": TeacherKind(fit=similarity),
    "stacked": TeacherKind(fit=stacked),
    "selftrained": TeacherKind(fit=selftrained),
}
