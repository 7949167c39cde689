"""Every integer kernel against ONNX Runtime's own, on random bytes, steps and zero points: not one byte may differ."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgedistill.data.pixels import normalise
from edgedistill.export import fake_quant, integer_kernels, qdq

pytestmark = pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="the kernels of x86 are meant")

CPU = torch.device("cpu")
TIMES = 40
Random = np.random.Generator


def run(node: NodeProto, constants: dict[str, np.ndarray], fed: dict[str, np.ndarray]) -> np.ndarray:
    """What ONNX Runtime makes of one node that reads bytes and writes `y`."""
    kind = TensorProto.FLOAT if node.op_type == "QGemm" and len(node.input) == 7 else TensorProto.UINT8
    graph = helper.make_graph(
        [node],
        "test",
        [helper.make_tensor_value_info(name, TensorProto.UINT8, array.shape) for name, array in fed.items()],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, fed)[0])


def affine(random: Random, least: float = 1e-3, most: float = 1.0) -> qdq.Affine:
    """Any step and zero point."""
    scale = np.exp(random.uniform(np.log(least), np.log(most)))
    return qdq.Affine(scale=float(np.float32(scale)), zero_point=int(random.integers(0, 256)))


def on(one: qdq.Affine) -> integer_kernels.Grid:
    return integer_kernels.grid(one, CPU)


def as_bytes(values: np.ndarray, one: qdq.Affine) -> integer_kernels.Bytes:
    return integer_kernels.Bytes(values=torch.from_numpy(values.astype(np.float32)), grid=on(one))


def stored(name: str, one: qdq.Affine) -> dict[str, np.ndarray]:
    return {f"{name}_scale": np.array(one.scale, np.float32), f"{name}_zero": np.array(one.zero_point, np.uint8)}


def quantized_node(op_type: str, names: Sequence[str], **asked: Any) -> NodeProto:
    """QLinear...(a, its scale, its zero point, ...) -> y, whose own come last; first in a Concat."""
    inputs = [part for name in names for part in (name, f"{name}_scale", f"{name}_zero")]
    made = ["y_scale", "y_zero"]
    ordered = [*made, *inputs] if op_type == "QLinearConcat" else [*inputs, *made]
    return helper.make_node(op_type, ordered, ["y"], domain="com.microsoft", **asked)


def differing(
    op_type: str, shapes: Sequence[Sequence[int]], made: Callable[[list[qdq.Affine], Random], qdq.Affine], **asked: Any
) -> int:
    """Bytes of which the kernel for an operator makes others than ONNX Runtime does, in TIMES random cases."""
    random, count, seen = np.random.default_rng(7), 0, set()
    for _ in range(TIMES):
        fed = {f"x{at}": random.integers(0, 256, shape, np.uint8) for at, shape in enumerate(shapes)}
        read = [affine(random) for _ in fed]
        out = made(read, random)
        constants = stored("y", out)
        for name, one in zip(fed, read, strict=True):
            constants.update(stored(name, one))
        wanted = run(quantized_node(f"QLinear{op_type}", list(fed), **asked), constants, fed)
        given = [as_bytes(values, one) for values, one in zip(fed.values(), read, strict=True)]
        got = integer_kernels.computed(helper.make_node(op_type, list(fed), ["y"], **asked), given, on(out))
        assert isinstance(got, integer_kernels.Bytes)
        count += int((got.values.numpy() != wanted).sum())
        seen.update(np.unique(wanted).tolist())
    assert len(seen) > 100  # or all were saturated
    return count


def any_step(read: list[qdq.Affine], random: Random) -> qdq.Affine:
    return affine(random)


def fine_step(read: list[qdq.Affine], random: Random) -> qdq.Affine:
    """Steps of about those that are read, so that little saturates."""
    return affine(random, 0.3 * read[0].scale, read[0].scale)


def halves(read: list[qdq.Affine], random: Random) -> qdq.Affine:
    """Steps twice as large as the first that is read: every other value lies halfway between two."""
    return qdq.Affine(scale=2 * read[0].scale, zero_point=int(random.integers(0, 256)))


def product(read: list[qdq.Affine], random: Random) -> qdq.Affine:
    step = read[0].scale * read[1].scale
    return affine(random, 30 * step, 255 * step)


@pytest.mark.parametrize("made", [any_step, fine_step, halves])
def test_a_sum_of_two_tensors(made: Callable[[list[qdq.Affine], Random], qdq.Affine]) -> None:
    assert differing("Add", [(2, 8, 40, 41), (2, 8, 40, 41)], made) == 0


def product_halves(read: list[qdq.Affine], random: Random) -> qdq.Affine:
    """Every product is a whole number of 1 / 128 of a step."""
    return qdq.Affine(scale=128 * read[0].scale * read[1].scale, zero_point=int(random.integers(0, 256)))


@pytest.mark.parametrize("gate", [(2, 8, 20, 21), (2, 8, 1, 1)], ids=["hard-swish", "squeeze-excite"])
def test_a_product_of_two_tensors(gate: tuple[int, ...]) -> None:
    assert differing("Mul", [(2, 8, 20, 21), gate], product) == 0
    assert differing("Mul", [(2, 8, 20, 21), gate], product_halves) == 0


@pytest.mark.parametrize("made", [fine_step, halves])
def test_a_global_average(made: Callable[[list[qdq.Affine], Random], qdq.Affine]) -> None:
    assert differing("GlobalAveragePool", [(4, 96, 7, 9)], made) == 0


@pytest.mark.parametrize(
    "asked",
    [
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1},
        {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1},
    ],
    ids=["even", "rounded up", "padded", "padding counted"],
)
def test_an_average_of_windows(asked: dict[str, Any]) -> None:
    assert differing("AveragePool", [(2, 16, 19, 19)], fine_step, **asked) == 0
    assert differing("AveragePool", [(2, 16, 19, 19)], halves, **asked) == 0


def test_parts_are_joined_on_one_grid() -> None:
    assert differing("Concat", [(1, 512), (1, 300)], any_step, axis=1) == 0


def test_a_sigmoid() -> None:
    assert differing("Sigmoid", [(1, 4096)], lambda read, random: qdq.affine(0.0, 1.0, "cpu")) == 0


def test_a_hard_sigmoid_is_what_the_graph_stores_for_it() -> None:
    random, count = np.random.default_rng(7), 0
    node = helper.make_node("HardSigmoid", ["x"], ["y"], alpha=1 / 6, beta=0.5)
    straight, every = quantized_node("QLinearLeakyRelu", ["x"], alpha=1.0), np.arange(256, dtype=np.uint8)
    for _ in range(TIMES):
        read = affine(random)
        constants = stored("x", read) | stored("y", qdq.Affine(scale=6 / qdq.STEPS, zero_point=qdq.STEPS // 2))
        got = integer_kernels.computed(node, [as_bytes(every, read)], on(qdq.Affine(scale=1 / qdq.STEPS, zero_point=0)))
        assert isinstance(got, integer_kernels.Bytes)
        count += int((got.values.numpy() != run(straight, constants, {"x": every})).sum())
    assert count == 0


def weights(random: Random, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Float weights and biases whose channels differ in size by orders of magnitude."""
    sizes = np.exp(random.uniform(-5, 0, shape[0])).astype(np.float32)
    weight = random.normal(size=shape).astype(np.float32) * sizes.reshape(-1, *[1] * (len(shape) - 1))
    return weight, (random.normal(size=shape[0]) * sizes * 9).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "groups", "given"),
    [
        ((24, 20, 3, 3), 1, (2, 20, 12, 11)),
        ((40, 1, 5, 5), 40, (2, 40, 12, 11)),
        ((16, 1152, 1, 1), 1, (1, 1152, 9, 8)),
        ((8, 512, 3, 3), 1, (1, 512, 7, 7)),  # sums beyond what float32 holds
    ],
    ids=["dense", "depthwise", "pointwise", "long"],
)
def test_a_convolution(shape: tuple[int, ...], groups: int, given: tuple[int, ...]) -> None:
    random, count = np.random.default_rng(7), 0
    pads = [shape[2] // 2] * 4
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=pads, group=groups, kernel_shape=shape[2:])
    order = ["x", "x_scale", "x_zero", "w", "w_scale", "w_zero", "y_scale", "y_zero", "b"]
    kernel = helper.make_node("QLinearConv", order, ["y"], pads=pads, group=groups, kernel_shape=shape[2:])
    for _ in range(TIMES // 4):
        read, (weight, bias) = affine(random), weights(random, shape)
        out = qdq.Affine(scale=read.scale * float(np.sqrt(np.prod(shape[1:]))), zero_point=int(random.integers(0, 256)))
        held = integer_kernels.layer(node, weight, bias=bias, read=read, device=CPU)
        constants = stored("x", read) | stored("y", out) | as_held(held)
        x = random.integers(0, 256, given, np.uint8)
        got = integer_kernels.weighted(node, as_bytes(x, read), held, on(out))
        assert isinstance(got, integer_kernels.Bytes)
        count += int((got.values.numpy() != run(kernel, constants, {"x": x})).sum())
    assert count == 0


def as_held(held: integer_kernels.Layer) -> dict[str, np.ndarray]:
    """A layer's constants as a graph holds them."""
    assert held.bias is not None
    return {
        "w": held.weight.numpy().astype(np.int8),
        "b": held.bias.numpy(),
        "w_scale": held.steps.numpy(),
        "w_zero": np.zeros(len(held.steps), np.int8),
    }


@pytest.mark.parametrize("logits", [True, False])
def test_a_linear_layer(logits: bool) -> None:
    random = np.random.default_rng(7)
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)
    order = ["x", "x_scale", "x_zero", "w", "w_scale", "w_zero", "b", *([] if logits else ["y_scale", "y_zero"])]
    kernel = helper.make_node("QGemm", order, ["y"], domain="com.microsoft", transB=1)
    for _ in range(TIMES):
        read, (weight, bias) = affine(random), weights(random, (50, 700))
        out = qdq.Affine(scale=read.scale * 20, zero_point=int(random.integers(0, 256)))
        held = integer_kernels.layer(node, weight, bias=bias, read=read, device=CPU)
        constants = stored("x", read) | as_held(held) | ({} if logits else stored("y", out))
        x = random.integers(0, 256, (3, 700), np.uint8)
        got = integer_kernels.weighted(node, as_bytes(x, read), held, None if logits else on(out))
        values = got.values if isinstance(got, integer_kernels.Bytes) else got
        assert isinstance(got, integer_kernels.Bytes) != logits
        np.testing.assert_array_equal(values.numpy(), run(kernel, constants, {"x": x}))


