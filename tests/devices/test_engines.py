"""bench with the engines beside ONNX Runtime, with the real packages where they are installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgedistill.agent import backends
from edgedistill.agent.job import AgentError
from edgedistill.devices import bench
from edgedistill.measurements import Device
from edgedistill.recipe.schema import Bench
from edgedistill.records import OnnxModel


@pytest.mark.parametrize("backend", ["openvino", "openvino-reduced"])
def test_openvino_measures_bundle_and_tells_what_it_compiled(
    bundle: Path, models: list[tuple[Path, OnnxModel]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    pytest.importorskip("openvino", reason="needs the extra `openvino`")
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path / "cache"))
    try:
        backends.create(backend).facts()
    except AgentError as error:
        pytest.skip(str(error))
    records = [record for _, record in models]
    quick = Bench(processes=1, rounds=2, samples=20, seconds=0.01, accuracy_images=30)
    reports = bench.bench(
        bundle, Device(name="local"), backend=backend, settings=quick, models=records, out=tmp_path / "out"
    )
    assert [report.artefact for report in reports] == ["fp32", "int8-cpu"]
    for report in reports:
        assert report.agreement_with_host == 1.0 and len(report.latency.samples_ms) >= 20
        assert report.facts["runtime"]["models"][report.artefact]["layers"]
    float_type = reports[0].facts["runtime"]["float"]
    assert (float_type == "f32") == (backend == "openvino")
