"""The table that compares the meters, made from lines alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.meter.compare import MAX_DEVIATION

Line = Mapping[str, Any]
KIND, NOTHING = "meter", "-"
HEADS = ("graph", "beside", "of", "ours", "theirs", "theirs / ours [95 %]", f"within {MAX_DEVIATION:.0%}")
UNITS = {"per_second": ("images a second", "{:.0f}")}
DISCLAIMER = "None of this is an MLPerf result: loadgen is used as a meter, by none of MLPerf's rules."


def newest(lines: Iterable[Line]) -> list[Line]:
    """The newest line of each graph, peer and scenario, in the order of their first lines.

    A line of an absent peer is left out for a graph that the peer was measured on.
    """
    by_key: dict[tuple[str, ...], Line] = {}
    for line in sorted(lines, key=lambda line: line.get("measured", "")):
        by_key[line["graph"], line["peer"], line.get("scenario", "")] = line
    measured_pairs = {(graph, peer) for graph, peer, scenario in by_key if scenario}
    return [line for key, line in by_key.items() if key[2] or key[:2] not in measured_pairs]


def markdown(lines: Iterable[Line]) -> str:
    """The table, the conditions of its measurements, and the disclaimer."""
    current = newest(lines)
    if not current:
        return f"Not measured yet. {DISCLAIMER}"
    rows = [row for line in current for row in _rows(line)]
    table = [f"| {' | '.join(cells)} |" for cells in (HEADS, *rows)]
    table.insert(1, "|---" * len(HEADS) + "|")
    notes = [f"- {note}" for note in dict.fromkeys(map(_conditions, current)) if note]
    return "\n".join([*table, "", *notes, "", DISCLAIMER])


def _rows(line: Line) -> list[list[str]]:
    if "absent" in line:
        return [[line["graph"], line["peer"], line["absent"].replace("|", "/"), *[NOTHING] * (len(HEADS) - 3)]]
    beside = f"{line['peer']} {_version(line)}, {line['scenario']}"
    graph = f"{line['graph']}, {line['precision']}"
    return [
        [graph, beside, *_row(statistic, comparison, line["judged"])]
        for statistic, comparison in line["compared"].items()
    ]


def _version(line: Line) -> str:
    return str(line["versions"].get(line["peer"], "?"))


def _row(statistic: str, comparison: Mapping[str, Any], judged: bool) -> list[str]:
    label, number_format = UNITS.get(statistic, (statistic, "{:.3f} ms"))
    interval = comparison["interval"]
    ratio = f"{comparison['ratio']:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
    return [
        label,
        number_format.format(comparison["ours"]),
        number_format.format(comparison["theirs"]),
        ratio,
        verdict(comparison["within"], interval) if judged else "not judged: other windows",
    ]


def verdict(within: bool, interval: Sequence[float] | None) -> str:
    """Yes or no by the ratio, with a note where the interval leaves it open."""
    bounds = [abs(bound - 1.0) <= MAX_DEVIATION for bound in interval or ()]
    if within:
        return "yes" if bounds and all(bounds) else "yes; its interval reaches beyond" if bounds else "yes; no interval"
    crosses = interval is not None and interval[0] <= 1.0 + MAX_DEVIATION and interval[1] >= 1.0 - MAX_DEVIATION
    return "no; its interval reaches within" if crosses else "no"


def _conditions(line: Line) -> str:
    """The conditions of a line's measurement, how quiet the machine was, and the cost of loadgen itself."""
    if "absent" in line:
        return ""
    plan, sides = line["plan"], [(cell["ours"], cell["theirs"]) for cell in line["rounds"]]
    verdicts = [ours.get("verdict", "") for ours, _ in sides]
    empty_ms = [theirs["empty_ms"] for _, theirs in sides if "empty_ms" in theirs]
    batched = f"batches of {plan['batch']}" if "per_second" in line["compared"] else ""
    parts = [
        f"onnxruntime {line['versions']['onnxruntime']}" if "onnxruntime" in line["versions"] else "",
        f"engine: {line['engine']}" if "engine" in line else "",
        batched,
        f"{plan['threads']} thread(s)",
        f"{plan['rounds']} rounds of {plan['samples']} images and {plan['seconds']:g} s at least",
        f"quiet in {sum(verdict == 'quiet' for verdict in verdicts)} of {len(verdicts)} rounds"
        if any(verdicts)
        else "",
        f"a query that does nothing takes loadgen {statistics.median(empty_ms):.3f} ms" if empty_ms else "",
        f"{line['cpu']}, {line['cores']} cores, commit {line['commit']}" if "cpu" in line else "not a line",
    ]
    return f"{line['graph']}, {line['scenario']}: {', '.join(filter(None, parts))}"
