"""The suite's Markdown tables, each a pure function of boards; points with one decimal, every mean with its spread."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from benchmarks.suite import contrasts, rankers, statistics
from benchmarks.suite.board import Board
from benchmarks.suite.contrasts import Contrast
from benchmarks.suite.statistics import Across, Paired

NOTHING = "Nothing measured yet."
ABSENT = "-"


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *lines])


def signed(value: float) -> str:
    """Points with a sign: "+3.1"; never "-0.0"."""
    return f"{round(value, 1) + 0.0:+.1f}"


def interval(one: Paired | Across) -> str:
    """Mean and 95 % interval: "+3.1 [+1.0, +5.2]"; "one seed" where there is no interval."""
    spread = f"[{signed(one.low)}, {signed(one.high)}]" if math.isfinite(one.low) else "(one seed)"
    return f"{signed(one.mean)} {spread}"


def span(least: int, most: int) -> str:
    """ "6", or "4-6" where it differs."""
    return str(least) if least == most else f"{least}-{most}"


def methods(board: Board) -> str:
    """Methods x targets: mean and standard deviation over seeds; the mean over targets leads, the best on top."""
    names, targets = contrasts.ordered(board), board.targets
    if not names:
        return NOTHING
    rows = [[f"`{name}`", _mean(board, name), *(_cell(board, name, target) for target in targets), _seeds(board, name),
             _images(board, name)] for name in names]  # fmt: skip
    text = grid(["method", "mean", *targets, "seeds", "images seen, thousand"], rows)
    return text + (f"\n\n{board.left_out} lines of older configurations left out." if board.left_out else "")


def _mean(board: Board, method: str) -> str:
    run_on, targets = len(board.methods[method]), len(board.targets)
    part = "" if run_on == targets else f" ({run_on} of {targets} targets)"
    return f"{contrasts.mean(board, method):.1f}{part}"


def _cell(board: Board, method: str, target: str) -> str:
    values = list(board.methods[method].get(target, {}).values())
    if not values:
        return ABSENT
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def _seeds(board: Board, method: str) -> str:
    counts = [len(seeds) for seeds in board.methods[method].values()]
    return span(min(counts), max(counts))


def _images(board: Board, method: str) -> str:
    """How many images the student was shown, augmented ones each time anew: what makes a comparison fair."""
    counts = [round(line["samples"] / 1000) for line in board.runs
              if line["method"] == method and line.get("samples")]  # fmt: skip
    return span(min(counts), max(counts)) if counts else ABSENT


def claims(board: Board) -> str:
    """Every claim with what was measured and its verdict."""
    rows = [_claim(contrasts.contrast(board, claim)) for claim in contrasts.CLAIMS]
    head = ["claim", "at least", "mean of targets [95 %]", "over 0 in", "p", "targets won (clearly)", "targets",
            "seeds", "verdict"]  # fmt: skip
    return grid(head, rows)


def _claim(one: Contrast) -> list[str]:
    lead = [_name(one), f"{one.claim.at_least:.1f}" if one.claim.at_least else "above 0"]
    if one.measured is None:
        return [*lead, *[ABSENT] * 6, f"**{one.verdict}**"]
    found, (won, clearly) = one.measured, one.measured.wins
    return [*lead, interval(found), f"{100 * found.above:.0f} % of draws", f"{found.p:.3f}", f"{won} ({clearly})",
            str(len(found.by_target)), span(*found.seeds), f"**{one.verdict}**"]  # fmt: skip


def _name(one: Contrast) -> str:
    """The claim's name, with the method where the claim leaves it open."""
    return one.claim.name + (f" (`{one.first}`)" if one.first != one.claim.first else "")


def per_target(board: Board) -> str:
    """Every claim's paired differences target by target: mean, t-interval, sign-flip p, seeds."""
    found = [(_name(one), one.measured) for one in (contrasts.contrast(board, claim) for claim in contrasts.CLAIMS)]
    measured = [(name, one) for name, one in found if one is not None]
    if not measured:
        return NOTHING
    rows = [[name, *(_pair(one.by_target.get(target)) for target in board.targets)] for name, one in measured]
    return grid(["claim", *board.targets], rows)


