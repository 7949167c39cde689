"""95 % intervals where units hold several images: such images are right or wrong together, and tell less than as many
that are alone.

The variance is that of whole units, over all of their classes. The design effect (Kish, Survey Sampling, 1965) is the
ratio of it to the variance of as many images alone. It divides the number of images, and the interval is the usual one
of that number (Korn and Graubard, Survey Methodology 24, 1998). Few units may agree by chance, so that one more unit
counts, all of whose images are right or wrong together.
N images, S strata that count alike (the classes, for the balanced accuracy), P pairs of stratum and unit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgedistill.agent.metrics import paired_interval, wilson
from edgedistill.labels.units import several

MOST_LEVERAGE = 0.5  # a unit that is a stratum of its own has no variance to correct


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """How images lie in strata and units.

    Attributes:
        strata_N: stratum of each image, from 0.
        units_N: unit of each image, from 0.
        sizes_S: images of each stratum.
        units_S: effective number of units of each stratum: fewer than there are where one is larger than others.
        weights_N: weight of each image; the sum is 1.
        leverage_N: share of the image's unit in its stratum.
    """

    strata_N: np.ndarray
    units_N: np.ndarray
    sizes_S: np.ndarray
    units_S: np.ndarray
    weights_N: np.ndarray
    leverage_N: np.ndarray

    @classmethod
    def of(cls, strata_N: np.ndarray, units_N: np.ndarray) -> Layout:
        """The layout of images with these strata and units, in numbers of any order."""
        strata_N, units_N = (np.unique(array_N, return_inverse=True)[1].ravel() for array_N in (strata_N, units_N))
        sizes_S = np.bincount(strata_N)
        n_units = int(units_N.max()) + 1
        pairs_P, pair_N, counts_P = np.unique(strata_N * n_units + units_N, return_inverse=True, return_counts=True)
        shares_P = counts_P / sizes_S[pairs_P // n_units]
        return cls(
            strata_N=strata_N,
            units_N=units_N,
            sizes_S=sizes_S,
            units_S=1.0 / np.bincount(pairs_P // n_units, weights=shares_P**2),
            weights_N=1.0 / (sizes_S[strata_N] * len(sizes_S)),
            leverage_N=shares_P[pair_N.ravel()],
        )

    def means(self, values_N: np.ndarray) -> np.ndarray:
        """The mean of each stratum, [S]."""
        return np.asarray(np.bincount(self.strata_N, weights=values_N) / self.sizes_S)

    def design_effect(self, excess_N: np.ndarray, spread_N: np.ndarray) -> float:
        """By how much the variance of units exceeds that of images alone; at least 1.

        Args:
            excess_N: value of each image less the mean of its stratum.
            spread_N: standard deviation of each image's value, never 0.
        """
        one_more = self._of_units(np.ones(len(self.units_N)))  # its share among the effective number of units
        together = self.of_whole_units(excess_N) + one_more * self._of_units(spread_N)
        return max(1.0, together / (self.of_images(excess_N) + one_more * self.of_images(spread_N)))

    def of_images(self, excess_N: np.ndarray) -> float:
        """The variance of the weighted sum, if every image were drawn alone."""
        return float(((self.weights_N * excess_N) ** 2).sum())

    def of_whole_units(self, excess_N: np.ndarray) -> float:
        """The variance of the weighted sum, if whole units were drawn; few units hide a part of it, which is added."""
        return self._of_units(excess_N / np.sqrt(np.maximum(1.0 - self.leverage_N, MOST_LEVERAGE)))

    def _of_units(self, excess_N: np.ndarray) -> float:
        """The variance of the weighted sum, if whole units were drawn."""
        return float((np.bincount(self.units_N, weights=self.weights_N * excess_N) ** 2).sum())


def rare_effect(values_N: np.ndarray, strata_N: np.ndarray, units_N: np.ndarray | None) -> float:
    """The design effect on the mean over strata of values that are 0 on nearly all images; 1 where each is alone.

    No further unit is added. One whose images all had such a value would outweigh all that is seen.

    Args:
        values_N: value of each image.
        strata_N: stratum of each image.
        units_N: unit of each image; None where each is alone.
    """
    if units_N is None or not several(units_N):
        return 1.0
    layout = Layout.of(strata_N, units_N)
    excess_N = values_N - layout.means(values_N)[layout.strata_N]
    alone = layout.of_images(excess_N)
    return max(1.0, layout.of_whole_units(excess_N) / alone) if alone else 1.0


def share_interval(
    is_right_N: np.ndarray, strata_N: np.ndarray, units_N: np.ndarray, inflation: float
) -> tuple[float, float]:
    """Wilson's interval of the mean over strata of the share of right answers, for as many images as the units tell.

    Args:
        is_right_N: whether each image is answered rightly.
        strata_N: stratum of each image.
        units_N: unit of each image.
        inflation: by which the variance is multiplied.
    """
    layout, right_N = Layout.of(strata_N, units_N), is_right_N.astype(np.float64)
    shares_S = layout.means(right_N)
    # half a unit of either outcome: a stratum that is all right still has a variance (Jeffreys)
    likely_S = (shares_S * layout.units_S + 0.5) / (layout.units_S + 1.0)
    spread_N = np.sqrt(likely_S * (1.0 - likely_S))[layout.strata_N]
    variance = layout.design_effect(right_N - shares_S[layout.strata_N], spread_N) * layout.of_images(spread_N)
    likely = float(likely_S.mean())
    worth = likely * (1.0 - likely) / (inflation * variance)
    return wilson(float(shares_S.mean()) * worth, worth)


def gain_interval(
    won_N: np.ndarray, strata_N: np.ndarray, units_N: np.ndarray, inflation: float
) -> tuple[float, float]:
    """The interval of the mean over strata of what one method wins over another, for as many images as the units tell.

    Half an image is added to each of the four outcomes (Agresti and Min, Statistics in Medicine 2005).

    Args:
        won_N: 1 where the one alone is right, -1 where the other alone is, else 0.
        strata_N: stratum of each image.
        units_N: unit of each image.
        inflation: by which the variance is multiplied.
    """
    layout = Layout.of(strata_N, units_N)
    gains_S = layout.means(won_N)
    excess_N = won_N - gains_S[layout.strata_N]
    spread_S = np.sqrt((layout.means(excess_N**2) * layout.units_S + 1.0) / (layout.units_S + 2.0))
    effect = layout.design_effect(excess_N, spread_S[layout.strata_N])
    worth = 1.0 / (effect * layout.of_images(np.ones(len(won_N))))
    return paired_interval(float(gains_S.mean()), effect * layout.of_images(excess_N), worth, inflation)
