"""From what the processes measured to what the report says: accuracy, speed against fp32, and its own weaknesses.

N images.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from . import metrics, noise, power, to_label
from .backends import OWN_ARITHMETIC
from .job import Job, Model, variant

LEAST_AGREEMENT = 0.99
# of a backend with arithmetic of its own: int8 of two runtimes, or float in 16 bits, may answer otherwise where classes
# are close, as int8 does; it is the verified model as long as no loss above this share is shown, as of int8
MOST_LOSS, LEAST_AGREEMENT_OF_OWN = 0.01, 0.9
Ratio = Tuple[float, float, float]


def results(job: Job, parts: Sequence[Dict[str, Any]], labels_N: np.ndarray, host: Dict[str, np.ndarray]) -> List[Any]:
    """One entry of the report per model and mode, in the order of the job, models first.

    Args:
        job: what was asked for.
        parts: what `worker.work` returned, one a process.
        labels_N: true classes, int64 [N].
        host: the host's predictions of the same images per model name, int64 [N].
    """
    first = next((model for model in job.models if model.precision == "fp32"), None)
    reference = first.name if first else None
    if first and any(
        disagreement(
            *_agreement(parts, variant(first.name, mode), host.get(first.name)),
            loss_to_host(
                _backend(job, first), _predicted(parts, variant(first.name, mode)), labels_N, host.get(first.name)
            ),
        )
        for mode in job.modes
    ):
        reference = None  # how much faster than another function says nothing
    return [_result(job, model, mode, reference, parts, labels_N, host.get(model.name))
            for model in job.models for mode in job.modes]  # fmt: skip


def _result(
    job: Job,
    model: Model,
    mode: str,
    reference: Optional[str],
    parts: Sequence[Dict[str, Any]],
    labels_N: np.ndarray,
    host_N: Optional[np.ndarray],
) -> Dict[str, Any]:
    mine = [part["variants"][variant(model.name, mode)] for part in parts]
    predicted = _predicted(parts, variant(model.name, mode))
    n = len(predicted)
    samples_ms = [sample for part in mine for round_ in part["rounds_ms"] for sample in round_]
    cells = [[p, r, len(round_)] for p, part in enumerate(mine) for r, round_ in enumerate(part["rounds_ms"])]
    agreement, _ = _agreement(parts, variant(model.name, mode), host_N)
    loss = loss_to_host(_backend(job, model), predicted, labels_N, host_N)
    warnings = disagreement(agreement, n, loss)
    compared = reference is not None and reference != model.name and not warnings
    ratio = _ratio(parts, variant(str(reference), mode), variant(model.name, mode)) if compared else None
    return {
        "name": model.name,
        "mode": mode,
        "batch": mine[0]["batch"],
        "window": mine[0]["window"],
        "sha256": model.sha256,
        "precision": model.precision,
        "samples_ms": samples_ms,
        "cells": cells,
        "warmup_ms": [sample for part in mine for sample in part["warmup_ms"]],
        "first_calls_ms": [part["warmup_ms"][0] for part in mine],
        "accuracy": metrics.accuracy(labels_N[:n], predicted),
        "agreement_with_host": agreement,
        "loss_to_host": loss,
        "ratio_to_fp32": ratio,
        "verdict": _noise(job, parts, mine),
        "energy": energy(parts, mine, len(samples_ms) * mine[0]["batch"]),
        "to_label": to_label.results(mine),
        "warnings": [
            *warnings,
            *(speed(ratio, len(mine), len(cells)) if compared else []),
            *([mine[0]["not_to_label"]] if mine[0].get("not_to_label") else []),
        ],
    }


def _agreement(parts: Sequence[Dict[str, Any]], name: str, host_N: Optional[np.ndarray]) -> Tuple[Optional[float], int]:
    """A variant's agreement with the host, and over how many images."""
    predicted = _predicted(parts, name)
    n = len(predicted)
    return (None if host_N is None else metrics.agreement(predicted, host_N[:n])), n


def _backend(job: Job, model: Model) -> str:
    return model.backend or job.backend


