"""Running a step: skipped if its key and its outputs are as recorded, else run and recorded in the manifest."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgedistill.console import say
from edgedistill.run.directory import step_key
from edgedistill.steps.context import Context


def no_inputs(context: Context) -> dict[str, str]:
    """The inputs of a step that reads only the run directory."""
    return {}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the pipeline.

    Attributes:
        name: its name in the manifest.
        version: increased when the step's outputs for the same input change.
        sections: the recipe sections it reads.
        after: the steps whose outputs it reads.
        outputs: patterns of the files it writes, relative to the run directory.
        work: the function that writes them.
        scratch: patterns of the files it resumes from.
        inputs: function that returns hashes of what it reads from outside the run directory, by name.
    """

    name: str
    version: int
    sections: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    outputs: tuple[str, ...]
    work: Callable[[Context], None]
    scratch: tuple[str, ...] = ()
    inputs: Callable[[Context], dict[str, str]] = no_inputs

    def key(self, context: Context) -> str:
        """The step's key, from the recipe and the outputs of the steps in `after`."""
        hashes = {f"{step}:{name}": sha256 for step in self.after for name, sha256 in context.run.hashes(step).items()}
        sections = context.recipe.sections(self.sections)
        return step_key(self.name, self.version, sections, {**hashes, **self.inputs(context)})


def run_steps(context: Context, steps: Sequence[Step]) -> None:
    """Run the steps that are not up to date, in order, and record the files of each in the manifest."""
    run = context.run
    for step in steps:
        key = step.key(context)
        if run.up_to_date(step.name, key):
            say(f"{step.name:<10} up to date")
            continue
        say(f"{step.name:<10} ...")
        run.clear(step.name, key, (*step.outputs, *step.scratch))
        run.log(step.name, "start", key=key)
        started = time.monotonic()
        step.work(context)
        seconds = time.monotonic() - started
        outputs = [path for pattern in step.outputs for path in run.path.glob(pattern)]
        run.record_step(step.name, key, [path for path in outputs if not path.name.startswith(".")], seconds)
        run.log(step.name, "done", seconds=seconds)
        say(f"{step.name:<10} done in {seconds:.1f} s")
