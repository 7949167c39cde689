"""Engines built ahead of time: parsed build logs, missing or crashing builders, and real builds."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper

from edgedistill.errors import EdgeDistillError
from edgedistill.export import calibrate, engines, float16, graphs, qdq, rtx_builder
from edgedistill.measurements import Engine, EngineLayers
from edgedistill.records import OnnxModel
from edgedistill.run.files import read_json, read_record, sha256_file, write_record
from tests.helpers.export_nets import Exported
from tests.helpers.small_graphs import chain, float_model

Ranged = tuple[ModelProto, dict[str, calibrate.Range]]
FP32 = OnnxModel(
    path="graph.onnx", sha256="f" * 64, precision="fp32", target="any", opset=20, parent_sha256="", size_mb=0.1
)
INT8 = replace(FP32, precision="int8", target="tensorrt")


def tensor_text(datatype: str) -> str:
    return (
        f"{{ Name: t, Dimensions: [1,2,4,4], Strides: [32,16,4,1], Datatype: {datatype}, Format: (Linear) Row major }}"
    )


def layer_line(
    name: str, kind: str, input_types: str, constant_types: str, output_types: str, *nodes: str, separator: str = ""
) -> str:
    """Return a layer as a verbose build log lists it; type names are separated by spaces."""
    inputs, constants, outputs = (
        ", ".join(map(tensor_text, types.split())) for types in (input_types, constant_types, output_types)
    )
    listed_constants = f"Constants: [ {constants} ], " if constants else ""
    metadata = separator.join(f"[ONNX Layer: {node}]" for node in nodes)
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [ {inputs} ], {listed_constants}Outputs: [ {outputs} ], "
        f"TacticName: __myl_x, StreamId: 0, Metadata: {metadata}"
    )


def build_log(*lines: str) -> str:
    head = ["[01/02/2026-03:04:05] [TRT] [V] Parsing node: Conv0 [Conv]", "[01/02/2026-03:04:05] [TRT] [V] Layers:"]
    tail = ["", "I/O Tensors:", " Name: x, IOMode: Input, DataType: Float, Dimensions: [1,2,4,4]", ""]
    return "\n".join([*head, *lines, *tail])


@pytest.mark.parametrize(
    ("kind", "input_types", "constant_types", "output_types", "precision"),
    [
        ("correlation", "Int8", "Int8 Float Float", "Float", "int8"),  # its scales are float, its sums are rescaled
        ("correlation", "Int8 Float", "Int8 Float", "Float", "int8"),  # a residual is added to it
        ("gemm", "Int8 Int8", "Float", "Half", "int8"),
        ("maxpool", "Int8", "", "Int8", "int8"),
        ("correlation", "Half", "Half Float", "Half", "fp16"),
        ("runtime_fusion", "Float", "Float", "Float", "fp32"),
        ("correlation", "Int8 Half", "Half", "Half", "fp16"),  # the int8 tensor is not multiplied
        ("kgen", "Int8 Float", "Float", "Int8", "fp32"),
        ("kgen", "Int8", "Half", "Int8", "fp16"),  # int8 input and output, float arithmetic
        ("kgen", "Int8", "", "Int8", "int8"),  # only moved
        ("kgen", "Half", "Float", "Half", "fp32"),
        ("correlation", "Half", "", "Float", "fp16"),
        ("copy", "UInt8", "", "UInt8", "unknown"),
    ],
)
def test_layer_precision_is_that_of_its_multiplications(
    kind: str, input_types: str, constant_types: str, output_types: str, precision: str
) -> None:
    (layer,) = engines.parse_layers(
        build_log(
            layer_line("a", kind, input_types=input_types, constant_types=constant_types, output_types=output_types)
        )
    )
    assert (layer.kind, layer.precision) == (kind, precision)


def test_layers_are_read_with_every_node_separator() -> None:
    # no separator, the unit separator, and the record separator, which str.splitlines takes for an end of line
    lines = [
        layer_line(f"l{index}", "gemm", "Half", "", "Half", "n.1", "m/2", separator=separator)
        for index, separator in enumerate(("", "\x1f", "\x1e"))
    ]
    layers = engines.parse_layers(build_log(*lines, "Name: s, LayerType: wait, Inputs: [ ], Outputs: [ ], Metadata: "))
    assert [(layer.name, layer.nodes) for layer in layers] == [(f"l{index}", ("n.1", "m/2")) for index in range(3)]


def test_log_without_layers_gives_no_findings() -> None:
    assert engines.parse_layers("") == engines.parse_layers(build_log()) == []
    assert engines.engine_layers(build_log(), chain("Conv", "Relu")) is None


def quantized() -> ModelProto:
    """Return Conv0 and Conv2 for TensorRT: x and t1 have Q/DQ pairs, each weight has a DequantizeLinear."""
    ranges = dict.fromkeys(("x", "t1"), (-1.0, 1.0))
    return qdq.int8_graph(chain("Conv", "Relu", "Conv"), ranges, "tensorrt")


def test_findings_match_hand_count() -> None:
    graph = quantized()
    log = build_log(
        layer_line("k0", "kgen", "Float", "Float", "Int8", "x_q"),
        layer_line("c0", "correlation", "Int8", "Int8 Float", "Float", "Conv0", "x_dq", "w0_dq"),
        layer_line("k1", "kgen", "Float", "Float", "Int8", "Conv0", "Relu1", "t1_q"),
        layer_line("c2", "correlation", "Half", "Half", "Half", "Conv2", "w2_dq"),
    )
    assert engines.engine_layers(log, graph) == EngineLayers(
        total=4,
        types={"fp32": 2, "fp16": 1, "int8": 1, "unknown": 0},
        weighted={"Conv0": "int8", "Conv2": "fp16"},
        pairs=4,
        unfused=("x_q",),  # alone in its kernel; t1_q has the activation beside it
        unknown=("t1_dq",),
    )
    findings = engines.engine_layers(log, graph)
    assert findings is not None and findings.share("int8") == 0.25


def test_product_inside_generated_kernel_is_not_int8() -> None:
    log = build_log(layer_line("k", "kgen", "Int8", "Half", "Float", "Conv0", "Relu1"))
    findings = engines.engine_layers(log, quantized())
    assert findings is not None and findings.weighted == {"Conv0": "fp16", "Conv2": "unknown"}


@pytest.mark.parametrize(
    ("code", "message", "log", "expected"),
    [
        (1, "In node 6: INVALID_NODE: no\n  such thing", "[T] [E] another", "such thing"),
        (1, rtx_builder.NO_ENGINE, "[T] [V] a\n[T] [E] first\n[T] [E] no  profile\nb", "no profile"),
        (1, rtx_builder.NO_ENGINE, "", rtx_builder.NO_ENGINE),
        (-11, "", "[T] [E] bad", "the builder was ended by signal 11 after: bad"),
        (-9, "", "", "the builder was ended by signal 9"),
        (3, "", "", "the builder ended with exit code 3 and without a message"),
    ],
)
def test_build_failure_is_explained_in_one_line(code: int, message: str, log: str, expected: str) -> None:
    assert engines.failure_reason(code, message, log) == expected


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "graph.onnx"
    graphs.write(chain("Conv", "Relu", "Conv"), path)
    return path


def replace_interpreter(body: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Replace the interpreter that runs the builder by one that runs `body` with the same arguments."""
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\nimport os, sys, time\nfrom pathlib import Path\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setattr(engines.sys, "executable", str(script))


