"""The ctypes layer of NVML against a library that the test builds and, with a GPU, against the real one."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from edgedistill.agent import machine, nvidia, power
from tests.helpers.paths import HELPERS

SOURCE = HELPERS / "fake_nvml.c"


@pytest.fixture(params=["BOARD"])
def library(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    """Build a fake library for a kind of device and use it instead of the driver's."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) to build a library with")
    path = tmp_path / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", f"-D{request.param}", str(SOURCE), "-o", str(path)], check=True)
    monkeypatch.setattr(nvidia, "LIBRARIES", (str(tmp_path / "absent.so"), str(path)))
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    return ctypes.CDLL(str(path))


def test_missing_driver_means_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nvidia, "LIBRARIES", (str(tmp_path / "absent.so"),))
    with nvidia.opened() as gpu:
        assert gpu is None
    assert "gpu" not in machine.identity()
    assert "gpu" not in machine.state()


def test_board_is_described(library: ctypes.CDLL) -> None:
    with nvidia.opened() as gpu:
        assert library.opened() == 1
        assert gpu is not None
        assert nvidia.identity(gpu) == {
            "gpu": "NVIDIA GeForce RTX 4090",
            "driver": "550.54.14",
            "gpu_memory_mb": 25757,
            "gpu_power_limit_w": 450.0,
        }
        assert nvidia.state(gpu) == {
            "clock_mhz": 2520,
            "memory_clock_mhz": 10501,
            "temperature_c": 47,
            "power_w": 61.25,
            "memory_used_mb": 757,
            "programs": 2,
        }
        # idling, or running at clocks that the user chose, is not throttling
        assert nvidia.throttling(gpu) == ["GPU power cap", "GPU thermal slowdown by the hardware"]
        assert nvidia.throttle_counts(gpu) == {"GPU power cap (ms)": 120}
        assert (gpu.joules(), gpu.joules()) == (5000000.25, 5000000.5)
    assert library.opened() == 0


def test_machine_reports_its_gpu(library: ctypes.CDLL) -> None:
    assert machine.identity()["driver"] == "550.54.14"
    state = machine.state()
    assert state["gpu"]["clock_mhz"] == 2520
    assert "GPU power cap" in state["throttling"]
    assert state["throttle_counts"]["GPU power cap (ms)"] == 120
    assert library.opened() == 0


@pytest.mark.parametrize("library", ["JETSON"], indirect=True)
def test_jetson_starts_library_without_measurements(library: ctypes.CDLL) -> None:
    with nvidia.opened() as gpu:
        assert gpu is not None
        assert nvidia.identity(gpu) == {"gpu": "Orin (nvgpu)", "driver": "550.54.14"}
        assert (nvidia.state(gpu), nvidia.throttling(gpu), nvidia.throttle_counts(gpu)) == ({}, [], {})
        assert gpu.joules() is None


@pytest.mark.parametrize("library", ["OLD"], indirect=True)
def test_function_missing_in_driver_omits_only_its_field(library: ctypes.CDLL) -> None:
    with nvidia.opened() as gpu:
        assert gpu is not None
        assert gpu.joules() is None
        assert nvidia.state(gpu)["power_w"] == 61.25


@pytest.mark.parametrize(
    ("visible", "order", "certain"),
    [
        (None, None, False),
        ("0", "PCI_BUS_ID", True),
        ("1,0", "PCI_BUS_ID", True),
        ("1", "FASTEST_FIRST", False),
        ("GPU-5fd4c3a2", None, True),
        ("GPU-other", None, None),
        ("", None, None),
        ("-1", None, None),
        ("7", None, None),
    ],
)
def test_gpu_is_chosen_from_cuda_environment(
    library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, visible: str | None, order: str | None, certain: bool | None
) -> None:
    for variable, setting in (("CUDA_VISIBLE_DEVICES", visible), ("CUDA_DEVICE_ORDER", order)):
        if setting is not None:
            monkeypatch.setenv(variable, setting)
    with nvidia.opened() as gpu:
        assert (None if gpu is None else gpu.certain) == certain
    assert library.opened() == 0


@pytest.mark.parametrize("library", ["SINGLE"], indirect=True)
def test_single_gpu_is_certain(library: ctypes.CDLL) -> None:
    with nvidia.opened() as gpu:
        assert gpu is not None and gpu.certain


def test_energy_is_measured_only_for_certain_gpu(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    with power.start("tensorrt") as meter:
        assert meter.name == ""  # two GPUs, which CUDA may number differently
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    with power.start("tensorrt") as meter:
        assert library.opened() == 1
        assert (meter.name, meter.covers.partition(",")[0]) == (
            "energy counter of NVML",
            "the graphics board with its memory",
        )
        for _ in range(3):
            meter.mark()
        assert isinstance(meter, power.Counter)
        (first, _), (last, _) = meter.points[0], meter.points[-1]
        # read once at the start to check for a counter, then three times: 0.25 J per reading
        assert meter.between(first, last) == pytest.approx(0.5)
    assert library.opened() == 0


@pytest.mark.gpu
def test_real_driver_measures_energy() -> None:
    with nvidia.opened() as gpu:
        if gpu is None:
            pytest.skip("no NVIDIA driver, or no GPU that CUDA may use")
        assert nvidia.identity(gpu)["gpu"]
        assert nvidia.state(gpu)
    with power.start("tensorrt") as meter:
        if not meter.name:
            pytest.skip("this GPU has no energy counter, or CUDA may number several GPUs differently")
        meter.mark()
        start = time.monotonic()
        time.sleep(2.0)
        end = time.monotonic()
        meter.mark()
        joules = meter.between(start, end)
    # from an idle laptop's GPU to the largest board
    assert joules is not None and 2.0 < joules < 2000.0
