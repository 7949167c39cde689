"""Engines on disk: the very engine or none, whatever happens to the files, and whoever else writes them."""

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
    made = trt_double.module("tensorrt", "10.3.0", fake.library)
    monkeypatch.setitem(sys.modules, "tensorrt", made)
    return made


def build(path: Path, package: str = "tensorrt", batch: int = 1) -> dict[str, Any]:
    """The facts of one building, after which the answers were looked at."""
    backend = TensorRt(package)
    backend.build(path, 1, batch)
    images = tiny_onnx.images(batch, 3)
    expected = trt_double.session(path.read_bytes()).run(None, {"images": images})[0]
    np.testing.assert_array_equal(backend.infer(images), expected)
    facts = backend.facts()
    backend.close()
    return facts


def kept(tmp_path: Path, suffix: str) -> list[Path]:
    return sorted((tmp_path / "cache" / "engines").glob(f"*{suffix}"))


def test_a_second_building_takes_the_engine_from_disk(trt: Any, tmp_path: Path) -> None:
    path = tiny_onnx.write(tmp_path / "m.onnx")
    first, second = build(path), build(path)
    assert (first["engine"], second["engine"], len(trt.log)) == ("built", "cached", 1)
    assert first["build_seconds"] == second["build_seconds"] and first["engine_sha256"] == second["engine_sha256"]
    (engine,), (record,) = kept(tmp_path, ".engine"), kept(tmp_path, ".json")
    assert engine.stem == record.stem
    said = json.loads(record.read_text())
    assert set(said) == {"key", "engine_sha256", "engine_bytes", "build_seconds"}
    assert said["key"] == {
        "onnx_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "package": "tensorrt",
        "version": "10.3.0",
        "device": ["Fake Orin", "8.7", 8],
        "batch": 1,
        "settings": {"network_flags": ["STRONGLY_TYPED"], "builder_flags": [], "workspace_mb": 1024},
    }
    assert said["engine_sha256"] == hashlib.sha256(engine.read_bytes()).hexdigest()
    assert engine.parent.stat().st_mode & 0o777 == 0o700
    renamed = path.rename(tmp_path / "the same.onnx")  # what counts is what is in it
    assert build(renamed)["engine"] == "cached"


def of_another_version(fake: Fake, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "tensorrt", trt_double.module("tensorrt", "10.3.1", fake.library))


OTHERS: dict[str, Callable[[Fake, pytest.MonkeyPatch], None]] = {
    "version": of_another_version,
    "device name": lambda _, patch: patch.setenv("FAKE_CUDART_NAME", "Fake Thor"),
    "compute capability": lambda _, patch: patch.setenv("FAKE_CUDART_CAPABILITY", "110"),
    "multiprocessors": lambda _, patch: patch.setenv("FAKE_CUDART_MULTIPROCESSORS", "4"),
    "settings": lambda _, patch: patch.setattr(tensorrt_build, "WORKSPACE_MB", 512),
}


