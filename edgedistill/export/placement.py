"""Where a target computes in int8: the tensors with a Q/DQ pair, the nodes that read its output, the int8 weights.

A plan depends only on the float graph and the target. From a plan and the tensors' ranges the graph is written
(qdq.py) and trained (fake_quant.py). A Q/DQ pair is QuantizeLinear followed by DequantizeLinear.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto

from edgedistill.export import graphs
from edgedistill.records import Target

Edge = tuple[str, str]  # (name of the reading node, tensor)

RANGE_PRESERVING = ("MaxPool", "Flatten", "Reshape")  # their output has values of their input, and so its range
SATURATING = ("Relu", "Clip")  # QuantizeLinear with zero point 0 saturates in the same way
# Operators that ONNX Runtime fuses into an int8 kernel on x86 if all inputs and the output have pairs
# (onnxruntime/core/optimizer/qdq_transformer/selectors_actions); HardSigmoid only as qdq.py writes it.
CPU_OPERATORS = (
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
    *RANGE_PRESERVING,
    *SATURATING,
)
# Operators that TensorRT computes in int8 if their inputs have pairs (developer guide, "Working with Quantized Types")
TENSORRT_OPERATORS = ("Conv", "Gemm", "MatMul", "Add", "MaxPool")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The int8 part of a float graph, by the names of its nodes and tensors.

    Attributes:
        target: "cpu" or "tensorrt".
        pairs: the tensors with a Q/DQ pair, in the graph's order.
        quantized_reads: the nodes that read the output of a tensor's pair; other nodes read the float tensor.
        weights: the nodes whose weights are int8.
        absorbed: activations that the saturation of a pair replaces.
        shared_ranges: tensor -> the tensor whose range it has, such as the input of a pooling.
    """

    target: Target
    pairs: tuple[str, ...]
    quantized_reads: frozenset[Edge]
    weights: frozenset[str]
    absorbed: frozenset[str]
    shared_ranges: dict[str, str]

    def ranged_tensors(self) -> list[str]:
        """The tensors whose ranges are needed, sorted."""
        return sorted({self.shared_ranges.get(name, name) for name in self.pairs})


@dataclass(frozen=True, kw_only=True)
class _GraphIndex:
    """Lookup tables of a float graph; `int8_nodes` are the nodes that may compute in int8."""

    nodes: dict[str, NodeProto]
    producers: dict[str, NodeProto]
    readers: dict[str, list[NodeProto]]
    constants: dict[str, np.ndarray]
    outputs: frozenset[str]
    float_nodes: frozenset[str]
    int8_nodes: frozenset[str]
    not_float: frozenset[str]

    def activations(self, node: NodeProto) -> list[str]:
        """The inputs of a node that are not constants."""
        return [name for name in node.input if name and name not in self.constants]

    def tensors(self) -> Iterator[str]:
        """Every float activation, in the graph's order; shapes are not floats."""
        visited = set(self.not_float)
        for node in self.nodes.values():
            for name in (*self.activations(node), *node.output):
                if name not in visited:
                    visited.add(name)
                    yield name

    def makes_int8(self, name: str) -> bool:
        """Whether the node that produces the tensor may compute in int8."""
        return name in self.producers and self.producers[name].name in self.int8_nodes

    def read_behind(self, name: str) -> bool:
        """Whether a node that is not kept in float reads the tensor."""
        return any(node.name not in self.float_nodes for node in self.readers.get(name, []))

    def feeds_int8(self, name: str) -> bool:
        """Whether a node that may compute in int8 reads the tensor."""
        return any(node.name in self.int8_nodes for node in self.readers.get(name, []))


def make_plan(model: ModelProto, target: Target, floats: Collection[str] = ()) -> Plan:
    """Plan the int8 graph of a target.

    Args:
        model: a float graph, converted by `qdq.prepare` for the target.
        target: "cpu" or "tensorrt".
        floats: names of nodes with weights that stay float, and whose inputs stay float.
    """
    index = _index(
        model,
        {*floats, *_adjacent_activations(model, floats)},
        CPU_OPERATORS if target == "cpu" else TENSORRT_OPERATORS,
    )
    return _cpu_plan(index) if target == "cpu" else _tensorrt_plan(index, graphs.depths(model))


def _adjacent_activations(model: ModelProto, floats: Collection[str]) -> set[str]:
    """Activations directly before and after a float layer; they stay float, or a pair would be inserted in between."""
    producers = graphs.producers(model)
    return {
        node.name
        for node in model.graph.node
        if node.op_type in SATURATING
        and (
            (node.input[0] in producers and producers[node.input[0]].name in floats)
            or any(reader.name in floats and node.output[0] in reader.input for reader in model.graph.node)
        )
    }


def layers(model: ModelProto) -> list[str]:
    """Names of the nodes with weights, in the graph's order; each can be kept in float."""
    constants = graphs.constants(model)
    return [node.name for node in model.graph.node if _has_constant_weight(node, constants)]


def _has_constant_weight(node: NodeProto, constants: Mapping[str, np.ndarray]) -> bool:
    if node.op_type not in graphs.WEIGHTED or node.input[1] not in constants or node.input[0] in constants:
        return False
    bias = node.input[2] if len(node.input) > 2 else ""
    return not bias or (bias in constants and constants[bias].ndim == 1)  # a Gemm may add an activation


