"""The training loop: it learns, it resumes after a kill to the same bytes, and its batches are drawn correctly."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgedistill.distill import batches, evaluate, loop
from edgedistill.distill.batches import Task, draw_batch, draw_rows
from edgedistill.distill.evaluate import logits, score
from edgedistill.distill.loop import TrainedStudent
from edgedistill.distill.state import initial_state
from edgedistill.errors import EdgeDistillError
from edgedistill.records import Accuracy
from edgedistill.students.build import build_student
from tests.helpers.tiny import make_material, micro_spec, task

pytestmark = pytest.mark.usefixtures("cpu")
STEPS = 12


class KilledError(Exception):
    """Simulates the death of the process."""


def train(training_task: Task, folder: Path | None = None, killed_after: int = -1) -> TrainedStudent:
    def on_step(step: int, scalars: object) -> None:
        if step == killed_after:
            raise KilledError

    return loop.fit(build_student(training_task.spec, seed=1), training_task, folder, on_step)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]


def without_time(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: number for name, number in record.items() if name != "images_per_second"} for record in records]


def same_bytes(first: TrainedStudent, second: TrainedStudent) -> bool:
    first_state, second_state = first.model.state_dict(), second.model.state_dict()
    return (
        all(first_state[name].numpy().tobytes() == second_state[name].numpy().tobytes() for name in first_state)
        and first_state.keys() == second_state.keys()
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainedStudent, list[dict[str, Any]]]:
    """A run without interruption, and its metrics."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        return train(task(STEPS), folder), lines(folder)


@pytest.mark.parametrize("kill_steps", [(1,), (5,), (7,), (7, 11), (12,)], ids=str)
def test_killed_run_resumes_to_the_same_bytes(
    tmp_path: Path, uninterrupted: tuple[TrainedStudent, list[dict[str, Any]]], kill_steps: tuple[int, ...]
) -> None:
    for step in kill_steps:
        with pytest.raises(KilledError):
            train(task(STEPS), tmp_path, killed_after=step)
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 99, "loss": 0.')
    resumed = train(task(STEPS), tmp_path)
    assert (
        same_bytes(resumed, uninterrupted[0])
        and resumed.val == uninterrupted[0].val
        and resumed.loss == uninterrupted[0].loss
    )
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, STEPS + 1))
    assert without_time(lines(tmp_path)) == without_time(uninterrupted[1])


def test_steps_under_a_checkpoint_are_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        train(task(STEPS), tmp_path, killed_after=7)
    steps: list[int] = []
    loop.fit(build_student(micro_spec(), 1), task(STEPS), tmp_path, lambda step, scalars: steps.append(step))
    assert steps == list(range(6, STEPS + 1))


def test_metrics_lines_hold_terms_rate_and_speed(uninterrupted: tuple[TrainedStudent, list[dict[str, Any]]]) -> None:
    records = uninterrupted[1]
    assert [line["step"] for line in records if "val" in line] == [4, 8, 12]
    for line in records:
        assert set(line["terms"]) == {"labels", "source/knows"}
        assert line["loss"] == pytest.approx(sum(line["terms"].values()), rel=1e-5)
        assert line["lr"] > 0 and line["images_per_second"] > 0


def test_seed_changes_the_student(uninterrupted: tuple[TrainedStudent, list[dict[str, Any]]]) -> None:
    assert not same_bytes(train(replace(task(STEPS), seed=8)), uninterrupted[0])


def test_writing_metrics_changes_no_weights(uninterrupted: tuple[TrainedStudent, list[dict[str, Any]]]) -> None:
    assert same_bytes(train(task(STEPS)), uninterrupted[0])


@pytest.mark.parametrize("method", ["transfer", "weighted"])
def test_easy_task_is_learned(method: str) -> None:
    losses: list[float] = []
    training_task = task(40, method=method)
    fitted = loop.fit(
        build_student(training_task.spec, 1), training_task, None, lambda step, all_: losses.append(all_["loss"])
    )
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert fitted.val.n == 8 and fitted.val.top1 == 1.0  # chance is 1/2, and (1/2)^8 = 0.4 % by luck
    assert fitted.loss < np.log(2)
    assert not fitted.model.training


