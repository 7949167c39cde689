"""Integer kernels against those of ONNX Runtime on random bytes, steps and zero points: all bytes must be equal."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgedistill.data.pixels import normalize
from edgedistill.export import fake_quant, integer_kernels, qdq

pytestmark = pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="compares with the x86 kernels")

CPU = torch.device("cpu")
TIMES = 40
Random = np.random.Generator


def run(node: NodeProto, constants: dict[str, np.ndarray], inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Return the output `y` of one node that reads bytes, computed by ONNX Runtime."""
    kind = TensorProto.FLOAT if node.op_type == "QGemm" and len(node.input) == 7 else TensorProto.UINT8
    graph = helper.make_graph(
        [node],
        "test",
        [helper.make_tensor_value_info(name, TensorProto.UINT8, array.shape) for name, array in inputs.items()],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, inputs)[0])


def random_affine(random: Random, least: float = 1e-3, most: float = 1.0) -> qdq.Affine:
    """Return a random step between `least` and `most` and a random zero point."""
    scale = np.exp(random.uniform(np.log(least), np.log(most)))
    return qdq.Affine(scale=float(np.float32(scale)), zero_point=int(random.integers(0, 256)))


def grid_of(affine: qdq.Affine) -> integer_kernels.Grid:
    return integer_kernels.make_grid(affine, CPU)


def as_bytes(values: np.ndarray, affine: qdq.Affine) -> integer_kernels.QuantizedTensor:
    return integer_kernels.QuantizedTensor(values=torch.from_numpy(values.astype(np.float32)), grid=grid_of(affine))


def stored(name: str, affine: qdq.Affine) -> dict[str, np.ndarray]:
    return {f"{name}_scale": np.array(affine.scale, np.float32), f"{name}_zero": np.array(affine.zero_point, np.uint8)}


def quantized_node(op_type: str, names: Sequence[str], **attributes: Any) -> NodeProto:
    """Return QLinear...(a, its scale, its zero point, ...) -> y; y's own come last, in a Concat first."""
    inputs = [part for name in names for part in (name, f"{name}_scale", f"{name}_zero")]
    output_names = ["y_scale", "y_zero"]
    ordered = [*output_names, *inputs] if op_type == "QLinearConcat" else [*inputs, *output_names]
    return helper.make_node(op_type, ordered, ["y"], domain="com.microsoft", **attributes)


def differing(
    op_type: str,
    shapes: Sequence[Sequence[int]],
    choose_output: Callable[[list[qdq.Affine], Random], qdq.Affine],
    **attributes: Any,
) -> int:
    """Count the output bytes in which an operator's kernel and ONNX Runtime differ, over TIMES random cases."""
    random, differences, distinct = np.random.default_rng(7), 0, set()
    for _ in range(TIMES):
        inputs = {f"x{index}": random.integers(0, 256, shape, np.uint8) for index, shape in enumerate(shapes)}
        input_affines = [random_affine(random) for _ in inputs]
        output = choose_output(input_affines, random)
        constants = stored("y", output)
        for name, affine in zip(inputs, input_affines, strict=True):
            constants.update(stored(name, affine))
        expected = run(quantized_node(f"QLinear{op_type}", list(inputs), **attributes), constants, inputs)
        input_bytes = [as_bytes(values, affine) for values, affine in zip(inputs.values(), input_affines, strict=True)]
        actual = integer_kernels.run_node(
            helper.make_node(op_type, list(inputs), ["y"], **attributes), input_bytes, grid_of(output)
        )
        assert isinstance(actual, integer_kernels.QuantizedTensor)
        differences += int((actual.values.numpy() != expected).sum())
        distinct.update(np.unique(expected).tolist())
    assert len(distinct) > 100  # otherwise all were saturated
    return differences


def any_step(input_affines: list[qdq.Affine], random: Random) -> qdq.Affine:
    return random_affine(random)


def fine_step(input_affines: list[qdq.Affine], random: Random) -> qdq.Affine:
    """Return a step similar to that of the inputs, so that little saturates."""
    return random_affine(random, 0.3 * input_affines[0].scale, input_affines[0].scale)


def double_step(input_affines: list[qdq.Affine], random: Random) -> qdq.Affine:
    """Return a step twice that of the first input: every other value lies halfway between two steps."""
    return qdq.Affine(scale=2 * input_affines[0].scale, zero_point=int(random.integers(0, 256)))


def fine_product(input_affines: list[qdq.Affine], random: Random) -> qdq.Affine:
    step = input_affines[0].scale * input_affines[1].scale
    return random_affine(random, 30 * step, 255 * step)


