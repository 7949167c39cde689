"""The page of the evidence: what is not measured says so, and claims are judged by the suite's rule."""

from __future__ import annotations

import math

import pytest
from scipy.stats import nct, t

from benchmarks.suite import evidence, figures, protocol
from benchmarks.suite.board import SCORES, Board


def board(rows: dict[str, float], seeds: int = 2) -> Board:
    """Every row 10 points over 50 plus its number of points, on eight targets."""
    methods = {
        name: {f"t{target}": {seed: 50 + points + target + 0.1 * seed for seed in range(seeds)} for target in range(8)}
        for name, points in rows.items()
    }
    return Board(profile="deploy", score="top1", runs=(), methods=methods, draws={}, left_out=0)


def test_detectable_difference_has_a_power_of_80_percent() -> None:
    spread, targets = 3.0, 8
    shift = evidence.detectable(spread, targets) * math.sqrt(targets) / spread
    power = 1 - nct.cdf(t.ppf(0.975, targets - 1), targets - 1, shift)
    assert power == pytest.approx(0.8, abs=0.02)


def test_page_without_lines_says_so() -> None:
    sections = evidence.sections([])
    assert len(sections) == 9 and set(sections.values()) == {evidence.NO_LINE}


def test_claims_name_rows_of_their_profile() -> None:
    for profile, claims in evidence.CLAIMS.items():
        rows = protocol.load(profile).methods
        assert {row for claimed in claims for row in (claimed.claim.first, claimed.claim.second)} <= set(rows)
    assert all(set(evidence.LABELS) <= set(protocol.load(profile).methods) for profile in evidence.CLAIMS)


def test_verdicts_and_errors_saved() -> None:
    rows = {"transfer": -2.0, "transfer-ridge": 0.0, "auto-ridge": 6.0}
    first = board(rows)
    texts = evidence.sections([first, Board(**{**first.__dict__, "score": "balanced_accuracy"})])
    lines = [line for line in texts["deploy-claims"].splitlines() if line.startswith("| D1")]
    assert "+8.0" in lines[0] and "**holds**" in lines[0] and "+6.0" in lines[1]
    assert "not measured" in texts["deploy-claims"] and texts["cpu_evidence-claims"] == evidence.NO_LINE
    saved = sum(6 / (50 - target - 0.05) for target in range(8)) / 8
    assert f"| {100 * saved:.0f} % |" in texts["deploy-methods"]
    assert texts["deploy-sources"] == texts["deploy-labels"] == evidence.NO_LINE


def test_detectable_difference_is_that_of_the_score() -> None:
    first = board({"transfer-ridge": 0.0, "auto-ridge": 6.0})
    boards = [Board(**{**first.__dict__, "profile": "cpu_evidence", "score": score}) for score in SCORES]
    top1, balanced = evidence.sections(boards)["cpu_evidence-claims"].split("<details>")
    assert "| 11.0, " in top1 and "| 8.0, " in balanced and "| 11.0, " not in balanced


def test_row_stands_beside_transfer_on_its_own_targets_and_seeds() -> None:
    first = board({"transfer-ridge": 0.0, "auto-ridge": 6.0})
    second = Board(**{**first.__dict__, "score": "balanced_accuracy"})
    note = "Rows differ in these"
    assert note not in evidence.sections([first, second])["deploy-methods"]
    first.methods["weighted-ridge"] = {"t7": {0: 58.0, 1: 58.0}}
    text = evidence.sections([first, second])["deploy-methods"]
    assert note in text and "| `weighted-ridge` | 58.0 | 57.0 | +0.9 (one target) |" in text, text


def test_rows_of_one_seed_stand_beside_the_same_seed_of_the_others() -> None:
    first = board({"transfer-ridge": 0.0, "auto-ridge": 6.0})
    first.methods["nearest-ridge"] = {
        target: {0: seeds[0] + 1} for target, seeds in first.methods["auto-ridge"].items()
    }
    first.methods["auto-best"] = first.methods["nearest-ridge"]
    first.methods["auto-ridge"]["t0"][1] += 81  # seed 1 does not count beside them
    texts = evidence.sections([first, Board(**{**first.__dict__, "score": "balanced_accuracy"})])
    several, alone = texts["deploy-methods"].split("<details>")[0].split("Every row with seed 0 alone:")
    assert "nearest-ridge" not in several and "| `auto-ridge` | 64.6 |" in several
    assert "| `auto-ridge` | 59.5 |" in alone and "| `nearest-ridge` | 60.5 |" in alone
    assert "| all | 59.5 |" in texts["deploy-sources"] and "| the best by probe | 60.5 |" in texts["deploy-sources"]


