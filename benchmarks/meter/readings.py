"""One reading of each side: of the agent, by the product's bench, and of mlcommons-loadgen."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.meter.compare import Plan, Reading
from benchmarks.meter.graphs import Graph
from benchmarks.quantize.environments import run_command
from edgedistill.agent import metrics
from edgedistill.devices.bench import bench
from edgedistill.devices.bundle import AGENT, IMAGES
from edgedistill.measurements import HOST_TO_HOST, Device
from edgedistill.recipe.schema import Bench

DRIVER = Path(__file__).parent / "driver.py"
PERCENTILES = ("min", "p50", "p90", "p99", "p99.9", "max")


def agent(
    graph: Graph, plan: Plan, python: Path, backend: str = "onnxruntime-cpu", mode: str = HOST_TO_HOST
) -> Reading:
    """Measure with the agent, in a fresh process.

    Args:
        graph: the graph to run.
        plan: samples, seconds, threads and batch.
        python: the interpreter that has the runtime.
        backend: a backend of the agent.
        mode: a mode of the backend, or "offline" for the rate in batches of the plan.

    Raises:
        EdgeDistillError: the agent failed.
    """
    offline = mode == "offline"
    settings = Bench.model_validate(
        {
            "modes": () if offline else (mode,),
            "offline": (plan.batch,) if offline else (),
            "threads": plan.threads,
            "processes": 1,
            "rounds": 1,
            "samples": math.ceil(plan.samples / plan.batch) if offline else plan.samples,
            "seconds": plan.seconds,
            "accuracy_images": 1,
        }
    )
    with tempfile.TemporaryDirectory() as out:
        device = Device(name="meter", python=str(python))
        (report,) = bench(graph.bundle, device, backend=backend, settings=settings, models=[graph.model], out=Path(out))
    facts = {"n": len(report.latency.samples_ms), "verdict": report.verdict, "version": report.backend_version}
    return {**facts, **summary(report.latency.samples_ms, plan.batch if offline else None)}


def summary(samples_ms: Sequence[float], batch: int | None) -> Reading:
    """Percentiles in ms; with `batch`, images a second."""
    if batch is not None:
        return {"per_second": 1000.0 * batch * len(samples_ms) / sum(samples_ms)}
    percentiles = metrics.percentiles(samples_ms)
    return {mark: round(percentiles[mark], 5) for mark in PERCENTILES}


def loadgen(graph: Graph, plan: Plan, python: Path, scenario: str) -> Reading:
    """Measure with mlcommons-loadgen, which drives the agent's backend in a fresh process.

    Raises:
        PeerError: the process failed.
    """
    single = scenario == "SingleStream"
    output = run_command(
        [
            str(python),
            str(DRIVER),
            "--agent",
            str(graph.bundle / AGENT),
            "--model",
            str(graph.path),
            "--images",
            str(graph.bundle / IMAGES),
            "--scenario",
            scenario,
            "--threads",
            str(plan.threads),
            "--batch",
            str(1 if single else plan.batch),
            "--samples",
            str(plan.samples),
            "--seconds",
            str(plan.seconds),
        ]
    )
    reading: dict[str, Any] = json.loads(output.splitlines()[-1])
    return reading
