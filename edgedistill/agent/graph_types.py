"""Which types an ONNX file quantizes to, read from its bytes: devices have no onnx package.

TensorRT's own network cannot be asked: its parser turns a zero point of uint8 that is 0 into one of int8 without a
word, and the logits are wrong. Protocol buffers are read as protobuf.dev/programming-guides/encoding says, fields as
onnx.proto numbers them. What lies in subgraphs (If, Loop) is not looked at.
"""

from __future__ import annotations

from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple, Union

from .job import AgentError

Value = Union[int, memoryview]

FLOAT16, UINT8 = 10, 2  # TensorProto.DataType
UNSIGNED = {UINT8: "uint8", 4: "uint16", 21: "uint4"}
PAIRS = ("QuantizeLinear", "DequantizeLinear")
GRAPH, METADATA = 7, 14  # of ModelProto
KEY, VALUE = 1, 2  # of StringStringEntryProto
TARGET = "target"  # the key of a graph's metadata that names whose int8 arithmetic it is made for
NODE, INITIALIZER = 1, 5  # of GraphProto
INPUT, OUTPUT, OP_TYPE, ATTRIBUTE = 1, 2, 4, 5  # of NodeProto
ATTRIBUTE_NAME, ATTRIBUTE_INT, ATTRIBUTE_TENSOR = 1, 3, 5  # of AttributeProto
DATA_TYPE, TENSOR_NAME = 2, 8  # of TensorProto


class GraphTypes(NamedTuple):
    """`unsigned`: tensors on which Q or DQ nodes stand with a type that TensorRT has not: "conv1_out to uint8"."""

    quantized: bool
    half: bool
    unsigned: Tuple[str, ...]


class _Node(NamedTuple):
    operator: str
    inputs: List[str]
    outputs: List[str]
    numbers: Dict[str, int]
    tensor: Optional[int]


def read(onnx: bytes) -> GraphTypes:
    """The types in an ONNX file.

    Raises:
        AgentError: exit code 2; it is not an ONNX file.
    """
    try:
        graph = next(value for number, value in _fields(memoryview(onnx)) if number == GRAPH)
        parts = list(_fields(_bytes(graph)))
        nodes = [_node(_bytes(value)) for number, value in parts if number == NODE]
        known = dict(_tensor(_bytes(value)) for number, value in parts if number == INITIALIZER)
    except (ValueError, IndexError, StopIteration):
        raise AgentError("is not an ONNX file; ship the bundle again") from None
    known.update({node.outputs[0]: node.tensor for node in nodes if node.tensor is not None})
    pairs = {(_quantized_to(node, known), node.inputs[0]) for node in nodes if node.operator in PAIRS}
    return GraphTypes(
        quantized=bool(pairs),
        half=FLOAT16 in known.values() or any(node.numbers.get("to") == FLOAT16 for node in nodes),
        unsigned=tuple(sorted(f"{name} to {UNSIGNED[kind]}" for kind, name in pairs if kind in UNSIGNED)),
    )


def target(onnx: bytes) -> str:
    """Whose int8 arithmetic a graph is made for, by its metadata: "cpu" or "tensorrt"; "any" where they name none."""
    try:
        metadata = [dict(_fields(_bytes(value))) for number, value in _fields(memoryview(onnx)) if number == METADATA]
        entries = {_text(entry[KEY]): _text(entry[VALUE]) for entry in metadata}
    except (ValueError, IndexError, KeyError):  # not an ONNX file; the runtime says so
        return "any"
    return entries.get(TARGET, "any")


def _quantized_to(node: _Node, known: Dict[str, int]) -> int:
    """The type on the quantized side of a Q or DQ node, 0 where only the node before it says."""
    zero_point = node.inputs[2] if len(node.inputs) > 2 else ""
    if zero_point:
        return known.get(zero_point, 0)
    if node.operator == "QuantizeLinear":
        return node.numbers.get("output_dtype") or UINT8  # the default of ONNX's specification
    return known.get(node.inputs[0], 0)


def _node(data: memoryview) -> _Node:
    operator, inputs, outputs = "", [], []
    numbers: Dict[str, int] = {}
    tensor = None
    for number, value in _fields(data):
        if number == INPUT:
            inputs.append(_text(value))
        elif number == OUTPUT:
            outputs.append(_text(value))
        elif number == OP_TYPE:
            operator = _text(value)
        elif number == ATTRIBUTE:
            given = dict(_fields(_bytes(value)))
            if ATTRIBUTE_INT in given:
                numbers[_text(given[ATTRIBUTE_NAME])] = int(given[ATTRIBUTE_INT])
            if ATTRIBUTE_TENSOR in given:
                tensor = _tensor(_bytes(given[ATTRIBUTE_TENSOR]))[1]
    return _Node(operator, inputs, outputs, numbers, tensor if operator == "Constant" else None)


def _tensor(data: memoryview) -> Tuple[str, int]:
    given = dict(_fields(data))
    return _text(given.get(TENSOR_NAME, memoryview(b""))), int(given.get(DATA_TYPE, 0))


def _text(value: Value) -> str:
    return str(_bytes(value), "utf-8")


def _bytes(value: Value) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message should be")
    return value


def _fields(data: memoryview) -> Iterator[Tuple[int, Value]]:
    """Field number and value, in the order of the bytes; numbers with a fraction are left as their bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at + size > len(data):
            raise ValueError("cut short")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> Tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
        shift += 7
