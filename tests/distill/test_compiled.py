"""`distill.compile`: the same training but for rounding, the same files, and a compiler that fails ends nothing."""

from __future__ import annotations

import json
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgedistill.distill import compiled, loop
from edgedistill.distill.batches import Task
from edgedistill.distill.compiled import TrainingNet
from edgedistill.distill.loop import TrainedStudent
from edgedistill.distill.state import initial_state
from edgedistill.distributed import processes
from edgedistill.errors import EdgeDistillError
from tests.distill.test_loop import same_bytes
from tests.helpers.tiny import task

pytestmark = pytest.mark.usefixtures("cpu")


@pytest.fixture(params=["eager", "aot_eager"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """torch's backends without a compiler: what Dynamo traces, and what AOTAutograd makes of it, in eager kernels."""
    monkeypatch.setattr(compiled, "BACKEND", request.param)
    return str(request.param)


def small_net() -> nn.Module:
    """The least that can be trained: torch compiles it in seconds."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(OrderedDict(backbone=nn.Sequential(*layers), head=nn.Linear(4, 2)))


def train(job: Task, folder: Path | None = None) -> tuple[TrainedStudent, list[float]]:
    losses: list[float] = []
    return loop.fit(small_net(), job, folder, lambda step, scalars: losses.append(scalars["loss"])), losses


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_compiled_training_is_the_plain_one(backend: str, tmp_path: Path) -> None:
    plain, losses = train(task(4), tmp_path / "plain")
    fitted, compiled_losses = train(task(4, compile=True), tmp_path / "compiled")
    assert compiled_losses == pytest.approx(losses, rel=1e-4)
    state, compiled_state = (
        torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("plain", "compiled")
    )
    for part in ("model", "heads", "ema"):
        assert list(compiled_state[part]) == list(state[part])
    assert list(fitted.model.state_dict()) == list(plain.model.state_dict())
    for weight, compiled_weight in zip(plain.model.parameters(), fitted.model.parameters(), strict=True):
        torch.testing.assert_close(compiled_weight, weight, rtol=1e-2, atol=1e-3)
    assert all(line["compiled"] for line in lines(tmp_path / "compiled"))
    assert not any("compiled" in line for line in lines(tmp_path / "plain"))


def test_checkpoint_of_a_compiled_training_goes_on_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    train(task(5, compile=True), tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    train(task(6), tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == [6]


def test_net_is_compiled_once_for_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def count(graph: torch.fx.GraphModule, inputs: object) -> Any:
        calls.append(len(list(graph.graph.nodes)))
        return graph.forward

    monkeypatch.setattr(compiled, "BACKEND", count)
    for _ in range(10):  # as the candidates of a search: more than torch compiles of one piece of code
        train(task(2, compile=True))
    assert len(calls) == 10


def fail(graph: object, inputs: object) -> Any:
    raise RuntimeError("No working C++ compiler: g++\nsecond line")


def test_backend_that_fails_is_said_once_and_the_training_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compiled, "BACKEND", fail)
    fitted, _ = train(task(3, compile=True), tmp_path)
    assert same_bytes(fitted, train(task(3))[0])
    text = " ".join("".join(capsys.readouterr()).split())
    assert (
        text.count("distill.compile: torch cannot compile the student (RuntimeError: No working C++ compiler: g++)")
        == 1
    )
    assert "second line" not in text and [line["compiled"] for line in lines(tmp_path)] == [False] * 3


def test_python_that_torch_does_not_compile_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(net: nn.Module, backend: str) -> None:
        raise RuntimeError("torch.compile is not supported on Python 3.99+")

    monkeypatch.setattr(torch, "compile", refuse)
    train(task(1, compile=True))
    assert "distill.compile: torch.compile is not supported on Python 3.99+" in "".join(capsys.readouterr())


def test_several_processes_do_not_go_on_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "team", lambda: processes.Team(rank=0, size=2))
    net = TrainingNet(plain=nn.Identity(), compiled=nn.Identity())
    with pytest.raises(EdgeDistillError, match=r"\(x\); set distill\.compile: false"):
        net.goes_on_after(torch._dynamo.exc.TorchDynamoException("x"))


def test_other_errors_are_no_errors_of_the_compiler() -> None:
    net = TrainingNet(plain=nn.Identity(), compiled=nn.Identity())
    assert not net.goes_on_after(RuntimeError("CUDA error: device-side assert triggered"))
    assert net.module is net.compiled
    plain = TrainingNet(plain=nn.Identity())
    assert not plain.goes_on_after(torch._dynamo.exc.TorchDynamoException("x")) and plain.module is plain.plain


def test_recipe_without_the_key_compiles_nothing() -> None:
    job = task(1)
    assert initial_state(small_net(), 3, job.settings, 0).net.compiled is None


@pytest.mark.slow
def test_inductor_compiles_on_a_cpu(tmp_path: Path) -> None:
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("no C++ compiler: neither g++ nor clang++")
    _, losses = train(task(3))
    _, compiled_losses = train(task(3, compile=True), tmp_path)
    assert compiled_losses == pytest.approx(losses, rel=1e-3)
    assert all(line["compiled"] for line in lines(tmp_path))
