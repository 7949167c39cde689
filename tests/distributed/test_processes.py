"""What several processes must agree on, tested in one; tests/test_crew.py starts real ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import distributed, nn

from edgedistill.distill.augment import Places, augment
from edgedistill.distributed import processes
from edgedistill.distributed.batchnorm import WholeBatchNorm, whole_batch
from edgedistill.errors import InputError
from edgedistill.recipe.schema import Augment


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of one, on gloo."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_shares_make_a_whole(size: int) -> None:
    rows = list(range(12))
    assert [row for rank in range(size) for row in rows[processes.Team(rank=rank, size=size).share(12)]] == rows
    assert [processes.Team(rank=rank, size=size).leads for rank in range(size)] == [True, *[False] * (size - 1)]


def test_alone_nothing_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    net, values = nn.Linear(2, 2), torch.ones(2)
    assert processes.team() == processes.ALONE
    assert processes.wrapped(net) is net and processes.synchronised(net) is net and processes.mean(values) is values
    assert processes.gathered(3) == [3]
    processes.agreed(3, "the number")
    with pytest.raises(ValueError, match="told"):
        processes.led(lambda: (_ for _ in ()).throw(ValueError("told")).__next__())


def test_without_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(__import__("sys").modules, "accelerate", None)
    with pytest.raises(InputError, match=r'accelerate; pip install "edgedistill\[scale\]"'):
        processes.team()


def test_a_launcher_that_does_not_say_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "_accelerator", lambda: SimpleNamespace(process_index=0, num_processes=1))
    with pytest.raises(InputError, match="LOCAL_RANK is not; start the processes with torchrun"):
        processes.team()


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(InputError, match="4 processes on a machine with 2 GPUs; --nproc-per-node 2 at most"):
        processes.team()


def test_who_disagrees_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "gathered", lambda own: [own, 0])
    with pytest.raises(Exception, match=r"do not agree on the step to go on from: \[5, 0\]; give them one --runs"):
        processes.agreed(5, "the step to go on from")


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(3), BatchNormAct2d(3), nn.BatchNorm1d(3)])
def test_batch_norm_over_all(group: None, norm: nn.Module) -> None:
    torch.manual_seed(0)
    shape = (8, 3) if isinstance(norm, nn.BatchNorm1d) else (8, 3, 5, 5)
    image, wanted = 4 + 2 * torch.randn(shape), torch.randn(shape)
    norm.load_state_dict({**norm.state_dict(), "weight": torch.rand(3) + 0.5, "bias": torch.randn(3)})
    names = list(norm.state_dict())
    ours = WholeBatchNorm(norm)  # type: ignore[arg-type]
    assert list(ours.state_dict()) == names and ours.weight is norm.weight
    found = []
    for one in (norm, ours):
        given = image.clone().requires_grad_()
        out = one(given)
        weight = next(iter(one.parameters()))
        found.append([out, *torch.autograd.grad((out * wanted).sum(), [given, weight])])
    for expected, value in zip(*found, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(ours, name), getattr(norm, name))
    torch.testing.assert_close(ours.eval()(image), norm.eval()(image))


def test_every_norm_is_replaced_and_no_name_changes() -> None:
    import timm

    net = timm.create_model("mobilenetv2_050", num_classes=0)
    names, count = list(net.state_dict()), sum(isinstance(one, nn.BatchNorm2d) for one in net.modules())
    changed = whole_batch(net)
    assert list(changed.state_dict()) == names
    assert sum(isinstance(one, WholeBatchNorm) for one in changed.modules()) == count > 0
    assert not any(isinstance(one, nn.BatchNorm2d) for one in changed.modules())


def test_an_image_is_augmented_by_its_place_in_the_batch() -> None:
    images, settings = torch.randn(8, 3, 16, 16), Augment(min_area=0.5, jitter=0.3)
    whole = augment(images, settings, torch.Generator().manual_seed(1))
    for mine in (torch.tensor([0, 1, 4, 5]), torch.tensor([2, 3, 6, 7])):
        part = augment(images[mine], settings, torch.Generator().manual_seed(1), Places(total=8, mine=mine))
        np.testing.assert_allclose(part, whole[mine], rtol=1e-5, atol=1e-6)
