"""Steps and zero points, the int8 graphs of real blocks for both targets, and what TensorRT would misread."""

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
from edgedistill.export import graphs, qdq
from edgedistill.export.infer import predict_onnx
from edgedistill.export.placement import plan
from edgedistill.records import Target
from tests.helpers.export_nets import NETS, Exported, Ranged, pictures
from tests.helpers.small_graphs import answer, as_run, chain, model_of, ops, types

TARGETS: tuple[Target, ...] = ("cpu", "tensorrt")
BOUNDS = st.floats(-1e6, 1e6, width=32)


def test_affine_by_hand() -> None:
    # 255 steps from -1 to 4.1: 0.02, and zero is 50 of them above the lowest
    assert qdq.affine(-1.0, 4.1, "cpu") == qdq.Affine(scale=pytest.approx(0.02), zero_point=50)
    # zero belongs to every range
    assert qdq.affine(2.0, 5.1, "cpu") == qdq.Affine(scale=pytest.approx(0.02), zero_point=0)
    assert qdq.affine(-5.1, -2.0, "cpu") == qdq.Affine(scale=pytest.approx(0.02), zero_point=255)
    assert qdq.affine(-1.0, 2.54, "tensorrt") == qdq.Affine(scale=pytest.approx(0.02), zero_point=0)
    assert qdq.affine(-2.54, 1.0, "tensorrt") == qdq.Affine(scale=pytest.approx(0.02), zero_point=0)


@given(BOUNDS, BOUNDS)
def test_a_range_is_covered_but_for_half_a_step_and_zero_is_exact(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    got = qdq.affine(low, high, "cpu")
    assert 0 <= got.zero_point <= 255
    # a whole number of steps: (zero_point - zero_point) * scale is 0 whatever the scale
    assert isinstance(got.zero_point, int)
    assert (0 - got.zero_point) * got.scale <= low + 0.501 * got.scale
    assert (255 - got.zero_point) * got.scale >= high - 0.501 * got.scale
    assert got.scale * 254 <= max(high, 0.0) - min(low, 0.0) or got.scale == pytest.approx(qdq.SMALLEST)
    symmetric = qdq.affine(low, high, "tensorrt")
    assert symmetric.zero_point == 0
    assert 127 * symmetric.scale >= max(-low, high) * (1 - 1e-6)
    assert np.float16(symmetric.scale) >= 2.0**-14 or max(-low, high) > 6e4


@pytest.mark.parametrize("target", TARGETS)
def test_a_tensor_that_is_zero_everywhere_has_a_step(target: Target) -> None:
    got = qdq.affine(0.0, 0.0, target)
    assert got.scale > 0 and np.float32(got.scale) > 0 and got.zero_point == 0


@given(st.integers(0, 2**32), st.floats(1e-6, 1e6), st.sampled_from(TARGETS))
def test_each_output_channel_has_its_own_step_and_no_weight_is_off_by_more_than_half(
    seed: int, size: float, target: Target
) -> None:
    generator = np.random.default_rng(seed)
    weight = (generator.normal(size=(4, 3, 2, 2)) * size * np.array([1, 10, 1e-3, 0]).reshape(-1, 1, 1, 1)).astype("f4")
    scales = qdq.weight_scales(weight, 0, target)
    assert (scales.dtype, scales.shape) == (np.float32, (4,))
    stored = qdq._stored(weight, scales, 0)
    assert stored.dtype == np.int8 and stored.min() >= -127
    assert np.all(np.abs(stored * scales.reshape(-1, 1, 1, 1) - weight) <= 0.501 * scales.reshape(-1, 1, 1, 1))
    least = qdq.SMALLEST if target == "cpu" else 2.0**-14
    for channel, scale in zip(weight, scales, strict=True):
        assert scale == pytest.approx(max(float(np.abs(channel).max()) / 127, least), rel=1e-6)


@pytest.mark.parametrize(
    ("node", "axis"),
    [
        (helper.make_node("Conv", ["x", "w"], ["y"]), 0),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transB=1), 0),
        (helper.make_node("Gemm", ["x", "w"], ["y"]), 1),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), 1),
    ],
)
def test_the_axis_of_the_output_channels(node: NodeProto, axis: int) -> None:
    assert qdq.output_axis(node) == axis