@pytest.mark.parametrize("op_type", ["Conv", "Gemm"])
def test_sums_halfway_between_two_steps(op_type: str) -> None:
    random, count = np.random.default_rng(7), 0
    node = helper.make_node(op_type, ["x", "w", "b"], ["y"], **({"transB": 1} if op_type == "Gemm" else {}))
    read_from, made_in = ["x", "x_scale", "x_zero", "w", "w_scale", "w_zero"], ["y_scale", "y_zero"]
    linear = helper.make_node("QGemm", [*read_from, "b", *made_in], ["y"], domain="com.microsoft", transB=1)
    kernel = linear if op_type == "Gemm" else helper.make_node("QLinearConv", [*read_from, *made_in, "b"], ["y"])
    beyond = [1, 1] if op_type == "Conv" else []
    for _ in range(TIMES):
        read, step = affine(random), np.float32(np.exp(random.uniform(-7, 0)))
        # a step for two of the sum's: odd sums lie between two bytes, if the steps are multiplied in the right order
        out = qdq.Affine(scale=2 * float(np.float32(read.scale) * step), zero_point=int(random.integers(100, 150)))
        weight, bias = random.integers(-1, 2, (24, 9, *beyond)), random.integers(-9, 9, 24)
        held = integer_kernels.Layer(
            weight=torch.from_numpy(weight).float(), bias=torch.from_numpy(bias).int(), steps=torch.full((24,), step)
        )
        x = (read.zero_point + random.integers(-9, 9, (50, 9, *beyond))).clip(0, 255).astype(np.uint8)
        constants = stored("x", read) | stored("y", out) | as_held(held)
        got = integer_kernels.weighted(node, as_bytes(x, read), held, on(out))
        assert isinstance(got, integer_kernels.Bytes)
        count += int((got.values.numpy() != run(kernel, constants, {"x": x})).sum())
    assert count == 0


