"""bench: latency and accuracy on the devices, measured by the agent; one step per device and backend."""

from __future__ import annotations

from functools import partial
from typing import get_args

from edgedistill.devices import inventory
from edgedistill.devices.bundle import target_of
from edgedistill.records import Precision
from edgedistill.run import artifacts
from edgedistill.run.files import digest
from edgedistill.steps.context import Context
from edgedistill.steps.step import Step


def inputs(context: Context, device_name: str) -> dict[str, str]:
    """Hashes of the measurement's settings and of the device's inventory entry."""
    settings = context.recipe.bench.for_key(exclude={"devices", "backends", "inventory"})
    return {"settings": digest(settings), "device": digest(context.device_facts(device_name))}


def work(context: Context, device_name: str, backend: str) -> None:
    """Measure the graphs of a backend on a device."""
    from edgedistill.devices import bench

    device = inventory.find(inventory.load(context.inventory), device_name)
    models = [model for model in context.models if model.target in {"any", target_of(backend)}]
    bench.bench(
        context.run / artifacts.BUNDLE,
        device,
        backend=backend,
        settings=context.recipe.bench,
        models=models,
        out=context.run / artifacts.BENCH,
    )


def steps(context: Context) -> tuple[Step, ...]:
    """One step per device and backend, so that measuring another device keeps the measurements of the first."""
    settings, devices = context.recipe.bench, inventory.load(context.inventory)
    return tuple(
        step(device, backend)
        for device in dict.fromkeys(settings.devices)
        for backend in inventory.backends_for(inventory.find(devices, device), tuple(dict.fromkeys(settings.backends)))
    )


def step(device: str, backend: str) -> Step:
    """The step of one device and backend.

    Its output patterns contain the precision, because another backend's name may begin with this one's.
    """
    return Step(
        name=f"bench-{device}-{backend}",
        version=2,
        after=("bundle",),
        inputs=partial(inputs, device_name=device),
        outputs=tuple(artifacts.bench_reports(device, backend, precision) for precision in get_args(Precision)),
        work=partial(work, device_name=device, backend=backend),
    )
