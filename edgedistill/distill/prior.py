"""A trained student that is told the prior: its head's bias, and so every graph that is made from it.

N images.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from edgedistill.data.splits import evenly_spaced
from edgedistill.distill import evaluate
from edgedistill.distill.batches import Images, Rows
from edgedistill.labels.prior import Prior
from edgedistill.records import StudentSpec
from edgedistill.students.build import shift_head

MOST_IMAGES = 2000


def tell_prior(model: nn.Module, spec: StudentSpec, prior: Prior | None, *, images_NHWC: Images, rows: Rows) -> bool:
    """Shift the bias of a student's head to a stated prior; returns whether it was shifted.

    Without a prior, with an estimated one, and with few images it stays as its loss has shifted it.

    Args:
        model: parts `backbone` and `head`.
        spec: its architecture.
        prior: the recipe's prior.
        images_NHWC: the train store at the student's input size, uint8.
        rows: the images without a label, drawn at the prior; at most MOST_IMAGES of them are used.
    """
    if prior is None or not prior.stated or not len(rows):
        return False
    rows = rows[evenly_spaced(len(rows), MOST_IMAGES)]
    shift_C = prior.shift(evaluate.logits(model, spec, np.asarray(images_NHWC[rows])))
    if shift_C is None:
        return False
    shift_head(model, shift_C)
    return True
