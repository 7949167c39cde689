"""The graphs to measure: two untrained students as edgedistill exports them, or the user's files; each in a bundle."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgedistill.console import say
from edgedistill.devices.bundle import write_bundle
from edgedistill.errors import InputError
from edgedistill.export.graphs import record
from edgedistill.recipe.schema import Export, Student
from edgedistill.records import OnnxModel

IMAGES, CLASSES, SEED = 64, 10, 0
FP32 = "student.fp32.onnx"
# a latency of a fraction of a millisecond, which would show the cost of the meter itself, and one of a usual size
DEFAULT: dict[str, dict[str, Any]] = {
    "micro at 32 px": {"micro": {"width": 16, "input_px": 32}},
    "efficientnet_lite0 at 224 px": {"efficientnet_lite": {"variant": 0, "input_px": 224, "weights": "none"}},
}


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A graph in a bundle of its own, with random images: their content changes no latency."""

    name: str
    bundle: Path
    model: OnnxModel
    px: int

    @property
    def path(self) -> Path:
        """The graph's file."""
        return self.bundle / self.model.path


def students(runs: Path) -> list[Graph]:
    """Return both students, exported once; their bundles are rewritten, so that the agent is the current one."""
    graphs = []
    for name, family in DEFAULT.items():
        folder = runs / name.replace(" ", "-")
        if not (folder / FP32).exists():
            say(f"exporting {name}")
            _export(family, folder)
        graphs.append(write_graph_bundle(name, folder / FP32, folder / "bundle"))
    return graphs


def _export(family: dict[str, Any], folder: Path) -> None:
    from edgedistill.export.onnx import export
    from edgedistill.students import space
    from edgedistill.students.build import build_student

    spec = space.candidates(Student.model_validate({"families": family}), CLASSES)[0]
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"unfinished.{FP32}"
    export(build_student(spec, SEED), spec, path=unfinished, images_NHWC=noise(spec.input_px), settings=Export())
    unfinished.rename(folder / FP32)


def noise(px: int) -> np.ndarray:
    """Random images, uint8 [N, px, px, 3]."""
    return np.random.default_rng(SEED).integers(0, 256, (IMAGES, px, px, 3), dtype=np.uint8)


def from_file(path: Path, runs: Path) -> Graph:
    """Bundle a file of the user's.

    Raises:
        InputError: the file is not the graph of an exported student.
    """
    name = path.stem
    (folder := runs / name).mkdir(parents=True, exist_ok=True)
    return write_graph_bundle(name, path, folder / "bundle")


def write_graph_bundle(name: str, path: Path, folder: Path) -> Graph:
    """Write a bundle of one graph to `folder`, which is emptied first.

    Raises:
        InputError: the file is not ONNX, or its input is not uint8 [B, px, px, 3].
    """
    px, precision = _facts(path)
    shutil.rmtree(folder, ignore_errors=True)
    target = "cpu" if precision == "int8" else "any"
    model = record(path, precision, target, opset=0)  # type: ignore[arg-type]
    description = {"classes": [str(index) for index in range(CLASSES)], "input_px": px, "store_px": px, "fit": "crop"}
    write_bundle(
        folder,
        [(path, model)],
        description=description,
        images_NHWC=noise(px),
        labels_N=np.zeros(IMAGES, dtype=np.int64),
        host_predictions={},
    )
    return Graph(name=name, bundle=folder, model=model, px=px)


def _facts(path: Path) -> tuple[int, str]:
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:  # protobuf's errors have no base of their own
        raise InputError(f"{path}: is not an ONNX graph ({type(error).__name__})", "name a student's .onnx") from None
    tensor_type = graph.input[0].type.tensor_type
    shape = [dimension.dim_value for dimension in tensor_type.shape.dim]
    if tensor_type.elem_type != onnx.TensorProto.UINT8 or len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3:
        raise InputError(f"{path}: its input is not uint8 [B, px, px, 3]", "export it with `edgedistill export`")
    return shape[1], "int8" if any(node.op_type == "QuantizeLinear" for node in graph.node) else "fp32"
