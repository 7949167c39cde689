"""The int8 tables on distilled students, quantization-aware training, full exports and readings of one graph."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.quantize import alike, distilled, tuned, whole
from tests.helpers.quantize_lines import Line, rows


def cell(method: str, target: str, seed: int, drop: float, **fields: Any) -> Line:
    """One student's result line of `distilled`."""
    return {
        "target": target,
        "method": method,
        "seed": seed,
        "config": method,
        "top1_fp32": 0.5,
        "drop": drop,
        "differ": 2.0,
        "noise": 3.0,
        **fields,
    }


def lines_of(method: str, extra_drops: list[float], **fields: Any) -> list[Line]:
    """Lines of two targets, one seed per extra drop over the fine-tuned students, which lose half a point."""
    return [
        cell(method, target, seed, 0.5 + extra, **fields) for target in "xy" for seed, extra in enumerate(extra_drops)
    ]


def test_table_has_loss_of_distilled_students_and_difference() -> None:
    base, clear = lines_of("transfer", [0.0, 0.0]), lines_of("weighted", [1.0, 1.2], differ=2.5, top1_fp32=0.6)
    even = lines_of("selftrained", [-1.0, 1.2])
    text = distilled.markdown([*base, *clear, *even])
    cells = rows(text)
    assert cells["transfer"] == ["50.0", "0.50", "-", "2.00", "-", "3.00", "-"]
    assert cells["weighted"] == [
        "60.0",
        "1.60",
        "+1.10 [+1.00, +1.20]",
        "2.50",
        "+0.50 [+0.50, +0.50]",
        "3.00",
        "+0.00 [+0.00, +0.00]",
    ]
    assert cells["selftrained"][2] == "+0.10 [-1.00, +1.20]"
    assert text.splitlines()[-1] == (
        "weighted students lose more accuracy to int8 than fine-tuned ones; "
        "selftrained students lose not measurably more or less accuracy to int8 than fine-tuned ones."
    )
    assert {len(row) for row in cells.values()} == {1 + 2 * len(distilled.MEASURES)}


def test_method_that_loses_less_is_named() -> None:
    base, clear, even = (
        lines_of(name, extra_drops)
        for name, extra_drops in (("transfer", [0.0, 0.0]), ("weighted", [-0.5, -0.4]), ("selftrained", [-1.2, 1.0]))
    )
    text = distilled.markdown([*base, *clear, *even])
    assert "weighted students lose less accuracy" in text
    assert "selftrained students lose not measurably more or less accuracy" in text


@pytest.mark.parametrize("base", [[], lines_of("transfer", [0.0, 0.0])[1:2]])
def test_method_without_common_draw_is_not_measured(base: list[Line]) -> None:
    text = distilled.markdown([*base, cell("weighted", "x", 0, 1.5)])
    assert rows(text)["weighted"][1:3] == ["1.50", "-"] and "selftrained" not in rows(text)
    assert text.endswith("weighted: not measured; selftrained: not measured.")


def test_rerun_of_cell_replaces_it() -> None:
    rerun = cell("transfer", "x", 0, 4.0, top1_fp32=0.7)
    assert rows(distilled.markdown([cell("transfer", "x", 0, 2.0), rerun]))["transfer"][:2] == ["70.0", "4.00"]


@pytest.mark.parametrize("name", ["target", "method", "seed", "config"])
def test_key_of_cell_depends_on_its_settings_only(name: str) -> None:
    line = cell("transfer", "x", 0, 0.5)
    assert distilled.key(line) != distilled.key({**line, name: "another"})
    assert distilled.key(line) == distilled.key({**line, "drop": 9.0, "noise": 9.0})


def tuned_line(student: str, before: float, after: float, same: float = 1.0, **fields: Any) -> Line:
    """One student's result line of `qat`."""
    return {
        "student": student,
        "method": "mse",
        "steps": 120,
        "top1_fp32": 0.8,
        "agreement_with_fake": same,
        "ptq_drop": [before, before - 1, before + 1],
        "qat_drop": [after, after - 1, after + 1],
        **fields,
    }


