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
    assert "| 11.0 |" in top1 and "| 8.0 |" in balanced and "| 11.0 |" not in balanced


def test_rows_of_fewer_targets_are_said_to_be_so() -> None:
    note, rows = "The mean of a row with fewer targets", {"transfer-ridge": 0.0, "auto-ridge": 6.0}
    first = board(rows)
    second = Board(**{**first.__dict__, "score": "balanced_accuracy"})
    assert note not in evidence.sections([first, second])["deploy-methods"]
    first.methods["weighted-ridge"] = {"t0": {0: 57.0}}
    assert note in evidence.sections([first, second])["deploy-methods"]


def test_target_that_is_harmed_is_named() -> None:
    harmed = board({"transfer-ridge": 0.0, "auto-ridge": 5.0})
    harmed.methods["auto-ridge"]["t3"] = {0: 44.0, 1: 44.2}
    assert evidence.harm(harmed).endswith("(claim: none): t3.")
    assert evidence.harm(board({"transfer-ridge": 0.0, "auto-ridge": 5.0})).endswith("none.")
    for method in ("transfer-ridge", "auto-ridge"):
        del harmed.methods[method]["t3"][1]
    assert evidence.harm(harmed).endswith("none. One seed says nothing of t3.")
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
