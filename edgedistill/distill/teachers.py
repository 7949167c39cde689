"""Teachers for the methods that distill in the target's own classes: mixtures of linear probes on source features.

Mixing weights are chosen by the probes' leave-one-out predictions, on the labeled images alone. Inputs and outputs are
numpy arrays.

N images of the train store, L of them labeled, D features of a source, C target classes, S sources.

    TEACHERS[name].fit(features, alphas, rows, labels, classes, **options) -> Teacher
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Protocol

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt

from edgedistill.agent import metrics
from edgedistill.distill.probes import (
    Floats,
    Labels,
    Rows,
    as_sure,
    at_least_two_per_class,
    feature_mean,
    principal_components,
    probe,
    probe_from_gram,
    softmax,
    unit_directions,
    weighted_ridge,
)
from edgedistill.labels.prior import Prior
from edgedistill.recipe.options import LATER
from edgedistill.similarity.chance import LEVEL, Level, answers_p_value, better_than_chance

Features = Mapping[str, Floats]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
ChanceLevel = Annotated[
    Level,
    Field(description="Level of the test that gives a source which is not told from chance no share; 1: no test."),
    LATER,
]
SourcesTuned = Annotated[
    NonNegativeInt,
    Field(description="Sources that are tuned to the labels, the best by probe: each is one more column of the mix."),
    LATER,
]
TUNED_VERSION = 2  # of teachers with tuned sources; 2: the temperature of the joint probe is not chosen by labels
NEGLIGIBLE_SHARE = 0.1  # a source with less than this share of an equal weight adds dimensions but no information


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Probabilities of the target's classes for every image, from probes on the sources' features.

    Attributes:
        probs_NC: probabilities; rows sum to 1.
        weights: share of each source in the mixture; they sum to 1.
        accuracy: balanced accuracy of the mixture on the labeled images, each left out (with tuned sources, its fold),
            before any use of the unlabeled ones. Weights, penalties and temperatures are chosen on the same
            predictions: with many sources and few labels it is optimistic (0.76 on pure noise with 16 sources and 40
            labels).
        predict: applies the same mixture to other images: from each source's features [M, D] to [M, C].
    """

    probs_NC: Floats
    weights: dict[str, float]
    accuracy: float
    predict: Callable[[Features], Floats]


@dataclass(frozen=True, kw_only=True)
class Column:
    """What one source says of the target's classes, to be mixed with others.

    Attributes:
        probs_NC: probabilities of every image.
        held_out_LC: those of the labeled images, each without its own label.
        predict: computes probabilities [M, C] from features [M, D].
    """

    probs_NC: Floats
    held_out_LC: Floats
    predict: Callable[[Floats], Floats]


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """Sources that were tuned to the labels, under names of their own.

    Attributes:
        folds_L: the fold of each labeled image, which each of them was tuned without, too; -1 for images in none.
        features: their features, [N, D].
        columns: what their heads say.
    """

    folds_L: Rows
    features: dict[str, Floats]
    columns: dict[str, Column]


class Tune(Protocol):
    """Tunes the first of some sources that can be tuned; None if none can."""

    def __call__(self, ranked: Sequence[str], most: int) -> Tuned | None:
        """Tune at most so many of the sources, which are ranked best first."""


def no_tuning(ranked: Sequence[str], most: int) -> None:
    """Tune no source."""


def similarity(
    features: Features,
    alphas: Mapping[str, float],
    rows: Rows,
    labels_L: Rows,
    classes: int,
    units_L: Rows | None = None,
) -> Teacher:
    """Mix one probe per source by the sources' weights (Vemulapalli et al. 2023, arXiv 2311.18237, for one source)."""
    columns = {
        name: _column(features[name], rows, labels_L, classes=classes, units_L=units_L)
        for name, alpha in alphas.items()
        if alpha > 0.0
    }
    return _mixed_teacher(columns, {name: alphas[name] for name in columns}, labels_L)


def stacked(
    features: Features,
    alphas: Mapping[str, float],
    rows: Rows,
    labels_L: Rows,
    classes: int,
    units_L: Rows | None = None,
    tune: Tune = no_tuning,
    *,
    shrink: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.1,
    level: ChanceLevel = LEVEL,
    tuned: SourcesTuned = 0,
) -> Teacher:
    """Mix one probe per source by the weights of largest likelihood (stacking, Wolpert 1992; H-ensemble 2312.12489).

    Args:
        features: features of each source, [N, D].
        alphas: used for the sources' names only.
        rows: rows of the labeled images, [L].
        labels_L: classes of the labeled images.
        classes: C.
        units_L: the group or set of copies of each labeled image; an image is left out with its unit. None where each
            is alone.
        tune: tunes sources to the labels (distill/tuning.py).
        shrink: strength of the prior towards equal weights: pseudo-observations over all sources, as a share of L.
        level: a source whose leave-one-out answers are not told from chance at this level (similarity/chance.py) has
            no share. If none is, the test decides nothing. With a class of one label there is no test.
        tuned: so many sources, those whose probes are best, are tuned to the labels and mixed with the others. Then
            the weights are chosen on folds for which every column is fitted anew, so that one that overfits weighs
            little; one that is not told from chance there weighs nothing. That takes three labels of every class.
    """
    labels = Labels(rows=rows, labels_L=labels_L, units_L=units_L, classes=classes)
    return _stack(features, alphas, labels, tune=tune, shrink=shrink, level=level, tuned=tuned)[0]


