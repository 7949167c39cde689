"""choice: the engine and precision to run on a device, timed there; one step per device with several engines."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from edgedistill.console import say
from edgedistill.devices import inventory
from edgedistill.devices.bundle import target_of
from edgedistill.records import OnnxModel
from edgedistill.run import artifacts
from edgedistill.run.files import digest
from edgedistill.steps import bench
from edgedistill.steps.context import Context
from edgedistill.steps.step import Step

SIMPLEST = "onnxruntime-cpu"  # the only one that every device has, and that the host verifies with
ON_CPU = ("cpu", "ncnn")  # targets of the engines that compete: a GPU's engines are measured apart


def competing(backends: Sequence[str]) -> tuple[str, ...]:
    """The engines among the backends of a device that compete, ONNX Runtime first; () if they are not several."""
    names = sorted((name for name in backends if target_of(name) in ON_CPU), key=lambda name: name != SIMPLEST)
    return tuple(names) if len(names) > 1 and names[0] == SIMPLEST else ()


def inputs(context: Context, device_name: str, backends: Sequence[str]) -> dict[str, str]:
    """Hashes of what the measurement depends on, of the engines, and of the bounds."""
    bounds = context.recipe.quantize
    engines = digest([list(backends), bounds.min_speedup, bounds.max_drop])
    return {**bench.inputs(context, device_name, backends), "engines": engines}


def work(context: Context, device_name: str, backends: Sequence[str]) -> None:
    """Time every engine with each of its graphs that holds the accuracy bound, and choose."""
    from edgedistill.devices import choice

    pairs = [choice.Pair(backend=backend, model=model) for backend in backends for model in holding(context, backend)]
    # the simplest pair is ONNX Runtime with the graph that the step keep chose for CPUs
    default = context.default_graph
    pairs.sort(key=lambda pair: (pair.backend, pair.model.name) != (SIMPLEST, default))
    chosen = choice.choose(
        context.run / artifacts.BUNDLE,
        inventory.find(inventory.load(context.inventory), device_name),
        pairs,
        context.recipe.bench,
        min_speedup=context.recipe.quantize.min_speedup,
        max_drop=context.recipe.quantize.max_drop,
    )
    artifacts.engine_choice(device_name).write(context.run, chosen)
    say(f"  to run on {device_name}: {chosen.why}")


def holding(context: Context, backend: str) -> list[OnnxModel]:
    """The graphs that a backend runs, without int8 where the accuracy guard refused it."""
    refused = {f"int8-{guard.target}" for guard in context.guarded if not guard.holds}
    return [model for model in bench.models_for(context, backend) if model.name not in refused]


def step(device: str, backends: Sequence[str]) -> Step:
    """The step of one device."""
    return Step(
        name=f"choice-{device}",
        version=1,
        after=("keep",),
        inputs=partial(inputs, device_name=device, backends=backends),
        outputs=(artifacts.engine_choice(device).path,),
        work=partial(work, device_name=device, backends=backends),
        commits=True,
    )
