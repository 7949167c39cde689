"""How accuracy is measured: an official test split, labels left over, a hold-out, or folds. N images, C classes.

With few labels a hold-out wastes them: a hundred labels that test are a hundred that do not train, and the accuracy is
still not known. In folds every label trains the student that ships, and every label is scored by a student that was
trained without it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgedistill.agent import metrics
from edgedistill.agent.metrics import Z95
from edgedistill.errors import InputError
from edgedistill.labels.draws import UNLABELED
from edgedistill.labels.unit_intervals import gain_interval, share_interval
from edgedistill.records import Accuracy

Protocol = Literal["test", "holdout", "folds"]
Score = Literal["top1", "balanced"]
Choice = Literal["auto", "test", "holdout", "folds"]
HOLDOUT_IMAGES, HOLDOUT_PER_CLASS = 400, 20  # with fewer labels a hold-out is too small to measure by
MAX_FOLDS = 5
LEAST_IN_HALF = 2  # units of a class: with one, a probe has no penalty of its own
SEEDS = 30  # of divisions into folds, until each class is in two folds at least
RESAMPLES = 2000


def resolve(
    choice: Choice,
    counts_C: Sequence[int] | np.ndarray,
    *,
    has_test: bool,
    has_budget: bool,
    total: int | None = None,
    leaves_budget: bool = True,
) -> Protocol:
    """The protocol of a data set.

    "auto" takes the official test split; else, with a label budget, a hold-out if it leaves every class that many
    labels to train on, and one to test; else, without a budget, a hold-out where there are at least 400 labels and 20
    of every class; else folds. Labels of one group count once.

    Args:
        choice: the recipe's `data.protocol`.
        counts_C: labels of each class, those of one group counted once.
        has_test: whether there is an official test split.
        has_budget: whether the recipe limits the labels (`data.labels_per_class`).
        total: labels of all classes, those of one group counted once; by default the sum over the classes.
        leaves_budget: whether a hold-out leaves every class the label budget, and one label to test.

    Raises:
        InputError: the protocol needs an official test split and there is none, or the other way round.
    """
    if choice == "test" and not has_test:
        raise InputError("data.protocol: is test, and the data set has no test split", "set it to holdout or folds")
    if choice in {"holdout", "folds"} and has_test:
        raise InputError(f"data.protocol: is {choice}, and the data set has a test split", "set it to test or auto")
    if choice != "auto":
        return choice
    if has_test:
        return "test"
    if has_budget:
        return "holdout" if leaves_budget else "folds"
    many = (sum(counts_C) if total is None else total) >= HOLDOUT_IMAGES and min(counts_C) >= HOLDOUT_PER_CLASS
    return "holdout" if many else "folds"


@dataclass(frozen=True, kw_only=True)
class Folds:
    """Folds of the labeled images.

    Attributes:
        folds_N: the fold that scores each image; -1 for an image that always trains, or has no label.
        count: number of folds.
        unscored: classes of which every image trains: without its units, or those of such a class, too little is left.
        redrawn: number of divisions that were passed over, since they put all of a class into one fold.
    """

    folds_N: np.ndarray
    count: int
    unscored: tuple[int, ...]
    redrawn: int = 0

    def rows(self, fold: int | None) -> np.ndarray:
        """Rows of the images of a fold, int64, ascending."""
        return np.flatnonzero(self.folds_N == fold)


def assign_folds(
    labels_N: np.ndarray, units_N: np.ndarray, seed: int, *, most: int = MAX_FOLDS, least: int = 1
) -> Folds:
    """Divide the labeled images into at most `most` folds of whole units, each class spread over them.

    A class that is in one unit alone is never scored, and its unit always trains; where that leaves another class one
    unit, that class is not scored either. There are fewer folds where the rarest scored class is in fewer units. Every
    scored class has a unit outside each fold: divisions that put all of a class into one fold are passed over, and a
    class that none spreads is not scored. With `least` it is so many units instead of one.

    Args:
        labels_N: class of each image, -1 for none.
        units_N: unit of each image.
        seed: seed of the division.
        most: number of folds where no class is in fewer units.
        least: units of a scored class outside each fold.

    Raises:
        InputError: fewer than two classes can be scored.
    """
    labeled = np.flatnonzero(labels_N != UNLABELED)
    pairs = np.unique(np.stack([labels_N[labeled], units_N[labeled]], axis=1), axis=0)
    unscored: set[int] = set()
    while True:
        unscored, always = _unscored(pairs, unscored, least)
        scored = labeled[~np.isin(units_N[labeled], always)]
        if len(np.unique(labels_N[scored])) < 2:
            raise _unmeasurable(grouped=len(np.unique(units_N[labeled])) < len(labeled))
        folds_M, redrawn, undivided = _spread(labels_N[scored], units_N[scored], seed, most, least=least)
        if undivided is None:
            break
        unscored.add(undivided)
    folds_N = np.full(len(labels_N), -1, dtype=np.int64)
    folds_N[scored] = folds_M
    return Folds(folds_N=folds_N, count=int(folds_M.max()) + 1, unscored=tuple(sorted(unscored)), redrawn=redrawn)


def divide_in_halves(labels_L: np.ndarray, units_L: np.ndarray, seed: int) -> np.ndarray:
    """The half, 0 or 1, of each of L labeled images, int64 [L]: whole units, each class in at least two of each half.

    It is -1 for an image in neither half: of a class in fewer than four units or one that no division spreads so, or of
    a unit that holds an image of such a class.

    Args:
        labels_L: class of each image.
        units_L: unit of each image.
        seed: seed of the division.

    Raises:
        InputError: fewer than two classes can be divided.
    """
    return assign_folds(labels_L, units_L, seed, most=2, least=LEAST_IN_HALF).folds_N


def _unmeasurable(grouped: bool) -> InputError:
    trouble = "data: accuracy cannot be measured: fewer than two classes have"
    if not grouped:
        return InputError(f"{trouble} two labels that can be told apart", "label more images")
    return InputError(
        f"{trouble} labels in two groups (images that belong together or are copies of each other)",
        "label more images, from other groups",
    )


def _unscored(pairs: np.ndarray, unscored: set[int], least: int) -> tuple[set[int], np.ndarray]:
    """The classes that cannot be scored, among them those given, and the units that hold them.

    Args:
        pairs: the distinct classes and units of the labels, int64 [P, 2].
        unscored: classes that are not scored in any case.
        least: units of a scored class outside each fold; two folds at least divide it.
    """
    classes = np.unique(pairs[:, 0])
    while True:
        always = np.unique(pairs[np.isin(pairs[:, 0], sorted(unscored)), 1])
        left, unit_counts = np.unique(pairs[~np.isin(pairs[:, 1], always), 0], return_counts=True)
        more = {int(label) for label in np.setdiff1d(classes, left[unit_counts >= 2 * least])} - unscored
        if not more:
            return unscored, always
        unscored = unscored | more


def _spread(
    labels_M: np.ndarray, units_M: np.ndarray, seed: int, most: int, *, least: int
) -> tuple[np.ndarray, int, int | None]:
    """The fold of each of M scored images, int64 [M]; how many divisions were passed over; and None.

    Where every division leaves a class fewer than `least` units outside a fold: the class that most of them treat so,
    instead of None.
    """
    undivided_counts = Counter[int]()
    for attempt, folds_M in enumerate(divisions(labels_M, units_M, seed, most)):
        placed = np.unique(np.stack([labels_M, units_M, folds_M], axis=1), axis=0)
        classes, class_P = np.unique(placed[:, 0], return_inverse=True)
        units_CF = np.zeros((len(classes), folds_M.max() + 1), dtype=np.int64)
        np.add.at(units_CF, (class_P, placed[:, 2]), 1)
        outside_C = units_CF.sum(axis=1) - units_CF.max(axis=1)  # the fewest, over the folds
        if outside_C.min() >= least:
            return folds_M, attempt, None
        undivided_counts.update(int(label) for label in classes[outside_C < least])
    return folds_M, attempt, max(sorted(undivided_counts), key=undivided_counts.__getitem__)


def divisions(labels_M: np.ndarray, units_M: np.ndarray, seed: int, most: int) -> Iterator[np.ndarray]:
    """Divisions into at most `most` folds, int64 [M]: stratified ones, which may be alike, then as many by chance."""
    from sklearn.model_selection import StratifiedGroupKFold

    pairs = np.unique(np.stack([labels_M, units_M], axis=1), axis=0)
    n_splits = int(min(most, np.unique(pairs[:, 0], return_counts=True)[1].min()))
    for attempt in range(SEEDS):
        splitter = StratifiedGroupKFold(n_splits=n_splits, shuffle=True, random_state=seed + attempt)
        divided = splitter.split(np.zeros((len(labels_M), 1)), labels_M, groups=units_M)
        folds_M = np.zeros(len(labels_M), dtype=np.int64)
        for fold, (_, positions) in enumerate(divided):
            folds_M[positions] = fold
        yield np.unique(folds_M, return_inverse=True)[1].ravel()  # a fold may have stayed empty
    units, unit_M = np.unique(units_M, return_inverse=True)
    for attempt in range(SEEDS):
        yield np.random.default_rng([seed, attempt]).permutation(len(units))[unit_M.ravel()] % n_splits


def unit_accuracy(
    labels_N: np.ndarray, predicted_N: np.ndarray, units_N: np.ndarray, count: int | None = None
) -> Accuracy:
    """Accuracy over test images, or over those of `count` folds, with a 95 % interval that counts units.

    It is the interval of images alone where no unit holds several, and there is one student.
    """
    if count is None and _are_alone(units_N):
        return Accuracy(**metrics.accuracy(labels_N, predicted_N))
    return pooled_accuracy(labels_N, predicted_N, units_N, count)


def unit_drop(
    labels_N: np.ndarray, before_N: np.ndarray, after_N: np.ndarray, *, units_N: np.ndarray, score: Score
) -> tuple[float, float, float]:
    """`agent.metrics.drop`, with an interval that counts units where some hold several images."""
    if _are_alone(units_N):
        return metrics.drop(labels_N, before_N, after_N, by=score)
    return pooled_gain(labels_N, before_N, after_N, units_N=units_N, count=None, score=score)


def share_interval_of(
    labels_N: np.ndarray, is_right_N: np.ndarray, units_N: np.ndarray, count: int | None
) -> tuple[float, float]:
    """The interval of `unit_accuracy` of the share of right answers alone; (0, 1) without an image.

    Args:
        labels_N: class of each image; any one number where they are not drawn by class.
        is_right_N: whether the answer is right.
        units_N: unit of each image.
        count: number of folds; None for one student.
    """
    if not len(labels_N) or (count is None and _are_alone(units_N)):
        return metrics.wilson(int(is_right_N.sum()), len(labels_N))
    return pooled_accuracy(labels_N, np.where(is_right_N, labels_N, -1), units_N, count).top1_ci95


def _are_alone(units_N: np.ndarray) -> bool:
    return len(np.unique(units_N)) == len(units_N)


def _inflation(count: int | None) -> float:
    """By which the variance over `count` folds is multiplied; None for one student."""
    return 1.0 if count is None else 1.0 + count / (count - 1)


def pooled_accuracy(labels_N: np.ndarray, predicted_N: np.ndarray, units_N: np.ndarray, count: int | None) -> Accuracy:
    """Accuracy over the images of all folds, with a 95 % interval that knows that folds share training images.

    The sampling variance is that of whole units (labels/unit_intervals.py); where every image is a unit, it comes from
    a bootstrap within each class. The folds' students share most of their training images, so their errors are
    correlated: the variance is multiplied by 1 + k / (k - 1) for k folds (Nadeau and Bengio, Inference for the
    Generalization Error, Machine Learning 52, 2003).

    Args:
        labels_N: class of each scored image.
        predicted_N: the class that its fold's student predicts.
        units_N: unit of each scored image.
        count: number of folds; None for one student.
    """
    is_right_N, inflation = labels_N == predicted_N, _inflation(count)
    top1 = float(is_right_N.mean())
    balanced = float(np.mean([is_right_N[labels_N == label].mean() for label in np.unique(labels_N)]))
    if _are_alone(units_N):
        halves = [
            Z95 * float(np.sqrt(inflation * variance)) for variance in _variances_alone(labels_N, is_right_N, units_N)
        ]
        top1_ci95, balanced_ci95 = (
            (max(0.0, share - half), min(1.0, share + half))
            for share, half in zip((top1, balanced), halves, strict=True)
        )
    else:
        top1_ci95 = share_interval(is_right_N, np.zeros_like(labels_N), units_N, inflation)
        balanced_ci95 = share_interval(is_right_N, labels_N, units_N, inflation)
    return Accuracy(n=len(labels_N), top1=top1, top1_ci95=top1_ci95, balanced=balanced, balanced_ci95=balanced_ci95)


def _variances_alone(labels_N: np.ndarray, is_right_N: np.ndarray, units_N: np.ndarray) -> tuple[float, float]:
    """Variance of the top-1 and of the balanced accuracy by a bootstrap within each class: every image is a unit."""
    generator, order = np.random.default_rng(0), np.argsort(units_N)
    hits_RC, counts_C = [], []
    for label in np.unique(labels_N):
        hits_U = is_right_N[order][labels_N[order] == label]
        # a class that is all right or all wrong still contributes doubt (Agresti and Coull 1998)
        hits_U = np.concatenate([hits_U, [1, 1, 0, 0]]).astype(np.float64)
        # as many are drawn as there are images: with few of a class, more would make the mean of many classes too sure
        drawn_RU = generator.integers(len(hits_U), size=(RESAMPLES, len(hits_U) - 4))
        hits_RC.append(hits_U[drawn_RU].sum(axis=1))
        counts_C.append(len(hits_U) - 4)
    hits = np.stack(hits_RC, axis=1)
    return float(np.var(hits.sum(1) / sum(counts_C))), float(np.var((hits / counts_C).mean(1)))


def pooled_gain(
    labels_N: np.ndarray,
    predicted_N: np.ndarray,
    other_N: np.ndarray,
    *,
    units_N: np.ndarray,
    count: int | None,
    score: Score,
) -> tuple[float, float, float]:
    """What one method gains over another out of fold, on the same images, and its 95 % interval, as fractions.

    As `agent.metrics.drop`, but the images of a unit count together, and the variance is that of `pooled_accuracy`.

    Args:
        labels_N: class of each scored image.
        predicted_N: the class that the method's student of its fold predicts.
        other_N: the same of the other method.
        units_N: unit of each scored image.
        count: number of folds; None for one student.
        score: "top1", or "balanced" for the mean over the classes present.
    """
    if _are_alone(units_N):
        return metrics.drop(labels_N, predicted_N, other_N, score, inflation=_inflation(count))
    won_N = (predicted_N == labels_N).astype(np.float64) - (other_N == labels_N)
    strata_N = labels_N if score == "balanced" else np.zeros_like(labels_N)
    members_S = [strata_N == stratum for stratum in np.unique(strata_N)]
    gain = float(np.mean([won_N[member_N].mean() for member_N in members_S]))
    return gain, *gain_interval(won_N, strata_N, units_N, _inflation(count))
