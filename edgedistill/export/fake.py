"""A float graph as a torch student with fake quantization where a plan has its pairs, and back again.

What is trained is the graph that is deployed: batch norms are folded already, pairs and int8 weights stand where qdq.py
will write them, and ranges move with the weights (Esser et al., "Learned Step Size Quantization", ICLR 2020; both ends
of a range are learned here, as Bhalgat et al. do in LSQ+, CVPR Workshops 2020).
B batch, D features, C classes, H x W pixels.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from edgedistill.export import graphs, qdq
from edgedistill.export.plan import Plan, plan
from edgedistill.records import EdgeDistillError, Target

# Adam moves every parameter by about its rate at each step; a range may move by ten times as large a share of itself
# as a weight of size one does
GAIN = 10.0
ANY = (-math.inf, math.inf)


def rounded(values: Tensor) -> Tensor:
    """Round, with the gradient of the identity (Bengio et al. 2013, the straight-through estimator)."""
    return torch.add(values, (values.round() - values).detach())


class Pair(nn.Module):
    """A Q/DQ pair in float arithmetic: what QuantizeLinear and DequantizeLinear make of a tensor."""

    start: Tensor
    moved: Tensor

    def __init__(self, low: float, high: float, target: Target, learned: bool,
                 limits: tuple[float, float] = ANY) -> None:  # fmt: skip
        super().__init__()
        self.target, self.limits = target, limits
        self.register_buffer("start", torch.tensor([min(low, 0.0), max(high, 0.0)]))
        self.moved = nn.Parameter(torch.zeros(2), requires_grad=learned)

    def ends(self) -> Tensor:
        """Lowest and highest value, [2]."""
        low, high = self.start * torch.exp(GAIN * self.moved)
        return torch.stack([low.clamp_min(self.limits[0]), high.clamp_max(self.limits[1])])

    def step(self) -> Tensor:
        """The distance of two stored values, []."""
        low, high = self.ends()
        if self.target == "tensorrt":
            return torch.div(torch.maximum(-low, high).clamp_min(qdq.SMALLEST_HALF * 127), 127)
        return torch.div(high - low, 255).clamp_min(qdq.SMALLEST)

    def forward(self, values: Tensor) -> Tensor:
        """Any shape, to the same shape."""
        step = self.step()
        if self.target == "tensorrt":
            return torch.mul(rounded(values / step).clamp(-128, 127), step)
        zero = rounded(-self.ends()[0] / step)
        return torch.mul((rounded(values / step) + zero).clamp(0, 255) - zero, step)


def weight_step(weight: Tensor, axis: int, target: Target, least: Tensor | None = None) -> Tensor:
    """The step of each output channel, as qdq.weight_scales has it; the other axes are kept, of length 1."""
    floor = torch.tensor(qdq.SMALLEST_HALF if target == "tensorrt" else qdq.SMALLEST, device=weight.device)
    shape = [-1 if at == axis else 1 for at in range(weight.ndim)]
    bound = floor if least is None else torch.maximum(floor, least).reshape(shape)
    others = [at for at in range(weight.ndim) if at != axis]
    return torch.maximum(weight.detach().abs().amax(others, keepdim=True) / 127, bound)


def on_grid(values: Tensor, step: Tensor) -> Tensor:
    """The nearest whole number of steps: a weight or a bias as its integers."""
    return rounded(values / step) * step


class Graph(nn.Module):
    """The nodes of a float graph from one tensor to another, computed in torch, with a plan's fake quantization.

    Constants that are floats of weighted nodes are parameters; names have their dots replaced for torch's sake.
    """

    def __init__(self, model: ModelProto, nodes: list[NodeProto], wanted: Plan, pairs: nn.ModuleDict,
                 entry: str) -> None:  # fmt: skip
        super().__init__()
        self.nodes, self.plan, self.pairs, self.entry = nodes, wanted, pairs, entry
        known = graphs.constants(model)
        self.constants: dict[str, Any] = {}
        self.learned = nn.ParameterDict()
        for node in nodes:
            for at, name in enumerate(node.input):
                if name in known and node.op_type in graphs.WEIGHTED and at in (1, 2):
                    self.learned[key(name)] = nn.Parameter(torch.from_numpy(known[name].copy()))
                elif name in known:
                    self.constants[name] = known[name]
        first = nodes[0]
        # what methods make their source heads for, where this is the last linear layer
        self.in_features = known[first.input[1]].shape[1 - qdq.output_axis(first)] if first.op_type == "Gemm" else 0

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """What enters the graph, to what the last node makes."""
        found: dict[str, Tensor] = {self.entry: images_BCHW}
        behind: dict[str, Tensor] = {}
        for node in self.nodes:
            given = [self._read(node, at, name, found, behind) for at, name in enumerate(node.input) if name]
            found[node.output[0]] = OPERATORS[node.op_type](node, *given)
        return found[self.nodes[-1].output[0]]

    def _read(self, node: NodeProto, at: int, name: str, found: dict[str, Tensor], behind: dict[str, Tensor]) -> Any:
        if key(name) in self.learned:
            value = self.learned[key(name)]
            return on_grid(value, self._step(node, at)) if self._whole(node, at) else value
        if name in self.constants:
            return self.constants[name]
        if (node.name, name) not in self.plan.behind:
            return found[name]
        if name not in behind:
            behind[name] = self._pair(name)(found[name])
        return behind[name]

    def _pair(self, name: str) -> Pair:
        pair: Pair = self.pairs[key(self.plan.shares.get(name, name))]  # type: ignore[assignment]
        return pair

    def _whole(self, node: NodeProto, at: int) -> bool:
        """Whether the graph will hold this constant as integers; a bias only on a CPU."""
        return node.name in self.plan.weights and (at == 1 or self.plan.target == "cpu")

    def _step(self, node: NodeProto, at: int) -> Tensor:
        given, least = None, None
        if self.plan.target == "cpu":
            given = self._pair(node.input[0]).step().detach()
            if len(node.input) > 2 and node.input[2]:
                least = self.learned[key(node.input[2])].detach().abs() / (qdq.MOST_STEPS * given)
        step = weight_step(self.learned[key(node.input[1])], qdq.output_axis(node), self.plan.target, least)
        return step if at == 1 or given is None else step.reshape(-1) * given


def key(name: str) -> str:
    """A tensor's name as torch allows it."""
    return name.replace(".", "/")


