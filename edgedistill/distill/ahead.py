"""Batches gathered by a background thread a few steps ahead, so that a GPU does not wait for the CPU.

A batch depends on (seed, step) alone, so it is the same whichever thread gathers it, and when.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from edgedistill.distill.batches import StepBatch, Task, draw_batch
from edgedistill.distributed.device import batches_ahead, pinned

POLL_S = 0.1  # how often the thread looks whether the training has ended


@contextmanager
def step_batches(task: Task, begin: int, ahead: int | None = None) -> Iterator[Iterator[StepBatch]]:
    """The batches of the steps from `begin` to the task's last one, in order; what the thread raises is raised here.

    Args:
        task: the training data and settings.
        begin: the first step, from 0.
        ahead: batches gathered before they are needed; 0 is without a thread. By default what suits the device.
    """
    ahead = batches_ahead() if ahead is None else ahead
    steps = range(begin, task.steps)
    if not ahead:
        yield (draw_batch(task, step) for step in steps)
        return
    batches: queue.Queue[StepBatch | BaseException] = queue.Queue(maxsize=ahead)
    ended = threading.Event()

    def put(entry: StepBatch | BaseException) -> None:
        while not ended.is_set():
            try:
                batches.put(entry, timeout=POLL_S)
                return
            except queue.Full:
                continue

    def gather_all() -> None:
        try:
            for step in steps:
                if ended.is_set():
                    return
                put(pin(draw_batch(task, step)))
        except BaseException as error:
            put(error)

    def taken_in_order() -> Iterator[StepBatch]:
        for _ in steps:
            entry = batches.get()
            if isinstance(entry, BaseException):
                raise entry
            yield entry

    # a daemon: a read that hangs does not keep the process from exiting
    thread = threading.Thread(target=gather_all, daemon=True)
    thread.start()
    try:
        yield taken_in_order()
    finally:
        ended.set()


def pin(batch: StepBatch) -> StepBatch:
    """The batch with its tensors in pinned memory."""

    def moved(entry: Any) -> Any:
        if isinstance(entry, dict):
            return {name: pinned(tensor) for name, tensor in entry.items()}
        return pinned(entry) if isinstance(entry, Tensor) else entry

    return replace(batch, **{field.name: moved(getattr(batch, field.name)) for field in fields(batch)})
