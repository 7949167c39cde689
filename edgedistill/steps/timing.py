"""Latency of a candidate before its training, and the ratio of two graphs' latencies.

Latency does not depend on the values of the weights: an untrained candidate goes through the student's pipeline: ONNX,
int8 if the budget says so, bundle, agent, device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from edgedistill.agent import backends
from edgedistill.agent.job import AgentError
from edgedistill.console import say
from edgedistill.devices import inventory
from edgedistill.devices.bundle import target_of
from edgedistill.errors import EdgeDistillError
from edgedistill.export.precision import TIMING_BACKENDS, Ratio, higher_precision, speed_ratio
from edgedistill.measurements import HOST_TO_HOST, BenchReport, Device
from edgedistill.recipe.schema import Bench, LatencyBound
from edgedistill.records import OnnxModel, StudentSpec, Target
from edgedistill.run import environment, interrupts
from edgedistill.run.files import digest, read_json, write_json
from edgedistill.steps import candidate

if TYPE_CHECKING:
    from onnx import ModelProto

    from edgedistill.steps.context import Context

ANY = "any"  # in place of a backend: the fastest of ENGINES on the device
ENGINES = ("onnxruntime-cpu", "openvino")
PAIR = {"processes": 3, "rounds": 5, "samples": 150, "seconds": 0.5}  # settings for the ratio of two graphs
PairRatio = Callable[[Sequence[OnnxModel], str], Ratio | None]  # of two graphs on a backend of this machine


def latency_ms(context: Context, spec: StudentSpec) -> float:
    """The candidate's latency in milliseconds: backend, precision and percentile are those of the recipe's budget.

    With the backend "any" it is that of the fastest engine on the device.

    It is measured once for each graph, device, backend and precision, and cached beside the runs.

    Raises:
        InputError: the inventory has no such device.
        EdgeDistillError: the device cannot be reached, or the agent failed there.
    """
    bound = context.recipe.student.budget.latency_ms
    assert bound is not None, "there is a bound to measure for"
    names = engines_there(context, bound.device) if bound.backend == ANY else (bound.backend,)
    return min(_latency_ms(context, spec, bound.model_copy(update={"backend": name})) for name in names)


def engines_there(context: Context, device_name: str) -> tuple[str, ...]:
    """The engines of ENGINES on a device: those that import on this machine, those that the inventory lists of others.

    Each of them gives the host's answers, so the fastest is the device's latency.
    """
    device = inventory.find(inventory.load(context.inventory), device_name)
    names = inventory.backends_for(device)
    if device.is_here:
        names = tuple(name for name, version in backends.available().items() if version[0].isdigit())
    return tuple(name for name in ENGINES if name in names) or ENGINES[:1]


def engine_versions(context: Context, device_name: str) -> dict[str, str]:
    """The engines on a device, as `engines_there`, with their versions where they are this machine's.

    ONNX Runtime has none here: its version is one of the exporters'.
    """
    is_here = inventory.find(inventory.load(context.inventory), device_name).is_here
    return {name: environment.runtime(name) if is_here else "" for name in engines_there(context, device_name)}


def kind_of_device(context: Context, device_name: str) -> list[str]:
    """What devices of one kind have in common, as far as it is known: the processor, where it is this machine's."""
    device = inventory.find(inventory.load(context.inventory), device_name)
    return [environment.processor()] if device.transport == "local" else []


def _latency_ms(context: Context, spec: StudentSpec, bound: LatencyBound) -> float:
    cache = context.run.cache / "latency"
    target = target_of(bound.backend)
    graphs = cache / f"graphs/{candidate.architecture(context, spec, bound.precision, target)}.json"
    is_here = inventory.find(inventory.load(context.inventory), bound.device).is_here
    version = environment.runtime(bound.backend) if is_here else ""
    place = {
        **({"runtime": version} if version else {}),
        "device": context.device_facts(bound.device),
        "backend": bound.backend,
        "precision": bound.precision,
        "bench": bench_settings(context),
    }

    def cached(sha256: str) -> Path:
        return cache / f"measured/{digest([sha256, place])[:32]}.json"

    def read(path: Path) -> dict[str, Any]:
        entry: dict[str, Any] = read_json(path, f"delete {path}; the candidate is then measured again")
        return entry

    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{bound.device}.lock"):  # two measurements at once would slow each other down
        if not graphs.is_file() or not cached(read(graphs)["sha256"]).is_file():
            with interrupts.temporary_folder() as folder:
                path, model = candidate.graph(context, spec, folder=folder, precision=bound.precision, target=target)
                [report] = measured(
                    context,
                    spec,
                    shipped=[(path, model)],
                    device_name=bound.device,
                    backend=bound.backend,
                    settings=bench_settings(context),
                    folder=folder,
                )
                samples_ms = list(report.latency.samples_ms)
            write_json(graphs, {"sha256": model.sha256, "candidate": asdict(spec)})
            write_json(cached(model.sha256), {"sha256": model.sha256, **place, "samples_ms": samples_ms})
    samples_ms = read(cached(read(graphs)["sha256"]))["samples_ms"]
    return float(np.percentile(samples_ms, bound.percentile))