def gated(*, residual: bool = False) -> ModelProto:
    """conv -> hard-swish -> conv; with `residual` what the first gives is added to what the second does."""
    model = chain("Conv", "HardSwish", "Conv", "Neg")
    if residual:
        model.graph.node[3].CopyFrom(helper.make_node("Add", ["t0", "t2"], ["y"], name="add"))
    return model


def test_below_minus_three_nothing_is_kept_of_what_only_its_gate_and_product_read() -> None:
    ranges = {"x": (0.0, 1.0), "t0": (-20.0, 4.65), "t1": (-0.375, 4.65), "t2": (-1.0, 1.0)}
    ready = qdq.prepared(gated(), "cpu")
    found = qdq.affines(ready, plan(ready, "cpu"), ranges)
    # 255 steps from -3 to 4.65
    assert found["t0"] == qdq.Affine(scale=pytest.approx(0.03), zero_point=100)
    # 0 ... 255 / 254, whatever was seen
    assert found["t1_gate"] == qdq.Affine(scale=pytest.approx(1 / 254), zero_point=0)
    ready = qdq.prepared(gated(residual=True), "cpu")
    found = qdq.affines(ready, plan(ready, "cpu"), ranges)
    assert found["t0"].scale == pytest.approx(24.65 / 255)


def test_a_pooled_tensor_takes_the_step_of_what_was_pooled() -> None:
    model = chain("Conv", "MaxPool", "Conv")
    found = qdq.affines(model, plan(model, "cpu"), {"x": (0.0, 1.0), "t0": (-1.0, 4.1)})
    assert found["t0"] == found["t1"] == qdq.Affine(scale=pytest.approx(0.02), zero_point=50)


def test_the_bytes_of_a_hard_sigmoid_are_its_values_to_within_a_step() -> None:
    """Every value that x can hold, in coarse and in fine steps: a LeakyRelu of slope 1 against HardSigmoid."""
    for low, high in ((-3.0, 3.0), (-20.0, 20.0), (-3.0, 0.5), (0.0, 9.0), (-40.0, 0.01)):
        ready = qdq.prepared(gated(), "cpu")
        wanted = plan(ready, "cpu")
        ranges = {"x": (0.0, 1.0), "t0": (low, high), "t1": (-0.375, max(high, 0.1)), "t2": (-1.0, 1.0)}
        written = qdq.written(ready, wanted, qdq.affines(ready, wanted, ranges))
        one = qdq.affine(max(low, -3.0), high, "cpu")
        held = ((np.arange(256) - one.zero_point) * one.scale).astype(np.float32)
        part = [node for node in written.graph.node if node.output[0].startswith("t1_gate")]
        assert [node.op_type for node in part] == ["LeakyRelu", "QuantizeLinear", "DequantizeLinear"]
        part[0].input[0], part[2].output[0] = "x", "y"
        got = answer(model_of(part, [256], [256], **graphs.constants(written)), held)
        assert np.abs(got - np.clip(held / 6 + 0.5, 0, 1)).max() <= 1 / 254


def test_a_hard_sigmoid_of_another_slope_keeps_its_operator() -> None:
    """A slope of 1 / 5 is ONNX's default; the bytes of 6 / 254 about 127 are not its values."""
    ready = qdq.prepared(gated(), "cpu")
    next(node for node in ready.graph.node if node.op_type == "HardSigmoid").attribute[0].f = 0.2
    ranges = {"x": (0.0, 1.0), "t0": (-3.0, 3.0), "t1_gate": (0.0, 1.0), "t1": (-0.375, 3.0), "t2": (-1.0, 1.0)}
    wanted = plan(ready, "cpu")
    assert "HardSigmoid" in ops(qdq.written(ready, wanted, qdq.affines(ready, wanted, ranges)))


