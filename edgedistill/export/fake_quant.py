"""A float graph as a torch student with fake quantization at the pairs of a plan, and the trained graph of a student.

Training uses the graph that is deployed: batch norms are already folded, pairs and int8 weights are where qdq.py
writes them, and ranges are learned with the weights (Esser et al., "Learned Step Size Quantization", ICLR 2020; both
ends of a range are learned, as in LSQ+, Bhalgat et al., CVPR Workshops 2020).
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
from edgedistill.export.operators import OPERATORS, is_computed
from edgedistill.export.placement import Plan, make_plan
from edgedistill.records import Target

# Adam changes every parameter by about the learning rate at each step; relative to its size, a range may change ten
# times as much as a weight of size one
GAIN = 10.0
UNLIMITED = (-math.inf, math.inf)


def round_straight_through(values: Tensor) -> Tensor:
    """Round, with the gradient of the identity (Bengio et al. 2013, the straight-through estimator)."""
    return torch.add(values, (values.round() - values).detach())


class Pair(nn.Module):
    """A Q/DQ pair, QuantizeLinear followed by DequantizeLinear, in float arithmetic."""

    start: Tensor
    moved: Tensor

    def __init__(
        self, low: float, high: float, target: Target, learned: bool, limits: tuple[float, float] = UNLIMITED
    ) -> None:
        super().__init__()
        self.target, self.limits = target, limits
        self.register_buffer("start", torch.tensor([min(low, 0.0), max(high, 0.0)]))
        self.moved = nn.Parameter(torch.zeros(2), requires_grad=learned)

    def ends(self) -> Tensor:
        """The lowest and the highest value of the range, [2]."""
        low, high = self.start * torch.exp(GAIN * self.moved)
        return torch.stack([low.clamp_min(self.limits[0]), high.clamp_max(self.limits[1])])

    def step(self) -> Tensor:
        """The quantization step, []."""
        low, high = self.ends()
        if self.target == "tensorrt":
            return torch.div(torch.maximum(-low, high).clamp_min(qdq.MIN_HALF_STEP * 127), 127)
        return torch.div(high - low, 255).clamp_min(qdq.MIN_STEP)

    def forward(self, values: Tensor) -> Tensor:
        """Quantize and dequantize a tensor of any shape."""
        step = self.step()
        if self.target == "tensorrt":
            return torch.mul(round_straight_through(values / step).clamp(-128, 127), step)
        zero = round_straight_through(-self.ends()[0] / step)
        return torch.mul((round_straight_through(values / step) + zero).clamp(0, 255) - zero, step)


def weight_step(weight: Tensor, axis: int, target: Target, min_step: Tensor | None = None) -> Tensor:
    """The step of each output channel, as in qdq.weight_scales; the other axes have length 1."""
    floor = torch.tensor(qdq.MIN_HALF_STEP if target == "tensorrt" else qdq.MIN_STEP, device=weight.device)
    shape = [-1 if dim == axis else 1 for dim in range(weight.ndim)]
    bound = floor if min_step is None else torch.maximum(floor, min_step).reshape(shape)
    other_axes = [dim for dim in range(weight.ndim) if dim != axis]
    return torch.maximum(weight.detach().abs().amax(other_axes, keepdim=True) / 127, bound)


def round_to_steps(values: Tensor, step: Tensor) -> Tensor:
    """Round a weight or a bias to the nearest multiples of its step."""
    return round_straight_through(values / step) * step


class FakeQuantGraph(nn.Module):
    """Consecutive nodes of a float graph, computed in torch, with a plan's fake quantization.

    In training mode everything is float32, and rounding passes the gradient. In eval mode the CPU's graph is computed
    in integers, without a gradient (integer_kernels.py), so the deployed arithmetic is scored. TensorRT's graph is
    float32 in both modes. Weights and biases of weighted nodes are parameters, named by `parameter_key`.
    """

    normalization: Tensor | None

    def __init__(
        self, model: ModelProto, nodes: list[NodeProto], plan: Plan, pairs: nn.ModuleDict, input_name: str
    ) -> None:
        super().__init__()
        self.register_buffer("normalization", _normalization(model, input_name), persistent=False)
        self.nodes, self.plan, self.pairs, self.input_name = nodes, plan, pairs, input_name
        initializers = graphs.constants(model)
        self.constants: dict[str, Any] = {}
        self.learned = nn.ParameterDict()
        for node in nodes:
            for index, name in enumerate(node.input):
                if name in initializers and node.op_type in graphs.WEIGHTED and index in (1, 2):
                    self.learned[parameter_key(name)] = nn.Parameter(torch.from_numpy(initializers[name].copy()))
                elif name in initializers:
                    self.constants[name] = initializers[name]
        first = nodes[0]
        # methods size their source heads by this if the part is the last linear layer
        self.in_features = (
            initializers[first.input[1]].shape[1 - qdq.output_axis(first)] if first.op_type == "Gemm" else 0
        )

    @property
    def bias(self) -> Tensor:
        """The bias [C] of the last node, the linear layer of a head: it is shifted to a prior as a student's is."""
        bias_C: Tensor = self.learned[parameter_key(self.nodes[-1].input[2])]
        return bias_C

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Compute the output of the last node from the tensor `input_name`."""
        literal = self.training or self.plan.target == "tensorrt"
        return self._in_floats(images_BCHW) if literal else self._in_integers(images_BCHW)

    def _in_floats(self, images_BCHW: Tensor) -> Tensor:
        tensors: dict[str, Tensor] = {self.input_name: images_BCHW}
        dequantized: dict[str, Tensor] = {}
        for node in self.nodes:
            inputs = [
                self._read(node, index, name=name, tensors=tensors, dequantized=dequantized)
                for index, name in enumerate(node.input)
                if name
            ]
            tensors[node.output[0]] = OPERATORS[node.op_type](node, *inputs)
        return tensors[self.nodes[-1].output[0]]

    def _in_integers(self, images_BCHW: Tensor) -> Tensor:
        device, tensors = images_BCHW.device, dict(self.constants)
        if self.normalization is not None:
            images_BCHW = integer_kernels.renormalize(images_BCHW, *self.normalization)
        input_grid = self._grid(self.input_name, device)
        tensors[self.input_name] = (
            images_BCHW if input_grid is None else integer_kernels.quantize(images_BCHW, input_grid)
        )
        replaced = {node.input[0]: node.output[0] for node in self.nodes if node.name in self.plan.absorbed}
        for node in self.nodes:
            if node.name in self.plan.absorbed:
                continue
            name = replaced.get(node.output[0], node.output[0])
            output_grid = self._grid(name, device)
            # no node is kept in float here: every reader of a tensor with a pair reads the quantized tensor
            inputs = [
                tensors[tensor_name] if tensor_name in tensors else self.learned[parameter_key(tensor_name)]
                for tensor_name in node.input
                if tensor_name
            ]
            if node.name in self.plan.weights:
                tensors[name] = integer_kernels.run_weighted(node, inputs[0], self._layer(node, device), output_grid)
            else:
                tensors[name] = integer_kernels.run_node(node, inputs, output_grid)
        output = tensors[self.nodes[-1].output[0]]
        return output.floats() if isinstance(output, integer_kernels.QuantizedTensor) else output

    def _affine(self, name: str) -> qdq.Affine:
        low, high = self._pair(name).ends().tolist()
        return qdq.affine(low, high, self.plan.target)

    def _grid(self, name: str, device: torch.device) -> integer_kernels.Grid | None:
        return integer_kernels.make_grid(self._affine(name), device) if name in self.plan.pairs else None

    def _layer(self, node: NodeProto, device: torch.device) -> integer_kernels.IntegerLayer:
        weight, *bias = (self.learned[parameter_key(name)].detach().cpu().numpy() for name in node.input[1:] if name)
        return integer_kernels.quantize_layer(
            node, weight, bias=bias[0] if bias else None, input_affine=self._affine(node.input[0]), device=device
        )

    def _read(
        self, node: NodeProto, index: int, *, name: str, tensors: dict[str, Tensor], dequantized: dict[str, Tensor]
    ) -> Any:
        if parameter_key(name) in self.learned:
            parameter = self.learned[parameter_key(name)]
            return round_to_steps(parameter, self._step(node, index)) if self._is_integer(node, index) else parameter
        if name in self.constants:
            return self.constants[name]
        if (node.name, name) not in self.plan.quantized_reads:
            return tensors[name]
        if name not in dequantized:
            dequantized[name] = self._pair(name)(tensors[name])
        return dequantized[name]

    def _pair(self, name: str) -> Pair:
        pair: Pair = self.pairs[parameter_key(self.plan.shared_ranges.get(name, name))]  # type: ignore[assignment]
        return pair

    def _is_integer(self, node: NodeProto, index: int) -> bool:
        """Whether the int8 graph stores this constant as integers; a bias only for a CPU."""
        return node.name in self.plan.weights and (index == 1 or self.plan.target == "cpu")

    def _step(self, node: NodeProto, index: int) -> Tensor:
        input_step, min_step = None, None
        if self.plan.target == "cpu":
            input_step = self._pair(node.input[0]).step().detach()
            if len(node.input) > 2 and node.input[2]:
                min_step = self.learned[parameter_key(node.input[2])].detach().abs() / (qdq.MAX_BIAS_STEPS * input_step)
        step = weight_step(
            self.learned[parameter_key(node.input[1])], qdq.output_axis(node), self.plan.target, min_step
        )
        return step if index == 1 or input_step is None else step.reshape(-1) * input_step


def _normalization(model: ModelProto, input_name: str) -> Tensor | None:
    """Scale and shift of the pixel normalization, [2, 3, 1, 1]; None if `input_name` is not the normalized image."""
    preprocessing_nodes, initializers = set(graphs.preprocessing(model)), graphs.constants(model)
    nodes = [node for node in model.graph.node if node.name in preprocessing_nodes]
    operands = {
        node.op_type: initializers[name]
        for node in nodes
        if node.op_type in ("Mul", "Add")
        for name in node.input
        if name in initializers
    }
    if operands.keys() != {"Mul", "Add"} or not any(input_name in node.output for node in nodes):
        return None
    # the constants cover a row of pixels (onnx.py): three values, repeated
    return torch.from_numpy(
        np.stack([operands["Mul"].reshape(-1)[:3], operands["Add"].reshape(-1)[:3]]).reshape(2, 3, 1, 1)
    )


def parameter_key(name: str) -> str:
    """A tensor's name as a torch parameter name, which may contain no dots."""
    return name.replace(".", "/")


