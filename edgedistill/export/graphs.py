"""ONNX -> ONNX passes: a graph in, a new graph out, the argument untouched; of floats, before there are pairs.

A Q/DQ pair is QuantizeLinear followed by DequantizeLinear: where a backend may compute in int8.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgedistill.errors import EdgeDistillError
from edgedistill.run.files import atomic

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
    del result.graph.node[:], result.graph.value_info[:]
    result.graph.node.extend(nodes)
    return without_unread(result)


def without_unread(model: ModelProto) -> ModelProto:
    """The model itself, less the initializers that nobody reads."""
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
    return without_unread(result)


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
        pooled = node.output[0] if attribute(node, "keepdims", 1) else f"{node.output[0]}_pooled"
        pool = helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=f"{node.name}_pool")
        if pooled == node.output[0]:
            return [pool]
        return [pool, helper.make_node("Flatten", [pooled], [node.output[0]], name=f"{node.name}_flatten", axis=1)]

    return _rewrite(model, replace)


def split_hard_swish(model: ModelProto) -> ModelProto:
    """HardSwish(x) becomes x * HardSigmoid(x): two operators with int8 kernels for one without."""

    def replace(node: NodeProto) -> list[NodeProto]:
        if node.op_type != "HardSwish":
            return [node]
        gate = f"{node.output[0]}_gate"
        hard = helper.make_node("HardSigmoid", [node.input[0]], [gate], name=f"{node.name}_gate", alpha=1 / 6, beta=0.5)
        return [hard, helper.make_node("Mul", [node.input[0], gate], list(node.output), name=node.name)]

    return _rewrite(model, replace)


def hard_gated(model: ModelProto) -> set[str]:
    """Tensors x that nobody reads but HardSigmoid(x) and its product with x: what they hold below -3 is lost."""
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
    """Whether a node is torch's HardSigmoid, x / 6 + 1 / 2 (ONNX's own default is x / 5 + 1 / 2)."""
    if node.op_type != "HardSigmoid":
        return False
    given = {one.name: one.f for one in node.attribute}
    return bool(abs(given.get("alpha", 0.2) - 1 / 6) < 1e-6 and given.get("beta", 0.5) == 0.5)


def half(model: ModelProto) -> ModelProto:
    """float16 from the first node with weights on; preprocessing and the logits stay float32.

    A strongly typed TensorRT network takes its precisions from the graph. The types of pairs follow: ONNX knows
    float16 there from opset 19 on.

    Raises:
        EdgeDistillError: a constant is beyond what float16 holds.
    """
    before, known = set(preprocessing(model)), constants(model)
    shallow = {name for node in model.graph.node if node.name in before for name in node.output} - not_float(model)
    outputs = {output.name for output in model.graph.output}
    halved: dict[str, TensorProto] = {}
    casts: dict[str, NodeProto] = {}

    def as_half(name: str) -> str:
        if name in outputs:
            return f"{name}_half"
        if name in known and known[name].dtype == np.float32:
            halved[name] = _halved(name, known[name])
        elif name in shallow:
            casts[name] = _cast(name, f"{name}_half", TensorProto.FLOAT16)
        else:
            return name
        return f"{name}_half"

    first, rest = [], []
    for node in model.graph.node:
        if node.name in before:
            first.append(node)
            continue
        rewired = copy.deepcopy(node)
        rewired.input[:] = [as_half(name) for name in node.input]
        rewired.output[:] = [f"{name}_half" if name in outputs else name for name in node.output]
        for attribute in rewired.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
        rest.append(rewired)
    back = [_cast(f"{name}_half", name, TensorProto.FLOAT) for name in sorted(outputs)]
    result = copy.deepcopy(model)
    del result.graph.node[:], result.graph.value_info[:]
    result.graph.node.extend([*first, *casts.values(), *rest, *back])
    result.graph.initializer.extend(halved.values())
    return without_unread(result)


def _cast(name: str, into: str, to: int) -> NodeProto:
    return helper.make_node("Cast", [name], [into], name=f"{into}_cast", to=to)


def _halved(name: str, array: np.ndarray) -> TensorProto:
    largest = float(np.abs(array).max(initial=0.0))
    if largest > float(np.finfo(np.float16).max):
        raise EdgeDistillError(
            f"constant {name} holds {largest:.3g}, more than float16 can", "set export.fp16 to false"
        )
    return numpy_helper.from_array(array.astype(np.float16), f"{name}_half")


def _ranks(model: ModelProto) -> dict[str, int]:
    shaped = onnx.shape_inference.infer_shapes(model).graph
    return {info.name: len(info.type.tensor_type.shape.dim) for info in (*shaped.input, *shaped.value_info)}


def attribute(node: NodeProto, name: str, default: int) -> int:
    """A whole-number attribute of a node."""
    return next((int(one.i) for one in node.attribute if one.name == name), default)


def _axes(node: NodeProto, known: dict[str, np.ndarray], rank: int | None) -> set[int]:
    """The reduced axes of a 4-D tensor, counted from 0, else none; an attribute, or from opset 18 on an input."""
    listed = next((list(one.ints) for one in node.attribute if one.name == "axes"), [])
    if len(node.input) > 1 and node.input[1] in known:
        listed = known[node.input[1]].tolist()
    return {axis % 4 for axis in listed} if rank == 4 else set()


def preprocessing(model: ModelProto) -> list[str]:
    """Names of the nodes before the first with weights, or the first pair: normalization, float in every graph."""
    names: list[str] = []
    for node in model.graph.node:
        if node.op_type in (*WEIGHTED, "QuantizeLinear", "DequantizeLinear"):
            return names
        names.append(node.name)
    return names


def not_float(model: ModelProto) -> set[str]:
    """Activations that are known to be no float32: shapes, counts, masks."""
    shown = onnx.shape_inference.infer_shapes(model).graph
    return {
        info.name
        for info in (*shown.input, *shown.value_info, *shown.output)
        if info.type.tensor_type.elem_type not in (TensorProto.UNDEFINED, TensorProto.FLOAT)
    }


def depths(model: ModelProto) -> dict[str, int]:
    """Length of the longest path from the input to each tensor; nodes are in topological order by the ONNX standard."""
    depths: dict[str, int] = {}
    for node in model.graph.node:
        depth = 1 + max((depths.get(name, 0) for name in node.input), default=0)
        depths.update(dict.fromkeys(node.output, depth))
    return depths


def opset(model: ModelProto) -> int:
    """The version of ONNX's own operators that a graph is written in."""
    return next(int(one.version) for one in model.opset_import if one.domain in ("", "ai.onnx"))
