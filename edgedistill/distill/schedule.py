"""How many steps a training takes (`distill.steps: auto`), and whether its loss was still falling at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgedistill.recipe.schema import Distill

PASSES = 20  # over all images
LEAST, MOST = 400, 20_000
LEAST_IN_TIME = 50  # a budget of seconds still trains a little
# multiply-accumulates a second in training, forward and backward, of one processor core and of one GPU: rough figures,
# since a time that is measured would give another number of steps when a killed run goes on
CORE, GPU = 10e9, 1e12
BACKWARD = 2.0  # a backward pass costs about two forward passes
LAST = 0.2  # share of the steps whose losses are looked at
SHOWN = 0.02  # least fall of the loss over them that is worth a word, as a share of it
CERTAIN = 2.6  # standard errors of the slope


def automatic_steps(settings: Distill, images: int, batch: int, *, macs_m: float, workers: float) -> int:
    """The number of training steps of `steps: auto`: PASSES over the images, within the time budget.

    Args:
        settings: the recipe's `distill` section.
        images: images of train, and of the shards if there are some.
        batch: images that a step sees.
        macs_m: millions of multiply-accumulates of the student for one image.
        workers: speed of this machine in CPU cores; see `speed`.
    """
    wanted = min(MOST, max(LEAST, math.ceil(PASSES * images / batch)))
    seconds_per_step = batch * macs_m * 1e6 * (1.0 + BACKWARD) / (workers * CORE)
    return min(wanted, max(LEAST_IN_TIME, int(60 * settings.minutes / seconds_per_step)))


def speed() -> float:
    """Speed of this machine in CPU cores: the threads of torch, or what a GPU is worth."""
    import torch

    from edgedistill.distributed.device import default_device

    return float(torch.get_num_threads()) if default_device().type == "cpu" else GPU / CORE


def rate() -> float:
    """Multiply-accumulates a second of this machine in training, a rough figure."""
    return speed() * CORE


def still_falling(losses: Sequence[float]) -> float | None:
    """By what share of itself the loss fell over the last fifth of the steps; None where no fall shows.

    The slope of a line through them must be beyond chance, so that one lucky batch is no fall.
    """
    last = np.asarray(losses[-max(1, round(LAST * len(losses))) :], dtype=np.float64)
    if len(last) < 10 or not np.isfinite(last).all():
        return None
    step = np.arange(len(last)) - (len(last) - 1) / 2
    slope = float(step @ last / (step @ step))
    residual = last - last.mean() - slope * step
    error = math.sqrt(float(residual @ residual) / (len(last) - 2) / float(step @ step))
    fall, level = -slope * (len(last) - 1), float(last.mean() + slope * step[0])
    if fall <= SHOWN * level or -slope <= CERTAIN * error:
        return None
    return float(round(fall / level, 4))
