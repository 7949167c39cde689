"""The table of the meters side by side, made from lines alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.meter.compare import MOST

Line = Mapping[str, Any]
KIND, NOTHING = "meter", "-"
HEADS = ("graph", "beside", "of", "ours", "theirs", "theirs / ours [95 %]", f"within {MOST:.0%}")
UNITS = {"per_second": ("images a second", "{:.0f}")}
DISCLAIMER = "None of this is an MLPerf result: loadgen is used as a meter, by none of MLPerf's rules."


def newest(lines: Iterable[Line]) -> list[Line]:
    """Per graph, peer and scenario the newest line, in the order in which they first came.

    That a peer was not there is only said of a graph beside which it never was.
    """
    found: dict[tuple[str, ...], Line] = {}
    for line in sorted(lines, key=lambda one: one.get("measured", "")):
        found[line["graph"], line["peer"], line.get("scenario", "")] = line
    there = {(graph, peer) for graph, peer, scenario in found if scenario}
    return [line for key, line in found.items() if key[2] or key[:2] not in there]


def markdown(lines: Iterable[Line]) -> str:
    """The table, what it was measured on, and what it is not."""
    kept = newest(lines)
    if not kept:
        return f"Not measured yet. {DISCLAIMER}"
    rows = [row for line in kept for row in _rows(line)]
    table = [f"| {' | '.join(one)} |" for one in (HEADS, *rows)]
    table.insert(1, "|---" * len(HEADS) + "|")
    return "\n".join([*table, "", *(f"- {one}" for one in dict.fromkeys(map(_measured, kept)) if one), "", DISCLAIMER])


def _rows(line: Line) -> list[list[str]]:
    if "absent" in line:
        return [[line["graph"], line["peer"], line["absent"].replace("|", "/"), *[NOTHING] * (len(HEADS) - 3)]]
    beside = f"{line['peer']} {_version(line)}, {line['scenario']}"
    graph = f"{line['graph']}, {line['precision']}"
    return [[graph, beside, *_row(mark, one, line["judged"])] for mark, one in line["compared"].items()]


def _version(line: Line) -> str:
    return str(line["versions"].get(line["peer"], "?"))


def _row(mark: str, one: Mapping[str, Any], judged: bool) -> list[str]:
    what, shown = UNITS.get(mark, (mark, "{:.3f} ms"))
    interval = one["interval"]
    ratio = f"{one['ratio']:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
    return [
        what,
        shown.format(one["ours"]),
        shown.format(one["theirs"]),
        ratio,
        verdict(one["within"], interval) if judged else "not judged: other windows",
    ]


def verdict(within: bool, interval: Sequence[float] | None) -> str:
    """Yes or no by the ratio; what its interval leaves open is said."""
    inside = [abs(one - 1.0) <= MOST for one in interval or ()]
    if within:
        return "yes" if inside and all(inside) else "yes; its interval reaches beyond" if inside else "yes; no interval"
    crosses = interval is not None and interval[0] <= 1.0 + MOST and interval[1] >= 1.0 - MOST
    return "no; its interval reaches within" if crosses else "no"


def _measured(line: Line) -> str:
    """How a line was measured, how still the machine was, and what loadgen itself costs."""
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
        f"quiet in {sum(one == 'quiet' for one in verdicts)} of {len(verdicts)} rounds" if any(verdicts) else "",
        f"a query that does nothing takes loadgen {statistics.median(empty_ms):.3f} ms" if empty_ms else "",
        f"{line['cpu']}, {line['cores']} cores, commit {line['commit']}" if "cpu" in line else "not a line",
    ]
    return f"{line['graph']}, {line['scenario']}: {', '.join(filter(None, parts))}"
