"""trtexec for the comparison with the agent's TensorRT backend: its flags and its output.

Defaults by NVIDIA's documentation of trtexec (TensorRT 8.6, 10.16 and 11.4, "Command-Line Programs" and "Performance
Benchmarking"): up to 10 it copies images in and logits out, sleeps until the GPU has finished, and launches kernel by
kernel; 11 leaves out the copies, waits in a loop and launches a CUDA graph. The flags here make every version copy,
wait in a loop, and launch as the agent's mode does.

"GPU Compute Time" is the agent's `compute`: between two events around the launch. "Latency" adds the two copies and
leaves out the host's work meanwhile, so the agent's `host-to-host` is longer by definition: shown, not judged.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks.meter.compare import Plan, Reading
from benchmarks.meter.graphs import Graph
from benchmarks.quantize.environments import PeerError, last_line

# the agent's mode -> the nearest line of trtexec, whether as a CUDA graph, whether the timed windows are equal
MODES = {
    "compute": ("GPU Compute Time", False, True),
    "compute-graph": ("GPU Compute Time", True, True),
    "host-to-host": ("Latency", False, False),
    "host-to-host-graph": ("Latency", True, False),
}
NAMES = {"min": "min", "median": "p50", "percentile(90%)": "p90", "percentile(99%)": "p99", "max": "max"}
VERSION = re.compile(r"\[TensorRT v(\d+)\]")
SUMMARY = re.compile(r"^(?:\[[^\]]*\] )*(?P<name>[A-Z][A-Za-z0-9 ]*): (?P<values>min = .*)$")
VALUE = re.compile(r"(min|max|mean|median|percentile\(\d+(?:\.\d+)?%\)) = (\S+) ms")
QUERIES = re.compile(r"Timing trace has (\d+) queries")
TIMEOUT_S = 1800.0


def parse_version(text: str) -> str:
    """Parse a version such as "10.13.3" from trtexec's first line.

    Raises:
        ValueError: the text names no version.
    """
    match = VERSION.search(text)
    if match is None:
        raise ValueError("trtexec names no version of TensorRT")
    digits = int(match.group(1))
    # v8601 is 8.6.1 and v101303 is 10.13.3: with TensorRT 10 the major version moved up a digit
    unit = 10_000 if digits >= 100_000 else 1_000
    return f"{digits // unit}.{digits % unit // 100}.{digits % 100}"


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def flags(version: str, graph: bool) -> list[str]:
    """Flags that make a version copy images and logits, wait in a loop, and launch a CUDA graph or not."""
    if _major(version) >= 11:
        return ["--includeDataTransfers", *([] if graph else ["--noCudaGraph"])]
    return ["--useSpinWait", *(["--useCudaGraph"] if graph else [])]


def types(version: str, precision: str) -> list[str]:
    """Flags that make a version build the graph in the precisions that it is written in; 11 always does."""
    if _major(version) >= 11:
        return []
    if _major(version) >= 10:
        return ["--stronglyTyped"]
    return {"fp16": ["--fp16"], "int8": ["--int8", "--fp16"]}.get(precision, [])


def summary(text: str) -> dict[str, Reading]:
    """Parse the performance summary: {"Latency": {"n", "min", "p50", "p90", "p99", "max"}, ...} in ms.

    Raises:
        ValueError: there is none, or it is that of a version before 8.2, which had a line for each figure.
    """
    queries = QUERIES.search(text)
    readings: dict[str, Reading] = {}
    for line in text.splitlines():
        match = SUMMARY.match(line.strip())
        if match:
            figures = {NAMES[name]: float(number) for name, number in VALUE.findall(match["values"]) if name in NAMES}
            readings[match["name"]] = {**({"n": int(queries.group(1))} if queries else {}), **figures}
    if not {"Latency", "GPU Compute Time"} <= readings.keys():
        raise ValueError("trtexec printed no performance summary of TensorRT 8.2 or later")
    return readings


def program() -> str | None:
    """The path of trtexec; None where it is not installed."""
    return shutil.which("trtexec")


def installed_version(path: str) -> str:
    """The version of an installed trtexec.

    Raises:
        PeerError: it does not start, or prints no version.
    """
    try:
        return parse_version(_output([path, "--help"]))
    except ValueError as error:
        raise PeerError(str(error)) from None


def command(path: str, version: str, graph: Graph, engine: Path, plan: Plan, as_graph: bool) -> list[str]:
    """The command line of one measurement; it builds and saves the engine where that does not exist."""
    build = [f"--onnx={graph.path}", f"--saveEngine={engine}", *types(version, graph.model.precision)]
    return [
        path,
        *([f"--loadEngine={engine}"] if engine.exists() else build),
        f"--shapes=images:1x{graph.px}x{graph.px}x3",
        *flags(version, as_graph),
        "--percentile=90,95,99",
        "--warmUp=1000",
        f"--iterations={plan.samples}",
        f"--duration={max(1, round(plan.seconds))}",
    ]


def reading(path: str, version: str, graph: Graph, engine: Path, plan: Plan, mode: str) -> Reading:
    """Measure one of the agent's modes with trtexec.

    Raises:
        PeerError: trtexec failed.
    """
    line, as_graph, _ = MODES[mode]
    try:
        return summary(_output(command(path, version, graph=graph, engine=engine, plan=plan, as_graph=as_graph)))[line]
    except ValueError as error:
        raise PeerError(str(error)) from None


def _output(arguments: Sequence[str]) -> str:
    try:
        process = subprocess.run(arguments, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerError(last_line(str(error))) from None
    if process.returncode:
        raise PeerError(f"exit status {process.returncode}: {last_line(process.stderr or process.stdout)}")
    return process.stdout + process.stderr


def use_cache(cache: Path) -> None:
    """Set the directory where the agent keeps its engines (agent/cache.py)."""
    cache.mkdir(parents=True, exist_ok=True)
    os.environ["EDGEDISTILL_CACHE"] = str(cache.absolute())


def agent_engine(cache: Path) -> Path | None:
    """The engine that the agent built; None unless there is exactly one: trtexec then builds its own."""
    engines = sorted((cache / "engines").glob("*.engine"))
    return engines[0] if len(engines) == 1 else None
