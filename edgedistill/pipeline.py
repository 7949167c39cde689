"""The list of steps, in order.

    recipe -> weigh -> search -> distill -> export -> quantize -> keep -> engines -> verify -> bundle -> bench -> report

A step is a file of `steps/`: what it reads, its version, what it writes, and the work. Whether it must run at all is
decided by its key (steps/step.py) before anything heavy is imported.
"""

from __future__ import annotations

from edgedistill.steps import (
    bench,
    bundle,
    distill,
    engines,
    export,
    keep,
    quantize,
    report,
    search,
    verify,
    weigh,
)
from edgedistill.steps.context import Context
from edgedistill.steps.step import Step

TRAIN = (weigh.STEP, search.STEP, distill.STEP)
EXPORT = (export.STEP, quantize.STEP, keep.STEP, engines.STEP, verify.STEP, bundle.STEP)


def nothing(context: Context) -> tuple[Step, ...]:
    """No step after training."""
    return ()


def to_bundle(context: Context) -> tuple[Step, ...]:
    """From the trained student to the bundle."""
    return EXPORT


def to_the_end(context: Context) -> tuple[Step, ...]:
    """From the trained student to the last measurement."""
    return (*EXPORT, *bench.steps(context))


def bench_steps(context: Context) -> tuple[Step, ...]:
    """The measurements alone."""
    return bench.steps(context)


def report_step(context: Context) -> Step:
    """The report, of whatever was done in this run directory."""
    return report.step(context)
