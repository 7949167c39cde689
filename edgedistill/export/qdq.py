"""A float graph, its plan and its ranges become an int8 graph; and the check of what TensorRT misreads.

Activations are uint8 with a zero point on a CPU (ONNX Runtime's x86 kernels multiply uint8 by int8) and symmetric int8
for TensorRT; weights are symmetric int8 with a scale an output channel.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgedistill.errors import EdgeDistillError
from edgedistill.export import graphs
from edgedistill.export.placement import Plan, plan
from edgedistill.records import Target

Ranges = Mapping[str, tuple[float, float]]
# HardSigmoid(x) = x / 6 + 1 / 2, bounded by 0 and 1. Quantized with a step of 6 / 254 about zero point 127, x
# saturates just where HardSigmoid does, and the same bytes read with a step of 1 / 254 from 0 are its values.
STEPS = 254
BOUNDED = {"HardSigmoid": (0.0, 255 / STEPS), "Sigmoid": (0.0, 1.0)}
SMALLEST = 1e-12  # of a step: what never left 0 has one, too, and a bias in such steps must not overflow
MOST_STEPS = 2.0**30  # of a bias in int32
SMALLEST_HALF = 2.0**-14  # float16 holds nothing smaller at full precision


@dataclass(frozen=True, kw_only=True)
class Affine:
    """value = scale * (stored - zero_point); stored is uint8 or int8 as the target says."""

    scale: float
    zero_point: int


def prepared(model: ModelProto, target: Target) -> ModelProto:
    """The float graph in the operators that a target has int8 kernels for; it computes the same."""
    return graphs.split_hard_swish(model) if target == "cpu" else model


def affine(low: float, high: float, target: Target) -> Affine:
    """The step and zero point that cover [low, high], zero among them: exact, because padding is zero.

    In float32, as fake.py does it: a zero point halfway between two steps must fall to the same side there.
    """
    least, most = np.float32(min(low, 0.0)), np.float32(max(high, 0.0))
    if target == "tensorrt":
        return Affine(scale=float(max(-least, most, np.float32(SMALLEST_HALF * 127)) / np.float32(127)), zero_point=0)
    scale = max((most - least) / np.float32(255), np.float32(SMALLEST))
    return Affine(scale=float(scale), zero_point=int(np.rint(-least / scale)))


def bounds(model: ModelProto, wanted: Plan, ranges: Ranges) -> dict[str, tuple[float, float, bool]]:
    """Lowest and highest value of every range of a plan, and whether the operator fixes them, not the images.

    `model` is prepared for the plan's target.
    """
    made, limited, found = graphs.producers(model), limits(model), {}
    for name in wanted.ranged():
        fixed = BOUNDED.get(made[name].op_type) if name in made else None
        (low, high), (least, most) = fixed or ranges[name], limited.get(name, (-np.inf, np.inf))
        found[name] = (max(low, least), min(high, most), fixed is not None)
    return found


def limits(model: ModelProto) -> dict[str, tuple[float, float]]:
    """What lies beyond is never heard of: below -3 before a hard gate, and outside the bounds of a Clip."""
    found = {name: (-3.0, float("inf")) for name in graphs.hard_gated(model)}
    known = graphs.constants(model)
    for node in model.graph.node:
        if node.op_type == "Clip" and len(node.input) > 2 and {node.input[1], node.input[2]} <= known.keys():
            found[node.output[0]] = (float(known[node.input[1]]), float(known[node.input[2]]))
    return found


def affines(model: ModelProto, wanted: Plan, ranges: Ranges) -> dict[str, Affine]:
    """Step and zero point of every tensor with a pair; `model` is prepared for the plan's target."""
    found = {name: affine(low, high, wanted.target) for name, (low, high, _) in bounds(model, wanted, ranges).items()}
    return {name: found[wanted.shares.get(name, name)] for name in wanted.pairs}


