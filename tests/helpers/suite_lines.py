"""Lines of a made-up suite, as the runs of benchmarks/suite write them."""

from __future__ import annotations

from typing import Any

Line = dict[str, Any]
PROFILE = "made"  # of no file: of a profile with one, a line counts only with that profile's present settings


def run(target: str, method: str, seed: int, top1: float, **other: Any) -> Line:
    """One student's line; balanced accuracy is a tenth under top-1."""
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
        **other,
    }


def draw(target: str, seed: int, scores: dict[str, dict[str, float]], probes: dict[str, float], **other: Any) -> Line:
    """One label draw's line, the sources weighted alike."""
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
        "source_probes": {name: {"top1": one, "balanced_accuracy": one} for name, one in probes.items()},
        "teachers": {"adapted": {"top1": 0.3, "balanced_accuracy": 0.9}},
        "measured": "2026-11-01T00:00:00Z",
        **other,
    }


def suite(targets: int = 3, seeds: int = 3) -> list[Line]:
    """A small suite: weighted is 6, 8 or 10 points over transfer, source b is the best, the metric "wrong" says a."""
    lines = []
    for target in (f"target{at}" for at in range(targets)):
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


def turned(targets: int = 6) -> list[Line]:
    """Draws of two sources, a the better by 4 points on even targets, b on odd ones: static is always wrong.

    Of six targets the other five hold three of the other kind. "right" is always right, "probe" always says a.
    """
    lines = []
    for at in range(targets):
        good, bad = ("a", "b") if at % 2 == 0 else ("b", "a")
        scores = {"right": {good: 1.0, bad: 0.0}, "probe": {"a": 1.0, "b": 0.0}}
        lines += [draw(f"t{at}", seed, scores, {good: 0.54, bad: 0.5}) for seed in (0, 1)]
    return lines
