"""The step `engines`: an installed or missing builder, a change of GPUs, and a graph that does not build."""

from __future__ import annotations

import pytest

from edgedistill.export import engines, rtx_builder
from edgedistill.measurements import Engine
from edgedistill.records import OnnxModel
from edgedistill.run.files import read_json, read_record, sha256_file
from tests.helpers import miniature
from tests.helpers.miniature import Project


def executed_steps(project: Project, *arguments: str) -> list[str]:
    """Run the project and list the steps that were executed."""
    outcome = miniature.call("run", project.recipe, "--runs", project.runs, *arguments)
    assert outcome.code == 0, outcome.err
    return [line.split()[0] for line in outcome.err.splitlines() if " done in " in line]


def engine_files(project: Project) -> set[str]:
    return {path.name for path in (project.run / "engines").iterdir()}


def test_engines_are_built_once_builder_is_installed(project_copy: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str]] = []

    def build(graph: object, model: OnnxModel, capability: str, folder: object) -> Engine:
        calls.append((model.name, capability))
        return Engine(
            artefact=model.name,
            onnx_sha256=model.sha256,
            capability=capability,
            builder=rtx_builder.version(),
            batch=1,
            seconds=0.1,
            failed="odd operator",
        )

    monkeypatch.setattr(engines, "build", build)
    monkeypatch.setattr(rtx_builder, "version", lambda: "")
    assert (
        set(executed_steps(project_copy)) <= {"engines", "report"}
        and engine_files(project_copy) == {"none.json"}
        and not calls
    )
    assert executed_steps(project_copy) == []
    assert "tensorrt-rtx is not installed: pip install" in miniature.call("report", project_copy.run).out
    monkeypatch.setattr(rtx_builder, "version", lambda: "a builder 1")
    assert executed_steps(project_copy) == ["engines", "report"]
    assert calls == [("fp32", "sm89"), ("fp16", "sm89"), ("int8-tensorrt", "sm89")]
    assert engine_files(project_copy) == {f"{name}.sm89.json" for name in ("fp32", "fp16", "int8-tensorrt")}
    # a graph that does not build becomes a warning
    warned = read_json(project_copy.run / "report.json")["warnings"]
    assert "engines: int8-tensorrt for sm89 does not build: odd operator" in warned
    assert executed_steps(project_copy) == []
    monkeypatch.setattr(rtx_builder, "version", lambda: "a builder 2")
    assert executed_steps(project_copy) == ["engines", "report"]


def test_change_of_gpus_reruns_only_engines(project_copy: Project) -> None:
    assert executed_steps(project_copy, "--set", "export.engines=[]") == ["engines", "report"]
    assert read_json(project_copy.run / "engines/none.json") == {"why": "export.engines is empty"}
    outcome = miniature.call("check", project_copy.recipe, "--set", "export.engines=[sm90]")
    assert outcome.code == 2 and "export.engines" in outcome.err and "sm89" in outcome.err


def test_engine_records_name_their_graphs(finished_project: Project) -> None:
    if not rtx_builder.version():
        pytest.skip("tensorrt-rtx is not installed (extra rtx)")
    folder = finished_project.run
    models = [
        OnnxModel(**record) for name in ("export", "quantize") for record in read_json(folder / name / "models.json")
    ]
    for model in models:
        path = folder / f"engines/{model.name}.sm89.json"
        assert path.is_file() == (model.target != "cpu")
        if path.is_file():
            engine = read_record(path, Engine)
            assert (
                engine.failed == "" and engine.onnx_sha256 == model.sha256 and engine.builder == rtx_builder.version()
            )
            assert sha256_file(folder / "engines" / engine.path) == engine.sha256
            assert engine.layers is not None and set(engine.layers.weighted.values()) == {model.precision}
    assert "no evidence of what TensorRT fuses" in " ".join(miniature.call("report", folder).out.split())
