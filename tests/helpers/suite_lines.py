"""Result lines of a synthetic suite, as the runs of benchmarks/suite write them."""

from __future__ import annotations

from typing import Any

Line = dict[str, Any]
PROFILE = "made"  # without a file: a line of a profile that has one counts only with its present settings


def run(target: str, method: str, seed: int, top1: float, **fields: Any) -> Line:
    """One student's line; balanced accuracy is 0.1 below top-1."""
    return {
        "kind": "run",
        "profile": PROFILE,
        "target": target,
        "method": method,
        "seed": seed,
        "labels_per_class": 10,
        "student": "micro width=16 at 32 px",
        "top1": top1,
        "balanced_accuracy": top1 - 0.1,
        "n_test": 3000,
        "steps": 400,
        "samples": 51200,
        "config": f"config of {method}",
        "measured": "2026-11-01T00:00:00Z",
        **fields,
    }


def draw(target: str, seed: int, scores: dict[str, dict[str, float]], probes: dict[str, float], **fields: Any) -> Line:
    """One label draw's line, with equal source weights."""
    names = list(next(iter(scores.values())))
    return {
        "kind": "draw",
        "profile": PROFILE,
        "target": target,
        "seed": seed,
        "labels_per_class": 10,
        "n_labeled": 100,
        "scores": scores,
        "ceilings": {},
        "alphas": dict.fromkeys(names, 1 / len(names)),
        "effective_sources": len(names),
        "source_probes": {name: {"top1": top1, "balanced_accuracy": top1} for name, top1 in probes.items()},
        "teachers": {"adapted": {"top1": 0.3, "balanced_accuracy": 0.9}},
        "measured": "2026-11-01T00:00:00Z",
        **fields,
    }


def suite(targets: int = 3, seeds: int = 3) -> list[Line]:
    """A small suite: weighted is 6, 8 or 10 points above transfer, source b is best, "wrong" picks a."""
    lines = []
    for target in (f"target{index}" for index in range(targets)):
        for seed in range(seeds):
            base = 0.4 + 0.01 * seed
            gains = {
                "transfer": 0.0,
                "fixmatch": 0.01,
                "weighted": 0.06 + 0.02 * seed,
                "adapted": 0.1,
                "nearest": 0.02,
                "single:a": 0.0,
                "single:b": 0.04,
            }
            lines += [run(target, method, seed, base + gain) for method, gain in gains.items()]
            scores = {"right": {"a": 0.0, "b": 1.0}, "wrong": {"a": 1.0, "b": 0.0}}
            lines.append(draw(target, seed, scores, {"a": 0.5, "b": 0.45}))
    return lines


def alternating_suite(targets: int = 6) -> list[Line]:
    """Draws of two sources: a is better by 4 points on even targets, b on odd ones, so static is always wrong.

    Of six targets, the other five include three of the opposite kind. "right" always picks the better one,
    "probe" always a.
    """
    lines = []
    for index in range(targets):
        better, worse = ("a", "b") if index % 2 == 0 else ("b", "a")
        scores = {"right": {better: 1.0, worse: 0.0}, "probe": {"a": 1.0, "b": 0.0}}
        lines += [draw(f"t{index}", seed, scores, {better: 0.54, worse: 0.5}) for seed in (0, 1)]
    return lines


def without_clock(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines without what differs from run to run."""
    clock_fields = {"train_seconds", "measured", "commit"}
    return [{name: field for name, field in row.items() if name not in clock_fields} for row in rows]
