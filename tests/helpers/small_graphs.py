"""Graphs of a few nodes, and what becomes of a graph: its operators, its answers, what ONNX Runtime makes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgedistill.export import graphs


def model_of(
    nodes: list[NodeProto], given: Sequence[int], answer: Sequence[int], **constants: np.ndarray
) -> ModelProto:
    """A float graph x -> y with named initializers."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, given)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, answer)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def chain(*op_types: str) -> ModelProto:
    """x [1, 2, 4, 4] -> first -> second -> ... -> y; every Conv is 1 x 1 with two channels, a Clip is from 0 to 6.

    The first node is a Conv, or all would be taken for preprocessing. Nodes are named after operator and place.
    """
    generator, nodes = np.random.default_rng(3), []
    constants = {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    for at, op_type in enumerate(op_types):
        name, read = f"{op_type}{at}", [f"t{at - 1}" if at else "x"]
        if op_type == "Conv":
            constants[f"w{at}"] = generator.normal(size=(2, 2, 1, 1)).astype(np.float32)
            constants[f"b{at}"] = generator.normal(size=2).astype(np.float32)
            read += [f"w{at}", f"b{at}"]
        if op_type == "Clip":
            read += ["zero", "six"]
        settings = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]} if op_type == "MaxPool" else {}
        out = "y" if at == len(op_types) - 1 else f"t{at}"
        nodes.append(helper.make_node(op_type, read, [out], name=name, **settings))
    model = model_of(nodes, [1, 2, 4, 4], [1, 2, 4, 4], **constants)
    onnx.checker.check_model(model, full_check=True)
    return graphs.without_unread(model)


def ops(model: ModelProto) -> list[str]:
    """Operators in the graph's order."""
    return [node.op_type for node in model.graph.node]


def answer(model: ModelProto, x: np.ndarray) -> np.ndarray:
    """y, computed by ONNX's own reference."""
    return np.asarray(ReferenceEvaluator(model).run(None, {"x": x})[0])


def as_run(model: ModelProto, folder: Path) -> Counter[str]:
    """The operators of the graph that ONNX Runtime makes of it, hardware-specific layouts aside."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(ops(onnx.load(folder / "optimized.onnx")))


def types(model: ModelProto) -> dict[str, int]:
    """The element type of every tensor, by ONNX's shape inference."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    shown = {one.name: one.type.tensor_type.elem_type for one in (*graph.input, *graph.value_info, *graph.output)}
    return {**shown, **{one.name: one.data_type for one in graph.initializer}}
