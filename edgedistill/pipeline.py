"""The steps of the pipeline, in order.

    recipe -> choose -> weigh -> search -> folds -> peer -> distill -> baseline
           -> export -> quantize -> keep -> engines -> verify -> unknown -> bundle -> bench -> choice -> report

Each step is a file in `steps/`: its inputs, version, outputs and work. Its key (steps/step.py) decides whether it must
run, before anything heavy is imported.
"""

from __future__ import annotations

from edgedistill.steps import (
    baseline,
    bench,
    bundle,
    choose,
    distill,
    engine_choice,
    engines,
    export,
    folds,
    keep,
    peer,
    quantize,
    report,
    search,
    unknown,
    verify,
    weigh,
)
from edgedistill.steps.context import Context
from edgedistill.steps.step import Step

CHOOSE = (choose.STEP,)
TRAIN = (weigh.STEP, search.STEP, folds.STEP, peer.STEP, distill.STEP, baseline.STEP)
EXPORT = (export.STEP, quantize.STEP, keep.STEP, engines.STEP, verify.STEP, unknown.STEP, bundle.STEP)


def no_steps(context: Context) -> tuple[Step, ...]:
    """No further step."""
    return ()


def export_steps(context: Context) -> tuple[Step, ...]:
    """The steps from the trained student to the bundle."""
    return EXPORT


def export_and_bench_steps(context: Context) -> tuple[Step, ...]:
    """The steps from the trained student to the last measurement."""
    return (*EXPORT, *bench_steps(context))


def bench_steps(context: Context) -> tuple[Step, ...]:
    """The measurement steps alone, and after them the choice for every device with several engines."""
    devices = {name: engine_choice.competing(names) for name, names in bench.backends_by_device(context).items()}
    choices = tuple(engine_choice.step(device, engines) for device, engines in devices.items() if engines)
    return (*bench.steps(context), *choices)


def report_step(context: Context) -> Step:
    """The step that reports on everything in this run directory."""
    return report.step(context)
