"""Which sources know anything of the target: a permutation test of a linear probe's leave-one-out answers.

The statistic is the balanced accuracy: every constant answer has 1 / C of it, the most frequent class, too, whatever
the labels' shares. Under chance the labels can be permuted, and each permutation has its own probe: answers to images
that are alike are right or wrong together, so answers that stay would look too good (twice the level on noise). Holm's
step-down procedure keeps the level over all sources ("A simple sequentially rejective multiple test procedure", 1979):
with probability 1 - level no source passes if none knows anything.

L labeled images, D features of a source, C classes, R permutations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

Ints = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]
Level = Annotated[float, Field(gt=0.0, le=1.0)]
LEVEL = 0.05
OFF = 1.0  # no test
REPEATS = 1999
BLOCK = 100  # permutations at a time
PENALTY = 0.3  # of the probe, for features of length 1
MOST_IMAGES = 500  # a permutation costs their square, and so many show what there is


def better_than_chance(features: Mapping[str, Floats], labels_L: Ints, level: float) -> tuple[str, ...]:
    """The sources that are told from chance, in their order; all of them if none is, or if `level` is 1.

    Args:
        features: each source's features of the labeled images, [L, D].
        labels_L: the images' classes, two at least.
        level: probability of letting any source through if none knows anything.
    """
    if level >= OFF or len(features) < 2:
        return tuple(features)
    rows = np.random.default_rng(0).permutation(len(labels_L))[:MOST_IMAGES]
    p = {name: p_value(np.asarray(features_LD)[rows], labels_L[rows]) for name, features_LD in features.items()}
    passed = set()
    for rank, name in enumerate(sorted(p, key=lambda name: p[name])):
        if p[name] > level / (len(p) - rank):
            break
        passed.add(name)
    return tuple(name for name in features if name in passed or not passed)


def answers_p_value(predicted_L: Ints, labels_L: Ints) -> float:
    """One-sided p of the balanced accuracy of answers that were given without the labels: the labels are permuted."""
    _, index_L, counts_C = np.unique(labels_L, return_inverse=True, return_counts=True)
    weight_L = 1.0 / counts_C[index_L]
    rng, exceeded = np.random.default_rng(1), 1  # the labels as they are count as one of the permutations
    observed = weight_L[predicted_L == labels_L].sum()
    for _ in range(REPEATS):
        order = rng.permutation(len(labels_L))
        exceeded += int(weight_L[order][predicted_L == labels_L[order]].sum() >= observed - 1e-12)
    return exceeded / (REPEATS + 1)


def p_value(features_LD: Floats, labels_L: Ints) -> float:
    """One-sided p of the balanced accuracy of a probe's leave-one-out answers, from permutations with a fixed seed."""
    _, index_L, counts_C = np.unique(labels_L, return_inverse=True, return_counts=True)
    share_C = counts_C / len(labels_L)
    centered_LD = np.asarray(features_LD, dtype=np.float64) - np.mean(features_LD, axis=0, dtype=np.float64)
    length_L = np.linalg.norm(centered_LD, axis=1, keepdims=True)
    directions_LD = centered_LD / np.where(length_L > 0, length_L, 1.0)
    inverse_LL = np.linalg.inv(directions_LD @ directions_LD.T + PENALTY * np.eye(len(directions_LD)))
    smoother_LL = inverse_LL / np.diag(inverse_LL)[:, None]
    rng, exceeded = np.random.default_rng(1), 1  # the labels as they are count as one of the permutations
    observed = _statistics(smoother_LL, index_L[None], share_C)[0]
    for start in range(0, REPEATS, BLOCK):
        block = np.tile(index_L, (min(BLOCK, REPEATS - start), 1))
        exceeded += int((_statistics(smoother_LL, rng.permuted(block, axis=1), share_C) >= observed - 1e-12).sum())
    return exceeded / (REPEATS + 1)


def _statistics(smoother_LL: Floats, labels_RL: Ints, share_C: Floats) -> Floats:
    """Balanced accuracy for each row of labels: the answer is the class whose score exceeds its share the most."""
    repeats, count = labels_RL.shape
    targets_RLC = np.eye(len(share_C))[labels_RL] - share_C
    flat = targets_RLC.transpose(1, 0, 2).reshape(count, -1)
    smoothed_LRC = (smoother_LL @ flat).reshape(count, repeats, -1)
    # leave-one-out of a linear smoother (Rasmussen and Williams 2006, eq. 5.12), rounded: ties stay ties
    scores_RLC = ((targets_RLC - smoothed_LRC.transpose(1, 0, 2)) / share_C).round(9)
    right_RL = scores_RLC.argmax(axis=2) == labels_RL
    return np.asarray((right_RL / share_C[labels_RL]).sum(axis=1) / count / len(share_C))