def weight_scales(weight: np.ndarray, axis: int, target: Target, least: np.ndarray | float = 0.0) -> np.ndarray:
    """The step of each output channel, float32: the largest weight is 127 steps, and no step is below `least`."""
    others = tuple(at for at in range(weight.ndim) if at != axis)
    least = np.maximum(SMALLEST_HALF if target == "tensorrt" else SMALLEST, least)
    scales: np.ndarray = np.maximum(np.abs(weight).max(axis=others) / 127, least).astype(np.float32)
    return scales


def output_axis(node: NodeProto) -> int:
    """The axis of a node's weight that counts its output channels."""
    if node.op_type == "Gemm":
        return 0 if graphs.attribute(node, "transB", 0) else 1
    return 1 if node.op_type == "MatMul" else 0


def int8_graph(model: ModelProto, ranges: Ranges, target: Target, floats: Collection[str] = ()) -> ModelProto:
    """The int8 graph of one target: pairs in its places, weights int8 per channel, preprocessing left float.

    Args:
        model: the float graph; it is not changed.
        ranges: {tensor: (lowest, highest)} of all that `plan` asks for.
        target: "cpu" or "tensorrt".
        floats: names of nodes that stay float.
    """
    ready = prepared(model, target)
    wanted = plan(ready, target, floats)
    return written(ready, wanted, affines(ready, wanted, ranges))


def written(model: ModelProto, wanted: Plan, found: Mapping[str, Affine]) -> ModelProto:
    """The int8 graph that a plan and the steps of its tensors make of a float graph, prepared for the target."""
    known, writer = graphs.constants(model), _Writer(wanted.target)
    renamed = {node.input[0]: node.output[0] for node in model.graph.node if node.name in wanted.absorbed}
    for name in wanted.pairs:
        if name not in graphs.producers(model):
            writer.pair(name, found[name])
    for node in model.graph.node:
        if node.name in wanted.absorbed:
            continue
        rewired = copy.deepcopy(node)
        rewired.input[:] = [f"{name}_dq" if (node.name, name) in wanted.behind else name for name in node.input]
        rewired.output[:] = [renamed.get(name, name) for name in node.output]
        if node.name in wanted.weights:
            writer.weights(rewired, node, known, found)
        requantizes = wanted.target == "cpu" and graphs.is_hard_sigmoid(node) and _only_behind(model, node, wanted)
        writer.nodes.append(_straight(rewired) if requantizes else rewired)
        for name in rewired.output:
            if name in wanted.pairs:
                writer.pair(name, found[name], requantizes)
    result = copy.deepcopy(model)
    del result.graph.node[:], result.graph.value_info[:]
    result.graph.node.extend(writer.nodes)
    result.graph.initializer.extend(writer.constants.values())
    return graphs.without_unread(result)


def _only_behind(model: ModelProto, node: NodeProto, wanted: Plan) -> bool:
    """Whether all that reads what a node makes reads it behind a pair."""
    name = node.output[0]
    readers = [reader.name for reader in model.graph.node if name in reader.input]
    return name in wanted.pairs and all((reader, name) in wanted.behind for reader in readers)


def _straight(node: NodeProto) -> NodeProto:
    """The identity in an operator that ONNX Runtime has an int8 kernel for: it only changes step and zero point."""
    return helper.make_node("LeakyRelu", list(node.input), list(node.output), name=node.name, alpha=1.0)


