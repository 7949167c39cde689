"""Ours and theirs in turn, round by round: how far apart they read, and whether that is within the bound.

A reading is what one of them says of one measurement: {"n", "p50", "p90", "p99", ...} in ms, or {"n", "per_second"}.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgedistill.agent import metrics
from edgedistill.console import bar

Reading = dict[str, Any]
MOST = 0.05
MARKS = ("p50", "p90", "p99", "per_second")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured: rounds, and of each side in each round the least queries and seconds; images a batch."""

    rounds: int = 12
    samples: int = 500
    seconds: float = 4.0
    batch: int = 8
    threads: int = 1


def rounds(ours: Callable[[], Reading], theirs: Callable[[], Reading], n: int, what: str) -> list[dict[str, Any]]:
    """n rounds of {"first", "ours", "theirs"}; who begins alternates, so that neither always finds the machine warm."""
    sides, found = {"ours": ours, "theirs": theirs}, []
    with bar(what, n) as shown:
        for at in range(n):
            order = ("theirs", "ours") if at % 2 else ("ours", "theirs")
            taken = {which: sides[which]() for which in order}
            found.append({"first": order[0], "ours": taken["ours"], "theirs": taken["theirs"]})
            shown(1)
    return found


def compared(cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per percentile or rate that both give: {"ours", "theirs", "ratio", "interval", "within"}.

    Both sides are medians over the rounds. The ratio is the median over the rounds of theirs / ours, above 1 where
    they read more; its interval is 95 %, None below four rounds. `within` judges the ratio alone.
    """
    marks = [mark for mark in MARKS if all(mark in cell[side] for cell in cells for side in ("ours", "theirs"))]
    return {mark: _compared([(cell["ours"][mark], cell["theirs"][mark]) for cell in cells]) for mark in marks}


def _compared(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    # a round is a fresh process on either side: rounds are what is drawn from
    found = metrics.ratio_interval([[theirs] for _, theirs in pairs], [[ours] for ours, _ in pairs])
    ratio = found[0] if found else statistics.median(theirs / ours for ours, theirs in pairs)
    return {
        "ours": round(statistics.median(ours for ours, _ in pairs), 4),
        "theirs": round(statistics.median(theirs for _, theirs in pairs), 4),
        "ratio": round(ratio, 4),
        "interval": [round(one, 4) for one in found[1:]] if found else None,
        "within": abs(ratio - 1.0) <= MOST,
    }
