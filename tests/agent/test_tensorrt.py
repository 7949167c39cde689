"""The TensorRT backend: every version branch against doubles that compute with ONNX Runtime on a fake libcudart."""

from __future__ import annotations

import gc
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgedistill.agent import backends, cuda, tensorrt_build
from edgedistill.agent.job import AgentError
from edgedistill.agent.tensorrt import MODES, TensorRt
from tests.helpers import tiny_onnx, trt_double
from tests.helpers.fake_cuda import Fake

VERSIONS = [
    ("tensorrt", "8.6.1"),
    ("tensorrt", "10.3.0"),
    ("tensorrt", "10.13.3.9"),
    ("tensorrt", "10.16.1.11"),
    ("tensorrt", "11.4.0.106"),
    ("tensorrt_rtx", "1.7.1.116"),
]
RTX = VERSIONS[-1]


@pytest.fixture(params=VERSIONS, ids="-".join)
def trt(request: pytest.FixtureRequest, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install the double of one version of a package."""
    return install_double(fake, monkeypatch, *getattr(request, "param", VERSIONS[1]))


def install_double(fake: Fake, monkeypatch: pytest.MonkeyPatch, package: str, version: str) -> Any:
    module = trt_double.module(package, version, fake.library)
    monkeypatch.setitem(sys.modules, package, module)
    return module


@pytest.fixture
def trt_10(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> Any:
    return install_double(fake, monkeypatch, "tensorrt", "10.3.0")


def expected_logits(path: Path, images: np.ndarray) -> np.ndarray:
    logits: np.ndarray = trt_double.session(path.read_bytes()).run(None, {"images": images})[0]
    return logits


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_logits_are_correct_in_every_mode_and_for_new_images(
    trt: Any, fake: Fake, tmp_path: Path, precision: str
) -> None:
    path = tiny_onnx.write(tmp_path / f"student.{precision}.onnx", precision)
    for batch in (1, 4):
        backend = TensorRt(trt.__name__)
        backend.build(path, threads=1, batch=batch)
        logits = []
        for seed in range(3):
            images = tiny_onnx.images(batch, seed)
            for mode in MODES:
                logits.append(backend.infer(images, mode))
                np.testing.assert_array_equal(logits[-1], expected_logits(path, images))
        assert len({batch_logits.tobytes() for batch_logits in logits}) == 3  # earlier logits do not change afterwards
        assert logits[0].dtype == np.float32 and logits[0].shape == (batch, 3)
        backend.close()
        assert fake.live() == {}


def test_close_frees_graphs_then_tensorrt_then_memory(trt: Any, fake: Fake, tmp_path: Path) -> None:
    backend = TensorRt(trt.__name__)
    backend.build(tiny_onnx.write(tmp_path / "m.onnx"), 1)
    for mode in MODES:
        backend.infer(tiny_onnx.images(1, 0), mode)
    gc.collect()
    assert len([reference for reference in trt.gpu_objects if reference() is not None]) == 3  # runtime, engine, context
    fake.calls()
    backend.close()
    backend.close()
    gc.collect()
    assert [reference for reference in trt.gpu_objects if reference() is not None] == []
    freed = fake.calls()
    assert freed[:2] == ["cudaGraphExecDestroy"] * 2
    assert freed[2:] == [*["cudaEventDestroy"] * 2, "cudaStreamDestroy", *["cudaFree"] * 2, *["cudaFreeHost"] * 2]
    assert fake.live() == {}
    backend.build(tmp_path / "m.onnx", 1)  # a closed backend builds again
    backend.close()
    assert fake.live() == {}


def test_context_is_freed_after_graphs_and_before_stream(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_double(fake, monkeypatch, *RTX)
    live: list[dict[str, int]] = []
    monkeypatch.setattr(tensorrt_build, "just_in_time_bytes", lambda cache: live.append(fake.live()) or b"")
    backend = TensorRt(RTX[0])
    backend.build(tiny_onnx.write(tmp_path / "m.onnx"), 1)
    backend.infer(tiny_onnx.images(1, 0), "compute-graph")
    backend.close()
    assert live == [{"device": 2, "pinned": 2, "stream": 1, "event": 2}]


COPY, RUN, MARK, WAIT = "cudaMemcpyAsync", "cudaLaunchHostFunc", "cudaEventRecord", "cudaStreamSynchronize"
WINDOWS = {
    "host-to-host": [COPY, RUN, COPY, WAIT],
    "host-to-host-graph": ["cudaGraphLaunch", WAIT],
    "compute": [COPY, WAIT, MARK, RUN, MARK, WAIT, "cudaEventElapsedTime"],
    "compute-graph": [COPY, WAIT, MARK, "cudaGraphLaunch", MARK, WAIT, "cudaEventElapsedTime"],
}


@pytest.mark.parametrize("mode", WINDOWS)
def test_window_contains_documented_calls(trt: Any, fake: Fake, tmp_path: Path, mode: str) -> None:
    backend = TensorRt(trt.__name__)
    backend.build(tiny_onnx.write(tmp_path / "m.onnx"), 1)
    query: Any = backend.infer if mode.startswith("host") else backend.compute_ms
    fake.calls()
    first = query(tiny_onnx.images(1, 0), mode)
    calls = fake.calls()
    assert calls.count("cudaStreamBeginCapture") == mode.endswith("graph")
    # the first call captures the graph, and its time must not include the capture
    assert mode != "compute-graph" or calls.index(MARK) > calls.index("cudaGraphInstantiateWithFlags")
    for seed in range(2):
        second = query(tiny_onnx.images(1, seed), mode)
        assert fake.calls() == WINDOWS[mode]
    if mode.startswith("compute"):
        assert all(isinstance(ms, float) and 0.0 < ms < 1000.0 for ms in (first, second))
    backend.close()


def test_every_mode_documents_its_window() -> None:
    assert list(MODES) == ["host-to-host", "compute", "host-to-host-graph", "compute-graph"]
    assert set(MODES) == set(WINDOWS) and len(set(MODES.values())) == 4
    assert {"tensorrt", "tensorrt-rtx"} < set(backends.BACKENDS)
    assert backends.create("tensorrt-rtx").modes == MODES


def test_facts_before_and_after_build(trt: Any, fake: Fake, tmp_path: Path) -> None:
    backend = TensorRt(trt.__name__)
    device_facts = {
        "version": trt.__version__,
        "device": "Fake Orin",
        "compute_capability": "8.7",
        "multiprocessors": 8,
        "driver_cuda": "12.6",
        "cudart": "12.4",
    }
    assert backend.facts() == device_facts
    assert fake.live() == {}
    backend.build(tiny_onnx.write(tmp_path / "m.int8-tensorrt.onnx", "int8"), 1)
    facts = backend.facts()
    backend.close()
    assert device_facts.items() <= facts.items()
    assert (facts["engine"], facts["device_memory_mb"], facts["gpu_memory_total_mb"]) == ("built", 3.0, 1074)
    assert 1073 <= facts["gpu_memory_free_mb"] <= 1074
    assert facts["layers"] == {"int8": 1, "fp16": 0, "other": 4}
    assert facts["warnings"] == ["warning: TensorRT was linked against another cuDNN"]
    assert 0.0 < facts["build_seconds"] < 60.0 and 0.0 < facts["engine_mb"] < 0.1
    assert re.fullmatch(r"[0-9a-f]{64}", facts["engine_sha256"])


def test_flags_follow_version_and_graph_precision(trt: Any, fake: Fake, tmp_path: Path) -> None:
    flags = {}
    for precision in ("fp32", "fp16", "int8"):
        backend = TensorRt(trt.__name__)
        backend.build(tiny_onnx.write(tmp_path / f"{precision}.onnx", precision), 1)
        backend.close()
        flags[precision] = trt.log[-1][1]
        assert trt.log[-1][2] == {"WORKSPACE": 1 << 30}
    if trt.__version__ == "8.6.1":
        assert flags == {"fp32": [], "fp16": ["FP16"], "int8": ["INT8"]}
    else:
        always = ["REQUIRE_USER_ALLOCATION"] if trt.__name__ == "tensorrt_rtx" else []
        assert flags == {"fp32": always, "fp16": always, "int8": always}


def assert_refused(trt: Any, path: Path, match: str, batch: int = 1) -> AgentError:
    backend = TensorRt(trt.__name__)
    with pytest.raises(AgentError, match=match) as caught:
        backend.build(path, 1, batch)
    assert "\n" not in str(caught.value)
    assert backend.cuda is None
    gc.collect()
    assert [reference for reference in trt.gpu_objects if reference() is not None] == []
    return caught.value


def test_uint8_graph_is_refused_before_build(trt: Any, fake: Fake, tmp_path: Path) -> None:
    path = tiny_onnx.write(tmp_path / "student.int8-cpu.onnx", "uint8")
    message = (
        r"^student.int8-cpu.onnx: quantized to what TensorRT has not \(means to uint8; 2 tensors in all\); bench the"
    )
    assert assert_refused(trt, path, message).exit_code == 2
    assert trt.log == [] and fake.live() == {}


def test_parser_error_is_reported(trt: Any, fake: Fake, tmp_path: Path) -> None:
    path = tiny_onnx.write(tmp_path / "m.onnx", operator="Oddity")
    assert_refused(
        trt, path, r"^m.onnx: TensorRT\S* \S+ cannot parse it: In node 0 with name: the_odd_one .*UNSUPPORTED"
    )
    assert fake.live() == {}


@pytest.mark.parametrize(
    ("refusal", "match"),
    [
        ("build", r"cannot build it: .*Error Code 10: Could not find any implementation for node conv1$"),
        ("deserialize", "the engine just built does not load: Serialization assertion magicTagRead failed"),
        ("start", r"does not start: \[checkMacros\] Cuda failure: 35; does nvidia-smi work here"),
    ],
)
def test_builder_error_is_reported(
    trt: Any, fake: Fake, tmp_path: Path, refusal: str, match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOUBLE_REFUSES", refusal)
    assert_refused(trt, tiny_onnx.write(tmp_path / "m.onnx"), match)
    assert fake.live() == {}


def test_failed_enqueue_raises_and_next_one_works(
    trt: Any, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = TensorRt(trt.__name__)
    backend.build(tiny_onnx.write(tmp_path / "m.onnx"), 1)
    monkeypatch.setenv("DOUBLE_REFUSES", "enqueue")
    for mode in MODES:
        with pytest.raises(AgentError, match=r"enqueue failed: .*Cask convolution execution$"):
            backend.infer(tiny_onnx.images(1, 0), mode)
    monkeypatch.delenv("DOUBLE_REFUSES")
    for mode in MODES:
        np.testing.assert_array_equal(
            backend.infer(tiny_onnx.images(1, 5), mode), expected_logits(tmp_path / "m.onnx", tiny_onnx.images(1, 5))
        )
    backend.close()
    assert fake.live() == {}


def test_uncapturable_graph_is_an_error(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_double(fake, monkeypatch, *RTX)
    backend = TensorRt(RTX[0])
    backend.build(tiny_onnx.write(tmp_path / "m.onnx"), 1)
    monkeypatch.setenv("DOUBLE_REFUSES", "capture")
    with pytest.raises(AgentError, match="cannot be captured in a CUDA graph; leave out the mode compute-graph"):
        backend.compute_ms(tiny_onnx.images(1, 0), "compute-graph")
    backend.infer(tiny_onnx.images(1, 0))
    backend.close()


@pytest.mark.parametrize(
    "symbol", ["cudaMalloc", "cudaHostAlloc", "cudaStreamCreateWithFlags", "cudaEventCreateWithFlags"]
)
def test_cuda_error_during_build_leaks_nothing(trt_10: Any, fake: Fake, tmp_path: Path, symbol: str) -> None:
    path = tiny_onnx.write(tmp_path / "m.onnx")
    for calls_before_failure in (0, 1):
        if calls_before_failure and symbol == "cudaStreamCreateWithFlags":
            continue  # there is only one stream
        fake.fail(symbol, 2, calls_before_failure)
        assert_refused(trt_10, path, f"^m.onnx: {symbol}: cudaErrorMemoryAllocation")
        assert fake.live() == {}


def test_unfitting_images_and_modes_are_refused(trt_10: Any, fake: Fake, tmp_path: Path) -> None:
    backend = TensorRt()
    with pytest.raises(AgentError, match="nothing is built; call build first"):
        backend.infer(tiny_onnx.images(1, 0))
    backend.build(tiny_onnx.write(tmp_path / "m.onnx"), 1, batch=2)
    for images, message in (
        (tiny_onnx.images(1, 0), r"uint8 \[1, 8, 8, 3\]: the engine was built for uint8 \[2, 8, 8, 3\]"),
        (tiny_onnx.images(2, 0).astype(np.float32), "float32 .*: the engine was built for uint8"),
    ):
        with pytest.raises(AgentError, match=message):
            backend.infer(images)
    with pytest.raises(AgentError, match="tensorrt has no mode offline-2; one of: host-to-host, compute, "):
        backend.infer(tiny_onnx.images(2, 0), "offline-2")
    with pytest.raises(AgentError, match="host-to-host has no window on the device"):
        backend.compute_ms(tiny_onnx.images(2, 0), "host-to-host")
    backend.close()


def test_fixed_batch_is_accepted_or_refused(trt: Any, fake: Fake, tmp_path: Path) -> None:
    path = tiny_onnx.write(tmp_path / "m.onnx", batch=2)
    backend = TensorRt(trt.__name__)
    backend.build(path, 1, batch=2)
    images = tiny_onnx.images(2, 3)
    np.testing.assert_array_equal(backend.infer(images, "host-to-host-graph"), expected_logits(path, images))
    backend.close()
    assert_refused(trt, path, r"m.onnx: the graph takes batches of 2, not 1; export it with a dynamic batch")


def test_missing_or_old_package_is_an_error(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(AgentError, match=r"tensorrt does not import in .*; .* -m pip install tensorrt; on a Jetson"):
        TensorRt().facts()
    for package, version, oldest in (("tensorrt", "8.5.2.2", "8.6"), ("tensorrt_rtx", "1.1.1.26", "1.2")):
        monkeypatch.setitem(sys.modules, package, trt_double.module("tensorrt", "8.6.1"))
        monkeypatch.setattr(sys.modules[package], "__version__", version)
        with pytest.raises(AgentError, match=f"{version} is older than {oldest}, the first that can be used") as caught:
            TensorRt(package).facts()
        assert caught.value.exit_code == 2


def test_missing_gpu_makes_backend_unavailable(trt: Any, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CUDART_DEVICES", "0")
    name = trt.__name__.replace("_", "-")
    assert backends.available()[name].startswith("not here: cudaGetDeviceCount: cudaErrorNoDevice")


def test_every_version_branch_is_tested() -> None:
    tested_branches = [tensorrt_build.branch_of(package, version) for package, version in VERSIONS]
    for package, rows in tensorrt_build.BRANCHES.items():
        assert [since for since, _ in rows] == sorted(since for since, _ in rows), package
        assert all(branch in tested_branches for _, branch in rows)


@pytest.mark.gpu
@pytest.mark.parametrize("package", ["tensorrt", "tensorrt_rtx"])
def test_real_gpu_runs_every_mode(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cuda.EXPLICIT, raising=False)
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path / "cache"))
    try:
        TensorRt(package).facts()
    except AgentError as error:
        pytest.skip(str(error))
    for precision in ("fp32", "fp16", "int8"):
        path = tiny_onnx.write(tmp_path / f"{precision}.onnx", precision)
        for engine in ("built", "cached"):
            backend = TensorRt(package)
            backend.build(path, 1, batch=2)
            assert backend.facts()["engine"] == engine
            for seed, mode in enumerate(MODES):
                images = tiny_onnx.images(2, seed)
                # TF32 keeps ten bits, float16 as many; logits reach a few hundred
                np.testing.assert_allclose(
                    backend.infer(images, mode), expected_logits(path, images), rtol=1e-2, atol=1.0
                )
                if mode.startswith("compute"):
                    assert 0.0 < backend.compute_ms(images, mode) < 1000.0
            backend.close()