def test_pseudo_labels_affect_weighted_but_not_transfer() -> None:
    flat = make_material(probs={"knows": np.full((40, 3), 1 / 3)})
    for method, alike in (("weighted", False), ("transfer", True)):
        with_source, without = (train(task(3, material, method=method)) for material in (make_material(), flat))
        assert same_bytes(with_source, without) == alike


def test_source_alone_teaches_the_backbone() -> None:
    # lam 0: the loss ignores the labels, yet the backbone must separate red from blue afterwards
    fitted = train(task(40, method={"name": "weighted", "lam": 0.0}))
    images_NHWC, labels_N = make_material().images_NHWC[16:24], np.arange(16, 24) % 2
    backbone = torch.nn.Sequential(fitted.model.get_submodule("backbone"))
    features_ND = logits(backbone, micro_spec(), images_NHWC)
    centered = features_ND - features_ND.mean(axis=0)
    direction = centered[labels_N == 1].mean(axis=0) - centered[labels_N == 0].mean(axis=0)
    assert ((centered @ direction > 0) == labels_N).all()


def test_non_finite_loss_stops_the_run(tmp_path: Path) -> None:
    model = build_student(micro_spec(), 1)
    torch.nn.init.constant_(next(model.get_submodule("backbone").parameters()), float("nan"))
    with pytest.raises(
        EdgeDistillError, match=r"distill: the loss is not finite at step 1; check the student's initial"
    ):
        loop.fit(model, task(3), tmp_path)
    assert not (tmp_path / "last.pt").exists()


ROWS = st.lists(st.integers(0, 99), min_size=1, max_size=12, unique=True)


