"""Steps and zero points, int8 graphs of real blocks for both targets, and graphs that TensorRT would misread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgedistill.errors import EdgeDistillError
from edgedistill.export import float16, graphs, qdq
from edgedistill.export.infer import predict_onnx
from edgedistill.export.placement import make_plan
from edgedistill.export.quantize import graph_maker
from edgedistill.records import Target
from tests.helpers.export_nets import NETS, Exported, Ranged, pictures
from tests.helpers.small_graphs import chain, float_model, ops, optimized_ops, reference_output, tensor_types

TARGETS: tuple[Target, ...] = ("cpu", "tensorrt")
BOUNDS = st.floats(-1e6, 1e6, width=32)


def test_affine_matches_hand_calculation() -> None:
    # 255 steps from -1 to 4.1: a step is 0.02, and zero lies 50 steps above the lowest value
    assert qdq.affine(-1.0, 4.1, "cpu") == qdq.Affine(scale=pytest.approx(0.02), zero_point=50)
    # zero belongs to every range
    assert qdq.affine(2.0, 5.1, "cpu") == qdq.Affine(scale=pytest.approx(0.02), zero_point=0)
    assert qdq.affine(-5.1, -2.0, "cpu") == qdq.Affine(scale=pytest.approx(0.02), zero_point=255)
    assert qdq.affine(-1.0, 2.54, "tensorrt") == qdq.Affine(scale=pytest.approx(0.02), zero_point=0)
    assert qdq.affine(-2.54, 1.0, "tensorrt") == qdq.Affine(scale=pytest.approx(0.02), zero_point=0)


@given(BOUNDS, BOUNDS)
def test_range_is_covered_within_half_a_step_and_zero_is_exact(first: float, second: float) -> None:
    low, high = min(first, second), max(first, second)
    affine = qdq.affine(low, high, "cpu")
    assert 0 <= affine.zero_point <= 255
    # a whole number of steps: (zero_point - zero_point) * scale is 0 whatever the scale
    assert isinstance(affine.zero_point, int)
    assert (0 - affine.zero_point) * affine.scale <= low + 0.501 * affine.scale
    assert (255 - affine.zero_point) * affine.scale >= high - 0.501 * affine.scale
    assert affine.scale * 254 <= max(high, 0.0) - min(low, 0.0) or affine.scale == pytest.approx(qdq.MIN_STEP)
    symmetric = qdq.affine(low, high, "tensorrt")
    assert symmetric.zero_point == 0
    assert 127 * symmetric.scale >= max(-low, high) * (1 - 1e-6)
    assert np.float16(symmetric.scale) >= 2.0**-14 or max(-low, high) > 6e4


@pytest.mark.parametrize("target", TARGETS)
def test_all_zero_tensor_has_positive_step(target: Target) -> None:
    affine = qdq.affine(0.0, 0.0, target)
    assert affine.scale > 0 and np.float32(affine.scale) > 0 and affine.zero_point == 0


@given(st.integers(0, 2**32), st.floats(1e-6, 1e6), st.sampled_from(TARGETS))
def test_weights_are_rounded_within_half_a_step_of_their_channel(seed: int, size: float, target: Target) -> None:
    generator = np.random.default_rng(seed)
    weight = (generator.normal(size=(4, 3, 2, 2)) * size * np.array([1, 10, 1e-3, 0]).reshape(-1, 1, 1, 1)).astype("f4")
    stored, scales, bias = qdq.layer_integers(weight, None, 0, target=target, input_scale=1.0)
    assert (scales.dtype, scales.shape) == (np.float32, (4,)) and bias is None
    assert stored.dtype == np.int8 and stored.min() >= -127
    assert np.all(np.abs(stored * scales.reshape(-1, 1, 1, 1) - weight) <= 0.501 * scales.reshape(-1, 1, 1, 1))
    min_step = qdq.MIN_STEP if target == "cpu" else 2.0**-14
    for channel, scale in zip(weight, scales, strict=True):
        assert scale == pytest.approx(max(float(np.abs(channel).max()) / 127, min_step), rel=1e-6)


@pytest.mark.parametrize(
    ("node", "axis"),
    [
        (helper.make_node("Conv", ["x", "w"], ["y"]), 0),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transB=1), 0),
        (helper.make_node("Gemm", ["x", "w"], ["y"]), 1),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), 1),
    ],
)
def test_output_axis_is_that_of_output_channels(node: NodeProto, axis: int) -> None:
    assert qdq.output_axis(node) == axis


def gated(*, residual: bool = False) -> ModelProto:
    """Return conv -> hard-swish -> conv; `residual` adds the output of the first convolution to that of the second."""
    model = chain("Conv", "HardSwish", "Conv", "Neg")
    if residual:
        model.graph.node[3].CopyFrom(helper.make_node("Add", ["t0", "t2"], ["y"], name="add"))
    return model


def test_range_of_gated_tensor_starts_at_minus_three() -> None:
    ranges = {"x": (0.0, 1.0), "t0": (-20.0, 4.65), "t1": (-0.375, 4.65), "t2": (-1.0, 1.0)}
    prepared = qdq.prepare(gated(), "cpu")
    affines = qdq.affines(prepared, make_plan(prepared, "cpu"), ranges)
    # 255 steps from -3 to 4.65
    assert affines["t0"] == qdq.Affine(scale=pytest.approx(0.03), zero_point=100)
    # 0 ... 255 / 254, whatever the calibrated range
    assert affines["t1_gate"] == qdq.Affine(scale=pytest.approx(1 / 254), zero_point=0)
    prepared = qdq.prepare(gated(residual=True), "cpu")
    affines = qdq.affines(prepared, make_plan(prepared, "cpu"), ranges)
    assert affines["t0"].scale == pytest.approx(24.65 / 255)


def test_pooled_tensor_has_step_of_its_input() -> None:
    model = chain("Conv", "MaxPool", "Conv")
    affines = qdq.affines(model, make_plan(model, "cpu"), {"x": (0.0, 1.0), "t0": (-1.0, 4.1)})
    assert affines["t0"] == affines["t1"] == qdq.Affine(scale=pytest.approx(0.02), zero_point=50)


def test_hard_sigmoid_bytes_are_within_a_step_of_its_values() -> None:
    """Compare a LeakyRelu of slope 1 with HardSigmoid on every byte of x, for coarse and fine steps."""
    for low, high in ((-3.0, 3.0), (-20.0, 20.0), (-3.0, 0.5), (0.0, 9.0), (-40.0, 0.01)):
        prepared = qdq.prepare(gated(), "cpu")
        plan = make_plan(prepared, "cpu")
        ranges = {"x": (0.0, 1.0), "t0": (low, high), "t1": (-0.375, max(high, 0.1)), "t2": (-1.0, 1.0)}
        quantized = qdq.quantize_graph(prepared, plan, qdq.affines(prepared, plan, ranges))
        affine = qdq.affine(max(low, -3.0), high, "cpu")
        x = ((np.arange(256) - affine.zero_point) * affine.scale).astype(np.float32)
        gate_nodes = [node for node in quantized.graph.node if node.output[0].startswith("t1_gate")]
        assert [node.op_type for node in gate_nodes] == ["LeakyRelu", "QuantizeLinear", "DequantizeLinear"]
        gate_nodes[0].input[0], gate_nodes[2].output[0] = "x", "y"
        actual = reference_output(float_model(gate_nodes, [256], [256], **graphs.constants(quantized)), x)
        assert np.abs(actual - np.clip(x / 6 + 0.5, 0, 1)).max() <= 1 / 254


def test_hard_sigmoid_of_another_slope_keeps_its_operator() -> None:
    """The slope 1 / 5 is ONNX's default; bytes in steps of 6 / 254 around 127 do not hold its values."""
    prepared = qdq.prepare(gated(), "cpu")
    next(node for node in prepared.graph.node if node.op_type == "HardSigmoid").attribute[0].f = 0.2
    ranges = {"x": (0.0, 1.0), "t0": (-3.0, 3.0), "t1_gate": (0.0, 1.0), "t1": (-0.375, 3.0), "t2": (-1.0, 1.0)}
    plan = make_plan(prepared, "cpu")
    assert "HardSigmoid" in ops(qdq.quantize_graph(prepared, plan, qdq.affines(prepared, plan, ranges)))


