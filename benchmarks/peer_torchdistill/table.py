"""The table of the comparison with torchdistill, made from lines alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.intervals import median_interval

CLAIM = 5.0  # times as fast, at least


def ratio(seconds: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Median over the rounds of theirs / ours, with its 95 % interval (bootstrap of the rounds)."""
    ratios = [theirs / ours for ours, theirs in seconds]
    return statistics.median(ratios), *median_interval(ratios)


def median_epochs(seconds: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Median seconds of an epoch, ours and theirs."""
    ours, theirs = zip(*seconds, strict=True)
    return statistics.median(ours), statistics.median(theirs)


def training_ratio(epochs: int, cache_seconds: float, ours: float, theirs: float) -> float:
    """The peer's time over edgedistill's for a training of so many epochs, the cache included."""
    return epochs * theirs / (cache_seconds + epochs * ours)


def break_even(cache_seconds: float, ours: float, theirs: float) -> int | None:
    """The smallest number of epochs at which edgedistill, cache included, takes no longer; None where there is none."""
    if theirs <= ours:
        return None
    return max(1, math.ceil(cache_seconds / (theirs - ours)))


def verdict(low: float, high: float) -> str:
    """Whether the interval of the ratio supports the claim: "yes", "no" or "undecided"."""
    if low >= CLAIM:
        return "yes"
    return "no" if high < CLAIM else "undecided"


def row(line: Mapping[str, Any]) -> str:
    """One line as a row of the table."""
    middle, low, high = ratio(line["seconds"])
    ours, theirs = median_epochs(line["seconds"])
    even = break_even(*(costs := (line["cache_seconds"], ours, theirs)))
    return " | ".join(
        [
            f"| {line['student']} at {line['input_px']} px, {line['macs_m']:.0f} M MACs; {line['sources']} x "
            f"{line['source']} at {line['source_px']} px",
            f"{theirs:.2f} s",
            f"{ours:.2f} s",
            f"{middle:.1f} [{low:.1f}, {high:.1f}]",
            verdict(low, high),
            f"{line['cache_seconds']:.1f} s = {line['cache_seconds'] / ours:.1f} epochs",
            "never" if even is None else f"{even}",
            " / ".join(f"{training_ratio(epochs, *costs):.1f}" for epochs in (10, 100)),
            f"{line['torchdistill']}; {line['images']} images, batches of {line['batch']}, {line['threads']} threads",
            f"{line['cpu']}, {line['cores']} cores | {line['commit']} |",
        ]
    )


def markdown(lines: list[dict[str, Any]]) -> str:
    """The lines as a Markdown table."""
    heads = [
        "student; sources",
        "an epoch of torchdistill",
        "of edgedistill",
        "times as fast, median [95 %]",
        f"{CLAIM:.0f} times at least",
        "the cache, once, in epochs of edgedistill",
        "ahead from epoch",
        "times as fast with the cache, 10 / 100 epochs",
        "torchdistill",
        "on",
        "commit",
    ]
    return "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *map(row, lines)])