@pytest.mark.parametrize("part", OTHERS)
def test_each_part_of_the_key_counts(
    trt: Any, fake: Fake, tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_onnx.write(tmp_path / "m.onnx")
    build(path)
    with monkeypatch.context() as patch:
        OTHERS[part](fake, patch)
        assert build(path)["engine"] == "built"
        assert len(kept(tmp_path, ".engine")) == 2
    assert build(path)["engine"] == "cached"


def test_other_weights_another_batch_and_another_package_count(
    trt: Any, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_onnx.write(tmp_path / "m.onnx")
    build(path)
    assert build(path, batch=2)["engine"] == "built"
    assert build(tiny_onnx.write(tmp_path / "m.onnx", scale=2.0))["engine"] == "built"
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", trt_double.module("tensorrt_rtx", "10.3.0", fake.library))
    assert build(path, "tensorrt_rtx")["engine"] == "built"
    assert len(kept(tmp_path, ".engine")) == 4


def test_the_driver_does_not_count(trt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_onnx.write(tmp_path / "m.onnx")
    build(path)
    monkeypatch.setenv("FAKE_CUDART_DRIVER", "13000")
    assert build(path)["engine"] == "cached"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    said = json.loads(path.read_text())
    change(said)
    path.write_text(json.dumps(said))


DAMAGE: dict[str, Callable[[Path, Path], Any]] = {
    "a bit of the engine": lambda engine, record: flip(engine),
    "the engine cut short": lambda engine, record: engine.write_bytes(engine.read_bytes()[:-1]),
    "no engine": lambda engine, record: engine.unlink(),
    "no json": lambda engine, record: record.unlink(),
    "half a json": lambda engine, record: record.write_text(record.read_text()[:40]),
    "json of something else": lambda engine, record: record.write_text("[1, 2]"),
    "a json that speaks of another device": lambda engine, record: edit(
        record, lambda said: said["key"].update(device=["Fake Thor", "11.0", 20])
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_damaged_is_built_again(trt: Any, tmp_path: Path, what: str) -> None:
    path = tiny_onnx.write(tmp_path / "m.onnx")
    build(path)
    (engine,), (record,) = kept(tmp_path, ".engine"), kept(tmp_path, ".json")
    DAMAGE[what](engine, record)
    assert build(path)["engine"] == "built"
    assert build(path)["engine"] == "cached"


def test_an_engine_that_does_not_load_is_built_again(trt: Any, tmp_path: Path) -> None:
    path = tiny_onnx.write(tmp_path / "m.onnx")
    build(path)
    (engine,), (record,) = kept(tmp_path, ".engine"), kept(tmp_path, ".json")
    # whole as far as hashes go, but of another version: what a copied cache with an edited json would hold
    engine.write_bytes(engine.read_bytes().replace(b"10.3.0", b"10.2.0"))
    edit(record, lambda said: said.update(engine_sha256=hashlib.sha256(engine.read_bytes()).hexdigest()))
    assert build(path)["engine"] == "built"
    assert build(path)["engine"] == "cached"


def test_a_cache_that_cannot_be_written_costs_only_time(
    trt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path / "file"))
    path = tiny_onnx.write(tmp_path / "m.onnx")
    assert build(path)["engine"] == build(path)["engine"] == f"built; {tmp_path}/file/engines cannot be written"


def test_a_write_that_breaks_off_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path / "cache"))
    assert engines.store({"key": 1}, engines.Kept(b"whole", 1.0))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert not engines.store({"key": 1}, engines.Kept(b"other", 2.0))
    assert engines.load({"key": 1}) == engines.Kept(b"whole", 1.0)
    assert [path for path in kept(tmp_path, "") if path.name.startswith(".")] == []


def test_timings_are_kept_and_those_of_another_device_left(trt: Any, tmp_path: Path) -> None:
    build(tiny_onnx.write(tmp_path / "m.onnx"))
    (timings,) = kept(tmp_path, "")[-1:]
    assert timings.name.startswith("timings-")
    assert engines.load_blob(timings.name) == b"timings of this device"
    for damage in (b"timings of another device", b""):
        engines.store_blob(timings.name, damage)
        build(tiny_onnx.write(tmp_path / "m.onnx", scale=float(3 + len(damage))))
        assert engines.load_blob(timings.name) == b"timings of this device"
    flip(timings)
    assert engines.load_blob(timings.name) == b""


def test_kernels_compiled_just_in_time_are_kept(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", trt_double.module("tensorrt_rtx", "1.7.1.116", fake.library))
    given: list[bytes] = []
    monkeypatch.setattr(trt_double.IRuntimeCache, "deserialize", lambda self, blob: given.append(blob))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", trt_double.module("tensorrt_rtx", "1.7.1.116", fake.library))
    path = tiny_onnx.write(tmp_path / "m.onnx")
    build(path, "tensorrt_rtx")
    assert given == []
    build(path, "tensorrt_rtx")
    assert given == [b"kernels"]
    assert not any(path.name.startswith("timings-") for path in kept(tmp_path, ""))


def test_one_builds_while_the_other_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path / "cache"))
    said: list[str] = []

    def other() -> None:
        with engines.locked({"one": 1}):
            said.append("other")

    with engines.locked({"one": 1}):
        waiting = threading.Thread(target=other)
        waiting.start()
        with engines.locked({"another": 1}):
            time.sleep(0.2)
        said.append("first")
    waiting.join(10)
    assert said == ["first", "other"]


WRITER = """
import sys
from edgedistill.agent import engines
for turn in range(60):
    data = bytes([int(sys.argv[1])]) * (20_000 + 1000 * int(sys.argv[1]))
    assert engines.store({"key": 1}, engines.Kept(data, float(sys.argv[1])))
"""


def test_two_processes_that_write_at_once_leave_a_whole_engine_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path / "cache"))
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(mark)], env=dict(os.environ)) for mark in (1, 2)]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        found = engines.load({"key": 1})
        if found is not None:
            assert set(found.plan) == {int(found.build_seconds)}
            assert len(found.plan) == 20_000 + 1000 * found.plan[0]
            seen.add(found.plan[0])
    assert [writer.wait(60) for writer in writers] == [0, 0]
    assert seen
    assert [path for path in kept(tmp_path, "") if path.name.startswith(".")] == []


def test_without_locks_things_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with engines.locked({"one": 1}), engines.locked({"one": 1}):
        assert engines.store({"one": 1}, engines.Kept(b"plan", 1.0))
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(AgentError), engines.locked({"one": 1}):
        raise AgentError("what happens inside comes out")