def student(model: ModelProto, ranges: qdq.Ranges, target: Target, learned: bool) -> nn.Module:
    """A torch student of a float graph, with parts `backbone` and `head`, in the fake quantization of a target.

    Args:
        model: the fp32 graph that was exported.
        ranges: what calibration found.
        target: "cpu" or "tensorrt".
        learned: whether ranges move with the weights.

    Returns:
        Normalised float32 [B, 3, px, px] to logits [B, C].

    Raises:
        EdgeDistillError: the graph has an operator that is not known here, or does not end in one linear layer.
    """
    ready = qdq.prepared(model, target)
    wanted = plan(ready, target)
    before = set(graphs.preprocessing(ready))
    nodes = [node for node in ready.graph.node if node.name not in before]
    unknown = sorted({node.op_type for node in nodes} - set(OPERATORS))
    if unknown or nodes[-1].op_type != "Gemm":
        reason = f"has the operators {', '.join(unknown)}" if unknown else "does not end in one linear layer"
        raise EdgeDistillError(f"quantize.qat: this student {reason}", "leave qat out, or choose another family")
    entry = next(node.output[0] for node in reversed(ready.graph.node) if node.name in before)
    bounds = qdq.bounds(ready, wanted, ranges)
    limits = qdq.limits(ready)
    pairs = nn.ModuleDict({key(name): Pair(low, high, target, learned and not fixed, limits.get(name, ANY))
                           for name, (low, high, fixed) in bounds.items()})  # fmt: skip
    features = nodes[-1].input[0]
    backbone = Graph(ready, nodes[:-1], wanted, pairs, entry)
    # one table of pairs, and so one set of ranges, for both parts
    head = Graph(ready, nodes[-1:], wanted, nn.ModuleDict({name: pairs[name] for name in pairs if name == key(
        wanted.shares.get(features, features))}), features)  # fmt: skip
    return nn.Sequential(OrderedDict(backbone=backbone, head=head))


