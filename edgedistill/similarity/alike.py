"""Sources that are nearly the same: copies of one net would otherwise count several times in the weights.

Two good sources agree on what is right. Copies also agree on what is wrong: compared are the errors of their linear
heads on images left out, the scores minus the labels.

N labeled images, D features of a source.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedistill.similarity.separability import held_out_scores, one_hot

Floats = NDArray[np.floating[Any]]
ALIKE = 0.95  # correlation of two sources' errors from which they count as one


def counts(features: Mapping[str, Floats], labels_N: NDArray[np.int64]) -> dict[str, int]:
    """How many sources are nearly the same as each one, itself included; two classes of labels at least."""
    index_N = np.unique(labels_N, return_inverse=True)[1]
    errors = [(held_out_scores(array_ND, labels_N) - one_hot(index_N)).ravel() for array_ND in features.values()]
    alike_SS = (np.atleast_2d(np.corrcoef(np.stack(errors))) >= ALIKE) | np.eye(len(errors), dtype=bool)
    return dict(zip(features, alike_SS.sum(axis=0).tolist(), strict=True))
