"""Engines built ahead of time: what is read off a log, what a missing or crashing builder means, and real builds."""

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
from edgedistill.export import calibrate, engines, graphs, qdq, rtx_builder
from edgedistill.records import Engine, EngineLayers, OnnxModel
from edgedistill.run.files import read_json, read_record, sha256_file, write_record
from tests.helpers.export_nets import Exported
from tests.helpers.small_graphs import chain, model_of

Ranged = tuple[ModelProto, dict[str, calibrate.Range]]
FP32 = OnnxModel(
    path="graph.onnx", sha256="f" * 64, precision="fp32", target="any", opset=20, parent_sha256="", size_mb=0.1
)
INT8 = replace(FP32, precision="int8", target="tensorrt")


def tensor(datatype: str) -> str:
    return (
        f"{{ Name: t, Dimensions: [1,2,4,4], Strides: [32,16,4,1], Datatype: {datatype}, Format: (Linear) Row major }}"
    )


def line(name: str, kind: str, reads: str, holds: str, makes: str, *nodes: str, between: str = "") -> str:
    """A layer as a verbose build log lists it; types are given by their names, parted by spaces."""
    inputs, constants, outputs = (", ".join(map(tensor, one.split())) for one in (reads, holds, makes))
    held = f"Constants: [ {constants} ], " if constants else ""
    metadata = between.join(f"[ONNX Layer: {node}]" for node in nodes)
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [ {inputs} ], {held}Outputs: [ {outputs} ], "
        f"TacticName: __myl_x, StreamId: 0, Metadata: {metadata}"
    )


def log_of(*lines: str) -> str:
    head = ["[01/02/2026-03:04:05] [TRT] [V] Parsing node: Conv0 [Conv]", "[01/02/2026-03:04:05] [TRT] [V] Layers:"]
    tail = ["", "I/O Tensors:", " Name: x, IOMode: Input, DataType: Float, Dimensions: [1,2,4,4]", ""]
    return "\n".join([*head, *lines, *tail])


@pytest.mark.parametrize(
    ("kind", "reads", "holds", "makes", "precision"),
    [
        ("correlation", "Int8", "Int8 Float Float", "Float", "int8"),  # its scales are float, its sums are rescaled
        ("correlation", "Int8 Float", "Int8 Float", "Float", "int8"),  # a residual is added to it
        ("gemm", "Int8 Int8", "Float", "Half", "int8"),
        ("maxpool", "Int8", "", "Int8", "int8"),
        ("correlation", "Half", "Half Float", "Half", "fp16"),
        ("runtime_fusion", "Float", "Float", "Float", "fp32"),
        ("correlation", "Int8 Half", "Half", "Half", "fp16"),  # int8 that is no factor
        ("kgen", "Int8 Float", "Float", "Int8", "fp32"),
        ("kgen", "Int8", "Half", "Int8", "fp16"),  # int8 in, int8 out, and float in between
        ("kgen", "Int8", "", "Int8", "int8"),  # only moved
        ("kgen", "Half", "Float", "Half", "fp32"),
        ("correlation", "Half", "", "Float", "fp16"),
        ("copy", "UInt8", "", "UInt8", "unknown"),
    ],
)
def test_a_layer_has_the_precision_that_it_multiplies_in(
    kind: str, reads: str, holds: str, makes: str, precision: str
) -> None:
    (layer,) = engines.layers(log_of(line("a", kind, reads=reads, holds=holds, makes=makes)))
    assert (layer.kind, layer.precision) == (kind, precision)


def test_layers_are_read_whatever_parts_their_nodes() -> None:
    # by nothing, by the unit separator, and by the record separator, which str.splitlines takes for an end of line
    lines = [
        line(f"l{at}", "gemm", "Half", "", "Half", "n.1", "m/2", between=by)
        for at, by in enumerate(("", "\x1f", "\x1e"))
    ]
    found = engines.layers(log_of(*lines, "Name: s, LayerType: wait, Inputs: [ ], Outputs: [ ], Metadata: "))
    assert [(one.name, one.nodes) for one in found] == [(f"l{at}", ("n.1", "m/2")) for at in range(3)]


def test_a_log_without_layers_says_nothing() -> None:
    assert engines.layers("") == engines.layers(log_of()) == []
    assert engines.findings(log_of(), chain("Conv", "Relu")) is None


