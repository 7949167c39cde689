"""What the tables of int8's other questions say: distillation, training on, a whole export, and what is kept."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.quantize import alike, distilled, tuned, whole
from tests.helpers.quantize_lines import Line, rows


def cell(method: str, target: str, seed: int, drop: float, **other: Any) -> Line:
    """One student's line of `distilled`."""
    return {
        "target": target,
        "method": method,
        "seed": seed,
        "config": method,
        "top1_fp32": 0.5,
        "drop": drop,
        "differ": 2.0,
        "noise": 3.0,
        **other,
    }


def drawn(method: str, more: list[float], **other: Any) -> list[Line]:
    """Two targets with a seed each for every difference from the fine-tuned ones, which lose half a point."""
    return [cell(method, target, seed, 0.5 + one, **other) for target in "xy" for seed, one in enumerate(more)]


def test_what_distillation_costs_more_stands_beside_what_it_costs() -> None:
    base, clear = drawn("transfer", [0.0, 0.0]), drawn("weighted", [1.0, 1.2], differ=2.5, top1_fp32=0.6)
    even = drawn("selftrained", [-1.0, 1.2])
    text = distilled.markdown([*base, *clear, *even])
    found = rows(text)
    assert found["transfer"] == ["50.0", "0.50", "-", "2.00", "-", "3.00", "-"]
    assert found["weighted"] == [
        "60.0",
        "1.60",
        "+1.10 [+1.00, +1.20]",
        "2.50",
        "+0.50 [+0.50, +0.50]",
        "3.00",
        "+0.00 [+0.00, +0.00]",
    ]
    assert found["selftrained"][2] == "+0.10 [-1.00, +1.20]"
    assert text.splitlines()[-1] == (
        "weighted students lose more accuracy to int8 than fine-tuned ones; "
        "selftrained students lose not measurably more or less accuracy to int8 than fine-tuned ones."
    )
    assert {len(one) for one in found.values()} == {1 + 2 * len(distilled.MEASURES)}


def test_a_method_that_loses_less_is_said_to() -> None:
    base, clear, even = (
        drawn(name, more)
        for name, more in (("transfer", [0.0, 0.0]), ("weighted", [-0.5, -0.4]), ("selftrained", [-1.2, 1.0]))
    )
    text = distilled.markdown([*base, *clear, *even])
    assert "weighted students lose less accuracy" in text
    assert "selftrained students lose not measurably more or less accuracy" in text


@pytest.mark.parametrize("base", [[], drawn("transfer", [0.0, 0.0])[1:2]])
def test_without_a_common_draw_nothing_is_said_of_a_method(base: list[Line]) -> None:
    text = distilled.markdown([*base, cell("weighted", "x", 0, 1.5)])
    assert rows(text)["weighted"][1:3] == ["1.50", "-"] and "selftrained" not in rows(text)
    assert text.endswith("weighted: not measured; selftrained: not measured.")


def test_a_cell_run_again_counts_once() -> None:
    again = cell("transfer", "x", 0, 4.0, top1_fp32=0.7)
    assert rows(distilled.markdown([cell("transfer", "x", 0, 2.0), again]))["transfer"][:2] == ["70.0", "4.00"]


@pytest.mark.parametrize("name", ["target", "method", "seed", "config"])
def test_a_cell_is_another_where_any_of_its_settings_is(name: str) -> None:
    one = cell("transfer", "x", 0, 0.5)
    assert distilled.key(one) != distilled.key({**one, name: "another"})
    assert distilled.key(one) == distilled.key({**one, "drop": 9.0, "noise": 9.0})


def trained(student: str, before: float, after: float, same: float = 1.0, **other: Any) -> Line:
    """One student's line of `qat`."""
    return {
        "student": student,
        "method": "mse",
        "steps": 120,
        "top1_fp32": 0.8,
        "agreement_with_fake": same,
        "ptq_drop": [before, before - 1, before + 1],
        "qat_drop": [after, after - 1, after + 1],
        **other,
    }


