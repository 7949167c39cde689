"""Int8 graphs from a float graph, a plan and ranges, and the check for graphs that TensorRT would misread.

Activations are uint8 with a zero point for a CPU (ONNX Runtime's x86 kernels multiply uint8 by int8) and symmetric int8
for TensorRT; weights are symmetric int8 with one scale per output channel.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgedistill.errors import EdgeDistillError
from edgedistill.export import graphs
from edgedistill.export.placement import Plan, make_plan
from edgedistill.records import Target

Ranges = Mapping[str, tuple[float, float]]
# HardSigmoid(x) = x / 6 + 1 / 2, bounded by 0 and 1. Quantized with step 6 / 254 and zero point 127, x saturates where
# HardSigmoid does, and the same bytes dequantized with step 1 / 254 and zero point 0 are the values of HardSigmoid.
HARD_SIGMOID_STEPS = 254
FIXED_RANGES = {"HardSigmoid": (0.0, 255 / HARD_SIGMOID_STEPS), "Sigmoid": (0.0, 1.0)}
MIN_STEP = 1e-12  # also for a tensor of zeros; a bias in such steps must not overflow
MAX_BIAS_STEPS = 2.0**30  # largest bias in int32, in steps
MIN_HALF_STEP = 2.0**-14  # the smallest float16 of full precision


@dataclass(frozen=True, kw_only=True)
class Affine:
    """value = scale * (stored - zero_point); stored is uint8 for a CPU and int8 for TensorRT."""

    scale: float
    zero_point: int


def prepare(model: ModelProto, target: Target) -> ModelProto:
    """Rewrite a float graph, without changing its outputs, in operators for which a target has int8 kernels."""
    return graphs.split_hard_swish(model) if target == "cpu" else model


def affine(low: float, high: float, target: Target) -> Affine:
    """The step and zero point that cover [low, high] and zero, which is exact because padding is zero.

    Computed in float32, as in fake_quant.py: a zero point halfway between two steps must be rounded to the same side.
    """
    lowest, highest = np.float32(min(low, 0.0)), np.float32(max(high, 0.0))
    if target == "tensorrt":
        return Affine(
            scale=float(max(-lowest, highest, np.float32(MIN_HALF_STEP * 127)) / np.float32(127)), zero_point=0
        )
    scale = max((highest - lowest) / np.float32(255), np.float32(MIN_STEP))
    return Affine(scale=float(scale), zero_point=int(np.rint(-lowest / scale)))


def bounds(model: ModelProto, plan: Plan, ranges: Ranges) -> dict[str, tuple[float, float, bool]]:
    """The lowest and highest value of every range of a plan, and whether the operator fixes them instead of the images.

    `model` is prepared for the plan's target.
    """
    producers, tensor_limits, plan_bounds = graphs.producers(model), limits(model), {}
    for name in plan.ranged_tensors():
        fixed = FIXED_RANGES.get(producers[name].op_type) if name in producers else None
        (low, high), (lowest, highest) = fixed or ranges[name], tensor_limits.get(name, (-np.inf, np.inf))
        plan_bounds[name] = (max(low, lowest), min(high, highest), fixed is not None)
    return plan_bounds


def limits(model: ModelProto) -> dict[str, tuple[float, float]]:
    """Bounds beyond which values have no effect: below -3 before a HardSigmoid gate, and those of a Clip."""
    tensor_limits = {name: (-3.0, float("inf")) for name in graphs.hard_gated(model)}
    initializers = graphs.constants(model)
    for node in model.graph.node:
        if node.op_type == "Clip" and len(node.input) > 2 and {node.input[1], node.input[2]} <= initializers.keys():
            tensor_limits[node.output[0]] = (float(initializers[node.input[1]]), float(initializers[node.input[2]]))
    return tensor_limits


def affines(model: ModelProto, plan: Plan, ranges: Ranges) -> dict[str, Affine]:
    """The step and zero point of every tensor with a pair; `model` is prepared for the plan's target."""
    range_affines = {
        name: affine(low, high, plan.target) for name, (low, high, _) in bounds(model, plan, ranges).items()
    }
    return {name: range_affines[plan.shared_ranges.get(name, name)] for name in plan.pairs}


def weight_scales(weight: np.ndarray, axis: int, target: Target, min_scale: np.ndarray | float = 0.0) -> np.ndarray:
    """The step of each output channel, float32: the largest weight is 127 steps, and no step is below `min_scale`."""
    other_axes = tuple(dim for dim in range(weight.ndim) if dim != axis)
    min_scale = np.maximum(MIN_HALF_STEP if target == "tensorrt" else MIN_STEP, min_scale)
    scales: np.ndarray = np.maximum(np.abs(weight).max(axis=other_axes) / 127, min_scale).astype(np.float32)
    return scales


