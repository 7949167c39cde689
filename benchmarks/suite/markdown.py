"""The suite's Markdown tables, each a pure function of boards; points with one decimal, every mean with its spread."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np

from benchmarks.suite import contrasts, rankers
from benchmarks.suite.board import Board
from benchmarks.suite.contrasts import Claim, Contrast
from benchmarks.suite.protocol import HERE, OWN_KEYS, load
from benchmarks.suite.statistics import Paired, Summary
from edgedistill.distill.methods import METHODS
from edgedistill.recipe.presets import AUTO

NOTHING = "Nothing measured yet."
ABSENT = "-"


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *lines])


def signed(points: float, digits: int = 1) -> str:
    """Points with a sign: "+3.1"; never "-0.0"."""
    return f"{round(points, digits) + 0.0:+.{digits}f}"


def interval(summary: Paired | Summary, digits: int = 1) -> str:
    """Mean and 95 % interval: "+3.1 [+1.0, +5.2]"; "one seed" or "one target" where there is no interval."""
    low, high = summary.low, summary.high
    if isinstance(summary, Summary) and len(summary.by_target) == 1:
        return f"{signed(summary.mean, digits)} (one target)"
    spread = f"[{signed(low, digits)}, {signed(high, digits)}]" if math.isfinite(low) else "(one seed)"
    return f"{signed(summary.mean, digits)} {spread}"


def span(least: int, most: int) -> str:
    """ "6", or "4-6" where it differs."""
    return str(least) if least == most else f"{least}-{most}"


def methods(board: Board) -> str:
    """Methods x targets: mean and standard deviation over seeds; first the mean over targets, best on top."""
    names, targets = contrasts.ranked_methods(board), board.targets
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
    """Thousands of images in all training steps, each augmented view counted, so that budgets can be compared."""
    counts = [round(line["samples"] / 1000) for line in board.runs if line["method"] == method and line.get("samples")]
    return span(min(counts), max(counts)) if counts else ABSENT


def claims(board: Board, written: Sequence[Claim] = contrasts.CLAIMS) -> str:
    """Every claim with its statistics and verdict, and the combined verdicts of claims with parts."""
    evaluated = [contrasts.contrast(board, claim) for claim in written]
    rows = [
        [_name(contrast), _threshold(contrast.claim), *_statistics(contrast), f"**{contrast.verdict}**"]
        for contrast in evaluated
    ]
    combined = contrasts.combined_verdicts(evaluated)
    verdicts = "; ".join(f"claim {number}: **{verdict}**" for number, verdict in combined.items())
    table = grid(["claim", "at least", *STATISTICS, "verdict"], rows)
    return f"{table}\n\nA claim in parts holds where all of them do: {verdicts}."


def unclaimed(board: Board, differences: Sequence[Claim] = contrasts.UNCLAIMED) -> str:
    """Contrasts that were not claimed: their statistics, without verdicts."""
    evaluated = [contrasts.contrast(board, claim) for claim in differences]
    table = grid(["difference", *STATISTICS], [[_name(contrast), *_statistics(contrast)] for contrast in evaluated])
    with_probe = any(contrasts.PROBE in (claim.first, claim.second) for claim in differences)
    return f"{table}\n\n{PROBE_NOTE}" if with_probe else table


PROBE_NOTE = (
    f"{contrasts.PROBE.capitalize()} is scored on the unlabeled images, the students on the test images; the source is"
    " the one whose probe turned out best there."
)
STATISTICS = ("mean of targets [95 %]", "over 0 in", "p", "targets won (clearly)", "targets", "seeds")


def _statistics(contrast: Contrast) -> list[str]:
    if contrast.measured is None:
        return [ABSENT] * len(STATISTICS)
    summary, (won, clearly) = contrast.measured, contrast.measured.wins
    return [
        interval(summary, _digits(contrast.claim)),
        f"{100 * summary.above:.0f} % of draws",
        f"{summary.p:.3f}",
        f"{won} ({clearly})",
        str(len(summary.by_target)),
        span(*summary.seeds),
    ]


def _threshold(claim: Claim) -> str:
    if claim.margin:
        return f"at least as good (margin {claim.margin:.1f})"
    return f"{claim.at_least:.1f}" if claim.at_least else "above 0"


def _digits(claim: Claim) -> int:
    """Points have one decimal, Spearman's correlation two."""
    return 2 if claim.measure == "spearman" else 1


def _name(contrast: Contrast) -> str:
    """The claim's number and name, with the method where the claim has a placeholder."""
    lead = f"{contrast.claim.number}. " if contrast.claim.number else ""
    return lead + contrast.claim.name + (f" (`{contrast.first}`)" if contrast.first != contrast.claim.first else "")


def per_target(board: Board, differences: Sequence[Claim] = (*contrasts.CLAIMS, *contrasts.UNCLAIMED)) -> str:
    """Every contrast target by target: mean, t-interval, sign-flip p, seeds."""
    evaluated = [contrasts.contrast(board, claim) for claim in differences]
    rows = [
        [_name(contrast), *(_pair(contrast, target) for target in board.targets)]
        for contrast in evaluated
        if contrast.measured is not None
    ]
    return grid(["difference", *board.targets], rows) if rows else NOTHING


