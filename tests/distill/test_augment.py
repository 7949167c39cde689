"""Augmentation: its identity settings, its bounds, and its dependence on the seed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgedistill.data.pixels import normalize
from edgedistill.distill.augment import GRAY, IMAGES_PER_DRAW, augment, strong_augment
from edgedistill.recipe.schema import Augment, Strong

STILL = Augment(min_area=1.0, hflip=False, vflip=False, jitter=0.0)


def images(batch: int = 16, px: int = 8) -> Tensor:
    return torch.rand(batch, 3, px, px, generator=torch.Generator().manual_seed(9))


def augmented(images_BCHW: Tensor, section: Augment, seed: int = 0) -> Tensor:
    return augment(images_BCHW, section, torch.Generator().manual_seed(seed))


def test_normalize_by_hand() -> None:
    # (255/255 - 0.5) / 0.25 = 2; (0 - 0.5) / 0.25 = -2; (51/255 - 0.2) / 0.5 = 0
    pixels = torch.tensor([[[[255, 0, 51], [0, 255, 0]]]], dtype=torch.uint8)  # [1, 1, 2, 3]
    normalized = normalize(pixels, (0.5, 0.5, 0.2), (0.25, 0.25, 0.5))
    assert normalized.shape == (1, 3, 1, 2) and normalized.dtype == torch.float32
    assert normalized[0, :, 0, 0].tolist() == pytest.approx([2.0, -2.0, 0.0], abs=1e-6)
    assert normalized[0, :, 0, 1].tolist() == pytest.approx([-2.0, 2.0, -0.4], abs=1e-6)
    assert pixels[0, 0, 0].tolist() == [255, 0, 51]


def test_identity_settings_change_nothing() -> None:
    torch.testing.assert_close(augmented(images(), STILL), images(), atol=1e-5, rtol=0)


def test_augmentation_follows_the_seed() -> None:
    first, again, other = (augmented(images(), Augment(vflip=True), seed) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(("option", "axis"), [("hflip", -1), ("vflip", -2)])
def test_flips_affect_about_half_of_the_images(option: str, axis: int) -> None:
    before = images(64)
    after = augmented(before, STILL.model_copy(update={option: True}))
    flipped = [
        bool((image - original.flip(axis)).abs().max() < 1e-5) for image, original in zip(after, before, strict=True)
    ]
    unchanged = [bool((image - original).abs().max() < 1e-5) for image, original in zip(after, before, strict=True)]
    assert all(was_flipped != was_unchanged for was_flipped, was_unchanged in zip(flipped, unchanged, strict=True))
    assert 16 <= sum(flipped) <= 48  # 32 of 64 expected, plus or minus four standard deviations of 4


def test_jitter_keeps_within_its_bounds() -> None:
    # contrast c about the mean, then a shift: the mean moves by the shift, |shift| <= 0.3, 0.7 <= c <= 1.3
    before = images(200)
    after = augmented(before, STILL.model_copy(update={"jitter": 0.3}))
    shift = (after - before).mean(dim=(1, 2, 3))
    gain = after.std(dim=(1, 2, 3)) / before.std(dim=(1, 2, 3))
    assert shift.abs().max() <= 0.3 + 1e-4 and shift.abs().max() > 0.25 and shift.min() < 0.0 < shift.max()
    assert 0.7 - 1e-4 <= gain.min() < 0.75 and 1.25 < gain.max() <= 1.3 + 1e-4


def ramps(batch: int, px: int) -> Tensor:
    """Channel 0 holds x in (-1, 1) and channel 1 holds y, so a crop's pixels show where it was cut."""
    coordinates_X = (torch.arange(px) + 0.5) * 2 / px - 1
    return torch.stack(
        [coordinates_X.expand(px, px), coordinates_X[:, None].expand(px, px), torch.zeros(px, px)]
    ).expand(batch, 3, px, px)


