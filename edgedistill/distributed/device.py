"""Where tensors live: the GPU where torch sees one, else the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def default_device() -> torch.device:
    """The device that students train on and sources answer on."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
