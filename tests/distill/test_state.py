"""The state of a training run: its schedule and running mean by hand, and its files after a kill."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from edgedistill.distill.checkpoint import complete_lines, resume, save
from edgedistill.distill.state import State, initial_state, optimizer_step, refresh_statistics, set_learning_rate
from edgedistill.recipe.schema import Distill

pytestmark = pytest.mark.usefixtures("cpu")


def backward_step(state: State, loss: torch.Tensor, ema_decay: float, step: int) -> None:
    torch.autograd.backward(loss)
    optimizer_step(state, ema_decay, step)


def line(weight: float = 1.0) -> nn.Sequential:
    """Return a backbone and a head that each compute weight * x (the head adds a bias)."""
    model = nn.Sequential(OrderedDict(backbone=nn.Linear(1, 1, bias=False), head=nn.Linear(1, 1)))
    for parameter in model.parameters():
        nn.init.constant_(parameter, weight)
    return model


def rates(steps: int, **settings: float) -> list[float]:
    distill = Distill.model_validate(settings)
    state = initial_state(line(), 0, distill, seed=0)
    learning_rates = []
    for step in range(steps):
        set_learning_rate(state.optimizer, distill, step, steps)
        assert len({group["lr"] for group in state.optimizer.param_groups}) == 1
        learning_rates.append(float(state.optimizer.param_groups[0]["lr"]))
    return learning_rates


def test_learning_rate_by_hand() -> None:
    # 10 steps, 2 of warm-up: 1/2 and 1; then (1 + cos(pi k / 8)) / 2 for k = 0..7
    cosine = [1.0, 0.961940, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.038060]
    expected = [0.5, 1.0, *cosine]
    assert rates(10, lr=0.2, warmup_fraction=0.2) == pytest.approx([0.2 * share for share in expected], rel=1e-4)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 0.9), (2, 0.9), (7, 0.0)])
def test_short_schedules_stay_within_zero_and_the_rate(steps: int, warmup: float) -> None:
    learning_rates = rates(steps, lr=0.1, warmup_fraction=warmup)
    assert all(0.0 < rate <= 0.1 for rate in learning_rates) and max(learning_rates) == pytest.approx(0.1)


def test_running_mean_by_hand() -> None:
    # AdamW's first step is lr in the direction of the gradient's sign, after the decay: with loss = backbone's weight
    # w = 1 - 0.1 = 0.9. Step 0: decay min(0.99, 1/10), mean 0.1 * 1 + 0.9 * 0.9 = 0.91
    state = initial_state(line(), 0, Distill(lr=0.1, weight_decay=0.0), seed=0)
    backward_step(state, state.model.get_parameter("backbone.weight").sum(), 0.99, step=0)
    assert state.model.get_parameter("backbone.weight").item() == pytest.approx(0.9, abs=1e-6)
    assert state.ema.get_parameter("backbone.weight").item() == pytest.approx(0.91, abs=1e-6)
    # the same gradient again, w = 0.8. Step 90: decay min(0.6, 91/100) = 0.6, mean 0.6 * 0.91 + 0.4 * 0.8 = 0.866
    backward_step(state, state.model.get_parameter("backbone.weight").sum(), 0.6, step=90)
    assert state.ema.get_parameter("backbone.weight").item() == pytest.approx(0.866, abs=1e-5)


def test_heads_have_their_own_rate() -> None:
    distill = Distill(lr=0.1, heads_rate=3.0, weight_decay=0.0, warmup_fraction=0.0)
    state = initial_state(line(), 2, distill, seed=0)
    before = state.heads.get_parameter("weight").clone()
    set_learning_rate(state.optimizer, distill, 0, 10**6)
    loss = sum(parameter.sum() for part in (state.model, state.heads) for parameter in part.parameters())
    backward_step(state, torch.as_tensor(loss), 0.99, step=0)
    # AdamW's first step is the rate in the direction of the gradient's sign
    assert state.model.get_parameter("backbone.weight").item() == pytest.approx(1.0 - 0.1, abs=1e-6)
    assert state.model.get_parameter("head.weight").item() == pytest.approx(1.0 - 0.3, abs=1e-6)
    assert state.model.get_parameter("head.bias").item() == pytest.approx(1.0 - 0.3, abs=1e-6)
    assert torch.allclose(state.heads.get_parameter("weight"), before - 0.3, atol=1e-6)


def test_checkpoint_from_before_heads_had_a_rate() -> None:
    state = initial_state(line(), 0, Distill(lr=0.1), seed=0)
    older = state.optimizer.state_dict()
    for group in older["param_groups"]:
        del group["rate"]
    state.optimizer.load_state_dict(older)
    set_learning_rate(state.optimizer, Distill(lr=0.1, warmup_fraction=0.0), 0, 10**6)
    assert [group["lr"] for group in state.optimizer.param_groups] == pytest.approx([0.1, 0.1])


def test_biases_are_not_decayed() -> None:
    # decay 0.5 at lr 0.1: matrices lose 5 %; then the step of 0.1 for all
    state = initial_state(line(), 0, Distill(lr=0.1, weight_decay=0.5), seed=0)
    backward_step(state, torch.stack([parameter.sum() for parameter in state.model.parameters()]).sum(), 0.9, step=0)
    values = {name: parameter.item() for name, parameter in state.model.named_parameters()}
    assert values == pytest.approx({"backbone.weight": 0.85, "head.weight": 0.85, "head.bias": 0.9}, abs=1e-6)


def test_running_mean_is_a_copy_without_gradients() -> None:
    state = initial_state(line(), 0, Distill(), seed=0)
    assert not any(parameter.requires_grad for parameter in state.ema.parameters())
    assert state.ema.get_parameter("head.weight") is not state.model.get_parameter("head.weight")


def test_batch_statistics_are_copied_unaveraged() -> None:
    model = nn.Sequential(OrderedDict(backbone=nn.Sequential(nn.BatchNorm1d(1)), head=nn.Linear(1, 1)))
    state = initial_state(model, 0, Distill(), seed=0)
    loss = state.model.train()(torch.tensor([[3.0], [5.0]])).sum()
    backward_step(state, loss, 0.99, step=50)
    # momentum 0.1: 0.9 * 0 + 0.1 * 4
    assert state.ema.get_buffer("backbone.0.running_mean").item() == pytest.approx(0.4)


def test_refreshed_statistics_are_the_average_over_batches() -> None:
    model = nn.Sequential(nn.BatchNorm1d(1))
    model(torch.tensor([[90.0], [92.0]]))  # statistics from before must not count
    refresh_statistics(model, [torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [8.0]])])
    # means 1 and 6; unbiased variances 2 and 8
    assert model.get_buffer("0.running_mean").item() == pytest.approx(3.5)
    assert model.get_buffer("0.running_var").item() == pytest.approx(5.0)
    assert not model.training and model[0].momentum == 0.1


def test_source_heads_follow_the_seed_and_hold_every_source() -> None:
    first, again, other = (initial_state(line(), 7, Distill(), seed=seed).heads.state_dict() for seed in (1, 1, 2))
    assert first["weight"].shape == (7, 1)
    assert torch.equal(first["weight"], again["weight"]) and not torch.equal(first["weight"], other["weight"])
    assert not initial_state(line(), 0, Distill(), seed=0).heads.state_dict()


def write_lines(folder: Path, *lines: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")


def test_training_without_checkpoint_starts_over(tmp_path: Path) -> None:
    write_lines(tmp_path, '{"step": 1}', "")
    assert resume(initial_state(line(), 0, Distill(), seed=0), tmp_path) == (0, 0.0)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_resume_restores_saved_state_and_truncates_metrics(tmp_path: Path) -> None:
    state = initial_state(line(), 2, Distill(lr=0.1), seed=0)
    for step in range(3):
        backward_step(state, state.model.get_parameter("head.weight").sum() * (step + 1), 0.9, step)
    save(state, 3, 12.5, tmp_path)
    write_lines(tmp_path, *(json.dumps({"step": step}) for step in range(1, 6)), '{"step": 3, "lo')
    fresh = initial_state(line(0.3), 2, Distill(lr=0.1), seed=9)
    assert resume(fresh, tmp_path) == (3, 12.5)
    for name in ("model", "heads", "ema"):
        resumed, saved = fresh.parts()[name].state_dict(), state.parts()[name].state_dict()
        assert all(torch.equal(resumed[key], saved[key]) for key in saved)
    # the optimizer's moments are restored too: the next step is the same to the bit
    for training_state in (fresh, state):
        backward_step(training_state, training_state.model.get_parameter("head.weight").sum(), 0.9, 3)
    assert torch.equal(fresh.model.get_parameter("head.weight"), state.model.get_parameter("head.weight"))
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def test_half_written_line_is_left_out(tmp_path: Path) -> None:
    write_lines(tmp_path, '{"step": 1, "loss": 0.5}', '{"step": 2, "lo')
    assert [record for record, _ in complete_lines(tmp_path / "metrics.jsonl")] == [{"step": 1, "loss": 0.5}]
    assert list(complete_lines(tmp_path / "none.jsonl")) == []


def test_failed_save_keeps_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = initial_state(line(), 0, Distill(), seed=0)
    save(state, 5, 1.0, tmp_path)

    def full(path: Path, content: memoryview) -> None:
        with path.open("wb") as stream:
            stream.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        save(state, 10, 2.0, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
    assert resume(state, tmp_path) == (5, 1.0) and math.isfinite(state.model.get_parameter("head.weight").item())
