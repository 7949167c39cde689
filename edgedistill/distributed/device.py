"""The device of tensors, and everything that depends on CUDA: a GPU if torch finds one, else the CPU."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "float32", "bfloat16"]


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

    reduced = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16, enabled=reduced)


def forked_random(device: torch.device) -> AbstractContextManager[object]:
    """Seeds that are set inside leave torch's generators, the device's among them, as they were."""
    import torch

    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