def test_the_bias_is_in_steps_of_what_is_added_up_on_the_cpu_and_float_for_tensorrt() -> None:
    model = chain("Conv", "Relu")
    for tensor, value in (("w0", [[[[1.27]], [[0.0]]], [[[0.0]], [[-2.54]]]]), ("b0", [0.5, -0.25])):
        one = next(one for one in model.graph.initializer if one.name == tensor)
        one.CopyFrom(numpy_helper.from_array(np.array(value, np.float32), tensor))
    known = graphs.constants(qdq.int8_graph(model, {"x": (0.0, 5.1), "t0": (-1.0, 1.0)}, "cpu"))
    np.testing.assert_array_equal(known["w0_q"].reshape(2, 2), [[127, 0], [0, -127]])
    np.testing.assert_allclose(known["w0_scale"], [0.01, 0.02], rtol=1e-6)
    # x comes in steps of 0.02, so sums come in steps of 0.0002 and 0.0004
    np.testing.assert_array_equal(known["Conv0_bias_q"], [2500, -625])
    assert known["Conv0_bias_q"].dtype == np.int32
    known = graphs.constants(qdq.int8_graph(model, {"x": (0.0, 5.1)}, "tensorrt"))
    np.testing.assert_array_equal(known["b0"], np.array([0.5, -0.25], np.float32))


@pytest.mark.parametrize("target", TARGETS)
def test_the_float_graph_is_left_as_it_is(target: Target, ranged: Callable[[str], Ranged]) -> None:
    model, ranges = ranged("mnv3")
    untouched = model.SerializeToString()
    graph = qdq.int8_graph(model, ranges, target)
    assert model.SerializeToString() == untouched
    onnx.checker.check_model(graph, full_check=True)
    assert {one.name for one in graph.graph.initializer} <= set(graphs.consumers(graph))


BLOCKS = {
    # residual and squeeze-excite sums; hard-swish and hard-sigmoid gates; products; pools over the picture
    "lite": {"QLinearAdd": 2, "QLinearLeakyRelu": 0, "QLinearMul": 0, "QLinearGlobalAveragePool": 1},
    "mobilenet": {"QLinearAdd": 3, "QLinearLeakyRelu": 0, "QLinearMul": 0, "QLinearGlobalAveragePool": 1},
    "mnv3": {"QLinearAdd": 3, "QLinearLeakyRelu": 11, "QLinearMul": 11, "QLinearGlobalAveragePool": 5},
    "resnet": {"QLinearAdd": 2, "QLinearAveragePool": 1, "MaxPool": 1, "QLinearGlobalAveragePool": 1},
}


@pytest.mark.parametrize("name", NETS)
def test_the_cpu_graph_runs_in_int8_from_end_to_end(
    name: str, exported: Callable[[str], Exported], ranged: Callable[[str], Ranged], tmp_path: Path
) -> None:
    model, ranges = ranged(name)
    before = Counter(ops(model))
    got = as_run(qdq.int8_graph(model, ranges, "cpu"), tmp_path)
    assert got["QLinearConv"] == before["Conv"]
    assert {op_type: got[op_type] for op_type in BLOCKS[name]} == BLOCKS[name]
    assert before["HardSwish"] + before["HardSigmoid"] == got["QLinearLeakyRelu"]
    floats = ("Conv", "FusedConv", "Relu", "Clip", "HardSigmoid", "HardSwish", "LeakyRelu", "GlobalAveragePool", "Gemm")
    assert not sum(got[op_type] for op_type in floats)
    # preprocessing alone adds and multiplies floats; one way in, and the last layer gives floats by itself
    assert (got["Add"], got["Mul"], got["QuantizeLinear"], got["DequantizeLinear"], got["QGemm"]) == (1, 1, 1, 0, 1)
    assert predict_onnx(qdq.int8_graph(model, ranges, "cpu").SerializeToString(), pictures(1)).dtype == np.float32