def quantized() -> ModelProto:
    """Conv0 and Conv2 for TensorRT: x and t1 have pairs, and the two weights a DequantizeLinear each."""
    ranges = dict.fromkeys(("x", "t1"), (-1.0, 1.0))
    return qdq.int8_graph(chain("Conv", "Relu", "Conv"), ranges, "tensorrt")


def test_findings_by_hand() -> None:
    graph = quantized()
    log = log_of(
        line("k0", "kgen", "Float", "Float", "Int8", "x_q"),
        line("c0", "correlation", "Int8", "Int8 Float", "Float", "Conv0", "x_dq", "w0_dq"),
        line("k1", "kgen", "Float", "Float", "Int8", "Conv0", "Relu1", "t1_q"),
        line("c2", "correlation", "Half", "Half", "Half", "Conv2", "w2_dq"),
    )
    assert engines.findings(log, graph) == EngineLayers(
        total=4,
        types={"fp32": 2, "fp16": 1, "int8": 1, "unknown": 0},
        weighted={"Conv0": "int8", "Conv2": "fp16"},
        pairs=4,
        unfused=("x_q",),  # alone in its kernel; t1_q has the activation beside it
        unknown=("t1_dq",),
    )
    known = engines.findings(log, graph)
    assert known is not None and known.share("int8") == 0.25


def test_a_product_inside_a_generated_kernel_is_no_int8() -> None:
    log = log_of(line("k", "kgen", "Int8", "Half", "Float", "Conv0", "Relu1"))
    known = engines.findings(log, quantized())
    assert known is not None and known.weighted == {"Conv0": "fp16", "Conv2": "unknown"}


@pytest.mark.parametrize(
    ("code", "said", "log", "wanted"),
    [
        (1, "In node 6: INVALID_NODE: no\n  such thing", "[T] [E] another", "such thing"),
        (1, rtx_builder.NOTHING, "[T] [V] a\n[T] [E] first\n[T] [E] no  profile\nb", "no profile"),
        (1, rtx_builder.NOTHING, "", rtx_builder.NOTHING),
        (-11, "", "[T] [E] bad", "the builder was ended by signal 11 after: bad"),
        (-9, "", "", "the builder was ended by signal 9"),
        (3, "", "", "the builder ended with exit code 3 and said nothing"),
    ],
)
def test_why_there_is_no_engine_is_one_line(code: int, said: str, log: str, wanted: str) -> None:
    assert engines.why(code, said, log) == wanted


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "graph.onnx"
    graphs.write(chain("Conv", "Relu", "Conv"), path)
    return path


