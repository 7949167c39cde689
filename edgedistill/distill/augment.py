"""Augmentation of a whole batch at once: one grid sample, no Python per image, on whatever device the batch is on.

torchvision's transforms draw one crop for a batch, or loop over its images; on two cores that loop costs more than a
small student's forward pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgedistill.recipe.schema import Augment, Strong

if TYPE_CHECKING:
    from torch import Generator, Tensor

GREY = 127
SHARED = 4  # images that share a draw of RandAugment: each image sees the same distribution, at a quarter of the cost


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the images at hand stand in a batch of `total`: what is drawn for an image depends on its place alone."""

    total: int
    mine: Tensor


def augment(images_BCHW: Tensor, settings: Augment, random: Generator, places: Places | None = None) -> Tensor:
    """Random resized crop, flips, brightness and contrast, drawn for each image; normalised floats in and out.

    The crop keeps `min_area` to 1 of the area and its aspect ratio within 3/4 to 4/3, as is usual for ImageNet
    (Szegedy et al. 2014). `random` lives on the CPU, so that a GPU draws the same batches as a CPU. Without `places`
    the images are the whole batch.
    """
    import torch
    import torch.nn.functional as F

    batch = images_BCHW.shape[0]

    def uniform(low: float, high: float) -> Tensor:
        drawn = torch.rand(places.total if places else batch, generator=random) * (high - low) + low
        return drawn[places.mine] if places else drawn

    area = uniform(settings.min_area, 1.0)
    # a crop of nearly everything has little choice of ratio: both of its sides must fit
    ratio = torch.exp(uniform(-1, 1) * (-area.log()).clamp(max=math.log(4 / 3)))
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 2] = (1 - width) * uniform(-1, 1)
    theta[:, 1, 2] = (1 - height) * uniform(-1, 1)
    theta[:, 0, 0] = width * (torch.where(uniform(0, 1) < 0.5, -1.0, 1.0) if settings.hflip else 1.0)
    theta[:, 1, 1] = height * (torch.where(uniform(0, 1) < 0.5, -1.0, 1.0) if settings.vflip else 1.0)
    contrast, brightness = uniform(1 - settings.jitter, 1 + settings.jitter), uniform(-settings.jitter, settings.jitter)

    device = images_BCHW.device
    grid = F.affine_grid(theta.to(device), list(images_BCHW.shape), align_corners=False)
    cropped = F.grid_sample(images_BCHW, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    if settings.jitter == 0.0:
        return cropped
    middle = cropped.mean(dim=(1, 2, 3), keepdim=True)
    gain, shift = (one.to(device).view(-1, 1, 1, 1) for one in (contrast, brightness))
    return (cropped - middle) * gain + middle + shift


def strengthened(images_BHWC: Tensor, settings: Strong) -> Tensor:
    """RandAugment and Cutout of uint8 images [B, px, px, 3]: FixMatch's strong view, crops and flips aside.

    RandAugment is torchvision's (Cubuk et al. 2020). Cutout (DeVries and Taylor 2017) fills a square, its side drawn
    for each image up to `settings.cutout` of the image's, with grey, as FixMatch does. Draws come from torch's default
    generator, as torchvision's do.
    """
    import torch
    from torchvision.transforms import v2

    if not len(images_BHWC):
        return images_BHWC
    images_BCHW = images_BHWC.permute(0, 3, 1, 2)
    if settings.ops:
        randomly = v2.RandAugment(settings.ops, settings.magnitude, fill=GREY)
        images_BCHW = torch.cat([randomly(some) for some in torch.split(images_BCHW, SHARED)])
    batch, _, px, _ = images_BCHW.shape
    side, top, left = torch.rand(3, batch, 1) * torch.tensor([settings.cutout, 1.0, 1.0]).view(3, 1, 1)
    at = (torch.arange(px) + 0.5) / px
    rows, columns = ((at - middle).abs() < side / 2 for middle in (top, left))
    cut = (rows[:, None, :, None] & columns[:, None, None, :]).to(images_BCHW.device)
    return images_BCHW.masked_fill(cut, GREY).permute(0, 2, 3, 1)
