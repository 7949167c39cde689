"""Pictures with structure at every size, no two alike, and the changes that make near-copies of them."""

from __future__ import annotations

import hashlib
import io

import numpy as np
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter

PX = 96


def textures(n: int, seed: int) -> np.ndarray:
    """Random colored textures, float [n, PX, PX, 3], about 0 with a deviation of 1."""
    noise = np.random.default_rng(seed).standard_normal((n, PX, PX, 3))
    layers = [gaussian_filter(noise, (0, sigma, sigma, 0)) for sigma in (2, 5, 12)]
    texture = sum(layer / layer.std() for layer in layers)
    return np.asarray(texture / np.std(texture))


def squares(levels: np.ndarray) -> np.ndarray:
    """Levels about 0 as pictures, uint8."""
    return np.clip(128 + levels, 0, 255).astype(np.uint8)


def pixel_hashes(images_NHWC: np.ndarray) -> np.ndarray:
    """sha256 of each picture's pixels, as an image store has them, [N]."""
    return np.array([hashlib.sha256(image.tobytes()).hexdigest().encode() for image in images_NHWC])


def compressed(square: np.ndarray, quality: int = 50) -> np.ndarray:
    """The picture after JPEG compression."""
    stream = io.BytesIO()
    Image.fromarray(square).save(stream, format="JPEG", quality=quality)
    return np.asarray(Image.open(io.BytesIO(stream.getvalue())))


def resized(square: np.ndarray, box: tuple[float, float, float, float], px: int = PX) -> np.ndarray:
    """A part of the picture at another size."""
    return np.asarray(Image.fromarray(square).resize((px, px), Image.Resampling.BICUBIC, box=box))


def brighter(square: np.ndarray, factor: float = 1.12) -> np.ndarray:
    """The picture with another brightness."""
    return np.asarray(ImageEnhance.Brightness(Image.fromarray(square)).enhance(factor))
