"""bench with a provider outside ONNX Runtime's own package: OpenVINO, installed in a separate environment."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

from edgedistill.devices import bench
from edgedistill.measurements import Device
from edgedistill.recipe.schema import Bench
from edgedistill.records import OnnxModel

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter with onnxruntime-openvino and numpy, and nothing else."""
    folder = tmp_path_factory.mktemp("openvino")
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "onnxruntime-openvino", "numpy"]
    process = subprocess.run(pip, capture_output=True, text=True, check=False)
    if process.returncode:
        pytest.skip(f"onnxruntime-openvino cannot be installed here: {process.stderr.strip().splitlines()[-1]}")
    return pip[0]


def test_openvino_measures_bundle(
    python: str, bundle: Path, models: list[tuple[Path, OnnxModel]], tmp_path: Path
) -> None:
    quick = Bench(processes=2, rounds=2, samples=40, seconds=0.02, accuracy_images=30)
    records = [record for _, record in models]
    device = Device(name="local", python=python)
    reports = bench.bench(
        bundle, device, backend="onnxruntime-openvino", settings=quick, models=records, out=tmp_path / "out"
    )
    runtime = reports[0].facts["runtime"]
    assert runtime["providers"][0] == "OpenVINOExecutionProvider"
    assert isinstance(runtime["whole_graph"], bool)
    assert [report.agreement_with_host for report in reports] == [1.0, 1.0]
    assert (tmp_path / "out/local/onnxruntime-openvino-int8-cpu.json").is_file()
    assert bench.probe(device)["backends"]["onnxruntime-openvino"] == reports[0].backend_version
    assert bench.probe(Device(name="local", python=sys.executable))["backends"]["onnxruntime-openvino"].startswith(
        "not here"
    )