def _pair(one: Paired | None) -> str:
    return ABSENT if one is None else f"{interval(one)}, p {one.p:.3f}, n {one.n}"


def similarity(board: Board) -> str:
    """Every ranker of the sources: agreement with the truth, regret, and what it adds to the static ranker."""
    judged = rankers.judge(board)
    if not judged:
        return NOTHING
    rows = [[one.name, _across(one.spearman, 2), _across(one.regret, 1), _percent(one.chose_best),
             _across(one.over_static, 2), _draws(one.regret)] for one in judged]  # fmt: skip
    head = ["ranker", "Spearman with the truth [95 %]", "regret, points [95 %]", "chose the best",
            "Spearman over static [95 %]", "targets, draws"]  # fmt: skip
    return grid(head, rows) + "\n\n" + _truths(board)


def _across(one: Across | None, digits: int) -> str:
    if one is None:
        return ABSENT
    mean, low, high = (f"{round(value, digits) + 0.0:.{digits}f}" for value in (one.mean, one.low, one.high))
    return f"{mean} [{low}, {high}]"


def _percent(share: float | None) -> str:
    return ABSENT if share is None else f"{100 * share:.0f} %"


def _draws(one: Across | None) -> str:
    return ABSENT if one is None else f"{len(one.by_target)}, {sum(pair.n for pair in one.by_target.values())}"


def _truths(board: Board) -> str:
    known = rankers.truths(board)
    words = {"students": "students distilled from each source alone", "probes": "linear probes of the sources"}
    said = [f"{words[by]}: {', '.join(names)}" for by in ("students", "probes")
            if (names := [target for target, one in known.items() if one.by == by])]  # fmt: skip
    return f"The truth is told by {'; by '.join(said)}."


def ceilings(board: Board) -> str:
    """The student beside those who teach it: the best source's probe and the ensembles' own accuracy."""
    teachers = sorted({name for seeds in board.draws.values() for draw in seeds.values()
                       for name in draw.get("teachers", {})})  # fmt: skip
    if not board.draws:
        return NOTHING
    best = contrasts.best(board)
    students = ["transfer", "weighted", *([best] if best else [])]
    rows = [[target, *(_student(board, name, target) for name in students), _probe(board, target),
             *(_teacher(board, name, target) for name in teachers)] for target in board.targets]  # fmt: skip
    return grid(["target", *(f"student, `{name}`" for name in students), "best source's probe",
                 *(f"ensemble, `{name}`" for name in teachers)], rows)  # fmt: skip


def _student(board: Board, method: str, target: str) -> str:
    return _cell(board, method, target) if method in board.methods else ABSENT


def _probe(board: Board, target: str) -> str:
    """The source whose linear probe is best on held-out images, by its mean over the draws."""
    values: dict[str, list[float]] = {}
    for draw in board.draws.get(target, {}).values():
        for name, one in draw.get("source_probes", {}).items():
            values.setdefault(name, []).append(100 * one[board.score])
    if not values:
        return ABSENT
    name, mean = max(((name, float(np.mean(found))) for name, found in values.items()), key=lambda pair: pair[1])
    return f"{mean:.1f} ({name})"


def _teacher(board: Board, name: str, target: str) -> str:
    """The ensemble's accuracy; "under transfer" where it knows less than a student that had the labels alone."""
    values = {seed: 100 * draw["teachers"][name][board.score]
              for seed, draw in board.draws.get(target, {}).items() if name in draw.get("teachers", {})}  # fmt: skip
    if not values:
        return ABSENT
    over = statistics.across(statistics.minus({target: values}, board.methods.get("transfer", {})))
    warning = ", **under transfer**" if over is not None and over.mean < 0 else ""
    return f"{np.mean(list(values.values())):.1f}{warning}"


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
SECTIONS: dict[str, Section] = {"methods": methods, "claims": claims, "per_target": per_target,
                                "similarity": similarity, "ceilings": ceilings}  # fmt: skip
