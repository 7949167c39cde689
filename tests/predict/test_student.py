"""`predict` gives the int8 graph's output or "unknown", without torch; it refuses altered bundles, unreadable files."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

import edgedistill as ed
from edgedistill.data import images
from edgedistill.data.images import View
from edgedistill.errors import InputError
from edgedistill.predict.student import AHEAD, Prediction, load, of_run
from edgedistill.run import artifacts
from edgedistill.run.directory import Run
from edgedistill.run.files import sha256_file
from tests.helpers import miniature
from tests.helpers.miniature import Project

CLASSES = ("lying", "upright")


def predict(run: Run, paths: list[Path]) -> list[Prediction]:
    return load(run.path).predict(paths)


def pictures(project: Project) -> list[Path]:
    return sorted((project.root / "pictures/test").rglob("*.png"))


def test_predictions_are_those_of_int8_graph(finished_project: Project) -> None:
    paths = pictures(finished_project)
    predictions = predict(Run(path=finished_project.run), paths)
    session = onnxruntime.InferenceSession(str(finished_project.run / "quantize/student.int8-cpu.onnx"))
    batch = np.stack([images.read(path, View(px=32, fit="crop"), 32) for path in paths])
    # one image at a time, as predict does
    logits_NC = np.concatenate([session.run(["logits"], {"images": image[None]})[0] for image in batch])
    models = json.loads((finished_project.run / "bundle/bundle.json").read_text())["models"]
    scaled_NC = logits_NC / next(model["temperature"] for model in models if model["name"] == "int8-cpu")
    powers_NC = np.exp(scaled_NC - scaled_NC.max(axis=1, keepdims=True))
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
    for path, reason in (
        (tmp_path / "x.png", "is not a picture in a format"),
        (tmp_path / "none.png", "No such file or directory"),
    ):
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


def test_default_graph_for_another_target_is_refused(project_copy: Project) -> None:
    described_as(project_copy, default="int8-tensorrt")
    problem = r"bundle: student\.int8-tensorrt\.onnx is made for the target tensorrt, .*; take int8-cpu"
    with pytest.raises(InputError, match=problem):
        predict(Run(path=project_copy.run), pictures(project_copy)[:1])


def rule_of(project: Project, **rule: float) -> None:
    """Give the models of a bundle another rule, or none, and make its checksums agree."""
    folder = project.run / "bundle"
    bundle = json.loads((folder / "bundle.json").read_text())
    for model in bundle["models"]:
        for name in ("temperature", "threshold"):
            model.pop(name, None)
        model.update(rule)
    described_as(project, **bundle)


def described_as(project: Project, **entries: Any) -> None:
    """Replace entries of bundle.json, and make the bundle's checksums agree."""
    folder = project.run / "bundle"
    bundle = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps({**bundle, **entries}))
    sums = (folder / "SHA256SUMS").read_text().splitlines()
    changed = f"{sha256_file(folder / 'bundle.json')}  bundle.json"
    (folder / "SHA256SUMS").write_text(
        "\n".join(changed if line.endswith("  bundle.json") else line for line in sums) + "\n"
    )


def test_below_the_threshold_it_is_unknown(project_copy: Project) -> None:
    path = pictures(project_copy)[0]
    run = Run(path=project_copy.run)
    rule_of(project_copy)  # as of a bundle of an older version
    (older,) = predict(run, [path])
    assert not older.unknown
    rule_of(project_copy, temperature=100.0, threshold=0.6)
    (unsure,) = predict(run, [path])
    assert unsure.unknown and unsure.label == older.label and 0.5 <= unsure.probability < 0.6 < older.probability
    text = miniature.edgedistill("predict", path, "--run", project_copy.run)
    assert text.out == f"{path}  unknown ({older.label})  {100 * unsure.probability:.1f} %\n"
    (entry,) = json.loads(miniature.call("predict", path, "--run", project_copy.run, "--format", "json").out)
    assert entry == {
        "path": str(path),
        "label": None,
        "best": older.label,
        "probability": unsure.probability,
        "unknown": True,
    }


def test_bundle_has_a_rule_for_each_model_and_what_is_expected(finished_project: Project) -> None:
    bundle = json.loads((finished_project.run / "bundle/bundle.json").read_text())
    record = json.loads((finished_project.run / "unknown/unknown.json").read_text())
    for model in bundle["models"]:
        rule = {name: model[name] for name in ("temperature", "threshold")}
        assert rule == record["rules"][model["name"]] and rule["temperature"] > 0
    assert bundle["unknown"]["answered"] == record["answered"] and sum(bundle["unknown"]["shares"]) == pytest.approx(1)
    assert "rules" not in bundle


