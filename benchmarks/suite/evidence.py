"""The page docs/evidence.md: everybody with the better start, several sources against one, and labels saved.

The claims were written down before any run of the rows that they name. Beside each stands the difference that eight
targets can detect at the spread that was measured before (`spread`, the standard deviation of the targets' mean
differences): under a true difference of that size a t-test over the targets, 5 %, two-sided, reports it in 80 of 100.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.pages import replace_section
from benchmarks.suite import contrasts, markdown
from benchmarks.suite.board import SCORES, Board
from benchmarks.suite.contrasts import Claim
from benchmarks.suite.statistics import Summary, Targets

NO_LINE = "No line yet."
TARGETS = 8
HARM = 2.0  # points: no target may lie wholly below transfer by more


@dataclass(frozen=True, kw_only=True)
class Expected:
    """A claim, written down before the runs that it counts.

    Attributes:
        claim: the claim.
        spreads: the standard deviation of the targets' mean differences in points of each score, measured before.
        first_seed: the first seed that it counts: those before had been seen when it was written down.
    """

    claim: Claim
    spreads: tuple[float, float]  # top-1, balanced
    first_seed: int = 0


def detectable(spread: float, targets: int = TARGETS) -> float:
    """The true difference that a two-sided t-test at 5 % over so many targets reports with a power of 80 %.

    By the usual approximation (t_0.975 + t_0.8) * spread / sqrt(targets), with targets - 1 degrees of freedom.
    """
    from scipy.stats import t

    return float((t.ppf(0.975, targets - 1) + t.ppf(0.8, targets - 1)) * spread / math.sqrt(targets))


def expected(
    number: str,
    first: str,
    second: str,
    spreads: tuple[float, float],
    *,
    at_least: float = 0.0,
    first_seed: int = 0,
) -> Expected:
    """A claim about two rows."""
    claim = Claim(name=f"{first} over {second}", first=first, second=second, at_least=at_least, number=number)
    return Expected(claim=claim, spreads=spreads, first_seed=first_seed)


# The spreads of cpu_evidence: selftrained, weighted, transfer and fixmatch of cpu, with random heads, on these targets.
# Those of D1 to D5: a pilot on three other targets in top-1, with the first version of the better start; it knows its
# spread to a factor of four. Those of D6 to D8: auto-ridge with seed 0.
CLAIMS: Mapping[str, tuple[Expected, ...]] = {
    "deploy": (
        expected("D1a", "auto-ridge", "transfer", (1.5, 1.5), at_least=5.0),
        expected("D1b", "auto-ridge", "transfer-ridge", (4.1, 4.1), at_least=5.0),
        expected("D2", "auto-ridge", "fixmatch-ridge", (5.7, 5.7)),
        expected("D3", "weighted-ridge", "transfer-ridge", (1.5, 1.5)),
        expected("D4", "weighted-ridge", "transfer-ridge", (1.5, 1.5), at_least=5.6),
        expected("D5", "weighted-ridge", "fixmatch-ridge", (5.7, 5.7), at_least=4.5),
        expected("D6", "auto-peer", "transfer", (11.9, 11.2), at_least=5.0, first_seed=1),
        expected("D7", "auto-peer", "transfer-ridge", (8.4, 7.8), at_least=5.0, first_seed=1),
        expected("D8", "auto-peer", "fixmatch-ridge", (6.4, 6.6), first_seed=1),
    ),
    "cpu_evidence": (
        expected("C1a", "auto-ridge", "transfer", (9.5, 6.9), at_least=10.0),
        expected("C1b", "auto-ridge", "transfer-ridge", (9.5, 6.9), at_least=10.0),
        expected("C2", "auto-ridge", "weighted-ridge", (8.1, 5.9), at_least=5.0),
        expected("C3", "weighted-ridge", "transfer-ridge", (2.2, 2.0), at_least=5.6),
        expected("C4", "weighted-ridge", "fixmatch-ridge", (8.1, 6.9), at_least=4.5),
    ),
}
# rows of the table: those with random heads where they were run, and those with the better start
METHODS = (
    *("transfer", "transfer-ridge", "linear_probe", "probe-ridge", "fixmatch", "fixmatch-long", "fixmatch-ridge"),
    *("nearest-ridge", "equal-ridge", "weighted-ridge", "auto-ridge", "auto-tuned", "auto-peer", "consistent-ridge"),
)
SOURCES = {"auto-ridge": "all", "auto-best": "the best by probe", "auto-own": "the student's own initial backbone"}
SOURCES |= {f"auto-{count}": f"{count}, drawn" for count in (1, 2, 4, 8)}
LABELS = {"transfer-2x": 2, "transfer-4x": 4, "transfer-8x": 8}
LABELS_PLOT = "labels_{profile}.svg"
NATURAL = "cpu_natural"  # labels as they come, and more of them


def sections(boards: Sequence[Board]) -> dict[str, str]:
    """Section of the page -> its text, from the boards of the first score and of the second."""
    by_key = {(board.profile, board.score): board for board in boards}
    texts = {}
    for profile in CLAIMS:
        first, second = (by_key.get((profile, score)) for score in SCORES)
        texts[f"{profile}-methods"] = _both(first, second, _methods)
        texts[f"{profile}-claims"] = _both(first, second, _claims)
        texts[f"{profile}-sources"] = _both(first, second, _sources)
        texts[f"{profile}-labels"] = _both(first, second, _labels)
    first, second = (by_key.get((NATURAL, score)) for score in SCORES)
    return texts | {f"{NATURAL}-labels": _both(first, second, _labels)}


def page(text: str, boards: Sequence[Board]) -> str:
    """Rewrite the generated sections of the page."""
    for name, section in sections(boards).items():
        text = replace_section(text, name, section)
    return text


def _both(first: Board | None, second: Board | None, table: Callable[[Board], str]) -> str:
    """A table in the first score, and folded in the second."""
    if first is None or second is None or (text := table(first)) == NO_LINE:
        return NO_LINE
    return f"{text}\n\n<details><summary>The same in balanced accuracy</summary>\n\n{table(second)}\n\n</details>"


def _over_transfer(board: Board, rows: Mapping[str, str], head: Sequence[str]) -> str:
    """Rows with their label, their mean, their points over transfer-ridge, its share of transfer's errors, targets."""
    lines = []
    for method, label in rows.items():
        if method not in board.methods:
            continue
        over = contrasts.difference(board, method, "transfer-ridge") if method != "transfer-ridge" else None
        errors = _errors_saved(board, method)
        cells = ("-", "-") if over is None else (markdown.interval(over), f"{round(errors)} %" if errors else "-")
        seeds = markdown.span(*over.seeds) if over else "-"
        mean = f"{contrasts.mean(board, method):.1f}"
        lines.append([label, mean, *cells, str(len(board.methods[method])), seeds])
    titles = (*head, "mean", "points over transfer, better start [95 %]", "errors fewer", "targets", "seeds")
    counts = {len(board.methods[method]) for method in rows if method in board.methods}
    note = "\n\nThe mean of a row with fewer targets is that of these targets alone." if len(counts) > 1 else ""
    return markdown.grid(titles, lines) + note if lines else NO_LINE


