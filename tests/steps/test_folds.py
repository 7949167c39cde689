"""Few labels: every one trains the student that ships, and is scored by a student that was trained without it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgedistill.agent.metrics import wilson
from edgedistill.labels.unknown import confidence
from edgedistill.run import artifacts
from edgedistill.run.directory import Run
from edgedistill.steps.context import Context
from tests.helpers import miniature
from tests.helpers.miniature import Project

pytestmark = pytest.mark.slow
LABELS = 44  # 14 of train and 8 of test for each of two classes
UNLABELED = 72


def few_labels(root: Path) -> Project:
    """The miniature's pictures as people have few: one folder a class, more without a label, no test set."""
    recipe = miniature.RECIPE.replace("  labels_per_class: 10\n", "").replace("root: pictures", "root: pictures/all")
    project = miniature.write(root, recipe.replace("calibration_images: 16", "calibration_images: 16, targets: [cpu]"))
    for part in ("train", "test"):
        for path in sorted((root / "pictures" / part).rglob("*.png")):
            copy = root / "pictures/all" / path.parent.name / f"{part}{path.name}"
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, copy)
    for index in range(12, UNLABELED):
        miniature.picture(index % 2 == 0, 2000 + index).save(root / "more" / f"{index}.png")
    return project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = few_labels(tmp_path_factory.mktemp("folds"))
    completed = miniature.call("run", folder.recipe, "--runs", folder.runs)
    assert completed.code == 0, completed.err
    return folder


def context_of(project: Project) -> Context:
    run = Run(path=project.run)
    recipe, base = run.recipe()
    return Context(recipe=recipe, base=base, run=run)


def test_every_label_is_scored_once_and_trains_what_ships(project: Project) -> None:
    run = Run(path=project.run)
    record, answers = artifacts.OUT_OF_FOLD.read(run), artifacts.FOLD_ANSWERS.read(run)
    assert len(record.folds) == 5 and record.labels == LABELS and record.unscored == ()
    assert sorted({fold.trained for fold in record.folds}) == [35, 36]
    assert len(set(answers["rows"].tolist())) == len(answers["rows"]) == LABELS
    assert artifacts.RESULT.read(run).test == record.fp32 and artifacts.RESULT.read(run).val is None
    right = answers["fp32"].argmax(axis=1) == answers["labels"]
    assert record.fp32.top1 == pytest.approx(right.mean())
    low, high = wilson(int(right.sum()), LABELS)
    assert record.fp32.top1_ci95[1] - record.fp32.top1_ci95[0] > 1.2 * (high - low), "the folds share labels"
    assert record.int8 is not None and artifacts.DATA.read(run)["protocol"] == "folds"


def test_no_image_of_a_fold_trains_its_student(project: Project) -> None:
    context = context_of(project)
    splits = context.splits
    assert splits.folds is not None and not splits.n_test
    for fold in range(splits.folds.count):
        part = context.of_fold(fold).shipping()
        tested = set(splits.folds.rows(fold).tolist())
        material = part.material(32)
        assert tested and not tested & set(material.labeled.tolist()) and not tested & set(material.unlabeled.tolist())
        assert not len(material.val) and len(material.labeled) == LABELS - len(tested)
        assert not tested & set(part.splits.calibration_rows(1000, 0).tolist())


