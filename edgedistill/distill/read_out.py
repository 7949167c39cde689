"""When a training waits for the GPU: its losses stay there, and those of several steps are read at once.

A GPU works behind the CPU, which only queues its work. Reading a number makes the CPU wait until the queue is empty,
and the GPU wait for new work after that. Without a GPU the losses of each step are read after it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgedistill.distributed import processes
from edgedistill.distributed.device import steps_per_read
from edgedistill.errors import EdgeDistillError
from edgedistill.recipe.schema import Distill

Scalars = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class StepLosses:
    """The loss of a step and its terms, on the device on which they were computed.

    Attributes:
        names: `loss`, then `terms/NAME` of each term.
        values_T: their values for the images of this process, [T].
    """

    names: tuple[str, ...]
    values_T: Tensor

    def read(self) -> Scalars:
        """The numbers by name, means over all processes; waits for the device."""
        return read([self])[0]


@dataclass(frozen=True, kw_only=True)
class UnreadStep:
    """A step whose losses have not been read, and its settings: those of a later step may be others.

    Attributes:
        step: its number, from 1.
        lr: its learning rate.
        micro_batches: parts of its batch.
        compiled: whether its net was compiled; None where the recipe does not ask for it.
        losses: its losses.
    """

    step: int
    lr: float
    micro_batches: int
    compiled: bool | None
    losses: StepLosses


def read(steps: Sequence[StepLosses]) -> list[Scalars]:
    """The numbers of some steps: one wait for the device and one message between processes, however many they are."""
    values = iter(processes.mean(torch.cat([losses.values_T for losses in steps])).tolist())
    return [{name: next(values) for name in losses.names} for losses in steps]


def is_due(step: int, steps: int, settings: Distill, rungs: Collection[int]) -> bool:
    """Whether losses are read after a step (from 1): every few steps, at the last one, and before what waits anyway.

    All processes of a training read after the same steps, since they exchange the losses.
    """
    waits = step % settings.checkpoint_every == 0 or step % settings.evaluate_every == 0 or step in rungs
    return waits or step == steps or step % steps_per_read() == 0


def read_finite(unread: Sequence[UnreadStep]) -> Iterator[tuple[UnreadStep, Scalars]]:
    """Yield each step with its numbers.

    Raises:
        EdgeDistillError: at the first step whose loss is not finite, after those before it.
    """
    noticed = unread[-1].step
    for entry, scalars in zip(unread, read([entry.losses for entry in unread]), strict=True):
        if not math.isfinite(scalars["loss"]):
            # the first loss is computed before the first update, so its learning rate is not to blame
            fix = (
                "lower distill.lr"
                if entry.step > 1
                else "check the student's initial weights, or choose another family"
            )
            later = f", noticed at step {noticed}" if noticed > entry.step else ""
            raise EdgeDistillError(f"distill: the loss is not finite at step {entry.step}{later}", fix)
        yield entry, scalars