def _errors_saved(board: Board, method: str) -> float | None:
    """Percent of the errors of transfer-ridge that a row saves, the mean over the targets of both."""
    first, second = board.methods[method], board.methods.get("transfer-ridge", {})
    shares = []
    for target in first.keys() & second.keys():
        if seeds := first[target].keys() & second[target].keys():
            left, before = (sum(100 - row[target][seed] for seed in seeds) for row in (first, second))
            shares += [1 - left / before] if before else []
    return 100 * sum(shares) / len(shares) if shares else None


def _methods(board: Board) -> str:
    return _over_transfer(board, {name: f"`{name}`" for name in METHODS}, ["row"])


def _sources(board: Board) -> str:
    several = {name: label for name, label in SOURCES.items() if name in board.methods}
    return _over_transfer(board, several, ["sources of auto"]) if len(several) > 1 else NO_LINE


def more_labels(board: Board) -> dict[str, str]:
    """Row -> label of the measured rows of transfer with more labels."""
    return {name: f"transfer with {count} times the labels" for name, count in LABELS.items() if name in board.methods}


def auto_beside_labels(board: Board) -> dict[str, Summary]:
    """Label -> auto over transfer with these labels, and with more, on the targets and seeds that both have."""
    rows = {"transfer-ridge": "transfer with these labels", **more_labels(board)}
    differences = {label: contrasts.difference(board, "auto-ridge", name) for name, label in rows.items()}
    return {label: over for label, over in differences.items() if over is not None}


