"""A job is checked completely, and only files with the hashes that it lists are loaded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from edgedistill.agent import job as jobs
from edgedistill.agent.__main__ import main
from edgedistill.agent.job import AgentError

GOOD: dict[str, Any] = {
    "version": 2,
    "backend": "onnxruntime-cpu",
    "modes": ["host-to-host"],
    "images": "images.npy",
    "labels": "labels.npy",
    "models": [{"name": "fp32", "path": "m.onnx", "sha256": hashlib.sha256(b"graph").hexdigest(), "precision": "fp32"}],
    "host_predictions": {"fp32": "host.fp32.npy"},
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
        ({"version": 1}, "not a job of version 2"),
        ({"rounds": ..., "speed": 1}, "missing key rounds; unknown key speed"),
        ({"rounds": 0, "threads": True}, "threads: must be a whole number >= 1; rounds: must be a whole number >= 1"),
        ({"seconds": 0}, "seconds: must be > 0"),
        ({"backend": 3}, "backend: must be a string"),
        ({"models": []}, "at least one"),
        ({"models": [{"name": "fp32"}]}, "name, path, sha256 and precision"),
        ({"models": GOOD["models"] * 2}, "a name is used twice"),
        ({"host_predictions": ["x"]}, "host_predictions: must map"),
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


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_malformed_job_is_refused_in_one_line(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "job.json"
    path.write_text(text)
    assert main([str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


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
