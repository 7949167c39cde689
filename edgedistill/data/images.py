"""Decoding and resizing on the host, for caches, calibration, verification and `predict`.

Image libraries differ by up to 0.6 points of accuracy in how they resize (mlcommons/inference, issue 304);
here every picture is decoded by the rules of `agent.pictures`, which ships in the bundle, too, and resized by Pillow,
once to the stored square and once to a model's input size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from edgedistill.agent import pictures
from edgedistill.agent.pictures import Limits, Size

Fit = Literal["crop", "squash"]


@dataclass(frozen=True, kw_only=True)
class View:
    """How pictures become squares, or rectangles for a model that somebody else trained.

    Attributes:
        px: side of the squares in pixels; or height and width.
        fit: cropped or squashed.
        limits: the values that become black and white in pictures of more than 8 bits; None where no picture of train
            has more.
    """

    px: Size
    fit: Fit
    limits: Limits | None = None


def to_square(image: Image.Image, view: View) -> np.ndarray:
    """An upright RGB square, uint8 [px, px, 3].

    Raises:
        NeedsLimitsError: the picture has more than 8 bits, and the view has no limits.
        Exception: whatever Pillow raises on broken bytes.
    """
    return np.asarray(pictures.square(pictures.to_rgb(image, view.limits), view.px, view.fit), dtype=np.uint8)


def resize(square: np.ndarray, px: int) -> np.ndarray:
    """Resize a stored square to a model's input size: uint8 [P, P, 3] -> [px, px, 3]; antialiased when smaller."""
    if square.shape[0] == px:
        return square
    return np.asarray(Image.fromarray(square).resize((px, px), Image.Resampling.BILINEAR), dtype=np.uint8)


def size_text(size: Size) -> str:
    """`224 px`, or `224 x 320 px`: height and width."""
    width, height = pictures.width_height(size)
    return f"{height} px" if height == width else f"{height} x {width} px"


def read(path: Path, view: View, input_px: Size) -> np.ndarray:
    """Read a picture at a student's input size, uint8 [input_px, input_px, 3], by the same two steps as the cache.

    Raises:
        UnreadableError: the file is missing, is a FIFO, a socket or a device, or is not a picture that can be decoded.
    """
    return pictures.read(path, store_px=view.px, input_px=input_px, fit=view.fit, limits=view.limits)


def sampled_values(image: Image.Image, most: int, seed: int) -> np.ndarray:
    """At most `most` values of a picture of more than 8 bits, drawn by `seed`, float32 [M]; M is 0 for other pictures.

    Raises:
        UnreadableError: a value is not finite.
        Exception: whatever Pillow raises on broken bytes.
    """
    values = pictures.deep_values(image)
    if values is None:
        return np.empty(0, dtype=np.float32)
    if len(values) > most:
        # drawn at random: a fixed stride may sample few columns of the picture alone
        values = values[np.random.default_rng(seed).integers(0, len(values), most)]
    return values.astype(np.float32)
