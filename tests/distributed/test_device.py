"""Both branches of everything that depends on CUDA, and that nothing outside of one module does."""

from __future__ import annotations

import ast
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from edgedistill.distributed import device
from tests.helpers.paths import ROOT
from tests.helpers.stand_in_gpu import stand_in_gpu

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(params=[False, True], ids=["cpu", "gpu"])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether torch finds a GPU."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: request.param)
    monkeypatch.setattr("torch.cuda.device_count", lambda: int(request.param))
    return bool(request.param)


def cuda_words(source: str) -> Iterator[str]:
    """What speaks of CUDA in code: `torch.cuda`, `.cuda()`, `"cuda"`; names such as "onnxruntime-cuda" are others'."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in {"cuda", "cudnn", "is_cuda"}:
            yield ast.unparse(node)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.partition(":")[0] == "cuda":
            yield repr(node.value)


def test_only_one_module_branches_on_cuda() -> None:
    # the agent is an island: it measures runtimes, not torch
    package = ROOT / "edgedistill"
    files = [path for path in package.rglob("*.py") if path.parent != package / "agent"]
    words = {str(path.relative_to(package)): list(cuda_words(path.read_text())) for path in files}
    assert [name for name, used in words.items() if used] == ["distributed/device.py"]


def test_words_of_cuda_are_recognized() -> None:
    words = set(cuda_words('net.cuda(); torch.backends.cudnn; x.to("cuda:1"); name = "onnxruntime-cuda"'))
    assert words == {"net.cuda", "torch.backends.cudnn", "'cuda:1'"}


def test_device_is_the_gpu_if_torch_finds_one(gpu: bool) -> None:
    assert (device.has_gpu(), device.gpu_count()) == (gpu, int(gpu))
    assert device.default_device() == (CUDA if gpu else CPU)


@pytest.mark.parametrize(
    ("where", "precision", "reduced"),
    [
        (CPU, "auto", False),
        (CUDA, "auto", True),
        (CPU, "bfloat16", True),
        (CUDA, "float32", False),
    ],
)
def test_precision_of_each_device(
    where: torch.device, precision: device.Precision, reduced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("torch.autocast", lambda *args, **settings: calls.append((*args, settings)))
    device.autocast(where, precision)
    assert calls == [(where.type, torch.bfloat16, {"enabled": reduced})]


@pytest.mark.parametrize(("where", "kept"), [(CPU, []), (CUDA, [CUDA])])
def test_random_state_of_the_device_is_kept(where: torch.device, kept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("torch.random.fork_rng", lambda *, devices: calls.extend([devices]))
    device.forked_random(where)
    assert calls == [kept]


def test_cached_memory_is_freed_on_a_gpu_alone(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: calls.append("freed"))
    device.free_cached_memory()
    assert calls == ["freed"] * gpu


def test_batches_are_gathered_ahead_and_pinned_for_a_gpu_alone(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.Tensor.pin_memory", lambda tensor: "pinned")
    tensor = torch.ones(1)
    assert device.pinned(tensor) == ("pinned" if gpu else tensor)
    assert (device.batches_ahead() > 0) == gpu


def test_losses_of_several_steps_are_read_at_once_on_a_gpu_alone(gpu: bool) -> None:
    assert (device.steps_per_read() > 1) == gpu and device.steps_per_read() >= 1


def test_tf32_is_for_a_gpu_alone(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr("torch.set_float32_matmul_precision", calls.append)
    device.allow_tf32()
    assert calls == ["high"] * gpu


@pytest.mark.parametrize("on_gpu", [False, True])
def test_running_means_move_alike_on_both_devices(on_gpu: bool) -> None:
    # 1 + 0.25 (5 - 1) = 2; 3 + 0.25 (-1 - 3) = 2
    with stand_in_gpu():
        where = "cuda" if on_gpu else "cpu"
        means = [torch.tensor([1.0], device=where), torch.tensor([[3.0]], device=where)]
        device.move_means(means, [torch.tensor([5.0], device=where), torch.tensor([[-1.0]], device=where)], 0.25)
        assert [mean.tolist() for mean in means] == [[2.0], [[2.0]]]


def test_full_gpu_is_told_from_other_errors() -> None:
    assert device.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not device.is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))


FAULTS = """
import resource, sys, torch
from edgedistill.distributed.device import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
net = torch.nn.Sequential(*[torch.nn.Conv2d(8, 8, 3, padding=1) for _ in range(4)])
images = torch.ones(4, 8, 256, 256)
with torch.inference_mode():
    net(images)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        net(images)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's memory can be kept")
def test_freed_memory_is_kept_for_the_next_batch() -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    faults = {
        way: int(subprocess.check_output([sys.executable, "-c", FAULTS, way], env=env, cwd=ROOT))
        for way in ("returned", "kept")
    }
    assert faults["returned"] > 1000 and faults["kept"] < 0.1 * faults["returned"], faults


def test_freed_memory_is_left_to_who_set_it(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not device.keep_freed_memory.__wrapped__()
    monkeypatch.delenv("MALLOC_ARENA_MAX")
    monkeypatch.setattr(device.ctypes, "CDLL", lambda name: object())  # a C library without mallopt
    assert not device.keep_freed_memory.__wrapped__()