@pytest.mark.parametrize("choose_output", [any_step, fine_step, double_step])
def test_sum_matches_onnxruntime(choose_output: Callable[[list[qdq.Affine], Random], qdq.Affine]) -> None:
    assert differing("Add", [(2, 8, 40, 41), (2, 8, 40, 41)], choose_output) == 0


def fractional_product(input_affines: list[qdq.Affine], random: Random) -> qdq.Affine:
    """Return a step of which every product is a whole number of 1 / 128."""
    return qdq.Affine(
        scale=128 * input_affines[0].scale * input_affines[1].scale, zero_point=int(random.integers(0, 256))
    )


@pytest.mark.parametrize("gate", [(2, 8, 20, 21), (2, 8, 1, 1)], ids=["hard-swish", "squeeze-excite"])
def test_product_matches_onnxruntime(gate: tuple[int, ...]) -> None:
    assert differing("Mul", [(2, 8, 20, 21), gate], fine_product) == 0
    assert differing("Mul", [(2, 8, 20, 21), gate], fractional_product) == 0


@pytest.mark.parametrize("choose_output", [fine_step, double_step])
def test_global_average_matches_onnxruntime(choose_output: Callable[[list[qdq.Affine], Random], qdq.Affine]) -> None:
    assert differing("GlobalAveragePool", [(4, 96, 7, 9)], choose_output) == 0


@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1},
        {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1},
    ],
    ids=["even", "rounded up", "padded", "padding counted"],
)
def test_window_average_matches_onnxruntime(attributes: dict[str, Any]) -> None:
    assert differing("AveragePool", [(2, 16, 19, 19)], fine_step, **attributes) == 0
    assert differing("AveragePool", [(2, 16, 19, 19)], double_step, **attributes) == 0


def test_concat_matches_onnxruntime() -> None:
    assert differing("Concat", [(1, 512), (1, 300)], any_step, axis=1) == 0


def test_sigmoid_matches_onnxruntime() -> None:
    assert differing("Sigmoid", [(1, 4096)], lambda input_affines, random: qdq.affine(0.0, 1.0, "cpu")) == 0