def test_bias_is_in_steps_of_sums_on_cpu_and_float_for_tensorrt() -> None:
    model = chain("Conv", "Relu")
    for tensor, array in (("w0", [[[[1.27]], [[0.0]]], [[[0.0]], [[-2.54]]]]), ("b0", [0.5, -0.25])):
        initializer = next(initializer for initializer in model.graph.initializer if initializer.name == tensor)
        initializer.CopyFrom(numpy_helper.from_array(np.array(array, np.float32), tensor))
    constants = graphs.constants(qdq.int8_graph(model, {"x": (0.0, 5.1), "t0": (-1.0, 1.0)}, "cpu"))
    np.testing.assert_array_equal(constants["w0_q"].reshape(2, 2), [[127, 0], [0, -127]])
    np.testing.assert_allclose(constants["w0_scale"], [0.01, 0.02], rtol=1e-6)
    # x is in steps of 0.02, so sums are in steps of 0.0002 and 0.0004
    np.testing.assert_array_equal(constants["Conv0_bias_q"], [2500, -625])
    assert constants["Conv0_bias_q"].dtype == np.int32
    constants = graphs.constants(qdq.int8_graph(model, {"x": (0.0, 5.1)}, "tensorrt"))
    np.testing.assert_array_equal(constants["b0"], np.array([0.5, -0.25], np.float32))


