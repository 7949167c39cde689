"""What distilling bought, for the tests of reports and licenses."""

from __future__ import annotations

from typing import Literal

from edgedistill.records import Baseline, Gain
from tests.helpers.report_runs import accuracy


def baseline(ships: Literal["distilled", "labels alone"], why: str = "") -> Baseline:
    """Labels alone are three points better than the distilled student."""
    measured = accuracy(0.8)
    return Baseline(
        ships=ships,
        why=why,
        distilled=measured,
        labels_alone=measured,
        over_labels_alone=Gain(points=-3.0, low=-5.0, high=-1.0, n=40),
    )
