"""The only accuracy code in the project: host and device count the same way.

N images, C target classes.
"""

from __future__ import annotations

import math
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

Z95 = 1.959963984540054  # the 97.5 % point of the standard normal: two-sided 95 % intervals
# How often the interval of a ratio covers the true one, where processes differ as much as rounds do, in 1500 simulated
# experiments of processes x rounds: 1x6 71 %, 1x15 53 %, 2x3 88 %, 2x5 84 %; 3x3 91 %, 3x5 89 %, 4x4 91 %, 9x1 91 %.
# So more rounds do not make up for missing processes. Six cells of three processes cover as often as nine, but their
# interval is hardly more than the least and the greatest of them, which one disturbed cell decides.
LEAST_PROCESSES, LEAST_CELLS = 3, 9


def wilson(hits: float, n: float) -> Tuple[float, float]:
    """95 % Wilson score interval of a proportion, as fractions (Wilson 1927; holds at 0, at 1 and for small n).

    Args:
        hits: number of successes, 0 <= hits <= n.
        n: number of trials, an effective one where they depend on each other; 0 gives the uninformative (0, 1).
    """
    if n == 0:
        return 0.0, 1.0
    share, z2 = hits / n, Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def balanced(labels_N: np.ndarray, predicted_N: np.ndarray) -> Tuple[float, Tuple[float, float]]:
    """Mean of the per-class recalls over the classes present, and its 95 % interval, as fractions.

    The interval adds per-class binomial variances, each at a share with two successes and two failures added
    (Agresti and Coull 1998), so a class that is all right or all wrong still contributes doubt. They are divided by
    the images that there are: with few images a class, the added ones would make the mean of many classes too sure.
    """
    recalls, variance = [], 0.0
    for label in np.unique(labels_N):
        mine = labels_N == label
        n, hits = int(mine.sum()), int((predicted_N[mine] == label).sum())
        recalls.append(hits / n)
        share = (hits + 2) / (n + 4)
        variance += share * (1 - share) / n
    mean, half = float(np.mean(recalls)), Z95 * math.sqrt(variance) / len(recalls)
    return mean, (max(0.0, mean - half), min(1.0, mean + half))


def accuracy(labels_N: Any, predicted_N: Any) -> Dict[str, Any]:
    """Top-1 and balanced accuracy with 95 % intervals.

    Args:
        labels_N: true class indices, integers, shape [N], N >= 1.
        predicted_N: predicted class indices, shape [N].

    Returns:
        {"n", "top1", "top1_ci95", "balanced", "balanced_ci95"}, fractions.

    Raises:
        ValueError: the shapes differ or there are no images.
    """
    labels_N, predicted_N = np.asarray(labels_N), np.asarray(predicted_N)
    if labels_N.shape != predicted_N.shape or labels_N.ndim != 1 or labels_N.size == 0:
        raise ValueError(f"labels {labels_N.shape} and predictions {predicted_N.shape} must be equal, 1-D, not empty")
    hits, n = int((labels_N == predicted_N).sum()), int(labels_N.size)
    mean, interval = balanced(labels_N, predicted_N)
    return {
        "n": n,
        "top1": hits / n,
        "top1_ci95": wilson(hits, n),
        "balanced": mean,
        "balanced_ci95": interval,
    }


def drop(
    labels_N: Any, before_N: Any, after_N: Any, by: str = "top1", *, inflation: float = 1.0
) -> Tuple[float, float, float]:
    """What accuracy loses from one artefact to another on the same images: (loss, low, high), 95 %, as fractions.

    Only images that one gets right and the other wrong count, so the interval is far narrower than that of either
    accuracy; it adds half an image to each of the four outcomes (Agresti and Min, Statistics in Medicine 2005), once,
    however many classes count alike: for each class, it would pull the mean of many small ones to 0.

    Args:
        labels_N: true class indices [N], N >= 1.
        before_N: what the one predicts [N].
        after_N: what the other predicts [N].
        by: "top1", or "balanced" for the mean over the classes present.
        inflation: by which the variance is multiplied.
    """
    labels_N = np.asarray(labels_N)
    right, still = np.asarray(before_N) == labels_N, np.asarray(after_N) == labels_N
    groups = (
        [labels_N == one for one in np.unique(labels_N)] if by == "balanced" else [np.ones(len(labels_N), dtype=bool)]
    )
    loss = alone = variance = 0.0
    for mine in groups:
        n, lost, won = int(mine.sum()), int((right & ~still & mine).sum()), int((still & ~right & mine).sum())
        loss += (lost - won) / n / len(groups)
        alone += 1.0 / n / len(groups) ** 2
        variance += (lost + won - (lost - won) ** 2 / (n + 2)) / n**2 / len(groups) ** 2
    low, high = paired_interval(loss, variance, 1.0 / alone, inflation)
    return loss, low, high


