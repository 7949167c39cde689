"""Graphs of a few nodes, and functions that read a graph: operators, outputs, ONNX Runtime's optimized form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgedistill.export import graphs


def float_model(
    nodes: list[NodeProto], input_shape: Sequence[int], output_shape: Sequence[int], **constants: np.ndarray
) -> ModelProto:
    """A float graph x -> y with named initializers."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, input_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output_shape)],
        [numpy_helper.from_array(constant, name) for name, constant in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def chain(*op_types: str) -> ModelProto:
    """x [1, 2, 4, 4] -> first -> second -> ... -> y; every Conv is 1 x 1 with two channels, a Clip is from 0 to 6.

    The first node is a Conv, or all would count as preprocessing. Nodes are named after operator and position.
    """
    generator, nodes = np.random.default_rng(3), []
    constants = {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    for index, op_type in enumerate(op_types):
        name, inputs = f"{op_type}{index}", [f"t{index - 1}" if index else "x"]
        if op_type == "Conv":
            constants[f"w{index}"] = generator.normal(size=(2, 2, 1, 1)).astype(np.float32)
            constants[f"b{index}"] = generator.normal(size=2).astype(np.float32)
            inputs += [f"w{index}", f"b{index}"]
        if op_type == "Clip":
            inputs += ["zero", "six"]
        settings = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]} if op_type == "MaxPool" else {}
        out = "y" if index == len(op_types) - 1 else f"t{index}"
        nodes.append(helper.make_node(op_type, inputs, [out], name=name, **settings))
    model = float_model(nodes, [1, 2, 4, 4], [1, 2, 4, 4], **constants)
    onnx.checker.check_model(model, full_check=True)
    return graphs.without_unread(model)


def ops(model: ModelProto) -> list[str]:
    """Operator types in the graph's order."""
    return [node.op_type for node in model.graph.node]


def reference_output(model: ModelProto, x: np.ndarray) -> np.ndarray:
    """y, computed by ONNX's reference evaluator."""
    return np.asarray(ReferenceEvaluator(model).run(None, {"x": x})[0])


def optimized_ops(model: ModelProto, folder: Path) -> Counter[str]:
    """Counts of the operators after ONNX Runtime's optimization, without hardware-specific layouts."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(ops(onnx.load(folder / "optimized.onnx")))


def tensor_types(model: ModelProto) -> dict[str, int]:
    """The element type of every tensor, by ONNX's shape inference."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    value_infos = (*graph.input, *graph.value_info, *graph.output)
    inferred = {tensor.name: tensor.type.tensor_type.elem_type for tensor in value_infos}
    return {**inferred, **{tensor.name: tensor.data_type for tensor in graph.initializer}}
