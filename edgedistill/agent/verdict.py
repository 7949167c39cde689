"""From what the processes measured to what the report says: accuracy, speed against fp32, and its own weaknesses.

N images.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from . import metrics
from .job import Job, Model

MOST_P50_OVER_MIN, MOST_P99_OVER_P50, LEAST_AGREEMENT = 1.3, 1.5, 0.99
Ratio = Tuple[float, float, float]


def results(job: Job, parts: Sequence[Dict[str, Any]], labels_N: np.ndarray, host: Dict[str, np.ndarray]) -> List[Any]:
    """One entry of the report per model, in the order of the job.

    Args:
        job: what was asked for.
        parts: what `worker.work` returned, one a process.
        labels_N: true classes, int64 [N].
        host: the host's predictions of the same images per model name, int64 [N].
    """
    reference = next((model.name for model in job.models if model.precision == "fp32"), None)
    return [_result(model, reference, parts, labels_N, host.get(model.name)) for model in job.models]


def _result(
    model: Model,
    reference: Optional[str],
    parts: Sequence[Dict[str, Any]],
    labels_N: np.ndarray,
    host_N: Optional[np.ndarray],
) -> Dict[str, Any]:
    mine = [part["models"][model.name] for part in parts]
    predicted = np.asarray(mine[0]["predicted"])
    n = len(predicted)
    samples_ms = [sample for part in mine for round_ in part["rounds_ms"] for sample in round_]
    cells = [[p, r, len(round_)] for p, part in enumerate(mine) for r, round_ in enumerate(part["rounds_ms"])]
    agreement = None if host_N is None else metrics.agreement(predicted, host_N[:n])
    compared = reference is not None and reference != model.name
    ratio = _ratio(parts, str(reference), model.name) if compared else None
    warnings = noise(samples_ms) + unsettled(mine) + disagreement(agreement, n)
    return {
        "name": model.name,
        "sha256": model.sha256,
        "precision": model.precision,
        "samples_ms": samples_ms,
        "cells": cells,
        "warmup_ms": [sample for part in mine for sample in part["warmup_ms"]],
        "accuracy": metrics.accuracy(labels_N[:n], predicted),
        "agreement_with_host": agreement,
        "ratio_to_fp32": ratio,
        "warnings": warnings + (speed(ratio) if compared else []),
    }


def _ratio(parts: Sequence[Dict[str, Any]], reference: str, name: str) -> Optional[Ratio]:
    base, mine = ([[float(np.median(round_)) for round_ in part["models"][which]["rounds_ms"]] for part in parts]
                  for which in (reference, name))  # fmt: skip
    return metrics.ratio_interval(base, mine)


def noise(samples_ms: Sequence[float]) -> List[str]:
    """A warning where the samples spread more than a still machine's do, naming the ratio and the remedy."""
    at = metrics.percentiles(samples_ms)
    spreads = [
        ("p50/min", at["p50"] / at["min"], MOST_P50_OVER_MIN),
        ("p99/p50", at["p99"] / at["p50"], MOST_P99_OVER_P50),
    ]
    found = [f"{name} is {value:.2f} (at most {most})" for name, value, most in spreads if value > most]
    if not found:
        return []
    remedy = "use a quieter machine or the performance governor, or run the recipe with --set bench.seconds=10"
    return [f"noisy: {' and '.join(found)}; {remedy}"]


def unsettled(processes: Sequence[Dict[str, Any]]) -> List[str]:
    """A warning where warm-up reached its bound before two windows agreed."""
    count = sum(not one["settled"] for one in processes)
    if not count:
        return []
    where = f"in {count} of {len(processes)} processes"
    return [f"warm-up did not become stable {where}; close other programs or fix the clocks"]


def disagreement(agreement: Optional[float], n: int) -> List[str]:
    """A warning where the device's answers are not the host's: then the latency belongs to another function."""
    if agreement is None or agreement >= LEAST_AGREEMENT:
        return []
    share = f"{1.0 - agreement:.1%} of {n} images"
    return [f"answers differ from the host's on {share}: this latency is not that of the verified model"]


def speed(ratio: Optional[Ratio]) -> List[str]:
    """What may not be claimed: a ratio without interval, one that contains 1, or one below it."""
    if ratio is None:
        return ["too few rounds to compare with fp32; --set bench.rounds=5 gives an interval"]
    middle, low, high = ratio
    said = f"{middle:.2f} times the speed of fp32 [{low:.2f}, {high:.2f}]"
    if low <= 1.0 <= high:
        return [f"no difference in speed to fp32: {said} contains 1"]
    return [f"slower than fp32: {said}; keep fp32 here unless size decides"] if high < 1.0 else []