def _index(model: ModelProto, floats: Collection[str], op_types: Collection[str]) -> _GraphIndex:
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    constants = graphs.constants(model)
    float_nodes = frozenset((*floats, *graphs.preprocessing(model)))
    int8_nodes = frozenset(
        node.name
        for node in model.graph.node
        if node.op_type in op_types and node.name not in float_nodes and _can_be_int8(node, constants)
    )
    nodes = {node.name: node for node in model.graph.node}
    outputs = frozenset(output.name for output in model.graph.output)
    not_float = frozenset(graphs.not_float(model))
    return _GraphIndex(
        nodes=nodes,
        producers=graphs.producers(model),
        readers=readers,
        constants=constants,
        outputs=outputs,
        float_nodes=float_nodes,
        int8_nodes=int8_nodes,
        not_float=not_float,
    )


def _can_be_int8(node: NodeProto, constants: dict[str, np.ndarray]) -> bool:
    """Whether a node can compute in int8: not an Add of a constant, nor a Gemm or MatMul of two activations."""
    if node.op_type in ("Add", "Mul"):
        return not any(name in constants for name in node.input)
    if node.op_type == "HardSigmoid" and not graphs.is_hard_sigmoid(node):
        return False
    if node.op_type == "Clip":
        return len(node.input) > 1 and node.input[1] in constants and float(constants[node.input[1]]) == 0.0
    return node.op_type not in graphs.WEIGHTED or _has_constant_weight(node, constants)


def _cpu_plan(index: _GraphIndex) -> Plan:
    """Pairs on all inputs and outputs of int8 nodes; only nodes kept in float read the tensors without pairs.

    The graph's outputs stay float, which costs nothing; in 256 steps, close logits would tie.
    """
    float_reads = {
        name for node in index.nodes.values() if node.name in index.float_nodes for name in index.activations(node)
    }
    absorbed = frozenset(name for name in index.int8_nodes if _absorbed(index.nodes[name], index, float_reads))
    unpaired = {index.nodes[name].input[0] for name in absorbed} | index.outputs
    pairs = [
        name
        for name in index.tensors()
        if name not in unpaired and index.read_behind(name) and (index.makes_int8(name) or index.feeds_int8(name))
    ]
    quantized_reads = frozenset(
        (node.name, name)
        for name in pairs
        for node in index.readers.get(name, [])
        if node.name not in index.float_nodes
    )
    # a node is fused if all reads of its output are of a pair; in a node that is not fused, float weights are faster
    replaced = {index.nodes[name].input[0]: index.nodes[name].output[0] for name in absorbed}
    stored_outputs = {
        name: replaced.get(output_name := index.nodes[name].output[0], output_name) for name in index.int8_nodes
    }
    fused = index.outputs | (set(pairs) - float_reads)
    weights = frozenset(
        name
        for name in index.int8_nodes
        if _has_constant_weight(index.nodes[name], index.constants) and stored_outputs[name] in fused
    )
    return Plan(
        target="cpu",
        pairs=tuple(pairs),
        quantized_reads=quantized_reads,
        weights=weights,
        absorbed=absorbed,
        shared_ranges=_shared_ranges(index, pairs),
    )


def _absorbed(node: NodeProto, index: _GraphIndex, float_reads: Collection[str]) -> bool:
    """Whether a pair on the output of the node before an activation replaces the activation by its saturation."""
    name, output = node.input[0], node.output[0]
    if node.op_type not in SATURATING or not index.makes_int8(name) or index.producers[name].op_type in SATURATING:
        return False
    return len(index.readers[name]) == 1 and not {name, output} & index.outputs and output not in float_reads


def _tensorrt_plan(index: _GraphIndex, depths: dict[str, int]) -> Plan:
    """Pairs on the inputs of int8 nodes, except for the main branch of a residual Add."""
    quantized_reads = frozenset(
        (name, tensor)
        for name in index.int8_nodes
        for tensor in index.activations(index.nodes[name])
        if tensor != _main_branch(index.nodes[name], index, depths)
    )
    quantized_tensors = {tensor for _, tensor in quantized_reads}
    pairs = [name for name in index.tensors() if name in quantized_tensors]
    weights = frozenset(name for name in index.int8_nodes if _has_constant_weight(index.nodes[name], index.constants))
    return Plan(
        target="tensorrt",
        pairs=tuple(pairs),
        quantized_reads=quantized_reads,
        weights=weights,
        absorbed=frozenset(),
        shared_ranges=_shared_ranges(index, pairs),
    )


def _main_branch(node: NodeProto, index: _GraphIndex, depths: dict[str, int]) -> str:
    """The input of a residual Add produced by a convolution and read by nothing else, the deeper one of two; else "".

    TensorRT fuses Conv, Add and the activation into one int8 kernel if Add reads the convolution's float output
    (TensorRT developer guide, "Q/DQ placement recommendations").
    """
    if node.op_type != "Add":
        return ""
    branches = [
        name
        for name in node.input
        if name in index.producers and index.producers[name].op_type == "Conv" and len(index.readers[name]) == 1
    ]
    return max(branches, key=lambda name: depths[name], default="")


def _shared_ranges(index: _GraphIndex, pairs: Collection[str]) -> dict[str, str]:
    shared_ranges: dict[str, str] = {}
    for name in pairs:
        producer = index.producers.get(name)
        if (
            producer is not None
            and producer.op_type in RANGE_PRESERVING
            and producer.name in index.int8_nodes
            and producer.input[0] in pairs
        ):
            shared_ranges[name] = shared_ranges.get(producer.input[0], producer.input[0])
    return shared_ranges