def test_files_images_and_arrays_get_the_same_answer(finished_project: Project) -> None:
    student = load(finished_project.run)
    folder = finished_project.root / "pictures/test"
    paths = pictures(finished_project)
    from_files = student.predict(folder, batch=5)
    assert [prediction.path for prediction in from_files] == paths
    opened = [Image.open(path) for path in paths]
    for source in (opened, np.stack([np.asarray(image) for image in opened]), str(folder / "*" / "*.png")):
        answers = student.predict(source)
        assert [answer.label for answer in answers] == [prediction.label for prediction in from_files]
        np.testing.assert_allclose(
            [answer.probability for answer in answers], [prediction.probability for prediction in from_files], rtol=1e-5
        )
    streamed = list(student.stream(str(folder)))
    assert [answer.path for answer in streamed] == paths, "a stream takes a folder, too"
    shares = from_files[0].probabilities
    assert next(iter(shares)) == from_files[0].label and sum(shares.values()) == pytest.approx(1)
    assert load(finished_project.run / "bundle").predict(paths[0])[0].label == from_files[0].label


def test_command_names_the_unreadable_and_does_the_rest(finished_project: Project, tmp_path: Path) -> None:
    paths = pictures(finished_project)
    for index, path in enumerate(paths[:3]):
        (tmp_path / f"{index}.png").write_bytes(path.read_bytes())
    (tmp_path / "1.png").write_bytes(b"broken")
    completed = miniature.call("predict", tmp_path, "--run", finished_project.run, "--format", "jsonl", "--top", "5")
    entries = [json.loads(line) for line in completed.out.splitlines()]
    assert [entry["path"] for entry in entries] == [str(tmp_path / "0.png"), str(tmp_path / "2.png")]
    assert [len(entry["top"]) for entry in entries] == [2, 2]
    first, last = completed.err.splitlines()
    assert completed.code == 2 and first.startswith(f"{tmp_path / '1.png'}: not a picture that can be read")
    assert last.startswith("1 of the pictures could not be read")


def test_list_of_paths_comes_in(finished_project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = pictures(finished_project)
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{path}\n" for path in paths)))
    completed = miniature.call("predict", "-", "--run", finished_project.run, "--format", "csv")
    assert [row["path"] for row in csv.DictReader(completed.out.splitlines())] == [str(path) for path in paths]


def test_pictures_are_decoded_a_few_batches_ahead(finished_project: Project) -> None:
    drawn: list[Path] = []
    path = pictures(finished_project)[0]

    def endless() -> Iterator[Path]:
        while True:
            drawn.append(path)
            yield path

    answers = load(finished_project.run).stream(endless(), batch=2)
    assert isinstance(next(answers), Prediction)
    answers.close()  # type: ignore[attr-defined]
    assert len(drawn) <= 2 * AHEAD


def test_student_of_a_former_training_is_refused_until_the_export(project_copy: Project) -> None:
    run = ed.Run(project_copy.run)
    classes, record = run.student.classes, artifacts.RESULT.read(Run(path=run.path))
    artifacts.RESULT.write(Run(path=run.path), replace(record, sha256="0" * 64))
    problem = "the graphs are of an earlier student; run `edgedistill export` again"
    with pytest.raises(InputError, match=problem):
        _ = run.student
    with pytest.raises(InputError, match=problem):
        ed.load(run.path)
    completed = miniature.call("predict", pictures(project_copy)[0], "--run", run.path)
    assert (completed.code, completed.out) == (2, "") and problem in completed.err
    assert ed.load(run.path / "bundle").classes == classes, "a bundle alone is what it is"


def test_of_two_classes_of_one_name_the_more_probable_one_counts() -> None:
    """As ImageNet's cranes, a bird and a machine."""
    shares_C = np.array([0.1, 0.6, 0.3])
    prediction = Prediction(
        path=None, label="crane", probability=0.6, classes=("crane", "crane", "heron"), probabilities_C=shares_C
    )
    assert list(prediction.probabilities.items()) == [("crane", 0.6), ("heron", 0.3)]
    assert prediction.top(3) == [("crane", 0.6), ("heron", 0.3), ("crane", 0.1)]


def test_batch_below_one_is_refused(finished_project: Project) -> None:
    student = of_run(Run(path=finished_project.run))
    with pytest.raises(InputError, match="batch: 0 pictures go through no graph"):
        student.predict(next(finished_project.root.rglob("*.png")), batch=0)
