"""The tables that compare our int8 graphs with the peers', and the verdicts on the claims, made from lines alone.

Our lines are those with "ours": true. The line that we keep of a student in ONNX Runtime is the first of them that is
not simulated and whose facts do not have "kept": false; where there is none, it is fp32's. Our lines in OpenVINO are
the same graphs in another engine that the product chooses among.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from benchmarks.quantize import interleave

Line = Mapping[str, Any]
Rows = Mapping[str, Line]  # the lines of one student, by artifact
FP32, NOTHING = "fp32", "-"
MARGIN = 1.0  # points: less is equal accuracy, and a pair that is shown to lose more does not compete
EQUAL_SPEED = (0.95, 1.05)  # equally fast: the whole interval of the ratio lies within
ANY_LOSS = float("inf")
CLAIMS: Mapping[str, tuple[str, float, float]] = {  # student -> claim, most points lost, least speedup over fp32
    "efficientnet-lite0": ("within 0.3 points of fp32 and at least 1.8 times as fast", 0.3, 1.8),
    "resnet18": ("at least 2.5 times as fast as fp32", ANY_LOSS, 2.5),
    "mobilenetv2": ("within 1 point of fp32 and at least 1.9 times as fast", MARGIN, 1.9),
    "mobilenetv2-224": ("within 1 point of fp32 and at least 1.9 times as fast", MARGIN, 1.9),
    "mobilenetv3": ("what ours keeps is not slower than fp32", ANY_LOSS, 1.0),
}
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
    """The newest line of each student and artifact; of two without a date the later one."""
    by_student: dict[str, dict[str, Line]] = {}
    for line in sorted(lines, key=lambda line: line.get("measured", "")):
        by_student.setdefault(line["student"], {})[line["artefact"]] = line
    return by_student


def markdown(lines: Iterable[Line]) -> str:
    """A table a student, then the claims."""
    by_student = newest(lines)
    parts = [
        [f"**{student}**, {_images(rows)} test images", "", _table(rows), ""] for student, rows in by_student.items()
    ]
    rule = _entropy_rule(by_student)
    note = ["", rule] if rule else []
    return "\n".join([*chain.from_iterable(parts), *(f"- {claim}" for claim in claims(by_student)), *note])


def _entropy_rule(by_student: Mapping[str, Rows]) -> str:
    """What our own graphs by ModelOpt's rule keep of the labels of the same nets; "" without lines of both."""
    shares = [
        f"{student} {tried['entropy']['agreement']:.1%} (ModelOpt {rows['modelopt']['agreement']:.1%})"
        for student, rows in by_student.items()
        if "agreement" in rows.get("modelopt", {})
        and "entropy" in (tried := rows.get("ours", {}).get("facts", {}).get("tried", {}))
    ]
    if not shares:
        return ""
    return (
        "ModelOpt was run with entropy calibration alone. Agreement with fp32 by this rule, of our graph for the CPU "
        f"on images of the calibration, and of ModelOpt's on test images: {'; '.join(shares)}."
    )


def _images(rows: Rows) -> str:
    return " or ".join(str(count) for count in sorted({line["n_test"] for line in rows.values() if "n_test" in line}))


def _table(rows: Rows) -> str:
    order = sorted(rows.values(), key=lambda line: (line["artefact"] != FP32, not line.get("ours", False)))
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
    suffix = " (not kept: fp32 is)" if _refused(line) else ""
    floats = line.get("runtime", {}).get("inference_precision")  # OpenVINO computes in bf16 where the processor has it
    return "; ".join(filter(None, [f"{line['artefact']}{suffix}", versions, floats and f"floats in {floats}"]))


def _p50(line: Line) -> str:
    samples_ms = [sample_ms for process in line["samples_ms"] or [] for round_ in process for sample_ms in round_]
    return f"{np.median(samples_ms):.2f}" if samples_ms else NOTHING


def _speed(line: Line) -> str:
    if line["simulated"]:
        return "simulated"
    if line.get("untimed"):
        return f"failed: {line['untimed']}".replace("|", "/")
    return _interval(line["ratio_to_fp32"], ".2f") if line["ratio_to_fp32"] else NOTHING


def _interval(numbers: Sequence[float], format_spec: str) -> str:
    median, low, high = (format(number, format_spec) for number in numbers)
    return f"{median} [{low}, {high}]"


def _refused(line: Line) -> bool:
    return line.get("facts", {}).get("kept") is False


def kept_line(rows: Rows) -> Line | None:
    """The line that we keep of a student; None where none of our artifacts has a line."""
    own_lines = [
        line
        for line in rows.values()
        if line.get("ours") and "failed" not in line and not line["simulated"] and not _in_openvino(line)
    ]
    accepted = [line for line in own_lines if not _refused(line)]
    return accepted[0] if accepted else (rows.get(FP32) if own_lines else None)


def _in_openvino(line: Line) -> bool:
    return bool(line.get("ours")) and "openvino" in line.get("versions", {})


def speedup(line: Line) -> float | None:
    """Latency of fp32 over that of the line's artifact; None where it was not timed."""
    if line["artefact"] == FP32:
        return 1.0
    return line["ratio_to_fp32"][0] if line.get("ratio_to_fp32") else None


