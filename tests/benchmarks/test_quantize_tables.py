"""The tables of the int8 comparison with the peers, and the bounds of each claim, on hand-made lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import lines as committed
from benchmarks.quantize import __main__ as command
from benchmarks.quantize import distilled, interleave, students, table, trained, whole
from tests.helpers.quantize_lines import FP32, QUICK, REFUSED, Line, by_name, line, rows


def test_newest_line_of_each_artifact_counts() -> None:
    dated = [line("ours", 0.3, measured="2026-12-01"), line("ours", 0.2, measured="2026-11-01")]
    undated = [line("peer", 0.4), line("peer", 0.5), line("peer", 0.6, student="other")]
    newest = table.newest([*dated, *undated])
    assert {
        student: {name: row["top1"] for name, row in by_artifact.items()} for student, by_artifact in newest.items()
    } == {
        "resnet18": {"ours": 0.3, "peer": 0.5},
        "other": {"peer": 0.6},
    }


def test_table_begins_with_fp32_and_ours_and_fills_every_column() -> None:
    peer = line("peer", 0.5, [0.9, 0.8, 1.0], versions={"one": "1.0", "two": "2.0", "three": "3.0"})
    text = table.markdown([peer, line("ours", 0.7, QUICK), FP32])
    assert text.startswith("**resnet18**, 100 test images\n\n| artefact |")
    cells = rows(text)
    assert list(cells) == ["artefact", "---", "fp32", "ours", "peer; one 1.0, two 2.0"]
    assert all(len(rest) == len(table.HEADS) - 1 for rest in cells.values())
    assert cells["fp32"] == ["71.0%", "-", "99.0%", "2.00", "-", "2.5"]
    assert cells["ours"] == ["70.0%", "+0.10 [-0.25, +0.45]", "99.0%", "2.00", "3.00 [2.90, 3.10]", "2.5"]
    assert cells["peer; one 1.0, two 2.0"][4] == "0.90 [0.80, 1.00]"


def test_failed_untimed_and_simulated_models_are_marked() -> None:
    crashed = {"student": "resnet18", "artefact": "crashed", "failed": "exit status 1: a | b"}
    slow = line("slow", samples_ms=None, untimed="died | early")
    elsewhere = line("ours-tensorrt", samples_ms=None, simulated=True)
    cells = rows(table.markdown([crashed, slow, elsewhere, FP32]))
    assert cells["crashed"] == ["failed: exit status 1: a / b", *["-"] * 5]
    assert cells["slow"][3:5] == ["-", "failed: died / early"]
    assert cells["ours-tensorrt"][3:5] == ["-", "simulated"]


def test_name_marks_refused_graph_and_float_precision() -> None:
    floats = line("nncf", versions={"openvino": "1"}, runtime={"openvino": "1", "inference_precision": "bf16"})
    cells = rows(table.markdown([line("ours", **REFUSED), floats]))
    assert list(cells)[2:] == ["ours (not kept: fp32 is)", "nncf; openvino 1; floats in bf16"]


def test_table_names_both_sizes_of_test_set() -> None:
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
def test_line_that_ours_keeps(lines: list[Line], name: str | None) -> None:
    kept = table.kept_line(by_name(*lines))
    assert (kept and kept["artefact"]) == name


CLAIMED = {
    "efficientnet-lite0": "within 0.3 points of fp32 and at least 1.8 times as fast",
    "resnet18": "at least 2.5 times as fast as fp32",
    "mobilenetv2": "within 1 point of fp32 and at least 1.9 times as fast",
    "mobilenetv2-224": "within 1 point of fp32 and at least 1.9 times as fast",
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
        ("mobilenetv2", 1.0, 1.9, "holds"),
        ("mobilenetv2-224", 1.01, 1.9, "FAILS"),
        ("mobilenetv2-224", 0.0, 1.89, "FAILS"),
        ("mobilenetv3", 5.0, 1.0, "holds"),
        ("mobilenetv3", 0.0, 0.99, "FAILS"),
    ],
)
def test_claim_of_student_is_judged_at_its_bound(student: str, drop: float, speed: float, verdict: str) -> None:
    own = line("ours", 0.7, [speed, 0.0, 9.0], drop_points=[drop, -1.0, 6.0])
    claims = table.claims({student: by_name(FP32, own)})
    (claim,) = [text for text in claims if text.startswith(f"{student}: ")]
    assert claim == (
        f"{student}: {CLAIMED[student]}: {verdict} "
        f"(ours: {drop:+.2f} [-1.00, +6.00] points lost, {speed:.2f} times as fast)"
    )
    assert sum("not measured" in text for text in claims) == 4  # of the four other students


@pytest.mark.parametrize(
    ("student", "verdict"), [("efficientnet-lite0", "FAILS"), ("resnet18", "FAILS"), ("mobilenetv3", "holds")]
)
def test_claims_are_of_fp32_if_fp32_is_kept(student: str, verdict: str) -> None:
    claims = table.claims({student: by_name(FP32, line("ours", 0.7, QUICK, **REFUSED))})
    (claim,) = [text for text in claims if text.startswith(f"{student}: ")]
    assert claim.endswith(f": {verdict} (fp32: +0.00 [+0.00, +0.00] points lost, 1.00 times as fast)")


@pytest.mark.parametrize("own", [[], [line("ours", untimed="died")], [line("ours-tensorrt", simulated=True)]])
def test_claims_are_not_measured_without_timing_of_ours(own: list[Line]) -> None:
    lines = dict.fromkeys(CLAIMED, by_name(FP32, *own))
    assert [text.rsplit(": ", 1)[1] for text in table.claims(lines)] == ["not measured"] * 6
    assert table.claims({}) == table.claims(lines)


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
def test_peer_is_ahead_only_if_more_accurate_and_faster(peer: Line, beats: bool) -> None:
    own = line("ours", 0.7, QUICK)
    lines = by_name(FP32, own, peer)
    assert table.peers_ahead(lines, own) == ["peer"] * beats
    verdict = f"FAILS (resnet18: {peer['artefact']})" if beats else "holds (resnet18, other)"
    unbeaten = table.claims({"resnet18": lines, "other": by_name(FP32, own)})[5]
    assert unbeaten == f"no peer is both more accurate and faster than ours: {verdict}"


@pytest.mark.parametrize(
    ("against", "sentence"),
    [
        ([-0.5, -1.8, 0.9], "peer, 0.50 [-0.90, +1.80] points above ours, which these images cannot tell from none"),
        ([-2.0, -3.0, -1.0], "peer, 2.00 [+1.00, +3.00] points above ours"),
    ],
)
def test_lead_of_peer_is_given_with_interval(against: list[float], sentence: str) -> None:
    own = line("ours", 0.7, QUICK)
    lines = by_name(FP32, own, line("peer", 0.71, [3.1, 3.0, 3.2], against_ours_points=against))
    assert table.peers_ahead(lines, own) == [sentence]


def timed(artefact: str, ms: float, **fields: Any) -> Line:
    """A line whose every round took about so many milliseconds."""
    samples_ms = [[[ms * (1 + 0.01 * round_)] * 3 for round_ in range(5)] for _ in range(3)]
    return line(artefact, 0.7, [10 / ms, 9.9 / ms, 10.1 / ms], samples_ms=samples_ms, **fields)


@pytest.mark.parametrize(
    ("peer", "verdict"),
    [
        (timed("peer", 4.0, against={"ours-openvino": [0.1, -0.5, 0.7]}), "holds: faster (ours-openvino is 2.00"),
        (timed("peer", 1.0, against={"ours-openvino": [0.1, -0.5, 0.7]}), "FAILS: SLOWER (ours-openvino is 0.50"),
        (timed("peer", 2.0, against={"ours-openvino": [0.1, -0.5, 0.7]}), "holds: equally fast (ours-openvino is 1.00"),
        (timed("peer", 1.0, drop_points=[3.0, 1.1, 5.0]), "not measured"),  # shown to lose more: does not compete
        (timed("peer", 4.0), "not measured"),
    ],
)
def test_fastest_pair_is_compared_with_fastest_peer(peer: Line, verdict: str) -> None:
    own = [timed("ours", 3.0), timed("ours-openvino", 2.0, versions={"openvino": "1"})]
    fastest_refused = timed("ours-openvino-reduced", 1.0, versions={"openvino": "1"}, drop_points=[4.0, 2.0, 6.0])
    sentence = table.claims({"resnet18": by_name(FP32, *own, fastest_refused, peer)})[-1]
    assert sentence.partition("and as accurate: ")[2].startswith(verdict)
    assert "our fastest pair" not in "".join(table.claims({"resnet18": by_name(FP32, own[0], peer)}))


@pytest.mark.parametrize(
    ("against", "verdict", "accuracy"),
    [
        ([0.1, -0.5, 0.7], "holds", "equal in accuracy (peer is -0.10 [-0.70, +0.50] points ahead)"),
        (
            [-0.5, -1.8, 0.9],
            "not shown",
            "not shown to be worse in accuracy (peer is +0.50 [-0.90, +1.80] points ahead)",
        ),
        ([-2.0, -3.0, -1.1], "FAILS", "WORSE in accuracy (peer is +2.00 [+1.10, +3.00] points ahead)"),
    ],
)
def test_accuracy_of_fastest_pair_is_judged_by_margin(against: list[float], verdict: str, accuracy: str) -> None:
    own = timed("ours-openvino", 2.0, versions={"openvino": "1"})
    lines = by_name(FP32, own, timed("peer", 4.0, against={"ours-openvino": against}))
    claim = table.claims({"resnet18": lines})[-1]
    assert f"as accurate: {verdict}: faster (" in claim and claim.endswith(accuracy)


@pytest.mark.parametrize(
    ("ratio", "pace", "verdict"),
    [
        ([0.95, 0.68, 1.11], "not shown to be slower", "not shown"),
        ([1.0, 0.94, 1.04], "not shown to be slower", "not shown"),
        ([1.0, 0.96, 1.06], "not shown to be slower", "not shown"),
        ([1.0, 0.95, 1.05], "equally fast", "holds"),
        ([0.9, 0.8, 1.0], "not shown to be slower", "not shown"),
        ([0.9, 0.8, 0.99], "SLOWER", "FAILS"),
        ([1.1, 1.01, 1.2], "faster", "holds"),
    ],
)
def test_equally_fast_needs_the_whole_interval(
    monkeypatch: pytest.MonkeyPatch, ratio: list[float], pace: str, verdict: str
) -> None:
    monkeypatch.setattr(interleave, "ratio", lambda *_: ratio)
    own = timed("ours-openvino", 2.0, versions={"openvino": "1"})
    lines = by_name(FP32, own, timed("peer", 4.0, against={"ours-openvino": [0.1, -0.5, 0.7]}))
    assert f"as accurate: {verdict}: {pace} (" in table.claims({"resnet18": lines})[-1]


def test_graphs_of_ours_stand_beside_modelopt_by_its_rule() -> None:
    own = line("ours", 0.7, QUICK, facts={"tried": {"entropy": {"agreement": 0.1}, "mse": {"agreement": 0.9}}})
    peer = line("modelopt", 0.1, agreement=0.12, simulated=True)
    assert table.markdown([FP32, own, peer]).endswith("test images: resnet18 10.0% (ModelOpt 12.0%).")
    for lines in ([FP32, own], [FP32, line("ours"), peer], [FP32, own, {**peer, "student": "other"}]):
        assert "ModelOpt was run" not in table.markdown(lines)


def test_fp32_is_not_a_peer() -> None:
    own = line("ours", 0.7, [0.9, 0.8, 1.0])
    assert table.peers_ahead(by_name(FP32, own), own) == []


def test_peer_is_compared_with_fp32_if_fp32_is_kept() -> None:
    lines = by_name(FP32, line("ours", 0.7, QUICK, **REFUSED), line("peer", 0.72, [1.1, 1.0, 1.2]))
    assert table.claims({"resnet18": lines})[5].endswith(
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
def test_graph_is_kept_only_if_both_guards_agree(ratio: list[float] | None, holds: bool | None, kept: bool) -> None:
    own = line("ours", 0.7, ratio, facts={"holds": holds, "method": "mse"})
    decided = command.with_decision(own)
    assert decided == {**own, "facts": {"holds": holds, "method": "mse", "kept": kept}}
    assert table.kept_line(by_name(FP32, decided)) == (decided if kept else FP32)


def test_fast_run_writes_no_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(committed, "RESULTS", tmp_path)
    monkeypatch.setattr(
        command, "measure_student", lambda student, _: [{"student": student, "artefact": "peer", "failed": "why"}]
    )
    assert command.main(["run", "--packs", "here", "--fast"]) == 0 and list(tmp_path.iterdir()) == []
    assert command.main(["run", "--packs", "here"]) == 0
    assert [row["student"] for row in committed.read("quantize")] == list(students.STUDENTS)


def test_table_verb_prints_table_of_committed_lines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(committed, "RESULTS", tmp_path)
    for row in (FP32, own := line("ours", 0.7, QUICK)):
        committed.append("quantize", row)
    assert command.main(["table"]) == 0
    assert capsys.readouterr().out == table.markdown([FP32, own]) + "\n"


def test_lines_of_other_kinds_are_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(committed, "RESULTS", tmp_path)
    for kind in (distilled.KIND, trained.KIND, whole.KIND):
        committed.append(kind, {"kind": kind})
        assert [row["kind"] for row in committed.read(kind)] == [kind]
    assert list(committed.read("quantize")) == []


def test_verbs_measure_the_cells_that_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, tuple[str, ...]]] = []
    monkeypatch.setattr(trained, "measure", lambda names, *_: calls.append(("trained", tuple(names))))
    monkeypatch.setattr(trained, "measure_qat", lambda names, *_: calls.append(("qat", tuple(names))))
    for verb in ("trained", "qat"):
        assert command.main([verb, "--packs", "here"]) == 0
        assert command.main([verb, "--packs", "here", "--cells", trained.CELLS[0]]) == 0
    first = trained.CELLS[:1]
    assert calls == [("trained", trained.CELLS), ("trained", first), ("qat", ()), ("qat", first)]


def test_qat_is_of_the_targets_that_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    names, exports = trained.CELLS[:2], []
    monkeypatch.setattr(trained, "read", lambda kind: [])
    monkeypatch.setattr(trained, "losing", lambda lines: {names[0]: ("tensorrt",)})
    monkeypatch.setattr(trained, "_export", lambda name, *_, settings, qat: exports.append((name, settings, qat)))
    trained.measure_qat((), Path(), Path())
    trained.measure_qat(names[1:], Path(), Path())
    assert exports == [(names[0], {"qat": {"steps": trained.QAT_STEPS}, "targets": ("tensorrt",)}, True)]


def test_claims_are_of_existing_students() -> None:
    assert set(CLAIMED) == set(table.CLAIMS) <= set(students.STUDENTS)
    assert len(set(students.STUDENTS)) == len(students.STUDENTS) and students.LITE0 not in students.TRAINED
    assert set(students.TRAINED.values()) <= {*trained.CELLS, f"mobilenetv2_224-{trained.PACKS[0]}"}
    assert trained.recipe(students.TRAINED["mobilenetv2-224"], Path())["student"] == {
        "families": {"mobilenetv2": {"width": "100", "weights": "none", "input_px": 224}}
    }
