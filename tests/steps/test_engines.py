"""The step `engines`: a builder that comes or goes, other GPUs asked for, and a graph that does not build."""

from __future__ import annotations

import pytest

from edgedistill.export import engines, rtx_builder
from edgedistill.records import Engine, OnnxModel
from edgedistill.run.files import read_json, read_record, sha256_file
from tests.helpers import miniature
from tests.helpers.miniature import Project


def ran(project: Project, *arguments: str) -> list[str]:
    """The steps that had work to do."""
    said = miniature.call("run", project.recipe, "--runs", project.runs, *arguments)
    assert said.code == 0, said.err
    return [line.split()[0] for line in said.err.splitlines() if " done in " in line]


def files(project: Project) -> set[str]:
    return {path.name for path in (project.run / "engines").iterdir()}


def test_a_builder_that_is_installed_later_builds_then(copied: Project, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert set(ran(copied)) <= {"engines", "report"} and files(copied) == {"none.json"} and not calls
    assert ran(copied) == []
    assert "tensorrt-rtx is not installed: pip install" in miniature.call("report", copied.run).out
    monkeypatch.setattr(rtx_builder, "version", lambda: "a builder 1")
    assert ran(copied) == ["engines", "report"]
    assert calls == [("fp32", "sm89"), ("fp16", "sm89"), ("int8-tensorrt", "sm89")]
    assert files(copied) == {f"{name}.sm89.json" for name in ("fp32", "fp16", "int8-tensorrt")}
    # a graph that does not build is told and stops nothing
    warned = read_json(copied.run / "report.json")["warnings"]
    assert "engines: int8-tensorrt for sm89 does not build: odd operator" in warned
    assert ran(copied) == []
    monkeypatch.setattr(rtx_builder, "version", lambda: "a builder 2")
    assert ran(copied) == ["engines", "report"]


def test_other_gpus_make_no_other_graphs(copied: Project) -> None:
    assert ran(copied, "--set", "export.engines=[]") == ["engines", "report"]
    assert read_json(copied.run / "engines/none.json") == {"why": "export.engines is empty"}
    said = miniature.call("check", copied.recipe, "--set", "export.engines=[sm90]")
    assert said.code == 2 and "export.engines" in said.err and "sm89" in said.err


def test_engines_point_at_the_graphs_that_they_were_built_of(finished: Project) -> None:
    if not rtx_builder.version():
        pytest.skip("tensorrt-rtx is not installed (extra rtx)")
    here = finished.run
    made = [OnnxModel(**one) for name in ("export", "quantize") for one in read_json(here / name / "models.json")]
    for model in made:
        path = here / f"engines/{model.name}.sm89.json"
        assert path.is_file() == (model.target != "cpu")
        if path.is_file():
            one = read_record(path, Engine)
            assert one.failed == "" and one.onnx_sha256 == model.sha256 and one.builder == rtx_builder.version()
            assert sha256_file(here / "engines" / one.path) == one.sha256
            assert one.layers is not None and set(one.layers.weighted.values()) == {model.precision}
    assert "no evidence of what TensorRT fuses" in " ".join(miniature.call("report", here).out.split())
