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
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto, numpy_helper
from torch import Tensor, nn

from edgedistill.errors import EdgeDistillError
from edgedistill.export import graphs, integer_kernels, qdq
from edgedistill.export.operators import OPERATORS
from edgedistill.export.placement import Plan, plan
from edgedistill.records import Target

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

    def __init__(
        self, low: float, high: float, target: Target, learned: bool, limits: tuple[float, float] = ANY
    ) -> None:
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

    In training mode all is float32, and rounding passes the gradient. In eval mode the CPU's graph is computed in its
    integers, without a gradient (integer.py): what is scored is what is deployed. TensorRT's is float32 in both modes.
    Constants that are floats of weighted nodes are parameters; names have their dots replaced for torch's sake.
    """

    normalisation: Tensor | None

    def __init__(
        self, model: ModelProto, nodes: list[NodeProto], wanted: Plan, pairs: nn.ModuleDict, entry: str
    ) -> None:
        super().__init__()
        self.register_buffer("normalisation", _normalisation(model, entry), persistent=False)
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
        literal = self.training or self.plan.target == "tensorrt"
        return self._in_floats(images_BCHW) if literal else self._in_integers(images_BCHW)

    def _in_floats(self, images_BCHW: Tensor) -> Tensor:
        found: dict[str, Tensor] = {self.entry: images_BCHW}
        behind: dict[str, Tensor] = {}
        for node in self.nodes:
            given = [
                self._read(node, at, name=name, found=found, behind=behind)
                for at, name in enumerate(node.input)
                if name
            ]
            found[node.output[0]] = OPERATORS[node.op_type](node, *given)
        return found[self.nodes[-1].output[0]]

    def _in_integers(self, images_BCHW: Tensor) -> Tensor:
        device, found = images_BCHW.device, dict(self.constants)
        if self.normalisation is not None:
            images_BCHW = integer_kernels.renormalised(images_BCHW, *self.normalisation)
        entry = self._grid(self.entry, device)
        found[self.entry] = images_BCHW if entry is None else integer_kernels.quantized(images_BCHW, entry)
        replaced = {node.input[0]: node.output[0] for node in self.nodes if node.name in self.plan.absorbed}
        for node in self.nodes:
            if node.name in self.plan.absorbed:
                continue
            name = replaced.get(node.output[0], node.output[0])
            made = self._grid(name, device)
            # nothing is kept in float here: whoever reads a tensor with a pair reads it behind the pair
            given = [found[one] if one in found else self.learned[key(one)] for one in node.input if one]
            if node.name in self.plan.weights:
                found[name] = integer_kernels.weighted(node, given[0], self._layer(node, device), made)
            else:
                found[name] = integer_kernels.computed(node, given, made)
        last = found[self.nodes[-1].output[0]]
        return last.floats() if isinstance(last, integer_kernels.Bytes) else last

    def _affine(self, name: str) -> qdq.Affine:
        low, high = self._pair(name).ends().tolist()
        return qdq.affine(low, high, self.plan.target)

    def _grid(self, name: str, device: torch.device) -> integer_kernels.Grid | None:
        return integer_kernels.grid(self._affine(name), device) if name in self.plan.pairs else None

    def _layer(self, node: NodeProto, device: torch.device) -> integer_kernels.Layer:
        weight, *bias = (self.learned[key(name)].detach().cpu().numpy() for name in node.input[1:] if name)
        return integer_kernels.layer(
            node, weight, bias=bias[0] if bias else None, read=self._affine(node.input[0]), device=device
        )

    def _read(self, node: NodeProto, at: int, *, name: str, found: dict[str, Tensor], behind: dict[str, Tensor]) -> Any:
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


def _normalisation(model: ModelProto, entry: str) -> Tensor | None:
    """What a graph multiplies a pixel by, and what it then adds, [2, 3, 1, 1]; None for a part that no image enters."""
    before, known = set(graphs.preprocessing(model)), graphs.constants(model)
    nodes = [node for node in model.graph.node if node.name in before]
    found = {
        node.op_type: known[name]
        for node in nodes
        if node.op_type in ("Mul", "Add")
        for name in node.input
        if name in known
    }
    if found.keys() != {"Mul", "Add"} or not any(entry in node.output for node in nodes):
        return None
    # the constants are of a whole row of pixels (onnx.py): three values, over and over
    return torch.from_numpy(np.stack([found["Mul"].reshape(-1)[:3], found["Add"].reshape(-1)[:3]]).reshape(2, 3, 1, 1))


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
    pairs = nn.ModuleDict(
        {
            key(name): Pair(low, high, target=target, learned=learned and not fixed, limits=limits.get(name, ANY))
            for name, (low, high, fixed) in bounds.items()
        }
    )
    features = nodes[-1].input[0]
    backbone = Graph(ready, nodes[:-1], wanted=wanted, pairs=pairs, entry=entry)
    # one table of pairs, and so one set of ranges, for both parts
    head = Graph(
        ready,
        nodes[-1:],
        wanted=wanted,
        pairs=nn.ModuleDict(
            {name: pairs[name] for name in pairs if name == key(wanted.shares.get(features, features))}
        ),
        entry=features,
    )
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
