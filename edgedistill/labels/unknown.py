"""When a student says "unknown": below a threshold of its confidence, which is its probability at a temperature.

Both are fitted on labels that it was not trained on. With folds these are the answers of the folds' students, which
were trained on fewer labels than the student that ships. It may be more sure or less: temperature and threshold are
matched on images without a label, where it is then as sure on average as they are, and answers as many. Only labels
say which share is answered, since among images without one there may be some of no class.

N images, C classes, F folds, M images without a label.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from edgedistill.agent.metrics import wilson
from edgedistill.labels.calibration import BOUNDS, calibrated, fit_temperature
from edgedistill.records import Rule

LEAST_ANSWERED = 20  # images from whose answers an accuracy is told
LEAST_MATCHED = 64  # images without a label; with fewer, the folds' rule is taken as it is
# of the share of right answers among the images at these rows, or under this mask
Interval = Callable[[np.ndarray], tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What the threshold is to hold: a share of answered images, or an accuracy on them; with neither there is none."""

    coverage: float | None = None
    accuracy: float | None = None


def confidence(logits_NC: np.ndarray, temperature: float) -> np.ndarray:
    """The largest class probability at a temperature, float [N] (Hendrycks and Gimpel, ICLR 2017)."""
    return np.asarray(calibrated(logits_NC, temperature).max(axis=1))


def fitted(logits_NC: np.ndarray, labels_N: np.ndarray, aim: Aim) -> Rule:
    """The rule of the student or students whose answers these are, on images that they were not trained on."""
    temperature = fit_temperature(logits_NC, labels_N)
    confidence_N = confidence(logits_NC, temperature)
    threshold = 0.0
    if aim.coverage is not None:
        threshold = quantile(confidence_N, aim.coverage)
    elif aim.accuracy is not None:
        threshold = accurate(confidence_N, logits_NC.argmax(axis=1) == labels_N, aim.accuracy)
    return Rule(temperature=temperature, threshold=threshold)


def quantile(confidence_N: np.ndarray, coverage: float) -> float:
    """The threshold that a new image's confidence reaches with a probability of at least `coverage`.

    It is the split conformal quantile (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005): 0
    where there are too few images, fewer than nine for 0.9.
    """
    rank = int(np.floor((1.0 - coverage) * (len(confidence_N) + 1) + 1e-9))
    return float(np.sort(confidence_N)[rank - 1]) if rank else 0.0


def accurate(confidence_N: np.ndarray, is_right_N: np.ndarray, accuracy: float) -> float:
    """The lowest threshold at which the share of right answers is `accuracy`; 0 if all images may be answered.

    At least LEAST_ANSWERED images are answered: where not even those reach it, the threshold is that of the highest
    share (Geifman and El-Yaniv, NeurIPS 2017, without their bound, which needs many labels).
    """
    order = np.argsort(-confidence_N, kind="stable")
    shares_N = np.cumsum(is_right_N[order]) / np.arange(1, len(order) + 1)
    # images of one confidence are answered together
    last_N = np.append(confidence_N[order][1:] < confidence_N[order][:-1], True)
    counts = np.flatnonzero(last_N & (np.arange(1, len(order) + 1) >= min(LEAST_ANSWERED, len(order))))
    reached = counts[shares_N[counts] >= accuracy - 1e-9]
    best = reached[-1] if len(reached) else counts[np.argmax(shares_N[counts])]
    return 0.0 if best == len(order) - 1 else float(confidence_N[order][best])


