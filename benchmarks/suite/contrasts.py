"""The claims, written down before any run, and the verdict of the runs on each.

A verdict depends on the statistics over targets alone: the mean, its 95 % two-level bootstrap interval and the p of the
sign-flip test of the target means:

    holds                the interval lies over 0, p < 0.05, and the mean reaches the claimed size;
                         of a claim with a margin ("at least as good"): the interval lies over minus the margin
    smaller than claimed the interval lies over 0 and p < 0.05, but the mean does not reach the claimed size
    fails                anything else
    too few targets      fewer than six targets with pairs: p cannot be under 0.05
    not measured         no target where both methods share a seed
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from benchmarks.suite import rankers, statistics
from benchmarks.suite.board import SINGLE, Board
from benchmarks.suite.rankers import HINDSIGHT, STATIC
from benchmarks.suite.statistics import Summary, Targets

BEST = "best beyond the paper"
METRIC = "the metric of the weights"
PROBE = "the best source's probe"
PAPER = ("transfer", "fixmatch", "random", "nearest", "equal", "weighted")
CONTROLS = ("linear_probe", "transfer-long", "weighted-long", *HINDSIGHT)  # references for the methods
MIN_TARGETS = 6  # six is the first n whose smallest p, 2 / 2^n = 0.031, is under ALPHA
ALPHA = 0.05
WORST_FIRST = ("fails", "not measured", "too few targets", "smaller than claimed", "holds")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """`first` exceeds `second` by `at_least` points on the mean of the targets, or is less than `margin` below it.

    `BEST`, `METRIC` and `PROBE` are placeholders that the board resolves. `measure` is what is compared: students by
    score, or rankers of the sources by Spearman (higher is better) or regret (lower is better). `number` is that of
    benchmarks/README.md, with a letter where the claim there has parts; "" for a contrast that was not claimed.
    """

    name: str
    first: str
    second: str
    at_least: float = 0.0
    margin: float = 0.0
    number: str = ""
    measure: Literal["score", "spearman", "regret"] = "score"


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A claim with its resolved methods and the summary of their differences (None: no pairs)."""

    claim: Claim
    first: str
    second: str
    measured: Summary | None
    verdict: str


# 5.6 and 4.5 are the paper's figures over its own eight targets; 5.0 is our own goal
CLAIMS = (
    Claim(name="weighted over transfer", first="weighted", second="transfer", at_least=5.6, number="1"),
    Claim(name="nearest over a random source", first="nearest", second="random", number="2"),
    Claim(name="weighted beside nearest", first="weighted", second="nearest", margin=1.0, number="3a"),
    Claim(name="weighted beside equal", first="weighted", second="equal", margin=1.0, number="3b"),
    Claim(name="weighted over FixMatch", first="weighted", second="fixmatch", at_least=4.5, number="4"),
    Claim(
        name="similarity's Spearman over the static ranker's",
        first=METRIC,
        second=STATIC,
        number="5a",
        measure="spearman",
    ),
    Claim(
        name="similarity's regret under the static ranker's", first=METRIC, second=STATIC, number="5b", measure="regret"
    ),
    Claim(name="best beyond the paper over weighted", first=BEST, second="weighted", at_least=5.0, number="6"),
)

UNCLAIMED = (
    Claim(name="nearest over transfer", first="nearest", second="transfer"),
    Claim(name="weighted over transfer, three times the steps", first="weighted-long", second="transfer-long"),
    Claim(name="three times the steps of transfer", first="transfer-long", second="transfer"),
    Claim(name="adapted over transfer", first="adapted", second="transfer"),
    Claim(name="adapted over weighted", first="adapted", second="weighted"),
    Claim(name="stacked over adapted", first="stacked", second="adapted"),
    Claim(name="selftrained over stacked", first="selftrained", second="stacked"),
    Claim(name="combined over selftrained", first="combined", second="selftrained"),
    Claim(name="consistent over selftrained", first="consistent", second="selftrained"),
    Claim(name="best beyond the paper over FixMatch", first=BEST, second="fixmatch"),
    Claim(name="best beyond the paper over a linear probe", first=BEST, second="linear_probe"),
    Claim(name=f"best beyond the paper over {PROBE}", first=BEST, second=PROBE),
)


def verdict(claim: Claim, measured: Summary | None) -> str:
    """The verdict on a claim, one of the five in this module's docstring."""
    if measured is None:
        return "not measured"
    if len(measured.by_target) < MIN_TARGETS:
        return "too few targets"
    if claim.margin:
        return "holds" if measured.low > -claim.margin else "fails"
    if measured.low <= 0 or measured.p >= ALPHA:
        return "fails"
    # rounded: the mean of target means may miss a threshold by the last bit of a float
    return "holds" if round(measured.mean, 9) >= claim.at_least else "smaller than claimed"


def combined_verdicts(contrasts: Iterable[Contrast]) -> dict[str, str]:
    """Number -> verdict of the claims that have parts (3a, 3b): the worst verdict, because all parts must hold."""
    parts: dict[str, list[str]] = {}
    for contrast in contrasts:
        if contrast.claim.number[-1:].isalpha():
            parts.setdefault(contrast.claim.number[:-1], []).append(contrast.verdict)
    return {number: min(words, key=WORST_FIRST.index) for number, words in parts.items()}


def contrast(board: Board, claim: Claim) -> Contrast:
    """Evaluate a claim on the board, with the seeds that both sides have."""
    first, second = _resolve(board, claim.first), _resolve(board, claim.second)
    measured = (
        difference(board, first, second) if claim.measure == "score" else _over_static(board, first, claim.measure)
    )
    return Contrast(claim=claim, first=first, second=second, measured=measured, verdict=verdict(claim, measured))


def _over_static(board: Board, metric: str, measure: Literal["spearman", "regret"]) -> Summary | None:
    evaluation = rankers.evaluate_ranker(board, metric)
    if evaluation is None:
        return None
    return evaluation.over_static if measure == "spearman" else evaluation.regret_saved


def _resolve(board: Board, name: str) -> str:
    """The method or metric of a placeholder; any other name, or one the board cannot resolve, is returned unchanged."""
    if name == BEST:
        return best_method(board) or name
    return (rankers.weight_metric(board) or name) if name == METRIC else name


def difference(board: Board, first: str, second: str) -> Summary | None:
    """Points of the first method minus those of the second; None without pairs."""
    return statistics.summarize(statistics.paired_differences(_values(board, first), _values(board, second)))


def _values(board: Board, method: str) -> Targets:
    if method == PROBE:
        return {target: seeds for target, (_, seeds) in rankers.best_probes(board).items()}
    return board.methods.get(method, {})


def mean(board: Board, method: str) -> float:
    """Mean over targets of the method's mean over seeds, in points, on the targets that it was run on."""
    return sum(sum(seeds.values()) / len(seeds) for seeds in board.methods[method].values()) / len(
        board.methods[method]
    )


def ranked_methods(board: Board) -> list[str]:
    """The methods without `single:...`, by number of targets, then by mean, both descending."""
    names = [name for name in board.methods if not name.startswith(SINGLE)]
    return sorted(names, key=lambda name: (-len(board.methods[name]), -mean(board, name), name))


def best_method(board: Board) -> str | None:
    """Our method with the highest mean among those on most targets; chosen on the same runs that it is evaluated on.

    A row with a hyphen is a variant of another row; those that came after the claims have claims of their own.
    """
    beside = (*PAPER, *CONTROLS)
    return next((name for name in ranked_methods(board) if name not in beside and "-" not in name), None)
