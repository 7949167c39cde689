"""ONNX -> ONNX passes over float graphs, before Q/DQ pairs are inserted; each returns a new graph.

A Q/DQ pair is QuantizeLinear followed by DequantizeLinear; it marks where a backend may compute in int8.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgedistill.records import OnnxModel, Precision, Target
from edgedistill.run.files import atomic, sha256_file

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
SPATIAL = {2, 3}


def record(
    path: Path,
    precision: Precision,
    target: Target,
    *,
    opset: int,
    parent_sha256: str = "",
    parity: Mapping[str, float] | None = None,
) -> OnnxModel:
    """The record of a graph on disk; its `path` is the bare file name."""
    return OnnxModel(
        path=path.name,
        sha256=sha256_file(path),
        precision=precision,
        target=target,
        opset=opset,
        parent_sha256=parent_sha256,
        size_mb=path.stat().st_size / 1e6,
        parity=dict(parity or {}),
    )


def write(model: ModelProto, path: Path) -> None:
    """Check a graph and write it atomically; the same graph gives the same bytes.

    Raises:
        onnx.checker.ValidationError: the graph breaks the ONNX standard.
    """
    onnx.checker.check_model(model, full_check=True)
    with atomic(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))


def constants(model: ModelProto) -> dict[str, np.ndarray]:
    """The array of every initializer, by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def producers(model: ModelProto) -> dict[str, NodeProto]:
    """The node that produces each tensor, by the tensor's name."""
    return {name: node for node in model.graph.node for name in node.output}


def consumers(model: ModelProto) -> Counter[str]:
    """How many inputs read each tensor; a graph output counts as one."""
    reads = Counter(name for node in model.graph.node for name in node.input)
    return reads + Counter(output.name for output in model.graph.output)


def _rewrite(model: ModelProto, replace: Callable[[NodeProto], Iterable[NodeProto]]) -> ModelProto:
    """A copy in which `replace` has replaced every node, without the initializers that are no longer read."""
    rewritten = copy.deepcopy(model)
    nodes = [new for node in model.graph.node for new in replace(node)]
    del rewritten.graph.node[:], rewritten.graph.value_info[:]
    rewritten.graph.node.extend(nodes)
    return without_unread(rewritten)


def without_unread(model: ModelProto) -> ModelProto:
    """Remove the initializers that no node reads, in place, and return the model."""
    read = consumers(model)
    used = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(used)
    return model


def unshare_weights(model: ModelProto) -> ModelProto:
    """Give every weighted node a weight of its own, in place, and return the model: each gets a DequantizeLinear."""
    tensors, read = {tensor.name: tensor for tensor in model.graph.initializer}, set[str]()
    for node in model.graph.node:
        name = node.input[1] if node.op_type in WEIGHTED else ""
        if name in read and name in tensors:
            own = copy.deepcopy(tensors[name])
            own.name = f"{name}_{node.name}"
            model.graph.initializer.append(own)
            node.input[1] = own.name
        read.add(name)
    return model


def tidy(model: ModelProto) -> ModelProto:
    """Turn Constant nodes into initializers, and remove doc strings and metadata.

    Exporters write stack traces and module paths there. These differ from machine to machine, so equal weights would
    not give equal bytes, and they do not belong in a published artifact.
    """
    constant_initializers = [_constant_initializer(node) for node in model.graph.node if node.op_type == "Constant"]
    cleaned = _rewrite(model, lambda node: [] if node.op_type == "Constant" else [node])
    cleaned.graph.initializer.extend(constant_initializers)
    graph = cleaned.graph
    del cleaned.metadata_props[:], graph.value_info[:]
    for part in (cleaned, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.doc_string = ""
        if hasattr(part, "metadata_props"):
            del part.metadata_props[:]
    return without_unread(cleaned)


def _constant_initializer(node: NodeProto) -> TensorProto:
    constant = helper.get_attribute_value(node.attribute[0])
    array = numpy_helper.to_array(constant) if isinstance(constant, TensorProto) else np.asarray(constant)
    if array.dtype == np.float64:  # a bare Python float; value_float is float32 by the specification
        array = array.astype(np.float32)
    return numpy_helper.from_array(array, node.output[0])


def global_average_pool(model: ModelProto) -> ModelProto:
    """Replace ReduceMean over H and W by GlobalAveragePool, with a Flatten if the axes are dropped.

    Runtimes have an int8 kernel for GlobalAveragePool and none for ReduceMean.
    """
    initializers, ranks = constants(model), _ranks(model)

    def replace(node: NodeProto) -> list[NodeProto]:
        if node.op_type != "ReduceMean" or _axes(node, initializers, ranks.get(node.input[0])) != SPATIAL:
            return [node]
        pooled = node.output[0] if attribute(node, "keepdims", 1) else f"{node.output[0]}_pooled"
        pool = helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=f"{node.name}_pool")
        if pooled == node.output[0]:
            return [pool]
        return [pool, helper.make_node("Flatten", [pooled], [node.output[0]], name=f"{node.name}_flatten", axis=1)]

    return _rewrite(model, replace)


