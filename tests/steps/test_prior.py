"""A prior and class weights from the recipe to the student's bias, its graphs, the report and the model card."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from edgedistill.distill import evaluate
from edgedistill.export.infer import predict_onnx
from edgedistill.labels import prior
from edgedistill.recipe.file import read_recipe, validate_recipe
from edgedistill.records import SourceWeights
from edgedistill.run import artifacts
from edgedistill.run.directory import Run
from edgedistill.steps.context import Context
from edgedistill.students.build import load_student
from tests.helpers import miniature
from tests.helpers.miniature import Project

ALONE = ("sources=[]", "distill.method=transfer")
QUICK = [
    part
    for setting in ("search.trials=1", "student.families.micro.width=4", "distill.steps=10", "distill.method=auto")
    for part in ("--set", setting)
]
STATED = "data.prior={lying: 0.9, upright: 0.1}"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return miniature.write(tmp_path)


def context_of(project: Project, *sets: str, fold: int | None = None) -> Context:
    recipe, problems = validate_recipe(read_recipe(project.recipe, list(sets)))
    assert recipe is not None, problems
    context = Context(recipe=recipe, base=project.root, run=Run(path=project.runs / "mini-0"), fold=fold)
    artifacts.WEIGHTS.write(context.run, SourceWeights(metric="none", probe_images=0, power=0.0, sources=()))
    return context


def trained(project: Project, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setattr(prior, "LEAST_IMAGES", 10)
    outcome = miniature.call("train", project.recipe, "--runs", project.runs, *QUICK, "--set", STATED)
    assert outcome.code == 0, outcome.err
    run = Run(path=project.run)
    return Context(recipe=run.recipe()[0], base=project.root, run=run)


def answers(context: Context, graph: str, rows: np.ndarray) -> np.ndarray:
    images_NHWC = np.asarray(context.splits.train.resized(32)[rows])
    return softmax(predict_onnx(context.run / graph, images_NHWC), axis=1)


def test_trained_student_knows_the_prior(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    context = trained(project, monkeypatch)
    record, splits = context.checkpoint, context.splits
    model, images_NHWC = load_student(record.spec, context.run / record.path), splits.train.resized(32)
    logits_NC = evaluate.logits(model, record.spec, images_NHWC[splits.unlabeled_rows])
    assert softmax(logits_NC, axis=1).mean(axis=0) == pytest.approx([0.9, 0.1], abs=1e-3)
    assert context.teacher.probs_NC[splits.unlabeled_rows].mean(axis=0) == pytest.approx([0.9, 0.1], abs=1e-3)
    val_logits_NC = evaluate.logits(model, record.spec, images_NHWC[splits.val_rows])
    assert record.val == evaluate.score(val_logits_NC, splits.val_labels)
    report = " ".join(miniature.call("report", project.run).out.split())
    assert "prior, as the recipe states it: lying 90.0%, upright 10.0%; the answers are adjusted to it" in report


@pytest.mark.slow
def test_graphs_and_the_model_card_know_the_prior(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    context = trained(project, monkeypatch)
    outcome = miniature.call("export", project.run)
    assert outcome.code == 0, outcome.err
    for graph, margin in (("export/student.fp32.onnx", 1e-3), ("quantize/student.int8-cpu.onnx", 0.1)):
        mean_C = answers(context, graph, context.splits.unlabeled_rows).mean(axis=0)
        assert mean_C == pytest.approx([0.9, 0.1], abs=margin), graph
    assert "Prior, as the recipe states it: lying 90.0%" in (project.run / "bundle/MODEL_CARD.md").read_text()


def test_labels_without_prior_and_weights_have_no_terms(project: Project) -> None:
    material = context_of(project, *ALONE).material(32)
    assert material.class_weights_C is None and material.label_shift_C is None


def test_label_terms_are_those_of_the_training_labels(project: Project) -> None:
    for path in sorted((project.root / "pictures/train/upright").glob("*.png"))[3:]:
        path.unlink()
    sets = ("data.labels_per_class=null", "distill.class_weights=balanced", "data.prior=labels", "data.score=balanced")
    context = context_of(project, *sets, *ALONE)
    assert context.splits.label_counts.tolist() == [14, 3]  # val included
    material = context.material(32)
    counts = np.bincount(material.labels)
    assert material.class_weights_C is not None and material.class_weights_C * counts == pytest.approx(counts.sum() / 2)
    assert material.label_shift_C == pytest.approx(0)  # weighted labels count alike, and so does the score
    unweighted = context_of(project, sets[0], *sets[2:], *ALONE).material(32)
    assert unweighted.label_shift_C is not None and unweighted.label_shift_C[0] > 0.5


def test_prior_of_a_fold_counts_no_label_of_it(project: Project) -> None:
    (project.root / "pictures/train").rename(project.root / "pictures/all")
    sets = ("data.root=pictures/all", "data.labels_per_class=null", "data.prior=labels", "data.protocol=folds")
    every = context_of(project, *sets)
    for fold in range(every.splits.folds.count):  # type: ignore[union-attr]
        part = context_of(project, *sets, fold=fold)
        tested = np.bincount(part.splits.test_set.labels_N, minlength=2)
        assert (part.splits.label_counts + tested).tolist() == every.splits.label_counts.tolist() == [14, 14]


@pytest.mark.parametrize("verb", ["check", "train"])
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.prior=labels", "labels_per_class draws as many of every class"),
        ("data.prior={lying: 0.9, upright: 0.2}", "data.prior: the shares sum to 1.1, not to 1"),
        ("data.prior={lying: 1.1, upright: -0.1}", "the share of upright is -0.1, not a number above 0"),
        ("data.prior={lying: 0.9, uprigt: 0.1}", "no class is called uprigt; did you mean upright?"),
        ("data.prior={lying: 1}", "class upright has no share"),
        ("data.prior=often", "must be `labels`, or the share of each class"),
        ("distill.class_weights=some", "should be 'none', 'balanced' or 'auto'"),
    ],
)
def test_wrong_prior_is_one_line(project: Project, verb: str, setting: str, message: str) -> None:
    options = () if verb == "check" else ("--runs", project.runs)
    outcome = miniature.call(verb, project.recipe, *options, "--set", setting)
    assert outcome.code == 2 and message in outcome.err and len(outcome.err.splitlines()) == 1
    assert not project.runs.exists()
