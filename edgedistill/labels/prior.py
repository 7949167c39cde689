"""The prior: how often each class occurs among the pictures that a student will see, and what follows from it.

A net that was trained on some class shares answers as if they held everywhere. Logit adjustment (Menon et al.,
"Long-tail learning via logit adjustment", ICLR 2021) shifts each class's logit by the logarithm of the wanted share
over the share that was trained on. Nobody knows the shares that the answers of a mixture of probes imply, or those of a
student of a teacher. Where the prior is stated, they are shifted until their mean on images drawn at the prior is the
prior: the condition at which the EM of Saerens, Latinne and Decaestecker ends (Neural Computation 2002). A prior that
is estimated from few labels is not exact enough for that: on packs that the suite does not report it cost points.
N images, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgedistill.errors import InputError
from edgedistill.recipe.options import did_you_mean, shortened

Floats = NDArray[np.floating[Any]]
Numbers = NDArray[np.number[Any]]
Score = Literal["top1", "balanced"]
ClassWeights = Literal["none", "balanced", "auto"]
UNSEEN = 0.5  # added to the count of each class: with folds a class may have no label in training
LEAST_IMAGES = 100  # images by which a model's answers are shifted
ROUNDS, TOLERANCE = 500, 1e-5


@dataclass(frozen=True, kw_only=True)
class Prior:
    """The classes' shares among the pictures that a student will see, and the score that counts there.

    Attributes:
        shares_C: the shares; all above 0, their sum is 1.
        score: "top1", for which the best answer knows the shares, or "balanced", for which it knows none.
        stated: whether the recipe states the shares; else they are estimated from labels.
    """

    shares_C: Floats
    score: Score
    stated: bool = True

    @property
    def aim(self) -> Floats:
        """The shares that an answer should imply: the prior for top-1 accuracy, equal ones for the balanced one."""
        return self.shares_C if self.score == "top1" else np.full(len(self.shares_C), 1.0 / len(self.shares_C))

    def shift(self, logits_NC: Floats) -> Floats | None:
        """The shift [C] of a model's logits, whatever shares they imply, from its logits on images at the prior.

        None where that is not known well: with an estimated prior, or with fewer than LEAST_IMAGES images.
        """
        if not self.stated or len(logits_NC) < LEAST_IMAGES:
            return None
        shift_C = matching_shift(logits_NC, self.shares_C) + np.log(self.aim / self.shares_C)
        return np.asarray(shift_C - shift_C.mean())

    def label_shift(self, counts_C: Numbers) -> Floats:
        """What a loss adds to the logits [C] so that a student of these labels implies `aim` (Menon et al., eq. 10).

        Args:
            counts_C: labels of each class, times their weights in the loss.
        """
        trained_C = (counts_C + UNSEEN) / np.sum(counts_C + UNSEEN)
        shift_C = np.log(trained_C / self.aim)
        return np.asarray(shift_C - shift_C.mean())


def from_recipe(
    setting: Literal["labels"] | Mapping[str, float] | None, classes: Sequence[str], counts_C: Numbers, score: Score
) -> Prior | None:
    """The prior of a recipe (`data.prior`); None where it states none.

    Args:
        setting: shares by class, or "labels" where the labels were drawn as they came.
        classes: names of the classes.
        counts_C: labels of each class that may be counted.
        score: the recipe's `data.score`.

    Raises:
        InputError: as in `require_all_classes`.
    """
    if setting is None:
        return None
    if setting == "labels":
        return Prior(shares_C=estimated_shares(counts_C), score=score, stated=False)
    require_all_classes(setting, classes)
    shares_C = np.array([setting[name] for name in classes])
    return Prior(shares_C=shares_C / shares_C.sum(), score=score)


def require_all_classes(setting: Literal["labels"] | Mapping[str, float] | None, classes: Sequence[str]) -> None:
    """Raise InputError if a prior leaves a class out, or names one that does not exist."""
    if setting is None or setting == "labels":
        return
    unknown = [name for name in setting if name not in classes]
    if unknown and unknown[0] in {"True", "False"}:
        raise InputError(
            f"data.prior: no class is called {unknown[0]}", "put names such as yes, no, on and off in quotes"
        )
    if unknown:
        raise InputError(f"data.prior: no class is called {shortened(unknown[0])}{did_you_mean(unknown[0], classes)}")
    absent = [name for name in classes if name not in setting]
    if absent:
        raise InputError(f"data.prior: class {shortened(absent[0])} has no share", "state the share of every class")


def estimated_shares(counts_C: Numbers) -> Floats:
    """Estimate the classes' shares [C], none of them 0, from counts of labels that were drawn as they came.

    They are drawn towards equal shares as far as chance explains the counts: the mean under a symmetric Dirichlet prior
    whose strength makes the counts most likely (empirical Bayes; Minka, "Estimating a Dirichlet distribution", 2000).
    """
    from scipy.special import gammaln

    counts_C, strengths = np.asarray(counts_C, dtype=np.float64), np.geomspace(0.3, 300, 200)[:, None]
    total, classes = counts_C.sum(), len(counts_C)
    likelihood = (gammaln(counts_C + strengths) - gammaln(strengths)).sum(axis=1, keepdims=True)
    likelihood += gammaln(classes * strengths) - gammaln(total + classes * strengths)
    strength = float(strengths[likelihood.argmax(), 0])
    return np.asarray((counts_C + strength) / (total + classes * strength))


def class_weights(setting: ClassWeights, counts_C: Numbers, score: Score) -> Floats | None:
    """Weights [C] under which every class that has labels counts alike; their mean over the labels is 1.

    None where labels count alike: for "none", and for "auto" unless the balanced accuracy counts.
    """
    return None if setting == "none" or (setting == "auto" and score == "top1") else balanced_weights(counts_C)


def balanced_weights(counts_C: Numbers) -> Floats:
    """Weights [C] under which every class that has labels counts alike; their mean over the labels is 1."""
    return np.asarray(np.sum(counts_C) / (np.count_nonzero(counts_C) * np.maximum(counts_C, 1)))


def label_terms(
    setting: ClassWeights, counts_C: Numbers, prior: Prior | None, score: Score
) -> tuple[Floats | None, Floats | None]:
    """The weights and the shift of the label loss, [C] each, for labels with these counts of the classes."""
    weights_C = class_weights(setting, counts_C, score)
    if prior is None:
        return weights_C, None
    return weights_C, prior.label_shift(counts_C if weights_C is None else counts_C * weights_C)


def matching_shift(logits_NC: Floats, shares_C: Floats) -> Floats:
    """The shift [C] under which the mean softmax over the images is `shares_C`; it is unique but for a constant.

    Iterative scaling (Darroch and Ratcliff 1972); each round divides by the mean answers of the one before.
    """
    from scipy.special import softmax

    shift_C = np.log(shares_C)
    for _ in range(ROUNDS):
        mean_C = softmax(logits_NC.astype(np.float64) + shift_C, axis=1).mean(axis=0)
        change_C = np.log(shares_C) - np.log(np.maximum(mean_C, 1e-12))
        shift_C = shift_C + change_C
        if np.abs(change_C).max() < TOLERANCE:
            break
    return np.asarray(shift_C)
