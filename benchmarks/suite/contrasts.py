"""The claims, written down before running, and what the runs say about each.

A verdict follows from what was measured over targets alone: the mean, its 95 % two-level bootstrap interval and the p
of the sign-flip test of the target means:

    holds                the interval lies over 0, p < 0.05, and the mean reaches what was claimed;
                         of a claim with a margin ("at least as good"): the interval lies over minus the margin
    smaller than claimed the interval lies over 0 and p < 0.05, the mean does not reach what was claimed
    fails                anything else
    too few targets      fewer than six targets with pairs: no p under 0.05 is to be had
    not measured         no target where both methods share a seed
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from benchmarks.suite import rankers, statistics
from benchmarks.suite.board import SINGLE, Board
from benchmarks.suite.rankers import HINDSIGHT, STATIC
from benchmarks.suite.statistics import Across, Targets

BEST = "best beyond the paper"
METRIC = "the metric of the weights"
PROBE = "the best source's probe"
PAPER = ("transfer", "fixmatch", "random", "nearest", "equal", "weighted")
CONTROLS = ("linear_probe", "transfer-long", "weighted-long", *HINDSIGHT)  # what methods are held against
FEWEST_TARGETS = 6  # 2 / 2^6 = 0.031 is the first smallest p under ALPHA
ALPHA = 0.05
WORST_FIRST = ("fails", "not measured", "too few targets", "smaller than claimed", "holds")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """`first` beats `second` by at least so many points on the mean of the targets, or loses no `margin` to it.

    `BEST`, `METRIC` and `PROBE` stand for what the board makes of them. `of` says what is compared: students by score,
    or rankers of the sources by Spearman (higher is better) or regret (lower is better). `number` is that of
    benchmarks/README.md, with a letter where the claim there has parts; "" for what was not claimed.
    """

    name: str
    first: str
    second: str
    at_least: float = 0.0
    margin: float = 0.0
    number: str = ""
    of: Literal["score", "spearman", "regret"] = "score"


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A claim with the methods that it came down to, and what was measured (None: nothing in pairs)."""

    claim: Claim
    first: str
    second: str
    measured: Across | None
    verdict: str


# 5.6 and 4.5 are what the paper reports over its own eight targets; the 5.0 is what we set out to add
CLAIMS = (
    Claim(name="weighted over transfer", first="weighted", second="transfer", at_least=5.6, number="1"),
    Claim(name="nearest over a random source", first="nearest", second="random", number="2"),
    Claim(name="weighted beside nearest", first="weighted", second="nearest", margin=1.0, number="3a"),
    Claim(name="weighted beside equal", first="weighted", second="equal", margin=1.0, number="3b"),
    Claim(name="weighted over FixMatch", first="weighted", second="fixmatch", at_least=4.5, number="4"),
    Claim(
        name="similarity's Spearman over the static ranker's", first=METRIC, second=STATIC, number="5a", of="spearman"
    ),
    Claim(name="similarity's regret under the static ranker's", first=METRIC, second=STATIC, number="5b", of="regret"),
    Claim(name="best beyond the paper over weighted", first=BEST, second="weighted", at_least=5.0, number="6"),
)

LOOKED_AT = (
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


def verdict(claim: Claim, measured: Across | None) -> str:
    """One of the five words of this module's docstring."""
    if measured is None:
        return "not measured"
    if len(measured.by_target) < FEWEST_TARGETS:
        return "too few targets"
    if claim.margin:
        return "holds" if measured.low > -claim.margin else "fails"
    if measured.low <= 0 or measured.p >= ALPHA:
        return "fails"
    # rounded: the mean of target means may miss a threshold by the last bit of a float
    return "holds" if round(measured.mean, 9) >= claim.at_least else "smaller than claimed"


def together(found: Iterable[Contrast]) -> dict[str, str]:
    """Number -> verdict of the claims that have parts (3a, 3b): the worst of their parts', for all parts must hold."""
    parts: dict[str, list[str]] = {}
    for one in found:
        if one.claim.number[-1:].isalpha():
            parts.setdefault(one.claim.number[:-1], []).append(one.verdict)
    return {number: min(words, key=WORST_FIRST.index) for number, words in parts.items()}


def contrast(board: Board, claim: Claim) -> Contrast:
    """A claim against the board, on the seeds that both sides have."""
    first, second = _meant(board, claim.first), _meant(board, claim.second)
    measured = difference(board, first, second) if claim.of == "score" else _over_static(board, first, claim.of)
    return Contrast(claim=claim, first=first, second=second, measured=measured, verdict=verdict(claim, measured))


def _over_static(board: Board, metric: str, of: Literal["spearman", "regret"]) -> Across | None:
    judged = rankers.judge_one(board, metric)
    if judged is None:
        return None
    return judged.over_static if of == "spearman" else judged.regret_saved


def _meant(board: Board, name: str) -> str:
    """The method or metric that a name stands for; the name itself where the board knows none."""
    if name == BEST:
        return best(board) or name
    return (rankers.metric(board) or name) if name == METRIC else name


def difference(board: Board, first: str, second: str) -> Across | None:
    """Points that the first method is above the second; None without pairs."""
    return statistics.across(statistics.minus(_values(board, first), _values(board, second)))


def _values(board: Board, method: str) -> Targets:
    if method == PROBE:
        return {target: seeds for target, (_, seeds) in rankers.best_probes(board).items()}
    return board.methods.get(method, {})


def mean(board: Board, method: str) -> float:
    """Mean over targets of the method's mean over seeds, in points, on the targets that it was run on."""
    return sum(sum(seeds.values()) / len(seeds) for seeds in board.methods[method].values()) / len(
        board.methods[method]
    )


def ordered(board: Board) -> list[str]:
    """The methods without `single:...`: those run on more targets first, among equals the highest mean."""
    names = [name for name in board.methods if not name.startswith(SINGLE)]
    return sorted(names, key=lambda name: (-len(board.methods[name]), -mean(board, name), name))


def best(board: Board) -> str | None:
    """The method of ours with the highest mean among those on most targets; chosen on the runs that it is judged on."""
    return next((name for name in ordered(board) if name not in (*PAPER, *CONTROLS)), None)