@pytest.mark.parametrize("target", TARGETS)
def test_float_graph_is_not_modified(target: Target, ranged: Callable[[str], Ranged]) -> None:
    model, ranges = ranged("mnv3")
    untouched = model.SerializeToString()
    graph = qdq.int8_graph(model, ranges, target)
    assert model.SerializeToString() == untouched
    onnx.checker.check_model(graph, full_check=True)
    assert {tensor.name for tensor in graph.graph.initializer} <= set(graphs.consumers(graph))


EXECUTED_OPS = {
    # residual and squeeze-excite sums; hard-swish and hard-sigmoid gates; products; pools over the image
    "lite": {"QLinearAdd": 2, "QLinearLeakyRelu": 0, "QLinearMul": 0, "QLinearGlobalAveragePool": 1},
    "mobilenet": {"QLinearAdd": 3, "QLinearLeakyRelu": 0, "QLinearMul": 0, "QLinearGlobalAveragePool": 1},
    "mnv3": {"QLinearAdd": 3, "QLinearLeakyRelu": 11, "QLinearMul": 11, "QLinearGlobalAveragePool": 5},
    "resnet": {"QLinearAdd": 2, "QLinearAveragePool": 1, "MaxPool": 1, "QLinearGlobalAveragePool": 1},
}


@pytest.mark.parametrize("name", NETS)
def test_cpu_graph_runs_in_int8_from_end_to_end(
    name: str, exported: Callable[[str], Exported], ranged: Callable[[str], Ranged], tmp_path: Path
) -> None:
    model, ranges = ranged(name)
    before = Counter(ops(model))
    executed = optimized_ops(qdq.int8_graph(model, ranges, "cpu"), tmp_path)
    assert executed["QLinearConv"] == before["Conv"]
    assert {op_type: executed[op_type] for op_type in EXECUTED_OPS[name]} == EXECUTED_OPS[name]
    assert before["HardSwish"] + before["HardSigmoid"] == executed["QLinearLeakyRelu"]
    floats = ("Conv", "FusedConv", "Relu", "Clip", "HardSigmoid", "HardSwish", "LeakyRelu", "GlobalAveragePool", "Gemm")
    assert not sum(executed[op_type] for op_type in floats)
    # only preprocessing adds and multiplies floats; there is one QuantizeLinear, and the last layer returns floats
    assert (
        executed["Add"],
        executed["Mul"],
        executed["QuantizeLinear"],
        executed["DequantizeLinear"],
        executed["QGemm"],
    ) == (1, 1, 1, 0, 1)
    assert predict_onnx(qdq.int8_graph(model, ranges, "cpu").SerializeToString(), pictures(1)).dtype == np.float32


