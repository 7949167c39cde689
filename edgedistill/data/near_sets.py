"""The near-copies of a data set: found once, and kept beside its image store.

N images of the train store, T of an official test split.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from edgedistill.data.image_store import ImageStore, disk_errors
from edgedistill.labels.near_copies import VERSION, near_copies
from edgedistill.labels.protocol import Protocol
from edgedistill.recipe.data_section import Data
from edgedistill.run.files import atomic, digest

MOST = 50_000  # images that are compared; the time grows with the square


def are_kept_together(section: Data, protocol: Protocol) -> bool:
    """Whether the recipe keeps near-copies on one side of every split."""
    if section.near_copies == "auto":
        return protocol != "test"
    return section.near_copies == "keep_together"


def near_sets(train: ImageStore, test: ImageStore | None) -> np.ndarray:
    """The number of each image's set of near-copies, exact ones included, from 0; train before test, int64 [N + T].

    It is computed by the first call for these images, and read by the others.

    Raises:
        EdgeDistillError: the disk is full or cannot be written.
    """
    path = _path(train, test)
    if not path.is_file():
        with disk_errors(train.folder), FileLock(path.with_name(f".{path.name}.lock")):
            if not path.is_file():  # another process may have made it while this one waited
                units = near_copies(*_together(train, test)).units_N
                with atomic(path) as temporary, temporary.open("wb") as stream:
                    np.save(stream, units)
    return np.asarray(np.load(path))


def _path(train: ImageStore, test: ImageStore | None) -> Path:
    name = f"near_copies.{VERSION}"
    return train.folder / (f"{name}.{digest(test.pixels_hash)[:12]}.npy" if test else f"{name}.npy")


def _together(train: ImageStore, test: ImageStore | None) -> tuple[Any, np.ndarray]:
    if test is None:
        return train.images_NHWC, train.hashes
    return _Both(train.images_NHWC, test.images_NHWC), np.concatenate([train.hashes, test.hashes])


class _Both:
    """Two arrays of images, one behind the other, read an image at a time."""

    def __init__(self, first_NHWC: np.ndarray, second_NHWC: np.ndarray) -> None:
        self._first_NHWC, self._second_NHWC = first_NHWC, second_NHWC

    def __len__(self) -> int:
        return len(self._first_NHWC) + len(self._second_NHWC)

    def __getitem__(self, row: int) -> np.ndarray:
        count = len(self._first_NHWC)
        return np.asarray(self._first_NHWC[row] if row < count else self._second_NHWC[row - count])
