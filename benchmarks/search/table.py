"""The table of the search, made from committed lines alone."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from benchmarks.lines import read
from benchmarks.search.replay import POLICIES, Line, columns

POINTS, SHARE = 0.5, 1 / 3  # the claim: so near to the best feasible student, for so much of the exhaustive cost
RANDOM = ("random, briefly", "random, in full")
# replayed with the search of b7b863a, before the largest of each family came first
FORMER = ("8 trials, TPE from the first",)


def newest() -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Per pack and policy the replays of every seed that the table holds whole; of two the later one."""
    table, found = columns(), {}
    for line in sorted(read("search-replay"), key=lambda one: one["measured"]):
        known = table.get((line["pack"], line["seed"]))
        if known and line["config"] == next(iter(known.values()))["config"]:
            found[line["pack"], line["policy"], line["seed"]] = line
    grouped = defaultdict(list)
    for (pack, policy, _), line in sorted(found.items()):
        grouped[pack, policy].append(line)
    return dict(grouped)


def truth(pack: str) -> dict[str, float]:
    """Every student's accuracy on test after its full distillation, in points, mean over the seeds."""
    found = defaultdict(list)
    for (of, _), lines in columns().items():
        for name, line in lines.items():
            if of == pack:
                found[name].append(100 * line["top1"])
    return {name: float(np.mean(values)) for name, values in found.items()}


def whole_cost(lines: dict[str, Line]) -> dict[str, float]:
    """What it costs to train every feasible student in full."""
    return {
        "seconds": sum(one["full_seconds"] for one in lines.values()),
        "macs": sum(one["macs_m"] * one["full_steps"] for one in lines.values()),
    }


def exhaustive(pack: str) -> tuple[float, float]:
    """Mean regret in points of training all in full and taking the best on val, and the share of seeds in reach."""
    known = truth(pack)
    regrets = []
    for (of, _), lines in columns().items():
        if of == pack:
            winner = max(lines, key=lambda name: lines[name]["full_val"])
            regrets.append(max(known.values()) - known[winner])
    return float(np.mean(regrets)), float(np.mean([one <= POINTS for one in regrets]))


def row(pack: str, policy: str, lines: list[dict[str, Any]]) -> dict[str, float]:
    """Mean regret in points, its 90th percentile, the share of repeats in reach, and the shares of the cost."""
    known, table = truth(pack), columns()
    regrets = [max(known.values()) - known[one["winner"]] for line in lines for one in line["repeats"]]
    shares = {
        what: [
            one["spent"][what] / whole_cost(table[pack, line["seed"]])[what]
            for line in lines
            for one in line["repeats"]
        ]
        for what in ("seconds", "macs")
    }
    return {
        "regret": float(np.mean(regrets)),
        "p90": float(np.percentile(regrets, 90)),
        "reached": float(np.mean([one <= POINTS for one in regrets])),
        **{what: float(np.mean(values)) for what, values in shares.items()},
    }


def markdown() -> str:
    """One row a pack and policy; the exhaustive one beside them."""
    found = newest()
    out = [
        "| pack | policy | points below the best, mean (90 %) | within 0.5 points | exhaustive cost, seconds (MACs) "
        "| claim |",
        "|---|---|---|---|---|---|",
    ]
    for pack in dict.fromkeys(pack for pack, _ in found):
        regret, reached = exhaustive(pack)
        out.append(f"| {pack} | everything in full, best on val | {regret:.1f} | {reached:.0%} | 100% (100%) | - |")
        for policy in (one for one in (*POLICIES, *FORMER, *RANDOM) if (pack, one) in found):
            one = row(pack, policy, found[pack, policy])
            holds = one["regret"] <= POINTS and one["seconds"] <= SHARE
            claim = "holds" if holds else "fails"
            claim = claim if policy in POLICIES else f"({claim})"
            out.append(
                f"| {pack} | {policy} | {one['regret']:.1f} ({one['p90']:.1f}) | {one['reached']:.0%} | "
                f"{one['seconds']:.0%} ({one['macs']:.0%}) | {claim} |"
            )
    return "\n".join(out)


def best(pack: str, count: int = 4) -> str:
    """The best students of a pack, with their accuracies."""
    known = truth(pack)
    order = sorted(known, key=lambda name: -known[name])[:count]
    return "; ".join(f"`{name}` {known[name]:.1f}" for name in order)
