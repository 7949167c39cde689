"""Intervals of shares of the scored images, with the variance of the accuracy's: by units, and knowing of folds.

N scored images.
"""

from __future__ import annotations

import numpy as np

from edgedistill.labels.protocol import share_interval_of
from edgedistill.labels.unknown import Interval
from edgedistill.report.facts import Facts


def units(facts: Facts, n: int) -> np.ndarray | None:
    """The unit of each of `n` scored images; None where each is alone, and in a run that does not record units."""
    units_N = facts.answers.get("units")
    return units_N if units_N is not None and len(units_N) == n else None


def of(facts: Facts, is_right_N: np.ndarray, labels_N: np.ndarray | None = None) -> Interval:
    """The interval of the share of right answers among some of the scored images.

    Args:
        facts: the run.
        is_right_N: whether each scored image is answered rightly.
        labels_N: class of each, where the images are scored by class, as for the accuracy.
    """
    units_N = units(facts, len(is_right_N))
    units_N = np.arange(len(is_right_N)) if units_N is None else units_N
    strata_N = np.zeros(len(is_right_N), dtype=np.int64) if labels_N is None else labels_N
    count = len(facts.out_of_fold.folds) if facts.out_of_fold else None
    return lambda rows: share_interval_of(strata_N[rows], is_right_N[rows], units_N[rows], count)


def kind(facts: Facts, n: int) -> str:
    """What the intervals of shares of `n` scored images are, in words."""
    traits = ["count groups"] if units(facts, n) is not None else []
    traits += ["know that the students share labels"] if facts.out_of_fold else []
    return f"95 % intervals that {' and '.join(traits)}" if traits else "95 % intervals (Wilson)"
