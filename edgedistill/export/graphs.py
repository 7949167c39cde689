"""ONNX -> ONNX passes: a graph in, a new graph out, the argument untouched; and the check of what TensorRT misreads.

A Q/DQ pair is QuantizeLinear followed by DequantizeLinear: where a backend may compute in int8.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgedistill.records import EdgeDistillError
from edgedistill.run import atomic

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
SPATIAL = {2, 3}


def write(model: ModelProto, path: Path) -> None:
    """Check a graph and write it atomically; the same graph gives the same bytes.

    Raises:
        onnx.checker.ValidationError: the graph breaks the ONNX standard.
    """
    onnx.checker.check_model(model, full_check=True)
    with atomic(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))


def constants(model: ModelProto) -> dict[str, np.ndarray]:
    """Every initializer by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def producers(model: ModelProto) -> dict[str, NodeProto]:
    """The node behind every tensor that a node makes."""
    return {name: node for node in model.graph.node for name in node.output}


def consumers(model: ModelProto) -> Counter[str]:
    """How often a tensor is read; being a graph output is a read."""
    reads = Counter(name for node in model.graph.node for name in node.input)
    return reads + Counter(output.name for output in model.graph.output)


def _rewrite(model: ModelProto, replace: Callable[[NodeProto], Iterable[NodeProto]]) -> ModelProto:
    """A copy in which every node is what `replace` makes of it, without the initializers that nobody reads any more."""
    result = copy.deepcopy(model)
    nodes = [new for node in model.graph.node for new in replace(node)]
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return _without_unread(result)


def _without_unread(model: ModelProto) -> ModelProto:
    read = consumers(model)
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def tidy(model: ModelProto) -> ModelProto:
    """Constants as initializers, and nothing that says where or from which source lines the graph was made.

    Exporters write stack traces and module paths into doc strings and metadata: they differ from machine to machine,
    so equal weights would not give equal bytes, and they do not belong in an artefact that is handed on.
    """
    lifted = [_lift(node) for node in model.graph.node if node.op_type == "Constant"]
    result = _rewrite(model, lambda node: [] if node.op_type == "Constant" else [node])
    result.graph.initializer.extend(lifted)
    graph = result.graph
    del result.metadata_props[:], graph.value_info[:]
    for part in (result, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.doc_string = ""
        if hasattr(part, "metadata_props"):
            del part.metadata_props[:]
    return _without_unread(result)


def _lift(node: NodeProto) -> TensorProto:
    value = helper.get_attribute_value(node.attribute[0])
    array = numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)
    if array.dtype == np.float64:  # a bare Python float; value_float is float32 by the specification
        array = array.astype(np.float32)
    return numpy_helper.from_array(array, node.output[0])


def global_average_pool(model: ModelProto) -> ModelProto:
    """ReduceMean over H and W becomes GlobalAveragePool, with a Flatten where the axes are dropped.

    Runtimes have an int8 kernel for GlobalAveragePool and none for ReduceMean.
    """
    known, ranks = constants(model), _ranks(model)

    def replace(node: NodeProto) -> list[NodeProto]:
        if node.op_type != "ReduceMean" or _axes(node, known, ranks.get(node.input[0])) != SPATIAL:
            return [node]
        pooled = node.output[0] if _attribute(node, "keepdims", 1) else f"{node.output[0]}_pooled"
        pool = helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=f"{node.name}_pool")
        if pooled == node.output[0]:
            return [pool]
        return [pool, helper.make_node("Flatten", [pooled], [node.output[0]], name=f"{node.name}_flatten", axis=1)]

    return _rewrite(model, replace)


def _ranks(model: ModelProto) -> dict[str, int]:
    shaped = onnx.shape_inference.infer_shapes(model).graph
    return {info.name: len(info.type.tensor_type.shape.dim) for info in (*shaped.input, *shaped.value_info)}


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((int(one.i) for one in node.attribute if one.name == name), default)


def _axes(node: NodeProto, known: dict[str, np.ndarray], rank: int | None) -> set[int]:
    """The reduced axes of a 4-D tensor, counted from 0, else none; an attribute, or from opset 18 on an input."""
    listed = next((list(one.ints) for one in node.attribute if one.name == "axes"), [])
    if len(node.input) > 1 and node.input[1] in known:
        listed = known[node.input[1]].tolist()
    return {axis % 4 for axis in listed} if rank == 4 else set()


def preprocessing(model: ModelProto) -> list[str]:
    """Names of the nodes before the first one with weights: normalization, which stays float in every int8 graph."""
    names: list[str] = []
    for node in model.graph.node:
        if node.op_type in WEIGHTED:
            return names
        names.append(node.name)
    return names


def with_constant(model: ModelProto, op_type: str) -> list[str]:
    """Names of the `op_type` nodes that read an initializer: an Add of a bias, which is no residual connection."""
    known = {tensor.name for tensor in model.graph.initializer}
    return [node.name for node in model.graph.node if node.op_type == op_type and known.intersection(node.input)]


def float_conv_branch(model: ModelProto) -> ModelProto:
    """Take the Q/DQ pair off the convolution branch of every residual Add, and leave the one on the identity branch.

    TensorRT fuses Conv, Add and the activation into one int8 kernel if the sum reads the convolution's own float
    output (TensorRT developer guide, "Q/DQ placement recommendations"). Where both branches end in a convolution, the
    deeper one is the main branch.
    """
    made, read, depths = producers(model), consumers(model), _depths(model)
    bypass: dict[str, str] = {}  # output of a removed DQ -> the float tensor in its place
    for node in model.graph.node:
        if node.op_type != "Add":
            continue
        branches = [(name, source) for name in node.input if (source := _conv_behind(name, made, read)) is not None]
        if branches:
            name, source = max(branches, key=lambda pair: depths[pair[1]])
            bypass[name] = source
    gone = {id(made[name]) for name in bypass} | {id(made[made[name].input[0]]) for name in bypass}

    def replace(node: NodeProto) -> list[NodeProto]:
        if id(node) in gone:
            return []
        rewired = copy.deepcopy(node)
        rewired.input[:] = [bypass.get(name, name) for name in node.input]
        return [rewired]

    return _rewrite(model, replace)


def _conv_behind(name: str, made: dict[str, NodeProto], read: Counter[str]) -> str | None:
    """The output of a convolution that reaches `name` through a Q/DQ pair and goes nowhere else; else None."""
    dequantize = made.get(name)
    if dequantize is None or dequantize.op_type != "DequantizeLinear" or read[name] != 1:
        return None
    quantize = made.get(dequantize.input[0])
    if quantize is None or quantize.op_type != "QuantizeLinear" or read[dequantize.input[0]] != 1:
        return None
    source = quantize.input[0]
    conv = made.get(source)
    return source if conv is not None and conv.op_type == "Conv" and read[source] == 1 else None


def _depths(model: ModelProto) -> dict[str, int]:
    """Length of the longest path from the input to each tensor; nodes are in topological order by the ONNX standard."""
    depths: dict[str, int] = {}
    for node in model.graph.node:
        depth = 1 + max((depths.get(name, 0) for name in node.input), default=0)
        depths.update(dict.fromkeys(node.output, depth))
    return depths


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
    known, weights = constants(model), _weights(model)
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
    weighted = [node for node in model.graph.node if node.op_type in WEIGHTED]
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
