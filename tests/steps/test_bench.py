"""Steps of bench: which files each owns, when they run again, and which settings they accept."""

from __future__ import annotations

import fnmatch
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from edgedistill import pipeline, session
from edgedistill.agent.backends import BACKENDS
from edgedistill.devices import bundle
from edgedistill.errors import EdgeDistillError, InputError
from edgedistill.recipe.schema import Bench
from edgedistill.run import environment
from edgedistill.run.directory import Run
from edgedistill.steps import bench, keep
from edgedistill.steps import bundle as bundle_step
from edgedistill.steps.context import Context
from edgedistill.steps.step import Step

ARTIFACTS = ("fp32", "fp16", "int8-cpu", "int8-tensorrt", "fp32-compute-graph", "fp32-offline-8")


def test_backend_owns_only_files_of_its_own_measurements() -> None:
    for backend in BACKENDS:
        patterns = bench.step("orin", backend).outputs
        for other in BACKENDS:
            files = [f"bench/orin/{other}-{artifact}.json" for artifact in ARTIFACTS]
            matched = [any(fnmatch.fnmatch(file, pattern) for pattern in patterns) for file in files]
            assert matched == [other == backend] * len(files), (backend, other)


def test_bench_accepts_only_its_own_settings() -> None:
    assert session.bench_settings(["bench.seconds=10", "bench.offline=[1, 8]"]) == {"seconds": 10, "offline": [1, 8]}
    for setting, message in (
        ("distill.steps=3", "is not a setting of bench; KEY=VALUE, KEY one of: bench.devices"),
        ("bench.second=3", "is not a setting of bench"),
        ("bench.seconds", "is not a setting of bench"),
        ("bench.seconds=soon", "--set bench.seconds=soon: Input should be a valid number"),
        ("bench.seconds=[", "not valid YAML"),
    ):
        with pytest.raises(InputError) as caught:
            session.bench_settings([setting])
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_requested_measurement_runs_again_without_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executed: list[str] = []

    def step(name: str) -> Step:
        def work(context: Context) -> None:
            executed.append(name)
            (context.run / f"{name}.txt").write_text(name)

        return Step(name=name, version=1, sections=(), after=(), outputs=(f"{name}.txt",), work=work)

    monkeypatch.setattr(session, "report_step", lambda context: step("report"))
    recipe = SimpleNamespace(sections=lambda names: {})
    context = cast(Context, SimpleNamespace(run=Run(path=tmp_path), recipe=recipe))
    before, measurement = step("export"), step("bench-local-onnxruntime-cpu")
    for measurements, expected in (
        (pipeline.no_steps, ["export", measurement.name, "report"]),
        (pipeline.no_steps, []),
        (lambda context: (measurement,), [measurement.name]),
    ):
        executed.clear()
        session.finish(context, lambda context: (before, measurement), again=measurements)
        assert executed == expected


def test_export_continues_without_gpu_measurement() -> None:
    def full(*arguments: Any) -> None:
        raise EdgeDistillError("local: out of memory", "close other programs")

    assert keep.speed(full, [], "tensorrt") == (
        None,
        "its speed could not be measured here: local: out of memory",
    )
    with pytest.raises(EdgeDistillError, match="out of memory"):
        keep.speed(full, [], "onnxruntime-cpu")


def test_bundle_programs_follow_agent_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = bundle.programs()
    assert set(before) == {"agent.pyz", "label.py", "pictures.py", "unsure.py"}
    for path in bundle.agent_folder().glob("*.py"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(bundle, "agent_folder", lambda: tmp_path)
    assert bundle.programs() == before
    (tmp_path / "meter.py").write_text("# mended\n")
    after = bundle.programs()
    assert after["agent.pyz"] != before["agent.pyz"] and after["label.py"] == before["label.py"]


def test_measurement_is_another_with_another_version_of_its_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.runtime("onnxruntime-cpu") == "", "the machine's facts have it"
    monkeypatch.setattr(metadata, "version", lambda package: f"1 of {package}")
    packages = {"openvino-reduced": "openvino", "ncnn-half": "ncnn", "tensorrt-rtx": "tensorrt-rtx"}
    assert {name: environment.runtime(name) for name in packages} == {k: f"1 of {v}" for k, v in packages.items()}
    recipe = SimpleNamespace(bench=Bench())
    run = SimpleNamespace(hashes=lambda step: {})
    context = cast(Context, SimpleNamespace(recipe=recipe, run=run, inventory=None, device_facts=lambda name: []))
    before = bench.step("local", "openvino").inputs(context)
    monkeypatch.setattr(metadata, "version", lambda package: f"2 of {package}")
    after = bench.step("local", "openvino").inputs(context)
    assert {name for name in before if before[name] != after[name]} == {"runtimes"}


@pytest.mark.parametrize(("answered", "random"), [(500, False), (8, True), (2000, True)])
def test_first_images_of_a_bundle_are_of_all_classes_where_a_device_answers_some(answered: int, random: bool) -> None:
    recipe = SimpleNamespace(bench=SimpleNamespace(accuracy_images=answered))
    rows = bundle_step.shipped_rows(cast(Context, SimpleNamespace(recipe=recipe)), 3000)
    assert len(np.unique(rows)) == max(500, answered)
    assert (np.diff(rows) > 0).all() != random
