"""The tables and the verdicts on the claims, from the lines alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.lines import read
from benchmarks.suite.protocol import load
from benchmarks.suite.statistics import Summary, Targets, paired_differences, summarize
from benchmarks.unknown.figures import CHOSEN, COVERAGE, PLAIN, SCORES

KIND = "unknown"
SEEDS = (0, 1, 2)
QUANTILE = "quantile of the reserve"
Line = Mapping[str, Any]


def table() -> str:
    """The tables and the verdicts of the committed lines."""
    return markdown(list(read(KIND)))


def markdown(lines: Sequence[Line]) -> str:
    """The targets, the scores beside plain max-softmax, and whether the claims hold."""
    newest = {(line["target"], line["seed"]): line for line in lines}.values()
    tuning = load("cpu").tuning
    reported = [line for line in newest if line["target"] not in tuning]
    tuned = [line for line in newest if line["target"] in tuning]
    if not reported:
        return "No line yet."
    parts = [_so_far(reported) + _targets_table(reported), _scores_table(reported, "the targets")]
    parts += [_scores_table(tuned, "the tuning packs")] if tuned else []
    return "\n\n".join([*parts, "\n".join(f"{number}. {text}" for number, text in enumerate(claims(reported), 1))])


def _so_far(lines: Sequence[Line]) -> str:
    """Which targets and seeds the verdicts are of; "" if they are of all."""
    targets, measured = load("cpu").targets, {(line["target"], line["seed"]) for line in lines}
    n = len({target for target, _ in measured})
    missing = []
    for seed in SEEDS:
        without = [target for target in targets if (target, seed) not in measured]
        if without:
            where = "all targets" if len(without) == len(targets) else ", ".join(without)
            missing.append(f"seed {seed} of {where}")
    if not missing:
        return ""
    rest = f"missing: {'; '.join(missing)}. The verdicts are those of the others."
    return f"{n} of {len(targets)} targets so far; {rest}\n\n"


def by_target(lines: Iterable[Line], figure: Callable[[Line], float]) -> Targets:
    """Target -> seed -> a figure of a line in points."""
    values: dict[str, dict[int, float]] = {}
    for line in lines:
        values.setdefault(line["target"], {})[line["seed"]] = 100 * figure(line)
    return values


def _mean(lines: Iterable[Line], figure: Callable[[Line], float]) -> Summary:
    summary = summarize(by_target(lines, figure))
    assert summary is not None, "there are lines"
    return summary


def _difference(lines: Sequence[Line], first: Callable[[Line], float], second: Callable[[Line], float]) -> Summary:
    summary = summarize(paired_differences(by_target(lines, first), by_target(lines, second)))
    assert summary is not None, "there are lines"
    return summary


def area(score: str) -> Callable[[Line], float]:
    """The mean AUROC of a score over the packs of unknowns, as a figure of a line."""
    return lambda line: float(np.mean(list(line["scores"][score]["auroc"].values())))


def sure(score: str) -> Callable[[Line], float]:
    """The accuracy on the surest 90 % of the test images by a score."""
    return lambda line: float(line["scores"][score]["accuracy"])


def rule_figure(rule: str, name: str) -> Callable[[Line], float]:
    """What a rule does: coverage, accuracy or refused."""
    return lambda line: float(line["rules"][rule][name])


def off(rule: str) -> Callable[[Line], float]:
    """The distance of a rule's coverage on the test images from the one that is asked for."""
    return lambda line: abs(line["rules"][rule]["coverage"] - COVERAGE)


def error(temperature: str) -> Callable[[Line], float]:
    """The calibration error at a temperature."""
    return lambda line: float(line["calibration_error"][temperature])


def top1(line: Line) -> float:
    """Accuracy on all test images."""
    return float(line["top1"])


COLUMNS: dict[str, Callable[[Line], float]] = {
    "top-1": top1,
    "on the surest 90 %": sure(CHOSEN),
    "by plain max-softmax": sure(PLAIN),
    "AUROC": area(CHOSEN),
    "of plain max-softmax": area(PLAIN),
    "answered, asked for 90 %": rule_figure("matched", "coverage"),
    "by the folds' rule": rule_figure("as fitted", "coverage"),
    "by the reserve's quantile": rule_figure(QUANTILE, "coverage"),
    "unknowns refused": rule_figure("matched", "refused"),
    "calibration error": error("matched"),
    "without temperature": error("none"),
}


def _targets_table(lines: Sequence[Line]) -> str:
    targets = sorted({line["target"] for line in lines})
    rows = [["target", "seeds", *COLUMNS], ["---"] * (len(COLUMNS) + 2)]
    for target in [*targets, None]:
        chosen = [line for line in lines if target in (None, line["target"])]
        seeds = len({line["seed"] for line in chosen})
        cells = [f"{_mean(chosen, figure).mean:.1f}" for figure in COLUMNS.values()]
        rows.append([target or "**mean**", str(seeds), *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _scores_table(lines: Sequence[Line], which: str) -> str:
    columns = ("AUROC", "over plain max-softmax [95 %]", "on the surest 90 %", "over plain max-softmax [95 %]")
    rows = [[f"score, {which}", *columns], ["---"] * (len(columns) + 1)]
    for score in SCORES:
        cells = []
        for figure in (area, sure):
            cells.append(f"{_mean(lines, figure(score)).mean:.1f}")
            cells.append("-" if score == PLAIN else _signed(_difference(lines, figure(score), figure(PLAIN))))
        rows.append([score, *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _signed(summary: Summary) -> str:
    return f"{summary.mean:+.1f} [{summary.low:+.1f}, {summary.high:+.1f}]"


def _not_shown(summary: Summary) -> str:
    return ", which is not shown" if summary.low <= 0 <= summary.high else ""


def claims(lines: Sequence[Line]) -> list[str]:
    """The verdicts on the claims, in the order in which they were written down."""
    covered = _mean(lines, rule_figure("matched", "coverage"))
    nearer = _difference(lines, off("matched"), off("as fitted"))
    errors = _difference(lines, error("matched"), error("none"))
    better = sum(target.mean < 0 for target in errors.by_target.values())
    gain = _difference(lines, sure(CHOSEN), top1)
    areas = _difference(lines, area(CHOSEN), area(PLAIN))
    plain = _difference(lines, off("matched"), off(QUANTILE))
    within = 87 <= covered.mean <= 93
    coverage = "fails" if not within or nearer.low >= 0 else "holds" if nearer.high < 0 else "not shown"
    return [
        f"Coverage {coverage}: {covered.mean:.1f} % "
        f"[{covered.low:.1f}, {covered.high:.1f}] are answered; the matched threshold is "
        f"{abs(nearer.mean):.1f} points {'nearer to' if nearer.mean < 0 else 'farther from'} 90 % than the folds' "
        f"({_signed(nearer)}). Its distance minus that of the plain quantile: {_signed(plain)}.",
        f"Probabilities {'hold' if better >= 6 else 'fail'}: the calibration error is smaller on {better} of "
        f"{len(errors.by_target)} targets (in the mean {_signed(errors)} points{_not_shown(errors)}).",
        f"Accuracy on the surest 90 % {'holds' if gain.mean >= 2 else 'fails'}: {_signed(gain)} points.",
        f"Unknowns {'hold' if areas.mean >= -0.5 else 'fail'}: the AUROC is {_signed(areas)} points from that of plain "
        "max-softmax.",
    ]