@given(min_area=st.floats(0.1, 1.0), seed=st.integers(0, 3))
@settings(max_examples=25)
def test_crops_respect_area_and_aspect_ratio_bounds(min_area: float, seed: int) -> None:
    after = augmented(ramps(32, 16), STILL.model_copy(update={"min_area": min_area}), seed)
    # away from the border the ramp is linear: its slope is the crop's side as a share of the image
    width = (after[:, 0, 8, 12] - after[:, 0, 8, 4]) / (8 * 2 / 16)
    height = (after[:, 1, 12, 8] - after[:, 1, 4, 8]) / (8 * 2 / 16)
    area, ratio = width * height, width / height
    assert (area >= min_area - 1e-4).all() and (area <= 1.0 + 1e-4).all()
    assert (ratio >= 0.75 - 1e-3).all() and (ratio <= 4 / 3 + 1e-3).all()
    # the crop lies within the image
    assert (after.abs() <= 1.0 + 1e-5).all()


def test_crops_are_drawn_for_each_image() -> None:
    after = augmented(images(1).expand(8, 3, 8, 8), Augment(min_area=0.3, hflip=False, jitter=0.0))
    assert len({tuple(image.flatten().tolist()) for image in after}) == 8


@given(batch=st.integers(1, 5), px=st.integers(8, 20))
@settings(max_examples=10)
def test_augmentation_keeps_shape_and_dtype(batch: int, px: int) -> None:
    after = augmented(images(batch, px), Augment(vflip=True))
    assert after.shape == (batch, 3, px, px) and after.dtype == torch.float32 and bool(after.isfinite().all())


def pixels(batch: int = 16, px: int = 8) -> Tensor:
    return torch.randint(128, 256, (batch, px, px, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(9))


def strong(images_BHWC: Tensor, section: Strong, seed: int = 0) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return strong_augment(images_BHWC, section)


def test_strong_augment_without_operations_keeps_every_byte() -> None:
    assert torch.equal(strong(pixels(), Strong(ops=0, cutout=0.0)), pixels())
    assert strong(pixels(0), Strong()).shape == (0, 8, 8, 3)


def test_cutout_fills_one_square_with_gray() -> None:
    before, px = pixels(200, 16), 16
    cut = strong(before, Strong(ops=0, cutout=0.5)) == GRAY  # no pixel was gray before
    assert torch.equal(cut.all(dim=3), cut.any(dim=3))
    rows, columns = cut.any(dim=(2, 3)), cut.any(dim=(1, 3))
    assert torch.equal(cut[..., 0], rows[:, :, None] & columns[:, None, :])  # a rectangle
    heights, widths = rows.sum(dim=1), columns.sum(dim=1)
    assert heights.max() == px // 2 and heights.min() <= 1  # sides are drawn from nothing to half
    inside = (heights > 0) & ~rows[:, 0] & ~rows[:, -1] & ~columns[:, 0] & ~columns[:, -1]
    assert inside.sum() > 50 and (heights - widths)[inside].abs().max() <= 1  # a square where no border cuts it
    middle = torch.arange(px).float()[None, :]
    spread = (rows * middle).sum(dim=1)[inside] / heights[inside]
    assert spread.min() < 4 and spread.max() > 11


def test_randaugment_draws_operations_per_group_of_images() -> None:
    before = pixels(1).expand(10 * IMAGES_PER_DRAW, 8, 8, 3).contiguous()
    after = strong(before, Strong(ops=2, magnitude=20, cutout=0.0))
    assert after.dtype == torch.uint8 and after.shape == before.shape
    groups = after.reshape(10, IMAGES_PER_DRAW, -1)
    assert torch.equal(groups, groups[:, :1].expand_as(groups))
    assert len(torch.unique(groups[:, 0], dim=0)) > 5
    assert torch.equal(after, strong(before, Strong(ops=2, magnitude=20, cutout=0.0)))
    assert not torch.equal(after, strong(before, Strong(ops=2, magnitude=20, cutout=0.0), seed=1))
