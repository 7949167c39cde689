"""Latency of a candidate before its training, and the ratio of two graphs' latencies.

Latency does not depend on the values of the weights: an untrained candidate goes through the student's pipeline: ONNX,
int8 if the budget says so, bundle, agent, device.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from edgedistill.agent import backends
from edgedistill.agent.job import AgentError
from edgedistill.console import say
from edgedistill.devices import inventory
from edgedistill.devices.bundle import target_of
from edgedistill.export.precision import TIMING_BACKENDS, speed_ratio
from edgedistill.recipe.schema import Bench
from edgedistill.records import HOST_TO_HOST, BenchReport, OnnxModel, StudentSpec
from edgedistill.run.files import digest, read_json, write_json
from edgedistill.steps import candidate

if TYPE_CHECKING:
    from edgedistill.steps.context import Context


def latency_ms(context: Context, spec: StudentSpec) -> float:
    """The candidate's latency in milliseconds: backend, precision and percentile are those of the recipe's budget.

    It is measured once for each graph, device, backend and precision, and cached beside the runs.

    Raises:
        InputError: the inventory has no such device.
        EdgeDistillError: the device cannot be reached, or the agent failed there.
    """
    bound = context.recipe.student.budget.latency_ms
    assert bound is not None, "there is a bound to measure for"
    cache = context.run.cache / "latency"
    target = target_of(bound.backend)
    graphs = cache / f"graphs/{candidate.architecture(context, spec, bound.precision, target)}.json"
    place = {
        "device": context.device_facts(bound.device),
        "backend": bound.backend,
        "precision": bound.precision,
        "bench": bench_settings(context),
    }

    def cached(sha256: str) -> Path:
        return cache / f"measured/{digest([sha256, place])[:32]}.json"

    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{bound.device}.lock"):  # two measurements at once would slow each other down
        if not graphs.is_file() or not cached(read_json(graphs)["sha256"]).is_file():
            with tempfile.TemporaryDirectory(prefix="edgedistill-") as folder:
                path, model = candidate.graph(
                    context, spec, folder=Path(folder), precision=bound.precision, target=target
                )
                [report] = measured(
                    context,
                    spec,
                    shipped=[(path, model)],
                    device_name=bound.device,
                    backend=bound.backend,
                    settings=bench_settings(context),
                    folder=Path(folder),
                )
                samples_ms = list(report.latency.samples_ms)
            write_json(graphs, {"sha256": model.sha256, "candidate": asdict(spec)})
            write_json(cached(model.sha256), {"sha256": model.sha256, **place, "samples_ms": samples_ms})
    samples_ms = read_json(cached(read_json(graphs)["sha256"]))["samples_ms"]
    return float(np.percentile(samples_ms, bound.percentile))


def runtimes() -> dict[str, str]:
    """The backends by which targets are timed and that run on this machine, with their versions."""
    versions = {}
    for backend in TIMING_BACKENDS.values():
        with contextlib.suppress(AgentError):
            versions[backend] = str(backends.create(backend).facts()["version"])
    return versions


def ratio(context: Context, models: Sequence[OnnxModel], backend: str) -> tuple[float, float, float] | None:
    """The first graph's time over the second's, timed in turn on this machine: (median, low, high), 95 %."""
    spec = context.checkpoint.spec
    paths = [(context.run / model.path, model) for model in models]
    settings = {**bench_settings(context), "processes": 3, "rounds": 5, "samples": 150, "seconds": 0.5}
    with tempfile.TemporaryDirectory(prefix="edgedistill-") as folder:
        reports = measured(
            context, spec, shipped=paths, device_name="local", backend=backend, settings=settings, folder=Path(folder)
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
    """Measure the graphs in turn on a device and a backend; return the agent's reports."""
    from edgedistill.devices import bench, bundle
    from edgedistill.students.space import describe

    images_NHWC = np.asarray(context.calibration_images(spec.input_px)[: candidate.IMAGES])
    device = inventory.find(inventory.load(context.inventory), device_name)
    description = {
        "classes": list(context.splits.classes),
        "input_px": spec.input_px,
        "store_px": context.splits.train.px,
        "fit": context.recipe.data.fit,
    }
    no_labels_N = np.zeros(len(images_NHWC), dtype=np.int64)  # accuracy is not used here
    bundle.write_bundle(
        folder / "bundle",
        shipped,
        description=description,
        images_NHWC=images_NHWC,
        labels_N=no_labels_N,
        host_predictions={},
    )
    models = [model for _, model in shipped]
    say(f"  measuring {describe(spec)} in {' and '.join(model.precision for model in models)} on {device_name}")
    return bench.bench(
        folder / "bundle",
        device,
        backend=backend,
        settings=Bench.model_validate(settings),
        models=models,
        out=folder / "bench",
    )


def bench_settings(context: Context) -> dict[str, Any]:
    """The recipe's measurement settings, for the few images of a latency measurement."""
    settings = context.recipe.bench.for_key(exclude={"devices", "backends", "inventory", "offline"})
    return {**settings, "accuracy_images": candidate.IMAGES, "modes": [HOST_TO_HOST]}
