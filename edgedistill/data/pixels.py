"""Stored pixels to the input of a net."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def normalize(images_BHWC: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Convert uint8 [B, px, px, 3] to normalized float [B, 3, px, px], channels last in memory."""
    import torch

    scaled = images_BHWC.float().div_(255.0)
    # a tensor that is made on a GPU from numbers waits for it
    mean_3, std_3 = (torch.tensor(of_channels).to(scaled.device, non_blocking=True) for of_channels in (mean, std))
    scaled.sub_(mean_3).div_(std_3)
    return scaled.permute(0, 3, 1, 2)
