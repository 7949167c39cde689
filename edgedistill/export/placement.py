"""Where a target computes in int8: which tensors get a Q/DQ pair, who reads behind it, which weights become int8.

A plan is made of the float graph and the target alone. From a plan and the tensors' ranges the graph is written
(qdq.py) and trained (fake.py). A Q/DQ pair is QuantizeLinear followed by DequantizeLinear.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto

from edgedistill.export import graphs
from edgedistill.records import Target

Edge = tuple[str, str]  # (name of the node that reads, tensor)

SHAPES = ("MaxPool", "Flatten", "Reshape")  # their output has the values, and so the range, of their input
SATURATED = ("Relu", "Clip")  # what the saturation of a Q with zero point 0 does by itself
# What ONNX Runtime has an int8 kernel for on x86 and fuses from pairs on every input and on the output
# (onnxruntime/core/optimizer/qdq_transformer/selectors_actions); HardSigmoid in the way that qdq.py writes it.
CPU = (
    "Conv",
    "Gemm",
    "MatMul",
    "Add",
    "Mul",
    "AveragePool",
    "GlobalAveragePool",
    "Concat",
    "Sigmoid",
    "HardSigmoid",
    *SHAPES,
    *SATURATED,
)
# What TensorRT takes from pairs on the inputs (TensorRT developer guide, "Working with Quantized Types")
TENSORRT = ("Conv", "Gemm", "MatMul", "Add", "MaxPool")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The int8 part of a float graph, by names of its nodes and tensors.

    Attributes:
        target: whose plan it is.
        pairs: the tensors with a Q/DQ pair, in the graph's order.
        behind: who reads a tensor behind its pair; everybody else reads the float tensor.
        weights: the nodes whose weights are int8.
        absorbed: activations that the saturation of a pair replaces.
        shares: tensor -> the tensor whose range it takes, as a pooled tensor does.
    """

    target: Target
    pairs: tuple[str, ...]
    behind: frozenset[Edge]
    weights: frozenset[str]
    absorbed: frozenset[str]
    shares: dict[str, str]

    def ranged(self) -> list[str]:
        """The tensors whose ranges must be known, sorted."""
        return sorted({self.shares.get(name, name) for name in self.pairs})


@dataclass(frozen=True, kw_only=True)
class _Walk:
    """A float graph, looked up from every side; `int8` are the nodes that may compute in int8."""

    nodes: dict[str, NodeProto]
    made: dict[str, NodeProto]
    read: dict[str, list[NodeProto]]
    constants: dict[str, np.ndarray]
    outputs: frozenset[str]
    kept: frozenset[str]
    int8: frozenset[str]
    others: frozenset[str]

    def activations(self, node: NodeProto) -> list[str]:
        """A node's inputs that are no constants."""
        return [name for name in node.input if name and name not in self.constants]

    def tensors(self) -> Iterator[str]:
        """Every float activation, in the graph's order; shapes are none."""
        seen = set(self.others)
        for node in self.nodes.values():
            for name in (*self.activations(node), *node.output):
                if name not in seen:
                    seen.add(name)
                    yield name

    def makes_int8(self, name: str) -> bool:
        """Whether what makes the tensor computes in int8."""
        return name in self.made and self.made[name].name in self.int8

    def read_behind(self, name: str) -> bool:
        """Whether anything reads the tensor that is not kept in float."""
        return any(node.name not in self.kept for node in self.read.get(name, []))

    def feeds_int8(self, name: str) -> bool:
        """Whether something that computes in int8 reads the tensor."""
        return any(node.name in self.int8 for node in self.read.get(name, []))


def plan(model: ModelProto, target: Target, floats: Collection[str] = ()) -> Plan:
    """Plan the int8 graph of a target.

    Args:
        model: a float graph as `qdq.prepared` makes it for the target.
        target: "cpu" or "tensorrt".
        floats: names of nodes with weights that stay float, and so do their inputs.
    """
    walk = _walk(model, {*floats, *_beside(model, floats)}, CPU if target == "cpu" else TENSORRT)
    return _cpu(walk) if target == "cpu" else _tensorrt(walk, graphs.depths(model))


def _beside(model: ModelProto, floats: Collection[str]) -> set[str]:
    """Activations right before and behind a layer in float: they stay with it, or a pair would stand in between."""
    made = graphs.producers(model)
    return {
        node.name
        for node in model.graph.node
        if node.op_type in SATURATED
        and (
            (node.input[0] in made and made[node.input[0]].name in floats)
            or any(reader.name in floats and node.output[0] in reader.input for reader in model.graph.node)
        )
    }


def layers(model: ModelProto) -> list[str]:
    """Names of the nodes with weights, in the graph's order: what can be kept in float one by one."""
    constants = graphs.constants(model)
    return [node.name for node in model.graph.node if _weighted(node, constants)]


def _weighted(node: NodeProto, constants: Collection[str]) -> bool:
    return node.op_type in graphs.WEIGHTED and node.input[1] in constants and node.input[0] not in constants