def test_sums_beyond_what_float32_holds() -> None:
    random, one = np.random.default_rng(7), qdq.Affine(scale=0.5, zero_point=0)
    held = integer_kernels.Layer(
        weight=torch.from_numpy(random.integers(100, 128, (20, 4608)).astype(np.float32)),
        bias=torch.zeros(20, dtype=torch.int32),
        steps=torch.full((20,), 0.25),
    )
    x = random.integers(200, 256, (30, 4608), np.uint8)
    sums = x.astype(np.int64) @ held.weight.numpy().astype(np.int64).T
    assert sums.min() > integer_kernels.EXACT
    got = integer_kernels.weighted(
        helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1), as_bytes(x, one), held, None
    )
    assert isinstance(got, torch.Tensor)
    np.testing.assert_array_equal(got.numpy(), sums.astype(np.float32) / 8)


def test_a_bias_is_whole_and_does_not_overflow_where_the_weights_are_all_but_off() -> None:
    weight, bias = np.full((2, 3, 1, 1), 1e-11, np.float32), np.array([5.0, 0.25], np.float32)
    held = integer_kernels.layer(
        helper.make_node("Conv", ["x", "w", "b"], ["y"]),
        weight,
        bias=bias,
        read=qdq.Affine(scale=0.01, zero_point=3),
        device=CPU,
    )
    assert held.bias is not None
    np.testing.assert_allclose(held.bias.numpy() * held.steps.numpy().astype(np.float64) * 0.01, bias, rtol=1e-6)


