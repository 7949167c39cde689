"""The TensorRT backend, every version's branch, against doubles that compute with ONNX Runtime on a fake libcudart."""

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
    """One version of one package, as if it were installed."""
    return installed(fake, monkeypatch, *getattr(request, "param", VERSIONS[1]))


def installed(fake: Fake, monkeypatch: pytest.MonkeyPatch, package: str, version: str) -> Any:
    made = trt_double.module(package, version, fake.library)
    monkeypatch.setitem(sys.modules, package, made)
    return made


@pytest.fixture
def trt_10(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> Any:
    return installed(fake, monkeypatch, "tensorrt", "10.3.0")


def expected(path: Path, images: np.ndarray) -> np.ndarray:
    logits: np.ndarray = trt_double.session(path.read_bytes()).run(None, {"images": images})[0]
    return logits


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_answers_are_right_in_every_mode_and_for_new_images(
    trt: Any, fake: Fake, tmp_path: Path, precision: str
) -> None:
    path = tiny_onnx.write(tmp_path / f"student.{precision}.onnx", precision)
    for batch in (1, 4):
        backend = TensorRt(trt.__name__)
        backend.build(path, threads=1, batch=batch)
        answers = []
        for seed in range(3):
            images = tiny_onnx.images(batch, seed)
            for mode in MODES:
                answers.append(backend.infer(images, mode))
                np.testing.assert_array_equal(answers[-1], expected(path, images))
        assert len({answer.tobytes() for answer in answers}) == 3  # nobody's answer changes afterwards
        assert answers[0].dtype == np.float32 and answers[0].shape == (batch, 3)
        backend.close()
        assert fake.live() == {}


def test_closing_frees_graphs_first_then_tensorrt_then_memory(trt: Any, fake: Fake, tmp_path: Path) -> None:
    backend = TensorRt(trt.__name__)
    backend.build(tiny_onnx.write(tmp_path / "m.onnx"), 1)
    for mode in MODES:
        backend.infer(tiny_onnx.images(1, 0), mode)
    gc.collect()
    assert len([one for one in trt.made if one() is not None]) == 3  # runtime, engine, context
    fake.calls()
    backend.close()
    backend.close()
    gc.collect()
    assert [one for one in trt.made if one() is not None] == []
    freed = fake.calls()
    assert freed[:2] == ["cudaGraphExecDestroy"] * 2
    assert freed[2:] == [*["cudaEventDestroy"] * 2, "cudaStreamDestroy", *["cudaFree"] * 2, *["cudaFreeHost"] * 2]
    assert fake.live() == {}
    backend.build(tmp_path / "m.onnx", 1)  # and once more
    backend.close()
    assert fake.live() == {}


def test_the_context_ends_after_the_graphs_and_before_the_stream(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(fake, monkeypatch, *RTX)
    there: list[dict[str, int]] = []
    monkeypatch.setattr(tensorrt_build, "just_in_time_bytes", lambda cache: there.append(fake.live()) or b"")
    backend = TensorRt(RTX[0])
    backend.build(tiny_onnx.write(tmp_path / "m.onnx"), 1)
    backend.infer(tiny_onnx.images(1, 0), "compute-graph")
    backend.close()
    assert there == [{"device": 2, "pinned": 2, "stream": 1, "event": 2}]


COPY, RUN, MARK, WAIT = "cudaMemcpyAsync", "cudaLaunchHostFunc", "cudaEventRecord", "cudaStreamSynchronize"
WINDOWS = {
    "host-to-host": [COPY, RUN, COPY, WAIT],
    "host-to-host-graph": ["cudaGraphLaunch", WAIT],
    "compute": [COPY, WAIT, MARK, RUN, MARK, WAIT, "cudaEventElapsedTime"],
    "compute-graph": [COPY, WAIT, MARK, "cudaGraphLaunch", MARK, WAIT, "cudaEventElapsedTime"],
}


@pytest.mark.parametrize("mode", WINDOWS)
def test_a_window_holds_what_it_says(trt: Any, fake: Fake, tmp_path: Path, mode: str) -> None:
    backend = TensorRt(trt.__name__)
    backend.build(tiny_onnx.write(tmp_path / "m.onnx"), 1)
    ask: Any = backend.infer if mode.startswith("host") else backend.compute_ms
    fake.calls()
    first = ask(tiny_onnx.images(1, 0), mode)
    calls = fake.calls()
    assert calls.count("cudaStreamBeginCapture") == mode.endswith("graph")
    # the first call captures, and its time must not hold that
    assert mode != "compute-graph" or calls.index(MARK) > calls.index("cudaGraphInstantiateWithFlags")
    for seed in range(2):
        answer = ask(tiny_onnx.images(1, seed), mode)
        assert fake.calls() == WINDOWS[mode]
    if mode.startswith("compute"):
        assert all(isinstance(ms, float) and 0.0 < ms < 1000.0 for ms in (first, answer))
    backend.close()


def test_every_mode_says_what_its_window_holds() -> None:
    assert list(MODES) == ["host-to-host", "compute", "host-to-host-graph", "compute-graph"]
    assert set(MODES) == set(WINDOWS) and len(set(MODES.values())) == 4
    assert {"tensorrt", "tensorrt-rtx"} < set(backends.BACKENDS)
    assert backends.create("tensorrt-rtx").modes == MODES


def test_facts_before_and_after_building(trt: Any, fake: Fake, tmp_path: Path) -> None:
    backend = TensorRt(trt.__name__)
    here = {
        "version": trt.__version__,
        "device": "Fake Orin",
        "compute_capability": "8.7",
        "multiprocessors": 8,
        "driver_cuda": "12.6",
        "cudart": "12.4",
    }
    assert backend.facts() == here
    assert fake.live() == {}
    backend.build(tiny_onnx.write(tmp_path / "m.int8-tensorrt.onnx", "int8"), 1)
    facts = backend.facts()
    backend.close()
    assert here.items() <= facts.items()
    assert (facts["engine"], facts["device_memory_mb"], facts["gpu_memory_total_mb"]) == ("built", 3.0, 1074)
    assert 1073 <= facts["gpu_memory_free_mb"] <= 1074
    assert facts["layers"] == {"int8": 1, "fp16": 0, "other": 4}
    assert facts["warnings"] == ["warning: TensorRT was linked against another cuDNN"]
    assert 0.0 < facts["build_seconds"] < 60.0 and 0.0 < facts["engine_mb"] < 0.1
    assert re.fullmatch(r"[0-9a-f]{64}", facts["engine_sha256"])


def test_flags_follow_version_and_graph(trt: Any, fake: Fake, tmp_path: Path) -> None:
    found = {}
    for precision in ("fp32", "fp16", "int8"):
        backend = TensorRt(trt.__name__)
        backend.build(tiny_onnx.write(tmp_path / f"{precision}.onnx", precision), 1)
        backend.close()
        found[precision] = trt.log[-1][1]
        assert trt.log[-1][2] == {"WORKSPACE": 1 << 30}
    if trt.__version__ == "8.6.1":
        assert found == {"fp32": [], "fp16": ["FP16"], "int8": ["INT8"]}
    else:
        always = ["REQUIRE_USER_ALLOCATION"] if trt.__name__ == "tensorrt_rtx" else []
        assert found == {"fp32": always, "fp16": always, "int8": always}


def refused(trt: Any, path: Path, match: str, batch: int = 1) -> AgentError:
    backend = TensorRt(trt.__name__)
    with pytest.raises(AgentError, match=match) as caught:
        backend.build(path, 1, batch)
    assert "\n" not in str(caught.value)
    assert backend.cuda is None
    gc.collect()
    assert [one for one in trt.made if one() is not None] == []
    return caught.value


def test_uint8_is_refused_before_tensorrt_sees_it(trt: Any, fake: Fake, tmp_path: Path) -> None:
    path = tiny_onnx.write(tmp_path / "student.int8-cpu.onnx", "uint8")
    said = r"^student.int8-cpu.onnx: quantized to what TensorRT has not \(means to uint8; 2 tensors in all\); bench the"
    assert refused(trt, path, said).exit_code == 2
    assert trt.log == [] and fake.live() == {}


def test_what_the_parser_says_is_said(trt: Any, fake: Fake, tmp_path: Path) -> None:
    path = tiny_onnx.write(tmp_path / "m.onnx", operator="Oddity")
    refused(trt, path, r"^m.onnx: TensorRT\S* \S+ cannot parse it: In node 0 with name: the_odd_one .*UNSUPPORTED")
    assert fake.live() == {}


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ("build", r"cannot build it: .*Error Code 10: Could not find any implementation for node conv1$"),
        ("deserialize", "the engine just built does not load: Serialization assertion magicTagRead failed"),
        ("start", r"does not start: \[checkMacros\] Cuda failure: 35; does nvidia-smi work here"),
    ],
)
def test_what_the_builder_says_is_said(
    trt: Any, fake: Fake, tmp_path: Path, how: str, match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOUBLE_REFUSES", how)
    refused(trt, tiny_onnx.write(tmp_path / "m.onnx"), match)
    assert fake.live() == {}


def test_an_enqueue_that_fails_is_no_answer(
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
            backend.infer(tiny_onnx.images(1, 5), mode), expected(tmp_path / "m.onnx", tiny_onnx.images(1, 5))
        )
    backend.close()
    assert fake.live() == {}


def test_a_graph_that_cannot_be_captured_is_said_to_be(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(fake, monkeypatch, *RTX)
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
def test_what_cuda_refuses_while_building_leaks_nothing(trt_10: Any, fake: Fake, tmp_path: Path, symbol: str) -> None:
    path = tiny_onnx.write(tmp_path / "m.onnx")
    for after in (0, 1):
        if after and symbol == "cudaStreamCreateWithFlags":
            continue  # there is but one stream
        fake.fail(symbol, 2, after)
        refused(trt_10, path, f"^m.onnx: {symbol}: cudaErrorMemoryAllocation")
        assert fake.live() == {}


def test_images_and_modes_that_do_not_fit(trt_10: Any, fake: Fake, tmp_path: Path) -> None:
    backend = TensorRt()
    with pytest.raises(AgentError, match="nothing is built; call build first"):
        backend.infer(tiny_onnx.images(1, 0))
    backend.build(tiny_onnx.write(tmp_path / "m.onnx"), 1, batch=2)
    for wrong, said in (
        (tiny_onnx.images(1, 0), r"uint8 \[1, 8, 8, 3\]: the engine was built for uint8 \[2, 8, 8, 3\]"),
        (tiny_onnx.images(2, 0).astype(np.float32), "float32 .*: the engine was built for uint8"),
    ):
        with pytest.raises(AgentError, match=said):
            backend.infer(wrong)
    with pytest.raises(AgentError, match="tensorrt has no mode offline-2; one of: host-to-host, compute, "):
        backend.infer(tiny_onnx.images(2, 0), "offline-2")
    with pytest.raises(AgentError, match="host-to-host has no window on the device"):
        backend.compute_ms(tiny_onnx.images(2, 0), "host-to-host")
    backend.close()


def test_a_fixed_batch_is_taken_or_refused(trt: Any, fake: Fake, tmp_path: Path) -> None:
    path = tiny_onnx.write(tmp_path / "m.onnx", batch=2)
    backend = TensorRt(trt.__name__)
    backend.build(path, 1, batch=2)
    images = tiny_onnx.images(2, 3)
    np.testing.assert_array_equal(backend.infer(images, "host-to-host-graph"), expected(path, images))
    backend.close()
    refused(trt, path, r"m.onnx: the graph takes batches of 2, not 1; export it with a dynamic batch")


def test_no_package_and_too_old_a_package(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(AgentError, match=r"tensorrt does not import in .*; .* -m pip install tensorrt; on a Jetson"):
        TensorRt().facts()
    for package, version, oldest in (("tensorrt", "8.5.2.2", "8.6"), ("tensorrt_rtx", "1.1.1.26", "1.2")):
        monkeypatch.setitem(sys.modules, package, trt_double.module("tensorrt", "8.6.1"))
        monkeypatch.setattr(sys.modules[package], "__version__", version)
        with pytest.raises(AgentError, match=f"{version} is older than {oldest}, the first that can be used") as caught:
            TensorRt(package).facts()
        assert caught.value.exit_code == 2


def test_no_gpu_is_a_missing_runtime(trt: Any, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CUDART_DEVICES", "0")
    name = trt.__name__.replace("_", "-")
    assert backends.available()[name].startswith("not here: cudaGetDeviceCount: cudaErrorNoDevice")


def test_every_branch_has_a_version_that_is_tested() -> None:
    taken = [tensorrt_build.branch_of(package, version) for package, version in VERSIONS]
    for package, rows in tensorrt_build.BRANCHES.items():
        assert [since for since, _ in rows] == sorted(since for since, _ in rows), package
        assert all(branch in taken for _, branch in rows)


@pytest.mark.gpu
@pytest.mark.parametrize("package", ["tensorrt", "tensorrt_rtx"])
def test_a_real_gpu_answers_in_every_mode(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
                np.testing.assert_allclose(backend.infer(images, mode), expected(path, images), rtol=1e-2, atol=1.0)
                if mode.startswith("compute"):
                    assert 0.0 < backend.compute_ms(images, mode) < 1000.0
            backend.close()
