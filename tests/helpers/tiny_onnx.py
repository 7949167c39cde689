"""Tiny graphs, uint8 [B, 8, 8, 3] -> logits [B, 3], in the exported precisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

PX = 8
WEIGHTS = np.random.default_rng(1).normal(size=(3, 3)).astype(np.float32)
POINTS = {"int8": (np.int8, 0), "uint8": (np.uint8, 128)}


def write(path: Path, precision: str = "fp32", batch: Any = "B", operator: str = "", scale: float = 1.0) -> Path:
    """Write a graph; precision: fp32, fp16, int8 (for TensorRT) or uint8 (for the CPU).

    `operator` adds a node of an unknown domain; `scale` multiplies the weights, which gives another model.
    """
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["means"], keepdims=0),
    ]
    constants = [numpy_helper.from_array(np.array([1, 2]), "axes")]
    weights, last, logits = WEIGHTS * np.float32(scale), "means", "logits"
    if precision == "fp16":
        nodes.append(helper.make_node("Cast", ["means"], ["half"], to=TensorProto.FLOAT16))
        weights, last, logits = weights.astype(np.float16), "half", "half_logits"
    elif precision != "fp32":
        kind, point = POINTS[precision]
        constants += [numpy_helper.from_array(np.float32(2.0), "step"), numpy_helper.from_array(kind(point), "point")]
        nodes.append(helper.make_node("QuantizeLinear", ["means", "step", "point"], ["small"], name="quantize"))
        nodes.append(helper.make_node("DequantizeLinear", ["small", "step", "point"], ["back"], name="dequantize"))
        last = "back"
    if operator:
        nodes.append(helper.make_node(operator, [last], ["odd"], name="the_odd_one", domain="nobody"))
        last = "odd"
    constants.append(numpy_helper.from_array(weights, "weights"))
    nodes.append(helper.make_node("MatMul", [last, "weights"], [logits]))
    if precision == "fp16":
        nodes.append(helper.make_node("Cast", ["half_logits"], ["logits"], to=TensorProto.FLOAT))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [batch, PX, PX, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3])],
        constants,
    )
    opsets = [helper.make_opsetid("", 18), *([helper.make_opsetid("nobody", 1)] if operator else [])]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def images(batch: int, seed: int) -> np.ndarray:
    """Random images, uint8 [batch, 8, 8, 3]."""
    return np.random.default_rng(seed).integers(0, 256, size=(batch, PX, PX, 3), dtype=np.uint8)
