"""Micro-batches: a step's batch in equal parts, one after the other, where a GPU's memory does not hold it as a whole.

Each part has as many labeled and as many unlabeled images as the others. A method's terms are means over the labeled,
over the unlabeled or over all images, so the mean of the parts' losses is the loss of the batch, and their gradients
add up to its gradient. What differs: batch norm normalizes a part by the part's own statistics, and dropout draws for
each part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgedistill.console import say
from edgedistill.distributed import processes
from edgedistill.distributed.device import free_cached_memory
from edgedistill.errors import EdgeDistillError

LEAST_IMAGES = 2  # batch norm needs two


@dataclass(kw_only=True)
class MicroBatches:
    """The number of parts of a step's batch; it is in checkpoints, so that a resumed run begins with it."""

    count: int = 1

    def slices(self, labeled: int, unlabeled: int) -> list[tuple[slice, slice]]:
        """The slices of the labeled and of the unlabeled images of each part."""
        return [
            tuple(  # type: ignore[misc]
                slice(part * images // self.count, (part + 1) * images // self.count) for images in (labeled, unlabeled)
            )
            for part in range(self.count)
        ]

    def divide_further(self, labeled: int, unlabeled: int, step: int) -> None:
        """Take at least twice as many parts from here on, and say so.

        Args:
            labeled: labeled images of a step.
            unlabeled: unlabeled images of a step.
            step: the step, from 0, whose batch did not fit.

        Raises:
            EdgeDistillError: the batch cannot be divided further, or several processes share it.
        """
        images = labeled + unlabeled
        common = math.gcd(labeled, unlabeled)
        counts = [
            count
            for count in range(2 * self.count, common + 1)
            if common % count == 0 and images // count >= LEAST_IMAGES
        ]
        problem = f"distill: the GPU's memory is full at step {step + 1}, with {images // self.count} images at a time"
        if processes.team().size > 1:
            raise EdgeDistillError(problem, "lower distill.batch_labeled and batch_unlabeled, or use more processes")
        if not counts:
            divided = f"; {labeled} labeled and {unlabeled} unlabeled images cannot be divided into more equal parts"
            raise EdgeDistillError(problem + divided, "lower them, choose multiples of 8, or choose a smaller student")
        self.count = counts[0]
        say(
            f"  {problem}: from here on a step takes {self.count} parts of {images // self.count}, with the same"
            " gradients but for batch norm, which sees a part at a time"
        )
        free_cached_memory()
