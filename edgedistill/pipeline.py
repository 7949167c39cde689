"""The steps of the pipeline, in order.

    recipe -> weigh -> search -> distill -> export -> quantize -> keep -> engines -> verify -> bundle -> bench -> report

Each step is a file in `steps/`: its inputs, version, outputs and work. Its key (steps/step.py) decides whether it must
run, before anything heavy is imported.
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


def no_steps(context: Context) -> tuple[Step, ...]:
    """No further step."""
    return ()


def export_steps(context: Context) -> tuple[Step, ...]:
    """The steps from the trained student to the bundle."""
    return EXPORT


def export_and_bench_steps(context: Context) -> tuple[Step, ...]:
    """The steps from the trained student to the last measurement."""
    return (*EXPORT, *bench.steps(context))


def bench_steps(context: Context) -> tuple[Step, ...]:
    """The measurement steps alone."""
    return bench.steps(context)


def report_step(context: Context) -> Step:
    """The step that reports on everything in this run directory."""
    return report.step(context)
