"""The tables of the folds, made from lines alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.folds.cells import DRAWS, KIND, version_of
from benchmarks.lines import read
from benchmarks.suite.protocol import load
from benchmarks.suite.statistics import Summary, Targets, summarize

Line = Mapping[str, Any]
MEAN_ERROR, COVERED = 2.0, 0.9  # of the claims: points, and share of the cells


def current() -> dict[tuple[str, str, int], Line]:
    """The newest line of each cell, of the configuration that the code has, by question, target and draw."""
    config = load(KIND).config("auto")
    lines = [line for line in read(KIND) if line["config"] == config and line["version"] == version_of(line["target"])]
    return {(line["question"], line["target"], line["draw"]): line for line in lines}


def of_question(lines: Mapping[tuple[str, str, int], Line], question: str) -> dict[str, dict[int, Line]]:
    """The lines of one question by target and draw."""
    by_target: dict[str, dict[int, Line]] = {}
    for (name, target, draw), line in lines.items():
        if name == question:
            by_target.setdefault(target, {})[draw] = line
    return by_target


def points(by_target: Mapping[str, Mapping[int, Line]], difference: Callable[[Line], float]) -> Targets:
    """A difference of every line, in points."""
    return {
        target: {draw: 100 * difference(line) for draw, line in lines.items()} for target, lines in by_target.items()
    }


def error(line: Line) -> float:
    """Accuracy over the folds minus that of the student that ships on the pack's test set."""
    return float(line["pooled"]["balanced"] - line["ships"]["balanced"])


def is_covered(line: Line) -> bool:
    """Whether the interval over the folds covers the test accuracy of the student that ships."""
    low, high = line["pooled"]["ci95"]
    return bool(low <= line["ships"]["balanced"] <= high)


def markdown() -> str:
    """The tables: by pack, the claims, the hold-out and the search."""
    lines = current()
    folds = of_question(lines, "folds")
    if not folds:
        return "No cell has been run yet."
    parts = [_by_pack(folds), _claims(folds), _holdout(of_question(lines, "holdout"))]
    parts.append(_search(of_question(lines, "search"), folds))
    return "\n\n".join(part for part in parts if part)


def _by_pack(folds: Mapping[str, Mapping[int, Line]]) -> str:
    header = [
        "pack",
        "labels",
        "folds",
        "out of fold",
        "ships, on test",
        "error, points",
        "covered",
        "half the interval",
    ]
    rows = [header, ["---"] * len(header)]
    for target, by_draw in folds.items():
        lines = list(by_draw.values())
        errors = np.array([100 * error(line) for line in lines])
        halves = [50 * (line["pooled"]["ci95"][1] - line["pooled"]["ci95"][0]) for line in lines]
        rows.append(
            [
                target,
                _span([line["labels"] for line in lines]),
                _span([line["folds"] for line in lines]),
                f"{np.mean([100 * line['pooled']['balanced'] for line in lines]):.1f}",
                f"{np.mean([100 * line['ships']['balanced'] for line in lines]):.1f}",
                f"{errors.mean():+.1f}" + (f" ± {errors.std(ddof=1):.1f}" if len(errors) > 1 else ""),
                f"{sum(map(is_covered, lines))} of {len(lines)}",
                f"{np.mean(halves):.1f}",
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _claims(folds: Mapping[str, Mapping[int, Line]]) -> str:
    summary = summarize(points(folds, error))
    assert summary is not None, "there are lines"
    lines = [line for by_draw in folds.values() for line in by_draw.values()]
    covered = sum(map(is_covered, lines))
    planned = DRAWS * len(load(KIND).targets)
    is_complete = len(lines) >= planned
    note = "" if is_complete else " so far: the verdicts are those of a part"
    return (
        f"Balanced accuracy, {len(lines)} of {planned} cells{note}. Mean error {_points(summary)} points (claim: "
        f"within {MEAN_ERROR:g}): **{_verdict(abs(summary.mean) <= MEAN_ERROR)}**. The interval covers the test "
        f"accuracy of the student that ships in {covered} of {len(lines)} cells, {100 * covered / len(lines):.0f} % "
        f"(claim: {100 * COVERED:.0f} % at least): **{_verdict(covered >= COVERED * len(lines))}**."
    )


def _holdout(by_target: Mapping[str, Mapping[int, Line]]) -> str:
    gains = summarize(points(by_target, lambda line: line["ships"]["balanced"] - line["holdout"]["balanced"]))
    if gains is None:
        return ""
    errors = points(by_target, lambda line: line["estimate"]["balanced"] - line["holdout"]["balanced"])
    spread = np.std([value for by_draw in errors.values() for value in by_draw.values()])
    means = ", ".join(f"{target} {pack.mean:+.1f}" for target, pack in gains.by_target.items())
    return (
        f"25 labels a class, {_count(by_target)} cells: the student that ships is {_points(gains)} points better on "
        f"the test sets than that of a hold-out (30 % test, 20 % val), whose own estimate is off by {spread:.1f} "
        f"points (standard deviation). By pack: {means}."
    )


def _search(by_target: Mapping[str, Mapping[int, Line]], folds: Mapping[str, Mapping[int, Line]]) -> str:
    searched = points(by_target, error)
    paired = {
        target: {draw: value - 100 * error(folds[target][draw]) for draw, value in by_draw.items()}
        for target, by_draw in searched.items()
        if all(draw in folds.get(target, {}) for draw in by_draw)
    }
    optimism = summarize(paired)
    if optimism is None:
        return ""
    val = summarize(points(by_target, lambda line: line["val"][-1] - line["ships"]["balanced"]))
    assert val is not None, "there are lines"
    return (
        f"With a search among four input sizes, {_count(paired)} cells: the search adds {_points(optimism)} points to "
        f"the error of the folds, which search anew in each fold. The winner's score on val, from its short training, "
        f"minus its accuracy on test: {_points(val)} points."
    )


def _points(summary: Summary) -> str:
    return f"{summary.mean:+.1f} [{summary.low:+.1f}, {summary.high:+.1f}]"


def _count(by_target: Mapping[str, Mapping[int, Any]]) -> int:
    return sum(map(len, by_target.values()))


def _span(numbers: Sequence[int]) -> str:
    return str(min(numbers)) if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"


def _verdict(holds: bool) -> str:
    return "holds" if holds else "fails"
