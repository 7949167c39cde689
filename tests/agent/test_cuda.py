"""The ctypes layer against a fake libcudart that keeps a ledger, the real headers, and a GPU if there is one."""

from __future__ import annotations

import ctypes
import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgedistill.agent import cuda
from edgedistill.agent.job import AgentError
from tests.helpers import cuda_headers
from tests.helpers.fake_cuda import Fake
from tests.helpers.wheels import unpacked_wheel

HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def test_resources_are_released_in_reverse_order(fake: Fake) -> None:
    with cuda.load() as device:
        stream = device.stream()
        address = device.device_memory(64)
        pinned = device.pinned((64,), np.uint8)
        device.event()
        device.capture(stream, lambda: device.upload(address, pinned, stream))
        assert fake.live() == {"device": 1, "pinned": 1, "stream": 1, "event": 1, "exec": 1}
        fake.calls()
    assert fake.live() == {}
    assert fake.calls() == ["cudaGraphExecDestroy", "cudaEventDestroy", "cudaFreeHost", "cudaFree", "cudaStreamDestroy"]
    device.close()
    assert fake.calls() == []


def test_copies_happen_in_stream_order(fake: Fake) -> None:
    with cuda.load() as device:
        stream, address = device.stream(), device.device_memory(12)
        source, target = device.pinned((3,), np.int32), device.pinned((3,), np.int32)
        source[:], target[:] = [1, 2, 3], 0
        device.upload(address, source, stream)
        device.download(target, address, stream)
        assert target.tolist() == [0, 0, 0]  # nothing is copied before synchronization
        device.synchronize(stream)
        assert target.tolist() == [1, 2, 3]
        with pytest.raises(AgentError, match="cudaMemcpyAsync"):
            device.upload(address, np.zeros(3, np.int32), stream)


def test_captured_graph_runs_only_on_launch_with_current_contents(fake: Fake) -> None:
    with cuda.load() as device:
        stream, address = device.stream(), device.device_memory(4)
        source, target = device.pinned((1,), np.int32), device.pinned((1,), np.int32)
        source[:], target[:] = 7, 0

        def copy_both_ways() -> None:
            device.upload(address, source, stream)
            device.download(target, address, stream)

        graph = device.capture(stream, copy_both_ways)
        device.synchronize(stream)
        assert target.tolist() == [0]
        for number in (7, 8):
            source[:] = number
            device.launch(graph, stream)
            device.synchronize(stream)
            assert target.tolist() == [number]


@pytest.mark.parametrize("symbol", ["cudaStreamEndCapture", "cudaGraphInstantiateWithFlags"])
def test_failed_capture_leaves_no_graph(fake: Fake, symbol: str) -> None:
    with cuda.load() as device:
        stream = device.stream()
        fake.fail(symbol, 901)
        with pytest.raises(AgentError, match=f"{symbol}: cudaErrorStreamCaptureInvalidated"):
            device.capture(stream, lambda: None)
        assert fake.live() == {"stream": 1}
    assert fake.live() == {}