def matched(rule: Rule, fold_logits_FMC: np.ndarray, logits_MC: np.ndarray) -> Rule:
    """The rule of another graph that is as sure, and answers as many images, as the folds' students under theirs.

    A threshold that is fitted where there are labels and carried over by the share of images above it is that of Garg
    et al. (ICLR 2022), who carry one from labeled to unlabeled images; here it goes from students to a student, on the
    same images.

    Args:
        rule: the rule of the folds' students.
        fold_logits_FMC: their answers to images without a label.
        logits_MC: the graph's answers to the same images.
    """
    if len(logits_MC) < LEAST_MATCHED:
        return rule
    confidences_FM = np.stack([confidence(logits_NC, rule.temperature) for logits_NC in fold_logits_FMC])
    temperature = temperature_of(logits_MC, float(confidences_FM.mean()))
    if not rule.threshold:
        return Rule(temperature=temperature, threshold=0.0)
    coverage = float((confidences_FM >= rule.threshold).mean())
    confidence_M = np.sort(confidence(logits_MC, temperature))
    answered = round(coverage * len(confidence_M))
    threshold = confidence_M[len(confidence_M) - answered] if answered else np.nextafter(confidence_M[-1], 2.0)
    return Rule(temperature=temperature, threshold=float(threshold))


def temperature_of(logits_NC: np.ndarray, mean: float) -> float:
    """The temperature at which the mean confidence is `mean`; the nearest of BOUNDS where none gives it."""

    def excess(log_temperature: float) -> float:
        return float(confidence(logits_NC, float(np.exp(log_temperature))).mean()) - mean

    low, high = float(np.log(BOUNDS[0])), float(np.log(BOUNDS[1]))
    if excess(low) <= 0:
        return BOUNDS[0]
    if excess(high) >= 0:
        return BOUNDS[1]
    return float(np.exp(brentq(excess, low, high, xtol=1e-6)))


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The answers above a threshold: their share of all images, and how many of them are right.

    `accuracy` has a 95 % interval; it is None where nothing is answered.
    """

    coverage: float
    n: int
    accuracy: float | None
    ci95: tuple[float, float]


def answered(
    confidence_N: np.ndarray, is_right_N: np.ndarray, threshold: float, interval: Interval | None = None
) -> Answered:
    """The answers to the images whose confidence is `threshold` or more; the interval is Wilson's if none is given."""
    interval = interval or wilson_of(is_right_N)
    is_answered_N = confidence_N >= threshold
    n, hits = int(is_answered_N.sum()), int(is_right_N[is_answered_N].sum())
    return Answered(coverage=n / len(confidence_N), n=n, accuracy=hits / n if n else None, ci95=interval(is_answered_N))


def wilson_of(is_right_N: np.ndarray) -> Interval:
    """Wilson's interval, which takes every image for one that was drawn alone."""
    return lambda rows: wilson(int(is_right_N[rows].sum()), len(is_right_N[rows]))


def curve(
    confidence_N: np.ndarray, is_right_N: np.ndarray, points: int = 20, interval: Interval | None = None
) -> list[Answered]:
    """Accuracy against coverage: the surest 1 / points of the images, then more, and all of them last."""
    ascending = np.sort(confidence_N)
    n = len(ascending)
    counts = np.unique(np.round(np.linspace(n / points, n, points)).astype(np.int64))
    thresholds = np.unique(ascending[n - counts[counts > 0]])[::-1]
    return [answered(confidence_N, is_right_N, float(threshold), interval) for threshold in thresholds]


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Images of like confidence: their mean confidence, and the share of right answers with its 95 % interval."""

    n: int
    confidence: float
    accuracy: float
    ci95: tuple[float, float]


def reliability(
    confidence_N: np.ndarray, is_right_N: np.ndarray, bins: int = 10, interval: Interval | None = None
) -> list[Bin]:
    """Bins of equally many images by ascending confidence, each of at least LEAST_ANSWERED, if there are so many.

    Bins of equal width have few images where a student is seldom unsure (Nguyen and O'Connor, EMNLP 2015).
    """
    interval, order = interval or wilson_of(is_right_N), np.argsort(confidence_N, kind="stable")
    count = max(1, min(bins, len(order) // LEAST_ANSWERED))
    return [
        Bin(
            n=len(rows),
            confidence=float(confidence_N[rows].mean()),
            accuracy=int(is_right_N[rows].sum()) / len(rows),
            ci95=interval(rows),
        )
        for rows in np.array_split(order, count)
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """The expected calibration error: the mean distance of confidence and accuracy, by images (Guo et al., 2017)."""
    return sum(part.n * abs(part.confidence - part.accuracy) for part in bins) / sum(part.n for part in bins)
