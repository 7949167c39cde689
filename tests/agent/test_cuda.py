"""The ctypes layer against a libcudart that keeps a ledger, the real one's headers, and a GPU where there is one."""

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
from tests.helpers.wheels import unpacked

HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def test_everything_is_given_back_the_latest_first(fake: Fake) -> None:
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


def test_bytes_travel_in_the_streams_turn(fake: Fake) -> None:
    with cuda.load() as device:
        stream, address = device.stream(), device.device_memory(12)
        there, back = device.pinned((3,), np.int32), device.pinned((3,), np.int32)
        there[:], back[:] = [1, 2, 3], 0
        device.upload(address, there, stream)
        device.download(back, address, stream)
        assert back.tolist() == [0, 0, 0]  # nothing is done before somebody waits
        device.synchronize(stream)
        assert back.tolist() == [1, 2, 3]
        with pytest.raises(AgentError, match="cudaMemcpyAsync"):
            device.upload(address, np.zeros(3, np.int32), stream)


def test_a_graph_is_not_run_while_captured_and_takes_new_contents_each_time(fake: Fake) -> None:
    with cuda.load() as device:
        stream, address = device.stream(), device.device_memory(4)
        there, back = device.pinned((1,), np.int32), device.pinned((1,), np.int32)
        there[:], back[:] = 7, 0

        def work() -> None:
            device.upload(address, there, stream)
            device.download(back, address, stream)

        graph = device.capture(stream, work)
        device.synchronize(stream)
        assert back.tolist() == [0]
        for value in (7, 8):
            there[:] = value
            device.launch(graph, stream)
            device.synchronize(stream)
            assert back.tolist() == [value]


@pytest.mark.parametrize("symbol", ["cudaStreamEndCapture", "cudaGraphInstantiateWithFlags"])
def test_a_failed_capture_leaves_no_graph(fake: Fake, symbol: str) -> None:
    with cuda.load() as device:
        stream = device.stream()
        fake.fail(symbol, 901)
        with pytest.raises(AgentError, match=f"{symbol}: cudaErrorStreamCaptureInvalidated"):
            device.capture(stream, lambda: None)
        assert fake.live() == {"stream": 1}
    assert fake.live() == {}


