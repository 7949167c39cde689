"""What several processes of one training do together, and how those that are led take part.

The leader goes through the steps as if it were alone (session.py). Where work can be shared it calls the others: to ask
a source about the images that nobody asked it about yet, and to train a student. They open the same run for themselves,
read its files, and write nothing.
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
from edgedistill.run.directory import Run
from edgedistill.steps.context import Context

if TYPE_CHECKING:
    from torch import nn

    from edgedistill.distill.batches import Task
    from edgedistill.recipe.schema import Recipe
    from edgedistill.records import Accuracy


def training(
    context: Context,
    spec: StudentSpec,
    *,
    steps: int,
    seed: int,
    held_out: int = 0,
    folder: Path | None = None,
    rungs: Iterable[int] = (),
) -> tuple[nn.Module, Task]:
    """A new student and its task as the recipe's `distill` says, ready for loop.fit.

    On the leader it calls the other processes, which then call loop.fit with the same student and task.

    Args:
        context: the run.
        spec: the student.
        steps: how many.
        seed: of its weights, batches and augmentation.
        held_out: unlabeled images that are not trained on.
        folder: where last.pt and metrics.jsonl go.
        rungs: the steps after which the leader decides whether the training goes on.
    """
    from edgedistill.distill import batches
    from edgedistill.students.build import build_student

    material = context.material(spec.input_px, held_out)  # on the leader first: what is missing is made together
    if processes.team().leads:
        context.call("train", spec=spec, steps=steps, seed=seed, held_out=held_out, folder=folder, rungs=tuple(rungs))
    task = batches.Task(spec=spec, material=material, settings=context.recipe.distill, steps=steps, seed=seed)
    model = build_student(spec, seed, initialise=True)
    processes.gathered(None)  # the training's own messages are not waited for as long as one may take to get ready
    return model, task


def train(context: Context, spec: StudentSpec, *, folder: Path | None, rungs: tuple[int, ...], **settings: Any) -> None:
    """Take part in a training that the leader called for."""
    from edgedistill.distill import loop

    model, task = training(context, spec, folder=folder, **settings)
    loop.fit(model, task, folder=folder, rungs=dict.fromkeys(rungs, _nothing))


def _nothing(val: Accuracy) -> None:
    """The leader alone decides at a rung."""


def divide_batches(recipe: Recipe) -> None:
    """Raise InputError where a batch cannot be divided among the processes."""
    size = processes.team().size
    for name in ("batch_labeled", "batch_unlabeled"):
        count = getattr(recipe.distill, name)
        if count % size:
            raise InputError(
                f"distill.{name}: {count} images cannot be shared evenly by {size} processes",
                f"make it a multiple of {size}",
            )


def answer(context: Context, name: str, start: int) -> None:
    """Ask a source about this process's share of the images from row `start` on."""
    from edgedistill.sources import outputs

    network = context.networks[name]
    outputs.assist(network, context.splits.train.at(network.input_px), start)


def label(context: Context) -> None:
    """Ask every source about this process's share of the shards."""
    _ = context.shards


WORK: dict[str, Callable[..., Any]] = {"answer": answer, "label": label, "train": train}


@contextlib.contextmanager
def assembled() -> Iterator[bool]:
    """Yields whether this process leads; where it does not, it has done what the leader asked for by then."""
    team = processes.team()
    if not team.leads:
        _serve()
        processes.leave()
        yield False
        return
    yield True
    processes.order(None)
    processes.leave()  # an error of the leader's ends its process, and the launcher then ends the others


def _serve() -> None:
    """Do what the leader orders until there is nothing more to do.

    Raises:
        EdgeDistillError: what went wrong here, which need not go wrong there.
    """
    last: Context | None = None
    logging.disable()  # the leader prints the warnings
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):
        while (order := processes.next_order()) is not None:
            context = Context(recipe=order.recipe, base=order.base, run=Run(path=order.run))
            if last is None or (last.recipe, last.run) != (context.recipe, context.run):
                last = context  # else what it has read already still holds
            try:
                WORK[order.work](last, **order.arguments)
            except processes.DismissedError:
                continue
            except EdgeDistillError as error:  # the leader may never meet it; the launcher ends it, too
                raise type(error)(f"process {processes.team().rank}: {error.message}", error.fix) from None
