"""`predict` gives the int8 graph's answer, needs no torch, and refuses what it cannot trust or read."""

from __future__ import annotations

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


def test_the_answers_are_the_int8_graphs(finished: Project) -> None:
    paths = pictures(finished)
    said = predict(Run(path=finished.run), paths)
    session = onnxruntime.InferenceSession(str(finished.run / "quantize/student.int8-cpu.onnx"))
    batch = np.stack([images.read(path, 32, 32, "crop") for path in paths])
    # one at a time, as predict does
    logits_NC = np.concatenate([session.run(["logits"], {"images": one[None]})[0] for one in batch])
    powers = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True))
    assert [one.label for one in said] == [CLASSES[at] for at in logits_NC.argmax(axis=1)]
    wanted = (powers / powers.sum(axis=1, keepdims=True)).max(axis=1)
    np.testing.assert_allclose([one.probability for one in said], wanted, atol=0.02)
    with np.load(finished.run / "verify/predictions.npz") as known:
        assert [CLASSES.index(one.label) for one in said] == known["int8-cpu"].tolist()
    assert {one.label for one in said} == set(CLASSES)


def test_the_command_prints_a_line_a_picture_without_torch(finished: Project) -> None:
    paths = pictures(finished)[:2]
    said = miniature.edgedistill("predict", *paths, "--run", finished.run)
    assert said.code == 0 and "torch was not loaded" in said.err
    wanted = predict(Run(path=finished.run), paths)
    assert said.out.splitlines() == [f"{one.path}  {one.label}  {100 * one.probability:.1f} %" for one in wanted]


def test_what_is_no_picture_is_named(finished: Project, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("text")
    for path, reason in ((tmp_path / "x.png", "cannot identify"), (tmp_path / "none.png", "No such file or directory")):
        with pytest.raises(InputError, match=f"{path.name}: not a picture that can be read .*{reason}") as caught:
            predict(Run(path=finished.run), [path])
        assert "\n" not in str(caught.value)


def test_an_altered_bundle_is_not_trusted(copied: Project) -> None:
    graph = copied.run / "bundle/student.int8-cpu.onnx"
    graph.write_bytes(graph.read_bytes() + b" ")
    with pytest.raises(InputError, match=r"bundle: student\.int8-cpu\.onnx: not as in SHA256SUMS"):
        predict(Run(path=copied.run), pictures(copied)[:1])
    (copied.run / "bundle/SHA256SUMS").unlink()
    with pytest.raises(InputError, match=r"no bundle .*; run `edgedistill export` first"):
        predict(Run(path=copied.run), pictures(copied)[:1])