def trained(model: ModelProto, net: nn.Module) -> tuple[ModelProto, dict[str, tuple[float, float]]]:
    """The float graph with a student's trained weights in place, and the ranges that it learned."""
    result, values = copy.deepcopy(model), {}
    parts: list[Graph] = [net.backbone, net.head]  # type: ignore[list-item]
    for part in parts:
        values.update({name: value.detach().cpu().numpy() for name, value in part.learned.items()})
    for tensor in result.graph.initializer:
        if key(tensor.name) in values:
            tensor.CopyFrom(numpy_helper.from_array(values[key(tensor.name)], tensor.name))
    learned = {name: pair.ends().detach().tolist() for part in parts for name, pair in part.pairs.items()}  # type: ignore[operator]
    return result, {name.replace("/", "."): (low, high) for name, (low, high) in learned.items()}


def _conv(node: NodeProto, values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    asked = _attributes(node)
    top, left, bottom, right = asked.get("pads", [0, 0, 0, 0])
    padding: Any = (top, left)
    if (top, left) != (bottom, right):
        values, padding = functional.pad(values, (left, right, top, bottom)), 0
    return functional.conv2d(values, weight, bias, asked.get("strides", 1), padding, asked.get("dilations", 1),
                             asked.get("group", 1))  # fmt: skip


def _gemm(node: NodeProto, values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.linear(values, weight if graphs.attribute(node, "transB", 0) else weight.T, bias)


def _max_pool(node: NodeProto, values: Tensor) -> Tensor:
    asked = _attributes(node)
    pads = asked.get("pads", [0, 0, 0, 0])
    low = torch.finfo(values.dtype).min
    padded = functional.pad(values, (pads[1], pads[3], pads[0], pads[2]), value=low) if any(pads) else values
    return functional.max_pool2d(padded, asked["kernel_shape"], asked.get("strides", 1))


def _average_pool(node: NodeProto, values: Tensor) -> Tensor:
    asked = _attributes(node)
    pads = asked.get("pads", [0, 0, 0, 0])
    # torch pads both sides alike; what ONNX rounds up beyond the right and lower edge is never counted
    return functional.avg_pool2d(values, asked["kernel_shape"], asked.get("strides", 1), tuple(pads[:2]),
                                 bool(asked.get("ceil_mode", 0)), bool(asked.get("count_include_pad", 0)))  # fmt: skip


def _clip(node: NodeProto, values: Tensor, low: Any = None, high: Any = None) -> Tensor:
    return values.clamp(*(None if bound is None else float(bound) for bound in (low, high)))


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


OPERATORS: Mapping[str, Callable[..., Tensor]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "Add": lambda node, first, second: first + second,
    "Mul": lambda node, first, second: first * second,
    "Relu": lambda node, values: values.relu(),
    "Clip": _clip,
    "HardSwish": lambda node, values: functional.hardswish(values),
    "HardSigmoid": lambda node, values: functional.hardsigmoid(values),
    "Sigmoid": lambda node, values: values.sigmoid(),
    "GlobalAveragePool": lambda node, values: values.mean((-2, -1), keepdim=True),
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "Flatten": lambda node, values: values.flatten(graphs.attribute(node, "axis", 1)),
    "Reshape": lambda node, values, shape: values.reshape([len(values), *np.asarray(shape).tolist()[1:]]),
    "Concat": lambda node, *values: torch.cat(values, graphs.attribute(node, "axis", 1)),
    "Identity": lambda node, values: values,
}
