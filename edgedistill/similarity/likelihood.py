"""Metrics of the labels' likelihood given a source's outputs: log-likelihoods, evidence, explained variance.

All have the signature described in `metrics`. N probe images, D features, K classes of the source, C target classes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import PositiveInt

from edgedistill.errors import InputError
from edgedistill.similarity.separability import Compat, Floats, Ints, checked, one_hot, reduced, standardized

# added to both variances by the authors of LogME: keeps the evidence of a perfect fit finite
VARIANCE_FLOOR = 1e-5
MAX_ITERATIONS = 200  # of LogME's fixed point, which takes about ten


def leep(features_ND: Floats, probs_NK: Floats, labels_N: Ints) -> float:
    """LEEP: mean log-likelihood of the labels, given the source's classes; -H(labels) at chance, 0 when perfect.

    Nguyen, Hassner, Seeger, Archambeau, "LEEP: A New Measure to Evaluate Transferability of Learned Representations",
    ICML 2020: mean_i log sum_z P(y_i | z) p_iz, P(y | z) the empirical conditional under the soft counts p. It is
    estimated from the same labels that it explains: with few images and many confident classes noise scores high.

    Args:
        features_ND: not used.
        probs_NK: the source's softmax, [N, K]; a class without mass is ignored.
        labels_N: [N], two classes at least.

    Raises:
        InputError: the probe holds a single class, or the rows are not probabilities.
    """
    probs_NK, index_N = _probabilities("leep", probs_NK, labels_N)
    mass_K = probs_NK.sum(axis=0)
    conditional_CK = one_hot(index_N).T @ probs_NK / np.where(mass_K > 0, mass_K, 1.0)
    return min(0.0, float(np.log((conditional_CK[index_N] * probs_NK).sum(axis=1)).mean()))


def nce(features_ND: Floats, probs_NK: Floats, labels_N: Ints, *, compat: Compat = "exact") -> float:
    """NCE: minus the entropy of the labels given the source's best class, -H(Y | Z); 0 when Z determines Y.

    Tran, Nguyen, Hassner, "Transferability and Hardness of Supervised Classification Tasks", ICCV 2019.
    A source that predicts a different class for every image scores 0: the metric needs more images than classes.

    Args:
        features_ND: not used.
        probs_NK: the source's softmax, [N, K]; only its largest entry counts.
        labels_N: [N], two classes at least.
        compat: "dbolya" adds 1e-5 to every joint and marginal share, as PARC's authors do.

    Raises:
        InputError: the probe holds a single class, or the rows are not probabilities.
    """
    from scipy.special import rel_entr

    probs_NK, index_N = _probabilities("nce", probs_NK, labels_N)
    chosen_NK = np.eye(probs_NK.shape[1])[probs_NK.argmax(axis=1)]
    added = 1e-5 if compat == "dbolya" else 0.0
    joint_CK = one_hot(index_N).T @ chosen_NK / len(index_N) + added
    score = float(rel_entr(joint_CK, chosen_NK.mean(axis=0) + added).sum())
    return score if compat == "dbolya" else min(0.0, score)


def label_entropy(labels_N: Ints) -> float:
    """H(labels) in nats: the uncertainty that an uninformative source leaves."""
    shares_C = np.unique(labels_N, return_counts=True)[1] / len(labels_N)
    return float(-(shares_C * np.log(shares_C)).sum())


def hscore(
    features_ND: Floats,
    probs_NK: Floats | None,
    labels_N: Ints,
    *,
    dims: PositiveInt | None = None,
    form: Literal["shrunk", "plain"] = "shrunk",
) -> float:
    """H-score: variance between the classes in whitened features, tr(cov(f)^-1 cov(E[f | y])); C - 1 when perfect.

    Bao et al., "An Information-Theoretic Approach to Transferability in Task Transfer Learning", ICIP 2019 ("plain").
    With more features than images that is C - 1 for any source, also for noise. "shrunk" uses the covariance of Ledoit
    and Wolf 2004, as in Ibrahim, Ponomareva, Mazumder, "Newer is not always better", ECML 2022; instead of their factor
    the result is rescaled so that shuffled labels score 0 on average and labels along the strongest C - 1 directions
    score C - 1. At least -(C - 1); 0 if shuffled labels cannot be distinguished from those.

    Args:
        features_ND: [N, D].
        probs_NK: not used.
        labels_N: [N], two classes at least.
        dims: reduce the features to this many dimensions by PCA first.
        form: the estimate of the covariance: "shrunk" (Ledoit and Wolf), or "plain".

    Raises:
        InputError: the probe holds a single class, or the features are not finite numbers.
    """
    features_ND, index_N = checked("hscore", features_ND, labels_N)
    standard_ND = standardized(reduced(features_ND, dims))
    gram_NN = standard_ND @ standard_ND.T / len(index_N)
    variance_R, basis_NR = _spectrum(gram_NN)
    targets_NC = one_hot(index_N)
    between_R = ((targets_NC.T @ basis_NR) ** 2 / targets_NC.sum(axis=0)[:, None]).sum(axis=0)
    if form == "plain":
        return float(between_R.sum())
    kept = 1.0 - shrinkage(gram_NN, standard_ND.shape[1])
    mean = float(variance_R.sum()) / standard_ND.shape[1]
    filter_R = variance_R / ((1.0 - kept) * mean + kept * variance_R)
    classes, best = targets_NC.shape[1], float(np.sort(filter_R)[1 - targets_NC.shape[1] :].sum())
    shuffled = float(filter_R.sum()) * (classes - 1) / (len(index_N) - 1)
    if best - shuffled <= 1e-9 * best:
        return 0.0
    adjusted = (float((filter_R * between_R).sum()) - shuffled) / (best - shuffled)
    return float((classes - 1) * np.clip(adjusted, -1.0, 1.0))


def logme(features_ND: Floats, probs_NK: Floats | None, labels_N: Ints) -> float:
    """LogME: log evidence per image of a Bayesian linear regression from features to each class, mean over classes.

    You, Liu, Wang, Long, "LogME: Practical Assessment of Pre-trained Models for Transfer Learning", ICML 2021, with
    the fixed point of You et al., JMLR 2022, algorithm 3. The precisions alpha of the weights and beta of the noise
    maximize the evidence; features are used unscaled, without an intercept.

    Args:
        features_ND: [N, D].
        probs_NK: not used.
        labels_N: [N], two classes at least.

    Raises:
        InputError: the probe holds a single class, or the features are not finite numbers.
    """
    features_ND, index_N = checked("logme", features_ND, labels_N)
    targets_NC = one_hot(index_N)
    variance_R, basis_NR = _spectrum(features_ND @ features_ND.T)
    return float(_evidence(variance_R, (basis_NR.T @ targets_NC) ** 2, targets_NC.sum(axis=0), len(index_N)).mean())


def logme_chance(labels_N: Ints) -> float:
    """Log evidence of a regression that predicts each class's share, mean over classes."""
    shares_C = np.unique(labels_N, return_counts=True)[1] / len(labels_N)
    return float(-0.5 * (np.log(shares_C * (1.0 - shares_C)) + 1.0 + np.log(2.0 * np.pi)).mean())


