"""Single images: broken, blank, dark, very long or small. N images that can be read, A of all."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from edgedistill.collection.images import BLANK, DARK, Collection, Listed, brightness
from edgedistill.data.image_store import ImageStore
from edgedistill.labels.findings import Finding

LONG = 4.0  # ratio of the sides
SMALL = 32  # pixels of the shorter side, the smallest input of a student


def corrupt(listed: Listed, store: ImageStore) -> Iterator[Finding]:
    """Images that cannot be read, with the reason."""
    for number, reason in store.reasons.items():
        yield Finding(kind="corrupt", images=(listed.image(int(number)),), note=reason)


def blank_and_dark(collection: Collection) -> Iterator[Finding]:
    """Images of one brightness, and images that are nearly black."""
    levels = brightness(collection.store.images_NHWC)
    for row in np.flatnonzero((levels.deviation_N < BLANK) | (levels.bright_N < DARK)):
        images = (collection.image(int(row)),)
        if levels.deviation_N[row] < BLANK:
            note = f"brightness {levels.mean_N[row]:.0f} of 255 everywhere"
            yield Finding(kind="blank", images=images, note=note)
        else:
            note = f"95 % of it are darker than {levels.bright_N[row] + 1:.0f} of 255"
            yield Finding(kind="dark", images=images, note=note)


def sizes(listed: Listed) -> np.ndarray:
    """Width and height of each image as its file says, int64 [A, 2]; 0 where it cannot be opened."""

    def size(row: int) -> tuple[int, int]:
        try:
            with listed.items.load(row) as image:
                return int(image.width), int(image.height)
        except MemoryError:
            raise
        except Exception:  # broken files raise errors of many types; the store names them
            return 0, 0

    with ThreadPoolExecutor() as pool:
        return np.array(list(pool.map(size, range(len(listed.items)))), dtype=np.int64).reshape(-1, 2)


def long_and_small(collection: Collection, sizes_A2: np.ndarray, fit: str) -> Iterator[Finding]:
    """Images whose square shows little of them, and small images, unless most images are small.

    Args:
        collection: the images.
        sizes_A2: width and height of every image.
        fit: how a picture becomes a square, "crop" or "squash".
    """
    sizes_N2 = sizes_A2[collection.store.kept_rows]
    short_N, long_N = sizes_N2.min(axis=1), sizes_N2.max(axis=1)
    for row in np.flatnonzero((long_N >= LONG * short_N) & (short_N > 0)):
        width, height = sizes_N2[row]
        ratio = long_N[row] / short_N[row]
        outcome = (
            f"the cropped square shows {100 / ratio:.0f} % of it" if fit == "crop" else f"squashed {ratio:.0f} to 1"
        )
        note = f"{width} x {height}: {outcome}"
        yield Finding(kind="long", images=(collection.image(int(row)),), note=note)
    if np.median(short_N) >= SMALL:
        for row in np.flatnonzero((short_N < SMALL) & (short_N > 0)):
            width, height = sizes_N2[row]
            yield Finding(kind="small", images=(collection.image(int(row)),), note=f"{width} x {height}")


def size_facts(sizes_A2: np.ndarray) -> dict[str, str]:
    """The smallest, the median and the largest image by its area, as width x height; empty if none can be opened."""
    sizes_A2 = sizes_A2[sizes_A2.min(axis=1) > 0]
    if not len(sizes_A2):
        return {}
    order = np.argsort(sizes_A2.prod(axis=1), kind="stable")
    places = {"smallest": order[0], "median": order[len(order) // 2], "largest": order[-1]}
    facts = {name: f"{sizes_A2[row][0]} x {sizes_A2[row][1]}" for name, row in places.items()}
    return facts | {"different sizes": str(len(np.unique(sizes_A2, axis=0)))}