def test_what_follows_makes_do_without_a_test_set(project: Project) -> None:
    run = Run(path=project.run)
    report = json.loads((project.run / "report.json").read_text())
    ladder = artifacts.LADDER.read(run)
    assert ladder is not None and ladder.rungs[0].accuracy == artifacts.OUT_OF_FOLD.read(run).fp32
    assert (np.load(project.run / "bundle/labels.npy") == -1).all()
    assert all(entry.get("accuracy") is None for entry in report["bench"]) and report["bench"]
    int8 = artifacts.OUT_OF_FOLD.read(run).int8
    (everything,) = [point for point in report["unknown"]["answers"]["curve"] if point["coverage"] == 1.0]
    assert int8 and everything["ci95"] == list(int8.top1_ci95), "one accuracy, one interval"
    html = (project.run / "report.html").read_text()
    assert "each scored by a student that was trained without it" in html and "the one that ships on all 44" in html
    guard = artifacts.GUARD.read(run)[0]
    assert guard.drop is not None and guard.drop.n >= 12
    unknown = artifacts.UNKNOWN.read(run)
    assert unknown.labels == LABELS and unknown.scored.threshold > 0, "44 labels are enough for a threshold"
    unlabeled = artifacts.FOLD_UNLABELED.read(run)
    assert unknown.matched == unknown.expected_on == UNLABELED and unlabeled["int8"].shape == (5, UNLABELED, 2)
    assert set(unknown.rules) == {"fp32", "fp16", "int8-cpu"} and unknown.rules["int8-cpu"] != unknown.scored
    folds_answer = np.mean(
        [
            confidence(logits_MC, unknown.scored.temperature) >= unknown.scored.threshold
            for logits_MC in unlabeled["int8"]
        ]
    )
    assert unknown.answered == pytest.approx(folds_answer, abs=0.02), "as many as the folds' students answer"
    scored = set(artifacts.FOLD_ANSWERS.read(run)["rows"].tolist())
    assert not scored & set(unlabeled["rows"].tolist())
    picture = next((project.root / "pictures/all").rglob("*.png"))
    process = subprocess.run(
        [sys.executable, str(project.run / "bundle/label.py"), str(picture)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr


def test_second_run_is_up_to_date(project: Project) -> None:
    completed = miniature.call("train", project.recipe, "--runs", project.runs)
    assert completed.code == 0 and "folds      up to date" in completed.err and "..." not in completed.err


def test_interrupted_folds_go_on_to_the_same_bytes(project: Project, tmp_path: Path) -> None:
    """A run that lost everything after its second fold ends as the uninterrupted one."""
    other = project.copy(tmp_path)
    run = Run(path=other.run)
    manifest = run.manifest()
    for name in ("folds", "distill"):
        del manifest["steps"][name]
    artifacts.MANIFEST.write(run, manifest)
    for path in (run / "folds/folds.json", run / "folds/answers.npz", run / "distill/result.json"):
        path.unlink()
    for fold in (2, 3, 4):
        shutil.rmtree(run / f"folds/{fold}")
    completed = miniature.call("train", other.recipe, "--runs", other.runs)
    assert completed.code == 0, completed.err
    for name in ("folds/folds.json", "distill/student.safetensors"):
        assert (run / name).read_bytes() == (project.run / name).read_bytes(), name


def test_baseline_trains_the_folds_that_other_workers_had(project: Project, tmp_path: Path) -> None:
    """A run that shared its folds by `search.storage`, and now goes on without."""
    other = project.copy(tmp_path)
    run = Run(path=other.run)
    for fold in (1, 3):
        shutil.rmtree(run / f"folds/{fold}")
    manifest = run.manifest()
    for path in manifest["steps"].pop("baseline")["outputs"]:
        (run / path).unlink()
    artifacts.MANIFEST.write(run, manifest)
    completed = miniature.call("train", other.recipe, "--runs", other.runs)
    assert completed.code == 0 and "folds      up to date" in completed.err, completed.err
    assert artifacts.BASELINE.read(run) == artifacts.BASELINE.read(Run(path=project.run))


def test_two_labels_a_class_are_enough(tmp_path: Path) -> None:
    """A fold's student is trained on one label of each class, and none is left for val."""
    few = few_labels(tmp_path)
    for path in sorted((tmp_path / "pictures/all").rglob("*.png")):
        if path.name not in {"train00.png", "train01.png"}:
            path.unlink()
    completed = miniature.call("train", few.recipe, "--runs", few.runs)
    assert completed.code == 0, completed.err
    record = artifacts.OUT_OF_FOLD.read(Run(path=few.run))
    assert len(record.folds) == 2 and record.labels == record.fp32.n == 4
