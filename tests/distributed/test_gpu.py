"""Tier `gpu`: what docs/scale.md states about determinism, and that CUDA computes what a CPU computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgedistill.distill import loop, read_out
from edgedistill.distill.ahead import step_batches
from edgedistill.distill.methods import METHODS
from edgedistill.distill.state import initial_state
from edgedistill.sources import outputs
from edgedistill.students.build import build_student
from tests.distributed.test_stand_in_gpu import KilledError, method_task, train
from tests.helpers.tiny import task
from tests.sources.test_outputs import IMAGES, network

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


@pytest.mark.parametrize("name", METHODS)
def test_first_losses_are_those_of_a_cpu(name: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        _, on_cpu = train(method_task(name))
    _, on_gpu = train(method_task(name))
    assert on_gpu[0] == pytest.approx(on_cpu[0], rel=1e-2)  # later ones: rounding is amplified
    assert on_gpu == pytest.approx(on_cpu, rel=0.05)


def test_repeated_training_agrees_but_for_rounding() -> None:
    (first, losses), (second, losses_again) = (train(method_task("weighted", steps=10)) for _ in range(2))
    assert losses_again == pytest.approx(losses, rel=1e-2)
    for weight, weight_again in zip(first.model.parameters(), second.model.parameters(), strict=True):
        torch.testing.assert_close(weight_again, weight, rtol=0.05, atol=0.01)


def test_killed_run_goes_on_at_its_checkpoint(tmp_path: Path) -> None:
    job = method_task("consistent", steps=4, checkpoint_every=2)
    _, losses = train(job, tmp_path / "whole")
    with pytest.raises(KilledError):
        train(job, tmp_path / "killed", killed_after=3)
    _, resumed_losses = train(job, tmp_path / "killed")
    assert resumed_losses == pytest.approx(losses[2:], rel=1e-2)


def test_steps_do_not_wait_for_the_gpu() -> None:
    job = method_task("weighted", steps=8)
    classes = sum(job.material.source_probs[name].shape[1] for name in job.sources)
    live, loss = initial_state(build_student(job.spec), classes, job.settings, 0), job.loss()
    with step_batches(job, 0) as batches:
        loop.train_step(live, loss, job, 0, step_batch=next(batches))
        torch.cuda.set_sync_debug_mode("error")  # what waits raises an error
        try:
            unread = [loop.train_step(live, loss, job, step, step_batch=next(batches)) for step in range(1, 8)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert np.isfinite([scalars["loss"] for scalars in read_out.read(unread)]).all()


def test_compiled_training_has_the_losses_of_the_plain_one(tmp_path: Path) -> None:
    _, losses = train(method_task("weighted", steps=4))
    _, compiled_losses = train(method_task("weighted", steps=4, compile=True), tmp_path)
    assert compiled_losses == pytest.approx(losses, rel=0.05)
    assert '"compiled": true' in (tmp_path / "metrics.jsonl").read_text()


def test_default_precision_trains() -> None:
    fitted, losses = train(task(20, method="weighted"))
    assert np.isfinite(losses).all() and fitted.val is not None


def test_source_outputs_are_those_of_a_cpu() -> None:
    features_ND, probs_NK = outputs.infer(network([]), IMAGES)
    np.testing.assert_allclose(features_ND, IMAGES.mean(axis=(1, 2)) / 255.0, atol=1e-5)
    assert probs_NK is not None and probs_NK.sum(axis=1) == pytest.approx(np.ones(len(IMAGES)), abs=1e-5)
