"""The page docs/evidence.md: everybody with the better start, several sources against one, and labels saved.

The claims were written down before the runs that they count. Beside each stands the difference that its targets can
detect at the spread that was measured before (`spreads`, the standard deviation of the targets' mean differences), and
at the spread of the runs: under a true difference of that size a t-test over the targets, 5 %, two-sided, reports it in
80 of 100.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import stdev
from typing import Any

from benchmarks.pages import replace_section
from benchmarks.suite import contrasts, markdown
from benchmarks.suite.board import SCORES, Board
from benchmarks.suite.contrasts import Claim
from benchmarks.suite.statistics import Summary, Targets

NO_LINE = "No line yet."
TARGETS = 8
HARM = 2.0  # points: no target may lie wholly below transfer by more
REFERENCE = "transfer-ridge"  # transfer with the better start


@dataclass(frozen=True, kw_only=True)
class Expected:
    """A claim, written down before the runs that it counts.

    Attributes:
        claim: the claim.
        spreads: the standard deviation of the targets' mean differences in points of each score, measured before.
        first_seed: the first seed that it counts: those before had been seen when it was written down.
        without: targets that it does not count: a setting of its rows was chosen on them.
    """

    claim: Claim
    spreads: tuple[float, float]  # top-1, balanced
    first_seed: int = 0
    without: tuple[str, ...] = ()


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
    without: tuple[str, ...] = (),
) -> Expected:
    """A claim about two rows."""
    claim = Claim(name=f"{first} over {second}", first=first, second=second, at_least=at_least, number=number)
    return Expected(claim=claim, spreads=spreads, first_seed=first_seed, without=without)


# The spreads of cpu_evidence: selftrained, weighted, transfer and fixmatch of cpu, with random heads, on these targets.
# Those of D1 to D5: a pilot on three other targets in top-1, with the first version of the better start; it knows its
# spread to a factor of six. Those of D6 to D8: auto-ridge with seed 0 on eight targets; of D9 that of D6.
PEER: dict[str, Any] = {"first_seed": 1, "without": ("gtsrb",)}  # the present version of its share was chosen on gtsrb
CLAIMS: Mapping[str, tuple[Expected, ...]] = {
    "deploy": (
        expected("D1a", "auto-ridge", "transfer", (1.5, 1.5), at_least=5.0),
        expected("D1b", "auto-ridge", "transfer-ridge", (4.1, 4.1), at_least=5.0),
        expected("D2", "auto-ridge", "fixmatch-ridge", (5.7, 5.7)),
        expected("D3", "weighted-ridge", "transfer-ridge", (1.5, 1.5)),
        expected("D4", "weighted-ridge", "transfer-ridge", (1.5, 1.5), at_least=5.6),
        expected("D5", "weighted-ridge", "fixmatch-ridge", (5.7, 5.7), at_least=4.5),
        expected("D6", "auto-peer", "transfer", (11.9, 11.2), at_least=5.0, **PEER),
        expected("D7", "auto-peer", "transfer-ridge", (8.4, 7.8), at_least=5.0, **PEER),
        expected("D8", "auto-peer", "fixmatch-ridge", (6.4, 6.6), **PEER),
        expected("D9", "auto-peer", "fixmatch", (11.9, 11.2), **PEER),
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


def shared(board: Board, rows: Sequence[str]) -> Board:
    """The board with these rows alone, on the targets and seeds that all of them have."""
    values = [board.methods.get(row, {}) for row in rows]
    targets = [target for target in values[0] if all(target in of_row for of_row in values)]
    seeds = {target: set.intersection(*(set(of_row[target]) for of_row in values)) for target in targets}
    methods: dict[str, Targets] = {
        row: {
            target: {seed: of_row[target][seed] for seed in sorted(seeds[target])}
            for target in targets
            if seeds[target]
        }
        for row, of_row in zip(rows, values, strict=True)
    }
    return replace(board, methods=methods)


def _over_transfer(board: Board, rows: Mapping[str, str], title: str, whole: str | None = None) -> str:
    """Each row beside transfer with the better start on the targets and seeds that both have.

    Args:
        board: the measured rows.
        rows: row -> its label.
        title: of the labels' column.
        whole: a row whose difference to each of the others has a column of its own.
    """
    lines, cells = [], set()
    for method, label in rows.items():
        if method not in board.methods:
            continue
        both = shared(board, (method, REFERENCE))
        over = contrasts.difference(both, method, REFERENCE)
        if over is None:
            continue
        means = [f"{contrasts.mean(both, name):.1f}" for name in (method, REFERENCE)]
        gain = (
            (markdown.interval(over), f"{round(_errors_saved(both, method))} %") if method != REFERENCE else ("-", "-")
        )
        lost = [_interval_over(board, whole, method)] if whole else []
        lines.append([label, *means, *gain, *lost, str(len(over.by_target)), markdown.span(*over.seeds)])
        cells.add(tuple(sorted((target, tuple(seeds)) for target, seeds in both.methods[method].items())))
    titles = (
        title,
        "mean",
        "transfer",
        "points over transfer, better start [95 %]",
        "errors fewer",
        *([f"points of {rows[whole]} over it [95 %], p"] if whole else []),
        "targets",
        "seeds",
    )
    note = (
        "\n\n*transfer*: its mean on the targets and seeds of the row. Rows differ in these." if len(cells) > 1 else ""
    )
    return markdown.grid(titles, lines) + note if lines else NO_LINE


def _interval_over(board: Board, first: str, second: str) -> str:
    """The difference of two rows and its p; "-" for a row and itself, and without pairs."""
    over = None if first == second else contrasts.difference(board, first, second)
    return f"{markdown.interval(over)}, p {over.p:.3f}" if over else "-"


def _errors_saved(both: Board, method: str) -> float:
    """Percent of the errors of transfer that a row saves, the mean over the targets, which both have."""
    shares = []
    for target, seeds in both.methods[REFERENCE].items():
        left, before = (sum(100 - points for points in row.values()) for row in (both.methods[method][target], seeds))
        shares += [1 - left / before] if before else []
    return 100 * sum(shares) / len(shares) if shares else 0.0


def _where(board: Board, counts: Callable[[str, int], bool]) -> Board:
    """The board with the targets and seeds that count alone."""
    methods: dict[str, Targets] = {}
    for row, targets in board.methods.items():
        for target, seeds in targets.items():
            if counting := {seed: points for seed, points in seeds.items() if counts(target, seed)}:
                methods[row] = {**methods.get(row, {}), target: counting}
    return replace(board, methods=methods)


def first_seed_alone(board: Board) -> Board:
    """The board with seed 0 alone."""
    return _where(board, lambda _, seed: seed == 0)


def _most_seeds(board: Board, row: str) -> int:
    return max(map(len, board.methods[row].values()))


def _seeds_differ(board: Board, rows: Iterable[str]) -> bool:
    """Whether some rows have one seed and others several."""
    return len({_most_seeds(board, row) > 1 for row in rows}) > 1


def _methods(board: Board) -> str:
    """Rows with several seeds; and where others have one, all of them with seed 0 alone."""
    rows = {name: f"`{name}`" for name in METHODS if name in board.methods}
    if not _seeds_differ(board, rows):
        return _over_transfer(board, rows, "row")
    several = {name: label for name, label in rows.items() if _most_seeds(board, name) > 1}
    tables = (_over_transfer(board, several, "row"), _over_transfer(first_seed_alone(board), rows, "row"))
    return "\n\nEvery row with seed 0 alone:\n\n".join(tables)


def _sources(board: Board) -> str:
    several = {name: label for name, label in SOURCES.items() if name in board.methods}
    if len(several) < 2:
        return NO_LINE
    alike = first_seed_alone(board) if _seeds_differ(board, several) else board
    return _over_transfer(alike, several, "sources of auto", whole="auto-ridge" if "auto-ridge" in several else None)


def more_labels(board: Board) -> dict[str, str]:
    """Row -> label of the measured rows of transfer with more labels."""
    return {name: f"transfer with {count} times the labels" for name, count in LABELS.items() if name in board.methods}


def auto_beside_labels(board: Board) -> dict[str, Summary]:
    """Label -> auto over transfer with these labels, and with more, on the targets and seeds that both have."""
    rows = {REFERENCE: "transfer with these labels", **more_labels(board)}
    differences = {label: contrasts.difference(board, "auto-ridge", name) for name, label in rows.items()}
    return {label: over for label, over in differences.items() if over is not None}


def _labels(board: Board) -> str:
    """Auto beside transfer with more labels, on the targets and seeds of both, and on those of all rows."""
    if not more_labels(board):
        return NO_LINE
    alike = auto_beside_labels(shared(board, ("auto-ridge", REFERENCE, *more_labels(board))))
    lines = []
    for label, over in auto_beside_labels(board).items():
        losses = sorted(target for target, pairs in over.by_target.items() if pairs.mean < 0)
        same = f"{alike[label].mean:+.1f}" if alike else "-"
        shown = (str(len(over.by_target)), markdown.span(*over.seeds), same, ", ".join(losses) or "none")
        lines.append([label, markdown.interval(over), *shown])
    common = len(next(iter(alike.values())).by_target) if alike else 0
    same = f"on the {common} target{'' if common == 1 else 's'} of all rows"
    head = ("auto beside", "points of auto over it [95 %]", "targets", "seeds", same, "auto is behind on")
    table = markdown.grid(head, lines)
    if board.score != SCORES[0] or board.profile not in CLAIMS:
        return table
    plot = f"../benchmarks/suite/plots/{LABELS_PLOT.format(profile=board.profile)}"
    return f"{table}\n\n![Points of auto over transfer with one to eight times the labels]({plot})"


def _claims(board: Board) -> str:
    """Each claim of the board's profile with its verdict, and whether auto harms a target."""
    rows, measured = [], False
    for claimed in CLAIMS[board.profile]:
        outcome = contrasts.contrast(counted(board, claimed), claimed.claim)
        over, claim = outcome.measured, claimed.claim
        measured |= over is not None
        limits = f", seed {claimed.first_seed} and later" if claimed.first_seed else ""
        limits += f", without {', '.join(claimed.without)}" if claimed.without else ""
        before = detectable(claimed.spreads[SCORES.index(board.score)], TARGETS - len(claimed.without))
        rows.append(
            [
                f"{claim.number}. `{claim.first}` over `{claim.second}`{limits}",
                f"{claim.at_least:g}" if claim.at_least else "above 0",
                f"{before:.1f}, {_detectable_by(over)}",
                markdown.interval(over) if over else "-",
                f"{over.p:.3f}" if over else "-",
                str(len(over.by_target)) if over else "-",
                f"**{outcome.verdict}**",
            ]
        )
    if not measured:
        return NO_LINE
    head = (
        "claim",
        "at least",
        "detectable: as expected, as it fell",
        "mean of targets [95 %]",
        "p",
        "targets",
        "verdict",
    )
    return f"{markdown.grid(head, rows)}\n\n{harm(board)}"