def claims(by_student: Mapping[str, Rows]) -> list[str]:
    """Each claim with its verdict from the lines."""
    return [
        *(_claim(by_student, student) for student in CLAIMS),
        _unbeaten(by_student),
        *(_ahead(student, rows) for student, rows in by_student.items() if any(map(_in_openvino, rows.values()))),
    ]


def _ahead(student: str, rows: Rows) -> str:
    """Our fastest pair of engine and graph beside the fastest of the peers, each shown to lose no more than MARGIN."""
    claim = f"{student}: our fastest pair is at least as fast as the fastest peer, and as accurate"
    own_line = fastest(line for line in rows.values() if line.get("ours") or line["artefact"] == FP32)
    peer = fastest(line for line in rows.values() if not line.get("ours") and line["artefact"] != FP32)
    if own_line is None or peer is None:
        return f"{claim}: not measured"
    ratio = interleave.ratio(peer["samples_ms"], own_line["samples_ms"])
    ahead = _against(peer, own_line)
    if ratio is None or ahead is None:
        return f"{claim}: not measured"
    fast = _pace(ratio)
    points = [-ahead[0], -ahead[2], -ahead[1]]
    equal = "equal" if max(map(abs, points)) <= MARGIN else "WORSE" if points[1] > MARGIN else "not shown to be worse"
    shown = fast in ("faster", "equally fast") and equal == "equal"
    verdict = "FAILS" if fast == "SLOWER" or equal == "WORSE" else "holds" if shown else "not shown"
    beside = f"{own_line['artefact']} is {_interval(ratio, '.2f')} times as fast as {peer['artefact']}"
    return (
        f"{claim}: {verdict}: {fast} ({beside}), "
        f"{equal} in accuracy ({peer['artefact']} is {_interval(points, '+.2f')} points ahead)"
    )


def _pace(ratio: Sequence[float]) -> str:
    """What the interval of a ratio of latencies shows, [ratio, low, high]."""
    _, low, high = ratio
    if low > 1:
        return "faster"
    if high < 1:
        return "SLOWER"
    return "equally fast" if EQUAL_SPEED[0] <= low and high <= EQUAL_SPEED[1] else "not shown to be slower"


def _against(peer: Line, own_line: Line) -> Sequence[float] | None:
    """Points that the peer loses against our line, [loss, low, high]; None if its line does not say."""
    if own_line["artefact"] == FP32:
        return peer.get("drop_points")
    points: Sequence[float] | None = peer.get("against", {}).get(own_line["artefact"])
    return points


def fastest(lines: Iterable[Line]) -> Line | None:
    """The fastest of the lines that were timed and are not shown to lose more than MARGIN; None if there is none."""
    timed = [
        line
        for line in lines
        if "failed" not in line and line.get("samples_ms") and line["drop_points"][1] <= MARGIN and not _refused(line)
    ]
    return max(timed, key=lambda line: speedup(line) or 0.0, default=None)


def _claim(by_student: Mapping[str, Rows], student: str) -> str:
    claim, most_lost, least_speed = CLAIMS[student]
    line = kept_line(by_student[student]) if student in by_student else None
    speed = None if line is None else speedup(line)
    if line is None or speed is None:
        return f"{student}: {claim}: not measured"
    holds = line["drop_points"][0] <= most_lost and speed >= least_speed
    measured = f"{line['artefact']}: {_interval(line['drop_points'], '+.2f')} points lost, {speed:.2f} times as fast"
    return f"{student}: {claim}: {'holds' if holds else 'FAILS'} ({measured})"


def _unbeaten(by_student: Mapping[str, Rows]) -> str:
    claim = "no peer is both more accurate and faster than ours"
    own_lines = {
        student: line for student, rows in by_student.items() if (line := kept_line(rows)) and speedup(line) is not None
    }
    if not own_lines:
        return f"{claim}: not measured"
    better = [
        f"{student}: {peer}" for student, line in own_lines.items() for peer in peers_ahead(by_student[student], line)
    ]
    details = "; ".join(better) if better else ", ".join(own_lines)
    return f"{claim}: {'FAILS' if better else 'holds'} ({details})"


def peers_ahead(rows: Rows, own_line: Line) -> list[str]:
    """The peers that are both more accurate and faster; an artifact that was not timed is not judged.

    A peer is more accurate if its top-1 is higher; the paired interval in the text says whether these images can tell.
    """
    speed = speedup(own_line) or 0.0
    peers = [
        line for line in rows.values() if line["artefact"] != FP32 and not line.get("ours") and "failed" not in line
    ]
    timed = [(line, ratio) for line in peers if (ratio := speedup(line)) is not None]
    return [_margin(line, own_line) for line, ratio in timed if line["top1"] > own_line["top1"] and ratio > speed]


def _margin(peer: Line, own_line: Line) -> str:
    lost = _against(peer, own_line) or peer.get("against_ours_points")  # older lines: against one of ours alone
    if lost is None:
        return str(peer["artefact"])
    caveat = "" if lost[2] < 0 else ", which these images cannot tell from none"
    return f"{peer['artefact']}, {-lost[0]:.2f} [{-lost[2]:+.2f}, {-lost[1]:+.2f}] points above ours{caveat}"
