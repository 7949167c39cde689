"""Work shared by several processes of one training, and the loop of the processes other than the leader.

The leader runs the steps as a single process would (session.py). For work that can be shared it sends orders to the
other processes: to run a source on images without outputs yet, and to train a student. They open the same run, read
its files, and write nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedistill.distributed import processes
from edgedistill.errors import EdgeDistillError, InputError
from edgedistill.records import StudentSpec
from edgedistill.steps.context import Context

if TYPE_CHECKING:
    from torch import nn

    from edgedistill.distill.batches import Task
    from edgedistill.recipe.schema import Recipe
    from edgedistill.records import Accuracy


def require_divisible_batches(recipe: Recipe) -> None:
    """Raise InputError if a batch cannot be divided evenly among the processes."""
    size = processes.team().size
    for name in ("batch_labeled", "batch_unlabeled"):
        count = getattr(recipe.distill, name)
        if count % size:
            raise InputError(
                f"distill.{name}: {count} images cannot be shared evenly by {size} processes",
                f"make it a multiple of {size}",
            )


def prepare_training(
    context: Context,
    spec: StudentSpec,
    *,
    steps: int,
    seed: int,
    held_out: int = 0,
    folder: Path | None = None,
    rungs: Iterable[int] = (),
) -> tuple[nn.Module, Task]:
    """Build a student and its task by the recipe's `distill` section, ready for loop.fit.

    The leader orders the other processes to call loop.fit with the same student and task.

    Args:
        context: the run.
        spec: the student.
        steps: number of training steps.
        seed: seed of its weights, batches and augmentation.
        held_out: number of unlabeled images that are not trained on.
        folder: folder of last.pt and metrics.jsonl.
        rungs: the steps after which the leader decides whether the training continues.
    """
    from edgedistill.distill import batches
    from edgedistill.students.build import build_student

    # before the order to train: it sends orders of its own, for outputs that are not cached yet
    material = context.material(spec.input_px, held_out)
    if processes.team().is_leader:
        context.order("train", spec=spec, steps=steps, seed=seed, held_out=held_out, folder=folder, rungs=tuple(rungs))
    task = batches.Task(spec=spec, material=material, settings=context.recipe.distill, steps=steps, seed=seed)
    model = build_student(spec, seed, initialize=True)
    # a barrier: the training's own messages have a shorter timeout than the preparation may take
    processes.all_gather(None)
    return model, task


@contextlib.contextmanager
def lead_or_serve() -> Iterator[bool]:
    """Yield whether this process is the leader; the other processes serve the leader's orders first."""
    team = processes.team()
    if not team.is_leader:
        _serve()
        processes.shut_down()
        yield False
        return
    yield True
    processes.send_order(None)
    processes.shut_down()  # an error on the leader ends its process, and the launcher then ends the others


def _serve() -> None:
    """Execute the leader's orders until the last one.

    Raises:
        EdgeDistillError: an order failed in this process; it may succeed on the leader.
    """
    context: Context | None = None
    logging.disable()  # the leader prints the warnings
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):
        while (order := processes.receive_order()) is not None:
            # a context holds loaded images and outputs: the next order of the same run reuses it
            if context != order.context:
                context = order.context
            try:
                WORK[order.work](context, **order.arguments)
            except processes.WorkAbortedError:
                continue
            except EdgeDistillError as error:  # the leader may not fail; the launcher ends it, too
                raise type(error)(f"process {processes.team().rank}: {error.message}", error.fix) from None


def infer(context: Context, name: str, start: int) -> None:
    """Run a source on this process's share of the images from row `start` on."""
    from edgedistill.sources import outputs

    network = context.networks[name]
    outputs.assist(network, context.splits.train.resized(network.input_px), start)


def label(context: Context) -> None:
    """Run every source on this process's share of the shards."""
    _ = context.shards  # the first access labels them


def label_tuned(context: Context) -> None:
    """Run the teacher's tuned sources on this process's share of the shards."""
    _ = context.streamed_shards


def train(context: Context, spec: StudentSpec, *, folder: Path | None, rungs: tuple[int, ...], **settings: Any) -> None:
    """Take part in a training that the leader ordered."""
    from edgedistill.distill import loop

    model, task = prepare_training(context, spec, folder=folder, **settings)
    loop.fit(model, task, folder=folder, rungs=dict.fromkeys(rungs, _ignore_score))


def _ignore_score(val: Accuracy) -> None:
    """Ignore the score: only the leader decides at a rung."""


# kind of work in an order -> what a process other than the leader does for it
WORK: dict[str, Callable[..., Any]] = {
    "infer": infer,
    "label": label,
    "label_tuned": label_tuned,
    "train": train,
}
