"""Augmentation of a whole batch in one grid sample, without a Python loop over images, on the batch's device.

torchvision's transforms draw one crop for a batch or loop over its images; on two cores that loop costs more than a
small student's forward pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgedistill.recipe.schema import Augment, Strong

if TYPE_CHECKING:
    from torch import Generator, Tensor

GRAY = 127
# images that share one draw of RandAugment: the distribution for each image is the same, at a quarter of the cost
IMAGES_PER_DRAW = 4


@dataclass(frozen=True, kw_only=True)
class BatchPositions:
    """Positions `indices` of some images within a batch of `total`; an image's random draws depend on its position."""

    total: int
    indices: Tensor


def augment(
    images_BCHW: Tensor, settings: Augment, random: Generator, positions: BatchPositions | None = None
) -> Tensor:
    """Apply random resized crops, flips, brightness and contrast, drawn for each image; normalized floats in and out.

    The crop keeps `min_area` to 1 of the area and an aspect ratio within 3/4 to 4/3, as is usual for ImageNet
    (Szegedy et al. 2014). `random` is a CPU generator, so that a GPU draws the same batches as a CPU. Without
    `positions` the images are the whole batch.
    """
    import torch
    import torch.nn.functional as F

    batch = images_BCHW.shape[0]

    def uniform(low: float, high: float) -> Tensor:
        samples = torch.rand(positions.total if positions else batch, generator=random) * (high - low) + low
        return samples[positions.indices] if positions else samples

    area = uniform(settings.min_area, 1.0)
    # both sides of a crop must fit: the closer its area is to 1, the narrower the range of aspect ratios
    ratio = torch.exp(uniform(-1, 1) * (-area.log()).clamp(max=math.log(4 / 3)))
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 2] = (1 - width) * uniform(-1, 1)
    theta[:, 1, 2] = (1 - height) * uniform(-1, 1)
    theta[:, 0, 0] = width * (torch.where(uniform(0, 1) < 0.5, -1.0, 1.0) if settings.hflip else 1.0)
    theta[:, 1, 1] = height * (torch.where(uniform(0, 1) < 0.5, -1.0, 1.0) if settings.vflip else 1.0)
    contrast, brightness = uniform(1 - settings.jitter, 1 + settings.jitter), uniform(-settings.jitter, settings.jitter)

    device = images_BCHW.device
    grid = F.affine_grid(theta.to(device, non_blocking=True), list(images_BCHW.shape), align_corners=False)
    cropped = F.grid_sample(images_BCHW, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    if settings.jitter == 0.0:
        return cropped
    mean_B111 = cropped.mean(dim=(1, 2, 3), keepdim=True)
    gain, shift = (factor_B.to(device, non_blocking=True).view(-1, 1, 1, 1) for factor_B in (contrast, brightness))
    return (cropped - mean_B111) * gain + mean_B111 + shift


def strong_augment(images_BHWC: Tensor, settings: Strong) -> Tensor:
    """Apply RandAugment and Cutout to uint8 images [B, px, px, 3]: FixMatch's strong view, without crops and flips.

    RandAugment is torchvision's (Cubuk et al. 2020). Cutout (DeVries and Taylor 2017) fills a square with gray, as
    FixMatch does; its side is drawn for each image, up to `settings.cutout` of the image's side. Draws come from
    torch's default generator, as torchvision's do.
    """
    import torch
    from torchvision.transforms import v2

    if not len(images_BHWC):
        return images_BHWC
    images_BCHW = images_BHWC.permute(0, 3, 1, 2)
    if settings.ops:
        rand_augment = v2.RandAugment(settings.ops, settings.magnitude, fill=GRAY)
        images_BCHW = torch.cat([rand_augment(group) for group in torch.split(images_BCHW, IMAGES_PER_DRAW)])
    batch, _, px, _ = images_BCHW.shape
    side, top, left = torch.rand(3, batch, 1) * torch.tensor([settings.cutout, 1.0, 1.0]).view(3, 1, 1)
    centers = (torch.arange(px) + 0.5) / px
    rows, columns = ((centers - center).abs() < side / 2 for center in (top, left))
    cut = (rows[:, None, :, None] & columns[:, None, None, :]).to(images_BCHW.device, non_blocking=True)
    return images_BCHW.masked_fill(cut, GRAY).permute(0, 2, 3, 1)
