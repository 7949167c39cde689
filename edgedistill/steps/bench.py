"""bench: latency and accuracy on the devices, measured by the agent; one step per device and backend."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import get_args

from edgedistill.devices import inventory
from edgedistill.devices.bundle import fitting
from edgedistill.errors import InputError
from edgedistill.records import OnnxModel, Precision
from edgedistill.run import artifacts, environment
from edgedistill.run.files import digest
from edgedistill.steps.context import Context
from edgedistill.steps.step import Step


def inputs(context: Context, device_name: str, backends: Sequence[str]) -> dict[str, str]:
    """Hashes of the measurement's settings, of the device's inventory entry, and of the bundle without its texts.

    On this machine also the versions of the backends' runtimes; the device's facts have that of ONNX Runtime.
    """
    settings = context.recipe.bench.for_key(exclude={"devices", "backends", "inventory"})
    texts = {artifacts.MODEL_CARD.path, artifacts.DESCRIPTION.path, artifacts.CHECKSUMS.path}
    bundle = {name: sha256 for name, sha256 in context.run.hashes("bundle").items() if name not in texts}
    device = inventory.find(inventory.load(context.inventory), device_name)
    versions = [version for name in backends if device.is_here and (version := environment.runtime(name))]
    return {
        **({"runtimes": digest(versions)} if versions else {}),
        "settings": digest(settings),
        "device": digest(context.device_facts(device_name)),
        "bundle": digest(bundle),
    }


def work(context: Context, device_name: str, backend: str) -> None:
    """Measure the graphs of a backend on a device."""
    from edgedistill.devices import bench

    device = inventory.find(inventory.load(context.inventory), device_name)
    models = models_for(context, backend)
    if not models:
        raise InputError(
            f"bench: the bundle has no graph for {backend}",
            "set `export: {ncnn: true}` in the recipe, and export again",
        )
    bench.bench(
        context.run / artifacts.BUNDLE,
        device,
        backend=backend,
        settings=context.recipe.bench,
        models=models,
        out=context.run / artifacts.BENCH,
    )


def models_for(context: Context, backend: str) -> list[OnnxModel]:
    """The graphs of the bundle that a backend runs."""
    return fitting(backend, context.shipped_models)


def backends_by_device(context: Context) -> dict[str, tuple[str, ...]]:
    """The backends to measure on every device that the recipe names."""
    settings, devices = context.recipe.bench, inventory.load(context.inventory)
    requested = tuple(dict.fromkeys(settings.backends))
    return {
        device: inventory.backends_for(inventory.find(devices, device), requested)
        for device in dict.fromkeys(settings.devices)
    }


def steps(context: Context) -> tuple[Step, ...]:
    """One step per device and backend, so that measuring another device keeps the measurements of the first."""
    devices = backends_by_device(context)
    return tuple(step(device, backend) for device, backends in devices.items() for backend in backends)


def step(device: str, backend: str) -> Step:
    """The step of one device and backend.

    Its output patterns contain the precision, because another backend's name may begin with this one's.
    """
    return Step(
        name=f"bench-{device}-{backend}",
        version=2,
        inputs=partial(inputs, device_name=device, backends=(backend,)),
        outputs=tuple(artifacts.bench_reports(device, backend, precision) for precision in get_args(Precision)),
        work=partial(work, device_name=device, backend=backend),
        commits=True,
    )