def _labels(board: Board) -> str:
    """Auto beside transfer with so many times the labels, each on the targets and seeds that both have."""
    if not more_labels(board):
        return NO_LINE
    lines = [
        [label, markdown.interval(over), str(over.wins[0]), str(len(over.by_target)), markdown.span(*over.seeds)]
        for label, over in auto_beside_labels(board).items()
    ]
    table = markdown.grid(("auto beside", "points of auto over it [95 %]", "targets won", "targets", "seeds"), lines)
    if board.score != SCORES[0] or board.profile not in CLAIMS:
        return table
    plot = f"../benchmarks/suite/plots/{LABELS_PLOT.format(profile=board.profile)}"
    return f"{table}\n\n![Points of auto over transfer with one to eight times the labels]({plot})"


def _claims(board: Board) -> str:
    """Each claim of the board's profile with its verdict, and whether auto harms a target."""
    rows, measured = [], False
    for claimed in CLAIMS[board.profile]:
        outcome = contrasts.contrast(from_seed(board, claimed.first_seed), claimed.claim)
        measured |= outcome.measured is not None
        claim, counted = claimed.claim, f", seed {claimed.first_seed} and later" if claimed.first_seed else ""
        rows.append(
            [
                f"{claim.number}. `{claim.first}` over `{claim.second}`{counted}",
                f"{claim.at_least:g}" if claim.at_least else "above 0",
                f"{detectable(claimed.spreads[SCORES.index(board.score)]):.1f}",
                markdown.interval(outcome.measured) if outcome.measured else "-",
                f"{outcome.measured.p:.3f}" if outcome.measured else "-",
                str(len(outcome.measured.by_target)) if outcome.measured else "-",
                f"**{outcome.verdict}**",
            ]
        )
    if not measured:
        return NO_LINE
    head = ("claim", "at least", "detectable", "mean of targets [95 %]", "p", "targets", "verdict")
    return f"{markdown.grid(head, rows)}\n\n{harm(board)}"


def from_seed(board: Board, first: int) -> Board:
    """The board without the seeds before `first`."""
    methods: dict[str, Targets] = {
        method: {
            target: later
            for target, seeds in targets.items()
            if (later := {seed: points for seed, points in seeds.items() if seed >= first})
        }
        for method, targets in board.methods.items()
    }
    return replace(board, methods=methods)


def harm(board: Board) -> str:
    """Whether a target lies wholly more than HARM points below transfer under auto; it takes two seeds to tell."""
    over = contrasts.difference(board, "auto-ridge", "transfer-ridge")
    if over is None or over.seeds[1] < 2:
        return f"Targets on which auto lies wholly under -{HARM:g} points: not measured."
    below = [target for target, pairs in over.by_target.items() if pairs.high < -HARM]
    single = [target for target, pairs in over.by_target.items() if pairs.n < 2]
    note = f" One seed says nothing of {', '.join(single)}." if single else ""
    names = ", ".join(below) or "none"
    return f"Targets on which auto lies wholly under -{HARM:g} points (claim: none): {names}.{note}"
