"""A peer: the same student, trained on labels alone, teaches beside the sources."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import nn

from edgedistill.distill import batches, evaluate, head_start, loop, peer
from edgedistill.distill.probes import softmax
from edgedistill.distill.teachers import TUNED_VERSION, Teacher
from edgedistill.labels import prior
from edgedistill.recipe.schema import Distill, Recipe
from edgedistill.run import artifacts
from edgedistill.run.directory import Run
from edgedistill.steps import baseline, distill, folds, search, weigh
from edgedistill.steps import peer as steps_peer
from edgedistill.steps.parts import logits
from edgedistill.steps.peer import without_half
from edgedistill.steps.teacher import fit_teacher
from tests.helpers import miniature, tars
from tests.helpers.miniature import Project
from tests.helpers.with_share import WEIGHT, with_share
from tests.steps.test_folds import context_of, few_labels

ADAPTED = "{name: adapted, lam: 0.5}"
SHORT = ("--set", "search.trials=1", "--set", "search.steps=1", "--set", "distill.steps=6")


def train(project: Project, *options: str) -> str:
    outcome = miniature.call("train", project.recipe, "--runs", project.runs, *SHORT, *options)
    assert outcome.code == 0, outcome.err
    return outcome.err


def losses(run: Run) -> list[float]:
    return [step["loss"] for step in artifacts.METRICS.read(run)]


def test_answers_are_the_mean_of_both_and_the_peer_is_softened() -> None:
    teacher = Teacher(
        probs_NC=np.array([[0.8, 0.2], [0.5, 0.5]]),
        weights={"first": 1.0},
        accuracy=0.7,
        predict=lambda features: features["first"],
    )
    logits_NC = np.array([[0.0, 0.0], [0.0, 4.0]])
    joined = peer.joined(teacher, logits_NC, peer.Share(weight=0.25, temperature=2.0, judged=0))
    sure = 1 / (1 + np.exp(-2))  # of logits 4 apart, at a temperature of 2
    expected_NC = [[0.75 * 0.8 + 0.25 * 0.5, 0.75 * 0.2 + 0.25 * 0.5], [0.375 + 0.25 * (1 - sure), 0.375 + 0.25 * sure]]
    np.testing.assert_allclose(joined.probs_NC, expected_NC)
    assert (joined.weights, joined.accuracy) == (teacher.weights, teacher.accuracy)
    others = {"first": teacher.probs_NC[::-1], peer.PEER: logits_NC[::-1]}
    np.testing.assert_allclose(joined.predict(others), expected_NC[::-1])


def test_share_follows_what_held_out_labels_say() -> None:
    random, labels_H = np.random.default_rng(0), np.repeat(np.arange(2), 20)
    noise_HC = random.normal(size=(40, 2))
    informed_HC = noise_HC + 4.0 * np.eye(2)[labels_H]
    answers_H = np.where(np.arange(40) % 4, labels_H, 1 - labels_H)  # a quarter is wrong
    good_HC, blind_HC = np.where(np.eye(2)[answers_H] == 1, 0.99, 0.01), np.full((40, 2), 0.5)
    shares = {
        (name, logits): peer.judge(teacher_HC, logits_HC, labels_H, np.arange(40)).weight
        for name, teacher_HC in (("good", good_HC), ("blind", blind_HC))
        for logits, logits_HC in (("noise", noise_HC), ("informed", informed_HC))
    }
    assert shares["good", "noise"] == 0.0 < shares["good", "informed"] < shares["blind", "informed"]
    assert shares["blind", "informed"] > 0.7
    assert peer.judge(good_HC, noise_HC, labels_H, np.arange(40)).judged == 40


def test_few_labels_show_a_smaller_share() -> None:
    labels_H = np.repeat(np.arange(2), 60)
    teacher_HC, logits_HC = np.full((120, 2), 0.5), np.where(np.eye(2)[labels_H] == 1, 1.0, 0.0)
    few = [0, 1, 60, 61]
    share = peer.judge(teacher_HC[few], logits_HC[few], labels_H[few], np.arange(4))
    assert share.weight < 0.5
    assert peer.judge(teacher_HC, logits_HC, labels_H, np.arange(120)).weight > 0.9
    frames = np.repeat(few, 50)
    repeated = peer.judge(teacher_HC[frames], logits_HC[frames], labels_H[frames], frames)
    assert repeated.weight < 0.5, "the frames of one recording count as one"


def test_peer_that_is_too_sure_is_softened() -> None:
    labels_H = np.repeat(np.arange(2), 20)
    answers_H = np.where(np.arange(40) % 5, labels_H, 1 - labels_H)  # a fifth is wrong
    sure_HC = 20.0 * np.eye(2)[answers_H]
    share = peer.judge(np.full((40, 2), 0.5), sure_HC, labels_H, np.arange(40))
    expected = 20.0 / np.log(0.8 / 0.2)  # under which the answers have a probability of 0.8
    assert share.temperature == pytest.approx(expected, rel=0.2)


def test_half_trains_without_its_labels_and_tests_on_them(tmp_path: Path) -> None:
    project = miniature.write(tmp_path)
    train(project, "--set", "distill.method=transfer", "--set", "baseline=false")
    splits = context_of(project).splits
    half_L = splits.halves()
    assert sorted(set(half_L)) == [0, 1]
    for half in range(2):
        without = splits.without_half(half)
        is_out_L = half_L == half
        np.testing.assert_array_equal(without.labeled_rows, splits.labeled_rows[~is_out_L])
        np.testing.assert_array_equal(without.labeled_labels, splits.labeled_labels[~is_out_L])
        np.testing.assert_array_equal(without.unlabeled_rows, splits.unlabeled_rows)
        test = without.open_test()
        np.testing.assert_array_equal(test.labels_N, splits.labeled_labels[is_out_L])
        np.testing.assert_array_equal(test.store.hashes, splits.train.hashes[splits.labeled_rows[is_out_L]])


def test_peer_has_as_many_images_a_step_all_of_them_labeled() -> None:
    settings = Distill(batch_labeled=16, batch_unlabeled=32, peer=True, lr=0.003)
    alone = peer.on_labels_alone(settings, 32)
    assert (alone.method.name, alone.peer, alone.batch_labeled, alone.lr) == ("transfer", False, 48, 0.003)


@pytest.fixture
def has_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that has a share, whatever the labels of the miniature say."""
    monkeypatch.setattr(peer, "judge", with_share(peer.judge))


