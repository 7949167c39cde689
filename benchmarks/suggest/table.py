"""The tables of suggested labels against random ones, made from lines alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t

from benchmarks.lines import read
from benchmarks.suggest import many, students
from benchmarks.suggest.draws import KIND, MORE, PER_CLASS, WAYS
from benchmarks.suite import protocol
from benchmarks.suite.statistics import two_level
from edgedistill.distill.more_labels import NEXT
from edgedistill.labels.suggestions import DEFAULT

CLAIMS = {2: 10.0, 5: 5.0, 10: 3.0}  # points over random in the mean over targets
LEAST = -2.0  # points that no target is wholly under


@dataclass(frozen=True, kw_only=True)
class Gain:
    """A mean difference in points with its 95 % interval; over targets it has that of each, over its draws."""

    mean: float
    low: float
    high: float
    by_target: dict[str, Gain]


def gains(lines: list[dict[str, Any]], way: str, number: int, score: str = "top1") -> Gain | None:
    """The points of a way over random draws at the budget of that number, over targets and draws."""
    return gain_over(
        {(line["target"], line["seed"]): (line[score][way][number], line[score]["random"][number]) for line in lines}
    )


def gain_over(pairs: Mapping[tuple[str, int], tuple[float, float]]) -> Gain | None:
    """The mean difference of the pairs of each target and draw; None without a pair."""
    by_target: dict[str, list[float]] = {}
    for (target, _), (points, of_random) in sorted(pairs.items()):
        by_target.setdefault(target, []).append(points - of_random)
    if not by_target:
        return None
    # no sign-flip test as in the suite: with 24 draws it takes minutes a target
    low, high = np.percentile(two_level(list(by_target.values())), [2.5, 97.5])
    intervals = {target: _interval(differences) for target, differences in by_target.items()}
    mean = float(np.mean([gain.mean for gain in intervals.values()]))
    return Gain(mean=mean, low=float(low), high=float(high), by_target=intervals)


def _interval(differences: list[float]) -> Gain:
    """The mean and the t-interval of the differences of one target; unbounded for one draw."""
    n, mean = len(differences), float(np.mean(differences))
    half = float(t.ppf(0.975, n - 1) * np.std(differences, ddof=1) / math.sqrt(n)) if n > 1 else math.inf
    return Gain(mean=mean, low=mean - half, high=mean + half, by_target={})


def saved(lines: list[dict[str, Any]], number: int) -> float:
    """How many labels random draws need for the accuracy of the default, as a multiple of its labels.

    The mean over targets of the geometric interpolation between the budgets; at most MORE labels a class.
    """
    ratios = []
    for target in {line["target"] for line in lines}:
        of_target = [line for line in lines if line["target"] == target]
        curve = np.mean([line["top1"]["random"] for line in of_target], axis=0)
        reached = np.mean([line["top1"][DEFAULT][number] for line in of_target])
        steps = np.log([*PER_CLASS, MORE])
        needed = math.exp(np.interp(reached, np.maximum.accumulate(curve), steps))
        ratios.append(needed / PER_CLASS[number])
    return float(np.exp(np.mean(np.log(ratios))))


def markdown(lines: list[dict[str, Any]]) -> str:
    """The tables of the newest settings: gains by target, strategies, and whether the claims hold."""
    lines = [line for line in lines if line["config"] == lines[-1]["config"]]
    tuning = protocol.load("cpu").tuning
    reported = [line for line in lines if line["target"] not in tuning]
    if not reported:
        return "No target has been measured yet."
    summaries = [gains(reported, DEFAULT, number) for number in range(len(PER_CLASS))]
    targets = list(dict.fromkeys(line["target"] for line in reported))
    header = ["target", "draws", *(f"random, {per}" for per in PER_CLASS), *(f"gain at {per}" for per in PER_CLASS)]
    rows = [header, ["---"] * len(header)]
    rows += [_target_row(target, reported, summaries) for target in targets]
    means = [
        f"{np.mean([line['top1']['random'][number] for line in reported]):.1f}" for number in range(len(PER_CLASS))
    ]
    rows.append(["mean", "", *means, *(_mean_cell(summary) for summary in summaries)])
    ways = [["way", *(f"gain at {per}" for per in PER_CLASS)], ["---"] * (1 + len(PER_CLASS))]
    ways += [[way, *(_mean_cell(gains(reported, way, number)) for number in range(len(PER_CLASS)))] for way in WAYS]
    tables = ["\n".join(f"| {' | '.join(row)} |" for row in table) for table in (rows, ways)]
    return "\n\n".join([*tables, *_verdicts(summaries), _saved(reported), _worth(reported)])


def _target_row(target: str, lines: list[dict[str, Any]], summaries: list[Gain | None]) -> list[str]:
    of_target = [line for line in lines if line["target"] == target]
    random = [
        f"{np.mean([line['top1']['random'][number] for line in of_target]):.1f}" for number in range(len(PER_CLASS))
    ]
    cells = [summary.by_target[target] for summary in summaries if summary]
    return [
        target,
        str(len(of_target)),
        *random,
        *(_cell(cell) for cell in cells),
    ]


def _mean_cell(summary: Gain | None) -> str:
    return f"**{summary.mean:+.1f}** [{summary.low:+.1f}, {summary.high:+.1f}]" if summary else "-"


def _verdicts(summaries: list[Gain | None]) -> list[str]:
    return ["\n".join(_verdict(per_class, gain) for per_class, gain in zip(CLAIMS, summaries, strict=True) if gain)]


def _verdict(per_class: int, gain: Gain) -> str:
    claimed = CLAIMS[per_class]
    under = [target for target, cell in gain.by_target.items() if cell.high < LEAST]
    holds = "holds" if gain.mean >= claimed and not under else "**fails**"
    worst = f"targets wholly under {LEAST:g}: {', '.join(under) or 'none'}"
    return f"- at {per_class} labels a class, {claimed:+g} claimed: {gain.mean:+.1f}, {holds}; {worst}"


def _cell(gain: Gain) -> str:
    return f"{gain.mean:+.1f} [{gain.low:+.1f}, {gain.high:+.1f}]"


def _saved(lines: list[dict[str, Any]]) -> str:
    ratios = ", ".join(f"{saved(lines, number):.1f} at {per}" for number, per in enumerate(PER_CLASS))
    return f"For the same accuracy random draws need so many times the labels (at most {MORE} a class count): {ratios}."


def _worth(lines: list[dict[str, Any]]) -> str:
    told = [line["worth"] for line in lines if line["worth"]["gain"] is not None]
    if not told:
        return ""
    covered = np.mean([entry["low"] <= entry["true"] <= entry["high"] for entry in told])
    gain, true = (np.mean([entry[name] for entry in told]) for name in ("gain", "true"))
    width = np.mean([entry["high"] - entry["low"] for entry in told])
    return (
        f"What the next {NEXT} random labels are worth, at 5 labels a class: estimated {gain:+.1f} points, true "
        f"{true:+.1f}, in the mean of {len(told)} of {len(lines)} draws; the interval, {width:.0f} points wide in the "
        f"mean, holds the truth in {covered:.0%} of them."
    )


def of_students(lines: list[dict[str, Any]]) -> str:
    """The table of the distilled students, and whether the claim holds for them; of the newest settings."""
    lines = [line for line in lines if line["config"] == lines[-1]["config"]]
    per_class = PER_CLASS[students.BUDGET]
    rows = [["target", "draws", "random", "suggested", "gain, top-1", "gain, balanced"], ["---"] * 6]
    summaries = [_students_gain(lines, score) for score in ("top1", "balanced")]
    for target in dict.fromkeys(line["target"] for line in lines):
        of_target = [line["top1"] for line in lines if line["target"] == target]
        means = [f"{np.mean([top1[way] for top1 in of_target]):.1f}" for way in ("random", DEFAULT)]
        cells = [summary.by_target[target] for summary in summaries]
        rows.append([target, str(len(of_target)), *means, *(_cell(cell) for cell in cells)])
    rows.append(["mean", "", "", "", *(_mean_cell(summary) for summary in summaries)])
    return "\n\n".join(
        [
            f"The distilled student, at {per_class} labels a class on average:",
            "\n".join(f"| {' | '.join(row)} |" for row in rows),
            _verdict(per_class, summaries[0]),
        ]
    )


def _students_gain(lines: list[dict[str, Any]], score: str) -> Gain:
    pairs = {(line["target"], line["seed"]): (line[score][DEFAULT], line[score]["random"]) for line in lines}
    gain = gain_over(pairs)
    assert gain is not None, "there is a line"
    return gain


def table() -> str:
    """The tables of the committed lines."""
    lines, distilled, rows = list(read(KIND)), list(read(students.KIND)), list(read(many.KIND))
    tables = [markdown(lines) if lines else "No target has been measured yet."]
    tables += [of_students(distilled)] if distilled else []
    return "\n\n".join([*tables, *([many.sentence(rows[-1])] if rows else [])])