def test_an_error_inside_a_capture_ends_the_capture(fake: Fake) -> None:
    with cuda.load() as device:
        stream = device.stream()
        with pytest.raises(AgentError, match="cudaMalloc: cudaErrorStreamCaptureUnsupported"):
            device.capture(stream, lambda: device.device_memory(4) and None)  # type: ignore[func-returns-value]
        device.synchronize(stream)  # which a stream that is still capturing refuses
        with pytest.raises(ZeroDivisionError):
            device.capture(stream, lambda: 1 // 0 and None)  # type: ignore[func-returns-value]
        device.synchronize(stream)
        assert fake.live() == {"stream": 1}


def test_events_keep_the_time_at_which_the_stream_passes_them(fake: Fake) -> None:
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
def test_an_error_names_the_function_and_the_fix(fake: Fake, symbol: str, code: int, fix: str, exit_code: int) -> None:
    fake.fail(symbol, code)
    with pytest.raises(AgentError, match=f"^{symbol}: {fix}") as caught, cuda.load() as device:
        device.device_memory(16)
        device.pinned((4, 4), np.float32)
        device.synchronize(device.stream())
        device.event()
    assert (caught.value.exit_code, "\n" in str(caught.value)) == (exit_code, False)
    assert fake.live() == {}
    assert fake.library.fake_last_error() == 0  # or the next library to ask would take it for its own


def test_too_much_memory_is_refused_and_all_before_it_given_back(fake: Fake) -> None:
    with pytest.raises(AgentError, match=r"cudaMalloc: .*out of memory"), cuda.load() as device:
        device.pinned((8,), np.uint8)
        assert device.memory_mb() == (pytest.approx(1073.7, abs=0.1), pytest.approx(1073.7, abs=0.1))
        device.device_memory(512 << 20)
        assert device.memory_mb()[0] == pytest.approx(536.9, abs=0.1)
        device.device_memory(513 << 20)
    assert fake.live() == {}


def test_one_thing_that_cannot_be_freed_does_not_keep_the_rest(fake: Fake) -> None:
    device = cuda.load()
    device.stream()
    device.device_memory(16)
    device.pinned((16,), np.uint8)
    fake.fail("cudaFree", 999)
    with pytest.raises(AgentError, match="cudaFree: "):
        device.close()
    assert fake.live() == {"device": 1}


def test_the_first_error_is_the_one_that_is_said(fake: Fake) -> None:
    with pytest.raises(AgentError, match="cudaStreamSynchronize"), cuda.load() as device:
        stream = device.stream()
        fake.fail("cudaStreamSynchronize", 700)
        try:
            device.synchronize(stream)
        finally:
            fake.fail("cudaStreamDestroy", 700)
    assert fake.live() == {"stream": 1}


def test_the_device_is_described(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CUDART_CAPABILITY", "120")
    monkeypatch.setenv("FAKE_CUDART_NAME", "NVIDIA Thing 9")
    with cuda.load() as device:
        assert device.device() == cuda.Device("NVIDIA Thing 9", "12.0", 8, driver="12.6", runtime="12.4")


def test_a_driver_that_is_too_old_or_missing(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CUDART_DRIVER", "12020")
    said = r"\(CUDA driver version is insufficient .*\); driver 12\.2, \S+libcudart\.so\.12 wants CUDA 12\.4; ins"
    with pytest.raises(AgentError, match=said) as caught:
        cuda.load()
    assert caught.value.exit_code == 2
    monkeypatch.setenv("FAKE_CUDART_DRIVER", "0")
    with pytest.raises(AgentError, match=r"; driver missing, \S+ wants CUDA 12\.4; install or update the driver"):
        cuda.load()
    fake.fail("cudaRuntimeGetVersion", 35)
    with pytest.raises(AgentError, match=r"; driver missing, \S+ wants a newer one; install or update the driver"):
        cuda.load()


def test_no_device(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CUDART_DEVICES", "0")
    with pytest.raises(AgentError, match=r"cudaErrorNoDevice \(.*\); does nvidia-smi list it") as caught:
        cuda.load()
    assert caught.value.exit_code == 2


def test_no_libcudart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(cuda.EXPLICIT, str(tmp_path / "libcudart.so"))
    with pytest.raises(AgentError, match=f"EDGEDISTILL_CUDART={tmp_path}/libcudart.so: is not a libcudart"):
        cuda.load()
    monkeypatch.delenv(cuda.EXPLICIT)
    monkeypatch.setattr(cuda, "candidates", lambda: iter(["libcudart-of-nobody.so", "libc.so.6"]))
    with pytest.raises(AgentError, match=r"no libcudart .* pip install nvidia-cuda-runtime-cu12") as caught:
        cuda.load()
    assert caught.value.exit_code == 2


def test_a_library_newer_than_the_driver_is_passed_over(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = Fake(Path(shutil.copy(fake.path, tmp_path / "libcudart.so.13")))
    monkeypatch.setattr(cuda, "candidates", lambda: iter([str(newer.path), str(fake.path)]))
    newer.fail("cudaGetDeviceCount", 35)
    with cuda.load() as device:
        assert device.path == str(fake.path)
    # the others see the same driver and the same devices: no use in asking them
    newer.fail("cudaGetDeviceCount", 100)
    with pytest.raises(AgentError, match="cudaErrorNoDevice"):
        cuda.load()


def test_candidates_are_looked_for_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_every_signature_is_that_of_the_header() -> None:
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
def test_every_cuda_has_these_functions_with_these_signatures(requirement: str, tmp_path: Path) -> None:
    site = unpacked(requirement, tmp_path)
    (header,) = site.rglob("cuda_runtime_api.h")
    assert cuda_headers.differences(header.read_text(errors="replace")) == {}
    (library,) = site.rglob("libcudart.so.*")
    held = cuda.Cuda(ctypes.CDLL(str(library)), str(library))  # raises where a function is missing
    assert held.versions()[1] in (".".join(requirement.partition("==")[2].split(".")[:2]), cuda.NONE)
    # and it is found where pip puts it
    assert f"{library.parent.relative_to(site)}" in cuda.WHEELS


def test_the_comparison_with_headers_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    header = "cudaError_t CUDARTAPI cudaMalloc(void **devPtr, size_t size);\ncudaError_t CUDARTAPI cudaFree(int p);"
    monkeypatch.setattr(cuda, "SIGNATURES", {name: cuda.SIGNATURES[name] for name in ("cudaMalloc", "cudaFree")})
    assert set(cuda_headers.differences(header)) == {"cudaFree", *cuda.TEXTS}


def test_the_real_library_says_that_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cuda.EXPLICIT, raising=False)
    if not any(Path(path).is_file() for path in cuda.candidates()):
        pytest.skip("no libcudart file on sys.path or in /usr/local")
    try:
        cuda.load().close()
    except AgentError as error:
        assert re.match(r"cudaGetDeviceCount: cudaError(InsufficientDriver|NoDevice) ", str(error))
        assert error.exit_code == 2
    else:
        pytest.skip("there is a GPU here; tier gpu tests it")


@pytest.mark.gpu
def test_a_real_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
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
        there, back = device.pinned((1 << 22,), np.uint8), device.pinned((1 << 22,), np.uint8)
        start, end = device.event(), device.event()

        def work() -> None:
            device.upload(address, there, stream)
            device.download(back, address, stream)

        graph = device.capture(stream, work)
        for seed in range(3):
            there[:] = np.random.default_rng(seed).integers(0, 256, there.shape, dtype=np.uint8)
            device.record(start, stream)
            device.launch(graph, stream)
            device.record(end, stream)
            device.synchronize(stream)
            np.testing.assert_array_equal(back, there)
            assert 0.0 < device.elapsed_ms(start, end) < 1000.0
        with pytest.raises(AgentError, match=r"cudaMalloc: cudaErrorMemoryAllocation \(out of memory\)"):
            device.device_memory(1 << 50)
        device.synchronize(stream)