def _detectable_by(over: Summary | None) -> str:
    """The detectable difference at the spread of the runs themselves."""
    means = [pairs.mean for pairs in over.by_target.values()] if over else []
    return f"{detectable(stdev(means), len(means)):.1f}" if len(means) > 1 else "-"


def counted(board: Board, claimed: Expected) -> Board:
    """The board without the seeds and the targets that a claim does not count."""
    return _where(board, lambda target, seed: target not in claimed.without and seed >= claimed.first_seed)


def harm(board: Board) -> str:
    """Whether a target lies wholly more than HARM points below transfer under auto, by either start of transfer."""
    return "\n\n".join(_harm(board, rival) for rival in (REFERENCE, "transfer"))


def _harm(board: Board, rival: str) -> str:
    claim = f"Targets on which `auto-ridge` lies wholly more than {HARM:g} points under `{rival}`"
    over = contrasts.difference(board, "auto-ridge", rival)
    if over is None or over.seeds[1] < 2:  # it takes two seeds to tell
        return f"{claim}: not measured."
    below = [target for target, pairs in over.by_target.items() if pairs.high < -HARM]
    single = [target for target, pairs in over.by_target.items() if pairs.n < 2]
    note = f" One seed says nothing of {', '.join(single)}." if single else ""
    return f"{claim} (claim: none): {', '.join(below) or 'none'}.{note}"
