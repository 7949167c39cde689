"""What the tables of int8 beside the peers say of hand-made lines, and when each claim holds and when it fails."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))  # benchmarks/ is not installed

from benchmarks import lines as committed
from benchmarks.quantize import __main__ as command
from benchmarks.quantize import distilled, students, table, tuned, whole

Line = dict[str, Any]
QUICK = [3.0, 2.9, 3.1]


def line(artefact: str, top1: float = 0.7, ratio: list[float] | None = None, **other: Any) -> Line:
    """A model's line as `run` writes it."""
    return {"student": "resnet18", "artefact": artefact, "ours": artefact.startswith("ours"), "n_test": 100,
            "top1": top1, "drop_points": [0.1, -0.25, 0.45], "agreement": 0.99, "simulated": False, "size_mb": 2.5,
            "versions": {}, "runtime": {}, "facts": {}, "samples_ms": [[[1.0, 3.0], [2.0, 2.0]], [[9.0, 1.0]]],
            "ratio_to_fp32": ratio, "untimed": None, **other}  # fmt: skip


FP32 = line("fp32", 0.71, drop_points=[0.0, 0.0, 0.0])
REFUSED = {"facts": {"kept": False}}


def by_name(*lines: Line) -> dict[str, Line]:
    return {one["artefact"]: one for one in lines}


def rows(text: str) -> dict[str, list[str]]:
    """First cell -> the other cells of a Markdown table."""
    cells = [[cell.strip() for cell in one.strip("|").split("|")] for one in text.splitlines() if one[:1] == "|"]
    return {first: rest for first, *rest in cells}


def test_the_newest_line_of_an_artefact_counts() -> None:
    dated = [line("ours", 0.3, measured="2026-12-01"), line("ours", 0.2, measured="2026-11-01")]
    undated = [line("peer", 0.4), line("peer", 0.5), line("peer", 0.6, student="other")]
    found = table.newest([*dated, *undated])
    assert {student: {name: one["top1"] for name, one in mine.items()} for student, mine in found.items()} == {
        "resnet18": {"ours": 0.3, "peer": 0.5}, "other": {"peer": 0.6},
    }  # fmt: skip


def test_a_table_begins_with_fp32_and_ours_and_has_a_cell_for_every_head() -> None:
    peer = line("peer", 0.5, [0.9, 0.8, 1.0], versions={"one": "1.0", "two": "2.0", "three": "3.0"})
    text = table.markdown([peer, line("ours", 0.7, QUICK), FP32])
    assert text.startswith("**resnet18**, 100 test images\n\n| artefact |")
    found = rows(text)
    assert list(found) == ["artefact", "---", "fp32", "ours", "peer; one 1.0, two 2.0"]
    assert all(len(rest) == len(table.HEADS) - 1 for rest in found.values())
    assert found["fp32"] == ["71.0%", "-", "99.0%", "2.00", "-", "2.5"]
    assert found["ours"] == ["70.0%", "+0.10 [-0.25, +0.45]", "99.0%", "2.00", "3.00 [2.90, 3.10]", "2.5"]
    assert found["peer; one 1.0, two 2.0"][4] == "0.90 [0.80, 1.00]"


def test_who_failed_was_not_timed_or_is_simulated_says_so() -> None:
    crashed = {"student": "resnet18", "artefact": "crashed", "failed": "exit status 1: a | b"}
    slow = line("slow", samples_ms=None, untimed="died | early")
    elsewhere = line("ours-tensorrt", samples_ms=None, simulated=True)
    found = rows(table.markdown([crashed, slow, elsewhere, FP32]))
    assert found["crashed"] == ["failed: exit status 1: a / b", *["-"] * 5]
    assert found["slow"][3:5] == ["-", "failed: died / early"]
    assert found["ours-tensorrt"][3:5] == ["-", "simulated"]


def test_a_name_says_what_was_not_kept_and_in_what_floats_are_computed() -> None:
    floats = line("nncf", versions={"openvino": "1"}, runtime={"openvino": "1", "inference_precision": "bf16"})
    found = rows(table.markdown([line("ours", **REFUSED), floats]))
    assert list(found)[2:] == ["ours (not kept: fp32 is)", "nncf; openvino 1; floats in bf16"]


def test_tests_of_different_sizes_are_both_named() -> None:
    assert table.markdown([FP32, line("ours", n_test=40)]).startswith("**resnet18**, 40 or 100 test images")


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        ([FP32, line("peer", 0.9, QUICK)], None),
        ([FP32, line("ours-tensorrt", simulated=True)], None),
        ([FP32, {"artefact": "ours", "ours": True, "failed": "why"}], None),
        ([FP32, line("ours-tensorrt", simulated=True), line("ours")], "ours"),
        ([FP32, line("ours"), line("ours-too")], "ours"),
        ([FP32, line("ours", **REFUSED), line("ours-too")], "ours-too"),
        ([FP32, line("ours", facts={"kept": True})], "ours"),
        ([FP32, line("ours", **REFUSED)], "fp32"),
        ([line("ours", **REFUSED)], None),
    ],
)
def test_what_ours_keeps(lines: list[Line], name: str | None) -> None:
    found = table.kept(by_name(*lines))
    assert (found and found["artefact"]) == name