def test_peer_without_a_share_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "judge", lambda *answers: peer.UNJUDGED)
    without, project = (miniature.write(tmp_path / name) for name in ("without", "with"))
    for written, options in ((without, ()), (project, ("--set", "distill.peer=true"))):
        train(written, "--set", f"distill.method={ADAPTED}", "--set", "baseline=false", *options)
    assert losses(Run(path=project.run)) == losses(Run(path=without.run))


@pytest.mark.usefixtures("has_share")
def test_peer_teaches_and_is_the_baseline(tmp_path: Path) -> None:
    without, project = (miniature.write(tmp_path / name) for name in ("without", "with"))
    method = ("--set", f"distill.method={ADAPTED}")
    train(without, *method)
    err = train(project, *method, "--set", "distill.peer=true")
    steps = [line.split()[0] for line in err.splitlines() if line.endswith(("...", "up to date"))]
    trained = ["peer", "distill", "distill", "distill", "distill", "baseline", "distill"]
    assert steps[-8:-1] == trained, "the peer is trained before the student, once on all labels and without each half"
    assert err.count("distill    up to date") == 1, "as the baseline: the peer has trained it"
    run = Run(path=project.run)
    assert losses(run)[0] != losses(Run(path=without.run))[0], "the teacher is another from the first step on"
    again = train(project, *method, "--set", "distill.peer=true")
    assert again.count("up to date") == len(("weigh", "search", "peer", "distill", "baseline", "report"))
    context = context_of(project)
    taught, logits_NC = context.taught_by_peer(), artifacts.PEER.read(run)["logits"]
    rows, share = context.splits.unlabeled_rows, taught.fitted.peer_share
    assert share is not None and share.weight == WEIGHT
    assert share.judged == len(context.splits.labeled_rows)
    halves = [Run(path=path) for path in sorted((artifacts.labels_alone(run) / "halves").iterdir())]
    assert [artifacts.RESULT.read(half).steps for half in halves] == [3, 3], "as many passes over half of the labels"
    assert sum(artifacts.RESULT.read(half).test.n for half in halves) == share.judged
    np.testing.assert_allclose(
        taught.teacher.probs_NC[rows],
        (1 - share.weight) * context.teacher.probs_NC[rows]
        + share.weight * softmax(logits_NC[rows] / share.temperature),
        rtol=1e-5,
    )
    record = artifacts.RESULT.read(run)
    assert (
        record.teacher is not None
        and record.teacher.kind == f"selftrained with a peer whose share is {share.weight:.2f}"
    )
    assert "teacher selftrained with a peer whose share is" in miniature.call("report", project.run).out