def test_pixels_are_normalised_to_the_last_bit_as_the_graph_does_it() -> None:
    half, step = (0.5, 0.5, 0.5), on(qdq.affine(-1.0, 1.0, "cpu"))  # every pixel lies halfway between two steps
    images_NHWC = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(1, 1, 1, 3)
    scale, shift = (torch.full((3, 1, 1), value, dtype=torch.float32) for value in (1 / 127.5, -1.0))
    graph = images_NHWC.permute(0, 3, 1, 2).float() * scale + shift
    images_BCHW = normalise(images_NHWC, half, half)
    assert (integer_kernels.quantized(images_BCHW, step).values != integer_kernels.quantized(graph, step).values).any()
    assert torch.equal(integer_kernels.renormalised(images_BCHW, scale, shift), graph)
    between = images_BCHW + 0.3 / 127.5
    assert torch.equal(integer_kernels.renormalised(between, scale, shift), between)


def test_what_has_no_integer_kernel_is_computed_in_float() -> None:
    one = qdq.Affine(scale=0.1, zero_point=100)
    x = as_bytes(np.arange(90, 110), one)
    relu = integer_kernels.computed(helper.make_node("Relu", ["x"], ["y"]), [x], on(one))
    assert isinstance(relu, integer_kernels.Bytes)
    np.testing.assert_array_equal(relu.values.numpy(), np.arange(90, 110).clip(100))
    other = helper.make_node("HardSigmoid", ["x"], ["y"])  # ONNX's own, x / 5 + 1 / 2, which qdq.py leaves as it is
    steep = integer_kernels.computed(other, [x], on(one))
    assert isinstance(steep, integer_kernels.Bytes)
    assert steep.values.max() <= 100 + 10  # no value is beyond 1, ten steps
    floats = integer_kernels.computed(helper.make_node("Add", ["x", "c"], ["y"]), [x, torch.tensor(1.0)], None)
    assert isinstance(floats, torch.Tensor)
    np.testing.assert_allclose(floats.numpy(), (np.arange(90, 110) - 100) * 0.1 + 1, atol=1e-6)


def test_a_pair_stores_the_same_bytes_in_both_modes() -> None:
    values = torch.linspace(-3, 3, 1001)
    pair = fake_quant.Pair(-1.0, 1.55, "cpu", learned=False)
    low, high = pair.ends().tolist()
    stored_as = integer_kernels.quantized(values, on(qdq.affine(low, high, "cpu")))
    torch.testing.assert_close(stored_as.floats(), pair(values), rtol=0, atol=1e-6)