def _predicted(parts: Sequence[Dict[str, Any]], name: str) -> np.ndarray:
    return np.asarray(parts[0]["variants"][name]["predicted"])


def loss_to_host(backend: str, predicted_N: np.ndarray, labels_N: np.ndarray, host_N: Any) -> Optional[Ratio]:
    """What accuracy a backend with arithmetic of its own loses against the host's answers: (loss, low, high), 95 %.

    None for other backends, and without labels or answers to compare.
    """
    labels_N = labels_N[: len(predicted_N)]
    labeled_N = labels_N >= 0
    if backend not in OWN_ARITHMETIC or host_N is None or not labeled_N.any():
        return None
    host_N = host_N[: len(predicted_N)]
    return metrics.drop(labels_N[labeled_N], host_N[labeled_N], predicted_N[labeled_N])


def _ratio(parts: Sequence[Dict[str, Any]], reference: str, name: str) -> Optional[Ratio]:
    base, mine = ([[float(np.median(round_)) for round_ in part["variants"][which]["rounds_ms"]] for part in parts]
                  for which in (reference, name))  # fmt: skip
    return metrics.ratio_interval(base, mine)


def _noise(job: Job, parts: Sequence[Dict[str, Any]], mine: Sequence[Dict[str, Any]]) -> str:
    cells_ms, settled = [one["rounds_ms"] for one in mine], [one["settled"] for one in mine]
    processes = [part.get("process", {}) for part in parts]
    return noise.verdict(cells_ms, settled, processes, job.threads, job.backend in power.ON_PROCESSOR)


def energy(parts: Sequence[Dict[str, Any]], mine: Sequence[Dict[str, Any]], images: int) -> Optional[Dict[str, Any]]:
    """What an image cost: {"mj_per_image", "meter", "covers"}; None where a process could not tell.

    Args:
        parts: what `worker.work` returned; part["process"]["energy"] is {"meter", "covers"}.
        mine: one variant of every part, with its "joules" over all its cells, or None.
        images: how many those cells hold.
    """
    cost = power.per_image([one.get("joules") for one in mine], images)
    meter = parts[0].get("process", {}).get("energy")
    return None if cost is None or meter is None else {"mj_per_image": cost, **meter}


def disagreement(
    agreement: Optional[float], n: int, loss: Optional[Ratio] = None, most_loss: float = MOST_LOSS
) -> List[str]:
    """A warning where the device's answers are not the host's: then the latency belongs to another function.

    Args:
        agreement: the share of equal answers; None if there are none to compare.
        n: number of images.
        loss: of `loss_to_host`; with it other answers are no fault unless accuracy is shown to be lost.
        most_loss: the share of accuracy that may be lost.
    """
    if agreement is None or agreement >= LEAST_AGREEMENT:
        return []
    if loss is not None and agreement >= LEAST_AGREEMENT_OF_OWN and loss[1] <= most_loss:
        return []
    share = f"{1.0 - agreement:.1%} of {n} images"
    return [f"answers differ from the host's on {share}: this latency is not that of the verified model"]


def speed(ratio: Optional[Ratio], processes: int, rounds: int) -> List[str]:
    """What may not be claimed: a ratio without interval, one that contains 1, or one below it.

    Args:
        ratio: from `metrics.ratio_interval`.
        processes: how many measured.
        rounds: of all of them together.
    """
    if ratio is None:
        few = f"too few rounds ({rounds} in {processes} process{'es' if processes > 1 else ''}) to compare with fp32"
        least = f"at least {metrics.LEAST_CELLS} in {metrics.LEAST_PROCESSES} processes are needed"
        return [f"{few}, {least}; do: {noise.REMEDIES['rounds']}"]
    middle, low, high = ratio
    said = f"{middle:.2f} times the speed of fp32 [{low:.2f}, {high:.2f}]"
    if low <= 1.0 <= high:
        return [f"no difference in speed to fp32: {said} contains 1"]
    return [f"slower than fp32: {said}; keep fp32 here unless size decides"] if high < 1.0 else []
