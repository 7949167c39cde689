"""Engines built ahead of time, and the builder's log: which layers of a graph compute in int8.

This checks on machines without a GPU that a graph parses and builds. It does not show what TensorRT fuses on a device,
nor how fast it runs: a device builds its own engine of the same graph (agent/tensorrt.py).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from onnx import ModelProto

from edgedistill.console import bar
from edgedistill.export import graphs, qdq, rtx_builder
from edgedistill.measurements import Engine, EngineLayers
from edgedistill.records import OnnxModel
from edgedistill.run import artifacts, interrupts
from edgedistill.run.files import atomic, sha256_file, write_json, write_record

TIMEOUT_S = 900.0
GENERATED = "kgen"  # a kernel made of elementwise operators and reductions
WAIT_KINDS = ("signal", "wait")
TYPES = {"Float": "fp32", "Half": "fp16", "Int8": "int8"}  # the widest first
UNKNOWN = "unknown"
QDQ = ("QuantizeLinear", "DequantizeLinear")
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer of an engine as logged: the types of its inputs, constants and outputs, and its ONNX nodes."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]

    @property
    def precision(self) -> str:
        """int8 if the layer multiplies int8, else the widest float type of its inputs; "unknown" without types.

        A generated kernel converts int8 to float, so the types of its constants and outputs count as well.
        """
        generated, reads_int8 = self.kind == GENERATED, "Int8" in self.inputs
        if not generated and reads_int8 and ("Int8" in self.constants or set(self.inputs) == {"Int8"}):
            return "int8"
        return widest_precision((*self.inputs, *self.constants, *self.outputs) if generated else self.inputs)


def widest_precision(types: Iterable[str]) -> str:
    """The precision of the widest of a log's tensor types; "unknown" if none of them is in TYPES."""
    present = set(types)
    return next((TYPES[name] for name in TYPES if name in present), UNKNOWN)


def parse_layers(log: str) -> list[Layer]:
    """Parse the layers listed at the end of a verbose build log of tensorrt-rtx, without stream synchronization.

    Returns:
        The layers in the log's order; empty if the log lists none.
    """
    # split by "\n" alone: the log separates ONNX nodes by control characters that splitlines() treats as line ends
    listed = [_layer(line) for line in log.split("\n") if re.match(r"Name: .+?, LayerType: ", line)]
    return [layer for layer in listed if layer.kind not in WAIT_KINDS]


def _layer(line: str) -> Layer:
    head, *parts = re.split(r", (Inputs|Constants|Outputs|TacticName|StreamId|Metadata): ", line)
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    inputs, constants, outputs = (
        tuple(re.findall(r"Datatype: (\w+)", sections.get(part, ""))) for part in ("Inputs", "Constants", "Outputs")
    )
    nodes = tuple(re.findall(r"\[ONNX Layer: ([^\]]+)\]", sections.get("Metadata", "")))
    name, _, kind = head.removeprefix("Name: ").partition(", LayerType: ")
    return Layer(name=name, kind=kind, inputs=inputs, constants=constants, outputs=outputs, nodes=nodes)


def engine_layers(log: str, graph: ModelProto) -> EngineLayers | None:
    """Summarize the precisions and the unfused Q/DQ nodes of a build log; None if it lists no layers.

    A node with weights has the precision of the layer that multiplies them. A Q/DQ node of an activation is unfused
    if a kernel computes only Q/DQ nodes. A node that the log does not name is unknown.
    """
    layers = parse_layers(log)
    if not layers:
        return None
    constants = graphs.constants(graph)
    weighted_nodes = [node.name for node in graph.graph.node if node.op_type in graphs.WEIGHTED]
    qdq_nodes = [node.name for node in graph.graph.node if node.op_type in QDQ]
    activation_nodes = [
        node.name for node in graph.graph.node if node.op_type in QDQ and node.input[0] not in constants
    ]
    logged_nodes = {name for layer in layers for name in layer.nodes}
    qdq_only_nodes = {name for layer in layers if set(layer.nodes) <= set(qdq_nodes) for name in layer.nodes}
    counts = Counter(layer.precision for layer in layers)
    return EngineLayers(
        total=len(layers),
        types={name: counts[name] for name in (*TYPES.values(), UNKNOWN)},
        weighted={name: node_precision(name, layers) for name in weighted_nodes},
        pairs=len(activation_nodes),
        unfused=tuple(name for name in activation_nodes if name in qdq_only_nodes),
        unknown=tuple(name for name in activation_nodes if name not in logged_nodes),
    )


