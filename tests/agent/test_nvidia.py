"""The driver's library by ctypes, against one that the test builds; with a GPU at hand, against the real one."""

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
    """A library built for a kind of device, in the place of the driver's."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) to build a library with")
    built = tmp_path / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", f"-D{request.param}", str(SOURCE), "-o", str(built)], check=True)
    monkeypatch.setattr(nvidia, "LIBRARIES", (str(tmp_path / "absent.so"), str(built)))
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    return ctypes.CDLL(str(built))


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nvidia, "LIBRARIES", (str(tmp_path / "absent.so"),))
    with nvidia.opened() as gpu:
        assert gpu is None
    assert "gpu" not in machine.identity()
    assert "gpu" not in machine.state()


def test_what_a_board_says(library: ctypes.CDLL) -> None:
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
        # that it idles, or runs at the clocks that somebody chose, slows nothing down
        assert nvidia.throttling(gpu) == ["GPU power cap", "GPU thermal slowdown by the hardware"]
        assert nvidia.throttle_counts(gpu) == {"GPU power cap (ms)": 120}
        assert (gpu.joules(), gpu.joules()) == (5000000.25, 5000000.5)
    assert library.opened() == 0


def test_the_machine_tells_of_its_gpu(library: ctypes.CDLL) -> None:
    assert machine.identity()["driver"] == "550.54.14"
    state = machine.state()
    assert state["gpu"]["clock_mhz"] == 2520
    assert "GPU power cap" in state["throttling"]
    assert state["throttle_counts"]["GPU power cap (ms)"] == 120
    assert library.opened() == 0


@pytest.mark.parametrize("library", ["JETSON"], indirect=True)
def test_a_jetson_starts_the_library_and_supports_nothing(library: ctypes.CDLL) -> None:
    with nvidia.opened() as gpu:
        assert gpu is not None
        assert nvidia.identity(gpu) == {"gpu": "Orin (nvgpu)", "driver": "550.54.14"}
        assert (nvidia.state(gpu), nvidia.throttling(gpu), nvidia.throttle_counts(gpu)) == ({}, [], {})
        assert gpu.joules() is None


@pytest.mark.parametrize("library", ["OLD"], indirect=True)
def test_what_a_driver_lacks_costs_that_field_alone(library: ctypes.CDLL) -> None:
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
def test_which_gpu_is_meant(
    library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, visible: str | None, order: str | None, certain: bool | None
) -> None:
    for name, value in (("CUDA_VISIBLE_DEVICES", visible), ("CUDA_DEVICE_ORDER", order)):
        if value is not None:
            monkeypatch.setenv(name, value)
    with nvidia.opened() as gpu:
        assert (None if gpu is None else gpu.certain) == certain
    assert library.opened() == 0


@pytest.mark.parametrize("library", ["SINGLE"], indirect=True)
def test_a_single_gpu_is_certain(library: ctypes.CDLL) -> None:
    with nvidia.opened() as gpu:
        assert gpu is not None and gpu.certain


def test_energy_is_that_of_a_gpu_that_is_certain(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    with power.start("tensorrt") as meter:
        assert meter.name == ""  # two GPUs, and CUDA may count them another way
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
        # started, read once to see whether there is a counter, then three times: 0.25 J a reading
        assert meter.between(first, last) == pytest.approx(0.5)
    assert library.opened() == 0


@pytest.mark.gpu
def test_a_real_driver_counts_what_its_gpu_uses() -> None:
    with nvidia.opened() as gpu:
        if gpu is None:
            pytest.skip("no NVIDIA driver, or no GPU that CUDA may use")
        assert nvidia.identity(gpu)["gpu"]
        assert nvidia.state(gpu)
    with power.start("tensorrt") as meter:
        if not meter.name:
            pytest.skip("this GPU has no energy counter, or CUDA may count several another way")
        meter.mark()
        start = time.monotonic()
        time.sleep(2.0)
        end = time.monotonic()
        meter.mark()
        joules = meter.between(start, end)
    # from an idle laptop's GPU to the largest board
    assert joules is not None and 2.0 < joules < 2000.0