def split_hard_swish(model: ModelProto) -> ModelProto:
    """Replace HardSwish(x), which has no int8 kernel, by x * HardSigmoid(x), where both operators have one."""

    def replace(node: NodeProto) -> list[NodeProto]:
        if node.op_type != "HardSwish":
            return [node]
        gate = f"{node.output[0]}_gate"
        hard_sigmoid = helper.make_node(
            "HardSigmoid", [node.input[0]], [gate], name=f"{node.name}_gate", alpha=1 / 6, beta=0.5
        )
        return [hard_sigmoid, helper.make_node("Mul", [node.input[0], gate], list(node.output), name=node.name)]

    return _rewrite(model, replace)


def hard_gated(model: ModelProto) -> set[str]:
    """Tensors x that are read only by HardSigmoid(x) and its product with x; their values below -3 have no effect."""
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    gates = {node.input[0]: node.output[0] for node in model.graph.node if is_hard_sigmoid(node)}
    return {
        name
        for name, gate in gates.items()
        if all(
            node.op_type == "HardSigmoid" or (node.op_type == "Mul" and gate in node.input) for node in readers[name]
        )
    }


def is_hard_sigmoid(node: NodeProto) -> bool:
    """Whether a node is torch's HardSigmoid, x / 6 + 1 / 2 (ONNX's default is x / 5 + 1 / 2)."""
    if node.op_type != "HardSigmoid":
        return False
    coefficients = {proto.name: proto.f for proto in node.attribute}
    return bool(abs(coefficients.get("alpha", 0.2) - 1 / 6) < 1e-6 and coefficients.get("beta", 0.5) == 0.5)


def _ranks(model: ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    return {
        value_info.name: len(value_info.type.tensor_type.shape.dim)
        for value_info in (*inferred.input, *inferred.value_info)
    }


def layer_macs(model: ModelProto, names: Collection[str]) -> dict[str, float]:
    """Multiply-accumulates of one image in the named layers; without known shapes, the size of a layer's weights."""
    weights, inferred = constants(model), onnx.shape_inference.infer_shapes(model).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.output)
    }

    def macs(node: NodeProto) -> float:
        positions = [size for size in shapes.get(node.output[0], ())[2:] if size] if node.op_type == "Conv" else []
        return float(weights[node.input[1]].size * math.prod(positions))

    return {node.name: macs(node) for node in model.graph.node if node.name in names}


def attribute(node: NodeProto, name: str, default: int) -> int:
    """An integer attribute of a node, or `default`."""
    return next((int(proto.i) for proto in node.attribute if proto.name == name), default)


def _axes(node: NodeProto, initializers: dict[str, np.ndarray], rank: int | None) -> set[int]:
    """The reduced axes of a 4-D tensor, non-negative; empty for another rank. An input from opset 18 on."""
    listed = next((list(proto.ints) for proto in node.attribute if proto.name == "axes"), [])
    if len(node.input) > 1 and node.input[1] in initializers:
        listed = initializers[node.input[1]].tolist()
    return {axis % 4 for axis in listed} if rank == 4 else set()


def preprocessing(model: ModelProto) -> list[str]:
    """Names of the nodes before the first weighted node or Q/DQ pair: the normalization, float in every graph."""
    names: list[str] = []
    for node in model.graph.node:
        if node.op_type in (*WEIGHTED, "QuantizeLinear", "DequantizeLinear"):
            return names
        names.append(node.name)
    return names


def not_float(model: ModelProto, floats: Collection[int] = (TensorProto.FLOAT,)) -> set[str]:
    """Activations of a known type other than `floats`: shapes, counts, masks."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    return {
        value_info.name
        for value_info in (*inferred.input, *inferred.value_info, *inferred.output)
        if value_info.type.tensor_type.elem_type not in (TensorProto.UNDEFINED, *floats)
    }


def drop_later_attributes(model: ModelProto, earlier_opset: int) -> None:
    """Remove attributes, in place, that the graph's opset does not know and that had their default in an earlier one.

    onnx's version converter leaves them: `noop_with_empty_axes` of a reduction makes the graph invalid.
    """
    for node in model.graph.node:
        if node.domain:
            continue
        allowed = onnx.defs.get_schema(node.op_type, opset(model)).attributes
        defaults = onnx.defs.get_schema(node.op_type, earlier_opset).attributes
        kept = [
            proto
            for proto in node.attribute
            if proto.name in allowed
            or proto.name not in defaults
            or helper.get_attribute_value(proto) != helper.get_attribute_value(defaults[proto.name].default_value)
        ]
        del node.attribute[:]
        node.attribute.extend(kept)


def depths(model: ModelProto) -> dict[str, int]:
    """Length of the longest path from the input to each tensor; ONNX guarantees topologically ordered nodes."""
    depths: dict[str, int] = {}
    for node in model.graph.node:
        depth = 1 + max((depths.get(name, 0) for name in node.input), default=0)
        depths.update(dict.fromkeys(node.output, depth))
    return depths


def opset(model: ModelProto) -> int:
    """The version of the ONNX operator set of a graph."""
    return next(
        int(operator_set.version) for operator_set in model.opset_import if operator_set.domain in ("", "ai.onnx")
    )
