"""The device of tensors, and everything that depends on CUDA: a GPU if torch finds one, else the CPU."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import AbstractContextManager
from functools import cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "float32", "bfloat16"]

# parameters of glibc's mallopt (malloc.h): free memory that is kept, and from what size on a block is mapped by itself
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 2**30


def has_gpu() -> bool:
    """Does torch find a GPU?"""
    import torch

    return torch.cuda.is_available()


def gpu_count() -> int:
    """The number of GPUs of this machine."""
    import torch

    return torch.cuda.device_count()


def default_device() -> torch.device:
    """The device on which students are trained and sources are run."""
    import torch

    return torch.device("cuda" if has_gpu() else "cpu")


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """The forward pass in bfloat16 where `precision` asks for it; "auto" is bfloat16 on a GPU, float32 on a CPU."""
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=is_reduced(device, precision))


def is_reduced(device: torch.device, precision: Precision) -> bool:
    """Whether a forward pass is in bfloat16."""
    return precision == "bfloat16" or (precision == "auto" and device.type == "cuda")


def forked_random(device: torch.device) -> AbstractContextManager[object]:
    """Seeds that are set inside leave torch's generators, the device's among them, as they were."""
    import torch

    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def seed_generator(device: torch.device, seed: int) -> None:
    """Seed torch's generator of a device. On a CPU that one alone: the others cost milliseconds each time."""
    import torch

    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in memory from which a GPU copies without waiting for the CPU; the tensor itself without a GPU."""
    return tensor.pin_memory() if has_gpu() else tensor


def batches_ahead() -> int:
    """Batches that a background thread gathers before they are needed; 0 without a GPU, whose time they would take."""
    return 3 if has_gpu() else 0


def images_at_once() -> int:
    """Images of a forward pass without gradients, if the memory holds them: a GPU is idle with few."""
    return 256 if has_gpu() else 64


def steps_per_read() -> int:
    """Steps whose losses are read at once: reading makes a GPU wait for the CPU; without one it costs nothing."""
    return 10 if has_gpu() else 1


def allow_tf32() -> None:
    """Let a GPU multiply float32 matrices in TF32 (ten bits of mantissa), as cuDNN's convolutions do by default."""
    import torch

    if has_gpu():
        torch.set_float32_matmul_precision("high")


@cache
def keep_freed_memory() -> bool:
    """Have the C library keep up to 1 GiB of freed memory for the next batch; returns whether it does.

    Otherwise glibc returns the memory of every large activation to the system and has it cleared again in the next
    batch: up to half the time of a forward pass on a CPU (benchmarks/freed_memory.py). Nothing is changed with a GPU,
    with another C library, or where the environment sets these parameters itself.
    """
    if has_gpu() or not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    set_parameter = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return set_parameter is not None and all(
        set_parameter(parameter, KEPT_BYTES) for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD)
    )


def move_means(means: list[torch.Tensor], weights: list[torch.Tensor], share: float) -> None:
    """Move each running mean by a share of the way to its weight; on a GPU in a few launches, not one a weight."""
    from torch.optim import swa_utils

    if means and means[0].device.type == "cuda":
        swa_utils.get_ema_multi_avg_fn(1.0 - share)(means, weights, 0)  # type: ignore[no-untyped-call]
        return
    for mean, weight in zip(means, weights, strict=True):
        mean.lerp_(weight, share)


def is_out_of_memory(error: BaseException) -> bool:
    """Is this the error of a GPU whose memory is full? A CPU's shortage ends the process instead."""
    import torch

    return isinstance(error, torch.OutOfMemoryError)


def free_cached_memory() -> None:
    """Return the memory that torch keeps for later to the GPU; nothing without one."""
    import torch

    if has_gpu():
        torch.cuda.empty_cache()
