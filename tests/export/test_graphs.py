"""Graph passes: what each one changes, that the outputs stay the same, and that the input graph is not modified."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper

from edgedistill.export import graphs
from tests.helpers.export_nets import Exported
from tests.helpers.small_graphs import float_model, ops, reference_output


@pytest.mark.parametrize("axes", [[2, 3], [-1, -2], [3, -2]])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_mean_over_image_becomes_global_average(axes: list[int], keepdims: int) -> None:
    node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], name="mean", keepdims=keepdims)
    shape = [2, 4, 1, 1] if keepdims else [2, 4]
    before = float_model([node], [2, 4, 5, 6], shape, axes=np.array(axes, dtype=np.int64))
    untouched = before.SerializeToString()
    after = graphs.global_average_pool(before)
    assert ops(after) == (["GlobalAveragePool"] if keepdims else ["GlobalAveragePool", "Flatten"])
    assert not after.graph.initializer
    assert before.SerializeToString() == untouched
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype(np.float32)
    np.testing.assert_allclose(reference_output(after, x), reference_output(before, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("input_shape", "axes"), [([2, 4, 5, 6], [1]), ([2, 4, 5, 6], [1, 2, 3]), ([2, 5, 6, 3, 3], [2, 3])]
)
def test_mean_over_other_axes_is_unchanged(input_shape: list[int], axes: list[int]) -> None:
    node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], name="mean", keepdims=1)
    output_shape = [1 if axis in axes else size for axis, size in enumerate(input_shape)]
    before = float_model([node], input_shape, output_shape, axes=np.array(axes, dtype=np.int64))
    assert graphs.global_average_pool(before) == before


def test_axes_given_as_attribute_are_read() -> None:
    node = helper.make_node("ReduceMean", ["x"], ["y"], name="mean", keepdims=1, axes=[2, 3])
    before = float_model([node], [2, 4, 5, 6], [2, 4, 1, 1])
    before.opset_import[0].version = 17
    assert ops(graphs.global_average_pool(before)) == ["GlobalAveragePool"]


def test_tidy_lifts_constants_and_drops_unread_tensors_and_metadata() -> None:
    constant = helper.make_node("Constant", [], ["two"], value_float=2.0)
    node = helper.make_node("Mul", ["x", "two"], ["y"], name="double", doc_string="File train.py, line 3")
    before = float_model([constant, node], [3], [3], unread=np.zeros(2, np.float32))
    before.metadata_props.add(key="where", value="/home/someone")
    before.graph.metadata_props.add(key="where", value="/home/someone")
    node_props = before.graph.node[1].metadata_props
    node_props.add(key="stack", value="/home/someone/train.py")
    after = graphs.tidy(before)
    assert ops(after) == ["Mul"]
    assert [tensor.name for tensor in after.graph.initializer] == ["two"]
    assert b"home" not in after.SerializeToString()
    assert b"train.py" not in after.SerializeToString()
    np.testing.assert_array_equal(reference_output(after, np.arange(3, dtype=np.float32)), [0, 2, 4])


def test_preprocessing_is_everything_before_first_convolution(exported: Callable[[str], Exported]) -> None:
    model = onnx.load(exported("resnet").path)
    names = set(graphs.preprocessing(model))
    before = [node.op_type for node in model.graph.node if node.name in names]
    assert before == ["Cast", "Reshape", "Mul", "Add", "Reshape", "Transpose"]


def test_preprocessing_ends_at_first_pair() -> None:
    points = {"scale": np.array(0.5, np.float32), "zero": np.array(0, np.int8)}
    nodes = [
        helper.make_node("Neg", ["x"], ["n"], name="neg"),
        helper.make_node("QuantizeLinear", ["n", "scale", "zero"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], name="d"),
        helper.make_node("Conv", ["d", "w"], ["y"], name="conv"),
    ]
    model = float_model(nodes, [1, 1, 2, 2], [1, 1, 2, 2], w=np.ones((1, 1, 1, 1), np.float32), **points)
    assert graphs.preprocessing(model) == ["neg"]


GRID = np.linspace(-6, 6, 1201, dtype=np.float32)


def hard_swish() -> ModelProto:
    return float_model([helper.make_node("HardSwish", ["x"], ["y"], name="act")], [len(GRID)], [len(GRID)])


def test_hard_swish_is_split_and_computes_the_same() -> None:
    before = hard_swish()
    untouched = before.SerializeToString()
    after = graphs.split_hard_swish(before)
    onnx.checker.check_model(after, full_check=True)
    assert ops(after) == ["HardSigmoid", "Mul"]
    assert before.SerializeToString() == untouched
    # x * max(0, min(1, x / 6 + 1 / 2))
    expected = GRID * np.clip(GRID / 6 + 0.5, 0, 1)
    np.testing.assert_allclose(reference_output(after, GRID), expected, atol=1e-6)
    np.testing.assert_allclose(reference_output(before, GRID), expected, atol=1e-6)
    assert all(graphs.is_hard_sigmoid(node) for node in after.graph.node if node.op_type == "HardSigmoid")


@pytest.mark.parametrize(
    ("settings", "from_torch"),
    [
        ({"alpha": 1 / 6, "beta": 0.5}, True),
        ({"alpha": 1 / 6}, True),
        ({}, False),
        ({"alpha": 0.2}, False),
        ({"alpha": 1 / 6, "beta": 0.4}, False),
    ],
)
def test_hard_sigmoid_of_torch_is_distinguished_from_onnx_default(settings: dict[str, float], from_torch: bool) -> None:
    assert graphs.is_hard_sigmoid(helper.make_node("HardSigmoid", ["x"], ["y"], **settings)) == from_torch


def test_tensor_read_only_by_gate_and_product_is_gated() -> None:
    assert graphs.hard_gated(graphs.split_hard_swish(hard_swish())) == {"x"}


@pytest.mark.parametrize(
    ("op_type", "inputs"),
    [("Add", ["x", "p"]), ("Mul", ["x", "x"]), ("Relu", ["x"])],
    ids=["a residual connection", "a product without the gate", "another activation"],
)
def test_tensor_with_another_reader_is_not_gated(op_type: str, inputs: list[str]) -> None:
    model = graphs.split_hard_swish(hard_swish())
    model.graph.node[1].output[0] = "p"
    model.graph.node.append(helper.make_node(op_type, inputs, ["y"], name="other"))
    assert graphs.hard_gated(model) == set()


def test_gate_of_another_tensor_does_not_gate_its_factor() -> None:
    """In squeeze and excitation the gate reads pooled values, so the tensor it multiplies keeps its negative values."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["pooled"], name="pool"),
        helper.make_node("HardSigmoid", ["pooled"], ["gate"], name="gate", alpha=1 / 6, beta=0.5),
        helper.make_node("Mul", ["x", "gate"], ["y"], name="scale"),
    ]
    assert graphs.hard_gated(float_model(nodes, [1, 2, 3, 3], [1, 2, 3, 3])) == {"pooled"}


def test_depth_is_length_of_longest_path() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="1"),
        helper.make_node("Relu", ["a"], ["b"], name="2"),
        helper.make_node("Add", ["b", "x"], ["y"], name="3"),
    ]
    assert graphs.depths(float_model(nodes, [1], [1])) == {"a": 1, "b": 2, "y": 3}
