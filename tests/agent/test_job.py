"""A job is checked completely, and only files with the hashes that it lists are loaded."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgedistill.agent import job as jobs
from edgedistill.agent.__main__ import main
from edgedistill.agent.job import AgentError
from edgedistill.agent.worker import load_array

GOOD: dict[str, Any] = {
    "version": 3,
    "backend": "onnxruntime-cpu",
    "modes": ["host-to-host"],
    "images": "images.npy",
    "labels": "labels.npy",
    "models": [{"name": "fp32", "path": "m.onnx", "sha256": hashlib.sha256(b"graph").hexdigest(), "precision": "fp32"}],
    "host_predictions": {"fp32": "host.fp32.npy"},
    "pictures": {"width": 64, "height": 48, "store_px": 16, "fit": "crop"},
    "threads": 1,
    "processes": 3,
    "rounds": 5,
    "samples": 300,
    "seconds": 2.0,
    "accuracy_images": 500,
}


def write(folder: Path, **changes: Any) -> Path:
    (folder / "m.onnx").write_bytes(b"graph")
    path = folder / "job.json"
    path.write_text(json.dumps({key: setting for key, setting in {**GOOD, **changes}.items() if setting is not ...}))
    return path


def test_valid_job_is_read_with_absolute_paths(tmp_path: Path) -> None:
    job = jobs.read(write(tmp_path))
    assert job.models[0].path == tmp_path / "m.onnx"
    assert job.host_predictions == {"fp32": tmp_path / "host.fp32.npy"}
    jobs.check_hashes(job)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 1}, "not a job of version 3"),
        ({"rounds": ..., "speed": 1}, "missing key rounds; unknown key speed"),
        (
            {"rounds": 0, "threads": True},
            "threads: must be a whole number from 1 to 2147483647; rounds: must be a whole number from 1 to 2147483647",
        ),
        ({"seconds": 0}, "seconds: must be > 0, and finite"),
        *(
            ({"seconds": odd}, "seconds: must be > 0, and finite")
            for odd in (float("inf"), float("nan"), 10**400, True)
        ),
        ({"threads": 2**31}, "threads: must be a whole number from 1 to 2147483647"),
        ({"processes": 1001}, "processes: must be a whole number from 1 to 1000"),
        ({"a\x1bb": 1}, r"unknown key 'a\x1bb'"),
        *(({"images": odd}, "images: must be the name of a file") for odd in ("a\0b", "\ud800", "a\nb", "a\x7f")),
        ({"backend": "a\nb"}, "backend: must be a string"),
        ({"backend": 3}, "backend: must be a string"),
        ({"models": []}, "at least one"),
        ({"models": [{"name": "fp32"}]}, "name, path, sha256 and precision"),
        ({"models": GOOD["models"] * 2}, "a name is used twice"),
        ({"host_predictions": ["x"]}, "host_predictions: must map"),
        ({"pictures": {"width": 64}}, "pictures: must have width, height, store_px and fit"),
        ({"pictures": {**GOOD["pictures"], "width": 10**6}}, "pictures: width must be a whole number from 1 to 10000"),
        ({"pictures": {**GOOD["pictures"], "store_px": [16]}}, "pictures: store_px must be a whole number"),
        ({"pictures": {**GOOD["pictures"], "store_px": [16, 0]}}, "pictures: store_px must be a whole number"),
        ({"pictures": {**GOOD["pictures"], "fit": "stretch"}}, "pictures: fit must be crop or squash"),
        ({"modes": []}, "modes: must be a list of different names"),
        ({"modes": ["compute", "compute"]}, "modes: must be a list of different names"),
        ({"images": "../images.npy"}, "images: must be the name of a file beside the job"),
        ({"labels": "/etc/passwd"}, "labels: must be the name of a file beside the job"),
        ({"host_predictions": {"fp32": "a/b.npy"}}, "host_predictions: must map model names to names of files"),
        ({"models": [{**GOOD["models"][0], "path": ".."}]}, "models: '..' is not the name of a file beside the job"),
        ({"models": [{**GOOD["models"][0], "path": "a\\b.onnx"}]}, "is not the name of a file beside the job"),
    ],
)
def test_invalid_job_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AgentError) as caught:
        jobs.read(write(tmp_path, **changes))
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_altered_model_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path)
    (tmp_path / "m.onnx").write_bytes(b"another graph")
    assert main([str(path)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "m.onnx: sha256 is" in message and "nothing was loaded" in message
    assert not (tmp_path / "report.json").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"a":' * 100_000, f'{{"version": {"9" * 5000}}}'])
def test_malformed_job_is_refused_in_one_line(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "job.json"
    path.write_text(text)
    assert main([str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def npy(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(12)


SHAPED = "{{'descr': '|u1', 'fortran_order': False, 'shape': {}}}\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04" + bytes(100),
        pickle.dumps([1]),
        npy(SHAPED.format("(1, 1, 4, 3), ")[:-9]),
        npy(SHAPED.format("(99999999999, 1, 4, 3)")),
        npy(SHAPED.format("(-1, 1, 4, 3)")),
        npy(SHAPED.format("(1, 1, 4, 3)").replace("|u1", "|O")),
        npy("(" * 300),
        npy("-" * 9000),
    ],
)
def test_array_that_is_broken_or_claims_more_than_it_holds_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "images.npy").write_bytes(content)
    with pytest.raises(AgentError, match=r"images\.npy: is not a \.npy file of plain numbers \(.+\)$") as caught:
        load_array(tmp_path / "images.npy", "uint8", 4)
    assert "\n" not in str(caught.value)


def test_array_of_a_zip_file_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", a=np.zeros(3))
    with pytest.raises(AgentError, match=r"is not a \.npy file"):
        load_array(tmp_path / "images.npz", "uint8", 4)


@pytest.mark.parametrize("order", ["C", "F"])
def test_array_is_read_into_memory(tmp_path: Path, order: Any) -> None:
    images_NHWC = np.asarray(np.arange(48, dtype=np.uint8).reshape(2, 2, 4, 3), order=order)
    np.save(tmp_path / "images.npy", images_NHWC)
    array = load_array(tmp_path / "images.npy", "uint8", 4)
    assert type(array) is np.ndarray and array.flags.writeable and array.base is None
    np.testing.assert_array_equal(array, images_NHWC)


def test_missing_images_and_unknown_backend_exit_with_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(write(tmp_path))]) == 2
    assert "images.npy" in capsys.readouterr().err
    assert main([str(write(tmp_path, backend="tensorflow"))]) == 2
    assert "no backend is called tensorflow; one of: onnxruntime-cpu" in capsys.readouterr().err


def test_json_is_written_completely_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    jobs.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        jobs.write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]
