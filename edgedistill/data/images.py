"""The one definition of decoding and resizing, for caches, calibration, verification and `predict`.

Image libraries differ by up to 0.6 points of accuracy in how they resize (mlcommons/inference, issue 304);
here every picture is resized by Pillow, once to the stored square and once to a model's input size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from edgedistill.data.listing import refuse_special

Fit = Literal["crop", "squash"]


def to_square(image: Image.Image, px: int, fit: Fit) -> np.ndarray:
    """An upright RGB square of `px` pixels, uint8 [px, px, 3].

    "crop" keeps the aspect ratio and cuts out the center; "squash" keeps the whole picture and drops its ratio.
    """
    # the stub of exif_transpose admits None only for in_place=True
    upright = ImageOps.exif_transpose(image) or image
    rgb = upright.convert("RGB")
    if fit == "crop":
        rgb = ImageOps.fit(rgb, (px, px), method=Image.Resampling.BILINEAR)
    else:
        rgb = rgb.resize((px, px), Image.Resampling.BILINEAR)
    return np.asarray(rgb, dtype=np.uint8)


def resize(square: np.ndarray, px: int) -> np.ndarray:
    """Resize a stored square to a model's input size: uint8 [P, P, 3] -> [px, px, 3]; antialiased when smaller."""
    if square.shape[0] == px:
        return square
    return np.asarray(Image.fromarray(square).resize((px, px), Image.Resampling.BILINEAR), dtype=np.uint8)


def read(path: Path, store_px: int, input_px: int, fit: Fit) -> np.ndarray:
    """Read a picture at a student's input size, uint8 [input_px, input_px, 3], by the same two steps as the cache.

    Raises:
        OSError: the file is missing, is a FIFO, a socket or a device, or is not a picture Pillow can decode.
    """
    refuse_special(path)
    with Image.open(path) as image:
        return resize(to_square(image, store_px, fit), input_px)
