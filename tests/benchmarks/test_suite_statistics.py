"""The suite's statistics against values computed by hand, and the selection of lines that are compared."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from benchmarks.suite import contrasts, protocol, rankers, statistics
from benchmarks.suite.board import Board, boards
from benchmarks.suite.contrasts import Claim
from tests.helpers.paths import ROOT
from tests.helpers.suite_lines import PROFILE, alternating_suite, draw, run, suite


def board_of(lines: list[dict[str, Any]]) -> Board:
    """The only board of the lines, with its control methods."""
    (board,) = boards(lines)
    return rankers.with_controls(board)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2 / 64),
        ([-0.1] * 6, 2 / 64),
        ([2.0, 1.0, -1.0], 6 / 8),  # sums of +-2 +-1 +-1: 4, 2, 2, 0, 0, -2, -2, -4; three of eight reach 2; two tails
        ([1.0, 1.0, -1.0], 1.0),
        ([0.0, 0.0], 1.0),
        ([3.0], 1.0),
    ],
)
def test_sign_flip_p_value_is_exact(differences: list[float], p: float) -> None:
    assert statistics.sign_flip(differences) == pytest.approx(p)


def test_sign_flips_of_many_differences_are_drawn() -> None:
    """Of 40 differences there are 10^12 flips; the drawn ones come near the binomial tail."""
    differences = [*np.tile([1.0, -1.0], 12), *np.ones(16)]
    p = statistics.sign_flip(differences)
    assert p == statistics.sign_flip(differences)
    # P(|S| >= 16) of 40 signs: 2 * P(Binomial(40, 1/2) >= 28)
    assert p == pytest.approx(2 * binom.sf(27, 40, 0.5), rel=0.1)


def test_paired_without_differences_is_an_error() -> None:
    with pytest.raises(ValueError, match="no differences"):
        statistics.paired([])


def test_paired_gives_t_interval() -> None:
    # mean 2, standard deviation 1, t(0.975, 2) = 4.302653: 2 +- 4.302653 / sqrt(3) = 2 +- 2.484138
    paired = statistics.paired([1.0, 2.0, 3.0])
    assert (paired.n, paired.mean, paired.p) == (3, 2.0, 0.25)
    assert (paired.low, paired.high) == pytest.approx((-0.484138, 4.484138), abs=1e-6)


def test_single_seed_has_infinite_interval_and_equal_seeds_zero_width() -> None:
    assert statistics.paired([5.0]) == statistics.Paired(n=1, mean=5.0, low=-math.inf, high=math.inf, p=1.0)
    paired = statistics.paired([2.0, 2.0])
    assert (paired.low, paired.high) == (2.0, 2.0)


def shares(means: np.ndarray) -> dict[float, float]:
    values, counts = np.unique(np.round(means, 9), return_counts=True)
    return dict(zip(values.tolist(), (counts / len(means)).tolist(), strict=True))


def test_bootstrap_draws_targets_and_then_seeds() -> None:
    # two targets at 0 and at 10, seeds all equal: both 0, one of each, both 10
    assert shares(statistics.two_level([[0.0] * 4, [10.0]])) == pytest.approx(
        {0.0: 0.25, 5.0: 0.5, 10.0: 0.25}, abs=0.02
    )
    # one target, two seeds
    assert shares(statistics.two_level([[0.0, 6.0]])) == pytest.approx({0.0: 0.25, 3.0: 0.5, 6.0: 0.25}, abs=0.02)


def test_targets_may_have_different_numbers_of_seeds() -> None:
    assert statistics.two_level([[4.0] * 2, [4.0] * 5, [4.0]]) == pytest.approx(4.0)
    # a target of one seed must be drawn as often as one of three: P(0) = 1/2 * 1 + 1/2 * 0 per slot
    assert np.mean(statistics.two_level([[0.0], [9.0, 9.0, 9.0]])) == pytest.approx(4.5, abs=0.1)


@pytest.mark.parametrize(("targets", "coverage"), [(8, 0.90), (6, 0.86), (3, 0.77)])
def test_coverage_of_bootstrap_interval(targets: int, coverage: float) -> None:
    """The coverage given on the page: deviations 2 between targets and 1 between six seeds, truth 0."""
    generator = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        means = generator.normal(0, 2.0, (targets, 1))
        values = means + generator.normal(0, 1.0, (targets, 6))
        low, high = np.percentile(statistics.two_level(values.tolist(), draws=400), [2.5, 97.5])
        covered.append(low <= 0 <= high)
    assert np.mean(covered) == pytest.approx(coverage, abs=0.04)


def test_across_is_the_mean_of_target_means() -> None:
    summary = statistics.summarize({"x": {0: 1.0, 1: 3.0, 2: 2.0}, "y": {0: 6.0}, "z": {}})
    assert summary is not None and set(summary.by_target) == {"x", "y"}
    assert (summary.mean, summary.seeds, summary.wins, summary.above) == (4.0, (1, 3), (2, 0), 1.0)
    assert summary.low < 4.0 < summary.high and summary.p == 0.5  # two target means of one sign: 2 of 4 flips
    assert statistics.summarize({"z": {}}) is None
    # the same draws in each call
    assert summary == statistics.summarize({"x": {0: 1.0, 1: 3.0, 2: 2.0}, "y": {0: 6.0}})


def test_only_common_seeds_are_paired() -> None:
    first, second = {"x": {0: 5.0, 1: 7.0}, "y": {0: 1.0}}, {"x": {1: 4.0, 2: 0.0}, "y": {1: 1.0}, "z": {0: 1.0}}
    assert statistics.paired_differences(first, second) == {"x": {1: 3.0}}


def test_spearman_with_ties() -> None:
    # ranks 1.5, 1.5, 3 against 1, 2, 3: 1.5 / sqrt(1.5 * 2) = 0.866025
    truth = {"a": 10.0, "b": 20.0, "c": 30.0}
    assert statistics.spearman({"a": 1.0, "b": 1.0, "c": 3.0}, truth) == pytest.approx(0.866025, abs=1e-6)
    assert statistics.spearman({"c": 1.0, "b": 2.0, "a": 3.0}, truth) == pytest.approx(-1.0)
    assert statistics.spearman(dict.fromkeys(truth, 1.0), truth) is None
    assert statistics.spearman({"a": 1.0}, {"a": 2.0}) is None


def test_regret_is_loss_of_choice_and_ties_are_averaged() -> None:
    truth = {"a": 10.0, "b": 20.0, "c": 30.0}
    assert statistics.regret({"a": 0.0, "b": 9.0, "c": 1.0}, truth) == 10.0
    assert statistics.regret({"a": 5.0, "b": 5.0, "c": 1.0}, truth) == 15.0  # a or b: 30 - (10 + 20) / 2
    assert statistics.regret(truth, truth) == 0.0
    assert statistics.hit_rate({"a": 0.0, "b": 2.0, "c": 2.0}, truth) == 0.5
    assert statistics.hit_rate({"a": 1.0, "b": 0.0, "c": 0.0}, truth) == 0.0


def test_static_ranker_leaves_target_out() -> None:
    # x: a -1, b 1.   y: mean 40, deviation sqrt(200 / 3) = 8.1650: a -1.2247, b 1.2247, c 0.
    # z: mean 6, deviation sqrt(2): a, b -0.7071, c 1.4142
    truths = {"x": {"a": 10.0, "b": 20.0}, "y": {"a": 30.0, "b": 50.0, "c": 40.0}, "z": {"a": 5.0, "b": 5.0, "c": 8.0}}
    assert statistics.static_scores(truths, "z") == pytest.approx({"a": -1.112372, "b": 1.112372, "c": 0.0}, abs=1e-6)
    assert statistics.static_scores(truths, "x") == pytest.approx({"a": -0.965926, "b": 0.258819}, abs=1e-6)
    truths["z"]["new"] = 9.0  # on no other target: an average source
    ranking = statistics.static_scores(truths, "z")
    assert ranking is not None and ranking["new"] == 0.0
    assert statistics.static_scores({"x": truths["x"]}, "x") is None
    assert statistics.standardized({"a": 4.0, "b": 4.0}) == {"a": 0.0, "b": 0.0}


def test_rerun_replaces_line_and_older_configuration_is_left_out() -> None:
    later = "2026-11-02T00:00:00Z"
    board = board_of(
        [
            run("x", "weighted", 0, 0.5, measured=later),
            run("x", "weighted", 0, 0.1),
            run("x", "weighted", 1, 0.3),
            run("x", "transfer", 0, 0.2, config="new", measured=later),
            run("x", "transfer", 1, 0.9, config="old"),
        ]
    )
    assert board.methods["weighted"]["x"] == pytest.approx({0: 50.0, 1: 30.0})
    assert board.methods["transfer"]["x"] == pytest.approx({0: 20.0})
    assert board.left_out == 1


@pytest.mark.parametrize("changed", [{"labels_per_class": 5}, {"n_test": 10}, {"student": "another"}])
def test_lines_of_different_trials_are_not_compared(changed: dict[str, Any]) -> None:
    later = {"measured": "2026-11-02T00:00:00Z"}
    lines = [
        run("x", "weighted", 0, 0.5, **changed),
        run("x", "transfer", 0, 0.2, **later),
        run("y", "weighted", 0, 0.5),
    ]
    board = board_of(lines)
    assert board.left_out == 1 and set(board.methods["weighted"]) == {"y"}
    assert contrasts.difference(board, "weighted", "transfer") is None


def test_each_profile_has_its_own_board() -> None:
    all_boards = boards([run("x", "transfer", 0, 0.2), run("x", "transfer", 0, 0.8, profile="gpu"), {"kind": "else"}])
    assert [(board.profile, board.methods["transfer"]["x"][0]) for board in all_boards] == [
        ("gpu", 80.0),
        (PROFILE, 20.0),
    ]


@pytest.mark.parametrize(
    ("gains", "claimed", "verdict"),
    [
        ([6.0, 7.0, 8.0] * 2, {"at_least": 5.0}, "holds"),
        ([5.6] * 6, {"at_least": 5.6}, "holds"),
        ([6.0, 7.0, 8.0] * 2, {"at_least": 7.5}, "smaller than claimed"),
        # the interval is above 0 (see below), but p = 4 / 64: both signs of the 0 count, in both tails
        ([0.0, 6.0, 6.0, 6.0, 6.0, 6.0], {"at_least": 0.0}, "fails"),
        ([6.0, -7.0, 8.0] * 2, {}, "fails"),
        ([-6.0, -7.0, -8.0] * 2, {}, "fails"),
        ([0.0] * 6, {}, "fails"),
        ([6.0] * 5, {"at_least": 5.0}, "too few targets"),  # p = 2 / 32 at best
        ([], {}, "not measured"),
        ([-0.5] * 6, {"margin": 1.0}, "holds"),
        ([-1.0] * 6, {"margin": 1.0}, "fails"),
        ([3.0, -3.0] * 3, {"margin": 1.0}, "fails"),  # equal in the mean, but -1 is within the interval
        ([9.0] * 5, {"margin": 1.0}, "too few targets"),
    ],
)
def test_verdict_of_claim(gains: list[float], claimed: dict[str, float], verdict: str) -> None:
    lines = [
        run(f"t{index}", name, seed, 0.5 + (gain / 100 if name == "first" else 0.0))
        for index, gain in enumerate(gains)
        for seed in (0, 1)
        for name in ("first", "second")
    ]
    board = board_of(lines) if lines else Board(profile="", score="top1", runs=(), methods={}, draws={}, left_out=0)
    assert contrasts.contrast(board, Claim(name="c", first="first", second="second", **claimed)).verdict == verdict  # type: ignore[arg-type]


def test_interval_above_zero_is_not_significant_by_itself() -> None:
    lines = [
        run(f"t{index}", name, 0, 0.5 + (gain / 100 if name == "first" else 0.0))
        for index, gain in enumerate([0.0, 6.0, 6.0, 6.0, 6.0, 6.0])
        for name in ("first", "second")
    ]
    difference = contrasts.difference(board_of(lines), "first", "second")
    assert difference is not None and difference.low > 0 and difference.p == pytest.approx(4 / 64)


def test_claim_in_parts_has_verdict_of_its_worst_part() -> None:
    verdicts = {
        "1": "fails",
        "3a": "holds",
        "3b": "fails",
        "5a": "holds",
        "5b": "holds",
        "7a": "holds",
        "7b": "too few targets",
        "8a": "not measured",
        "8b": "fails",
    }
    parts = [
        contrasts.Contrast(
            claim=Claim(name="", first="", second="", number=number),
            first="",
            second="",
            measured=None,
            verdict=verdict,
        )
        for number, verdict in verdicts.items()
    ]
    assert contrasts.combined_verdicts(parts) == {"3": "fails", "5": "holds", "7": "too few targets", "8": "fails"}


def test_claims_are_those_on_the_page() -> None:
    page = (ROOT / "benchmarks/README.md").read_text().split("## The claims of the suite")[1].split("\n## ")[0]
    numbers = [claim.number.rstrip("ab") for claim in contrasts.CLAIMS]
    assert numbers == ["1", "2", "3", "3", "4", "5", "5", "6"] and not any(
        claim.number for claim in contrasts.UNCLAIMED
    )
    for claim in contrasts.CLAIMS:
        (line,) = (line for line in page.split("\n") if line.startswith(f"{claim.number.rstrip('ab')}. "))
        line = page[page.index(line) :].split("\n" + str(int(line[0]) + 1) + ". ")[0]
        assert not claim.at_least or f"by {claim.at_least:g} points at least" in line


def test_similarity_must_beat_static_in_spearman_and_regret() -> None:
    board = board_of(alternating_suite())
    (spearman, regret) = (
        contrasts.contrast(board, claim) for claim in contrasts.CLAIMS if claim.number in ("5a", "5b")
    )
    # "probe" gave the weights: right on three targets (+1, regret 0), wrong on three (-1, regret 4); static -1 and 4
    assert spearman.first == regret.first == "probe" and spearman.measured is not None and regret.measured is not None
    assert (spearman.measured.mean, regret.measured.mean) == pytest.approx((1.0, 2.0))
    assert spearman.measured.p == regret.measured.p == pytest.approx(16 / 64)  # either sign of three zeros, both tails
    assert spearman.verdict == regret.verdict == "fails"
    right = board_of([{**line, "scores": {"right": line["scores"]["right"]}} for line in alternating_suite()])
    (spearman, regret) = (
        contrasts.contrast(right, claim) for claim in contrasts.CLAIMS if claim.number in ("5a", "5b")
    )
    assert spearman.measured is not None and regret.measured is not None
    assert (spearman.measured.mean, regret.measured.mean) == pytest.approx((2.0, 4.0))
    assert spearman.verdict == regret.verdict == "holds"


def test_metric_that_gave_the_weights() -> None:
    assert rankers.weight_metric(board_of(alternating_suite())) == "probe"
    assert rankers.weight_metric(board_of(suite())) == "right"  # no profile file and no "probe": the first metric
    assert rankers.weight_metric(board_of([run("x", "transfer", 0, 0.5)])) is None
    board = board_of([{**line, "profile": "cpu"} for line in suite()])
    assert rankers.weight_metric(board) == protocol.load("cpu").weigh.metric.name


def test_best_probe_is_of_one_source_per_target() -> None:
    lines = [
        draw("x", 0, {"m": {"a": 1.0, "b": 2.0}}, {"a": 0.30, "b": 0.60}),
        draw("x", 1, {"m": {"a": 1.0, "b": 2.0}}, {"a": 0.50, "b": 0.40}),
        run("x", "adapted", 0, 0.65),
        run("x", "adapted", 1, 0.65),
    ]
    assert rankers.best_probes(board_of(lines)) == {"x": ("b", {0: 60.0, 1: 40.0})}  # means 40 and 50
    contrast = contrasts.contrast(board_of(lines), Claim(name="c", first=contrasts.BEST, second=contrasts.PROBE))
    assert contrast.measured is not None and contrast.measured.mean == pytest.approx((5.0 + 25.0) / 2)


def test_best_is_chosen_among_methods_beyond_the_paper() -> None:
    board = board_of([*suite(), run("target0", "stacked", 0, 0.99)])  # higher, but on one target of three
    contrast = contrasts.contrast(board, Claim(name="best", first=contrasts.BEST, second="weighted"))
    assert contrast.first == "adapted" and contrast.measured is not None
    assert contrast.measured.mean == pytest.approx(10 - (6 + 8 + 10) / 3)
    assert contrasts.best_method(board_of([run("x", "weighted", 0, 0.9)])) is None


def test_random_is_mean_over_all_singles_or_its_own_line() -> None:
    lines = [
        run("x", "single:a", 0, 0.2),
        run("x", "single:b", 0, 0.4),
        run("x", "single:a", 1, 0.9),
        run("x", "random", 0, 0.0),
        run("x", "random", 2, 0.7),
    ]
    assert board_of(lines).methods["random"]["x"] == pytest.approx({0: 30.0, 2: 70.0})  # seed 1 lacks b
    # the draw has a third source: the mean over two of three is not the mean over the sources
    lines.append(draw("x", 0, {"m": {"a": 1.0, "b": 2.0, "c": 3.0}}, {}))
    assert board_of(lines).methods["random"]["x"] == pytest.approx({0: 0.0, 2: 70.0})


def test_truth_is_from_students_or_else_from_probes() -> None:
    draws = [draw("x", seed, {"m": {"a": 1.0, "b": 2.0}}, {"a": 0.1, "b": 0.6 + seed / 10}) for seed in (0, 1)]
    partial = [*draws, run("x", "single:a", 0, 0.5)]
    assert rankers.target_truth(board_of(partial), "x") == rankers.Truth(
        basis="probes", values={"a": 10.0, "b": 65.0}, seeds=(0, 1)
    )
    complete = [*partial, run("x", "single:b", 0, 0.4), run("x", "single:b", 1, 0.9)]  # seed 1 has only b: not averaged
    assert rankers.target_truth(board_of(complete), "x") == rankers.Truth(
        basis="students", values={"a": 50.0, "b": 40.0}, seeds=(0,)
    )
    assert rankers.target_truth(board_of([run("x", "transfer", 0, 0.1)]), "x") is None


def test_rankers_are_compared_with_truth() -> None:
    judged = {ranker.name: ranker for ranker in rankers.evaluate_rankers(board_of(suite()))}
    # b is 4 points above a on every seed of every target, and nearest 2 below b
    table = {
        name: (ranker.spearman and ranker.spearman.mean, ranker.regret and ranker.regret.mean, ranker.chose_best)
        for name, ranker in judged.items()
    }
    assert table == {
        "oracle": pytest.approx((1.0, 0.0, 1.0)),
        "right": pytest.approx((1.0, 0.0, 1.0)),
        "wrong": pytest.approx((-1.0, 4.0, 0.0)),
        rankers.STATIC: pytest.approx((1.0, 0.0, 1.0)),
        rankers.WEIGHTS: (None, pytest.approx(2.0), 0.5),  # equal weights: no ranking, half the regret
        rankers.RANDOM: (None, pytest.approx(2.0), 0.5),
        rankers.NEAREST: (None, pytest.approx(2.0), None),
    }
    over = judged["wrong"].over_static
    assert over is not None and over.mean == pytest.approx(-2.0)
    saved = judged["wrong"].regret_saved
    assert saved is not None and saved.mean == pytest.approx(-4.0)
    assert judged[rankers.STATIC].over_static is None and judged[rankers.STATIC].regret_saved is None


def test_ranker_without_score_for_every_source_is_left_out_of_draw() -> None:
    lines = [
        draw("x", 0, {"m": {"a": 1.0, "b": 2.0}, "n": {"a": 1.0}}, {"a": 0.1, "b": 0.6}),
        draw("x", 1, {"m": {"a": math.nan, "b": 2.0}}, {"a": 0.1, "b": 0.6}),
    ]
    judged = {ranker.name: ranker for ranker in rankers.evaluate_rankers(board_of(lines))}
    assert "n" not in judged and rankers.STATIC not in judged  # a single target has no other targets
    assert judged["m"].regret is not None and judged["m"].regret.seeds == (1, 1)
    assert judged["m"].over_static is None and judged["m"].regret_saved is None


def test_hindsight_controls_are_best_single_sources() -> None:
    methods = board_of(suite()).methods
    assert methods["oracle nearest"]["target0"] == methods["single:b"]["target0"]
    assert methods["static best"]["target2"] == methods["single:b"]["target2"]
    assert methods["random"]["target1"][2] == pytest.approx(44.0)