def logme_bounds(labels_N: Ints) -> tuple[float, float]:
    """Bounds of `logme`: all features 0, and no residual."""
    n = len(labels_N)
    shares_C = np.unique(labels_N, return_counts=True)[1] / n
    low = float(-0.5 * (np.log(shares_C) + 1.0 + np.log(2.0 * np.pi)).mean())
    return low, float(0.5 * (np.log(n / VARIANCE_FLOOR) - np.log(2.0 * np.pi)))


def _evidence(variance_R: Floats, along_RC: Floats, total_C: Floats, n: int) -> Floats:
    """Log evidence per image, [C], from the features' variance and the targets' squares along each direction."""
    ratio_C, sigma_R1 = np.ones(len(total_C)), variance_R[:, None]
    outside_C = np.maximum(total_C - along_RC.sum(axis=0), 0.0)  # outside the span of the features
    for _ in range(MAX_ITERATIONS):
        filter_RC = sigma_R1 / (ratio_C + sigma_R1)
        weights_C = (filter_RC**2 / sigma_R1 * along_RC).sum(axis=0)
        residual_C = outside_C + ((1.0 - filter_RC) ** 2 * along_RC).sum(axis=0)
        gamma_C = filter_RC.sum(axis=0)
        alpha_C = gamma_C / (weights_C + VARIANCE_FLOOR)
        beta_C = np.maximum(n - gamma_C, VARIANCE_FLOOR) / (residual_C + VARIANCE_FLOOR)
        before_C, ratio_C = ratio_C, alpha_C / beta_C
        if (np.abs(ratio_C - before_C) <= 1e-6 * before_C).all():
            break
    log_C = n * np.log(beta_C / (2.0 * np.pi)) - beta_C * residual_C - alpha_C * weights_C
    if len(variance_R):
        log_C = log_C - np.log1p(sigma_R1 / ratio_C).sum(axis=0)
    return np.asarray(0.5 * log_C / n)


def _spectrum(gram_NN: Floats) -> tuple[Floats, Floats]:
    """Eigenvalues [R] above rounding error and their vectors [N, R]; none for a zero matrix."""
    values_N, vectors_NN = np.linalg.eigh(gram_NN)
    kept = values_N > len(values_N) * np.finfo(np.float64).eps * max(values_N[-1], 0.0)
    return values_N[kept], vectors_NN[:, kept]


def shrinkage(gram_NN: Floats, dims: int) -> float:
    """Weight of the identity in Ledoit and Wolf's covariance, in [0, 1].

    Equal to scikit-learn's `ledoit_wolf_shrinkage`, but from the Gram matrix (over N): with a thousand features and a
    hundred images it takes a hundredth of the time, and a bootstrap calls it fifty times per source.
    """
    n, squares = len(gram_NN), float((gram_NN**2).sum())
    spread = (squares - float(np.trace(gram_NN)) ** 2 / dims) / dims
    noise = (n * float((np.diag(gram_NN) ** 2).sum()) - squares) / (n * dims)
    return min(1.0, noise / spread) if spread * dims > 1e-12 * squares else 0.0


def _probabilities(metric: str, probs_NK: Floats, labels_N: Ints) -> tuple[Floats, Ints]:
    """Softmax rows as float64, [N, K], and class indices.

    Raises:
        InputError: rows are negative, not finite or do not sum to 1, or all labels are of one class.
    """
    probs_NK, index_N = checked(metric, probs_NK, labels_N)
    if probs_NK.min() < 0 or np.abs(probs_NK.sum(axis=1) - 1.0).max() > 0.01:  # half precision is off by 0.001
        raise InputError(
            f"{metric}: the source's outputs are not probabilities", "give its softmax, rows that sum to 1"
        )
    return probs_NK, index_N
