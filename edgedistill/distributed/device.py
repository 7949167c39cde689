"""The device of tensors: a GPU if torch finds one, else the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def default_device() -> torch.device:
    """The device on which students are trained and sources are run."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