def test_error_inside_capture_ends_capture(fake: Fake) -> None:
    with cuda.load() as device:
        stream = device.stream()
        with pytest.raises(AgentError, match="cudaMalloc: cudaErrorStreamCaptureUnsupported"):
            device.capture(stream, lambda: device.device_memory(4) and None)  # type: ignore[func-returns-value]
        device.synchronize(stream)  # a stream that is still capturing refuses this
        with pytest.raises(ZeroDivisionError):
            device.capture(stream, lambda: 1 // 0 and None)  # type: ignore[func-returns-value]
        device.synchronize(stream)
        assert fake.live() == {"stream": 1}


def test_events_record_when_stream_reaches_them(fake: Fake) -> None:
    @HOST_FUNCTION
    def wait(_: object) -> None:
        time.sleep(0.02)

    with cuda.load() as device:
        stream, start, end = device.stream(), device.event(), device.event()
        device.record(start, stream)
        fake.library.cudaLaunchHostFunc(ctypes.c_void_p(stream), wait, None)
        device.record(end, stream)
        with pytest.raises(AgentError, match="cudaEventElapsedTime"):
            device.elapsed_ms(start, end)
        time.sleep(0.1)
        device.synchronize(stream)
        assert 20.0 <= device.elapsed_ms(start, end) < 100.0


@pytest.mark.parametrize(
    ("symbol", "code", "fix", "exit_code"),
    [
        ("cudaMalloc", 2, r"cudaErrorMemoryAllocation \(out of memory\); close what else uses .* smaller batch$", 2),
        ("cudaHostAlloc", 2, r"cudaErrorMemoryAllocation \(out of memory\); close what else .* smaller batch$", 2),
        ("cudaStreamCreateWithFlags", 46, r".*another process holds the GPU", 2),
        ("cudaEventCreateWithFlags", 999, r"cudaErrorOfTheFake \(as the test wants it\)$", 1),
        ("cudaStreamSynchronize", 700, r"cudaErrorIllegalAddress \(an illegal memory access was encountered\)$", 1),
    ],
)
def test_error_names_function_and_fix(fake: Fake, symbol: str, code: int, fix: str, exit_code: int) -> None:
    fake.fail(symbol, code)
    with pytest.raises(AgentError, match=f"^{symbol}: {fix}") as caught, cuda.load() as device:
        device.device_memory(16)
        device.pinned((4, 4), np.float32)
        device.synchronize(device.stream())
        device.event()
    assert (caught.value.exit_code, "\n" in str(caught.value)) == (exit_code, False)
    assert fake.live() == {}
    assert fake.library.fake_last_error() == 0  # otherwise the next library to check would take the error for its own


def test_too_large_allocation_fails_and_earlier_ones_are_freed(fake: Fake) -> None:
    with pytest.raises(AgentError, match=r"cudaMalloc: .*out of memory"), cuda.load() as device:
        device.pinned((8,), np.uint8)
        assert device.memory_mb() == (pytest.approx(1073.7, abs=0.1), pytest.approx(1073.7, abs=0.1))
        device.device_memory(512 << 20)
        assert device.memory_mb()[0] == pytest.approx(536.9, abs=0.1)
        device.device_memory(513 << 20)
    assert fake.live() == {}


def test_failed_release_does_not_prevent_other_releases(fake: Fake) -> None:
    device = cuda.load()
    device.stream()
    device.device_memory(16)
    device.pinned((16,), np.uint8)
    fake.fail("cudaFree", 999)
    with pytest.raises(AgentError, match="cudaFree: "):
        device.close()
    assert fake.live() == {"device": 1}


def test_first_error_is_raised(fake: Fake) -> None:
    with pytest.raises(AgentError, match="cudaStreamSynchronize"), cuda.load() as device:
        stream = device.stream()
        fake.fail("cudaStreamSynchronize", 700)
        try:
            device.synchronize(stream)
        finally:
            fake.fail("cudaStreamDestroy", 700)
    assert fake.live() == {"stream": 1}


def test_device_is_described(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CUDART_CAPABILITY", "120")
    monkeypatch.setenv("FAKE_CUDART_NAME", "NVIDIA Thing 9")
    with cuda.load() as device:
        assert device.device() == cuda.Device("NVIDIA Thing 9", "12.0", 8, driver="12.6", runtime="12.4")


def test_old_or_missing_driver_is_an_error(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CUDART_DRIVER", "12020")
    message = r"\(CUDA driver version is insufficient .*\); driver 12\.2, \S+libcudart\.so\.12 wants CUDA 12\.4; ins"
    with pytest.raises(AgentError, match=message) as caught:
        cuda.load()
    assert caught.value.exit_code == 2
    monkeypatch.setenv("FAKE_CUDART_DRIVER", "0")
    with pytest.raises(AgentError, match=r"; driver missing, \S+ wants CUDA 12\.4; install or update the driver"):
        cuda.load()
    fake.fail("cudaRuntimeGetVersion", 35)
    with pytest.raises(AgentError, match=r"; driver missing, \S+ wants a newer one; install or update the driver"):
        cuda.load()


def test_missing_device_is_an_error(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CUDART_DEVICES", "0")
    with pytest.raises(AgentError, match=r"cudaErrorNoDevice \(.*\); does nvidia-smi list it") as caught:
        cuda.load()
    assert caught.value.exit_code == 2


def test_missing_libcudart_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(cuda.EXPLICIT, str(tmp_path / "libcudart.so"))
    with pytest.raises(AgentError, match=f"EDGEDISTILL_CUDART={tmp_path}/libcudart.so: is not a libcudart"):
        cuda.load()
    monkeypatch.delenv(cuda.EXPLICIT)
    monkeypatch.setattr(cuda, "candidates", lambda: iter(["libcudart-absent.so", "libc.so.6"]))
    with pytest.raises(AgentError, match=r"no libcudart .* pip install nvidia-cuda-runtime-cu12") as caught:
        cuda.load()
    assert caught.value.exit_code == 2


def test_library_newer_than_driver_is_skipped(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = Fake(Path(shutil.copy(fake.path, tmp_path / "libcudart.so.13")))
    monkeypatch.setattr(cuda, "candidates", lambda: iter([str(newer.path), str(fake.path)]))
    newer.fail("cudaGetDeviceCount", 35)
    with cuda.load() as device:
        assert device.path == str(fake.path)
    # other libraries see the same driver and devices, so they are not tried
    newer.fail("cudaGetDeviceCount", 100)
    with pytest.raises(AgentError, match="cudaErrorNoDevice"):
        cuda.load()


def test_candidate_libraries_are_searched_without_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cuda.EXPLICIT, raising=False)
    wheel = tmp_path / "site [1]" / "nvidia" / "cuda_runtime" / "lib" / "libcudart.so.12"
    system = tmp_path / "cuda-11.8" / "lib64" / "libcudart.so.11.8.89"
    for path in (wheel, system):
        path.parent.mkdir(parents=True)
        path.touch()
    monkeypatch.setattr(sys, "path", ["", str(tmp_path / "site [1]")])
    monkeypatch.setattr(cuda, "FOLDERS", (str(tmp_path / "cuda*" / "lib64"),))
    assert list(cuda.candidates()) == [*cuda.NAMES, str(wheel), str(system)]
    monkeypatch.setenv(cuda.EXPLICIT, "/somewhere/libcudart.so")
    assert list(cuda.candidates()) == ["/somewhere/libcudart.so"]


def test_signatures_match_installed_header() -> None:
    name = "nvidia/cu*/include/cuda_runtime_api.h"
    headers = [header for folder in sys.path for header in Path(folder or ".").glob(name)]
    if not headers:
        pytest.skip("no cuda_runtime_api.h on sys.path (nvidia-cuda-runtime): nothing to compare with")
    assert cuda_headers.differences(headers[0].read_text(errors="replace")) == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "requirement",
    ["nvidia-cuda-runtime-cu11==11.8.89", "nvidia-cuda-runtime-cu12==12.6.77", "nvidia-cuda-runtime==13.0.96"],
)
def test_signatures_match_every_cuda_version(requirement: str, tmp_path: Path) -> None:
    site = unpacked_wheel(requirement, tmp_path)
    (header,) = site.rglob("cuda_runtime_api.h")
    assert cuda_headers.differences(header.read_text(errors="replace")) == {}
    (library,) = site.rglob("libcudart.so.*")
    runtime = cuda.Cuda(ctypes.CDLL(str(library)), str(library))  # raises where a function is missing
    assert runtime.versions()[1] in (".".join(requirement.partition("==")[2].split(".")[:2]), cuda.NONE)
    # the library lies where pip installs it
    assert f"{library.parent.relative_to(site)}" in cuda.WHEELS


def test_header_comparison_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    header = "cudaError_t CUDARTAPI cudaMalloc(void **devPtr, size_t size);\ncudaError_t CUDARTAPI cudaFree(int p);"
    monkeypatch.setattr(cuda, "SIGNATURES", {name: cuda.SIGNATURES[name] for name in ("cudaMalloc", "cudaFree")})
    assert set(cuda_headers.differences(header)) == {"cudaFree", *cuda.TEXTS}


def test_real_library_reports_missing_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cuda.EXPLICIT, raising=False)
    if not any(Path(path).is_file() for path in cuda.candidates()):
        pytest.skip("no libcudart file on sys.path or in /usr/local")
    try:
        cuda.load().close()
    except AgentError as error:
        assert re.match(r"cudaGetDeviceCount: cudaError(InsufficientDriver|NoDevice) ", str(error))
        assert error.exit_code == 2
    else:
        pytest.skip("there is a GPU here; the gpu tests cover it")


@pytest.mark.gpu
def test_real_gpu_copies_captures_and_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cuda.EXPLICIT, raising=False)
    try:
        device = cuda.load()
    except AgentError as error:
        pytest.skip(f"no GPU: {error}")
    with device:
        assert re.fullmatch(r"\d+\.\d", device.device().compute_capability) and device.device().name.isprintable()
        free, total = device.memory_mb()
        assert 0 < free <= total
        stream, address = device.stream(), device.device_memory(1 << 22)
        source, target = device.pinned((1 << 22,), np.uint8), device.pinned((1 << 22,), np.uint8)
        start, end = device.event(), device.event()

        def copy_both_ways() -> None:
            device.upload(address, source, stream)
            device.download(target, address, stream)

        graph = device.capture(stream, copy_both_ways)
        for seed in range(3):
            source[:] = np.random.default_rng(seed).integers(0, 256, source.shape, dtype=np.uint8)
            device.record(start, stream)
            device.launch(graph, stream)
            device.record(end, stream)
            device.synchronize(stream)
            np.testing.assert_array_equal(target, source)
            assert 0.0 < device.elapsed_ms(start, end) < 1000.0
        with pytest.raises(AgentError, match=r"cudaMalloc: cudaErrorMemoryAllocation \(out of memory\)"):
            device.device_memory(1 << 50)
        device.synchronize(stream)
