"""What distilling bought: the student against the same one trained on labels alone, and against a linear probe."""

from __future__ import annotations

from edgedistill.distill.methods import METHODS
from edgedistill.records import Accuracy, Gain
from edgedistill.report.blocks import METRICS, Block, interval, not_run
from edgedistill.report.facts import Facts

TITLE = "What distilling bought"


def blocks(facts: Facts) -> list[Block]:
    """The table of the baselines; none for a method that learns from labels alone, or without `baseline`."""
    record = facts.baseline
    if record is None:
        method = str(facts.recipe.get("distill", {}).get("method", {}).get("name", ""))
        off = facts.recipe.get("baseline") is False
        if off or method not in METHODS or not METHODS[method].uses_more_than_labels:
            return []
        line = f"none: {facts.no_baseline}" if facts.no_baseline else not_run("train")
        return [Block(key="bought", title=TITLE, lines=(line,))]
    compared: list[tuple[str, Accuracy, Gain | None]] = [
        ("labels alone", record.labels_alone, record.over_labels_alone)
    ]
    if record.probe:
        compared.append((f"linear probe of {record.source}", record.probe, record.over_probe))
    measured = "test images" if facts.out_of_fold is None else "labeled images, out of fold"
    lines = [record.why]
    if record.on_val:
        lines.append(f"on val: {_points(record.on_val)} points over labels alone, {record.on_val.n} images")
    return [
        Block(
            key="bought",
            title=TITLE,
            note=f"torch on the same {record.distilled.n} {measured}, paired 95 % intervals; "
            "labels alone: the same student and steps without sources and unlabeled images",
            header=("classifier", METRICS[facts.score], "distilling gains, points"),
            rows=(
                ("distilled", interval(record.distilled, facts.score), ""),
                *((name, interval(accuracy, facts.score), _points(gain)) for name, accuracy, gain in compared),
            ),
            lines=tuple(lines),
        )
    ]


def _points(gain: Gain | None) -> str:
    return f"{gain.points:+.1f} [{gain.low:+.1f}, {gain.high:+.1f}]" if gain else "-"
