"""trtexec beside the agent's TensorRT backend, where both are: its flags, and what it prints.

NVIDIA's documentation of trtexec (TensorRT 8.6, 10.16 and 11.4, "Command-Line Programs" and "Performance
Benchmarking"): up to 10 it copies images in and logits out and waits for the GPU asleep, and launches kernel by kernel,
unless told otherwise; 11 leaves the copies out, waits in a loop and launches a CUDA graph, unless told otherwise. Here
every version is told to copy, to wait in a loop, and to launch as the agent's mode does.

"GPU Compute Time" is the agent's `compute`: between two events around the launch. "Latency" adds the two copies and
leaves out what the host does meanwhile, so that the agent's `host-to-host` is longer by nature: shown, not judged.
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

# the agent's mode -> the line of trtexec nearest to it, whether as a CUDA graph, whether the timed windows are equal
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
    """ "10.13.3" from trtexec's first line.

    Raises:
        ValueError: the text names no version.
    """
    found = VERSION.search(text)
    if found is None:
        raise ValueError("trtexec names no version of TensorRT")
    digits = int(found.group(1))
    # v8601 is 8.6.1 and v101303 is 10.13.3: with TensorRT 10 the major version moved up a digit
    unit = 10_000 if digits >= 100_000 else 1_000
    return f"{digits // unit}.{digits % unit // 100}.{digits % 100}"


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def flags(version: str, graph: bool) -> list[str]:
    """What makes a version copy images and logits, wait in a loop, and launch a CUDA graph or not."""
    if _major(version) >= 11:
        return ["--includeDataTransfers", *([] if graph else ["--noCudaGraph"])]
    return ["--useSpinWait", *(["--useCudaGraph"] if graph else [])]


def types(version: str, precision: str) -> list[str]:
    """What makes a version build the graph in the precisions that it is written in; 11 knows nothing else."""
    if _major(version) >= 11:
        return []
    if _major(version) >= 10:
        return ["--stronglyTyped"]
    return {"fp16": ["--fp16"], "int8": ["--int8", "--fp16"]}.get(precision, [])


def summary(text: str) -> dict[str, Reading]:
    """The performance summary: {"Latency": {"n", "min", "p50", "p90", "p99", "max"}, "GPU Compute Time": ...} in ms.

    Raises:
        ValueError: there is none, or it is that of a version before 8.2, which had a line for each figure.
    """
    queries = QUERIES.search(text)
    found: dict[str, Reading] = {}
    for line in text.splitlines():
        match = SUMMARY.match(line.strip())
        if match:
            values = {NAMES[name]: float(value) for name, value in VALUE.findall(match["values"]) if name in NAMES}
            found[match["name"]] = {**({"n": int(queries.group(1))} if queries else {}), **values}
    if not {"Latency", "GPU Compute Time"} <= found.keys():
        raise ValueError("trtexec printed no performance summary of TensorRT 8.2 or later")
    return found


def program() -> str | None:
    """Where trtexec is, None where it is not."""
    return shutil.which("trtexec")


def installed(path: str) -> str:
    """Its version.

    Raises:
        PeerError: it does not start, or says none.
    """
    try:
        return parse_version(_said([path, "--help"]))
    except ValueError as error:
        raise PeerError(str(error)) from None


def command(path: str, version: str, graph: Graph, engine: Path, plan: Plan, as_graph: bool) -> list[str]:
    """One measurement; the engine is built and kept where it is not there yet."""
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
    """What trtexec reads of a mode of the agent's.

    Raises:
        PeerError: it failed.
    """
    line, as_graph, _ = MODES[mode]
    try:
        return summary(_said(command(path, version, graph=graph, engine=engine, plan=plan, as_graph=as_graph)))[line]
    except ValueError as error:
        raise PeerError(str(error)) from None


def _said(asked: Sequence[str]) -> str:
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerError(last_line(str(error))) from None
    if done.returncode:
        raise PeerError(f"exit status {done.returncode}: {last_line(done.stderr or done.stdout)}")
    return done.stdout + done.stderr


def use(cache: Path) -> None:
    """Let the agent keep its engines there (agent/cache.py)."""
    cache.mkdir(parents=True, exist_ok=True)
    os.environ["EDGEDISTILL_CACHE"] = str(cache.absolute())


def kept(cache: Path) -> Path | None:
    """The engine that the agent built, None where it left not just one: trtexec then builds its own."""
    found = sorted((cache / "engines").glob("*.engine"))
    return found[0] if len(found) == 1 else None
