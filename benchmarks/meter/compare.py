"""Readings of ours and theirs in turn, round by round: their ratio, and whether it is within the bound.

A reading is the result of one measurement of one side: {"n", "p50", "p90", "p99", ...} in ms, or {"n", "per_second"}.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgedistill.agent import metrics
from edgedistill.console import bar

Reading = dict[str, Any]
MAX_DEVIATION = 0.05
STATISTICS = ("p50", "p90", "p99", "per_second")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Size of a measurement: rounds; minimum queries and seconds of each side in each round; images a batch."""

    rounds: int = 12
    samples: int = 500
    seconds: float = 4.0
    batch: int = 8
    threads: int = 1


def rounds(ours: Callable[[], Reading], theirs: Callable[[], Reading], n: int, title: str) -> list[dict[str, Any]]:
    """Measure n rounds of {"first", "ours", "theirs"}; the first side alternates, so that neither is always warm."""
    sides, cells = {"ours": ours, "theirs": theirs}, []
    with bar(title, n) as advance:
        for index in range(n):
            order = ("theirs", "ours") if index % 2 else ("ours", "theirs")
            readings = {which: sides[which]() for which in order}
            cells.append({"first": order[0], "ours": readings["ours"], "theirs": readings["theirs"]})
            advance(1)
    return cells


def compare(cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """{"ours", "theirs", "ratio", "interval", "within"} for each percentile or rate that both sides have.

    Both sides are medians over the rounds. The ratio is the median over the rounds of theirs / ours, above 1 where
    theirs is larger; its interval is 95 %, None below nine rounds. `within` depends on the ratio alone.
    """
    shared = [
        statistic
        for statistic in STATISTICS
        if all(statistic in cell[side] for cell in cells for side in ("ours", "theirs"))
    ]
    return {
        statistic: _compare_pairs([(cell["ours"][statistic], cell["theirs"][statistic]) for cell in cells])
        for statistic in shared
    }


def _compare_pairs(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    # a round is a fresh process on either side, so the bootstrap resamples rounds
    ratio_ci95 = metrics.ratio_interval([[theirs] for _, theirs in pairs], [[ours] for ours, _ in pairs])
    ratio = ratio_ci95[0] if ratio_ci95 else statistics.median(theirs / ours for ours, theirs in pairs)
    return {
        "ours": round(statistics.median(ours for ours, _ in pairs), 4),
        "theirs": round(statistics.median(theirs for _, theirs in pairs), 4),
        "ratio": round(ratio, 4),
        "interval": [round(bound, 4) for bound in ratio_ci95[1:]] if ratio_ci95 else None,
        "within": abs(ratio - 1.0) <= MAX_DEVIATION,
    }
