"""Each pass before and after: what it changes, that the numbers stay, and that its argument stays too."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from edgedistill.errors import EdgeDistillError
from edgedistill.export import graphs
from edgedistill.export.infer import predict_onnx
from tests.helpers.export_nets import Exported
from tests.helpers.small_graphs import answer, chain, model_of, ops, types


@pytest.mark.parametrize("axes", [[2, 3], [-1, -2], [3, -2]])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_a_mean_over_the_picture_becomes_a_global_average(axes: list[int], keepdims: int) -> None:
    node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], name="mean", keepdims=keepdims)
    shape = [2, 4, 1, 1] if keepdims else [2, 4]
    before = model_of([node], [2, 4, 5, 6], shape, axes=np.array(axes, dtype=np.int64))
    untouched = before.SerializeToString()
    after = graphs.global_average_pool(before)
    assert ops(after) == (["GlobalAveragePool"] if keepdims else ["GlobalAveragePool", "Flatten"])
    assert not after.graph.initializer
    assert before.SerializeToString() == untouched
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype(np.float32)
    np.testing.assert_allclose(answer(after, x), answer(before, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("given", "axes"), [([2, 4, 5, 6], [1]), ([2, 4, 5, 6], [1, 2, 3]), ([2, 5, 6, 3, 3], [2, 3])])
def test_another_mean_is_left_alone(given: list[int], axes: list[int]) -> None:
    node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], name="mean", keepdims=1)
    shape = [1 if at in axes else size for at, size in enumerate(given)]
    before = model_of([node], given, shape, axes=np.array(axes, dtype=np.int64))
    assert graphs.global_average_pool(before) == before


def test_axes_as_an_attribute_are_read_too() -> None:
    node = helper.make_node("ReduceMean", ["x"], ["y"], name="mean", keepdims=1, axes=[2, 3])
    before = model_of([node], [2, 4, 5, 6], [2, 4, 1, 1])
    before.opset_import[0].version = 17
    assert ops(graphs.global_average_pool(before)) == ["GlobalAveragePool"]


def test_tidy_lifts_constants_and_drops_whatever_nobody_reads() -> None:
    constant = helper.make_node("Constant", [], ["two"], value_float=2.0)
    node = helper.make_node("Mul", ["x", "two"], ["y"], name="double", doc_string="File train.py, line 3")
    before = model_of([constant, node], [3], [3], unread=np.zeros(2, np.float32))
    before.metadata_props.add(key="where", value="/home/someone")
    before.graph.metadata_props.add(key="where", value="/home/someone")
    node_props = before.graph.node[1].metadata_props
    node_props.add(key="stack", value="/home/someone/train.py")
    after = graphs.tidy(before)
    assert ops(after) == ["Mul"]
    assert [tensor.name for tensor in after.graph.initializer] == ["two"]
    assert b"home" not in after.SerializeToString()
    assert b"train.py" not in after.SerializeToString()
    np.testing.assert_array_equal(answer(after, np.arange(3, dtype=np.float32)), [0, 2, 4])


def test_preprocessing_is_what_stands_before_the_first_convolution(exported: Callable[[str], Exported]) -> None:
    model = onnx.load(exported("resnet").path)
    names = set(graphs.preprocessing(model))
    before = [node.op_type for node in model.graph.node if node.name in names]
    assert before == ["Cast", "Reshape", "Mul", "Add", "Reshape", "Transpose"]


def test_a_pair_ends_the_preprocessing_too() -> None:
    points = {"scale": np.array(0.5, np.float32), "zero": np.array(0, np.int8)}
    nodes = [
        helper.make_node("Neg", ["x"], ["n"], name="neg"),
        helper.make_node("QuantizeLinear", ["n", "scale", "zero"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], name="d"),
        helper.make_node("Conv", ["d", "w"], ["y"], name="conv"),
    ]
    model = model_of(nodes, [1, 1, 2, 2], [1, 1, 2, 2], w=np.ones((1, 1, 1, 1), np.float32), **points)
    assert graphs.preprocessing(model) == ["neg"]


GRID = np.linspace(-6, 6, 1201, dtype=np.float32)


def hard_swish() -> ModelProto:
    return model_of([helper.make_node("HardSwish", ["x"], ["y"], name="act")], [len(GRID)], [len(GRID)])


def test_hard_swish_is_taken_apart_and_computes_the_same() -> None:
    before = hard_swish()
    untouched = before.SerializeToString()
    after = graphs.split_hard_swish(before)
    onnx.checker.check_model(after, full_check=True)
    assert ops(after) == ["HardSigmoid", "Mul"]
    assert before.SerializeToString() == untouched
    # x * max(0, min(1, x / 6 + 1 / 2))
    wanted = GRID * np.clip(GRID / 6 + 0.5, 0, 1)
    np.testing.assert_allclose(answer(after, GRID), wanted, atol=1e-6)
    np.testing.assert_allclose(answer(before, GRID), wanted, atol=1e-6)
    assert all(graphs.is_hard_sigmoid(node) for node in after.graph.node if node.op_type == "HardSigmoid")


@pytest.mark.parametrize(
    ("settings", "torchs"),
    [
        ({"alpha": 1 / 6, "beta": 0.5}, True),
        ({"alpha": 1 / 6}, True),
        ({}, False),
        ({"alpha": 0.2}, False),
        ({"alpha": 1 / 6, "beta": 0.4}, False),
    ],
)
def test_the_hard_sigmoid_of_torch_is_told_from_that_of_onnx(settings: dict[str, float], torchs: bool) -> None:
    assert graphs.is_hard_sigmoid(helper.make_node("HardSigmoid", ["x"], ["y"], **settings)) == torchs


def test_what_only_its_gate_and_their_product_read_is_gated() -> None:
    assert graphs.hard_gated(graphs.split_hard_swish(hard_swish())) == {"x"}


@pytest.mark.parametrize(
    ("op_type", "inputs"),
    [("Add", ["x", "p"]), ("Mul", ["x", "x"]), ("Relu", ["x"])],
    ids=["a residual connection", "a product without the gate", "another activation"],
)
def test_what_somebody_else_reads_is_not_gated(op_type: str, inputs: list[str]) -> None:
    model = graphs.split_hard_swish(hard_swish())
    model.graph.node[1].output[0] = "p"
    model.graph.node.append(helper.make_node(op_type, inputs, ["y"], name="other"))
    assert graphs.hard_gated(model) == set()


def test_a_gate_of_another_tensor_gates_nothing() -> None:
    """Squeeze and excitation: the gate is of few pooled values, what it is multiplied by keeps its negative ones."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["pooled"], name="pool"),
        helper.make_node("HardSigmoid", ["pooled"], ["gate"], name="gate", alpha=1 / 6, beta=0.5),
        helper.make_node("Mul", ["x", "gate"], ["y"], name="scale"),
    ]
    assert graphs.hard_gated(model_of(nodes, [1, 2, 3, 3], [1, 2, 3, 3])) == {"pooled"}


