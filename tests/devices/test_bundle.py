"""A bundle's files: they are complete, reproducible, and refused if they were altered."""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgedistill.devices.bundle import PATTERNS, agent_archive, model_name, verify_bundle, write_bundle
from edgedistill.errors import EdgeDistillError, InputError
from edgedistill.records import OnnxModel
from tests.helpers.miniature import Project

Models = list[tuple[Path, OnnxModel]]
FILES = {
    "student.fp32.onnx",
    "student.int8-cpu.onnx",
    "agent.pyz",
    "label.py",
    "pictures.py",
    "unsure.py",
    "images.npy",
    "labels.npy",
    "host.fp32.npy",
    "host.int8-cpu.npy",
    "bundle.json",
    "MODEL_CARD.md",
    "SHA256SUMS",
}


def test_bundle_holds_exactly_the_expected_files(bundle: Path) -> None:
    assert {path.name for path in bundle.iterdir()} == FILES
    assert {path.name for path in verify_bundle(bundle)} == FILES - {"SHA256SUMS"}


def test_bundle_json_describes_classes_input_and_models(bundle: Path, models: Models) -> None:
    description = json.loads((bundle / "bundle.json").read_text())
    assert description["classes"] == ["red", "green", "blue"]
    assert description["input"] == {"name": "images", "dtype": "uint8", "layout": "NHWC", "channels": "RGB"}
    assert description["default"] == "fp32"
    assert [(model["name"], model["file"], model["sha256"]) for model in description["models"]] == [
        (model_name(record), path.name, record.sha256) for path, record in models
    ]


def test_arrays_have_dtypes_of_agent(bundle: Path) -> None:
    assert np.load(bundle / "images.npy").dtype == np.uint8
    assert np.load(bundle / "labels.npy").dtype == np.load(bundle / "host.fp32.npy").dtype == np.int64


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum program here")
def test_sha256sum_accepts_bundle(bundle: Path) -> None:
    process = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=bundle, capture_output=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.count(b": OK") == len(FILES) - 1


def test_agent_archive_is_reproducible(tmp_path: Path) -> None:
    assert hashlib.sha256(agent_archive()).digest() == hashlib.sha256(agent_archive()).digest()
    (tmp_path / "agent.pyz").write_bytes(agent_archive())
    with zipfile.ZipFile(tmp_path / "agent.pyz") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        names = set(archive.namelist())
    assert {"__main__.py", "agent/__init__.py", "agent/__main__.py", "agent/metrics.py"} <= names
    assert "agent/label.py" not in names


def test_rewrite_removes_stale_files_and_keeps_foreign_ones(bundle: Path, models: Models, pictures: np.ndarray) -> None:
    (bundle / "picture.jpg").write_bytes(b"a user's file")
    about = {"classes": ["a", "b", "c"], "input_px": 8, "store_px": 8, "fit": "crop"}
    files = write_bundle(
        bundle, models[:1], description=about, images_NHWC=pictures, labels_N=np.zeros(30, int), host_predictions={}
    )
    names = {path.name for path in bundle.iterdir()}
    assert names == {path.name for path in files} | {"picture.jpg"}
    assert "student.int8-cpu.onnx" not in names
    verify_bundle(bundle)


@pytest.mark.parametrize("name", sorted(FILES - {"SHA256SUMS"}))
def test_altered_byte_is_refused(bundle: Path, name: str) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        verify_bundle(bundle)


@pytest.mark.parametrize("text", ["", "nonsense", "0123  ../../etc/passwd\n"])
def test_malformed_checksum_file_is_refused(bundle: Path, text: str) -> None:
    (bundle / "SHA256SUMS").write_text(text)
    with pytest.raises(InputError, match="is not a list"):
        verify_bundle(bundle)


def test_checksum_file_of_odd_names_is_refused(bundle: Path) -> None:
    (bundle / "SHA256SUMS").write_bytes(b"\xff\xfe0123  agent.pyz\n")
    with pytest.raises(InputError, match=r"agent\.pyz: not as in SHA256SUMS"):
        verify_bundle(bundle)
    (bundle / "SHA256SUMS").write_text(f"{'0' * 64}  {'x' * 300}\n{'0' * 64}  ..\n")
    with pytest.raises(InputError, match=r"x+, \.\.: not as in SHA256SUMS"):
        verify_bundle(bundle)


def test_missing_file_and_missing_bundle_are_refused(bundle: Path, tmp_path: Path) -> None:
    (bundle / "labels.npy").unlink()
    with pytest.raises(InputError, match=r"labels\.npy"):
        verify_bundle(bundle)
    with pytest.raises(InputError, match="no bundle"):
        verify_bundle(tmp_path / "nowhere")


def test_bundle_without_a_card_has_no_such_file(bundle: Path, models: Models, pictures: np.ndarray) -> None:
    assert (bundle / "MODEL_CARD.md").read_text(encoding="utf-8") == "# Model card: the brightest channel\n"
    about = {"classes": ["a", "b", "c"], "input_px": 8, "store_px": 8, "fit": "crop"}
    rest = {"images_NHWC": pictures, "labels_N": np.zeros(30, int), "host_predictions": {}}
    write_bundle(bundle, models, description=about, **rest)
    assert not (bundle / "MODEL_CARD.md").exists()


def test_graph_with_another_hash_than_its_record_is_refused(
    tmp_path: Path, models: Models, pictures: np.ndarray
) -> None:
    path, record = models[0]
    altered = [(path, dataclasses.replace(record, sha256="0" * 64))]
    about = {"classes": ["a"], "input_px": 8, "store_px": 8, "fit": "crop"}
    with pytest.raises(EdgeDistillError, match="not the graph that was entered"):
        write_bundle(
            tmp_path / "new",
            altered,
            description=about,
            images_NHWC=pictures,
            labels_N=np.zeros(30, int),
            host_predictions={},
        )
    assert not (tmp_path / "new").exists()


def test_step_owns_the_files_of_the_bundle_and_no_others(finished_project: Project) -> None:
    names = [path.name for path in (finished_project.run / "bundle").iterdir()]
    owned = [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in PATTERNS)]
    assert sorted(owned) == sorted(names) and "SHA256SUMS" in owned
    assert not any(fnmatch.fnmatch("notes.txt", pattern) for pattern in PATTERNS), "a file of the user"
