"""How a step runs: skipped when its key and its outputs are as recorded, else run and entered in the manifest."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgedistill import run
from edgedistill.context import Context
from edgedistill.progress import say


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the road.

    Attributes:
        name: how the manifest calls it.
        version: raised when the step would give another result for the same input.
        sections: the recipe sections it reads.
        after: the steps whose outputs it reads.
        outputs: patterns of the files it leaves, relative to the run directory.
        work: the function that leaves them.
        scratch: patterns of what it keeps to resume from.
        extra: further inputs, by name: what lies outside the run directory.
    """

    name: str
    version: int
    sections: tuple[str, ...]
    after: tuple[str, ...]
    outputs: tuple[str, ...]
    work: Callable[[Context], None]
    scratch: tuple[str, ...] = ()
    extra: Callable[[Context], dict[str, str]] = lambda context: {}

    def key(self, context: Context) -> str:
        """The step's key, from the recipe and from what the steps before it left."""
        inputs = {f"{step}:{name}": value for step in self.after for name, value in context.run.hashes(step).items()}
        sections = context.recipe.sections(self.sections)
        return run.step_key(self.name, self.version, sections, {**inputs, **self.extra(context)})


def advance(context: Context, steps: Sequence[Step]) -> bool:
    """Run the steps that are not up to date, in order; returns whether any had to run."""
    worked = False
    for step in steps:
        key = step.key(context)
        if context.run.up_to_date(step.name, key):
            say(f"{step.name:<10} up to date")
            continue
        worked = True
        perform(context, step, key)
    return worked


def perform(context: Context, step: Step, key: str) -> None:
    """Run one step and enter what it left in the manifest."""
    say(f"{step.name:<10} ...")
    context.run.clear(step.name, key, (*step.outputs, *step.scratch))
    context.run.log(step.name, "start", key=key)
    started = time.monotonic()
    step.work(context)
    seconds = time.monotonic() - started
    outputs = [path for pattern in step.outputs for path in context.run.path.glob(pattern)]
    context.run.enter(step.name, key, [path for path in outputs if not path.name.startswith(".")], seconds)
    context.run.log(step.name, "done", seconds=seconds)
    say(f"{step.name:<10} done in {seconds:.1f} s")