@pytest.mark.parametrize("name", NETS)
def test_tensorrt_graph_is_symmetric_int8_in_float16(name: str, ranged: Callable[[str], Ranged]) -> None:
    model, ranges = ranged(name)
    int8 = qdq.int8_graph(model, ranges, "tensorrt")
    qdq.refuse_for_tensorrt(int8, "the graph")
    graph = float16.half(int8)
    qdq.refuse_for_tensorrt(graph, "the graph")
    onnx.checker.check_model(graph, full_check=True)
    constants, producers, element_types = graphs.constants(graph), graphs.producers(graph), tensor_types(graph)
    before = set(graphs.preprocessing(graph))
    for node in graph.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert not constants[node.input[2]].any() and constants[node.input[2]].dtype == np.int8
            assert constants[node.input[1]].dtype == np.float16 and np.all(constants[node.input[1]] > 0)
        if node.op_type in ("Relu", "Clip", "HardSwish"):
            assert producers[node.input[0]].op_type in ("Conv", "Add")
        if node.op_type == "Conv":
            assert producers[node.input[0]].op_type == producers[node.input[1]].op_type == "DequantizeLinear"
            assert all(constants[tensor].dtype == np.float16 for tensor in node.input[2:])
            weight = producers[node.input[1]]
            assert constants[weight.input[0]].dtype == np.int8
            assert constants[weight.input[1]].shape == constants[weight.input[0]].shape[:1]
        if node.op_type == "Add" and node.name not in before:
            assert sorted(producers[tensor].op_type for tensor in node.input) == ["Conv", "DequantizeLinear"]
        if node.op_type in ("Add", "Mul", "GlobalAveragePool", "Gemm", "Relu", "HardSigmoid"):
            expected_type = TensorProto.FLOAT if node.name in before else TensorProto.FLOAT16
            assert element_types[node.output[0]] == expected_type, node.name
    assert ops(graph)[:6] == ["Cast", "Reshape", "Mul", "Add", "Reshape", "Transpose"]
    assert (ops(graph)[-1], element_types["logits"]) == ("Cast", TensorProto.FLOAT)
    assert ops(graph).count("QuantizeLinear") == len(make_plan(model, "tensorrt").pairs)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NETS)
def test_int8_stays_close_to_fp32(
    name: str, target: Target, exported: Callable[[str], Exported], ranged: Callable[[str], Ranged]
) -> None:
    (model, ranges), unseen = ranged(name), pictures(32, seed=3)
    expected_NC = predict_onnx(exported(name).path, unseen)
    graph = qdq.int8_graph(model, ranges, target)
    actual_NC = predict_onnx(graph.SerializeToString(), unseen, simulate=target == "tensorrt")
    assert 0 < np.sqrt(np.mean((actual_NC - expected_NC) ** 2)) / expected_NC.std() < 0.25


@pytest.mark.parametrize("name", NETS)
def test_cpu_kernels_agree_with_literal_arithmetic(name: str, ranged: Callable[[str], Ranged]) -> None:
    """Integer kernels round sums that float arithmetic does not round, so single values differ by a step."""
    model, ranges = ranged(name)
    graph, unseen = qdq.int8_graph(model, ranges, "cpu").SerializeToString(), pictures(16, seed=5)
    literal_NC, actual_NC = predict_onnx(graph, unseen, simulate=True), predict_onnx(graph, unseen)
    assert np.sqrt(np.mean((actual_NC - literal_NC) ** 2)) < 0.05 * literal_NC.std()


@pytest.mark.parametrize("name", ["lite", "mobilenet"])
def test_sessions_compute_graph_for_tensorrt_as_it_is_written(name: str, ranged: Callable[[str], Ranged]) -> None:
    """Without the option of `session`, ONNX Runtime quantizes the biases in float16 steps and other labels come out."""
    model, ranges = ranged(name)
    graph, unseen = graph_maker(model, ranges, "tensorrt")(()).SerializeToString(), pictures(64, seed=5)
    literal_NC, actual_NC = predict_onnx(graph, unseen, simulate=True), predict_onnx(graph, unseen)
    assert (actual_NC.argmax(1) == literal_NC.argmax(1)).all()
    assert np.abs(actual_NC - literal_NC).max() < 0.01 * np.abs(literal_NC).max()