def _pair(contrast: Contrast, target: str) -> str:
    pair = contrast.measured.by_target.get(target) if contrast.measured else None
    return ABSENT if pair is None else f"{interval(pair, _digits(contrast.claim))}, p {pair.p:.3f}, n {pair.n}"


def similarity(board: Board) -> str:
    """Every ranker of the sources: correlation with the truth, regret, and the differences to the static ranker."""
    evaluations = rankers.evaluate_rankers(board)
    if not evaluations:
        return NOTHING
    rows = [
        [
            ranker.name,
            _unsigned(ranker.spearman, 2),
            _unsigned(ranker.regret, 1),
            _percent(ranker.chose_best),
            _signed(ranker.over_static, 2),
            _signed(ranker.regret_saved, 1),
            _draws(ranker.regret),
        ]
        for ranker in evaluations
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


def _unsigned(summary: Summary | None, digits: int) -> str:
    if summary is None:
        return ABSENT
    numbers = (summary.mean, summary.low, summary.high)
    mean, low, high = (f"{round(number, digits) + 0.0:.{digits}f}" for number in numbers)
    return f"{mean} [{low}, {high}]"


def _signed(summary: Summary | None, digits: int) -> str:
    return ABSENT if summary is None else interval(summary, digits)


def _percent(share: float | None) -> str:
    return ABSENT if share is None else f"{100 * share:.0f} %"


def _draws(summary: Summary | None) -> str:
    if summary is None:
        return ABSENT
    return f"{len(summary.by_target)}, {sum(target.n for target in summary.by_target.values())}"


def _truths(board: Board) -> str:
    truths = rankers.known_truths(board)
    words = {"students": "students distilled from each source alone", "probes": "linear probes of the sources"}
    clauses = [
        f"{words[basis]}: {', '.join(names)}"
        for basis in ("students", "probes")
        if (names := [target for target, truth in truths.items() if truth.basis == basis])
    ]
    return f"The truth is told by {'; by '.join(clauses)}."


def ceilings(board: Board) -> str:
    """Accuracies of students, of the best source's probe, and of the teachers (ensembles), by target.

    Students are scored on the test images, probes and teachers on the unlabeled ones, so no differences are computed.
    """
    teachers = sorted(
        {name for seeds in board.draws.values() for draw in seeds.values() for name in draw.get("teachers", {})}
    )
    if not board.draws:
        return NOTHING
    best = contrasts.best_method(board)
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


def _probe(probe: tuple[str, Mapping[int, float]] | None) -> str:
    return ABSENT if probe is None else f"{_spread(list(probe[1].values()))} ({probe[0]})"


def _teacher(board: Board, name: str, target: str) -> str:
    values = [
        100 * draw["teachers"][name][board.score]
        for draw in board.draws.get(target, {}).values()
        if name in draw.get("teachers", {})
    ]
    return _spread(values)


def headline(board: Board, only: Collection[str] = ()) -> str:
    """The table of the methods: mean over targets and the paired difference to transfer.

    `only` names the rows to keep; without it all are kept.
    """
    names = [name for name in contrasts.ranked_methods(board) if name not in rankers.HINDSIGHT]
    names = [name for name in names if not only or name in only]
    if not names:
        return NOTHING
    rows = [[*recipe_names(board.profile, name), _mean(board, name), *_over_transfer(board, name)] for name in names]
    return grid(["method", "in a recipe", "mean", "points over transfer [95 %]", "targets won", "seeds"], rows)


def recipe_names(profile: str, name: str) -> tuple[str, str]:
    """What a row of a profile is called, and what a recipe says for it; the row of the default is called `auto`."""
    if not (HERE / f"{profile}.yaml").is_file():
        return f"`{name}`", ABSENT
    rules = load(profile)
    settings, own = rules.settings(name, "", 0), rules.methods[name.partition(":")[0]]
    method, teacher = METHODS[settings.method.name], settings.teacher.name
    shown = f"`{settings.method.name}`" + (f", teacher `{teacher}`" if "teacher" in method.needs else "")
    others = {key: own[key] for key in ("steps", "head_start", *OWN_KEYS) if key in own}
    others |= {"tuned": settings.teacher.options["tuned"]} if settings.teacher.options.get("tuned") else {}
    default = (AUTO["method"]["name"], AUTO["teacher"]["name"])
    shown += "".join(f", {key} {setting}" for key, setting in others.items())
    return ("`auto`" if default == (settings.method.name, teacher) and not others else f"`{name}`"), shown


def _over_transfer(board: Board, method: str) -> list[str]:
    difference = None if method == "transfer" else contrasts.difference(board, method, "transfer")
    if difference is None:
        return [ABSENT, ABSENT, _seeds(board, method)]
    return [interval(difference), f"{difference.wins[0]} of {len(difference.by_target)}", span(*difference.seeds)]


Section = Callable[[Board], str]
SECTIONS: dict[str, Section] = {
    "methods": methods,
    "claims": claims,
    "also": unclaimed,
    "per_target": per_target,
    "similarity": similarity,
    "ceilings": ceilings,
}
