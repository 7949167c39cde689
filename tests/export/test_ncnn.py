"""The graph for ncnn: converted by the real pnnx, run by the real ncnn, compared with the fp32 graph."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgedistill.agent import backends
from edgedistill.agent.job import AgentError
from edgedistill.agent.ncnn import PARAM, WEIGHTS
from edgedistill.errors import EdgeDistillError, GateError, InputError
from edgedistill.export import ncnn
from edgedistill.export.infer import predict_onnx
from edgedistill.export.onnx import export
from edgedistill.recipe.schema import Export
from edgedistill.records import OnnxModel
from tests.helpers.export_nets import SPEC, build, pictures


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, OnnxModel]:
    """An exported MobileNetV3, with hard-swish and squeeze-excite."""
    path = tmp_path_factory.mktemp("ncnn") / "student.fp32.onnx"
    return path, export(build("mnv3"), SPEC, path=path, images_NHWC=pictures(4), settings=Export())


def converted(graph: tuple[Path, OnnxModel], folder: Path, settings: Export | None = None) -> OnnxModel:
    pytest.importorskip("ncnn", reason="needs the extra `ncnn`")
    pytest.importorskip("pnnx", reason="needs the extra `ncnn`")
    return ncnn.convert(*graph, images_NHWC=pictures(8), folder=folder, settings=settings or Export())


def test_converted_graph_answers_as_the_fp32_graph(graph: tuple[Path, OnnxModel], tmp_path: Path) -> None:
    model = converted(graph, tmp_path)
    assert (model.name, model.target, model.parent_sha256) == ("fp32-ncnn", "ncnn", graph[1].sha256)
    assert sorted(path.name for path in tmp_path.iterdir()) == [model.path], "what pnnx leaves is removed"
    images_NHWC = pictures(8)
    expected_NC = predict_onnx(graph[0], images_NHWC)
    backend = backends.create("ncnn")
    backend.build(tmp_path / model.path, 1)
    logits_NC = backend.infer(images_NHWC)
    np.testing.assert_allclose(logits_NC, expected_NC, atol=1e-3 * np.abs(expected_NC).max())
    assert model.parity["ncnn agreement"] == 1.0 and model.parity["ncnn-half agreement"] >= 0.5
    assert backend.facts()["storage"] == "fp32" and backend.facts()["layers"] > 10
    again = converted(graph, tmp_path)
    assert again.sha256 == model.sha256, "the same graph gives the same bytes"


def test_gate_refuses_another_function(graph: tuple[Path, OnnxModel], tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"engines: ncnn gives .* of the fp32 graph's labels"):
        converted(graph, tmp_path, Export(max_relative_error=1e-12))


def test_other_node_that_reads_the_images_first_is_no_obstacle(graph: tuple[Path, OnnxModel], tmp_path: Path) -> None:
    """Attention over a batch begins with the shape of its images."""
    model = onnx.load(graph[0])
    model.graph.node.insert(0, onnx.helper.make_node("Shape", [model.graph.input[0].name], ["unread"], name="first"))
    path = tmp_path / "graph.onnx"
    onnx.save(model, path)
    assert converted((path, graph[1]), tmp_path).parity["ncnn agreement"] == 1.0


def test_answers_of_another_shape_are_refused(
    graph: tuple[Path, OnnxModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ncnn, "_logits", lambda *_: np.zeros(8, dtype=np.float32))
    with pytest.raises(GateError, match=r"logits of shape \[8\] instead of \[8, \d+\]"):
        converted(graph, tmp_path)


def test_missing_converter_names_the_extra(
    graph: tuple[Path, OnnxModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ncnn, "version", lambda: "")
    with pytest.raises(InputError, match="pnnx is not installed") as caught:
        ncnn.convert(*graph, images_NHWC=pictures(1), folder=tmp_path, settings=Export())
    assert "edgedistill[ncnn]" in str(caught.value.fix)


def test_graph_that_is_not_ours_is_refused(tmp_path: Path, graph: tuple[Path, OnnxModel]) -> None:
    pytest.importorskip("pnnx", reason="needs the extra `ncnn`")
    model = onnx.load(graph[0])
    del model.graph.node[0]
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(EdgeDistillError, match="has no Cast of its images"):
        ncnn.convert(tmp_path / "other.onnx", graph[1], images_NHWC=pictures(1), folder=tmp_path, settings=Export())


def test_other_files_are_refused_with_the_fix(tmp_path: Path) -> None:
    pytest.importorskip("ncnn", reason="needs the extra `ncnn`")
    (tmp_path / "a.onnx").write_bytes(b"no archive")
    with pytest.raises(AgentError, match=r"a\.onnx: is not a graph for ncnn .*export\.ncnn"):
        backends.create("ncnn").build(tmp_path / "a.onnx", 1)
    for name, content in (("empty.zip", {}), ("odd.zip", {PARAM: b"no parameters", WEIGHTS: b""})):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for member, text in content.items():
                archive.writestr(member, text)
        with pytest.raises(AgentError, match=f"{name}: "):
            backends.create("ncnn").build(tmp_path / name, 1)