def paired_interval(gain: float, variance: float, worth: float, inflation: float) -> Tuple[float, float]:
    """95 % interval of a paired difference of shares, with half an image added to each of the four outcomes.

    Args:
        gain: the difference, or the mean of those of several classes, as a fraction.
        variance: its variance as far as it is seen, 0 where no image tells the two apart.
        worth: number of images that tell as much as these, all of one class.
        inflation: by which the variance is multiplied.
    """
    center = gain * worth / (worth + 2)
    half = Z95 * math.sqrt(inflation * (worth**2 * variance + 1)) / (worth + 2)
    return max(-1.0, center - half), min(1.0, center + half)


def agreement(first_N: Any, second_N: Any) -> float:
    """Share of images on which two artefacts give the same label; shapes [N], N >= 1."""
    return float(np.mean(np.asarray(first_N) == np.asarray(second_N)))


def percentiles(samples_ms: Sequence[float]) -> Dict[str, float]:
    """{"min", "p50", "p90", "p99", "p99.9", "max"} of raw latency samples, in ms, by linear interpolation."""
    samples = np.asarray(samples_ms, dtype=np.float64)
    marks = {"min": 0, "p50": 50, "p90": 90, "p99": 99, "p99.9": 99.9, "max": 100}
    return {name: float(np.percentile(samples, at)) for name, at in marks.items()}


def cell_medians(samples_ms: Sequence[float], cells: Sequence[Sequence[int]]) -> List[List[float]]:
    """The median of every cell in ms: one list per process, in the order of its rounds.

    Args:
        samples_ms: the samples of all cells, one after the other.
        cells: (process, round, number of samples) of each.
    """
    medians: Dict[int, List[float]] = {}
    start = 0
    for process, _, count in cells:
        medians.setdefault(process, []).append(float(np.median(samples_ms[start : start + count])))
        start += count
    return list(medians.values())


def ratio_interval(
    base_ms: Sequence[Sequence[float]], mine_ms: Sequence[Sequence[float]], draws: int = 2000, seed: int = 0
) -> Optional[Tuple[float, float, float]]:
    """How many times faster than the base: the median paired ratio and its 95 % bootstrap interval.

    What is paired is one cell, a round of a process, in which both variants ran within a moment of each other.
    Processes are drawn first and rounds within them second, so that what a whole process shares (its memory layout,
    the machine's state at its time) counts as the one accident that it is (the hierarchical bootstrap of Kalibera
    and Jones, Rigorous Benchmarking in Reasonable Time, 2013).
    Of few processes a percentile bootstrap makes an interval somewhat too narrow: more of them make it safer.

    Args:
        base_ms: the base's median latency per process and round, > 0; every process of equal length.
        mine_ms: the same of the variant.
        draws: bootstrap samples.
        seed: of the generator that draws them.

    Returns:
        (median, low, high) of base / mine, above 1 where the variant is faster; None below LEAST_PROCESSES processes
        or LEAST_CELLS cells, whose interval would promise more than it holds.
    """
    ratios_PR = np.asarray(base_ms, dtype=np.float64) / np.asarray(mine_ms, dtype=np.float64)
    if len(ratios_PR) < LEAST_PROCESSES or ratios_PR.size < LEAST_CELLS:
        return None
    processes, rounds = ratios_PR.shape
    generator = np.random.default_rng(seed)
    at_p = generator.integers(processes, size=(draws, processes, 1))
    at_r = generator.integers(rounds, size=(draws, processes, rounds))
    medians = np.median(ratios_PR[at_p, at_r].reshape(draws, -1), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(np.median(ratios_PR)), float(low), float(high)
