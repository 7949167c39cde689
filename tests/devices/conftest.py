"""A bundle of two tiny graphs that classify an image by its brightest channel. N images, C = 3 classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgedistill.devices.bundle import write_bundle
from edgedistill.records import OnnxModel
from edgedistill.run.files import sha256_file

PX, N = 8, 30
DESCRIPTION = {"classes": ["red", "green", "blue"], "input_px": PX, "store_px": 2 * PX, "fit": "crop"}


def brightest_channel(path: Path, weight: float) -> None:
    """logits = weight * mean of each channel, from uint8 [B, px, px, 3]."""
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "weight"], ["logits"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([1, 2]), "axes"),
        numpy_helper.from_array(np.eye(3, dtype=np.float32) * np.float32(weight), "weight"),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["B", PX, PX, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", 3])
    graph = helper.make_graph(nodes, "tiny", [images], [logits], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def record(path: Path, precision: str, target: str) -> OnnxModel:
    return OnnxModel(
        path=f"export/{path.name}",
        sha256=sha256_file(path),
        precision=precision,
        target=target,
        opset=18,
        parent_sha256="",
        size_mb=0.001,
    )  # type: ignore[arg-type]


@pytest.fixture
def models(tmp_path: Path) -> list[tuple[Path, OnnxModel]]:
    """An fp32 graph, and one whose record says int8 for the CPU."""
    graphs = []
    for file, precision, target, weight in (
        ("student.fp32.onnx", "fp32", "any", 0.1),
        ("student.int8-cpu.onnx", "int8", "cpu", 0.2),
    ):
        path = tmp_path / "export" / file
        path.parent.mkdir(exist_ok=True)
        brightest_channel(path, weight)
        graphs.append((path, record(path, precision, target)))
    return graphs


@pytest.fixture
def pictures() -> np.ndarray:
    """uint8 [N, px, px, 3]: noise with one channel brighter: image i has class i % 3."""
    images = np.random.default_rng(0).integers(0, 100, size=(N, PX, PX, 3), dtype=np.uint8)
    images[np.arange(N), :, :, np.arange(N) % 3] += 100
    return images


@pytest.fixture
def bundle(tmp_path: Path, models: list[tuple[Path, OnnxModel]], pictures: np.ndarray) -> Path:
    labels_N = np.arange(N) % 3
    labels_N[:3] = 0  # images 1 and 2 have a wrong label: 28 of 30 are right
    host = {"fp32": np.arange(N) % 3, "int8-cpu": np.arange(N) % 3}
    folder = tmp_path / "bundle"
    write_bundle(
        folder,
        models,
        description=DESCRIPTION,
        images_NHWC=pictures,
        labels_N=labels_N,
        host_predictions=host,
        card="# Model card: the brightest channel\n",
    )
    return folder