def test_hard_sigmoid_matches_leaky_relu_of_graph() -> None:
    random, differences = np.random.default_rng(7), 0
    node = helper.make_node("HardSigmoid", ["x"], ["y"], alpha=1 / 6, beta=0.5)
    leaky_relu, every_byte = quantized_node("QLinearLeakyRelu", ["x"], alpha=1.0), np.arange(256, dtype=np.uint8)
    for _ in range(TIMES):
        input_affine = random_affine(random)
        constants = stored("x", input_affine) | stored(
            "y", qdq.Affine(scale=6 / qdq.HARD_SIGMOID_STEPS, zero_point=qdq.HARD_SIGMOID_STEPS // 2)
        )
        actual = integer_kernels.run_node(
            node,
            [as_bytes(every_byte, input_affine)],
            grid_of(qdq.Affine(scale=1 / qdq.HARD_SIGMOID_STEPS, zero_point=0)),
        )
        assert isinstance(actual, integer_kernels.QuantizedTensor)
        differences += int((actual.values.numpy() != run(leaky_relu, constants, {"x": every_byte})).sum())
    assert differences == 0


def weights(random: Random, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return float weights and biases whose channels differ in size by orders of magnitude."""
    sizes = np.exp(random.uniform(-5, 0, shape[0])).astype(np.float32)
    weight = random.normal(size=shape).astype(np.float32) * sizes.reshape(-1, *[1] * (len(shape) - 1))
    return weight, (random.normal(size=shape[0]) * sizes * 9).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "groups", "input_shape"),
    [
        ((24, 20, 3, 3), 1, (2, 20, 12, 11)),
        ((40, 1, 5, 5), 40, (2, 40, 12, 11)),
        ((16, 1152, 1, 1), 1, (1, 1152, 9, 8)),
        ((8, 512, 3, 3), 1, (1, 512, 7, 7)),  # sums beyond float32's integers
    ],
    ids=["dense", "depthwise", "pointwise", "long"],
)
def test_convolution_matches_onnxruntime(shape: tuple[int, ...], groups: int, input_shape: tuple[int, ...]) -> None:
    random, differences = np.random.default_rng(7), 0
    pads = [shape[2] // 2] * 4
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=pads, group=groups, kernel_shape=shape[2:])
    order = ["x", "x_scale", "x_zero", "w", "w_scale", "w_zero", "y_scale", "y_zero", "b"]
    kernel = helper.make_node("QLinearConv", order, ["y"], pads=pads, group=groups, kernel_shape=shape[2:])
    for _ in range(TIMES // 4):
        input_affine, (weight, bias) = random_affine(random), weights(random, shape)
        output = qdq.Affine(
            scale=input_affine.scale * float(np.sqrt(np.prod(shape[1:]))), zero_point=int(random.integers(0, 256))
        )
        layer = integer_kernels.quantize_layer(node, weight, bias=bias, input_affine=input_affine, device=CPU)
        constants = stored("x", input_affine) | stored("y", output) | layer_constants(layer)
        x = random.integers(0, 256, input_shape, np.uint8)
        actual = integer_kernels.run_weighted(node, as_bytes(x, input_affine), layer, grid_of(output))
        assert isinstance(actual, integer_kernels.QuantizedTensor)
        differences += int((actual.values.numpy() != run(kernel, constants, {"x": x})).sum())
    assert differences == 0


def layer_constants(layer: integer_kernels.IntegerLayer) -> dict[str, np.ndarray]:
    """Return a layer's constants as stored in a graph."""
    assert layer.bias is not None
    return {
        "w": layer.weight.numpy().astype(np.int8),
        "b": layer.bias.numpy(),
        "w_scale": layer.steps.numpy(),
        "w_zero": np.zeros(len(layer.steps), np.int8),
    }


@pytest.mark.parametrize("logits", [True, False])
def test_linear_layer_matches_onnxruntime(logits: bool) -> None:
    random = np.random.default_rng(7)
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)
    order = ["x", "x_scale", "x_zero", "w", "w_scale", "w_zero", "b", *([] if logits else ["y_scale", "y_zero"])]
    kernel = helper.make_node("QGemm", order, ["y"], domain="com.microsoft", transB=1)
    for _ in range(TIMES):
        input_affine, (weight, bias) = random_affine(random), weights(random, (50, 700))
        output = qdq.Affine(scale=input_affine.scale * 20, zero_point=int(random.integers(0, 256)))
        layer = integer_kernels.quantize_layer(node, weight, bias=bias, input_affine=input_affine, device=CPU)
        constants = stored("x", input_affine) | layer_constants(layer) | ({} if logits else stored("y", output))
        x = random.integers(0, 256, (3, 700), np.uint8)
        actual = integer_kernels.run_weighted(
            node, as_bytes(x, input_affine), layer, None if logits else grid_of(output)
        )
        values = actual.values if isinstance(actual, integer_kernels.QuantizedTensor) else actual
        assert isinstance(actual, integer_kernels.QuantizedTensor) != logits
        np.testing.assert_array_equal(values.numpy(), run(kernel, constants, {"x": x}))


@pytest.mark.parametrize("op_type", ["Conv", "Gemm"])
def test_sums_halfway_between_two_steps_match_onnxruntime(op_type: str) -> None:
    random, differences = np.random.default_rng(7), 0
    node = helper.make_node(op_type, ["x", "w", "b"], ["y"], **({"transB": 1} if op_type == "Gemm" else {}))
    input_names, output_names = ["x", "x_scale", "x_zero", "w", "w_scale", "w_zero"], ["y_scale", "y_zero"]
    linear = helper.make_node("QGemm", [*input_names, "b", *output_names], ["y"], domain="com.microsoft", transB=1)
    kernel = linear if op_type == "Gemm" else helper.make_node("QLinearConv", [*input_names, *output_names, "b"], ["y"])
    kernel_axes = [1, 1] if op_type == "Conv" else []
    for _ in range(TIMES):
        input_affine, step = random_affine(random), np.float32(np.exp(random.uniform(-7, 0)))
        # one step for two steps of the sum: odd sums lie between two bytes if steps are multiplied in the right order
        output = qdq.Affine(
            scale=2 * float(np.float32(input_affine.scale) * step), zero_point=int(random.integers(100, 150))
        )
        weight, bias = random.integers(-1, 2, (24, 9, *kernel_axes)), random.integers(-9, 9, 24)
        layer = integer_kernels.IntegerLayer(
            weight=torch.from_numpy(weight).float(), bias=torch.from_numpy(bias).int(), steps=torch.full((24,), step)
        )
        x = (input_affine.zero_point + random.integers(-9, 9, (50, 9, *kernel_axes))).clip(0, 255).astype(np.uint8)
        constants = stored("x", input_affine) | stored("y", output) | layer_constants(layer)
        actual = integer_kernels.run_weighted(node, as_bytes(x, input_affine), layer, grid_of(output))
        assert isinstance(actual, integer_kernels.QuantizedTensor)
        differences += int((actual.values.numpy() != run(kernel, constants, {"x": x})).sum())
    assert differences == 0


def test_sums_beyond_float32_are_exact() -> None:
    random, affine = np.random.default_rng(7), qdq.Affine(scale=0.5, zero_point=0)
    layer = integer_kernels.IntegerLayer(
        weight=torch.from_numpy(random.integers(100, 128, (20, 4608)).astype(np.float32)),
        bias=torch.zeros(20, dtype=torch.int32),
        steps=torch.full((20,), 0.25),
    )
    x = random.integers(200, 256, (30, 4608), np.uint8)
    sums = x.astype(np.int64) @ layer.weight.numpy().astype(np.int64).T
    assert sums.min() > integer_kernels.MAX_EXACT_FLOAT32
    actual = integer_kernels.run_weighted(
        helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1), as_bytes(x, affine), layer, None
    )
    assert isinstance(actual, torch.Tensor)
    np.testing.assert_array_equal(actual.numpy(), sums.astype(np.float32) / 8)


