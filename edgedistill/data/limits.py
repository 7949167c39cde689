"""The limits of pictures of more than 8 bits: the values that become black and white, measured once over train.

Never per picture: brightness is often what tells classes apart, as a temperature or a density. Thermal, X-ray and
industrial cameras use a part of their 16 bits alone, so that neither the type's limits nor a clip at 255 serve.
N pictures.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal

import numpy as np
from tqdm import tqdm

from edgedistill.agent.pictures import Limits, NeedsLimitsError, reason
from edgedistill.data import images
from edgedistill.data.listing import Items
from edgedistill.errors import InputError

Range = Literal["auto"] | Limits
SAMPLED_VALUES = 2**24  # of all pictures together: bounds the memory
LEAST_VALUES = 16  # of each picture, however many there are
PERCENTILES = (0.1, 99.9)  # dead and hot pixels are outside


class Decoder:
    """Decodes items to squares; the limits are set when the first picture of more than 8 bits is met.

    Attributes:
        view: how the items are decoded; its limits are None until a picture needed them.
    """

    def __init__(self, items: Items, view: images.View, data_range: Range | None) -> None:
        """Decode `items` by `view`; `data_range` gives the limits, "auto" measures them over all items."""
        self.view = replace(view, limits=None)
        self._items, self._range = items, data_range
        self._lock = threading.Lock()

    def __call__(self, row: int) -> tuple[np.ndarray | None, str]:
        """The square of an item, uint8 [px, px, 3], and ""; or None and the reason why it cannot be decoded.

        Raises:
            InputError: the limits cannot be measured.
        """
        try:
            return self._square(row), ""
        except MemoryError:
            raise
        except NeedsLimitsError as error:
            if self._range is None:
                return None, f"{error}; set data.range"
        except (
            Exception
        ) as error:  # on broken bytes Pillow's decoders raise OSError, SyntaxError, struct.error and more
            return None, reason(error)
        with self._lock:
            if self.view.limits is None:
                limits = measured(self._items) if self._range == "auto" else self._range
                self.view = replace(self.view, limits=limits)
        try:
            return self._square(row), ""
        except NeedsLimitsError:  # of no picture any value could be read
            return None, "has more than 8 bits, and its pixels cannot be decoded"
        except Exception as error:
            return None, reason(error)

    def _square(self, row: int) -> np.ndarray:
        with self._items.load(row) as image:
            return np.ascontiguousarray(images.to_square(image, self.view))


def measured(items: Items) -> Limits | None:
    """The 0.1 and the 99.9 percentile of all values of the items' pictures of more than 8 bits.

    Of many or large pictures an equal number of values each is drawn at random, SAMPLED_VALUES in all. Pictures that
    cannot be decoded are left out; None if no value remains.

    Raises:
        InputError: nearly all values are equal.
    """
    most = max(LEAST_VALUES, SAMPLED_VALUES // max(1, len(items)))

    def sample(row: int) -> np.ndarray:
        try:
            with items.load(row) as image:
                return images.sampled_values(image, most, seed=row)
        except MemoryError:
            raise
        except Exception:  # as in Decoder, which names the picture
            return np.empty(0, dtype=np.float32)

    with ThreadPoolExecutor() as pool:
        samples = pool.map(sample, range(len(items)))
        values = list(
            tqdm(samples, total=len(items), desc="measure data.range", unit="image", disable=None, leave=False)
        )
    sampled = np.concatenate(values)
    if not len(sampled):
        return None
    low, high = np.percentile(sampled, PERCENTILES, method="inverted_cdf")
    if low == high:
        raise InputError(
            f"data.range: pictures have more than 8 bits, and nearly all of their values are {low:g}",
            "set data.range: [low, high], the values that become black and white",
        )
    return float(low), float(high)