def test_what_training_on_wins_back_stands_in_the_table() -> None:
    lines = [trained("a", 9.0, 9.0), trained("a", 2.0, 0.5, 0.9975), trained("a", 3.0, 1.0, method="minmax")]
    text = tuned.markdown(lines)
    body = [[cell.strip() for cell in one.strip("|").split("|")] for one in text.splitlines() if one[:3] == "| a"]
    assert body == [
        ["a", "mse", "80.0", "+2.00 [+1.00, +3.00]", "+0.50 [-0.50, +1.50]", "120", "99.75 %", "-"],
        ["a", "minmax", "80.0", "+3.00 [+2.00, +4.00]", "+1.00 [+0.00, +2.00]", "120", "100.00 %", "-"],
    ]
    assert text.splitlines()[-2:] == [f"- {one}" for one in tuned.claims(lines[1:])]


@pytest.mark.parametrize(
    ("lines", "verdict"),
    [
        ([trained("a", 2.0, 1.0), trained("b", 0.5, 0.5)], "holds"),
        ([trained("a", 2.0, 1.01), trained("b", 4.0, 0.1)], "FAILS (a)"),
        ([trained("a", 1.5, 1.5), trained("b", 3.0, 2.0)], "FAILS (a, b)"),
        ([trained("a", 1.0, 1.0)], "not tested: none loses that much"),
    ],
)
def test_half_of_what_int8_loses_is_won_back(lines: list[Line], verdict: str) -> None:
    won, same = tuned.claims(lines)
    assert won == f"where int8 loses more than 1 point, half is won back: {verdict}"
    assert same.endswith(": holds")


@pytest.mark.parametrize(("same", "verdict"), [(0.995, "holds"), (0.9949, "FAILS (a)")])
def test_the_int8_graph_answers_as_the_fake_quantized_student(same: float, verdict: str) -> None:
    found = tuned.claims([trained("a", 0.0, 0.0, same), trained("b", 0.0, 0.0)])[1]
    assert found == f"the int8 graph answers as the fake-quantized student on 99.5 % of images: {verdict}"


@pytest.mark.parametrize(("seconds", "verdict"), [(240.0, "holds"), (240.1, "FAILS")])
def test_a_whole_export_has_four_minutes(seconds: float, verdict: str) -> None:
    said = {"student": "a student", "calibration_images": 500, "val": 40, "test": 60, "again_seconds": 3.0}
    text = whole.markdown(
        [
            {**said, "seconds": 9.0, "steps": {}},
            {**said, "seconds": seconds, "steps": {"export": 8.4, "quantize": 99.6}},
        ]
    )
    assert text == (
        "`edgedistill export --int8`, a student, 500 images to calibrate on, 40 of val, 60 to test: "
        "240 s (export 8, quantize 100); again, with nothing changed: 3 s. "
        f"At most four minutes: {verdict}."
    )


def alike_line(student: str, same: float) -> Line:
    """As `alike` writes it."""
    return {
        "student": student,
        "method": "minmax",
        "n_test": 800,
        "top1": 0.5,
        "fake_int8": same,
        "fake_literal": 1.0,
        "int8_literal": same,
    }


def test_readings_of_one_graph_stand_side_by_side_and_the_close_are_named() -> None:
    text = alike.markdown([alike_line("a", 0.9), alike_line("b", 0.995), alike_line("c", 0.9949), alike_line("a", 1.0)])
    assert rows(text)["a"] == ["50.0", "800", "100.00 %", "100.00 %", "100.00 %"]
    assert text.endswith("- 99.5 % or more of the int8 graph's labels are the fake-quantized student's: a, b")
    assert alike.markdown([alike_line("a", 0.9)]).endswith("student's: nowhere")
    assert alike.markdown([]) == "Not measured yet."