def node_precision(node: str, layers: Iterable[Layer]) -> str:
    """The precision in which a node's weights are multiplied, the widest of several; "unknown" if no layer names it.

    Generated kernels that compute its bias and activation name the node as well. They compute small products entirely.
    """
    node_layers = [layer for layer in layers if node in layer.nodes]
    precisions = {layer.precision for layer in node_layers if layer.kind != GENERATED}
    if not precisions:
        return widest_precision(name for layer in node_layers for name in (*layer.inputs, *layer.constants))
    return next((name for name in TYPES.values() if name in precisions), UNKNOWN)


def build(graph: Path, model: OnnxModel, capability: str, folder: Path, timeout_s: float = TIMEOUT_S) -> Engine:
    """Build the engine of one graph for one compute capability: `<artefact>.<capability>.engine` in a folder.

    Args:
        graph: the ONNX file; its types are the engine's.
        model: its record.
        capability: such as "sm89".
        folder: the folder for the engine.
        timeout_s: seconds after which the builder is stopped.

    Returns:
        The record. If the build failed, `failed` has the reason: the parser's errors, the last error of the log, or how
        the builder's process ended.

    Raises:
        EdgeDistillError: TensorRT would silently build a different network from the graph (uint8, ...).
    """
    loaded = onnx.load(graph)
    qdq.refuse_for_tensorrt(loaded, str(graph))
    name, started = f"{model.name}.{capability}.engine", time.monotonic()
    with interrupts.temporary_folder() as temporary:
        built = temporary / "engine"
        failed, log = run_builder(graph.resolve(), built, capability, timeout_s)
        seconds = round(time.monotonic() - started, 3)
        engine = Engine(
            artefact=model.name,
            onnx_sha256=sha256_file(graph),
            capability=capability,
            builder=rtx_builder.version(),
            batch=rtx_builder.BATCH,
            seconds=seconds,
            failed=failed,
        )
        if failed:
            return engine
        with atomic(folder / name) as destination:
            shutil.copyfile(built, destination)
    path = folder / name
    size_mb = path.stat().st_size / 1e6
    return replace(engine, path=name, sha256=sha256_file(path), size_mb=size_mb, layers=engine_layers(log, loaded))


def run_builder(graph: Path, engine: Path, capability: str, timeout_s: float) -> tuple[str, str]:
    """Run the builder in a process of its own.

    Returns:
        ("" or the reason of the failure, the builder's log).
    """
    log_path = engine.with_name("log")
    command = [sys.executable, "-m", "edgedistill.export.rtx_builder", str(graph), str(engine), capability]
    with log_path.open("wb") as stream:
        try:
            # in the package's parent folder, so that the child imports this package and no module of the current folder
            with interrupts.child_session(command, stdout=stream, stderr=subprocess.PIPE, cwd=ROOT) as process:
                stderr = process.communicate(timeout=timeout_s)[1].decode(errors="replace")
        except subprocess.TimeoutExpired:
            return f"the builder did not end within {timeout_s:g} s", ""
    log = log_path.read_text(encoding="utf-8", errors="replace")
    return ("" if process.returncode == 0 else failure_reason(process.returncode, stderr, log)), log


def failure_reason(code: int, stderr: str, log: str) -> str:
    """The reason of a failed build in one line, from the builder's exit code, stderr and log."""
    last = (stderr.strip().splitlines() or [""])[-1]
    errors = re.findall(r"\[E\] (.+)", log)
    if code < 0:
        last = f"the builder was ended by signal {-code}" + (f" after: {errors[-1]}" if errors else "")
    elif last == rtx_builder.NO_ENGINE and errors:
        last = errors[-1]
    return " ".join(last.split()) or f"the builder ended with exit code {code} and without a message"


def write(models: Sequence[OnnxModel], root: Path, folder: Path, capabilities: Sequence[str]) -> list[Engine]:
    """Build and write an engine and its record for every graph that is not for the CPU.

    Without capabilities or builder, only `none.json` is written, with the reason. A failed build is recorded and does
    not stop the others: a device builds with its own TensorRT.

    Args:
        models: all graphs; those for the CPU are skipped. Their paths are relative to `root`.
        root: the run directory.
        folder: the folder for the engines.
        capabilities: such as ["sm86", "sm89"].
    """
    missing = f"{rtx_builder.PACKAGE} is not installed: pip install 'edgedistill[rtx]'"
    reason = "" if rtx_builder.version() else missing
    if not capabilities:
        reason = "export.engines is empty"
    if reason:
        write_json(folder / artifacts.NO_ENGINES.name, {"why": reason})
        return []
    jobs = [(model, capability) for model in models if model.target != "cpu" for capability in capabilities]
    engines = []
    with bar("engines", len(jobs)) as advance:
        for model, capability in jobs:
            engine = build(root / model.path, model, capability, folder)
            write_record(folder / f"{engine.artefact}.{capability}.json", engine)
            engines.append(engine)
            advance(1)
    return engines