def python(body: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An interpreter that runs `body` in the builder's place: its arguments are those of Python."""
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\nimport os, sys, time\nfrom pathlib import Path\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setattr(engines.sys, "executable", str(script))


def test_a_builder_that_crashes_ends_nothing_but_itself(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python("print('[T] [E] out of stack', flush=True); os.kill(os.getpid(), 11)", monkeypatch, tmp_path)
    found = engines.build(graph, FP32, "sm89", tmp_path / "engines")
    assert found.failed == "the builder was ended by signal 11 after: out of stack"
    assert (found.path, found.sha256, found.layers) == ("", "", None) and not (tmp_path / "engines").exists()


def test_a_builder_that_does_not_end_is_ended(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python("time.sleep(60)", monkeypatch, tmp_path)
    found = engines.build(graph, FP32, "sm89", tmp_path / "engines", timeout_s=0.5)
    assert found.failed == "the builder did not end within 0.5 s" and found.seconds < 30


def test_what_the_builder_leaves_is_entered(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_of(line("c0", "correlation", "Float", "Float", "Float", "Conv0", "Conv2"))
    python(
        f"Path(sys.argv[4]).write_bytes(b'plan'); print({log!r}); assert sys.argv[5] == 'sm86'", monkeypatch, tmp_path
    )
    found = engines.build(graph, FP32, "sm86", tmp_path / "engines")
    assert (found.failed, found.path, found.size_mb) == ("", "fp32.sm86.engine", 4e-6)
    assert found.onnx_sha256 == sha256_file(graph) and found.batch == 1
    assert found.sha256 == sha256_file(tmp_path / "engines" / found.path)
    assert found.layers is not None and found.layers.weighted == {"Conv0": "fp32", "Conv2": "fp32"}


def test_a_graph_for_the_cpu_never_reaches_the_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cpu.onnx"
    ranges = dict.fromkeys(("x", "t1"), (-1.0, 1.0))
    graphs.write(qdq.int8_graph(chain("Conv", "Relu", "Conv"), ranges, "cpu"), path)
    monkeypatch.setattr(engines, "_built", lambda *arguments: pytest.fail("it was built"))
    with pytest.raises(EdgeDistillError, match="uint8 instead of int8; TensorRT would misread it"):
        engines.build(path, INT8, "sm89", tmp_path)


def test_without_the_package_a_reason_stands_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtx_builder, "PACKAGE", "no-such-package")
    assert rtx_builder.version() == "" and engines.write([FP32], tmp_path, tmp_path / "engines", ["sm89"]) == []
    assert read_json(tmp_path / "engines/none.json") == {
        "why": "no-such-package is not installed: pip install 'edgedistill[rtx]'"
    }
    assert engines.write([FP32], tmp_path, tmp_path / "engines", []) == []
    assert read_json(tmp_path / "engines/none.json") == {"why": "export.engines is empty"}


def test_every_graph_but_the_cpus_for_every_capability(
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
    found = engines.write([FP32, cpu, INT8], tmp_path, tmp_path / "engines", ["sm120", "sm86"])
    names = [(one.artefact, one.capability) for one in found]
    assert names == [(name, sm) for name in ("fp32", "int8-tensorrt") for sm in ("sm120", "sm86")]
    for one in found:  # what does not build is entered as well
        assert read_record(tmp_path / f"engines/{one.artefact}.{one.capability}.json", Engine) == one
    assert len(list((tmp_path / "engines").iterdir())) == 4


def installed() -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed (extra rtx)")


def test_the_names_in_a_recipe_are_the_builders_own() -> None:
    from typing import get_args

    from edgedistill.recipe.schema import Capability

    installed()
    import tensorrt_rtx as trt

    known = {name.lower() for name in trt.ComputeCapability.__members__}
    assert set(get_args(Capability)) == known - {"none", "current"}


def real(tmp_path: Path, model: ModelProto, record: OnnxModel) -> Engine:
    path = tmp_path / "real.onnx"
    graphs.write(model, path)
    return engines.build(path, record, "sm89", tmp_path / "engines")


def test_a_real_build(ranged: Callable[[str], Ranged], tmp_path: Path) -> None:
    installed()
    float_graph, ranges = ranged("resnet")
    found = real(tmp_path, graphs.half(qdq.int8_graph(float_graph, ranges, "tensorrt")), INT8)
    assert found.failed == "" and found.builder == rtx_builder.version()
    path = tmp_path / "engines" / found.path
    assert path.stat().st_size == round(found.size_mb * 1e6) > 10_000
    known = found.layers
    assert known is not None and known.total == sum(known.types.values()) and known.types["unknown"] == 0
    weighted = [node.name for node in float_graph.graph.node if node.op_type in graphs.WEIGHTED]
    assert known.weighted == dict.fromkeys(weighted, "int8")
    assert known.unknown == () and known.pairs > len(weighted)
    again = real(tmp_path, graphs.half(qdq.int8_graph(float_graph, ranges, "tensorrt")), INT8)
    assert again.sha256 == found.sha256


def test_a_float_graph_really_builds_in_its_own_types(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    installed()
    model = onnx.load(exported("lite").path)
    for graph, precision in ((model, "fp32"), (graphs.half(model), "fp16")):
        known = real(tmp_path, graph, FP32).layers
        assert known is not None and set(known.weighted.values()) == {precision}
        assert known.types["int8"] == known.pairs == 0


def test_a_graph_that_the_parser_refuses_is_entered_with_its_words(tmp_path: Path) -> None:
    installed()
    unique = helper.make_node("LpPool", ["x"], ["y"], name="odd_one", kernel_shape=[2, 2], p=3)
    found = real(tmp_path, model_of([unique], [1, 2, 4, 4], [1, 2, 3, 3]), FP32)
    assert "odd_one" in found.failed and "\n" not in found.failed and found.layers is None


def test_the_record_is_plain_json(tmp_path: Path) -> None:
    layers = EngineLayers(total=3, types={"int8": 2}, weighted={"conv": "int8"}, pairs=4, unfused=("a_q",), unknown=())
    one = Engine(
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
    write_record(tmp_path / "one.json", one)
    assert read_record(tmp_path / "one.json", Engine) == one
    assert json.loads((tmp_path / "one.json").read_text())["layers"]["weighted"] == {"conv": "int8"}
    assert Counter(layers.weighted.values())["int8"] == 1 and np.isclose(layers.share("int8"), 2 / 3)
