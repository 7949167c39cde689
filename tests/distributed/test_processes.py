"""Cooperation of several processes, tested in one process; tests/steps/test_workers.py starts several."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import distributed, nn

from edgedistill.distill.augment import BatchPositions, augment
from edgedistill.distributed import processes
from edgedistill.distributed.batchnorm import CpuSyncBatchNorm, to_sync_batchnorm
from edgedistill.errors import InputError
from edgedistill.recipe.schema import Augment


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of one, on gloo."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_shares_cover_all_rows(size: int) -> None:
    rows = list(range(12))
    assert [row for rank in range(size) for row in rows[processes.Team(rank=rank, size=size).share(12)]] == rows
    assert [processes.Team(rank=rank, size=size).is_leader for rank in range(size)] == [True, *[False] * (size - 1)]


def test_single_process_shares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    net, values = nn.Linear(2, 2), torch.ones(2)
    assert processes.team() == processes.SINGLE_PROCESS
    assert (
        processes.data_parallel(net) is net
        and processes.synchronize_batchnorm(net) is net
        and processes.mean(values) is values
    )
    assert processes.all_gather(3) == [3]
    processes.require_agreement(3, "the number")
    with pytest.raises(ValueError, match="message"):
        processes.run_on_leader(lambda: (_ for _ in ()).throw(ValueError("message")).__next__())


def test_missing_accelerate_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(__import__("sys").modules, "accelerate", None)
    with pytest.raises(InputError, match=r'accelerate; pip install "edgedistill\[scale\]"'):
        processes.team()


def test_incomplete_launcher_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "process_accelerator", lambda: SimpleNamespace(process_index=0, num_processes=1))
    with pytest.raises(InputError, match="LOCAL_RANK is not; start the processes with torchrun"):
        processes.team()


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(InputError, match="4 processes on a machine with 2 GPUs; --nproc-per-node 2 at most"):
        processes.team()


def test_disagreement_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "all_gather", lambda own_value: [own_value, 0])
    with pytest.raises(Exception, match=r"do not agree on the step to go on from: \[5, 0\]; give them one --runs"):
        processes.require_agreement(5, "the step to go on from")


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(3), BatchNormAct2d(3), nn.BatchNorm1d(3)])
def test_sync_batchnorm_equals_batchnorm(group: None, norm: nn.Module) -> None:
    torch.manual_seed(0)
    shape = (8, 3) if isinstance(norm, nn.BatchNorm1d) else (8, 3, 5, 5)
    images, cotangent = 4 + 2 * torch.randn(shape), torch.randn(shape)
    norm.load_state_dict({**norm.state_dict(), "weight": torch.rand(3) + 0.5, "bias": torch.randn(3)})
    names = list(norm.state_dict())
    synced = CpuSyncBatchNorm(norm)  # type: ignore[arg-type]
    assert list(synced.state_dict()) == names and synced.weight is norm.weight
    outputs_and_gradients = []
    for layer in (norm, synced):
        inputs = images.clone().requires_grad_()
        outputs = layer(inputs)
        weight = next(iter(layer.parameters()))
        outputs_and_gradients.append([outputs, *torch.autograd.grad((outputs * cotangent).sum(), [inputs, weight])])
    for expected, actual in zip(*outputs_and_gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(synced, name), getattr(norm, name))
    torch.testing.assert_close(synced.eval()(images), norm.eval()(images))


def test_conversion_replaces_every_batchnorm_and_keeps_names() -> None:
    import timm

    net = timm.create_model("mobilenetv2_050", num_classes=0)
    names, count = list(net.state_dict()), sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    converted = to_sync_batchnorm(net)
    assert list(converted.state_dict()) == names
    assert sum(isinstance(module, CpuSyncBatchNorm) for module in converted.modules()) == count > 0
    assert not any(isinstance(module, nn.BatchNorm2d) for module in converted.modules())


def test_augmentation_follows_position_in_batch() -> None:
    images, settings = torch.randn(8, 3, 16, 16), Augment(min_area=0.5, jitter=0.3)
    augmented = augment(images, settings, torch.Generator().manual_seed(1))
    for indices in (torch.tensor([0, 1, 4, 5]), torch.tensor([2, 3, 6, 7])):
        part = augment(
            images[indices], settings, torch.Generator().manual_seed(1), BatchPositions(total=8, indices=indices)
        )
        np.testing.assert_allclose(part, augmented[indices], rtol=1e-5, atol=1e-6)
