"""Doubtful labels: those that a teacher, trained without them, contradicts with confidence.

The labeled images are divided into folds, and copies of a picture are never on two sides. The teacher of a fold is a
mixture of linear probes (`teachers.stacked`) on the labels of the other folds. Its probabilities are calibrated on the
labels of all folds: of the images that it is sure of at 0.95, at most about one in twenty has another label. Those are
the doubtful ones, some of them wrong and some hard.

L labeled images, M of a selection of them, D features of a source, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from edgedistill.distill.probes import Floats, Rows, log_likelihood, softmax
from edgedistill.distill.teachers import stacked
from edgedistill.similarity.chance import OFF

Flags = npt.NDArray[np.bool_]
FOLDS = 5
MOST_TRAINED = 1000  # labels of a fold's teacher: a ridge probe inverts a matrix of that many rows
LEAST_TRAINED = 4  # of a class, before further ones of others
CONFIDENT = 0.95
CHUNK = 4096
TEMPERATURES = tuple(float(temperature) for temperature in np.geomspace(0.25, 4.0, 25))


def out_of_fold(
    features: Mapping[str, Callable[[Rows], Floats]], labels_L: Rows, units_L: Rows, classes: int
) -> tuple[Floats, Flags]:
    """Calibrated probabilities of every image's classes by a teacher that was not trained on it, [L, C].

    Where a teacher was trained on no image of the label's class, they are uniform, and the label is not tested: nothing
    contradicts it. The second array says which labels were tested, bool [L].

    Args:
        features: for each source a function of positions [M] among the labeled images that returns features [M, D].
        labels_L: class of each image.
        units_L: number of each image's set of copies or group.
        classes: C.
    """
    folds_L = _folds(labels_L, units_L)
    is_tested_L = np.zeros(len(labels_L), dtype=bool)
    random, probs_LC = np.random.default_rng(0), np.full((len(labels_L), classes), 1.0 / classes)
    for fold in np.unique(folds_L):
        trained = _sample(random.permutation(np.flatnonzero(folds_L != fold)), labels_L)
        classes_trained = np.unique(labels_L[trained])
        if len(classes_trained) < 2:
            continue
        teacher = stacked(
            features={name: at_rows(trained) for name, at_rows in features.items()},
            alphas=dict.fromkeys(features, 1.0 / len(features)),
            rows=np.arange(len(trained)),
            labels_L=labels_L[trained],
            classes=classes,
            units_L=units_L[trained],
            level=OFF,
        )
        # a teacher that never saw a class contradicts all of its labels
        tested = np.flatnonzero((folds_L == fold) & np.isin(labels_L, classes_trained))
        is_tested_L[tested] = True
        for rows in np.array_split(tested, len(tested) // CHUNK + 1):
            probs_LC[rows] = teacher.predict({name: at_rows(rows) for name, at_rows in features.items()})
    return _calibrated(probs_LC, labels_L), is_tested_L


def doubtful(probs_LC: Floats, labels_L: Rows) -> Rows:
    """Positions of the images whose label is contradicted with confidence, the most confident first, int64."""
    contradicted = np.flatnonzero((probs_LC.argmax(axis=1) != labels_L) & (probs_LC.max(axis=1) >= CONFIDENT))
    return np.asarray(contradicted[np.argsort(-probs_LC[contradicted].max(axis=1), kind="stable")])


def _folds(labels_L: Rows, units_L: Rows) -> Rows:
    """The fold of each image; units are drawn by class, that of their first image, and are never divided."""
    _, first, unit_L = np.unique(units_L, return_index=True, return_inverse=True)
    order = np.random.default_rng(0).permutation(len(first))
    order = order[np.argsort(labels_L[first[order]], kind="stable")]
    fold_by_unit = np.empty(len(first), dtype=np.int64)
    fold_by_unit[order] = np.arange(len(first)) % FOLDS
    return np.asarray(fold_by_unit[unit_L.ravel()])


def _sample(rows_M: Rows, labels_L: Rows) -> Rows:
    """At most MOST_TRAINED of the rows, ascending: the first ones, but some of every class before others."""
    order = np.argsort(labels_L[rows_M], kind="stable")
    sorted_M = labels_L[rows_M][order]
    ranks_M = np.empty(len(rows_M), dtype=np.int64)
    ranks_M[order] = np.arange(len(rows_M)) - np.searchsorted(sorted_M, sorted_M)
    chosen = np.argsort(np.minimum(ranks_M, LEAST_TRAINED), kind="stable")[:MOST_TRAINED]
    return np.sort(rows_M[chosen])


def _calibrated(probs_LC: Floats, labels_L: Rows) -> Floats:
    """The probabilities at the temperature under which the labels are most likely."""
    logs_LC = np.log(np.maximum(probs_LC, 1e-9))
    best = max(TEMPERATURES, key=lambda temperature: log_likelihood(logs_LC / temperature, labels_L))
    return softmax(logs_LC / best)
