"""Engines built ahead of time, and what the builder's log says became of a graph: which layers compute in int8.

It is a check that a graph parses, types and builds, on machines without a GPU. It is no evidence of what TensorRT fuses
on a device, nor of its speed: a device builds its own engine of the same graph (agent/tensorrt.py).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from onnx import ModelProto

from edgedistill.console import bar
from edgedistill.export import graphs, qdq, rtx_builder
from edgedistill.records import Engine, EngineLayers, OnnxModel
from edgedistill.run import artifacts
from edgedistill.run.files import atomic, sha256_file, write_json, write_record

TIMEOUT_S = 900.0
GENERATED = "kgen"  # a kernel made of elementwise operators and reductions
WAITING = ("signal", "wait")
TYPES = {"Float": "fp32", "Half": "fp16", "Int8": "int8"}  # the widest first
UNKNOWN = "unknown"
QDQ = ("QuantizeLinear", "DequantizeLinear")
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer of an engine as the log lists it: types of the tensors it reads, holds and makes, and its ONNX nodes."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]

    @property
    def precision(self) -> str:
        """int8 where it multiplies int8, else the widest float of what it reads; "unknown" where the log has none.

        A generated kernel turns int8 into float, whatever it reads: what it holds and makes counts as well.
        """
        generated, reads_int8 = self.kind == GENERATED, "Int8" in self.inputs
        if not generated and reads_int8 and ("Int8" in self.constants or set(self.inputs) == {"Int8"}):
            return "int8"
        return widest((*self.inputs, *self.constants, *self.outputs) if generated else self.inputs)


def widest(types: Iterable[str]) -> str:
    """The widest of the types of tensors, as a log names them; "unknown" where none of them is one of TYPES."""
    seen = set(types)
    return next((TYPES[name] for name in TYPES if name in seen), UNKNOWN)


def layers(log: str) -> list[Layer]:
    """The layers that a verbose build log of tensorrt-rtx lists at its end, less those where streams wait for another.

    None where it lists none.
    """
    # split by "\n" alone: the log parts ONNX nodes by control characters that splitlines() takes for line ends
    listed = [_layer(line) for line in log.split("\n") if re.match(r"Name: .+?, LayerType: ", line)]
    return [one for one in listed if one.kind not in WAITING]


def _layer(line: str) -> Layer:
    head, *parts = re.split(r", (Inputs|Constants|Outputs|TacticName|StreamId|Metadata): ", line)
    named = dict(zip(parts[::2], parts[1::2], strict=True))
    inputs, constants, outputs = (
        tuple(re.findall(r"Datatype: (\w+)", named.get(part, ""))) for part in ("Inputs", "Constants", "Outputs")
    )
    nodes = tuple(re.findall(r"\[ONNX Layer: ([^\]]+)\]", named.get("Metadata", "")))
    name, _, kind = head.removeprefix("Name: ").partition(", LayerType: ")
    return Layer(name=name, kind=kind, inputs=inputs, constants=constants, outputs=outputs, nodes=nodes)


def findings(log: str, graph: ModelProto) -> EngineLayers | None:
    """What a build log says of a graph; None where it lists no layers.

    A node with weights has the precision of the layer that multiplies them. A Q/DQ node of an activation is unfused
    where a kernel does nothing else. What the log does not speak of is unknown.
    """
    found = layers(log)
    if not found:
        return None
    constants = graphs.constants(graph)
    weighted = [node.name for node in graph.graph.node if node.op_type in graphs.WEIGHTED]
    pairs = [node.name for node in graph.graph.node if node.op_type in QDQ]
    active = [node.name for node in graph.graph.node if node.op_type in QDQ and node.input[0] not in constants]
    seen = {name for layer in found for name in layer.nodes}
    alone = {name for layer in found if set(layer.nodes) <= set(pairs) for name in layer.nodes}
    types = Counter(layer.precision for layer in found)
    return EngineLayers(
        total=len(found),
        types={name: types[name] for name in (*TYPES.values(), UNKNOWN)},
        weighted={name: precision_of(name, found) for name in weighted},
        pairs=len(active),
        unfused=tuple(name for name in active if name in alone),
        unknown=tuple(name for name in active if name not in seen),
    )


def precision_of(node: str, found: Iterable[Layer]) -> str:
    """The precision in which a node's weights are multiplied, the widest of several; "unknown" where no layer names it.

    Generated kernels name it as well, where its bias and activation are computed. They do the whole of a small product.
    """
    named = [layer for layer in found if node in layer.nodes]
    precisions = {layer.precision for layer in named if layer.kind != GENERATED}
    if not precisions:
        return widest(name for layer in named for name in (*layer.inputs, *layer.constants))
    return next((name for name in TYPES.values() if name in precisions), UNKNOWN)


def build(graph: Path, model: OnnxModel, capability: str, folder: Path, timeout_s: float = TIMEOUT_S) -> Engine:
    """Build the engine of one graph for one compute capability: `<artefact>.<capability>.engine` in a folder.

    Args:
        graph: the ONNX file; its types are the engine's.
        model: its record.
        capability: such as "sm89".
        folder: where the engine goes.
        timeout_s: after so many seconds the builder is ended.

    Returns:
        The record. Where there is no engine, `failed` says why: the parser's words, the last error of the log, or how
        the builder's process ended.

    Raises:
        EdgeDistillError: the graph is one that TensorRT would build into another network (uint8, ...).
    """
    loaded = onnx.load(graph)
    qdq.refuse_for_tensorrt(loaded, str(graph))
    name, started = f"{model.name}.{capability}.engine", time.monotonic()
    with tempfile.TemporaryDirectory(prefix="edgedistill-") as temporary:
        made = Path(temporary) / "engine"
        failed, log = _built(graph.resolve(), made, capability, timeout_s)
        seconds = round(time.monotonic() - started, 3)
        common = Engine(
            artefact=model.name,
            onnx_sha256=sha256_file(graph),
            capability=capability,
            builder=rtx_builder.version(),
            batch=rtx_builder.BATCH,
            seconds=seconds,
            failed=failed,
        )
        if failed:
            return common
        with atomic(folder / name) as place:
            shutil.copyfile(made, place)
    path = folder / name
    size_mb = path.stat().st_size / 1e6
    return replace(common, path=name, sha256=sha256_file(path), size_mb=size_mb, layers=findings(log, loaded))


def _built(graph: Path, engine: Path, capability: str, timeout_s: float) -> tuple[str, str]:
    """Run the builder; ("" or why there is no engine, its log)."""
    place = engine.with_name("log")
    command = [sys.executable, "-m", "edgedistill.export.rtx_builder", str(graph), str(engine), capability]
    with place.open("wb") as stream:
        try:
            # in the package's own folder, so that the child runs this very code and nothing that lies about
            done = subprocess.run(
                command, stdout=stream, stderr=subprocess.PIPE, timeout=timeout_s, check=False, cwd=ROOT
            )
        except subprocess.TimeoutExpired:
            return f"the builder did not end within {timeout_s:g} s", ""
    log = place.read_text(encoding="utf-8", errors="replace")
    said = done.stderr.decode(errors="replace")
    return ("" if done.returncode == 0 else why(done.returncode, said, log)), log


def why(code: int, said: str, log: str) -> str:
    """In one line, why the builder's process left no engine, from its exit code, stderr and log."""
    last = (said.strip().splitlines() or [""])[-1]
    errors = re.findall(r"\[E\] (.+)", log)
    if code < 0:
        last = f"the builder was ended by signal {-code}" + (f" after: {errors[-1]}" if errors else "")
    elif last == rtx_builder.NOTHING and errors:
        last = errors[-1]
    return " ".join(last.split()) or f"the builder ended with exit code {code} and said nothing"


def write(models: Sequence[OnnxModel], root: Path, folder: Path, capabilities: Sequence[str]) -> list[Engine]:
    """Engines and their records for every graph that TensorRT can take; where there are none, `none.json` says why.

    A graph that does not build is entered as such and stops nothing: a device builds with its own TensorRT.

    Args:
        models: all graphs; those for the CPU are left out. Their paths are relative to `root`.
        root: the run directory.
        folder: where the engines go.
        capabilities: such as ["sm86", "sm89"].
    """
    missing = f"{rtx_builder.PACKAGE} is not installed: pip install 'edgedistill[rtx]'"
    reason = "" if rtx_builder.version() else missing
    if not capabilities:
        reason = "export.engines is empty"
    if reason:
        write_json(folder / artifacts.NO_ENGINES.name, {"why": reason})
        return []
    wanted = [(model, one) for model in models if model.target != "cpu" for one in capabilities]
    found = []
    with bar("engines", len(wanted)) as shown:
        for model, capability in wanted:
            one = build(root / model.path, model, capability, folder)
            write_record(folder / f"{one.artefact}.{capability}.json", one)
            found.append(one)
            shown(1)
    return found
