"""The tables of int8 beside the peers, and whether the claims hold, made from lines alone.

`ours` are the lines with "ours": true. What ours keeps of a student is the first of them that is not simulated and
whose facts do not say "kept": false; where there is none, it keeps fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

Line = Mapping[str, Any]
Rows = Mapping[str, Line]  # the lines of one student, by artefact
FP32, NOTHING = "fp32", "-"
LITE0, RESNET18, MOBILENETV3 = "efficientnet-lite0", "resnet18", "mobilenetv3"
MOST_POINTS, LITE0_TIMES, RESNET18_TIMES = 0.3, 1.8, 2.5
HEADS = (
    "artefact",
    "top-1",
    "points lost [95 %]",
    "agreement with fp32",
    "p50, ms",
    "times as fast as fp32 [95 %]",
    "MB",
)


def newest(lines: Iterable[Line]) -> dict[str, dict[str, Line]]:
    """Per student and artefact the newest line; of two without a date the later one."""
    found: dict[str, dict[str, Line]] = {}
    for line in sorted(lines, key=lambda one: one.get("measured", "")):
        found.setdefault(line["student"], {})[line["artefact"]] = line
    return found


def markdown(lines: Iterable[Line]) -> str:
    """A table a student, then the claims."""
    found = newest(lines)
    parts = [[f"**{student}**, {_images(rows)} test images", "", _table(rows), ""] for student, rows in found.items()]
    return "\n".join([*chain.from_iterable(parts), *(f"- {one}" for one in claims(found))])


def _images(rows: Rows) -> str:
    return " or ".join(str(one) for one in sorted({line["n_test"] for line in rows.values() if "n_test" in line}))


def _table(rows: Rows) -> str:
    order = sorted(rows.values(), key=lambda one: (one["artefact"] != FP32, not one.get("ours", False)))
    body = [f"| {' | '.join(_row(line))} |" for line in order]
    return "\n".join([f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|", *body])


def _row(line: Line) -> list[str]:
    name = _name(line)
    if "failed" in line:
        return [name, f"failed: {line['failed']}".replace("|", "/"), *[NOTHING] * (len(HEADS) - 2)]
    lost = NOTHING if line["artefact"] == FP32 else _interval(line["drop_points"], "+.2f")
    return [
        name,
        f"{line['top1']:.1%}",
        lost,
        f"{line['agreement']:.1%}",
        _p50(line),
        _speed(line),
        f"{line['size_mb']:.1f}",
    ]


def _name(line: Line) -> str:
    versions = ", ".join(f"{name} {line['versions'][name]}" for name in list(line.get("versions", {}))[:2])
    kept = " (not kept: fp32 is)" if _refused(line) else ""
    floats = line.get("runtime", {}).get("inference_precision")  # OpenVINO takes bf16 where the processor has it
    return "; ".join(filter(None, [f"{line['artefact']}{kept}", versions, floats and f"floats in {floats}"]))


def _p50(line: Line) -> str:
    samples_ms = [one for part in line["samples_ms"] or [] for round_ in part for one in round_]
    return f"{np.median(samples_ms):.2f}" if samples_ms else NOTHING


def _speed(line: Line) -> str:
    if line["simulated"]:
        return "simulated"
    if line.get("untimed"):
        return f"failed: {line['untimed']}".replace("|", "/")
    return _interval(line["ratio_to_fp32"], ".2f") if line["ratio_to_fp32"] else NOTHING


def _interval(values: Sequence[float], how: str) -> str:
    middle, low, high = (format(one, how) for one in values)
    return f"{middle} [{low}, {high}]"


def _refused(line: Line) -> bool:
    return line.get("facts", {}).get("kept") is False


def kept(rows: Rows) -> Line | None:
    """What ours keeps of a student; None where nothing of ours has a line."""
    mine = [one for one in rows.values() if one.get("ours") and "failed" not in one and not one["simulated"]]
    good = [one for one in mine if not _refused(one)]
    return good[0] if good else (rows.get(FP32) if mine else None)


def times(line: Line) -> float | None:
    """How many times as fast as fp32; None where it was not timed."""
    if line["artefact"] == FP32:
        return 1.0
    return line["ratio_to_fp32"][0] if line.get("ratio_to_fp32") else None


def claims(found: Mapping[str, Rows]) -> list[str]:
    """Each claim with what its lines say of it."""
    return [
        _claim(found, LITE0, f"within {MOST_POINTS} points of fp32 and at least {LITE0_TIMES} times as fast", _lite0),
        _claim(found, RESNET18, f"at least {RESNET18_TIMES} times as fast as fp32", _resnet18),
        _unbeaten(found),
        _claim(found, MOBILENETV3, "what ours keeps is not slower than fp32", _mobilenetv3),
    ]


def _claim(found: Mapping[str, Rows], student: str, what: str, holds: Callable[[Line, float], bool]) -> str:
    mine = kept(found[student]) if student in found else None
    speed = None if mine is None else times(mine)
    if mine is None or speed is None:
        return f"{student}: {what}: not measured"
    said = f"{mine['artefact']}: {_interval(mine['drop_points'], '+.2f')} points lost, {speed:.2f} times as fast"
    return f"{student}: {what}: {'holds' if holds(mine, speed) else 'FAILS'} ({said})"


def _lite0(mine: Line, speed: float) -> bool:
    return bool(mine["drop_points"][0] <= MOST_POINTS) and speed >= LITE0_TIMES


def _resnet18(mine: Line, speed: float) -> bool:
    return speed >= RESNET18_TIMES


def _mobilenetv3(mine: Line, speed: float) -> bool:
    return speed >= 1.0


def _unbeaten(found: Mapping[str, Rows]) -> str:
    what = "no peer is both more accurate and faster than ours"
    judged = {student: mine for student, rows in found.items() if (mine := kept(rows)) and times(mine) is not None}
    if not judged:
        return f"{what}: not measured"
    better = [f"{student}: {said}" for student, mine in judged.items() for said in beating(found[student], mine)]
    said = "; ".join(better) if better else ", ".join(judged)
    return f"{what}: {'FAILS' if better else 'holds'} ({said})"


def beating(rows: Rows, mine: Line) -> list[str]:
    """The peers that are both more accurate and faster; what was not timed here is not judged.

    Whether a peer is more accurate is read off the two shares alone; the paired interval beside it says whether these
    images can tell.
    """
    speed = times(mine) or 0.0
    others = [one for one in rows.values() if one["artefact"] != FP32 and not one.get("ours") and "failed" not in one]
    timed = [(one, said) for one in others if (said := times(one)) is not None]
    return [_beats(one, mine) for one, said in timed if one["top1"] > mine["top1"] and said > speed]


def _beats(peer: Line, mine: Line) -> str:
    lost = peer.get("drop_points" if mine["artefact"] == FP32 else "against_ours_points")
    if lost is None:
        return str(peer["artefact"])
    told = "" if lost[2] < 0 else ", which these images cannot tell from none"
    return f"{peer['artefact']}, {-lost[0]:.2f} [{-lost[2]:+.2f}, {-lost[1]:+.2f}] points above ours{told}"
