"""What a bundle holds, that it is the same each time, and that an altered one is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgedistill.devices.bundle import agent_archive, model_name, verify_bundle, write_bundle
from edgedistill.errors import EdgeDistillError, InputError
from edgedistill.records import OnnxModel

Models = list[tuple[Path, OnnxModel]]
HELD = {
    "student.fp32.onnx",
    "student.int8-cpu.onnx",
    "agent.pyz",
    "label.py",
    "images.npy",
    "labels.npy",
    "host.fp32.npy",
    "host.int8-cpu.npy",
    "bundle.json",
    "SHA256SUMS",
}


def test_it_holds_what_a_device_needs_and_nothing_else(bundle: Path) -> None:
    assert {path.name for path in bundle.iterdir()} == HELD
    assert {path.name for path in verify_bundle(bundle)} == HELD - {"SHA256SUMS"}


def test_it_describes_itself(bundle: Path, models: Models) -> None:
    told = json.loads((bundle / "bundle.json").read_text())
    assert told["classes"] == ["red", "green", "blue"]
    assert told["input"] == {"name": "images", "dtype": "uint8", "layout": "NHWC", "channels": "RGB"}
    assert told["default"] == "fp32"
    assert [(one["name"], one["file"], one["sha256"]) for one in told["models"]] == [
        (model_name(record), path.name, record.sha256) for path, record in models
    ]


def test_arrays_have_the_agents_types(bundle: Path) -> None:
    assert np.load(bundle / "images.npy").dtype == np.uint8
    assert np.load(bundle / "labels.npy").dtype == np.load(bundle / "host.fp32.npy").dtype == np.int64


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum program here")
def test_sha256sum_checks_it(bundle: Path) -> None:
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=bundle, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b": OK") == len(HELD) - 1


def test_the_agent_archive_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    assert hashlib.sha256(agent_archive()).digest() == hashlib.sha256(agent_archive()).digest()
    (tmp_path / "agent.pyz").write_bytes(agent_archive())
    with zipfile.ZipFile(tmp_path / "agent.pyz") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        names = set(archive.namelist())
    assert {"__main__.py", "agent/__init__.py", "agent/__main__.py", "agent/metrics.py"} <= names
    assert "agent/label.py" not in names


def test_stale_files_go_and_foreign_ones_stay(bundle: Path, models: Models, pictures: np.ndarray) -> None:
    (bundle / "picture.jpg").write_bytes(b"someone's own")
    about = {"classes": ["a", "b", "c"], "input_px": 8, "store_px": 8, "fit": "crop"}
    files = write_bundle(
        bundle, models[:1], description=about, images_NHWC=pictures, labels_N=np.zeros(30, int), host_predictions={}
    )
    left = {path.name for path in bundle.iterdir()}
    assert left == {path.name for path in files} | {"picture.jpg"}
    assert "student.int8-cpu.onnx" not in left
    verify_bundle(bundle)


@pytest.mark.parametrize("name", sorted(HELD - {"SHA256SUMS"}))
def test_one_altered_byte_is_refused(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(InputError, match=name):
        verify_bundle(bundle)


@pytest.mark.parametrize("text", ["", "nonsense", "0123  ../../etc/passwd\n"])
def test_broken_sums_are_refused(bundle: Path, text: str) -> None:
    (bundle / "SHA256SUMS").write_text(text)
    with pytest.raises(InputError, match="is not a list"):
        verify_bundle(bundle)


def test_missing_file_and_missing_bundle_are_refused(bundle: Path, tmp_path: Path) -> None:
    (bundle / "labels.npy").unlink()
    with pytest.raises(InputError, match=r"labels\.npy"):
        verify_bundle(bundle)
    with pytest.raises(InputError, match="no bundle"):
        verify_bundle(tmp_path / "nowhere")


def test_a_graph_that_is_not_its_record_is_refused(tmp_path: Path, models: Models, pictures: np.ndarray) -> None:
    path, record = models[0]
    other = [(path, dataclasses.replace(record, sha256="0" * 64))]
    about = {"classes": ["a"], "input_px": 8, "store_px": 8, "fit": "crop"}
    with pytest.raises(EdgeDistillError, match="not the graph that was entered"):
        write_bundle(
            tmp_path / "new",
            other,
            description=about,
            images_NHWC=pictures,
            labels_N=np.zeros(30, int),
            host_predictions={},
        )
    assert not (tmp_path / "new").exists()
