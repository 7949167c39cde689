"""What the tables of int8 beside the peers say of hand-made lines, and when each claim holds and when it fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import lines as committed
from benchmarks.quantize import __main__ as command
from benchmarks.quantize import distilled, students, table, tuned, whole
from tests.helpers.quantize_lines import FP32, QUICK, REFUSED, Line, by_name, line, rows


def test_the_newest_line_of_an_artefact_counts() -> None:
    dated = [line("ours", 0.3, measured="2026-12-01"), line("ours", 0.2, measured="2026-11-01")]
    undated = [line("peer", 0.4), line("peer", 0.5), line("peer", 0.6, student="other")]
    found = table.newest([*dated, *undated])
    assert {student: {name: one["top1"] for name, one in mine.items()} for student, mine in found.items()} == {
        "resnet18": {"ours": 0.3, "peer": 0.5},
        "other": {"peer": 0.6},
    }


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


@pytest.mark.parametrize(
    ("against", "said"),
    [
        ([-0.5, -1.8, 0.9], "peer, 0.50 [-0.90, +1.80] points above ours, which these images cannot tell from none"),
        ([-2.0, -3.0, -1.0], "peer, 2.00 [+1.00, +3.00] points above ours"),
    ],
)
def test_how_far_a_peer_is_above_ours_is_said_with_its_interval(against: list[float], said: str) -> None:
    mine = line("ours", 0.7, QUICK)
    found = by_name(FP32, mine, line("peer", 0.71, [3.1, 3.0, 3.2], against_ours_points=against))
    assert table.beating(found, mine) == [said]


def test_fp32_is_no_peer() -> None:
    mine = line("ours", 0.7, [0.9, 0.8, 1.0])
    assert table.beating(by_name(FP32, mine), mine) == []


def test_where_fp32_is_kept_a_peer_is_judged_by_fp32() -> None:
    found = by_name(FP32, line("ours", 0.7, QUICK, **REFUSED), line("peer", 0.72, [1.1, 1.0, 1.2]))
    assert table.claims({"resnet18": found})[2].endswith(
        "FAILS (resnet18: peer, -0.10 [-0.45, +0.25] points above ours, which these images cannot tell from none)"
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
    monkeypatch.setattr(tuned, "run", lambda name, *_, **__: asked.append(name))
    assert command.main(["qat", "--packs", "here"]) == 0
    assert asked == list(students.TRAINED) and students.LITE0 not in asked


def test_every_claim_is_of_a_student_that_there_is() -> None:
    assert {table.LITE0, table.RESNET18, table.MOBILENETV3} <= set(students.STUDENTS)
    assert len(set(students.STUDENTS)) == len(students.STUDENTS) and students.LITE0 not in students.TRAINED
