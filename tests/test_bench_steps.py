"""What bench measures again, what it leaves alone, and what it may be told."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from edgedistill import pipeline, session
from edgedistill.agent.backends import BACKENDS
from edgedistill.context import Context
from edgedistill.devices import bundle
from edgedistill.records import EdgeDistillError, InputError, OnnxModel
from edgedistill.run import Run
from edgedistill.steps import Step

ARTEFACTS = ("fp32", "fp16", "int8-cpu", "int8-tensorrt", "fp32-compute-graph", "fp32-offline-8")


def test_a_backend_owns_the_files_of_its_own_measurements_alone() -> None:
    for backend in BACKENDS:
        patterns = pipeline._records("orin", backend)
        for other in BACKENDS:
            files = [f"bench/orin/{other}-{artefact}.json" for artefact in ARTEFACTS]
            matched = [any(fnmatch.fnmatch(file, pattern) for pattern in patterns) for file in files]
            assert matched == [other == backend] * len(files), (backend, other)


def test_bench_takes_its_own_settings_and_no_others() -> None:
    assert session.bench_settings(["bench.seconds=10", "bench.offline=[1, 8]"]) == {"seconds": 10, "offline": [1, 8]}
    for wrong, said in (
        ("distill.steps=3", "is none of bench's settings; KEY=VALUE, KEY one of: bench.devices"),
        ("bench.second=3", "is none of bench's settings"),
        ("bench.seconds", "is none of bench's settings"),
        ("bench.seconds=soon", "--set bench.seconds=soon: Input should be a valid number"),
        ("bench.seconds=[", "no YAML"),
    ):
        with pytest.raises(InputError) as caught:
            session.bench_settings([wrong])
        assert said in str(caught.value) and "\n" not in str(caught.value)


def test_again_measures_though_nothing_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def step(name: str) -> Step:
        def work(context: Context) -> None:
            done.append(name)
            (context.run / f"{name}.txt").write_text(name)

        return Step(name=name, version=1, sections=(), after=(), outputs=(f"{name}.txt",), work=work)

    monkeypatch.setattr(session, "report_step", lambda context: step("report"))
    recipe = SimpleNamespace(sections=lambda names: {})
    context = cast(Context, SimpleNamespace(run=Run(path=tmp_path), recipe=recipe))
    before, bench = step("export"), step("bench-local-onnxruntime-cpu")
    for again, wanted in (
        (pipeline.nothing, ["export", bench.name, "report"]),
        (pipeline.nothing, []),
        (lambda context: (bench,), [bench.name]),
    ):
        done.clear()
        session.finish(context, lambda context: (before, bench), again=again)
        assert done == wanted


def test_a_gpu_that_cannot_be_measured_is_no_end_of_an_export(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> None:
        raise EdgeDistillError("local: out of memory", "close other programs")

    monkeypatch.setattr(pipeline.rehearsal, "ratio", full)
    context, pair = cast(Context, None), cast(list[OnnxModel], [])
    assert pipeline._timed(context, pair, "tensorrt") == (
        None,
        "its speed could not be measured here: local: out of memory",
    )
    with pytest.raises(EdgeDistillError, match="out of memory"):
        pipeline._timed(context, pair, "onnxruntime-cpu")


def test_another_agent_makes_another_bundle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = bundle.programs()
    assert set(before) == {"agent.pyz", "label.py"}
    for path in bundle._agent_folder().glob("*.py"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(bundle, "_agent_folder", lambda: tmp_path)
    assert bundle.programs() == before
    (tmp_path / "meter.py").write_text("# mended\n")
    changed = bundle.programs()
    assert changed["agent.pyz"] != before["agent.pyz"] and changed["label.py"] == before["label.py"]