def output_axis(node: NodeProto) -> int:
    """The axis of the output channels in a node's weight."""
    if node.op_type == "Gemm":
        return 0 if graphs.attribute(node, "transB", 0) else 1
    return 1 if node.op_type == "MatMul" else 0


def int8_graph(model: ModelProto, ranges: Ranges, target: Target, floats: Collection[str] = ()) -> ModelProto:
    """Quantize a float graph for a target: Q/DQ pairs, per-channel int8 weights, preprocessing in float.

    Args:
        model: the float graph; it is not changed.
        ranges: {tensor: (lowest, highest)} of all of the plan's `ranged_tensors`.
        target: "cpu" or "tensorrt".
        floats: names of nodes that stay float.
    """
    prepared = prepare(model, target)
    plan = make_plan(prepared, target, floats)
    return quantize_graph(prepared, plan, affines(prepared, plan, ranges))


def quantize_graph(model: ModelProto, plan: Plan, tensor_affines: Mapping[str, Affine]) -> ModelProto:
    """Write the int8 graph of a plan; `model` is a float graph prepared for its target."""
    initializers, writer = graphs.constants(model), _Writer(plan.target)
    absorbed_outputs = {node.input[0]: node.output[0] for node in model.graph.node if node.name in plan.absorbed}
    for name in plan.pairs:
        if name not in graphs.producers(model):
            writer.pair(name, tensor_affines[name])
    for node in model.graph.node:
        if node.name in plan.absorbed:
            continue
        rewired = copy.deepcopy(node)
        rewired.input[:] = [f"{name}_dq" if (node.name, name) in plan.quantized_reads else name for name in node.input]
        rewired.output[:] = [absorbed_outputs.get(name, name) for name in node.output]
        if node.name in plan.weights:
            writer.weights(rewired, node, initializers, tensor_affines)
        requantizes = plan.target == "cpu" and graphs.is_hard_sigmoid(node) and _all_reads_quantized(model, node, plan)
        writer.nodes.append(_as_identity(rewired) if requantizes else rewired)
        for name in rewired.output:
            if name in plan.pairs:
                writer.pair(name, tensor_affines[name], requantizes)
    int8_model = copy.deepcopy(model)
    del int8_model.graph.node[:], int8_model.graph.value_info[:]
    int8_model.graph.node.extend(writer.nodes)
    int8_model.graph.initializer.extend(writer.constants.values())
    return graphs.without_unread(int8_model)


def _all_reads_quantized(model: ModelProto, node: NodeProto, plan: Plan) -> bool:
    """Whether every reader of a node's output reads the output of its pair."""
    name = node.output[0]
    readers = [reader.name for reader in model.graph.node if name in reader.input]
    return name in plan.pairs and all((reader, name) in plan.quantized_reads for reader in readers)


def _as_identity(node: NodeProto) -> NodeProto:
    """Replace a node by LeakyRelu with slope 1: an identity with an int8 kernel in ONNX Runtime, which requantizes."""
    return helper.make_node("LeakyRelu", list(node.input), list(node.output), name=node.name, alpha=1.0)