@pytest.mark.usefixtures("has_share")
def test_training_in_int8_has_the_same_teacher_and_is_told_the_prior(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = miniature.write(tmp_path)
    monkeypatch.setattr(prior, "LEAST_IMAGES", 10)
    sets = ("baseline=false", "distill.peer=true", "data.prior={lying: 0.9, upright: 0.1}", "quantize.qat={steps: 2}")
    train(project, "--set", f"distill.method={ADAPTED}", *(part for setting in sets for part in ("--set", setting)))
    nets: list[tuple[loop.TrainedStudent, batches.Task]] = []
    fit = loop.fit

    def fitted(model: nn.Module, task: batches.Task, **options: Any) -> loop.TrainedStudent:
        nets.append((fit(model, task, **options), task))
        return nets[-1][0]

    monkeypatch.setattr(loop, "fit", fitted)
    outcome = miniature.call("export", project.run)
    assert outcome.code == 0, outcome.err
    context = context_of(project)
    taught, rows = context.taught_by_peer(), context.splits.unlabeled_rows
    assert len(nets) == 2, "one for each target"
    for trained, task in nets:
        np.testing.assert_array_equal(task.material.teacher_NC, taught.teacher.probs_NC)
        images_NHWC = np.asarray(context.splits.train.resized(32)[rows])
        answers_NC = softmax(evaluate.logits(trained.model, task.spec, images_NHWC))
        assert answers_NC.mean(axis=0) == pytest.approx([0.9, 0.1], abs=0.02)


def test_steps_that_run_others_are_new_with_them() -> None:
    """A higher version of one in the first row has to raise those of the second that run it."""
    assert [step.STEP.version for step in (weigh, search, distill)] == [4, 4, 2]
    assert [step.STEP.version for step in (folds, steps_peer, baseline)] == [6, 3, 3]


@pytest.mark.parametrize(
    ("settings", "versions"),
    [
        ({}, {}),
        ({"head_start": "ridge"}, {"head start": str(head_start.VERSION)}),
        ({"teacher": {"name": "selftrained", "tuned": 1}}, {"tuned": str(TUNED_VERSION)}),
    ],
)
def test_trainings_know_the_versions_of_what_they_use(settings: dict[str, Any], versions: dict[str, str]) -> None:
    recipe = Recipe.model_validate({"name": "x", "data": {"kind": "folder"}, "distill": settings})
    context: Any = SimpleNamespace(recipe=recipe)
    assert distill.STEP.inputs(context) == steps_peer.STEP.inputs(context) == versions


@pytest.mark.parametrize("stated", [False, True])
def test_peer_is_judged_by_labels_that_neither_has_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stated: bool
) -> None:
    monkeypatch.setattr(prior, "LEAST_IMAGES", 10)
    told = ("--set", "data.prior={lying: 0.9, upright: 0.1}") if stated else ()
    shift_C = np.log([1 / 9, 9]) / 2 if stated else np.zeros(2)  # from 9 to 1 to as many labels of each class
    judged: list[tuple[np.ndarray, ...]] = []
    monkeypatch.setattr(peer, "judge", lambda *answers: judged.append(answers) or peer.UNJUDGED)
    project = miniature.write(tmp_path)
    train(project, "--set", f"distill.method={ADAPTED}", "--set", "baseline=false", "--set", "distill.peer=true", *told)
    context = context_of(project)
    ((teacher_HC, logits_HC, labels_H, units_H),) = judged
    np.testing.assert_array_equal(labels_H, context.splits.labeled_labels)
    np.testing.assert_array_equal(units_H, context.splits.units_N[context.splits.labeled_rows])
    (context.labels_alone().run / artifacts.half_folder(0, "of former labels")).mkdir()
    for half in range(2):
        is_out_L = context.splits.halves() == half
        part, rows = without_half(context, half), context.splits.labeled_rows[is_out_L]
        assert not set(part.splits.labeled_rows) & set(rows)
        answers_HC = softmax(np.log(fit_teacher(part, rows).teacher.probs_NC[rows]) + shift_C)
        np.testing.assert_allclose(answers_HC, teacher_HC[is_out_L], rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(logits(part, rows) + shift_C, logits_HC[is_out_L], rtol=1e-4, atol=1e-5)
        in_another_process = replace(part)
        np.testing.assert_array_equal(in_another_process.splits.labeled_rows, part.splits.labeled_rows)
    assert len(list((context.labels_alone().run / "halves").iterdir())) == 2, "those of former labels are gone"


def test_too_few_labels_judge_nothing(tmp_path: Path) -> None:
    project = miniature.write(tmp_path)
    few = ("--set", "data.labels_per_class=4", "--set", "baseline=false")
    err = train(project, "--set", f"distill.method={ADAPTED}", "--set", "distill.peer=true", *few)
    assert "the peer has no share: it is judged by halves of the labels, which takes four" in err
    share = context_of(project).taught_by_peer().fitted.peer_share
    assert share == peer.UNJUDGED


@pytest.mark.usefixtures("has_share")
def test_peer_answers_shards_too(tmp_path: Path) -> None:
    project = tars.add_shards(miniature.write(tmp_path), ADAPTED)
    train(project, "--set", "distill.peer=true", "--set", "baseline=false")
    taught = context_of(project).taught_by_peer()
    (shard, *_) = taught.streamed_shards
    logits_MC = shard.outputs[peer.PEER].features_ND
    assert logits_MC.shape[1] == 2 and shard.outputs[peer.PEER].probs_NK is None
    features = {name: outputs.features_ND for name, outputs in shard.outputs.items()}
    assert taught.fitted.peer_share is not None
    expected_MC = peer.averaged(context_of(project).teacher.predict(features), logits_MC, taught.fitted.peer_share)
    np.testing.assert_allclose(taught.teacher.predict(features), expected_MC, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (("distill.method={name: weighted, lam: 0.8}",), True),
        (("distill.method=auto", "sources=[]"), True),
        (("distill.method=auto",), False),
        ((f"distill.method={ADAPTED}",), False),
    ],
)
def test_method_without_a_teacher_takes_no_peer(tmp_path: Path, settings: tuple[str, ...], problem: bool) -> None:
    project = miniature.write(tmp_path)
    options = [part for setting in (*settings, "distill.peer=true") for part in ("--set", setting)]
    outcome = miniature.call("check", project.recipe, *options)
    assert ("a peer joins a teacher: use it with adapted, " in outcome.err) == problem, outcome.err
    assert (outcome.code == 2) == problem, outcome.err


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_fold_has_a_peer_and_each_is_trained_once(tmp_path: Path) -> None:
    project = few_labels(tmp_path)
    err = train(project, "--set", f"distill.method={ADAPTED}", "--set", "distill.peer=true")
    run = Run(path=project.run)
    alone = artifacts.labels_alone(run)
    for fold in range(5):
        part = Run(path=run / artifacts.fold_folder(fold), shared=run.path)
        of_fold = artifacts.labels_alone(part)
        assert of_fold.path == alone / artifacts.fold_folder(fold) and artifacts.RESULT.find(of_fold) is not None
        assert "peer" in json.loads((part / "manifest.json").read_text())["steps"]
    assert artifacts.BASELINE.read(run).labels_alone == artifacts.RESULT.read(alone).test
    # 6 peers, each with two halves, and 6 students; the pool of the peers, and the baseline, train none
    assert err.count("distill    done in") == 24, err