def test_depth_is_the_length_of_the_longest_path() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="1"),
        helper.make_node("Relu", ["a"], ["b"], name="2"),
        helper.make_node("Add", ["b", "x"], ["y"], name="3"),
    ]
    assert graphs.depths(model_of(nodes, [1], [1])) == {"a": 1, "b": 2, "y": 3}


@pytest.mark.parametrize("name", ["lite", "mnv3", "resnet"])
def test_half_is_float16_from_the_first_weights_to_the_logits_and_close(
    name: str, exported: Callable[[str], Exported]
) -> None:
    made = exported(name)
    before = onnx.load(made.path)
    untouched = before.SerializeToString()
    after = graphs.half(before)
    onnx.checker.check_model(after, full_check=True)
    assert before.SerializeToString() == untouched
    known, shallow = types(after), set(graphs.preprocessing(after))
    for node in after.graph.node:
        wanted = TensorProto.FLOAT if node.name in shallow and not node.name.endswith("_half_cast") else None
        (out,) = node.output
        assert known[out] == (TensorProto.FLOAT if out == "logits" else wanted or TensorProto.FLOAT16), node.name
    assert ops(after).count("Cast") == ops(before).count("Cast") + 2
    wanted_NC = predict_onnx(made.path, made.images_NHWC)
    got_NC = predict_onnx(after.SerializeToString(), made.images_NHWC)
    assert got_NC.dtype == np.float32
    # eleven bits of mantissa and some fifteen layers
    assert 0 < np.abs(got_NC - wanted_NC).max() < 0.01 * np.abs(wanted_NC).max()


def test_half_halves_the_file(exported: Callable[[str], Exported]) -> None:
    before = onnx.load(exported("resnet").path)
    assert graphs.half(before).ByteSize() < 0.52 * before.ByteSize()


def test_a_cast_to_float_behind_the_first_weights_becomes_one_to_float16() -> None:
    constants = {"w": np.ones((2, 2, 1, 1), np.float32), "mask": np.array([[[[1, 0]]]], np.int64)}
    nodes = [
        helper.make_node("Neg", ["x"], ["pixels"], name="preprocessing"),
        helper.make_node("Conv", ["pixels", "w"], ["t"], name="conv"),
        helper.make_node("Cast", ["mask"], ["seen"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Add", ["t", "seen"], ["y"], name="add"),
    ]
    after = graphs.half(model_of(nodes, [1, 2, 4, 2], [1, 2, 4, 2], **constants))
    onnx.checker.check_model(after, full_check=True)
    assert types(after)["seen"] == TensorProto.FLOAT16


def test_a_constant_beyond_float16_is_refused_by_name() -> None:
    model = chain("Conv", "Relu")
    weight = next(one for one in model.graph.initializer if one.name == "w0")
    weight.CopyFrom(onnx.numpy_helper.from_array(np.full((2, 2, 1, 1), -65504, np.float32), "w0"))
    graphs.half(model)
    weight.CopyFrom(onnx.numpy_helper.from_array(np.full((2, 2, 1, 1), -65600, np.float32), "w0"))
    with pytest.raises(
        EdgeDistillError, match=r"constant w0 holds 6\.56e\+04, more than float16 can; set export\.fp16"
    ):
        graphs.half(model)