def test_crashed_builder_is_recorded_as_failure(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_interpreter("print('[T] [E] out of stack', flush=True); os.kill(os.getpid(), 11)", monkeypatch, tmp_path)
    engine = engines.build(graph, FP32, "sm89", tmp_path / "engines")
    assert engine.failed == "the builder was ended by signal 11 after: out of stack"
    assert (engine.path, engine.sha256, engine.layers) == ("", "", None) and not (tmp_path / "engines").exists()


def test_hanging_builder_is_stopped_after_timeout(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_interpreter("time.sleep(60)", monkeypatch, tmp_path)
    engine = engines.build(graph, FP32, "sm89", tmp_path / "engines", timeout_s=0.5)
    assert engine.failed == "the builder did not end within 0.5 s" and engine.seconds < 30


def test_built_engine_is_recorded(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = build_log(layer_line("c0", "correlation", "Float", "Float", "Float", "Conv0", "Conv2"))
    replace_interpreter(
        f"Path(sys.argv[4]).write_bytes(b'plan'); print({log!r}); assert sys.argv[5] == 'sm86'", monkeypatch, tmp_path
    )
    engine = engines.build(graph, FP32, "sm86", tmp_path / "engines")
    assert (engine.failed, engine.path, engine.size_mb) == ("", "fp32.sm86.engine", 4e-6)
    assert engine.onnx_sha256 == sha256_file(graph) and engine.batch == 1
    assert engine.sha256 == sha256_file(tmp_path / "engines" / engine.path)
    assert engine.layers is not None and engine.layers.weighted == {"Conv0": "fp32", "Conv2": "fp32"}


def test_cpu_graph_is_refused_before_building(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cpu.onnx"
    ranges = dict.fromkeys(("x", "t1"), (-1.0, 1.0))
    graphs.write(qdq.int8_graph(chain("Conv", "Relu", "Conv"), ranges, "cpu"), path)
    monkeypatch.setattr(engines, "run_builder", lambda *arguments: pytest.fail("it was built"))
    with pytest.raises(EdgeDistillError, match="uint8 instead of int8; TensorRT would misread it"):
        engines.build(path, INT8, "sm89", tmp_path)


def test_reason_is_written_when_builder_package_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtx_builder, "PACKAGE", "no-such-package")
    assert rtx_builder.version() == "" and engines.write([FP32], tmp_path, tmp_path / "engines", ["sm89"]) == []
    assert read_json(tmp_path / "engines/none.json") == {
        "why": "no-such-package is not installed: pip install 'edgedistill[rtx]'"
    }
    assert engines.write([FP32], tmp_path, tmp_path / "engines", []) == []
    assert read_json(tmp_path / "engines/none.json") == {"why": "export.engines is empty"}


def test_every_graph_except_cpu_is_built_for_every_capability(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(path: Path, model: OnnxModel, capability: str, folder: Path) -> Engine:
        assert path == graph
        why = "no" if capability == "sm120" else ""
        return Engine(
            artefact=model.name,
            onnx_sha256="o" * 64,
            capability=capability,
            builder="a builder 1",
            batch=1,
            seconds=0.5,
            failed=why,
        )

    monkeypatch.setattr(rtx_builder, "version", lambda: "a builder 1")
    monkeypatch.setattr(engines, "build", built)
    cpu = replace(FP32, precision="int8", target="cpu")
    built_engines = engines.write([FP32, cpu, INT8], tmp_path, tmp_path / "engines", ["sm120", "sm86"])
    names = [(engine.artefact, engine.capability) for engine in built_engines]
    assert names == [(name, sm) for name in ("fp32", "int8-tensorrt") for sm in ("sm120", "sm86")]
    for engine in built_engines:  # failed builds are recorded as well
        assert read_record(tmp_path / f"engines/{engine.artefact}.{engine.capability}.json", Engine) == engine
    assert len(list((tmp_path / "engines").iterdir())) == 4


def require_builder() -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed (extra rtx)")


def test_recipe_capabilities_match_builder_names() -> None:
    from typing import get_args

    from edgedistill.recipe.schema import Capability

    require_builder()
    import tensorrt_rtx as trt

    capabilities = {name.lower() for name in trt.ComputeCapability.__members__}
    assert set(get_args(Capability)) == capabilities - {"none", "current"}


def build_real(tmp_path: Path, model: ModelProto, record: OnnxModel) -> Engine:
    path = tmp_path / "real.onnx"
    graphs.write(model, path)
    return engines.build(path, record, "sm89", tmp_path / "engines")


def test_int8_graph_builds_in_int8(ranged: Callable[[str], Ranged], tmp_path: Path) -> None:
    require_builder()
    float_graph, ranges = ranged("resnet")
    engine = build_real(tmp_path, float16.half(qdq.int8_graph(float_graph, ranges, "tensorrt")), INT8)
    assert engine.failed == "" and engine.builder == rtx_builder.version()
    path = tmp_path / "engines" / engine.path
    assert path.stat().st_size == round(engine.size_mb * 1e6) > 10_000
    findings = engine.layers
    assert findings is not None and findings.total == sum(findings.types.values()) and findings.types["unknown"] == 0
    weighted = [node.name for node in float_graph.graph.node if node.op_type in graphs.WEIGHTED]
    assert findings.weighted == dict.fromkeys(weighted, "int8")
    assert findings.unknown == () and findings.pairs > len(weighted)
    repeated = build_real(tmp_path, float16.half(qdq.int8_graph(float_graph, ranges, "tensorrt")), INT8)
    assert repeated.sha256 == engine.sha256


def test_float_graph_builds_in_its_own_types(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    require_builder()
    model = onnx.load(exported("lite").path)
    for graph, precision in ((model, "fp32"), (float16.half(model), "fp16")):
        findings = build_real(tmp_path, graph, FP32).layers
        assert findings is not None and set(findings.weighted.values()) == {precision}
        assert findings.types["int8"] == findings.pairs == 0


def test_parser_error_is_recorded_in_one_line(tmp_path: Path) -> None:
    require_builder()
    node = helper.make_node("LpPool", ["x"], ["y"], name="odd_one", kernel_shape=[2, 2], p=3)
    engine = build_real(tmp_path, float_model([node], [1, 2, 4, 4], [1, 2, 3, 3]), FP32)
    assert "odd_one" in engine.failed and "\n" not in engine.failed and engine.layers is None


def test_engine_record_is_plain_json(tmp_path: Path) -> None:
    layers = EngineLayers(total=3, types={"int8": 2}, weighted={"conv": "int8"}, pairs=4, unfused=("a_q",), unknown=())
    engine = Engine(
        artefact="int8-tensorrt",
        onnx_sha256="a" * 64,
        capability="sm89",
        builder="a builder 1",
        batch=1,
        seconds=2.5,
        path="x.engine",
        sha256="b" * 64,
        size_mb=1.5,
        layers=layers,
    )
    write_record(tmp_path / "one.json", engine)
    assert read_record(tmp_path / "one.json", Engine) == engine
    assert json.loads((tmp_path / "one.json").read_text())["layers"]["weighted"] == {"conv": "int8"}
    assert Counter(layers.weighted.values())["int8"] == 1 and np.isclose(layers.share("int8"), 2 / 3)
