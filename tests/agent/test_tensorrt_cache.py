"""The engine cache: a valid engine or none, also with damaged files and concurrent writers."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgedistill.agent import engines, tensorrt_build
from edgedistill.agent.job import AgentError
from edgedistill.agent.tensorrt import TensorRt
from tests.helpers import tiny_onnx, trt_double
from tests.helpers.fake_cuda import Fake


@pytest.fixture
def trt(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = trt_double.module("tensorrt", "10.3.0", fake.library)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


def build(path: Path, package: str = "tensorrt", batch: int = 1) -> dict[str, Any]:
    """Build an engine, check its logits, and return the facts of the build."""
    backend = TensorRt(package)
    backend.build(path, 1, batch)
    images = tiny_onnx.images(batch, 3)
    expected = trt_double.session(path.read_bytes()).run(None, {"images": images})[0]
    np.testing.assert_array_equal(backend.infer(images), expected)
    facts = backend.facts()
    backend.close()
    return facts


def cache_files(tmp_path: Path, suffix: str) -> list[Path]:
    return sorted((tmp_path / "cache" / "engines").glob(f"*{suffix}"))


def test_second_build_loads_engine_from_disk(trt: Any, tmp_path: Path) -> None:
    path = tiny_onnx.write(tmp_path / "m.onnx")
    first, second = build(path), build(path)
    assert (first["engine"], second["engine"], len(trt.log)) == ("built", "cached", 1)
    assert first["build_seconds"] == second["build_seconds"] and first["engine_sha256"] == second["engine_sha256"]
    (engine,), (record,) = cache_files(tmp_path, ".engine"), cache_files(tmp_path, ".json")
    assert engine.stem == record.stem
    contents = json.loads(record.read_text())
    assert set(contents) == {"key", "engine_sha256", "engine_bytes", "build_seconds"}
    assert contents["key"] == {
        "onnx_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "package": "tensorrt",
        "version": "10.3.0",
        "device": ["Fake Orin", "8.7", 8],
        "batch": 1,
        "settings": {"network_flags": ["STRONGLY_TYPED"], "builder_flags": [], "workspace_mb": 1024},
    }
    assert contents["engine_sha256"] == hashlib.sha256(engine.read_bytes()).hexdigest()
    assert engine.parent.stat().st_mode & 0o777 == 0o700
    renamed = path.rename(tmp_path / "the same.onnx")  # the key depends on content, not on the name
    assert build(renamed)["engine"] == "cached"


def install_other_version(fake: Fake, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "tensorrt", trt_double.module("tensorrt", "10.3.1", fake.library))


CHANGES: dict[str, Callable[[Fake, pytest.MonkeyPatch], None]] = {
    "version": install_other_version,
    "device name": lambda _, patch: patch.setenv("FAKE_CUDART_NAME", "Fake Thor"),
    "compute capability": lambda _, patch: patch.setenv("FAKE_CUDART_CAPABILITY", "110"),
    "multiprocessors": lambda _, patch: patch.setenv("FAKE_CUDART_MULTIPROCESSORS", "4"),
    "settings": lambda _, patch: patch.setattr(tensorrt_build, "WORKSPACE_MB", 512),
}


@pytest.mark.parametrize("part", CHANGES)
def test_each_part_of_key_causes_new_build(
    trt: Any, fake: Fake, tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_onnx.write(tmp_path / "m.onnx")
    build(path)
    with monkeypatch.context() as patch:
        CHANGES[part](fake, patch)
        assert build(path)["engine"] == "built"
        assert len(cache_files(tmp_path, ".engine")) == 2
    assert build(path)["engine"] == "cached"


def test_other_weights_batch_or_package_causes_new_build(
    trt: Any, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_onnx.write(tmp_path / "m.onnx")
    build(path)
    assert build(path, batch=2)["engine"] == "built"
    assert build(tiny_onnx.write(tmp_path / "m.onnx", scale=2.0))["engine"] == "built"
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", trt_double.module("tensorrt_rtx", "10.3.0", fake.library))
    assert build(path, "tensorrt_rtx")["engine"] == "built"
    assert len(cache_files(tmp_path, ".engine")) == 4


def test_other_driver_reuses_engine(trt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_onnx.write(tmp_path / "m.onnx")
    build(path)
    monkeypatch.setenv("FAKE_CUDART_DRIVER", "13000")
    assert build(path)["engine"] == "cached"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    contents = json.loads(path.read_text())
    change(contents)
    path.write_text(json.dumps(contents))


DAMAGE: dict[str, Callable[[Path, Path], Any]] = {
    "a bit of the engine": lambda engine, record: flip(engine),
    "the engine cut short": lambda engine, record: engine.write_bytes(engine.read_bytes()[:-1]),
    "no engine": lambda engine, record: engine.unlink(),
    "no json": lambda engine, record: record.unlink(),
    "half a json": lambda engine, record: record.write_text(record.read_text()[:40]),
    "json of something else": lambda engine, record: record.write_text("[1, 2]"),
    "a json that speaks of another device": lambda engine, record: edit(
        record, lambda contents: contents["key"].update(device=["Fake Thor", "11.0", 20])
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_cache_files_cause_new_build(trt: Any, tmp_path: Path, damage: str) -> None:
    path = tiny_onnx.write(tmp_path / "m.onnx")
    build(path)
    (engine,), (record,) = cache_files(tmp_path, ".engine"), cache_files(tmp_path, ".json")
    DAMAGE[damage](engine, record)
    assert build(path)["engine"] == "built"
    assert build(path)["engine"] == "cached"


def test_engine_that_does_not_load_is_built_again(trt: Any, tmp_path: Path) -> None:
    path = tiny_onnx.write(tmp_path / "m.onnx")
    build(path)
    (engine,), (record,) = cache_files(tmp_path, ".engine"), cache_files(tmp_path, ".json")
    # hashes match, but the engine is of another version, like a copied cache with an edited json
    engine.write_bytes(engine.read_bytes().replace(b"10.3.0", b"10.2.0"))
    edit(record, lambda contents: contents.update(engine_sha256=hashlib.sha256(engine.read_bytes()).hexdigest()))
    assert build(path)["engine"] == "built"
    assert build(path)["engine"] == "cached"


def test_unwritable_cache_causes_new_build_each_time(trt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path / "file"))
    path = tiny_onnx.write(tmp_path / "m.onnx")
    assert build(path)["engine"] == build(path)["engine"] == f"built; {tmp_path}/file/engines cannot be written"


def test_interrupted_write_keeps_previous_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path / "cache"))
    assert engines.store({"key": 1}, engines.Kept(b"whole", 1.0))

    def fail_fsync(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail_fsync)
    assert not engines.store({"key": 1}, engines.Kept(b"other", 2.0))
    assert engines.load({"key": 1}) == engines.Kept(b"whole", 1.0)
    assert [path for path in cache_files(tmp_path, "") if path.name.startswith(".")] == []


def test_timings_are_cached_and_replaced_for_another_device(trt: Any, tmp_path: Path) -> None:
    build(tiny_onnx.write(tmp_path / "m.onnx"))
    (timings,) = cache_files(tmp_path, "")[-1:]
    assert timings.name.startswith("timings-")
    assert engines.load_blob(timings.name) == b"timings of this device"
    for damage in (b"timings of another device", b""):
        engines.store_blob(timings.name, damage)
        build(tiny_onnx.write(tmp_path / "m.onnx", scale=float(3 + len(damage))))
        assert engines.load_blob(timings.name) == b"timings of this device"
    flip(timings)
    assert engines.load_blob(timings.name) == b""


def test_just_in_time_kernels_are_cached(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", trt_double.module("tensorrt_rtx", "1.7.1.116", fake.library))
    cached_kernels: list[bytes] = []
    monkeypatch.setattr(trt_double.IRuntimeCache, "deserialize", lambda self, blob: cached_kernels.append(blob))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", trt_double.module("tensorrt_rtx", "1.7.1.116", fake.library))
    path = tiny_onnx.write(tmp_path / "m.onnx")
    build(path, "tensorrt_rtx")
    assert cached_kernels == []
    build(path, "tensorrt_rtx")
    assert cached_kernels == [b"kernels"]
    assert not any(path.name.startswith("timings-") for path in cache_files(tmp_path, ""))


def test_second_process_waits_for_lock_of_same_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path / "cache"))
    order: list[str] = []

    def hold_same_lock() -> None:
        with engines.locked({"one": 1}):
            order.append("other")

    with engines.locked({"one": 1}):
        waiting = threading.Thread(target=hold_same_lock)
        waiting.start()
        with engines.locked({"another": 1}):
            time.sleep(0.2)
        order.append("first")
    waiting.join(10)
    assert order == ["first", "other"]


WRITER = """
import sys
from edgedistill.agent import engines
for turn in range(60):
    plan = bytes([int(sys.argv[1])]) * (20_000 + 1000 * int(sys.argv[1]))
    assert engines.store({"key": 1}, engines.Kept(plan, float(sys.argv[1])))
"""


def test_concurrent_writers_leave_complete_engine_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path / "cache"))
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(mark)], env=dict(os.environ)) for mark in (1, 2)]
    writers_read = set()
    while any(writer.poll() is None for writer in writers):
        engine = engines.load({"key": 1})
        if engine is not None:
            assert set(engine.plan) == {int(engine.build_seconds)}
            assert len(engine.plan) == 20_000 + 1000 * engine.plan[0]
            writers_read.add(engine.plan[0])
    assert [writer.wait(60) for writer in writers] == [0, 0]
    assert writers_read
    assert [path for path in cache_files(tmp_path, "") if path.name.startswith(".")] == []


def test_missing_fcntl_does_not_prevent_caching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with engines.locked({"one": 1}), engines.locked({"one": 1}):
        assert engines.store({"one": 1}, engines.Kept(b"plan", 1.0))
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(AgentError), engines.locked({"one": 1}):
        raise AgentError("what happens inside comes out")
