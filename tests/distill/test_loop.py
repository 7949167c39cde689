"""The loop: it learns, a kill changes nothing, and every step draws what it should."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgedistill.distill import batches, loop
from edgedistill.distill.batches import Task, draw_batch, draw_rows
from edgedistill.distill.evaluate import logits, score
from edgedistill.distill.loop import Fitted
from edgedistill.distill.state import start
from edgedistill.errors import EdgeDistillError
from edgedistill.records import Accuracy
from edgedistill.students.build import build_student
from tests.helpers.tiny import material, micro_spec, task

pytestmark = pytest.mark.usefixtures("cpu")
STEPS = 12


class KilledError(Exception):
    """Stands for the death of the process."""


def trained(wanted: Task, folder: Path | None = None, killed_after: int = -1) -> Fitted:
    def on_step(step: int, scalars: object) -> None:
        if step == killed_after:
            raise KilledError

    return loop.fit(build_student(wanted.spec, seed=1), wanted, folder, on_step)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]


def without_time(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in found]


def same_bytes(first: Fitted, second: Fitted) -> bool:
    one, two = first.model.state_dict(), second.model.state_dict()
    return all(one[name].numpy().tobytes() == two[name].numpy().tobytes() for name in one) and one.keys() == two.keys()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Fitted, list[dict[str, Any]]]:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        return trained(task(STEPS), folder), lines(folder)


@pytest.mark.parametrize("killed", [(1,), (5,), (7,), (7, 11), (12,)], ids=str)
def test_a_killed_run_ends_with_the_same_bytes(
    tmp_path: Path, whole: tuple[Fitted, list[dict[str, Any]]], killed: tuple[int, ...]
) -> None:
    for step in killed:
        with pytest.raises(KilledError):
            trained(task(STEPS), tmp_path, killed_after=step)
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 99, "loss": 0.')
    again = trained(task(STEPS), tmp_path)
    assert same_bytes(again, whole[0]) and again.val == whole[0].val and again.loss == whole[0].loss
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, STEPS + 1))
    assert without_time(lines(tmp_path)) == without_time(whole[1])


def test_steps_under_a_checkpoint_are_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        trained(task(STEPS), tmp_path, killed_after=7)
    steps: list[int] = []
    loop.fit(build_student(micro_spec(), 1), task(STEPS), tmp_path, lambda step, scalars: steps.append(step))
    assert steps == list(range(6, STEPS + 1))


def test_what_a_line_holds(whole: tuple[Fitted, list[dict[str, Any]]]) -> None:
    found = whole[1]
    assert [line["step"] for line in found if "val" in line] == [4, 8, 12]
    for line in found:
        assert set(line["terms"]) == {"labels", "source/knows"}
        assert line["loss"] == pytest.approx(sum(line["terms"].values()), rel=1e-5)
        assert line["lr"] > 0 and line["images_per_second"] > 0


def test_another_seed_gives_another_student(whole: tuple[Fitted, list[dict[str, Any]]]) -> None:
    assert not same_bytes(trained(replace(task(STEPS), seed=8)), whole[0])


def test_a_trace_on_disk_changes_nothing(whole: tuple[Fitted, list[dict[str, Any]]]) -> None:
    assert same_bytes(trained(task(STEPS)), whole[0])


@pytest.mark.parametrize("method", ["transfer", "weighted"])
def test_an_easy_task_is_learned(method: str) -> None:
    losses: list[float] = []
    wanted = task(40, method=method)
    fitted = loop.fit(build_student(wanted.spec, 1), wanted, None, lambda step, all_: losses.append(all_["loss"]))
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert fitted.val.n == 8 and fitted.val.top1 == 1.0  # chance is 1/2, and (1/2)^8 = 0.4 % by luck
    assert fitted.loss < np.log(2)
    assert not fitted.model.training


def test_pseudo_labels_steer_and_transfer_does_not_see_them() -> None:
    flat = material(probs={"knows": np.full((40, 3), 1 / 3)})
    for method, alike in (("weighted", False), ("transfer", True)):
        with_source, without = (trained(task(3, what, method=method)) for what in (material(), flat))
        assert same_bytes(with_source, without) == alike


def test_source_alone_teaches_the_backbone() -> None:
    # lam 0: the labels have no part in the loss, yet the backbone must tell red from blue afterwards
    fitted = trained(task(40, method={"name": "weighted", "lam": 0.0}))
    images_NHWC, labels_N = material().images_NHWC[16:24], np.arange(16, 24) % 2
    backbone = torch.nn.Sequential(fitted.model.get_submodule("backbone"))
    features_ND = logits(backbone, micro_spec(), images_NHWC)
    centred = features_ND - features_ND.mean(axis=0)
    direction = centred[labels_N == 1].mean(axis=0) - centred[labels_N == 0].mean(axis=0)
    assert ((centred @ direction > 0) == labels_N).all()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    model = build_student(micro_spec(), 1)
    torch.nn.init.constant_(model.get_parameter("head.weight"), float("nan"))
    with pytest.raises(EdgeDistillError, match=r"distill: the loss is not finite at step 1; lower distill\.lr"):
        loop.fit(model, task(3), tmp_path)
    assert not (tmp_path / "last.pt").exists()


ROWS = st.lists(st.integers(0, 99), min_size=1, max_size=12, unique=True)


@given(rows=ROWS, count=st.integers(1, 30), seed=st.integers(0, 3), epochs=st.integers(1, 3))
def test_every_row_is_drawn_once_an_epoch(rows: list[int], count: int, seed: int, epochs: int) -> None:
    n = len(rows)
    steps = -(-epochs * n // count)
    drawn = np.concatenate([draw_rows(np.array(rows), count, seed, step, stream=1) for step in range(steps)])
    assert len(drawn) == steps * count
    for epoch in range(epochs):
        assert sorted(drawn[epoch * n : (epoch + 1) * n]) == sorted(rows)


def test_draws_differ_by_seed_stream_and_epoch() -> None:
    rows = np.arange(50)
    draws = [draw_rows(rows, 50, *at) for at in ((0, 0, 1), (1, 0, 1), (0, 1, 1), (0, 0, 2))]
    assert len({tuple(one) for one in draws}) == 4
    assert (
        draw_rows(rows, 0, seed=0, step=0, stream=1).size == 0
        and draw_rows(rows[:0], 5, seed=0, step=0, stream=1).size == 0
    )


def marked() -> batches.Material:
    """Pixels and pseudo-labels that say which row they are of."""
    rows = np.arange(40)
    pixels = np.broadcast_to(rows[:, None, None, None], (40, 16, 16, 3)).astype(np.uint8)
    return replace(material(probs={"knows": np.stack([rows, -rows], axis=1)}), images_NHWC=pixels)


def test_images_labels_and_pseudo_labels_belong_together() -> None:
    drawn = draw_batch(task(3, marked()), step=1)
    rows = drawn.images_BHWC[:, 0, 0, 0].long()
    assert drawn.images_BHWC.shape == (12, 16, 16, 3)
    assert torch.equal(drawn.source_probs["knows"][:, 0], rows)
    # rows 0-15 are labeled with their parity, rows 24-39 are not; rows 16-23 are val and stay out
    assert (rows[:8] < 16).all() and torch.equal(drawn.labels_B[:8], rows[:8] % 2)
    assert (rows[8:] >= 24).all() and (drawn.labels_B[8:] == -1).all()


def test_a_method_without_sources_gets_no_unlabeled_images() -> None:
    drawn = draw_batch(task(3, marked(), method="transfer"), step=0)
    assert len(drawn.images_BHWC) == 8 and drawn.source_probs == {} and (drawn.labels_B >= 0).all()


def test_no_unlabeled_images_at_all() -> None:
    few = replace(material(), unlabeled=np.arange(0))
    assert np.isfinite(trained(task(2, few)).loss)


def test_logits_do_not_depend_on_the_batch() -> None:
    model = build_student(micro_spec(), 1)
    images_NHWC = material().images_NHWC[:10]
    one, four = (logits(model, micro_spec(), images_NHWC, batch) for batch in (1, 4))
    assert one.shape == (10, 2) and one.dtype == np.float32
    np.testing.assert_allclose(one, four, atol=1e-5)


def test_held_out_loss_of_transfer_is_the_cross_entropy_on_val() -> None:
    wanted = task(STEPS, method={"name": "transfer"})
    fitted = trained(wanted)
    logits_NC = logits(fitted.model, wanted.spec, wanted.material.images_NHWC[wanted.material.val]).astype(np.float64)
    chosen_N = logits_NC[np.arange(len(logits_NC)), wanted.material.val_labels]
    assert fitted.loss == pytest.approx(float((np.log(np.exp(logits_NC).sum(axis=1)) - chosen_N).mean()), rel=1e-4)


def test_score_by_hand() -> None:
    logits_NC = np.array([[np.log(3), 0.0], [0.0, np.log(3)], [np.log(3), 0.0]], dtype=np.float32)
    labels_N = np.array([0, 1, 1])
    found = score(logits_NC, labels_N)
    assert found.n == 3 and (found.top1, found.balanced) == pytest.approx((2 / 3, 0.75))
    assert found.top1_ci95[0] < found.top1 < found.top1_ci95[1]


def test_dropout_draws_from_the_steps_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_dropout() -> torch.nn.Module:
        model = build_student(micro_spec(), seed=7)
        model.backbone.add_module("drop", torch.nn.Dropout(0.5))  # type: ignore[union-attr]
        plain = model.backbone.forward  # type: ignore[union-attr]
        monkeypatch.setattr(model.backbone, "forward", lambda images: model.backbone.drop(plain(images)))
        return model

    wanted, ends = task(3), []
    for noise in (1, 2):
        torch.manual_seed(noise)  # what else was drawn in the process must not matter
        model = with_dropout()
        state = start(
            model, sum(one.shape[1] for one in wanted.material.source_probs.values()), wanted.settings, wanted.seed
        )
        for step in range(3):
            loop.train_step(state, wanted.loss(), drawn=draw_batch(wanted, step), task=wanted, step=step)
        ends.append(model.head.weight.detach().clone())  # type: ignore[union-attr]
    assert torch.equal(*ends)


def test_rungs_see_val_and_change_nothing(whole: tuple[Fitted, list[dict[str, Any]]]) -> None:
    seen: list[Accuracy] = []
    wanted = task(STEPS)
    judged = loop.fit(build_student(wanted.spec, seed=1), wanted, rungs={3: seen.append, 7: seen.append})
    assert [one.n for one in seen] == [len(wanted.material.val)] * 2
    assert same_bytes(judged, whole[0])
