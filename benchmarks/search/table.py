"""The table of the search, made from committed lines alone."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from benchmarks.lines import read
from benchmarks.search.replay import POLICIES, Line, columns

MAX_REGRET, MAX_SHARE = 0.5, 1 / 3  # the claim: points below the best feasible student; share of the exhaustive cost
RANDOM = ("random, briefly", "random, in full")
# what a short training shows of a student, in words, and the sign of its correlation with the accuracy
FIRST_LOOKS = {"value": ("score on val", 1), "loss": ("held-out loss", -1), "agreement": ("agreement", 1)}
# replayed with the search of b7b863a, which did not yet begin with the largest of each family
FORMER = ("8 trials, TPE from the first",)


def newest() -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Per pack and policy the newest replay of every seed that has a complete column in the table."""
    table, by_key = columns(), {}
    for line in sorted(read("search-replay"), key=lambda line: line["measured"]):
        column = table.get((line["pack"], line["seed"]))
        if column and line["config"] == next(iter(column.values()))["config"]:
            by_key[line["pack"], line["policy"], line["seed"]] = line
    grouped = defaultdict(list)
    for (pack, policy, _), line in sorted(by_key.items()):
        grouped[pack, policy].append(line)
    return dict(grouped)


def truth(pack: str) -> dict[str, float]:
    """Every student's accuracy on test after its full distillation, in points, mean over the seeds."""
    accuracies = defaultdict(list)
    for (column_pack, _), lines in columns().items():
        for name, line in lines.items():
            if column_pack == pack:
                accuracies[name].append(100 * line["top1"])
    return {name: float(np.mean(values)) for name, values in accuracies.items()}


def exhaustive_cost(lines: dict[str, Line]) -> dict[str, float]:
    """The cost of training every feasible student in full."""
    return {
        "seconds": sum(line["full_seconds"] for line in lines.values()),
        "macs": sum(line["macs_m"] * line["full_steps"] for line in lines.values()),
    }


def exhaustive(pack: str) -> tuple[float, float]:
    """Mean regret in points of training all in full and choosing by val, and the share of seeds within MAX_REGRET."""
    accuracies = truth(pack)
    regrets = []
    for (column_pack, _), lines in columns().items():
        if column_pack == pack:
            winner = max(lines, key=lambda name: lines[name]["full_val"])
            regrets.append(max(accuracies.values()) - accuracies[winner])
    return float(np.mean(regrets)), float(np.mean([regret <= MAX_REGRET for regret in regrets]))


def row(pack: str, policy: str, lines: list[dict[str, Any]]) -> dict[str, float]:
    """Mean regret in points, its 90th percentile, the share of repeats within MAX_REGRET, the shares of the cost."""
    accuracies, table = truth(pack), columns()
    regrets = [max(accuracies.values()) - accuracies[repeat["winner"]] for line in lines for repeat in line["repeats"]]
    shares = {
        unit: [
            repeat["spent"][unit] / exhaustive_cost(table[pack, line["seed"]])[unit]
            for line in lines
            for repeat in line["repeats"]
        ]
        for unit in ("seconds", "macs")
    }
    return {
        "regret": float(np.mean(regrets)),
        "p90": float(np.percentile(regrets, 90)),
        "reached": float(np.mean([regret <= MAX_REGRET for regret in regrets])),
        **{unit: float(np.mean(values)) for unit, values in shares.items()},
    }


def markdown() -> str:
    """The table: a row for each pack and policy, and one for exhaustive training."""
    grouped = newest()
    out = [
        "| pack | policy | points below the best, mean (90 %) | within 0.5 points | exhaustive cost, seconds (MACs) "
        "| claim |",
        "|---|---|---|---|---|---|",
    ]
    for pack in dict.fromkeys(pack for pack, _ in grouped):
        regret, reached = exhaustive(pack)
        out.append(f"| {pack} | everything in full, best on val | {regret:.1f} | {reached:.0%} | 100% (100%) | - |")
        for policy in (name for name in (*POLICIES, *FORMER, *RANDOM) if (pack, name) in grouped):
            figures = row(pack, policy, grouped[pack, policy])
            holds = figures["regret"] <= MAX_REGRET and figures["seconds"] <= MAX_SHARE
            claim = "holds" if holds else "fails"
            claim = claim if policy in POLICIES else f"({claim})"
            out.append(
                f"| {pack} | {policy} | {figures['regret']:.1f} ({figures['p90']:.1f}) | {figures['reached']:.0%} | "
                f"{figures['seconds']:.0%} ({figures['macs']:.0%}) | {claim} |"
            )
    return "\n".join([*out, "", correlations()])


def correlations() -> str:
    """How well what a short training shows of the students orders them by their accuracy on test, in a sentence."""
    from scipy.stats import spearmanr

    phrases, table = [], [list(lines.values()) for lines in columns().values()]
    for fact, (words, sign) in FIRST_LOOKS.items():
        ranks = [
            sign * spearmanr([line[fact] for line in lines], [line["top1"] for line in lines]).statistic
            for lines in table
            if all(fact in line for line in lines)
        ]
        if ranks:
            phrases.append(f"{words} {min(ranks):.2f} to {max(ranks):.2f} ({len(ranks)} columns)")
    return f"Rank correlation of the students' short trainings with the accuracy on test: {'; '.join(phrases)}."