def student(model: ModelProto, ranges: qdq.Ranges, target: Target, learned: bool) -> nn.Module:
    """Build a torch student, with parts `backbone` and `head`, from a float graph, with a target's fake quantization.

    Args:
        model: the exported fp32 graph.
        ranges: the calibrated ranges.
        target: "cpu" or "tensorrt".
        learned: whether the ranges are learned with the weights.

    Returns:
        A module: normalized float32 [B, 3, px, px] to logits [B, C].

    Raises:
        EdgeDistillError: the graph has an operator that is not in OPERATORS, or does not end in one linear layer.
    """
    prepared = qdq.prepare(model, target)
    plan = make_plan(prepared, target)
    preprocessing_nodes = set(graphs.preprocessing(prepared))
    nodes = [node for node in prepared.graph.node if node.name not in preprocessing_nodes]
    unknown = sorted({node.op_type for node in nodes if not is_computed(node)})
    if unknown or nodes[-1].op_type != "Gemm":
        listed = ", ".join(unknown)
        reason = f"has the operators {listed}, or attributes of theirs, that training does not compute"
        reason = reason if unknown else "does not end in one linear layer"
        raise EdgeDistillError(f"quantize.qat: this student {reason}", "leave qat out, or choose another family")
    input_name = next(node.output[0] for node in reversed(prepared.graph.node) if node.name in preprocessing_nodes)
    bounds = qdq.bounds(prepared, plan, ranges)
    limits = qdq.limits(prepared)
    pairs = nn.ModuleDict(
        {
            parameter_key(name): Pair(
                low, high, target=target, learned=learned and not fixed, limits=limits.get(name, UNLIMITED)
            )
            for name, (low, high, fixed) in bounds.items()
        }
    )
    features = nodes[-1].input[0]
    backbone = FakeQuantGraph(prepared, nodes[:-1], plan=plan, pairs=pairs, input_name=input_name)
    # one table of pairs, and so one set of ranges, for both parts
    head = FakeQuantGraph(
        prepared,
        nodes[-1:],
        plan=plan,
        pairs=nn.ModuleDict(
            {name: pairs[name] for name in pairs if name == parameter_key(plan.shared_ranges.get(features, features))}
        ),
        input_name=features,
    )
    return nn.Sequential(OrderedDict(backbone=backbone, head=head))


def trained_graph(model: ModelProto, net: nn.Module) -> tuple[ModelProto, dict[str, tuple[float, float]]]:
    """A copy of the float graph with a student's trained weights, and the learned ranges."""
    graph, values = copy.deepcopy(model), {}
    parts: list[FakeQuantGraph] = [net.backbone, net.head]  # type: ignore[list-item]
    for part in parts:
        values.update({name: parameter.detach().cpu().numpy() for name, parameter in part.learned.items()})
    for tensor in graph.graph.initializer:
        if parameter_key(tensor.name) in values:
            tensor.CopyFrom(numpy_helper.from_array(values[parameter_key(tensor.name)], tensor.name))
    learned = {name: pair.ends().detach().tolist() for part in parts for name, pair in part.pairs.items()}  # type: ignore[operator]
    return graph, {name.replace("/", "."): (low, high) for name, (low, high) in learned.items()}
