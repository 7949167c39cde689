"""Stored pixels to the input of a net."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def normalize(images_BHWC: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Convert uint8 [B, px, px, 3] to normalized float [B, 3, px, px], channels last in memory."""
    import torch

    scaled = images_BHWC.float().div_(255.0)
    scaled.sub_(torch.tensor(mean, device=scaled.device)).div_(torch.tensor(std, device=scaled.device))
    return scaled.permute(0, 3, 1, 2)