def test_all_sources_stand_beside_fewer_on_their_own_targets() -> None:
    first = board({"transfer-ridge": 0.0, "auto-ridge": 6.0, "auto-best": 4.0})
    first.methods["auto-own"] = {"t0": {0: 51.0}}
    first.methods["auto-best"]["t0"][0] += 8  # one target of eight has a lead of its own
    text = evidence.sections([first, Board(**{**first.__dict__, "score": "balanced_accuracy"})])["deploy-sources"]
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    row = {label: over for label, _, _, _, _, over, *_ in cells}
    assert row["sources of auto"] == "points of all over it [95 %], p" and row["all"] == "-"
    assert row["the best by probe"].startswith("+1.0 [") and row["the best by probe"].endswith(", p 0.508")
    assert row["the student's own initial backbone"].startswith("+5.0 (one target)")


def test_claim_counts_neither_former_seeds_nor_targets_that_chose() -> None:
    first = board({"transfer": 0.0, "auto-peer": 6.0}, seeds=3)
    for targets in first.methods.values():
        targets["gtsrb"] = targets.pop("t0")
    first.methods["auto-peer"]["gtsrb"] = dict.fromkeys(range(3), 99.0)
    first.methods["auto-peer"]["t1"][0] = 99.0
    texts = evidence.sections([first, Board(**{**first.__dict__, "score": "balanced_accuracy"})])
    line = next(row for row in texts["deploy-claims"].splitlines() if row.startswith("| D6"))
    assert "seed 1 and later, without gtsrb" in line and "+6.0" in line and "| 7 |" in line


def test_target_that_is_harmed_is_named() -> None:
    harmed = board({"transfer-ridge": 0.0, "auto-ridge": 5.0, "transfer": 15.0})
    harmed.methods["auto-ridge"]["t3"] = {0: 44.0, 1: 44.2}
    better, random = evidence.harm(harmed).split("\n\n")
    assert better.endswith("(claim: none): t3.") and "`transfer-ridge`" in better
    assert random.endswith("t0, t1, t2, t3, t4, t5, t6, t7.") and "`transfer` " in random
    harmless = board({"transfer-ridge": 0.0, "auto-ridge": 5.0})
    better, random = evidence.harm(harmless).split("\n\n")
    assert better.endswith("none.") and random.endswith("not measured.")
    for method in ("transfer-ridge", "auto-ridge"):
        del harmed.methods[method]["t3"][1]
    assert "none. One seed says nothing of t3." in evidence.harm(harmed)
    assert "not measured" in evidence.harm(board({"transfer-ridge": 0.0, "auto-ridge": 5.0}, seeds=1))


def test_labels_saved_are_in_a_table_and_a_plot() -> None:
    first = board({"transfer-ridge": 0.0, "auto-ridge": 6.0, "transfer-2x": 4.0})
    first.methods["transfer-4x"] = {"t0": {0: 57.0, 1: 57.1}}
    second = Board(**{**first.__dict__, "score": "balanced_accuracy"})
    text = evidence.sections([first, second])["deploy-labels"]
    assert "| transfer with 2 times the labels | +2.0" in text and "transfer with 8" not in text
    assert "| transfer with 4 times the labels | -1.0" in text, "auto is compared on the one target that both have"
    assert text.count("plots/labels_deploy.svg)") == 1
    svg = figures.draw(first)["labels_deploy.svg"]
    assert ">transfer with these labels, 8 targets</text>" in svg
    assert ">transfer with 4 times the labels, 1 target</text>" in svg
    assert "labels_deploy.svg" not in figures.draw(board({"transfer-ridge": 0.0, "auto-ridge": 6.0}))
    natural = [Board(**{**part.__dict__, "profile": "cpu_natural"}) for part in (first, second)]
    assert "plots/" not in evidence.sections(natural)["cpu_natural-labels"] != evidence.NO_LINE