class _Writer:
    """Collects the nodes and constants of an int8 graph, in order."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.type: type[np.generic] = np.uint8 if target == "cpu" else np.int8
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}

    def constant(self, name: str, array: np.ndarray) -> str:
        """Add an initializer, and return its name."""
        self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def pair(self, name: str, affine: Affine, requantizes: bool = False) -> None:
        """Add QuantizeLinear and DequantizeLinear after a tensor; for a requantized HardSigmoid their steps differ."""
        parameters = [
            self.constant(f"{name}_scale", np.array(affine.scale, np.float32)),
            self.constant(f"{name}_zero_point", np.array(affine.zero_point, self.type)),
        ]
        stored_parameters = parameters
        if requantizes:
            stored_parameters = [
                self.constant(f"{name}_scale_stored", np.array(6 / HARD_SIGMOID_STEPS, np.float32)),
                self.constant(f"{name}_zero_point_stored", np.array(HARD_SIGMOID_STEPS // 2, self.type)),
            ]
        self.nodes.append(
            helper.make_node("QuantizeLinear", [name, *stored_parameters], [f"{name}_q"], name=f"{name}_q")
        )
        self.nodes.append(
            helper.make_node("DequantizeLinear", [f"{name}_q", *parameters], [f"{name}_dq"], name=f"{name}_dq")
        )

    def weights(
        self,
        rewired: NodeProto,
        node: NodeProto,
        initializers: Mapping[str, np.ndarray],
        tensor_affines: Mapping[str, Affine],
    ) -> None:
        """Store a node's weight in int8, and for a CPU its bias in int32, in steps of input step * weight step."""
        axis, weight = output_axis(node), initializers[node.input[1]]
        biased = self.target == "cpu" and len(node.input) > 2 and bool(node.input[2])
        bias, input_scale = (initializers[node.input[2]] if biased else None), tensor_affines[node.input[0]].scale
        integers, scales, integer_bias = layer_integers(weight, bias, axis, target=self.target, input_scale=input_scale)
        rewired.input[1] = self._behind(node.input[1], integers, scales, axis)
        if integer_bias is not None:
            steps = scales * np.float32(input_scale)
            rewired.input[2] = self._behind(f"{node.name}_bias", integer_bias, steps, 0)

    def _behind(self, name: str, stored: np.ndarray, scales: np.ndarray, axis: int) -> str:
        inputs = [
            self.constant(f"{name}_q", stored),
            self.constant(f"{name}_scale", scales),
            self.constant(f"{name}_zero_point", np.zeros(scales.shape, stored.dtype)),
        ]
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}_dq"], name=f"{name}_dq", axis=axis))
        return f"{name}_dq"


def layer_integers(
    weight: np.ndarray, bias: np.ndarray | None, axis: int, *, target: Target, input_scale: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """What an int8 graph stores of a layer.

    Args:
        weight: float; its output channels are `axis`.
        bias: float [C], or None.
        axis: of the output channels.
        target: "cpu" or "tensorrt".
        input_scale: the step of the pair on the layer's input.

    Returns:
        The weight in symmetric int8 from -127 to 127, its steps, float32 [C], and the bias in int32, in steps of
        `input_scale` times these.
    """
    # if batch norm nearly switched off a channel, its weights may be rounded to 0, but its bias may not
    min_scale = 0.0 if bias is None else np.abs(bias) / (MAX_BIAS_STEPS * input_scale)
    scales = weight_scales(weight, axis, target, min_scale)
    shape = [-1 if dim == axis else 1 for dim in range(weight.ndim)]
    integers = np.rint(weight / scales.reshape(shape)).clip(-127, 127).astype(np.int8)
    if bias is None:
        return integers, scales, None
    steps = (scales * np.float32(input_scale)).astype(np.float64)
    return integers, scales, np.rint(bias / steps).astype(np.int32)


def refuse_for_tensorrt(model: ModelProto, where: str) -> None:
    """Refuse graphs that TensorRT cannot parse, or silently builds into a different network.

    TensorRT treats quantization as signed and symmetric: a uint8 zero point of 0 builds silently as int8. Non-zero
    zero points, a quantized bias and quantized constants that are not weights fail to parse.

    Args:
        model: an int8 graph with Q/DQ pairs.
        where: its path, for the message.

    Raises:
        EdgeDistillError: names the first such node and its problem.
    """
    initializers, weights = graphs.constants(model), _weight_names(model)
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            for problem in _problems(node, initializers, weights):
                raise EdgeDistillError(
                    f"{where}: node {node.name or node.output[0]}: {problem}; TensorRT would misread it",
                    "use the graph quantized for the target tensorrt",
                )


def _weight_names(model: ModelProto) -> set[str]:
    """Tensors that a weighted node reads as its weight (either input of a MatMul)."""
    positions: dict[str, Collection[int]] = {"MatMul": (0, 1)}
    weighted = [node for node in model.graph.node if node.op_type in graphs.WEIGHTED]
    return {node.input[position] for node in weighted for position in positions.get(node.op_type, (1,))}


def _problems(node: NodeProto, initializers: dict[str, np.ndarray], weights: set[str]) -> Iterator[str]:
    zero_point = initializers.get(node.input[2]) if len(node.input) > 2 else None
    if len(node.input) < 3:
        yield "no zero point, which means uint8"
    elif zero_point is None:
        yield "its zero point is computed, not constant"
    elif zero_point.dtype == np.int32:
        yield "a quantized bias (int32)"
    elif zero_point.dtype != np.int8:
        yield f"{zero_point.dtype} instead of int8"
    elif zero_point.any():
        yield f"zero point {int(zero_point.flat[np.abs(zero_point.astype(int)).argmax()])} instead of 0"
    if node.input[0] in initializers and node.op_type == "DequantizeLinear" and node.output[0] not in weights:
        yield "a quantized constant that is not a weight"
