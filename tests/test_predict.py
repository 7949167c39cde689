"""`predict` gives the int8 graph's output, does not load torch, and refuses altered bundles and unreadable files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgedistill.data import images
from edgedistill.errors import InputError
from edgedistill.predict import predict
from edgedistill.run.directory import Run
from tests.helpers import miniature
from tests.helpers.miniature import Project

CLASSES = ("lying", "upright")


def pictures(project: Project) -> list[Path]:
    return sorted((project.root / "pictures/test").rglob("*.png"))


def test_predictions_are_those_of_int8_graph(finished_project: Project) -> None:
    paths = pictures(finished_project)
    predictions = predict(Run(path=finished_project.run), paths)
    session = onnxruntime.InferenceSession(str(finished_project.run / "quantize/student.int8-cpu.onnx"))
    batch = np.stack([images.read(path, 32, 32, "crop") for path in paths])
    # one image at a time, as predict does
    logits_NC = np.concatenate([session.run(["logits"], {"images": image[None]})[0] for image in batch])
    powers_NC = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True))
    assert [prediction.label for prediction in predictions] == [CLASSES[index] for index in logits_NC.argmax(axis=1)]
    expected = (powers_NC / powers_NC.sum(axis=1, keepdims=True)).max(axis=1)
    np.testing.assert_allclose([prediction.probability for prediction in predictions], expected, atol=0.02)
    with np.load(finished_project.run / "verify/predictions.npz") as stored:
        assert [CLASSES.index(prediction.label) for prediction in predictions] == stored["int8-cpu"].tolist()
    assert {prediction.label for prediction in predictions} == set(CLASSES)


def test_command_prints_one_line_per_picture_without_torch(finished_project: Project) -> None:
    paths = pictures(finished_project)[:2]
    completed = miniature.edgedistill("predict", *paths, "--run", finished_project.run)
    assert completed.code == 0 and "torch was not loaded" in completed.err
    predictions = predict(Run(path=finished_project.run), paths)
    assert completed.out.splitlines() == [
        f"{prediction.path}  {prediction.label}  {100 * prediction.probability:.1f} %" for prediction in predictions
    ]


def test_unreadable_picture_is_named(finished_project: Project, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("text")
    for path, reason in ((tmp_path / "x.png", "cannot identify"), (tmp_path / "none.png", "No such file or directory")):
        with pytest.raises(InputError, match=f"{path.name}: not a picture that can be read .*{reason}") as caught:
            predict(Run(path=finished_project.run), [path])
        assert "\n" not in str(caught.value)


def test_fifo_is_named(finished_project: Project, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    completed = miniature.edgedistill("predict", tmp_path / "x.png", "--run", finished_project.run, timeout_s=60)
    assert (completed.code, completed.out) == (2, "")
    assert completed.err.splitlines()[0].startswith(f"{tmp_path / 'x.png'}: not a picture that can be read (is a FIFO")


def test_altered_or_missing_bundle_is_refused(project_copy: Project) -> None:
    graph = project_copy.run / "bundle/student.int8-cpu.onnx"
    graph.write_bytes(graph.read_bytes() + b" ")
    with pytest.raises(InputError, match=r"bundle: student\.int8-cpu\.onnx: not as in SHA256SUMS"):
        predict(Run(path=project_copy.run), pictures(project_copy)[:1])
    (project_copy.run / "bundle/SHA256SUMS").unlink()
    with pytest.raises(InputError, match=r"no bundle .*; run `edgedistill export` first"):
        predict(Run(path=project_copy.run), pictures(project_copy)[:1])