def _walk(model: ModelProto, floats: Collection[str], op_types: Collection[str]) -> _Walk:
    read: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            read.setdefault(name, []).append(node)
    constants = graphs.constants(model)
    kept = frozenset((*floats, *graphs.preprocessing(model)))
    int8 = frozenset(
        node.name
        for node in model.graph.node
        if node.op_type in op_types and node.name not in kept and _able(node, constants)
    )
    nodes = {node.name: node for node in model.graph.node}
    outputs = frozenset(output.name for output in model.graph.output)
    others = frozenset(graphs.not_float(model))
    return _Walk(
        nodes=nodes,
        made=graphs.producers(model),
        read=read,
        constants=constants,
        outputs=outputs,
        kept=kept,
        int8=int8,
        others=others,
    )


def _able(node: NodeProto, constants: dict[str, np.ndarray]) -> bool:
    """Not an Add of a constant, which is no residual connection, nor a product of two activations."""
    if node.op_type in ("Add", "Mul"):
        return not any(name in constants for name in node.input)
    if node.op_type == "HardSigmoid" and not graphs.is_hard_sigmoid(node):
        return False
    if node.op_type == "Clip":
        return len(node.input) > 1 and node.input[1] in constants and float(constants[node.input[1]]) == 0.0
    return node.op_type not in graphs.WEIGHTED or _weighted(node, constants)


def _cpu(walk: _Walk) -> Plan:
    """Pairs on all that an int8 node reads or makes; only what is kept in float reads before them.

    The graph's outputs stay float, which costs nothing: of logits in 256 steps, close ones tie.
    """
    raw = {name for node in walk.nodes.values() if node.name in walk.kept for name in walk.activations(node)}
    absorbed = frozenset(name for name in walk.int8 if _absorbed(walk.nodes[name], walk, raw))
    hidden = {walk.nodes[name].input[0] for name in absorbed} | walk.outputs
    pairs = [
        name
        for name in walk.tensors()
        if name not in hidden and walk.read_behind(name) and (walk.makes_int8(name) or walk.feeds_int8(name))
    ]
    behind = frozenset(
        (node.name, name) for name in pairs for node in walk.read.get(name, []) if node.name not in walk.kept
    )
    # a node is fused if all that it makes is read behind a pair; float weights are faster in one that is not
    replaced = {walk.nodes[name].input[0]: walk.nodes[name].output[0] for name in absorbed}
    made = {name: replaced.get(one := walk.nodes[name].output[0], one) for name in walk.int8}
    fused = walk.outputs | (set(pairs) - raw)
    weights = frozenset(
        name for name in walk.int8 if _weighted(walk.nodes[name], walk.constants) and made[name] in fused
    )
    return Plan(
        target="cpu", pairs=tuple(pairs), behind=behind, weights=weights, absorbed=absorbed, shares=_shares(walk, pairs)
    )


def _absorbed(node: NodeProto, walk: _Walk, raw: Collection[str]) -> bool:
    """Whether a pair on the activation's output can do the activation's work on what the node before it makes."""
    name, out = node.input[0], node.output[0]
    if node.op_type not in SATURATED or not walk.makes_int8(name) or walk.made[name].op_type in SATURATED:
        return False
    return len(walk.read[name]) == 1 and not {name, out} & walk.outputs and out not in raw


def _tensorrt(walk: _Walk, depths: dict[str, int]) -> Plan:
    """Pairs on what an int8 node reads, but for the main branch of a residual Add."""
    behind = frozenset(
        (name, tensor)
        for name in walk.int8
        for tensor in walk.activations(walk.nodes[name])
        if tensor != _main_branch(walk.nodes[name], walk, depths)
    )
    wanted = {tensor for _, tensor in behind}
    pairs = [name for name in walk.tensors() if name in wanted]
    weights = frozenset(name for name in walk.int8 if _weighted(walk.nodes[name], walk.constants))
    return Plan(
        target="tensorrt",
        pairs=tuple(pairs),
        behind=behind,
        weights=weights,
        absorbed=frozenset(),
        shares=_shares(walk, pairs),
    )


def _main_branch(node: NodeProto, walk: _Walk, depths: dict[str, int]) -> str:
    """The input of a residual Add that a convolution makes for it alone, the deeper one of two; else "".

    TensorRT fuses Conv, Add and the activation into one int8 kernel if the sum reads the convolution's own float
    output (TensorRT developer guide, "Q/DQ placement recommendations").
    """
    if node.op_type != "Add":
        return ""
    branches = [
        name
        for name in node.input
        if name in walk.made and walk.made[name].op_type == "Conv" and len(walk.read[name]) == 1
    ]
    return max(branches, key=lambda name: depths[name], default="")


def _shares(walk: _Walk, pairs: Collection[str]) -> dict[str, str]:
    shares: dict[str, str] = {}
    for name in pairs:
        made = walk.made.get(name)
        if made is not None and made.op_type in SHAPES and made.name in walk.int8 and made.input[0] in pairs:
            shares[name] = shares.get(made.input[0], made.input[0])
    return shares
