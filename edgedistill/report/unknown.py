"""When the student says "unknown": accuracy against coverage, and how far its probabilities can be believed.

N labeled images: those of test, or with folds all, each answered by a student that was trained without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgedistill.labels.unknown import Answered, Bin, Interval, answered, calibration_error, curve, reliability
from edgedistill.report import intervals
from edgedistill.report.blocks import Block, Row, not_run
from edgedistill.report.drawing import INK, SERIES, Picture, new_figure, to_svg, with_style
from edgedistill.report.facts import Facts

KEY, TITLE = "unknown", "Unknown"
COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.5)


@dataclass(frozen=True, kw_only=True)
class Confidence:
    """What report.json says of the answers beside the record.

    Attributes:
        n: number of labeled images.
        scored: the answers at the threshold.
        curve: accuracy against coverage.
        reliability: bins of the probabilities.
        calibration_error: their expected calibration error.
        softmax_error: that of the probabilities without a temperature.
    """

    n: int
    scored: Answered
    curve: list[Answered]
    reliability: list[Bin]
    calibration_error: float
    softmax_error: float


def summarize(facts: Facts) -> Confidence | None:
    """The answers of a run in figures; None before the step `unknown`."""
    if facts.unknown is None or not len(facts.answers.get("labels", ())):
        return None
    confidence_N, is_right_N, interval = facts.answers["confidence"], _is_right(facts), _interval(facts)
    bins = reliability(confidence_N, is_right_N, interval=interval)
    return Confidence(
        n=len(is_right_N),
        scored=answered(confidence_N, is_right_N, facts.unknown.scored.threshold, interval),
        curve=curve(confidence_N, is_right_N, interval=interval),
        reliability=bins,
        calibration_error=calibration_error(bins),
        softmax_error=calibration_error(reliability(facts.answers["softmax"], is_right_N)),
    )


def _is_right(facts: Facts) -> np.ndarray:
    return np.asarray(facts.answers["labels"] == facts.answers["predicted"])


def _interval(facts: Facts) -> Interval:
    return intervals.of(facts, _is_right(facts), facts.answers["labels"])


def content(facts: Facts) -> dict[str, Any] | None:
    """The part of report.json: the record, and the figures of the answers."""
    summary = summarize(facts)
    return {"record": facts.unknown, "answers": summary} if summary else None


def blocks(facts: Facts) -> list[Block]:
    """The table of accuracy against coverage."""
    summary, record = summarize(facts), facts.unknown
    if summary is None or record is None:
        return [Block(key=KEY, title=TITLE, lines=(not_run("export"),))]
    confidence_N, is_right_N = facts.answers["confidence"], _is_right(facts)
    ascending = np.sort(confidence_N)
    thresholds = [float(ascending[-max(1, round(coverage * summary.n))]) for coverage in COVERAGES]
    interval = _interval(facts)
    rows = [_row(answered(confidence_N, is_right_N, threshold, interval), "") for threshold in thresholds]
    if record.scored.threshold:
        rows.insert(0, _row(summary.scored, "at the threshold: "))
    note = "accuracy of the answers, if the least sure ones are left out"
    return [
        Block(
            key=KEY,
            title=TITLE,
            note=f"{note}; {_whose(facts, summary.n)}, {intervals.kind(facts, summary.n)}",
            header=("answered", "images", "accuracy [95 %]"),
            rows=tuple(rows),
            lines=(*promises(facts), *_fitted(facts), _believable(summary)),
        )
    ]


def _row(answers: Answered, name: str) -> Row:
    low, high = answers.ci95
    accuracy = (
        "-" if answers.accuracy is None else f"{100 * answers.accuracy:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
    )
    return (f"{name}{100 * answers.coverage:.1f} %", str(answers.n), accuracy)


def _whose(facts: Facts, n: int) -> str:
    if facts.out_of_fold is None:
        return f"{facts.default_graph} on {n} test images"
    return f"students of the folds on {n} labeled images"


def promises(facts: Facts) -> tuple[str, ...]:
    """What the default graph does with a picture that it is not sure of, in sentences; () before the step."""
    summary, record = summarize(facts), facts.unknown
    rule = record.rules.get(facts.default_graph) if record else None
    if summary is None or record is None or rule is None:
        return ()
    if not rule.threshold:
        why = "" if record.coverage or record.accuracy else ": bundle.unknown is false"
        return (f"it never says unknown{why}, and answers with one of its classes, whatever a picture shows",)
    scored = summary.scored
    right = "" if scored.accuracy is None else f", {100 * scored.accuracy:.1f} % of them rightly"
    return (
        f'it says "unknown" where its probability is below {100 * rule.threshold:.1f} %',
        f"of {summary.n} labeled images that it had not seen {100 * scored.coverage:.1f} % are answered{right}",
        "a picture of something else may still get an answer",
    )


def _fitted(facts: Facts) -> Iterator[str]:
    record = facts.unknown
    assert record is not None, "the step has run"
    wish = (
        f"coverage {record.coverage:g}"
        if record.coverage
        else f"accuracy {record.accuracy:g}"
        if record.accuracy
        else ""
    )
    temperature = record.rules[facts.default_graph].temperature if facts.default_graph in record.rules else 1.0
    matched = f", carried over to this student on {record.matched} images without a label" if record.matched else ""
    line = f"temperature {temperature:.2f}; fitted on {record.labels} labeled images{matched}"
    yield f"{line}; asked for: {wish}" if wish else line
    if record.coverage and not record.scored.threshold:
        yield f"warning: {record.labels} labeled images are too few for a threshold with coverage {record.coverage:g}"
    summary = summarize(facts)
    if record.accuracy and summary and summary.scored.ci95[1] < record.accuracy:
        yield "warning: the answers do not have the accuracy that is asked for; label more images, or ask for less"


def _believable(summary: Confidence) -> str:
    return (
        f"probabilities are off by {100 * summary.calibration_error:.1f} points in the mean "
        f"(without the temperature by {100 * summary.softmax_error:.1f})"
    )


def pictures(facts: Facts) -> dict[str, Picture]:
    """The two curves side by side, by block key."""
    summary = summarize(facts)
    return {KEY: _curves(facts, summary)} if summary else {}


@with_style
def _curves(facts: Facts, summary: Confidence) -> Picture:
    """Draw accuracy against coverage, and accuracy against probability, each with its interval."""
    figure = new_figure(2.6)
    left, right = figure.subplots(1, 2)
    points = [point for point in summary.curve if point.accuracy is not None]
    coverages = [100 * point.coverage for point in points]
    low, high = 100 * np.transpose([point.ci95 for point in points])
    left.fill_between(coverages, low, high, color=SERIES[0], alpha=0.2, linewidth=0)
    left.plot(coverages, [100 * (point.accuracy or 0.0) for point in points], color=SERIES[0])
    if facts.unknown and facts.unknown.scored.threshold and summary.scored.accuracy is not None:
        left.plot(100 * summary.scored.coverage, 100 * summary.scored.accuracy, "*", color=SERIES[1], markersize=11)
    left.set_title("accuracy of the answers, %")
    left.set_xlabel("answered, %")
    bins = summary.reliability
    believed, true = [100 * part.confidence for part in bins], [100 * part.accuracy for part in bins]
    low, high = 100 * np.transpose([part.ci95 for part in bins])
    right.plot([0, 100], [0, 100], color=INK, linewidth=0.8, linestyle="--")
    right.errorbar(
        believed,
        true,
        yerr=np.maximum([np.subtract(true, low), np.subtract(high, true)], 0.0),
        fmt="o",
        color=SERIES[2],
        markersize=4,
    )
    right.set_xlim(min(*believed, 100.0) - 3, 101)
    right.set_ylim(min([*low, *believed]) - 3, 101)
    right.set_title("rightly answered, %")
    right.set_xlabel("probability, %")
    everything = answered(facts.answers["confidence"], _is_right(facts), 0.0)
    alt = (
        f"Accuracy against coverage: {100 * (everything.accuracy or 0.0):.1f} % where all images are answered, "
        f"{100 * (points[0].accuracy or 0.0):.1f} % on the surest {coverages[0]:.0f} %. Beside it the share of right "
        f"answers by probability; the mean distance is {100 * summary.calibration_error:.1f} points."
    )
    return Picture(svg=to_svg(figure, KEY), alt=alt)