CLAIMED = {
    "efficientnet-lite0": "within 0.3 points of fp32 and at least 1.8 times as fast",
    "resnet18": "at least 2.5 times as fast as fp32",
    "mobilenetv3": "what ours keeps is not slower than fp32",
}


@pytest.mark.parametrize(
    ("student", "drop", "speed", "verdict"),
    [
        ("efficientnet-lite0", 0.3, 1.8, "holds"),
        ("efficientnet-lite0", 0.31, 1.8, "FAILS"),
        ("efficientnet-lite0", -0.2, 1.79, "FAILS"),
        ("resnet18", 5.0, 2.5, "holds"),
        ("resnet18", 0.0, 2.49, "FAILS"),
        ("mobilenetv3", 5.0, 1.0, "holds"),
        ("mobilenetv3", 0.0, 0.99, "FAILS"),
    ],
)
def test_a_claim_of_a_student_is_judged_at_its_bound(student: str, drop: float, speed: float, verdict: str) -> None:
    mine = line("ours", 0.7, [speed, 0.0, 9.0], drop_points=[drop, -1.0, 6.0])
    said = table.claims({student: by_name(FP32, mine)})
    (found,) = [one for one in said if one.startswith(f"{student}: ")]
    assert found == (
        f"{student}: {CLAIMED[student]}: {verdict} "
        f"(ours: {drop:+.2f} [-1.00, +6.00] points lost, {speed:.2f} times as fast)"
    )
    assert sum("not measured" in one for one in said) == 2  # of the two other students


@pytest.mark.parametrize(
    ("student", "verdict"), [("efficientnet-lite0", "FAILS"), ("resnet18", "FAILS"), ("mobilenetv3", "holds")]
)
def test_where_fp32_is_kept_the_claims_are_of_fp32(student: str, verdict: str) -> None:
    said = table.claims({student: by_name(FP32, line("ours", 0.7, QUICK, **REFUSED))})
    (found,) = [one for one in said if one.startswith(f"{student}: ")]
    assert found.endswith(f": {verdict} (fp32: +0.00 [+0.00, +0.00] points lost, 1.00 times as fast)")


@pytest.mark.parametrize("mine", [[], [line("ours", untimed="died")], [line("ours-tensorrt", simulated=True)]])
def test_without_a_timing_of_ours_nothing_is_claimed(mine: list[Line]) -> None:
    found = dict.fromkeys(CLAIMED, by_name(FP32, *mine))
    assert [one.rsplit(": ", 1)[1] for one in table.claims(found)] == ["not measured"] * 4
    assert table.claims({}) == table.claims(found)


@pytest.mark.parametrize(
    ("peer", "beats"),
    [
        (line("peer", 0.71, [3.1, 3.0, 3.2]), True),
        (line("peer", 0.71, QUICK), False),
        (line("peer", 0.7, [3.1, 3.0, 3.2]), False),
        (line("peer", 0.9, [2.9, 2.8, 3.0]), False),
        (line("peer", 0.5, [9.0, 8.0, 9.9]), False),
        (line("peer", 0.9, None, untimed="died"), False),
        (line("peer", 0.9, None, simulated=True), False),
        ({"student": "resnet18", "artefact": "peer", "failed": "why"}, False),
        (line("ours-too", 0.9, [9.0, 8.0, 9.9]), False),
    ],
)
def test_a_peer_beats_ours_only_where_it_is_both_better_and_faster(peer: Line, beats: bool) -> None:
    mine = line("ours", 0.7, QUICK)
    found = by_name(FP32, mine, peer)
    assert table.beating(found, mine) == ["peer"] * beats
    said = f"FAILS (resnet18: {peer['artefact']})" if beats else "holds (resnet18, other)"
    unbeaten = table.claims({"resnet18": found, "other": by_name(FP32, mine)})[2]
    assert unbeaten == f"no peer is both more accurate and faster than ours: {said}"


def test_fp32_is_no_peer() -> None:
    mine = line("ours", 0.7, [0.9, 0.8, 1.0])
    assert table.beating(by_name(FP32, mine), mine) == []


def test_where_fp32_is_kept_a_peer_is_judged_by_fp32() -> None:
    found = by_name(FP32, line("ours", 0.7, QUICK, **REFUSED), line("peer", 0.72, [1.1, 1.0, 1.2]))
    assert table.claims({"resnet18": found})[2].endswith("FAILS (resnet18: peer)")