def test_bias_of_tiny_weights_does_not_overflow() -> None:
    weight, bias = np.full((2, 3, 1, 1), 1e-11, np.float32), np.array([5.0, 0.25], np.float32)
    layer = integer_kernels.quantize_layer(
        helper.make_node("Conv", ["x", "w", "b"], ["y"]),
        weight,
        bias=bias,
        input_affine=qdq.Affine(scale=0.01, zero_point=3),
        device=CPU,
    )
    assert layer.bias is not None
    np.testing.assert_allclose(layer.bias.numpy() * layer.steps.numpy().astype(np.float64) * 0.01, bias, rtol=1e-6)


def test_pixels_are_normalized_exactly_as_in_graph() -> None:
    half, step = (0.5, 0.5, 0.5), grid_of(qdq.affine(-1.0, 1.0, "cpu"))  # every pixel lies halfway between two steps
    images_NHWC = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(1, 1, 1, 3)
    scale, shift = (torch.full((3, 1, 1), constant, dtype=torch.float32) for constant in (1 / 127.5, -1.0))
    graph = images_NHWC.permute(0, 3, 1, 2).float() * scale + shift
    images_BCHW = normalize(images_NHWC, half, half)
    assert (integer_kernels.quantize(images_BCHW, step).values != integer_kernels.quantize(graph, step).values).any()
    assert torch.equal(integer_kernels.renormalize(images_BCHW, scale, shift), graph)
    between = images_BCHW + 0.3 / 127.5
    assert torch.equal(integer_kernels.renormalize(between, scale, shift), between)


def test_operator_without_integer_kernel_is_computed_in_float() -> None:
    affine = qdq.Affine(scale=0.1, zero_point=100)
    x = as_bytes(np.arange(90, 110), affine)
    relu = integer_kernels.run_node(helper.make_node("Relu", ["x"], ["y"]), [x], grid_of(affine))
    assert isinstance(relu, integer_kernels.QuantizedTensor)
    np.testing.assert_array_equal(relu.values.numpy(), np.arange(90, 110).clip(100))
    onnx_default = helper.make_node("HardSigmoid", ["x"], ["y"])  # x / 5 + 1 / 2, which qdq.py does not replace
    steep = integer_kernels.run_node(onnx_default, [x], grid_of(affine))
    assert isinstance(steep, integer_kernels.QuantizedTensor)
    assert steep.values.max() <= 100 + 10  # no value exceeds 1, which is ten steps
    floats = integer_kernels.run_node(helper.make_node("Add", ["x", "c"], ["y"]), [x, torch.tensor(1.0)], None)
    assert isinstance(floats, torch.Tensor)
    np.testing.assert_allclose(floats.numpy(), (np.arange(90, 110) - 100) * 0.1 + 1, atol=1e-6)


def test_pair_stores_the_same_bytes_in_both_modes() -> None:
    values = torch.linspace(-3, 3, 1001)
    pair = fake_quant.Pair(-1.0, 1.55, "cpu", learned=False)
    low, high = pair.ends().tolist()
    stored_as = integer_kernels.quantize(values, grid_of(qdq.affine(low, high, "cpu")))
    torch.testing.assert_close(stored_as.floats(), pair(values), rtol=0, atol=1e-6)
