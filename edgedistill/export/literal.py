"""A graph with float16 nodes in float32: the values that ONNX Runtime computes for it on an x86 CPU, twice as fast.

ONNX Runtime has few kernels for float16 there. It computes nodes in float32, drops the roundings between them, and
rounds to float16 before the kernels that it has; these (QuantizeLinear, and Clip before it) take one value at a time.
Here the whole graph is float32, and what QuantizeLinear reads is rounded to float16.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgedistill.export import graphs


def in_float32(model: ModelProto) -> ModelProto:
    """Rewrite the float16 part of a graph in float32, and dequantize its constant weights once; a copy."""
    constants = graphs.constants(model)
    halves = {name for name, array in constants.items() if array.dtype == np.float16}
    no_floats = graphs.not_float(model, floats=(TensorProto.FLOAT, TensorProto.FLOAT16))
    rewritten = copy.deepcopy(model)
    del rewritten.graph.node[:], rewritten.graph.value_info[:], rewritten.graph.initializer[:]
    folded: dict[str, np.ndarray] = {}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and set(node.input) <= constants.keys():
            folded[node.output[0]] = _dequantized(node, constants)
        else:
            rewritten.graph.node.extend(_rewritten(node, halves, no_floats))
    for name, array in {**constants, **folded}.items():
        floats = array.astype(np.float32) if array.dtype == np.float16 else array
        rewritten.graph.initializer.append(numpy_helper.from_array(floats, name))
    return graphs.without_unread(rewritten)


def is_quantized(model: ModelProto) -> bool:
    """Whether a graph has Q/DQ pairs."""
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def _dequantized(node: NodeProto, constants: dict[str, np.ndarray]) -> np.ndarray:
    """A constant weight, rounded to the type of its scale as DequantizeLinear does."""
    stored, scale = constants[node.input[0]], constants[node.input[1]]
    zero = constants[node.input[2]] if len(node.input) > 2 else np.zeros(scale.shape, stored.dtype)
    if scale.ndim:
        axis = graphs.attribute(node, "axis", 1) % stored.ndim
        shape = [-1 if dim == axis else 1 for dim in range(stored.ndim)]
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    values = (stored.astype(np.int64) - zero).astype(np.float32) * scale.astype(np.float32)
    return np.asarray(values.astype(scale.dtype))


def _rewritten(node: NodeProto, halves: set[str], no_floats: set[str]) -> Iterator[NodeProto]:
    if node.op_type == "Cast" and graphs.attribute(node, "to", 0) == TensorProto.FLOAT16:
        # a mask becomes numbers; between floats nothing is to be done
        kind, to = ("Cast", {"to": TensorProto.FLOAT}) if node.input[0] in no_floats else ("Identity", {})
        yield helper.make_node(kind, list(node.input), list(node.output), name=node.name, **to)
        return
    if node.op_type != "QuantizeLinear" or node.input[1] not in halves:
        yield _with_float_values(node)
        return
    half, rounded, quantize = f"{node.name}_half", f"{node.name}_rounded", copy.deepcopy(node)
    quantize.input[0] = rounded
    yield helper.make_node("Cast", [node.input[0]], [half], name=half, to=TensorProto.FLOAT16)
    yield helper.make_node("Cast", [half], [rounded], name=rounded, to=TensorProto.FLOAT)
    yield quantize


def _with_float_values(node: NodeProto) -> NodeProto:
    """The node with float32 in place of float16 in its own tensors, as of ConstantOfShape."""
    if not any(attribute.t.data_type == TensorProto.FLOAT16 for attribute in node.attribute):
        return node
    converted = copy.deepcopy(node)
    for attribute in converted.attribute:
        if attribute.t.data_type == TensorProto.FLOAT16:
            values = numpy_helper.to_array(attribute.t).astype(np.float32)
            attribute.t.CopyFrom(numpy_helper.from_array(values, attribute.t.name))
    return converted
