"""The suite's Markdown tables, each a pure function of boards; points with one decimal, every mean with its spread."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from benchmarks.suite import contrasts, rankers
from benchmarks.suite.board import Board
from benchmarks.suite.contrasts import Claim, Contrast
from benchmarks.suite.statistics import Across, Paired

NOTHING = "Nothing measured yet."
ABSENT = "-"


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *lines])


def signed(value: float, digits: int = 1) -> str:
    """Points with a sign: "+3.1"; never "-0.0"."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def interval(one: Paired | Across, digits: int = 1) -> str:
    """Mean and 95 % interval: "+3.1 [+1.0, +5.2]"; "one seed" where there is no interval."""
    spread = f"[{signed(one.low, digits)}, {signed(one.high, digits)}]" if math.isfinite(one.low) else "(one seed)"
    return f"{signed(one.mean, digits)} {spread}"


def span(least: int, most: int) -> str:
    """ "6", or "4-6" where it differs."""
    return str(least) if least == most else f"{least}-{most}"


def methods(board: Board) -> str:
    """Methods x targets: mean and standard deviation over seeds; the mean over targets leads, the best on top."""
    names, targets = contrasts.ordered(board), board.targets
    if not names:
        return NOTHING
    rows = [
        [
            f"`{name}`",
            _mean(board, name),
            *(_cell(board, name, target) for target in targets),
            _seeds(board, name),
            _images(board, name),
        ]
        for name in names
    ]
    text = grid(["method", "mean", *targets, "seeds", "images seen, thousand"], rows)
    return text + (f"\n\n{board.left_out} lines of older configurations left out." if board.left_out else "")


def _mean(board: Board, method: str) -> str:
    run_on, targets = len(board.methods[method]), len(board.targets)
    part = "" if run_on == targets else f" ({run_on} of {targets} targets)"
    return f"{contrasts.mean(board, method):.1f}{part}"


def _cell(board: Board, method: str, target: str) -> str:
    return _spread(list(board.methods[method].get(target, {}).values()))


def _spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    if not values:
        return ABSENT
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def _seeds(board: Board, method: str) -> str:
    counts = [len(seeds) for seeds in board.methods[method].values()]
    return span(min(counts), max(counts))


def _images(board: Board, method: str) -> str:
    """How many images the student was shown, augmented ones each time anew: what makes a comparison fair."""
    counts = [round(line["samples"] / 1000) for line in board.runs if line["method"] == method and line.get("samples")]
    return span(min(counts), max(counts)) if counts else ABSENT


def claims(board: Board) -> str:
    """Every claim with what was measured and its verdict, and the verdict of those that have parts."""
    found = [contrasts.contrast(board, claim) for claim in contrasts.CLAIMS]
    rows = [[_name(one), _least(one.claim), *_measured(one), f"**{one.verdict}**"] for one in found]
    whole = "; ".join(f"claim {number}: **{word}**" for number, word in contrasts.together(found).items())
    table = grid(["claim", "at least", *MEASURED, "verdict"], rows)
    return f"{table}\n\nA claim in parts holds where all of them do: {whole}."


def also(board: Board) -> str:
    """Contrasts that were looked at without a claim: what was measured, no verdict."""
    found = [contrasts.contrast(board, claim) for claim in contrasts.LOOKED_AT]
    table = grid(["difference", *MEASURED], [[_name(one), *_measured(one)] for one in found])
    return f"{table}\n\n{NOT_ALIKE}"


NOT_ALIKE = (
    f"{contrasts.PROBE.capitalize()} is scored on the unlabeled images, the students on the test images; the source is"
    " the one whose probe turned out best there."
)
MEASURED = ("mean of targets [95 %]", "over 0 in", "p", "targets won (clearly)", "targets", "seeds")


def _measured(one: Contrast) -> list[str]:
    if one.measured is None:
        return [ABSENT] * len(MEASURED)
    found, (won, clearly) = one.measured, one.measured.wins
    return [
        interval(found, _digits(one.claim)),
        f"{100 * found.above:.0f} % of draws",
        f"{found.p:.3f}",
        f"{won} ({clearly})",
        str(len(found.by_target)),
        span(*found.seeds),
    ]


def _least(claim: Claim) -> str:
    if claim.margin:
        return f"at least as good (margin {claim.margin:.1f})"
    return f"{claim.at_least:.1f}" if claim.at_least else "above 0"


def _digits(claim: Claim) -> int:
    """Points have one decimal, Spearman's correlation two."""
    return 2 if claim.of == "spearman" else 1


def _name(one: Contrast) -> str:
    """The claim's number and name, with the method where the claim leaves it open."""
    lead = f"{one.claim.number}. " if one.claim.number else ""
    return lead + one.claim.name + (f" (`{one.first}`)" if one.first != one.claim.first else "")


