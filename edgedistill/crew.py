"""What several processes of one training do together, and how those that do not lead get to know of it.

The leader goes down the road as if it were alone (session.py). Where work can be shared it calls the others: to ask a
source about the images that nobody asked it about yet, and to train a student. They open the same run for themselves,
read what stands there, and write nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from edgedistill.context import Context, Order
from edgedistill.records import EdgeDistillError, InputError, StudentSpec
from edgedistill.run import Run
from edgedistill.training import parallel

if TYPE_CHECKING:
    from edgedistill.recipe import Recipe
    from edgedistill.records import Accuracy
    from edgedistill.training.fit import Fitted, OnStep


def distil(
    context: Context,
    spec: StudentSpec,
    steps: int,
    seed: int,
    *,
    held_out: int = 0,
    folder: Path | None = None,
    on_step: OnStep = lambda step, scalars: None,
    rungs: Mapping[int, Callable[[Accuracy], object]] = MappingProxyType({}),
) -> Fitted:
    """Train a student as the recipe's `distill` says, with everybody who is there; see fit.fit.

    Args:
        context: the run.
        spec: the student.
        steps: how many.
        seed: of its weights, batches and augmentation.
        held_out: unlabeled images that are not trained on.
        folder: where last.pt and metrics.jsonl go.
        on_step: called after each step, on the leader.
        rungs: step -> what is called with the accuracy on val after it, on the leader; what it raises ends the
            training for all.
    """
    from edgedistill.training import batches, fit, student

    material = context.material(spec.input_px, held_out)  # on the leader first: what is missing is made together
    if parallel.team().leads:
        context.call(
            "distil",
            spec=spec,
            steps=steps,
            seed=seed,
            held_out=held_out,
            folder=folder,
            rungs=dict.fromkeys(rungs, _nothing),
        )
    task = batches.Task(spec=spec, material=material, settings=context.recipe.distill, steps=steps, seed=seed)
    model = student.build(spec, seed, initialise=True)
    parallel.gathered(None)  # the training's own messages are not waited for as long as one may take to get ready
    return fit.fit(model, task, folder=folder, on_step=on_step, rungs=rungs)


def _nothing(val: Accuracy) -> None:
    """What those who do not lead think of a rung."""


def shared_evenly(recipe: Recipe) -> None:
    """Raise InputError where a batch cannot be divided among the processes."""
    size = parallel.team().size
    for name in ("batch_labeled", "batch_unlabeled"):
        count = getattr(recipe.distill, name)
        if count % size:
            raise InputError(
                f"distill.{name}: {count} images cannot be shared evenly by {size} processes",
                f"make it a multiple of {size}",
            )


def answer(context: Context, name: str, start: int) -> None:
    """Ask a source about this process's share of the images from row `start` on."""
    from edgedistill.training import outputs

    net = context.networks[name]
    outputs.assist(net, context.splits.train.at(net.input_px), start)


def label(context: Context) -> None:
    """Ask every source about this process's share of the shards."""
    _ = context.shards


WORK: dict[str, Callable[..., Any]] = {"answer": answer, "label": label, "distil": distil}


@contextlib.contextmanager
def assembled() -> Iterator[bool]:
    """Yields whether this process leads; where it does not, it has done what the leader asked for by then."""
    team = parallel.team()
    if not team.leads:
        _serve()
        parallel.leave()
        yield False
        return
    yield True
    parallel.order(None)
    parallel.leave()  # an error of the leader's ends its process, and the launcher then ends the others


def _serve() -> None:
    """Do what the leader says until it has nothing more to say.

    Raises:
        EdgeDistillError: what went wrong here, which need not go wrong there.
    """
    last: Context | None = None
    logging.disable()  # what is worth a warning the leader says
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):
        while (order := parallel.next_order()) is not None:
            context = Context(recipe=order.recipe, base=order.base, run=Run(path=order.run))
            if last is None or (last.recipe, last.run) != (context.recipe, context.run):
                last = context  # else what it has read already still holds
            try:
                WORK[order.work](last, **order.arguments)
            except parallel.DismissedError:
                continue
            except EdgeDistillError as error:  # the leader may never meet it; the launcher ends him, too
                raise type(error)(f"process {parallel.team().rank}: {error.message}", error.fix) from None


__all__ = ["Order", "assembled", "distil"]