def runtimes() -> dict[str, str]:
    """The backends by which targets are timed and that run on this machine, with their versions."""
    versions = {}
    for backend in TIMING_BACKENDS.values():
        with contextlib.suppress(AgentError):
            versions[backend] = str(backends.create(backend).facts()["version"])
    return versions


def graph_ratio(graph: ModelProto, floats: Sequence[OnnxModel], target: Target, ratio: PairRatio) -> Ratio | None:
    """The time of the higher precision over that of an int8 graph on this machine; None where it does not run here.

    Args:
        graph: the int8 graph.
        floats: the float graphs, fp32 first.
        target: that of the int8 graph.
        ratio: times two graphs.
    """
    from edgedistill.export.quantize import write

    if (backend := TIMING_BACKENDS[target]) not in runtimes():
        return None
    with interrupts.temporary_folder() as folder:
        model = write(graph, floats[0], target, folder)
        try:
            return ratio([higher_precision(target, floats), replace(model, path=str(folder / model.path))], backend)
        except EdgeDistillError:  # a GPU may lack memory or be too old; the cheapest set is then taken
            if target == "cpu":
                raise
            return None


def ratio(context: Context, models: Sequence[OnnxModel], backend: str) -> Ratio | None:
    """The first graph's time over the second's, timed in turn on this machine: (median, low, high), 95 %."""
    spec = context.checkpoint.spec
    paths = [(context.run / model.path, model) for model in models]
    settings = {**bench_settings(context), **PAIR}
    with interrupts.temporary_folder() as folder:
        reports = measured(
            context, spec, shipped=paths, device_name="local", backend=backend, settings=settings, folder=folder
        )
    return speed_ratio(*reports)


def measured(
    context: Context,
    spec: StudentSpec,
    shipped: Sequence[tuple[Path, OnnxModel]],
    device_name: str,
    backend: str,
    settings: Mapping[str, Any],
    folder: Path,
) -> list[BenchReport]:
    """Measure a student's graphs in turn on a device and a backend; return the agent's reports."""
    from edgedistill.students.space import describe

    images_NHWC = np.asarray(context.calibration_images(spec.input_px)[: candidate.IMAGES])
    device = inventory.find(inventory.load(context.inventory), device_name)
    description = {
        "classes": list(context.splits.classes),
        "input_px": spec.input_px,
        "store_px": context.view.px,
        "fit": context.view.fit,
        "range": context.view.limits,
    }
    precisions = " and ".join(model.precision for _, model in shipped)
    say(f"  measuring {describe(spec)} in {precisions} on {device_name}")
    return measure(
        folder, shipped, device, backend=backend, settings=settings, description=description, images_NHWC=images_NHWC
    )


def measure(
    folder: Path,
    shipped: Sequence[tuple[Path, OnnxModel]],
    device: Device,
    *,
    backend: str,
    settings: Mapping[str, Any],
    description: Mapping[str, Any],
    images_NHWC: np.ndarray,
) -> list[BenchReport]:
    """Measure graphs in turn, for their latency alone; return the agent's reports.

    Args:
        folder: an empty folder, for the bundle and the reports.
        shipped: the graphs with their records.
        device: the device to measure on.
        backend: what runs them there.
        settings: of a recipe's `bench`; no way from a picture to its label is timed.
        description: what bundle.json holds.
        images_NHWC: uint8 [N, px, px, 3].
    """
    from edgedistill.devices import bench, bundle

    bundle.write_bundle(
        folder / "bundle",
        shipped,
        description=description,
        images_NHWC=images_NHWC,
        labels_N=np.zeros(len(images_NHWC), dtype=np.int64),  # accuracy is not used here
        host_predictions={},
    )
    return bench.bench(
        folder / "bundle",
        device,
        backend=backend,
        settings=Bench.model_validate({**settings, "picture": None}),
        models=[model for _, model in shipped],
        out=folder / "bench",
    )


def bench_settings(context: Context) -> dict[str, Any]:
    """The recipe's measurement settings, for the few images of a latency measurement."""
    settings = context.recipe.bench.for_key(exclude={"devices", "backends", "inventory", "offline", "picture"})
    return {**settings, "accuracy_images": candidate.IMAGES, "modes": [HOST_TO_HOST]}