class _Writer:
    """The nodes and constants of an int8 graph, in order."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.type: type[np.generic] = np.uint8 if target == "cpu" else np.int8
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}

    def constant(self, name: str, array: np.ndarray) -> str:
        """An initializer, by its name."""
        self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def pair(self, name: str, one: Affine, requantizes: bool = False) -> None:
        """QuantizeLinear and DequantizeLinear behind a tensor; a HardSigmoid is stored in one step, read in another."""
        read = [
            self.constant(f"{name}_scale", np.array(one.scale, np.float32)),
            self.constant(f"{name}_zero_point", np.array(one.zero_point, self.type)),
        ]
        stored = read
        if requantizes:
            stored = [
                self.constant(f"{name}_scale_stored", np.array(6 / STEPS, np.float32)),
                self.constant(f"{name}_zero_point_stored", np.array(STEPS // 2, self.type)),
            ]
        self.nodes.append(helper.make_node("QuantizeLinear", [name, *stored], [f"{name}_q"], name=f"{name}_q"))
        self.nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", *read], [f"{name}_dq"], name=f"{name}_dq"))

    def weights(
        self, rewired: NodeProto, node: NodeProto, known: Mapping[str, np.ndarray], found: Mapping[str, Affine]
    ) -> None:
        """The weight in int8 behind a DequantizeLinear; for a CPU the bias in int32, in steps of what is added up."""
        axis, weight = output_axis(node), known[node.input[1]]
        biased = self.target == "cpu" and len(node.input) > 2 and bool(node.input[2])
        # of a channel that batch norm all but switched off the weights may be lost, and the bias may not
        least = np.abs(known[node.input[2]]) / (MOST_STEPS * found[node.input[0]].scale) if biased else 0.0
        scales = weight_scales(weight, axis, self.target, least)
        rewired.input[1] = self._behind(node.input[1], _stored(weight, scales, axis), scales, axis)
        if biased:
            steps = scales * np.float32(found[node.input[0]].scale)
            bias = np.rint(known[node.input[2]] / steps.astype(np.float64))
            rewired.input[2] = self._behind(f"{node.name}_bias", bias.astype(np.int32), steps, 0)

    def _behind(self, name: str, stored: np.ndarray, scales: np.ndarray, axis: int) -> str:
        read = [
            self.constant(f"{name}_q", stored),
            self.constant(f"{name}_scale", scales),
            self.constant(f"{name}_zero_point", np.zeros(scales.shape, stored.dtype)),
        ]
        self.nodes.append(helper.make_node("DequantizeLinear", read, [f"{name}_dq"], name=f"{name}_dq", axis=axis))
        return f"{name}_dq"


def _stored(weight: np.ndarray, scales: np.ndarray, axis: int) -> np.ndarray:
    shape = [-1 if at == axis else 1 for at in range(weight.ndim)]
    stored: np.ndarray = np.rint(weight / scales.reshape(shape)).clip(-127, 127).astype(np.int8)
    return stored


def refuse_for_tensorrt(model: ModelProto, where: str) -> None:
    """Refuse what TensorRT fails to parse, or builds into another network without a word.

    It reads quantization as signed and symmetric: a uint8 zero point of 0 builds silently as int8. Non-zero zero
    points, a quantized bias and quantized constants that are no weights fail to parse.

    Args:
        model: an int8 graph with Q/DQ pairs.
        where: its path, for the message.

    Raises:
        EdgeDistillError: the first such node by name, and what is wrong with it.
    """
    known, weights = graphs.constants(model), _weights(model)
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            for complaint in _complaints(node, known, weights):
                raise EdgeDistillError(
                    f"{where}: node {node.name or node.output[0]}: {complaint}; TensorRT would misread it",
                    "use the graph quantized for the target tensorrt",
                )


def _weights(model: ModelProto) -> set[str]:
    """Tensors that a weighted node reads in its weight's place (either input of a MatMul)."""
    places: dict[str, Collection[int]] = {"MatMul": (0, 1)}
    weighted = [node for node in model.graph.node if node.op_type in graphs.WEIGHTED]
    return {node.input[at] for node in weighted for at in places.get(node.op_type, (1,))}


def _complaints(node: NodeProto, known: dict[str, np.ndarray], weights: set[str]) -> Iterator[str]:
    zero_point = known.get(node.input[2]) if len(node.input) > 2 else None
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
    if node.input[0] in known and node.op_type == "DequantizeLinear" and node.output[0] not in weights:
        yield "a quantized constant that is not a weight"