def _stack(
    features: Features,
    alphas: Mapping[str, float],
    labels: Labels,
    *,
    tune: Tune,
    shrink: float,
    level: float,
    tuned: int,
) -> tuple[Teacher, Features]:
    """The teacher `stacked`, and the features of all its columns."""
    rows, labels_L, units_L, classes = labels.rows, labels.labels_L, labels.units_L, labels.classes
    columns = {name: _column(features[name], rows, labels_L, classes=classes, units_L=units_L) for name in alphas}
    if not at_least_two_per_class(labels_L, units_L):
        return _mixed_teacher(columns, dict.fromkeys(columns, 1.0), labels_L), features
    apart = labels.independent  # answers to images of one unit are right or wrong together
    informed = better_than_chance({name: features[name][rows[apart]] for name in columns}, labels_L[apart], level)
    scored = np.arange(len(rows))
    if tuned and (tunings := tune(_ranked(informed, columns, labels_L), tuned)):
        scored = np.flatnonzero(tunings.folds_L >= 0)
        for name, column in columns.items():
            held_out_LC = _held_out(features[name], labels, folds_L=tunings.folds_L)
            columns[name] = replace(column, held_out_LC=held_out_LC)
        columns, features = {**columns, **tunings.columns}, {**features, **tunings.features}
        apart = np.intersect1d(apart, scored)
        for name, column in tunings.columns.items():
            if answers_p_value(column.held_out_LC[apart].argmax(axis=1), labels_L[apart]) <= level:
                informed = (*informed, name)
    likelihood_LS = np.stack([_likelihood(columns[name], labels_L)[scored] for name in informed], axis=1)
    weights = dict(zip(informed, mixing_weights(likelihood_LS, shrink).tolist(), strict=True))
    return _mixed_teacher(columns, {name: weights.get(name, 0.0) for name in columns}, labels_L, scored), features


def _column(features_ND: Floats, rows: Rows, labels_L: Rows, *, classes: int, units_L: Rows | None) -> Column:
    """The probe of a source."""
    fitted = probe(features_ND, rows, labels_L, classes, units_L=units_L)
    assert fitted.predict is not None, "the probe was fitted to features"
    return Column(probs_NC=fitted.probs_NC, held_out_LC=fitted.loo_probs_LC, predict=fitted.predict)


def _likelihood(column: Column, labels_L: Rows) -> Floats:
    """The probability that a column gives to the label of each labeled image, without it, [L]."""
    return np.asarray(column.held_out_LC[np.arange(len(labels_L)), labels_L])


def _ranked(names: Sequence[str], columns: Mapping[str, Column], labels_L: Rows) -> list[str]:
    """Some columns, the most likely labels first."""
    means = {name: np.log(np.maximum(_likelihood(columns[name], labels_L), 1e-12)).mean() for name in names}
    return sorted(names, key=lambda name: -means[name])


def _held_out(features_ND: Floats, labels: Labels, *, folds_L: Rows) -> Floats:
    """Probabilities [L, C] of the labeled images by probes without the fold of each; uniform where it is in none."""
    rows, labels_L, classes = labels.rows, labels.labels_L, labels.classes
    directions_LD = unit_directions(features_ND[rows], feature_mean(features_ND))
    gram_LL = (directions_LD @ directions_LD.T).astype(np.float64)
    probs_LC = np.full((len(rows), classes), 1.0 / classes)
    for fold in np.unique(folds_L[folds_L >= 0]):
        others = np.flatnonzero(folds_L != fold)
        units_O = None if labels.units_L is None else labels.units_L[others]
        fitted = probe_from_gram(gram_LL[:, others], others, labels_L[others], classes, units_L=units_O)
        probs_LC[folds_L == fold] = fitted.probs_NC[folds_L == fold]
    return probs_LC