def cell(method: str, target: str, seed: int, drop: float, **other: Any) -> Line:
    """One student's line of `distilled`."""
    return {"target": target, "method": method, "seed": seed, "config": method, "top1_fp32": 0.5, "drop": drop,
            "differ": 2.0, "noise": 3.0, **other}  # fmt: skip


def drawn(method: str, more: list[float], **other: Any) -> list[Line]:
    """Two targets with a seed each for every difference from the fine-tuned ones, which lose half a point."""
    return [cell(method, target, seed, 0.5 + one, **other) for target in "xy" for seed, one in enumerate(more)]


def test_what_distillation_costs_more_stands_beside_what_it_costs() -> None:
    base, clear = drawn("transfer", [0.0, 0.0]), drawn("weighted", [1.0, 1.2], differ=2.5, top1_fp32=0.6)
    even = drawn("selftrained", [-1.0, 1.2])
    text = distilled.markdown([*base, *clear, *even])
    found = rows(text)
    assert found["transfer"] == ["50.0", "0.50", "-", "2.00", "-", "3.00", "-"]
    assert found["weighted"] == ["60.0", "1.60", "+1.10 [+1.00, +1.20]", "2.50", "+0.50 [+0.50, +0.50]",
                                 "3.00", "+0.00 [+0.00, +0.00]"]  # fmt: skip
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
    return {"student": student, "method": "mse", "steps": 120, "top1_fp32": 0.8, "agreement_with_fake": same,
            "ptq_drop": [before, before - 1, before + 1], "qat_drop": [after, after - 1, after + 1],
            **other}  # fmt: skip


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
    text = whole.markdown([{**said, "seconds": 9.0, "steps": {}},
                           {**said, "seconds": seconds, "steps": {"export": 8.4, "quantize": 99.6}}])  # fmt: skip
    assert text == (
        "`edgedistill export --int8`, a student, 500 images to calibrate on, 40 of val, 60 to test: "
        "240 s (export 8, quantize 100); again, with nothing changed: 3 s. "
        f"At most four minutes: {verdict}."
    )


@pytest.mark.parametrize(
    ("ratio", "holds", "kept"),
    [
        ([1.2, 1.06, 1.3], True, True),
        ([1.2, 1.05, 1.3], True, False),  # the whole interval must lie above
        ([9.0, 8.0, 9.9], False, False),
        ([1.2, 1.06, 1.3], None, True),
        (None, True, True),
        (None, None, True),
        (None, False, False),
    ],
)
def test_both_guards_decide_what_is_kept(ratio: list[float] | None, holds: bool | None, kept: bool) -> None:
    mine = line("ours", 0.7, ratio, facts={"holds": holds, "method": "mse"})
    decided = command._decided(mine)
    assert decided == {**mine, "facts": {"holds": holds, "method": "mse", "kept": kept}}
    assert table.kept(by_name(FP32, decided)) == (decided if kept else FP32)


def test_a_fast_run_writes_no_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(committed, "RESULTS", tmp_path)
    monkeypatch.setattr(
        command, "compared", lambda student, _: [{"student": student, "artefact": "peer", "failed": "why"}]
    )
    assert command.main(["run", "--packs", "here", "--fast"]) == 0 and list(tmp_path.iterdir()) == []
    assert command.main(["run", "--packs", "here"]) == 0
    assert [one["student"] for one in committed.read("quantize")] == list(students.STUDENTS)


def test_the_table_is_of_the_committed_lines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(committed, "RESULTS", tmp_path)
    for one in (FP32, mine := line("ours", 0.7, QUICK)):
        committed.append("quantize", one)
    assert command.main(["table"]) == 0
    assert capsys.readouterr().out == table.markdown([FP32, mine]) + "\n"


def test_lines_of_other_questions_are_in_no_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(committed, "RESULTS", tmp_path)
    for kind in (distilled.KIND, tuned.KIND, whole.KIND):
        committed.append(kind, {"kind": kind})
        assert [one["kind"] for one in committed.read(kind)] == [kind]
    assert list(committed.read("quantize")) == []


def test_students_that_were_not_trained_here_are_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(tuned, "run", lambda name, *_: asked.append(name))
    assert command.main(["qat", "--packs", "here"]) == 0
    assert asked == list(students.TRAINED) and students.LITE0 not in asked


def test_every_claim_is_of_a_student_that_there_is() -> None:
    assert {table.LITE0, table.RESNET18, table.MOBILENETV3} <= set(students.STUDENTS)
    assert len(set(students.STUDENTS)) == len(students.STUDENTS) and students.LITE0 not in students.TRAINED
