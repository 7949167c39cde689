"""keep: the precision of each target, int8 or a higher one; both are timed if this machine can run them."""

from __future__ import annotations

from functools import partial

from edgedistill.console import say
from edgedistill.errors import EdgeDistillError
from edgedistill.export.precision import TIMING_BACKENDS, Ratio, choose_precision, higher_precision
from edgedistill.records import OnnxModel
from edgedistill.run import artifacts
from edgedistill.run.files import digest
from edgedistill.steps import timing
from edgedistill.steps.context import Context
from edgedistill.steps.step import Step

UNTIMED = "its speed is measured on the device, by edgedistill bench --backend tensorrt"


def inputs(context: Context) -> dict[str, str]:
    """Hash of what a speed measured on this machine depends on."""
    machine = [context.device_facts("local"), context.recipe.bench.threads, timing.runtimes()]
    return {"machine": digest(machine)}


def work(context: Context) -> None:
    """Choose a graph for every target."""
    kept, settings, models = [], context.recipe.quantize, context.models
    guarded = {guard.target: guard for guard in context.guarded}
    for target in settings.targets if settings.enabled else ():
        guard, ratio, untimed, backend = guarded.get(target), None, UNTIMED, TIMING_BACKENDS[target]
        if backend in timing.runtimes() and (guard is None or guard.holds):
            int8 = next(model for model in models if model.target == target)
            ratio, untimed = speed(partial(timing.ratio, context), [higher_precision(target, models), int8], backend)
        kept.append(
            choose_precision(
                target, models, guarded=guard, min_speedup=settings.min_speedup, ratio=ratio, untimed=untimed
            )
        )
        say(f"  {target}: {kept[-1].artefact}: {kept[-1].why}")
    artifacts.KEPT.write(context.run, kept)


def speed(ratio: timing.PairRatio, pair: list[OnnxModel], backend: str) -> tuple[Ratio | None, str]:
    """The ratio of times, or why it could not be measured: a GPU may lack memory or be too old for the graph."""
    try:
        return ratio(pair, backend), ""
    except EdgeDistillError as error:
        if backend == "onnxruntime-cpu":
            raise
        return None, f"its speed could not be measured here: {error.message}"


STEP = Step(
    name="keep",
    version=1,
    sections=("quantize",),
    after=("export", "quantize"),
    inputs=inputs,
    outputs=("keep/*",),
    work=work,
)