@pytest.mark.parametrize("name", NETS)
def test_the_tensorrt_graph_is_symmetric_int8_in_float16(name: str, ranged: Callable[[str], Ranged]) -> None:
    model, ranges = ranged(name)
    int8 = qdq.int8_graph(model, ranges, "tensorrt")
    qdq.refuse_for_tensorrt(int8, "the graph")
    graph = graphs.half(int8)
    qdq.refuse_for_tensorrt(graph, "the graph")
    onnx.checker.check_model(graph, full_check=True)
    known, made, typed = graphs.constants(graph), graphs.producers(graph), types(graph)
    before = set(graphs.preprocessing(graph))
    for node in graph.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert not known[node.input[2]].any() and known[node.input[2]].dtype == np.int8
            assert known[node.input[1]].dtype == np.float16 and np.all(known[node.input[1]] > 0)
        if node.op_type in ("Relu", "Clip", "HardSwish"):
            assert made[node.input[0]].op_type in ("Conv", "Add")
        if node.op_type == "Conv":
            assert made[node.input[0]].op_type == made[node.input[1]].op_type == "DequantizeLinear"
            assert all(known[one].dtype == np.float16 for one in node.input[2:])
            weight = made[node.input[1]]
            assert known[weight.input[0]].dtype == np.int8
            assert known[weight.input[1]].shape == known[weight.input[0]].shape[:1]
        if node.op_type == "Add" and node.name not in before:
            assert sorted(made[one].op_type for one in node.input) == ["Conv", "DequantizeLinear"]
        if node.op_type in ("Add", "Mul", "GlobalAveragePool", "Gemm", "Relu", "HardSigmoid"):
            wanted = TensorProto.FLOAT if node.name in before else TensorProto.FLOAT16
            assert typed[node.output[0]] == wanted, node.name
    assert ops(graph)[:6] == ["Cast", "Reshape", "Mul", "Add", "Reshape", "Transpose"]
    assert (ops(graph)[-1], typed["logits"]) == ("Cast", TensorProto.FLOAT)
    assert ops(graph).count("QuantizeLinear") == len(plan(model, "tensorrt").pairs)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NETS)
def test_int8_stays_close_to_fp32(
    name: str, target: Target, exported: Callable[[str], Exported], ranged: Callable[[str], Ranged]
) -> None:
    (model, ranges), unseen = ranged(name), pictures(32, seed=3)
    wanted = predict_onnx(exported(name).path, unseen)
    graph = qdq.int8_graph(model, ranges, target)
    got = predict_onnx(graph.SerializeToString(), unseen, simulate=target == "tensorrt")
    assert 0 < np.sqrt(np.mean((got - wanted) ** 2)) / wanted.std() < 0.25


@pytest.mark.parametrize("name", NETS)
def test_on_the_cpu_kernels_and_literal_arithmetic_agree(name: str, ranged: Callable[[str], Ranged]) -> None:
    """Integer kernels round a sum where floats do not, which moves a value by a step now and then."""
    model, ranges = ranged(name)
    graph, unseen = qdq.int8_graph(model, ranges, "cpu").SerializeToString(), pictures(16, seed=5)
    literal, got = predict_onnx(graph, unseen, simulate=True), predict_onnx(graph, unseen)
    assert np.sqrt(np.mean((got - literal) ** 2)) < 0.05 * literal.std()