def pair(zero: np.ndarray | None, *, constant: bool = False) -> ModelProto:
    points = {} if zero is None else {"zero": zero}
    scale = ["scale", *points]
    quantized = np.array([1, 2, 3], dtype=np.int8 if zero is None else zero.dtype)
    dequantize = helper.make_node("DequantizeLinear", ["q", *scale], ["d"], name="dq")
    quantize = helper.make_node("QuantizeLinear", ["x", *scale], ["q"], name="q")
    add = helper.make_node("Add", ["x", "d"], ["y"], name="add")
    extra = {"q": quantized} if constant else {}
    nodes = [dequantize, add] if constant else [quantize, dequantize, add]
    return float_model(nodes, [3], [3], scale=np.array(0.5, np.float32), **points, **extra)


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (pair(np.array(0, np.uint8)), "node q: uint8 instead of int8"),
        (pair(np.array(3, np.int8)), "node q: zero point 3 instead of 0"),
        (pair(np.array(-128, np.int8)), "node q: zero point -128 instead of 0"),
        (pair(None), "node q: no zero point, which means uint8"),
        (pair(np.array(0, np.int32), constant=True), r"node dq: a quantized bias \(int32\)"),
        (pair(np.array(0, np.int8), constant=True), "node dq: a quantized constant that is not a weight"),
    ],
    ids=["uint8", "zero point", "lowest zero point", "no zero point", "bias", "constant"],
)
def test_pair_that_tensorrt_misreads_is_refused_by_name(model: ModelProto, complaint: str) -> None:
    with pytest.raises(EdgeDistillError, match=rf"^student\.onnx: {complaint}; TensorRT would misread it; use the"):
        qdq.refuse_for_tensorrt(model, "student.onnx")


def test_computed_zero_point_is_refused() -> None:
    model = pair(np.array(0, np.int8))
    model.graph.initializer[1].name = "negative_zero"
    model.graph.node.insert(0, helper.make_node("Neg", ["negative_zero"], ["zero"], name="neg"))
    with pytest.raises(EdgeDistillError, match="node q: its zero point is computed, not constant"):
        qdq.refuse_for_tensorrt(model, "student.onnx")


def test_symmetric_int8_pair_is_accepted_and_computes() -> None:
    model = pair(np.array(0, np.int8))
    qdq.refuse_for_tensorrt(model, "student.onnx")
    # steps of 0.5, halves to even: 0.3 -> 0.5, 100 -> 127 steps
    np.testing.assert_allclose(reference_output(model, np.array([0.3, 100, -0.2], np.float32)), [0.8, 163.5, -0.2])


def test_cpu_graph_is_refused_for_tensorrt_by_first_node(ranged: Callable[[str], Ranged]) -> None:
    graph = qdq.int8_graph(*ranged("resnet"), "cpu")
    first = next(node.name for node in graph.graph.node if node.op_type.endswith("Linear"))
    with pytest.raises(EdgeDistillError, match=rf"^student\.onnx: node {first}: uint8 instead of int8; TensorRT would"):
        qdq.refuse_for_tensorrt(graph, "student.onnx")


def equal_ranges(model: ModelProto) -> dict[str, tuple[float, float]]:
    """Return the same range for every tensor."""
    return {name: (-4.0, 5.0) for node in model.graph.node for name in (*node.input, *node.output)}


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_consecutive_activations_give_valid_graph(target: Target) -> None:
    model = chain("Conv", "Relu", "Clip", "Conv", "Relu", "Relu", "Conv")
    onnx.checker.check_model(qdq.int8_graph(model, equal_ranges(model), target), full_check=True)


def test_channel_of_tiny_weights_keeps_its_bias() -> None:
    model = chain("Conv", "Relu", "Conv")
    for tensor in model.graph.initializer:
        if tensor.name in ("w0", "b0"):
            per_channel = (
                np.array([1e-12, 1.0], np.float32) if tensor.name == "w0" else np.array([0.5, 0.1], np.float32)
            )
            values = (
                np.broadcast_to(per_channel.reshape(2, 1, 1, 1), (2, 2, 1, 1)) if tensor.name == "w0" else per_channel
            )
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
    graph = qdq.int8_graph(model, equal_ranges(model), "cpu")
    constants = graphs.constants(graph)
    bias = constants["Conv0_bias_q"].astype(np.float64) * constants["Conv0_bias_scale"]
    np.testing.assert_allclose(bias, [0.5, 0.1], rtol=1e-3)


def test_range_ends_at_clip_bound() -> None:
    model = chain("Conv", "Clip", "Conv")
    ranges = {**equal_ranges(model), "t1": (0.0, 9.0)}
    affines = qdq.affines(model, make_plan(model, "cpu"), ranges)
    assert affines["t1"].scale == pytest.approx(6 / 255)
