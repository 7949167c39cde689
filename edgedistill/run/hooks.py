"""What a run tells while it is at work: its start, each step of a training, each evaluation, and its end.

Loggers and callbacks of a user hook in here (`ed.run(..., callbacks=[...])`); docs/python.md has examples.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any


class Callback:
    """Override what you need. An exception that a method raises ends the run; the same call goes on from there."""

    def on_start(self, run: Path, recipe: Mapping[str, Any]) -> None:
        """Called before the first step of the pipeline.

        Args:
            run: the run directory; it need not exist yet.
            recipe: the recipe with every default, as plain data.
        """

    def on_step(self, stage: str, step: int, scalars: Mapping[str, float]) -> None:
        """Called for each step of a training: after it without a GPU, else for some steps at once, in their order.

        Args:
            stage: what is trained: `distill` is the student, `baseline/distill` or `peer/distill` the one on labels
                alone, `peer/half 1/distill` the one that lacks a half of them, `quantize` its int8 variant,
                `NAME/distill` a source that is trained first.
            step: from 1; a resumed training begins behind its checkpoint.
            scalars: the loss, and its terms as `terms/NAME`.
        """

    def on_evaluation(self, stage: str, step: int, scalars: Mapping[str, float]) -> None:
        """Called after each evaluation on val.

        Args:
            stage: what is trained.
            step: the training step after which it was.
            scalars: `top1` and `balanced` accuracy in [0, 1].
        """

    def on_end(self, run: Path, error: BaseException | None) -> None:
        """Called at the end, whichever it is.

        Args:
            run: the run directory.
            error: what ended the run early; None if it is finished.
        """


_callbacks: ContextVar[tuple[Callback, ...]] = ContextVar("callbacks", default=())
_stage: ContextVar[str] = ContextVar("stage", default="")


@contextlib.contextmanager
def calling(callbacks: Sequence[Callback], run: Path, recipe: Mapping[str, Any]) -> Iterator[None]:
    """Call the callbacks at the beginning and the end of the block, and at what is told inside."""
    former = _callbacks.set(tuple(callbacks))
    error: BaseException | None = None
    try:
        for callback in callbacks:
            callback.on_start(run, recipe)
        yield
    except BaseException as caught:
        error = caught
        raise
    finally:
        _callbacks.reset(former)
        for callback in callbacks:
            callback.on_end(run, error)


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """What is told inside belongs to a step of the pipeline; one inside another is `outer/inner`."""
    outer = _stage.get()
    former = _stage.set(f"{outer}/{name}" if outer else name)
    try:
        yield
    finally:
        _stage.reset(former)


def tell_step(step: int, scalars: Mapping[str, float]) -> None:
    """Tell the callbacks of a step of a training."""
    for callback in _callbacks.get():
        callback.on_step(_stage.get(), step, scalars)


def tell_evaluation(step: int, scalars: Mapping[str, float]) -> None:
    """Tell the callbacks of an evaluation."""
    for callback in _callbacks.get():
        callback.on_evaluation(_stage.get(), step, scalars)
