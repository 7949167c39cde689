"""What is computed from a cell's answers: scores of confidence, and what temperature and threshold hold.

N images, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import logsumexp, softmax
from scipy.stats import rankdata

from edgedistill.labels.unknown import Aim, confidence, fitted, matched
from edgedistill.records import Rule

COVERAGE = 0.9
PLAIN, CHOSEN = "max-softmax", "probability"
# of logits [N, C] and a temperature; higher is more sure, float [N]
SCORES: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    PLAIN: lambda logits_NC, _: confidence(logits_NC, 1.0),
    CHOSEN: confidence,
    "entropy": lambda logits_NC, temperature: _entropy(logits_NC / temperature),
    "margin": lambda logits_NC, _: _margin(logits_NC),
    "max logit": lambda logits_NC, _: np.asarray(logits_NC.max(axis=1)),
    "energy": lambda logits_NC, _: np.asarray(logsumexp(logits_NC, axis=1)),
    "generalized entropy": lambda logits_NC, _: _generalized_entropy(logits_NC),
}


def _entropy(logits_NC: np.ndarray) -> np.ndarray:
    probs_NC = softmax(logits_NC, axis=1)
    return np.asarray((probs_NC * np.log(np.maximum(probs_NC, 1e-30))).sum(axis=1))


def _margin(logits_NC: np.ndarray) -> np.ndarray:
    second_N, first_N = np.sort(logits_NC, axis=1)[:, -2:].T
    return np.asarray(first_N - second_N)


def _generalized_entropy(logits_NC: np.ndarray, gamma: float = 0.1) -> np.ndarray:
    """The score of Liu, Lochman and Zach (GEN, CVPR 2023)."""
    probs_NC = softmax(logits_NC, axis=1)
    return np.asarray(-(np.maximum(probs_NC * (1 - probs_NC), 0.0) ** gamma).sum(axis=1))


def auroc(known_N: np.ndarray, unknown_N: np.ndarray) -> float:
    """The probability that a known image has the higher score, ties counted half."""
    ranks = rankdata(np.concatenate([known_N, unknown_N]))
    n, m = len(known_N), len(unknown_N)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def accuracy_at(score_N: np.ndarray, is_right_N: np.ndarray, coverage: float) -> float:
    """Accuracy on the share `coverage` of the images with the highest scores."""
    order = np.argsort(-score_N, kind="stable")[: round(coverage * len(score_N))]
    return float(is_right_N[order].mean())


def calibration_error(confidence_N: np.ndarray, is_right_N: np.ndarray, bins: int = 15) -> float:
    """The expected calibration error over bins of equally many images."""
    parts = np.array_split(np.argsort(confidence_N, kind="stable"), bins)
    gaps = [len(rows) * abs(confidence_N[rows].mean() - is_right_N[rows].mean()) for rows in parts if len(rows)]
    return float(sum(gaps) / len(confidence_N))


def figures(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """All figures of one cell's answers."""
    rule = fitted(arrays["folds"], arrays["fold_labels"], Aim(coverage=COVERAGE))
    ships = matched(rule, arrays["folds_on_reserve"], arrays["reserve"])
    test_NC, is_right_N = arrays["test"], arrays["test"].argmax(1) == arrays["test_labels"]
    unknown = {name.partition("/")[2]: logits_NC for name, logits_NC in arrays.items() if name.startswith("unknown/")}
    scores = {}
    for name, score in SCORES.items():
        known_N = score(test_NC, ships.temperature)
        by_pack = {pack: auroc(known_N, score(logits_NC, ships.temperature)) for pack, logits_NC in unknown.items()}
        scores[name] = {
            "auroc": {pack: round(area, 5) for pack, area in by_pack.items()},
            "accuracy": round(accuracy_at(known_N, is_right_N, COVERAGE), 5),
        }
    rules = {
        "as fitted": rule,
        "matched": ships,
        "quantile of the reserve": Rule(
            temperature=rule.temperature,
            threshold=float(np.quantile(confidence(arrays["reserve"], rule.temperature), 1 - COVERAGE)),
        ),
    }
    return {
        "n_test": len(test_NC),
        "labels": len(arrays["folds"]),
        "top1": round(float(is_right_N.mean()), 5),
        "scores": scores,
        "temperature": {"folds": round(rule.temperature, 4), "matched": round(ships.temperature, 4)},
        "calibration_error": {
            name: round(calibration_error(confidence(test_NC, temperature), is_right_N), 5)
            for name, temperature in (("none", 1.0), ("folds", rule.temperature), ("matched", ships.temperature))
        },
        "rules": {name: _held(candidate, test_NC, is_right_N, unknown) for name, candidate in rules.items()},
        "expected_accuracy": _held(rule, arrays["folds"], arrays["folds"].argmax(1) == arrays["fold_labels"], {})[
            "accuracy"
        ],
    }


def _held(rule: Rule, logits_NC: np.ndarray, is_right_N: np.ndarray, unknown: dict[str, np.ndarray]) -> dict[str, Any]:
    """What a rule does: coverage and accuracy of the answered images, and the share of unknowns that it refuses."""
    answered_N = confidence(logits_NC, rule.temperature) >= rule.threshold
    refused = [(confidence(other_NC, rule.temperature) < rule.threshold).mean() for other_NC in unknown.values()]
    return {
        "coverage": round(float(answered_N.mean()), 5),
        "accuracy": round(float(is_right_N[answered_N].mean()), 5) if answered_N.any() else None,
        "refused": round(float(np.mean(refused)), 5) if refused else None,
    }