def pair(zero: np.ndarray | None, *, constant: bool = False) -> ModelProto:
    points = {} if zero is None else {"zero": zero}
    scale = ["scale", *points]
    quantized = np.array([1, 2, 3], dtype=np.int8 if zero is None else zero.dtype)
    dequantize = helper.make_node("DequantizeLinear", ["q", *scale], ["d"], name="dq")
    quantize = helper.make_node("QuantizeLinear", ["x", *scale], ["q"], name="q")
    add = helper.make_node("Add", ["x", "d"], ["y"], name="add")
    extra = {"q": quantized} if constant else {}
    nodes = [dequantize, add] if constant else [quantize, dequantize, add]
    return model_of(nodes, [3], [3], scale=np.array(0.5, np.float32), **points, **extra)


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
def test_what_tensorrt_misreads_is_refused_by_name(model: ModelProto, complaint: str) -> None:
    with pytest.raises(EdgeDistillError, match=rf"^student\.onnx: {complaint}; TensorRT would misread it; use the"):
        qdq.refuse_for_tensorrt(model, "student.onnx")


def test_a_zero_point_that_is_computed_is_refused() -> None:
    model = pair(np.array(0, np.int8))
    model.graph.initializer[1].name = "given"
    model.graph.node.insert(0, helper.make_node("Neg", ["given"], ["zero"], name="neg"))
    with pytest.raises(EdgeDistillError, match="node q: its zero point is computed, not constant"):
        qdq.refuse_for_tensorrt(model, "student.onnx")


def test_a_symmetric_int8_pair_is_not_refused_and_computes() -> None:
    model = pair(np.array(0, np.int8))
    qdq.refuse_for_tensorrt(model, "student.onnx")
    # steps of 0.5, halves to even: 0.3 -> 0.5, 100 -> 127 steps
    np.testing.assert_allclose(answer(model, np.array([0.3, 100, -0.2], np.float32)), [0.8, 163.5, -0.2])


def test_the_cpu_graph_is_refused_for_tensorrt_by_its_first_node(ranged: Callable[[str], Ranged]) -> None:
    graph = qdq.int8_graph(*ranged("resnet"), "cpu")
    first = next(node.name for node in graph.graph.node if node.op_type.endswith("Linear"))
    with pytest.raises(EdgeDistillError, match=rf"^student\.onnx: node {first}: uint8 instead of int8; TensorRT would"):
        qdq.refuse_for_tensorrt(graph, "student.onnx")


def spread_ranges(model: ModelProto) -> dict[str, tuple[float, float]]:
    """The same range for every tensor."""
    return {name: (-4.0, 5.0) for node in model.graph.node for name in (*node.input, *node.output)}


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_one_activation_behind_another_is_no_broken_graph(target: Target) -> None:
    model = chain("Conv", "Relu", "Clip", "Conv", "Relu", "Relu", "Conv")
    onnx.checker.check_model(qdq.int8_graph(model, spread_ranges(model), target), full_check=True)


def test_a_channel_of_next_to_no_weights_keeps_its_bias() -> None:
    model = chain("Conv", "Relu", "Conv")
    for tensor in model.graph.initializer:
        if tensor.name in ("w0", "b0"):
            value = np.array([1e-12, 1.0], np.float32) if tensor.name == "w0" else np.array([0.5, 0.1], np.float32)
            shaped = np.broadcast_to(value.reshape(2, 1, 1, 1), (2, 2, 1, 1)) if tensor.name == "w0" else value
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(shaped), tensor.name))
    graph = qdq.int8_graph(model, spread_ranges(model), "cpu")
    known = graphs.constants(graph)
    made = known["Conv0_bias_q"].astype(np.float64) * known["Conv0_bias_scale"]
    np.testing.assert_allclose(made, [0.5, 0.1], rtol=1e-3)


def test_what_a_clip_cuts_off_is_not_in_the_range() -> None:
    model = chain("Conv", "Clip", "Conv")
    ranges = {**spread_ranges(model), "t1": (0.0, 9.0)}
    found = qdq.affines(model, plan(model, "cpu"), ranges)
    assert found["t1"].scale == pytest.approx(6 / 255)
