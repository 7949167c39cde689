"""The float32 form of a graph with float16 gives the bits that ONNX Runtime computes for the graph itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from edgedistill.export import float16, literal
from edgedistill.export.quantize import graph_maker
from tests.helpers.export_nets import Ranged, pictures
from tests.helpers.small_graphs import tensor_types


def logits(graph: onnx.ModelProto, images_NHWC: np.ndarray) -> np.ndarray:
    """Logits [N, C] without any graph optimization."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"images": images_NHWC})[0])


@pytest.mark.parametrize("name", ["lite", "mnv3", "resnet"])
@pytest.mark.parametrize("kind", ["int8", "int8 with layers in float", "fp16"])
def test_values_are_those_of_the_float16_graph(name: str, kind: str, ranged: Callable[[str], Ranged]) -> None:
    model, ranges = ranged(name)
    weighted = [node.name for node in model.graph.node if node.op_type == "Conv"]
    floats = weighted[2:4] if "float" in kind else []
    graph = float16.half(model) if kind == "fp16" else graph_maker(model, ranges, "tensorrt")(floats)
    rewritten, images = literal.in_float32(graph), pictures(8, seed=11)
    assert literal.is_quantized(rewritten) == (kind != "fp16")
    types = tensor_types(rewritten)
    halves = {name for name, kind in types.items() if kind == TensorProto.FLOAT16}
    assert all(name.endswith("_q_half") for name in halves)
    np.testing.assert_array_equal(logits(rewritten, images), logits(graph, images))


def test_masks_that_become_numbers_and_constants_of_a_shape() -> None:
    """As in the positions that an attention counts: the numbers of a mask are summed and added to a filled tensor."""
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [2, 3])
    ones = helper.make_tensor("ones", TensorProto.FLOAT16, [1], [1.0])
    nodes = [
        helper.make_node("Shape", ["images"], ["shape"], name="shape"),
        helper.make_node("ConstantOfShape", ["shape"], ["filled"], name="filled", value=ones),
        helper.make_node("Greater", ["images", "zero"], ["mask"], name="mask"),
        helper.make_node("Cast", ["mask"], ["numbers"], name="numbers", to=TensorProto.FLOAT16),
        helper.make_node("CumSum", ["numbers", "axis"], ["places"], name="places"),
        helper.make_node("Add", ["places", "filled"], ["sums"], name="sums"),
        helper.make_node("Cast", ["sums"], ["logits"], name="logits", to=TensorProto.FLOAT),
    ]
    constants = [helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0]), helper.make_tensor("axis", 6, [], [1])]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [2, 3])
    graph = helper.make_graph(nodes, "counts", [images], [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    inputs = np.array([[1, -1, 2], [-3, 4, 5]], dtype=np.float32)
    expected = np.array([[2, 2, 3], [1, 2, 3]], dtype=np.float32)
    np.testing.assert_array_equal(logits(literal.in_float32(model), inputs), expected)


def test_rounding_to_float16_before_a_pair_is_kept(ranged: Callable[[str], Ranged]) -> None:
    """Without it other bytes are stored: the float32 graph with the same ranges gives other logits."""
    model, ranges = ranged("lite")
    half, full = (graph_maker(model, ranges, "tensorrt", half)(()) for half in (True, False))
    images = pictures(8, seed=11)
    assert np.abs(logits(literal.in_float32(half), images) - logits(full, images)).max() > 0