def per_target(board: Board) -> str:
    """Every difference of both tables target by target: mean, t-interval, sign-flip p, seeds."""
    found = [contrasts.contrast(board, claim) for claim in (*contrasts.CLAIMS, *contrasts.LOOKED_AT)]
    rows = [
        [_name(one), *(_pair(one, target) for target in board.targets)] for one in found if one.measured is not None
    ]
    return grid(["difference", *board.targets], rows) if rows else NOTHING


def _pair(one: Contrast, target: str) -> str:
    pair = one.measured.by_target.get(target) if one.measured else None
    return ABSENT if pair is None else f"{interval(pair, _digits(one.claim))}, p {pair.p:.3f}, n {pair.n}"


def similarity(board: Board) -> str:
    """Every ranker of the sources: agreement with the truth, regret, and what it adds to the static ranker."""
    judged = rankers.judge(board)
    if not judged:
        return NOTHING
    rows = [
        [
            one.name,
            _across(one.spearman, 2),
            _across(one.regret, 1),
            _percent(one.chose_best),
            _signed(one.over_static, 2),
            _signed(one.regret_saved, 1),
            _draws(one.regret),
        ]
        for one in judged
    ]
    head = [
        "ranker",
        "Spearman with the truth [95 %]",
        "regret, points [95 %]",
        "chose the best",
        "Spearman over static's [95 %]",
        "regret under static's, points [95 %]",
        "targets, draws",
    ]
    return grid(head, rows) + "\n\n" + _truths(board)


def _across(one: Across | None, digits: int) -> str:
    if one is None:
        return ABSENT
    mean, low, high = (f"{round(value, digits) + 0.0:.{digits}f}" for value in (one.mean, one.low, one.high))
    return f"{mean} [{low}, {high}]"


def _signed(one: Across | None, digits: int) -> str:
    return ABSENT if one is None else interval(one, digits)


def _percent(share: float | None) -> str:
    return ABSENT if share is None else f"{100 * share:.0f} %"


def _draws(one: Across | None) -> str:
    return ABSENT if one is None else f"{len(one.by_target)}, {sum(pair.n for pair in one.by_target.values())}"


def _truths(board: Board) -> str:
    known = rankers.truths(board)
    words = {"students": "students distilled from each source alone", "probes": "linear probes of the sources"}
    said = [
        f"{words[by]}: {', '.join(names)}"
        for by in ("students", "probes")
        if (names := [target for target, one in known.items() if one.by == by])
    ]
    return f"The truth is told by {'; by '.join(said)}."


def ceilings(board: Board) -> str:
    """The student beside those who teach it: the best source's probe and the ensembles' own accuracy.

    Students are scored on the test images, what teaches them on the unlabeled ones: no difference is taken here.
    """
    teachers = sorted(
        {name for seeds in board.draws.values() for draw in seeds.values() for name in draw.get("teachers", {})}
    )
    if not board.draws:
        return NOTHING
    best = contrasts.best(board)
    students = ["transfer", "weighted", *([best] if best else [])]
    probes = rankers.best_probes(board)
    rows = [
        [
            target,
            *(_student(board, name, target) for name in students),
            _probe(probes.get(target)),
            *(_teacher(board, name, target) for name in teachers),
        ]
        for target in board.targets
    ]
    return grid(
        [
            "target",
            *(f"student, `{name}` (test)" for name in students),
            "best source's probe (unlabeled)",
            *(f"ensemble, `{name}` (unlabeled)" for name in teachers),
        ],
        rows,
    )


def _student(board: Board, method: str, target: str) -> str:
    return _cell(board, method, target) if method in board.methods else ABSENT


def _probe(one: tuple[str, Mapping[int, float]] | None) -> str:
    return ABSENT if one is None else f"{_spread(list(one[1].values()))} ({one[0]})"


def _teacher(board: Board, name: str, target: str) -> str:
    values = [
        100 * draw["teachers"][name][board.score]
        for draw in board.draws.get(target, {}).values()
        if name in draw.get("teachers", {})
    ]
    return _spread(values)


def headline(board: Board) -> str:
    """The short table for the project's first page: mean over targets and the paired difference to transfer."""
    names = [name for name in contrasts.ordered(board) if name not in rankers.HINDSIGHT]
    if not names:
        return NOTHING
    rows = [[f"`{name}`", _mean(board, name), *_against(board, name)] for name in names]
    return grid(["method", "mean", "points over transfer [95 %]", "targets won", "seeds"], rows)


def _against(board: Board, method: str) -> list[str]:
    found = None if method == "transfer" else contrasts.difference(board, method, "transfer")
    if found is None:
        return [ABSENT, ABSENT, _seeds(board, method)]
    return [interval(found), f"{found.wins[0]} of {len(found.by_target)}", span(*found.seeds)]


Section = Callable[[Board], str]
SECTIONS: dict[str, Section] = {
    "methods": methods,
    "claims": claims,
    "also": also,
    "per_target": per_target,
    "similarity": similarity,
    "ceilings": ceilings,
}
