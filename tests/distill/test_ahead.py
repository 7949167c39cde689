"""Batches gathered by a thread are those gathered in the loop, to the byte; its errors and its end are the loop's."""

from __future__ import annotations

import itertools
import threading

import pytest
import torch

from edgedistill.distill import ahead
from edgedistill.distill.ahead import step_batches
from edgedistill.distill.batches import draw_batch
from edgedistill.errors import EdgeDistillError
from tests.distill.test_loop import same_bytes, train
from tests.distill.test_loop_needs import material_with_teacher
from tests.helpers.tiny import task

pytestmark = pytest.mark.usefixtures("cpu")


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("begin", [0, 4, 6])
def test_batches_are_those_of_the_steps(begin: int, count: int) -> None:
    job = task(6, material_with_teacher(), method="combined")
    with step_batches(job, begin, count) as batches:
        drawn = list(batches)
    assert len(drawn) == 6 - begin
    for step, batch in enumerate(drawn, start=begin):
        expected = draw_batch(job, step)
        assert torch.equal(batch.images_BHWC, expected.images_BHWC) and torch.equal(batch.labels_B, expected.labels_B)
        assert all(torch.equal(batch.source_probs[name], probs) for name, probs in expected.source_probs.items())
        assert batch.teacher_BC is not None and torch.equal(batch.teacher_BC, expected.teacher_BC)


def test_training_is_the_same_to_the_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    job = task(5, material_with_teacher(), method="consistent")
    in_the_loop = train(job)
    monkeypatch.setattr(ahead, "batches_ahead", lambda: 3)
    assert same_bytes(train(job), in_the_loop)


def test_error_of_the_thread_is_raised_at_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(job: object, step: int) -> object:
        if step == 2:
            raise EdgeDistillError("the shard is gone")
        return draw_batch(task(4), step)

    monkeypatch.setattr(ahead, "draw_batch", fail)
    with step_batches(task(4), 0, 2) as batches:
        assert len(list(itertools.islice(batches, 2))) == 2
        with pytest.raises(EdgeDistillError, match="the shard is gone"):
            next(batches)


def test_thread_ends_with_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(threading.enumerate())
    with step_batches(task(10_000), 0, 2) as batches:
        next(batches)
        (thread,) = set(threading.enumerate()) - before
    thread.join(timeout=60)
    assert not thread.is_alive()