def test_table_has_loss_before_and_after_training() -> None:
    lines = [tuned_line("a", 9.0, 9.0), tuned_line("a", 2.0, 0.5, 0.9975), tuned_line("a", 3.0, 1.0, method="minmax")]
    text = tuned.markdown(lines)
    body = [[cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines() if row[:3] == "| a"]
    assert body == [
        ["a", "mse", "80.0", "+2.00 [+1.00, +3.00]", "+0.50 [-0.50, +1.50]", "120", "99.75 %", "-"],
        ["a", "minmax", "80.0", "+3.00 [+2.00, +4.00]", "+1.00 [+0.00, +2.00]", "120", "100.00 %", "-"],
    ]
    assert text.splitlines()[-2:] == [f"- {claim}" for claim in tuned.claims(lines[1:])]


@pytest.mark.parametrize(
    ("lines", "verdict"),
    [
        ([tuned_line("a", 2.0, 1.0), tuned_line("b", 0.5, 0.5)], "holds"),
        ([tuned_line("a", 2.0, 1.01), tuned_line("b", 4.0, 0.1)], "FAILS (a)"),
        ([tuned_line("a", 1.5, 1.5), tuned_line("b", 3.0, 2.0)], "FAILS (a, b)"),
        ([tuned_line("a", 1.0, 1.0)], "not tested: none loses that much"),
    ],
)
def test_claim_that_half_of_int8_loss_is_recovered(lines: list[Line], verdict: str) -> None:
    recovered, same = tuned.claims(lines)
    assert recovered == f"where int8 loses more than 1 point, half is won back: {verdict}"
    assert same.endswith(": holds")


@pytest.mark.parametrize(("same", "verdict"), [(0.995, "holds"), (0.9949, "FAILS (a)")])
def test_claim_that_int8_graph_agrees_with_fake_quantized_student(same: float, verdict: str) -> None:
    claim = tuned.claims([tuned_line("a", 0.0, 0.0, same), tuned_line("b", 0.0, 0.0)])[1]
    assert claim == f"the int8 graph answers as the fake-quantized student on 99.5 % of images: {verdict}"


@pytest.mark.parametrize(("seconds", "verdict"), [(240.0, "holds"), (240.1, "FAILS")])
def test_claim_that_full_export_takes_four_minutes(seconds: float, verdict: str) -> None:
    export = {"student": "a student", "calibration_images": 500, "val": 40, "test": 60, "again_seconds": 3.0}
    text = whole.markdown(
        [
            {**export, "seconds": 9.0, "steps": {}},
            {**export, "seconds": seconds, "steps": {"export": 8.4, "quantize": 99.6}},
        ]
    )
    assert text == (
        "`edgedistill export --int8`, a student, 500 images to calibrate on, 40 of val, 60 to test: "
        "240 s (export 8, quantize 100); again, with nothing changed: 3 s. "
        f"At most four minutes: {verdict}."
    )


def alike_line(student: str, same: float) -> Line:
    """One student's result line of `alike`."""
    return {
        "student": student,
        "method": "minmax",
        "n_test": 800,
        "top1": 0.5,
        "fake_int8": same,
        "fake_literal": 1.0,
        "int8_literal": same,
    }


def test_table_compares_readings_of_one_graph_and_names_close_ones() -> None:
    text = alike.markdown([alike_line("a", 0.9), alike_line("b", 0.995), alike_line("c", 0.9949), alike_line("a", 1.0)])
    assert rows(text)["a"] == ["50.0", "800", "100.00 %", "100.00 %", "100.00 %"]
    assert text.endswith("- 99.5 % or more of the int8 graph's labels are the fake-quantized student's: a, b")
    assert alike.markdown([alike_line("a", 0.9)]).endswith("student's: nowhere")
    assert alike.markdown([]) == "Not measured yet."
