"""Running a step: skipped if its key and its outputs are as recorded, else run and recorded in the manifest."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from edgedistill.console import say
from edgedistill.run import hooks, replacement
from edgedistill.run.directory import step_key
from edgedistill.steps.context import Context


def no_inputs(context: Context) -> dict[str, str]:
    """The inputs of a step that reads only the run directory."""
    return {}


def always(context: Context) -> bool:
    """True: every run has the step."""
    return True


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
        commits: whether the files that it and the steps before it replace are then given up. The steps of a group are
            replaced together: the artifacts of one training, or of one export.
        applies: whether the run has this step, from what the steps before it wrote.
    """

    name: str
    version: int
    sections: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    outputs: tuple[str, ...]
    work: Callable[[Context], None]
    scratch: tuple[str, ...] = ()
    inputs: Callable[[Context], dict[str, str]] = no_inputs
    commits: bool = False
    applies: Callable[[Context], bool] = always

    @property
    def files(self) -> tuple[str, ...]:
        """Patterns of all files that the step owns."""
        return (*self.outputs, *self.scratch)

    def key(self, context: Context) -> str:
        """The step's key, from the recipe and the outputs of the steps in `after`."""
        hashes = {f"{step}:{name}": sha256 for step in self.after for name, sha256 in context.run.hashes(step).items()}
        sections = context.recipe.sections(self.sections)
        return step_key(self.name, self.version, sections, {**hashes, **self.inputs(context)})


def run_steps(
    context: Context,
    steps: Sequence[Step],
    settle: Callable[[], object] = lambda: None,
    again: Collection[str] = (),
) -> None:
    """Run the steps that are not up to date, in order, and record the files of each in the manifest.

    If a step fails, it and the steps before it, from the last one that `commits`, get their former files back, and
    their new files wait for the same command (run/replacement.py). `settle` is called before former files are deleted.
    The steps named in `again` run even if nothing has changed.
    """
    try:
        for step in steps:
            if step.applies(context):
                if step.name in again:
                    replacement.set_aside(context.run, step.name, step.files)
                _run_step(context, step)
            if step.commits:
                _commit(context, settle)
        if not steps or not steps[-1].commits:
            _commit(context, settle)
    except BaseException:
        with contextlib.suppress(OSError):  # a disk that is full: the next command puts back what is left
            if names := replacement.roll_back(context.run):
                say(f"{', '.join(names)}: as before; the new files are kept until the same command is given again")
        raise


def _commit(context: Context, settle: Callable[[], object]) -> None:
    settle()
    replacement.commit(context.run)


def _run_step(context: Context, step: Step) -> None:
    run, key = context.run, step.key(context)
    up_to_date = run.up_to_date(step.name, key)
    if not up_to_date:
        replacement.begin(run, step.name, key, step.files)
        up_to_date = run.up_to_date(step.name, key)  # if an attempt finished it, and a later step failed
    if up_to_date:
        say(f"{step.name:<10} up to date")
        return
    say(f"{step.name:<10} ...")
    run.log(step.name, "start", key=key)
    started = time.monotonic()
    with hooks.stage(step.name):
        step.work(context)
    seconds = time.monotonic() - started
    outputs = [path for pattern in step.outputs for path in run.path.glob(pattern)]
    files = [path for path in outputs if path.is_file() and not path.name.startswith(".")]
    run.record_step(step.name, key, files, seconds)
    run.log(step.name, "done", seconds=seconds)
    say(f"{step.name:<10} done in {seconds:.1f} s")
