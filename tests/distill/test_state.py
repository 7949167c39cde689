"""The state of a training run: its schedule and running mean by hand, and what a kill leaves behind."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from edgedistill.distill.checkpoint import resume, save, whole_lines
from edgedistill.distill.state import descend, refresh_statistics, set_rate, start
from edgedistill.recipe.schema import Distill

pytestmark = pytest.mark.usefixtures("cpu")


def line(weight: float = 1.0) -> nn.Sequential:
    """y = weight * x, and a head of one number that does the same."""
    model = nn.Sequential(OrderedDict(backbone=nn.Linear(1, 1, bias=False), head=nn.Linear(1, 1)))
    for parameter in model.parameters():
        nn.init.constant_(parameter, weight)
    return model


def rates(steps: int, **settings: float) -> list[float]:
    wanted = Distill.model_validate(settings)
    state = start(line(), 0, wanted, seed=0)
    found = []
    for step in range(steps):
        set_rate(state.optimiser, wanted, step, steps)
        assert len({group["lr"] for group in state.optimiser.param_groups}) == 1
        found.append(float(state.optimiser.param_groups[0]["lr"]))
    return found


def test_learning_rate_by_hand() -> None:
    # 10 steps, 2 of warm-up: 1/2 and 1; then (1 + cos(pi k / 8)) / 2 for k = 0..7
    cosine = [1.0, 0.961940, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.038060]
    expected = [0.5, 1.0, *cosine]
    assert rates(10, lr=0.2, warmup_fraction=0.2) == pytest.approx([0.2 * share for share in expected], rel=1e-4)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 0.9), (2, 0.9), (7, 0.0)])
def test_short_schedules_are_positive_and_never_above_the_rate(steps: int, warmup: float) -> None:
    found = rates(steps, lr=0.1, warmup_fraction=warmup)
    assert all(0.0 < rate <= 0.1 for rate in found) and max(found) == pytest.approx(0.1)


def test_running_mean_by_hand() -> None:
    # AdamW's first step is lr in the direction of the gradient's sign, after the decay: with loss = backbone's weight
    # w = 1 - 0.1 = 0.9. Step 0: decay min(0.99, 1/10), mean 0.1 * 1 + 0.9 * 0.9 = 0.91
    state = start(line(), 0, Distill(lr=0.1, weight_decay=0.0), seed=0)
    descend(state, state.model.get_parameter("backbone.weight").sum(), 0.99, step=0)
    assert state.model.get_parameter("backbone.weight").item() == pytest.approx(0.9, abs=1e-6)
    assert state.ema.get_parameter("backbone.weight").item() == pytest.approx(0.91, abs=1e-6)
    # the same gradient again, w = 0.8. Step 90: decay min(0.6, 91/100) = 0.6, mean 0.6 * 0.91 + 0.4 * 0.8 = 0.866
    descend(state, state.model.get_parameter("backbone.weight").sum(), 0.6, step=90)
    assert state.ema.get_parameter("backbone.weight").item() == pytest.approx(0.866, abs=1e-5)


def test_biases_are_not_decayed() -> None:
    # decay 0.5 at lr 0.1: matrices lose 5 %; then the step of 0.1 for all
    state = start(line(), 0, Distill(lr=0.1, weight_decay=0.5), seed=0)
    descend(state, torch.stack([one.sum() for one in state.model.parameters()]).sum(), 0.9, step=0)
    values = {name: one.item() for name, one in state.model.named_parameters()}
    assert values == pytest.approx({"backbone.weight": 0.85, "head.weight": 0.85, "head.bias": 0.9}, abs=1e-6)


def test_the_mean_is_a_copy_that_learns_nothing_itself() -> None:
    state = start(line(), 0, Distill(), seed=0)
    assert not any(one.requires_grad for one in state.ema.parameters())
    assert state.ema.get_parameter("head.weight") is not state.model.get_parameter("head.weight")


def test_batch_statistics_are_taken_over_as_they_are() -> None:
    model = nn.Sequential(OrderedDict(backbone=nn.Sequential(nn.BatchNorm1d(1)), head=nn.Linear(1, 1)))
    state = start(model, 0, Distill(), seed=0)
    loss = state.model.train()(torch.tensor([[3.0], [5.0]])).sum()
    descend(state, loss, 0.99, step=50)
    # momentum 0.1: 0.9 * 0 + 0.1 * 4
    assert state.ema.get_buffer("backbone.0.running_mean").item() == pytest.approx(0.4)


def test_statistics_taken_anew_are_the_plain_average_of_the_batches() -> None:
    model = nn.Sequential(nn.BatchNorm1d(1))
    model(torch.tensor([[90.0], [92.0]]))  # what was there before must not count
    refresh_statistics(model, [torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [8.0]])])
    # means 1 and 6; unbiased variances 2 and 8
    assert model.get_buffer("0.running_mean").item() == pytest.approx(3.5)
    assert model.get_buffer("0.running_var").item() == pytest.approx(5.0)
    assert not model.training and model[0].momentum == 0.1


def test_source_heads_follow_the_seed_and_hold_every_source() -> None:
    first, again, other = (start(line(), 7, Distill(), seed=seed).heads.state_dict() for seed in (1, 1, 2))
    assert first["weight"].shape == (7, 1)
    assert torch.equal(first["weight"], again["weight"]) and not torch.equal(first["weight"], other["weight"])
    assert not start(line(), 0, Distill(), seed=0).heads.state_dict()


def write_lines(folder: Path, *lines: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")


def test_without_a_checkpoint_everything_starts_over(tmp_path: Path) -> None:
    write_lines(tmp_path, '{"step": 1}', "")
    assert resume(start(line(), 0, Distill(), seed=0), tmp_path) == (0, 0.0)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_resume_gives_back_what_was_saved_and_cuts_the_lines(tmp_path: Path) -> None:
    state = start(line(), 2, Distill(lr=0.1), seed=0)
    for step in range(3):
        descend(state, state.model.get_parameter("head.weight").sum() * (step + 1), 0.9, step)
    save(state, 3, 12.5, tmp_path)
    write_lines(tmp_path, *(json.dumps({"step": step}) for step in range(1, 6)), '{"step": 3, "lo')
    fresh = start(line(0.3), 2, Distill(lr=0.1), seed=9)
    assert resume(fresh, tmp_path) == (3, 12.5)
    for name in ("model", "heads", "ema"):
        mine, theirs = fresh.parts()[name].state_dict(), state.parts()[name].state_dict()
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    # the optimiser's moments too: the next step is the same to the bit
    for one in (fresh, state):
        descend(one, one.model.get_parameter("head.weight").sum(), 0.9, 3)
    assert torch.equal(fresh.model.get_parameter("head.weight"), state.model.get_parameter("head.weight"))
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def test_a_half_written_line_is_left_out(tmp_path: Path) -> None:
    write_lines(tmp_path, '{"step": 1, "loss": 0.5}', '{"step": 2, "lo')
    assert [found for found, _ in whole_lines(tmp_path / "metrics.jsonl")] == [{"step": 1, "loss": 0.5}]
    assert list(whole_lines(tmp_path / "none.jsonl")) == []


def test_a_save_that_fails_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = start(line(), 0, Distill(), seed=0)
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