def _mixed_teacher(
    columns: Mapping[str, Column], weights: Mapping[str, float], labels_L: Rows, scored: Rows | None = None
) -> Teacher:
    """The mixture of columns; `scored` are the labeled images that are scored, if not all."""
    total = sum(weights.values())
    shares = {name: float(weight / total) for name, weight in weights.items()}
    mixed = {name: share for name, share in shares.items() if share > 0.0}
    probs_NC = sum(share * columns[name].probs_NC for name, share in mixed.items())
    held_out_LC = np.asarray(sum(share * columns[name].held_out_LC for name, share in mixed.items()))

    def predict(other_features: Features) -> Floats:
        weighted_probs = (share * columns[name].predict(other_features[name]) for name, share in mixed.items())
        return np.asarray(sum(weighted_probs), dtype=np.float32)

    scored = np.arange(len(labels_L)) if scored is None else scored
    accuracy = metrics.balanced(labels_L[scored], held_out_LC[scored].argmax(axis=1))[0]
    return Teacher(probs_NC=np.asarray(probs_NC), weights=shares, accuracy=accuracy, predict=predict)


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
    units_L: Rows | None = None,
    tune: Tune = no_tuning,
    *,
    rounds: PositiveInt = 5,
    weight: Positive = 0.2,
    penalty: Positive = 0.5,
    dims: PositiveInt = 128,
    shrink: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.1,
    level: ChanceLevel = LEVEL,
    tuned: SourcesTuned = 0,
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
        units_L: as for `stacked`.
        tune: as for `stacked`; the joint probe has the features of the tuned sources, too.
        rounds: rounds of self-training.
        weight: weight of an unlabeled image; a labeled one has weight 1.
        penalty: ridge penalty of the joint probe.
        dims: number of principal components that each source is reduced to.
        shrink: as for `stacked`.
        level: as for `stacked`.
        tuned: as for `stacked`.
    """
    labels = Labels(rows=rows, labels_L=labels_L, units_L=units_L, classes=classes)
    first, features = _stack(features, alphas, labels, tune=tune, shrink=shrink, level=level, tuned=tuned)
    reduced = _reduced(features, first.weights, dims)
    joint_ND = _joined({name: reduced_ND for name, (_, reduced_ND, _) in reduced.items()}, first.weights)
    is_tuned = first.weights.keys() != alphas.keys()
    weight_N = np.full(len(joint_ND), weight, dtype=np.float32)
    weight_N[rows] = 1.0
    probs_NC, temperature = first.probs_NC, 0.0
    for _ in range(rounds):
        targets_NC = probs_NC.astype(np.float32)
        targets_NC[rows] = np.eye(classes)[labels_L]
        weights_DC = weighted_ridge(joint_ND, weight_N, targets_NC - 1.0 / classes, penalty)
        scores_NC = joint_ND @ weights_DC
        temperature = temperature or _temperature(joint_ND, scores_NC, probs_NC, labels=labels, is_tuned=is_tuned)
        probs_NC = softmax(scores_NC / temperature)

    def predict(other_features: Features) -> Floats:
        projected_MD = _joined(_projected(other_features, reduced), first.weights)
        return np.asarray(softmax(projected_MD @ weights_DC / temperature), dtype=np.float32)

    return replace(first, probs_NC=probs_NC, predict=predict)


def _temperature(joint_ND: Floats, scores_NC: Floats, probs_NC: Floats, *, labels: Labels, is_tuned: bool) -> float:
    """That of the joint probe: by leave-one-out, or, as tuned features know the labels, as sure as the mixture."""
    if is_tuned:
        return as_sure(np.delete(scores_NC, labels.rows, axis=0), np.delete(probs_NC, labels.rows, axis=0))
    gram_NL = (joint_ND @ joint_ND[labels.rows].T).astype(np.float64)
    return probe_from_gram(gram_NL, labels.rows, labels.labels_L, labels.classes, units_L=labels.units_L).temperature


def _reduced(features: Features, weights: Mapping[str, float], dims: int) -> dict[str, tuple[Floats, Floats, Floats]]:
    """Mean [D], principal components [N, dims] and directions [D, dims] of the sources with a share worth it."""
    least = NEGLIGIBLE_SHARE / sum(share > 0.0 for share in weights.values())
    means = {name: feature_mean(features[name]) for name, share in weights.items() if share >= least}
    return {
        name: (mean_D, *principal_components(unit_directions(features[name], mean_D), dims))
        for name, mean_D in means.items()
    }


def _projected(features: Features, reduced: Mapping[str, tuple[Floats, Floats, Floats]]) -> Features:
    """Other images' features of the sources, [M, D], on the directions of `reduced`."""
    return {
        name: unit_directions(features[name], mean_D) @ directions_DK
        for name, (mean_D, _, directions_DK) in reduced.items()
    }


def _joined(parts: Features, weights: Mapping[str, float]) -> Floats:
    """The sources' features side by side, each times the root of its source's share."""
    return np.concatenate([np.sqrt(weights[name]) * part_MD for name, part_MD in parts.items()], axis=1)


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


@dataclass(frozen=True, kw_only=True)
class TeacherKind:
    """A way to mix the sources' probes.

    Attributes:
        fit: from features, source weights and labels to a teacher; keyword-only parameters are recipe options.
        version: raised when it gives another teacher for the same input, as Method.version.
        tunes: whether `fit` takes `tune`, too, to tune sources to the labels.
        grouped: whether `fit` takes `units_L`, too, to leave an image out with its group.
    """

    fit: Callable[..., Teacher]
    version: int = 1
    tunes: bool = False
    grouped: bool = False


TEACHERS: dict[str, TeacherKind] = {
    "similarity": TeacherKind(fit=similarity, grouped=True),
    "stacked": TeacherKind(fit=stacked, tunes=True, grouped=True),
    "selftrained": TeacherKind(fit=selftrained, tunes=True, grouped=True),
}
