"""The reader of ONNX bytes against graphs written by the onnx package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgedistill.agent import graph_types
from edgedistill.agent.graph_types import GraphTypes
from edgedistill.agent.job import AgentError
from tests.helpers import tiny_onnx

POINTS: dict[str, Any] = {"int8": np.int8(0), "uint8": np.uint8(0), "uint16": np.uint16(0), "int16": np.int16(0)}


def pair(point: Any, as_node: bool = False, **attributes: Any) -> bytes:
    """Return one Q/DQ pair around x; its zero point is an initializer, a Constant node, or absent if None."""
    point_inputs = [] if point is None else ["point"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", *point_inputs], ["small"], **attributes),
        helper.make_node("DequantizeLinear", ["small", "step", *point_inputs], ["y"]),
    ]
    constants = [numpy_helper.from_array(np.float32(1.0), "step")]
    if point is not None and as_node:
        nodes.insert(0, helper.make_node("Constant", [], ["point"], value=numpy_helper.from_array(np.asarray(point))))
    elif point is not None:
        constants.append(numpy_helper.from_array(np.asarray(point), "point"))
    return serialized(nodes, constants)


def serialized(nodes: list[Any], constants: list[Any]) -> bytes:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "tiny", values[:1], values[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    model.doc_string = "fields that the reader skips: " + "x" * 300
    return model.SerializeToString()  # type: ignore[no-any-return]


@pytest.mark.parametrize("as_node", [False, True])
@pytest.mark.parametrize("kind", POINTS)
def test_zero_point_type_is_read(kind: str, as_node: bool) -> None:
    actual = graph_types.read(pair(POINTS[kind], as_node))
    unsigned = (f"small to {kind}", f"x to {kind}") if kind.startswith("uint") else ()
    assert actual == GraphTypes(quantized=True, half=False, unsigned=unsigned)


def test_missing_zero_point_means_uint8_unless_node_sets_type() -> None:
    assert graph_types.read(pair(None)).unsigned == ("x to uint8",)
    assert graph_types.read(pair(None, output_dtype=TensorProto.INT8)).unsigned == ()
    assert graph_types.read(pair(None, output_dtype=TensorProto.UINT8)).unsigned == ("x to uint8",)


def test_uint8_weights_are_read() -> None:
    nodes = [helper.make_node("DequantizeLinear", ["weights", "step"], ["y"])]
    step = numpy_helper.from_array(np.float32(1.0), "step")
    for kind, unsigned in ((np.uint8, ("weights to uint8",)), (np.int8, ())):
        weights = numpy_helper.from_array(np.ones((1, 4), kind), "weights")
        assert graph_types.read(serialized(nodes, [step, weights])).unsigned == unsigned


def test_uint8_without_quantization_is_accepted(tmp_path: Path) -> None:
    for precision in ("fp32", "fp16", "int8"):
        actual = graph_types.read(tiny_onnx.write(tmp_path / "m.onnx", precision).read_bytes())
        assert actual == GraphTypes(precision == "int8", precision == "fp16", ())
    look_up = numpy_helper.from_array(np.arange(4, dtype=np.uint8), "table")
    nodes = [
        helper.make_node("Cast", ["table"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "floats"], ["y"]),
    ]
    assert graph_types.read(serialized(nodes, [look_up])) == GraphTypes(False, False, ())


def test_file_that_is_not_onnx_is_refused() -> None:
    model_bytes = pair(np.int8(0))
    overlong_field, unknown_field = b"\x3a\xff\xff\xff\xff\x7f", b"\x3b"
    for junk in (
        b"",
        b"junk",
        b"\x08\x07",
        model_bytes[: len(model_bytes) // 2],
        overlong_field + model_bytes,
        unknown_field + model_bytes,
    ):
        with pytest.raises(AgentError, match=r"^is not an ONNX file; ship the bundle again"):
            graph_types.read(junk)


def test_target_is_read_from_metadata() -> None:
    model = onnx.load_model_from_string(pair(np.int8(0)))
    assert graph_types.target(model.SerializeToString()) == "any"
    helper.set_model_props(model, {"author": "somebody", graph_types.TARGET: "tensorrt"})
    model_bytes = model.SerializeToString()
    assert graph_types.target(model_bytes) == "tensorrt"
    assert {graph_types.target(model_bytes[:end]) for end in range(len(model_bytes))} == {"any"}
    assert graph_types.target(b"junk") == "any"


def test_truncated_file_is_refused_or_read_completely() -> None:
    model_bytes = pair(np.uint8(0))
    for end in range(len(model_bytes)):
        try:
            actual = graph_types.read(model_bytes[:end])
        except AgentError:
            continue
        # only fields after the graph may be missing
        assert actual == graph_types.read(model_bytes), end
    assert onnx.load_model_from_string(model_bytes).graph.name == "tiny"
