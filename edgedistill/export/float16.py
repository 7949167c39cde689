"""Float graph -> float16 graph for TensorRT; what float16 cannot hold, or an operator does not take, stays float32.

A strongly typed TensorRT network takes its precisions from the graph.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgedistill.export import calibrate, graphs

MAX = float(np.finfo(np.float16).max)
MARGIN = 2.0  # other images may have values as many times as large
PROBED_IMAGES = 16  # images on which the largest values are looked for
FLOAT_TYPE, HALF_TYPE = "tensor(float)", "tensor(float16)"
QDQ = ("QuantizeLinear", "DequantizeLinear")


def large_tensors(model: ModelProto, images_NHWC: np.ndarray) -> set[str]:
    """The tensors of a float graph that hold more than float16 can, on images, uint8 [N, px, px, 3].

    ONNX Runtime computes float16 in float32 on a CPU, so that running a float16 graph there does not show them.
    """
    not_float, skipped = graphs.not_float(model), set(graphs.preprocessing(model))
    names = [
        name
        for node in model.graph.node
        if node.name not in skipped
        for name in node.output
        if name and name not in not_float
    ]
    probed_NHWC = images_NHWC[:: max(1, len(images_NHWC) // PROBED_IMAGES)][:PROBED_IMAGES]
    peaks = calibrate.peaks(model, probed_NHWC, names)
    return {name for name, peak in peaks.items() if not peak * MARGIN <= MAX}


def half(model: ModelProto, large: Collection[str] = ()) -> ModelProto:
    """Convert a graph to float16, except for its preprocessing and its outputs, which stay float32.

    Nodes stay float32, too, if they read or write a tensor of `large` or a constant beyond float16, or if their
    operator has no float16. Q/DQ pairs become float16, which ONNX allows from opset 19 on.
    """
    return _Converter(model, large).convert()


class _Converter:
    """The state of one conversion: which nodes and tensors are float32, and the casts between the two types."""

    def __init__(self, model: ModelProto, large: Collection[str]) -> None:
        self.model = model
        self.constants = graphs.constants(model)
        self.not_float = graphs.not_float(model)
        self.outputs = {output.name for output in model.graph.output}
        self.float_nodes = _float_nodes(model, large, self.constants)
        self.halved: dict[str, TensorProto] = {}
        self.casts: dict[str, NodeProto] = {}
        self.types = {entry.name: TensorProto.FLOAT for entry in model.graph.input if entry.name not in self.not_float}
        for node in model.graph.node:
            kind = TensorProto.FLOAT if node.name in self.float_nodes else TensorProto.FLOAT16
            self.types.update((name, kind) for name in node.output if name and name not in self.not_float)

    def convert(self) -> ModelProto:
        """The float16 graph."""
        nodes = [part for node in self.model.graph.node for part in self._convert(node)]
        back = [
            _cast(f"{name}_half", name, TensorProto.FLOAT)
            for name in sorted(self.outputs)
            if self.types.get(name) == TensorProto.FLOAT16
        ]
        half_model = copy.deepcopy(self.model)
        del half_model.graph.node[:], half_model.graph.value_info[:]
        half_model.graph.node.extend([*nodes, *back])
        half_model.graph.initializer.extend(self.halved.values())
        return graphs.without_unread(half_model)

    def _convert(self, node: NodeProto) -> Iterator[NodeProto]:
        """The casts before a node, and the node."""
        stays_float, before = node.name in self.float_nodes, set(self.casts)
        float_inputs = {position for position, takes in enumerate(_takes_half(node, self.model)) if not takes}
        rewired = copy.deepcopy(node)
        rewired.input[:] = [
            self._input(name, TensorProto.FLOAT if stays_float or position in float_inputs else TensorProto.FLOAT16)
            for position, name in enumerate(node.input)
        ]
        if not stays_float:
            rewired.output[:] = [self._stored(name) for name in node.output]
            if node.op_type == "ConstantOfShape" and not node.attribute:  # of float32 zeros
                rewired.attribute.append(helper.make_attribute("value", _half_tensor(np.zeros(1, np.float32), "")))
            for attribute in rewired.attribute:
                if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                    attribute.i = TensorProto.FLOAT16
                elif node.op_type == "ConstantOfShape" and attribute.t.data_type == TensorProto.FLOAT:
                    attribute.t.CopyFrom(_half_tensor(numpy_helper.to_array(attribute.t), attribute.t.name))
        yield from (cast for name, cast in self.casts.items() if name not in before)
        yield rewired

    def _stored(self, name: str) -> str:
        """The name under which a tensor is written: a float16 output of the graph is cast back at the end."""
        return f"{name}_half" if name in self.outputs and self.types.get(name) == TensorProto.FLOAT16 else name

    def _input(self, name: str, wanted_type: int) -> str:
        """The name of a constant or tensor in the type that a node reads."""
        if name in self.constants:
            if self.constants[name].dtype != np.float32 or wanted_type == TensorProto.FLOAT:
                return name
            self.halved[name] = _half_tensor(self.constants[name], f"{name}_half")
            return f"{name}_half"
        stored, stored_type = self._stored(name), self.types.get(name, wanted_type)
        if stored_type == wanted_type:
            return stored
        cast_name = f"{name}_{'float' if wanted_type == TensorProto.FLOAT else 'half'}"
        self.casts.setdefault(cast_name, _cast(stored, cast_name, wanted_type))
        return cast_name


def _float_nodes(model: ModelProto, large: Collection[str], constants: Mapping[str, np.ndarray]) -> set[str]:
    """Names of the nodes that stay float32."""
    names, large_names = set(graphs.preprocessing(model)), set(large)
    for node in model.graph.node:
        if node.op_type in QDQ and (node.input[0] in large_names or _peak(constants, node.input[1]) * 127 > MAX):
            large_names |= {node.input[0], *node.output}
    for node in model.graph.node:
        beyond = any(_peak(constants, name) > MAX for name in node.input)
        subgraphs = any(attribute.type == onnx.AttributeProto.GRAPH for attribute in node.attribute)
        if beyond or subgraphs or large_names & {*node.input, *node.output} or not _gives_half(node, model):
            names.add(node.name)
    readers: dict[str, set[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.name)
    # no cast between a DequantizeLinear and the node that it feeds, or the two are not fused
    return names | {
        node.name
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and readers.get(node.output[0], set()) <= names
    }


def _peak(constants: Mapping[str, np.ndarray], name: str) -> float:
    """The largest absolute value of a float32 constant; 0 for other tensors."""
    array = constants.get(name)
    return 0.0 if array is None or array.dtype != np.float32 else float(np.abs(array).max(initial=0.0))


def _schema(node: NodeProto, model: ModelProto) -> onnx.defs.OpSchema | None:
    domains = {entry.domain or "": entry.version for entry in model.opset_import}
    try:
        return onnx.defs.get_schema(node.op_type, domains.get(node.domain, 1), node.domain)
    except onnx.defs.SchemaError:
        return None


def _takes_half(node: NodeProto, model: ModelProto) -> list[bool]:
    """Whether each input of a node may be float16 where it may be float32: not the scales of a Resize."""
    schema = _schema(node, model)
    if schema is None:
        return [True] * len(node.input)
    last = len(schema.inputs) - 1  # the last one may be variadic
    return (
        [_has_half(schema.inputs[min(position, last)], schema) for position in range(len(node.input))]
        if last >= 0
        else []
    )


def _gives_half(node: NodeProto, model: ModelProto) -> bool:
    schema = _schema(node, model)
    return schema is None or all(_has_half(output, schema) for output in schema.outputs)


def _has_half(parameter: onnx.defs.OpSchema.FormalParameter, schema: onnx.defs.OpSchema) -> bool:
    # not parameter.types, which onnx 1.20 cannot convert; a type that is no parameter of the schema is written out
    allowed = {entry.type_param_str: entry.allowed_type_strs for entry in schema.type_constraints}
    types = allowed.get(parameter.type_str, [parameter.type_str])
    return FLOAT_TYPE not in types or HALF_TYPE in types


def _cast(name: str, into: str, to: int) -> NodeProto:
    return helper.make_node("Cast", [name], [into], name=f"{into}_cast", to=to)


def _half_tensor(array: np.ndarray, name: str) -> TensorProto:
    return numpy_helper.from_array(array.astype(np.float16), name)
