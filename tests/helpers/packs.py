"""Packs for the suite's tests."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
from PIL import Image


def pack(folder: Path, seed: int) -> None:
    """Two classes, reddish and bluish squares, in the packs' layout."""
    generator = np.random.default_rng(seed)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["red", "blue"])})
    for part, count in (("train", 40), ("test", 12)):
        labels = [index % 2 for index in range(count)]
        pictures = []
        for label in labels:
            pixels = generator.integers(0, 120, (32, 32, 3))
            pixels[..., 2 * label] += 60
            pictures.append(Image.fromarray(pixels.astype(np.uint8)))
        folder.mkdir(parents=True, exist_ok=True)
        dataset = datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=features)
        dataset.to_parquet(str(folder / f"{part}.parquet"))