@given(rows=ROWS, count=st.integers(1, 30), seed=st.integers(0, 3), epochs=st.integers(1, 3))
def test_every_row_is_drawn_once_an_epoch(rows: list[int], count: int, seed: int, epochs: int) -> None:
    n = len(rows)
    steps = -(-epochs * n // count)
    rows_drawn = np.concatenate([draw_rows(np.array(rows), count, seed, step, stream=1) for step in range(steps)])
    assert len(rows_drawn) == steps * count
    for epoch in range(epochs):
        assert sorted(rows_drawn[epoch * n : (epoch + 1) * n]) == sorted(rows)


def test_draws_differ_by_seed_stream_and_epoch() -> None:
    rows = np.arange(50)
    draws = [
        draw_rows(rows, 50, *seed_step_stream) for seed_step_stream in ((0, 0, 1), (1, 0, 1), (0, 1, 1), (0, 0, 2))
    ]
    assert len({tuple(draw) for draw in draws}) == 4
    assert (
        draw_rows(rows, 0, seed=0, step=0, stream=1).size == 0
        and draw_rows(rows[:0], 5, seed=0, step=0, stream=1).size == 0
    )


def material_with_row_numbers() -> batches.Material:
    """Return material whose pixels and pseudo-labels equal their row number."""
    rows = np.arange(40)
    pixels = np.broadcast_to(rows[:, None, None, None], (40, 16, 16, 3)).astype(np.uint8)
    return replace(make_material(probs={"knows": np.stack([rows, -rows], axis=1)}), images_NHWC=pixels)


def test_images_labels_and_pseudo_labels_belong_together() -> None:
    batch = draw_batch(task(3, material_with_row_numbers()), step=1)
    rows = batch.images_BHWC[:, 0, 0, 0].long()
    assert batch.images_BHWC.shape == (12, 16, 16, 3)
    assert torch.equal(batch.source_probs["knows"][:, 0], rows)
    # rows 0-15 are labeled with their parity, rows 24-39 are not; rows 16-23 are val and stay out
    assert (rows[:8] < 16).all() and torch.equal(batch.labels_B[:8], rows[:8] % 2)
    assert (rows[8:] >= 24).all() and (batch.labels_B[8:] == -1).all()


def test_method_without_sources_gets_no_unlabeled_images() -> None:
    batch = draw_batch(task(3, material_with_row_numbers(), method="transfer"), step=0)
    assert len(batch.images_BHWC) == 8 and batch.source_probs == {} and (batch.labels_B >= 0).all()


def test_training_without_unlabeled_images_is_finite() -> None:
    few = replace(make_material(), unlabeled=np.arange(0))
    assert np.isfinite(train(task(2, few)).loss)


def test_logits_do_not_depend_on_the_batch() -> None:
    model = build_student(micro_spec(), 1)
    images_NHWC = make_material().images_NHWC[:10]
    logits_by_1, logits_by_4 = (logits(model, micro_spec(), images_NHWC, batch) for batch in (1, 4))
    assert logits_by_1.shape == (10, 2) and logits_by_1.dtype == np.float32
    np.testing.assert_allclose(logits_by_1, logits_by_4, atol=1e-5)


def test_held_out_loss_of_transfer_is_the_cross_entropy_on_val() -> None:
    training_task = task(STEPS, method={"name": "transfer"})
    fitted = train(training_task)
    logits_NC = logits(
        fitted.model, training_task.spec, training_task.material.images_NHWC[training_task.material.val]
    ).astype(np.float64)
    chosen_N = logits_NC[np.arange(len(logits_NC)), training_task.material.val_labels]
    assert fitted.loss == pytest.approx(float((np.log(np.exp(logits_NC).sum(axis=1)) - chosen_N).mean()), rel=1e-4)


def test_score_by_hand() -> None:
    logits_NC = np.array([[np.log(3), 0.0], [0.0, np.log(3)], [np.log(3), 0.0]], dtype=np.float32)
    labels_N = np.array([0, 1, 1])
    accuracy = score(logits_NC, labels_N)
    assert accuracy.n == 3 and (accuracy.top1, accuracy.balanced) == pytest.approx((2 / 3, 0.75))
    assert accuracy.top1_ci95[0] < accuracy.top1 < accuracy.top1_ci95[1]


def test_dropout_follows_the_seed_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_dropout() -> torch.nn.Module:
        model = build_student(micro_spec(), seed=7)
        model.backbone.add_module("drop", torch.nn.Dropout(0.5))  # type: ignore[union-attr]
        plain = model.backbone.forward  # type: ignore[union-attr]
        monkeypatch.setattr(model.backbone, "forward", lambda images: model.backbone.drop(plain(images)))
        return model

    training_task, ends = task(3), []
    for noise in (1, 2):
        torch.manual_seed(noise)  # other random draws in the process must not matter
        model = with_dropout()
        state = initial_state(
            model,
            sum(probs_NK.shape[1] for probs_NK in training_task.material.source_probs.values()),
            training_task.settings,
            training_task.seed,
        )
        for step in range(3):
            loop.train_step(state, training_task.loss(), training_task, step)
        ends.append(model.head.weight.detach().clone())  # type: ignore[union-attr]
    assert torch.equal(*ends)


def test_rungs_score_val_and_change_no_weights(uninterrupted: tuple[TrainedStudent, list[dict[str, Any]]]) -> None:
    scores: list[Accuracy] = []
    training_task = task(STEPS)
    judged = loop.fit(
        build_student(training_task.spec, seed=1), training_task, rungs={3: scores.append, 7: scores.append}
    )
    assert [accuracy.n for accuracy in scores] == [len(training_task.material.val)] * 2
    assert same_bytes(judged, uninterrupted[0])


@pytest.mark.parametrize(
    ("method", "least", "is_asked"), [("adapted", 8, True), ("adapted", 9, False), ("weighted", 8, False)]
)
def test_students_are_first_compared_by_what_the_teacher_says_of_held_out_images(
    monkeypatch: pytest.MonkeyPatch, method: str, least: int, is_asked: bool
) -> None:
    """A teacher that says the second class of all images; eight of them are held out."""
    monkeypatch.setattr(evaluate, "LEAST_HELD_OUT", least)
    material = replace(
        make_material(),
        unlabeled=np.arange(24, 32),
        held_out=np.arange(32, 40),
        teacher_NC=np.tile(np.array([0.2, 0.8], dtype=np.float32), (40, 1)),
    )
    training_task, scores = task(STEPS, material, method=method), list[Accuracy]()
    fitted = loop.fit(build_student(training_task.spec, seed=1), training_task, rungs={STEPS: scores.append})
    predicted_N = logits(fitted.model, training_task.spec, material.images_NHWC[32:]).argmax(axis=1)
    agreement = evaluate.agreement(training_task, partial(logits, fitted.model, training_task.spec))
    assert (agreement is not None) == is_asked
    assert scores == [agreement or fitted.val]
    assert agreement is None or (agreement.n, agreement.top1) == (8, float((predicted_N == 1).mean()))
