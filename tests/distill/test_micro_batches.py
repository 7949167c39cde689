"""A full GPU, simulated: the batch goes through the student in parts, with the gradients of the whole batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgedistill.distill import loop
from edgedistill.distill.batches import Task
from edgedistill.distill.loop import TrainedStudent
from edgedistill.distill.methods import METHODS
from edgedistill.distill.micro_batches import MicroBatches
from edgedistill.distributed import processes
from edgedistill.errors import EdgeDistillError
from edgedistill.students.build import build_student
from tests.distill.test_loop_needs import material_with_teacher
from tests.helpers.tiny import task

pytestmark = pytest.mark.usefixtures("cpu")


class KilledError(Exception):
    """Simulates the death of the process."""


def fill_memory(patch: pytest.MonkeyPatch, most: int) -> list[int]:
    """More than `most` images at a time are out of memory; returns the sizes that were tried."""
    sizes: list[int] = []
    forward = loop.forward_heads

    def limited(net: nn.Module, images_BCHW: torch.Tensor, training_task: Task) -> Any:
        sizes.append(len(images_BCHW))
        if len(images_BCHW) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(net, images_BCHW, training_task)

    patch.setattr(loop, "forward_heads", limited)
    return sizes


def without_batch_norm(model: nn.Module) -> nn.Module:
    for name, part in model.named_children():
        setattr(model, name, nn.Identity() if isinstance(part, nn.BatchNorm2d) else without_batch_norm(part))
    return model


def train(training_task: Task, folder: Path | None = None, killed_after: int = -1) -> tuple[TrainedStudent, list[Any]]:
    steps: list[Any] = []

    def on_step(step: int, scalars: Any) -> None:
        steps.append(scalars)
        if step == killed_after:
            raise KilledError

    model = without_batch_norm(build_student(training_task.spec, seed=1))
    return loop.fit(model, training_task, folder, on_step), steps


@pytest.mark.parametrize("name", METHODS)
def test_parts_have_the_loss_and_the_gradients_of_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choice = {"name": name, "source": "also"} if name == "single" else {"name": name}
    job = task(3, material_with_teacher(), method=choice, batch_unlabeled=8)
    whole, scalars = train(job)
    fill_memory(monkeypatch, most=4)
    parts, scalars_in_parts = train(job)
    for step, step_in_parts in zip(scalars, scalars_in_parts, strict=True):
        assert step_in_parts == pytest.approx(step, rel=1e-4)
    for weight, weight_in_parts in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(weight_in_parts, weight, rtol=1e-3, atol=1e-4)


def test_parts_are_said_recorded_and_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = task(6, checkpoint_every=2)  # 8 labeled and 4 unlabeled images
    sizes = fill_memory(monkeypatch, most=6)
    with pytest.raises(KilledError):
        train(job, tmp_path, killed_after=3)
    assert sizes[:5] == [12, 6, 6, 6, 6]
    text = " ".join(capsys.readouterr().err.split() or capsys.readouterr().out.split())
    assert "memory is full at step 1, with 12 images at a time: from here on a step takes 2 parts of 6" in text
    sizes.clear()
    train(job, tmp_path)
    assert set(sizes) == {6}  # the checkpoint has the number of parts
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["micro_batches"] for line in lines] == [2] * 6


def test_batch_that_fits_is_not_divided(tmp_path: Path) -> None:
    train(task(2), tmp_path)
    assert "micro_batches" not in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.parametrize(("labeled", "unlabeled", "counts"), [(8, 4, [2, 4]), (6, 9, [3]), (8, 0, [2, 4]), (2, 2, [2])])
def test_counts_by_hand(labeled: int, unlabeled: int, counts: list[int]) -> None:
    micro_batches, divided = MicroBatches(), []
    with pytest.raises(EdgeDistillError, match=f"{labeled} labeled and {unlabeled} unlabeled images cannot be divided"):
        while True:
            micro_batches.divide_further(labeled, unlabeled, step=0)
            divided.append(micro_batches.count)
    assert divided == counts
    labeled_slices, unlabeled_slices = zip(*micro_batches.slices(labeled, unlabeled), strict=True)
    assert [row for part in labeled_slices for row in range(labeled)[part]] == list(range(labeled))
    assert {len(range(unlabeled)[part]) for part in unlabeled_slices} == {unlabeled // counts[-1]}


def test_other_errors_are_not_taken_for_a_full_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(loop, "forward_heads", fail)
    with pytest.raises(RuntimeError, match="device-side"):
        train(task(1))


def test_several_processes_do_not_divide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "team", lambda: processes.Team(rank=0, size=2))
    with pytest.raises(EdgeDistillError, match="or use more processes"):
        MicroBatches().divide_further(8, 8, step=0)
