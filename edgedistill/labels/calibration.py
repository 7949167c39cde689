"""Probabilities that can be believed, and what one net loses against another on images without labels.

A temperature is fitted on images that did not train. N images, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax

from edgedistill.agent import metrics
from edgedistill.agent.metrics import Z95
from edgedistill.labels.unit_intervals import rare_effect

BOUNDS = (0.05, 20.0)  # of the temperature
STEP = 0.05  # of the logarithm of the temperature, for the curvature
LARGEST_ERROR = 1.0  # of the logarithm: a factor of e
Z90 = 1.2816  # one side
MOST_BIAS = 3.0
ROUNDS, PRIOR_SHARE = 50, 0.1  # of expectation maximization


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """What logits are divided by, and what is added to them; the rest may be left out.

    Attributes:
        value: the temperature.
        log_error: standard error of its logarithm.
        biases: added to the divided logits, one a class.
        shares: shares of the classes among the images that it was fitted on; probabilities on other images are adapted
            to the shares there.
    """

    value: float
    log_error: float = 0.0
    biases: tuple[float, ...] | None = None
    shares: tuple[float, ...] | None = None


def _log_loss(logits_NC: np.ndarray, labels_N: np.ndarray) -> Callable[[float], float]:
    """The negative log-likelihood of the labels by the logarithm of the temperature.

    Two pseudo-observations spread over the classes keep it finite where every answer is right.
    """
    n, classes = logits_NC.shape

    def loss(log_temperature: float) -> float:
        log_probs_NC = log_softmax(logits_NC / np.exp(log_temperature), axis=1)
        observed = -log_probs_NC[np.arange(n), labels_N].sum()
        return float(observed - 2.0 / (n * classes) * log_probs_NC.sum())

    return loss


def fit_temperature(logits_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """The temperature with the least negative log-likelihood (Guo et al., ICML 2017).

    Args:
        logits_NC: of images that the student was not trained on.
        labels_N: their classes.
    """
    loss = _log_loss(logits_NC, labels_N)
    best = minimize_scalar(loss, bounds=(np.log(BOUNDS[0]), np.log(BOUNDS[1])), method="bounded")
    return float(np.exp(best.x))


def temperature_of(logits_NC: np.ndarray, labels_N: np.ndarray) -> Temperature:
    """Fit a temperature and a bias for each class (Alexandari, Kundaje and Shrikumar, ICML 2020).

    Without biases, a student that prefers a class would pass for a change of the classes' shares. They have a normal
    prior of a standard deviation of 1, as there are few labels. The standard error comes from the curvature of the
    log-likelihood.
    """
    logits_NC, (n, classes) = np.asarray(logits_NC, dtype=np.float64), logits_NC.shape

    def penalized(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        scaled_NC = logits_NC / np.exp(parameters[0])
        log_probs_NC = log_softmax(scaled_NC + parameters[1:], axis=1)
        observed = -log_probs_NC[np.arange(n), labels_N].sum() - 2.0 / (n * classes) * log_probs_NC.sum()
        slopes_NC = (1.0 + 2.0 / n) * np.exp(log_probs_NC) - 2.0 / (n * classes)
        slopes_NC[np.arange(n), labels_N] -= 1.0
        slopes = np.concatenate([[-(slopes_NC * scaled_NC).sum()], slopes_NC.sum(axis=0) + parameters[1:]])
        return float(observed + 0.5 * parameters[1:] @ parameters[1:]), slopes

    start = np.concatenate([[np.log(fit_temperature(logits_NC, labels_N))], np.zeros(classes)])
    bounds = [tuple(np.log(BOUNDS)), *[(-MOST_BIAS, MOST_BIAS)] * classes]
    fitted = minimize(penalized, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    loss = _log_loss(logits_NC + np.exp(fitted[0]) * fitted[1:], labels_N)
    before, middle, after = (loss(fitted[0] + step) for step in (-STEP, 0.0, STEP))
    curvature = (before - 2 * middle + after) / STEP**2
    counts_C = np.bincount(labels_N, minlength=classes) + 1.0
    return Temperature(
        value=float(np.exp(fitted[0])),
        log_error=min(LARGEST_ERROR, max(curvature, 1.0) ** -0.5),
        biases=tuple(float(bias) for bias in fitted[1:]),
        shares=tuple(float(share) for share in counts_C / counts_C.sum()),
    )


def believed(logits_NC: np.ndarray, temperature: Temperature) -> np.ndarray:
    """Class probabilities of images without labels, float [N, C].

    Labels are often drawn class by class, and the other images are as they come: the shares of the classes among them
    are estimated by expectation maximization (Saerens, Latinne and Decaestecker, Neural Computation 2002). The shares
    among the labels count as a tenth as many images.
    """
    biases_C = 0.0 if temperature.biases is None else np.asarray(temperature.biases)
    probs_NC = calibrated(np.asarray(logits_NC, dtype=np.float64) + temperature.value * biases_C, temperature.value)
    if temperature.shares is None:
        return probs_NC
    n, shares_C, adapted_NC = len(probs_NC), np.asarray(temperature.shares), probs_NC
    for _ in range(ROUNDS):
        counts_C = adapted_NC.sum(axis=0) + 1.0 + PRIOR_SHARE * n * shares_C
        adapted_NC = probs_NC * (counts_C / counts_C.sum() / shares_C)
        adapted_NC = adapted_NC / adapted_NC.sum(axis=1, keepdims=True)
    return np.asarray(adapted_NC)


def calibrated(logits_NC: np.ndarray, temperature: float) -> np.ndarray:
    """Class probabilities at a temperature, float [N, C]."""
    return np.asarray(softmax(np.asarray(logits_NC, dtype=np.float64) / temperature, axis=1))


def expected_loss(logits_NC: np.ndarray, other_NC: np.ndarray, temperature: float) -> np.ndarray:
    """What is expected to be lost on each image by another net's answer, in [-1, 1], float [N]; 0 where they agree.

    It is p(first answer) - p(other answer) under the first net's calibrated probabilities: no label is needed.
    """
    probs_NC = calibrated(logits_NC, temperature)
    rows, first_N, other_N = np.arange(len(probs_NC)), logits_NC.argmax(axis=1), other_NC.argmax(axis=1)
    return np.asarray(probs_NC[rows, first_N] - probs_NC[rows, other_N])


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A mean loss of accuracy of one net against another, as fractions.

    Attributes:
        mean: the estimate.
        center: the estimate, drawn towards 0 by two added images (Agresti and Min, Statistics in Medicine 2005).
        sd: standard deviation, around the loss that will be measured, of what labels of as many images would show.
        true_sd: standard deviation around the true loss. Where an expectation takes the place of labels it is smaller
            than `sd`: only which images were drawn, and the temperature, are left to chance.
    """

    mean: float
    center: float
    sd: float
    true_sd: float

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of what labels of as many images would show."""
        return max(-1.0, self.center - Z95 * self.sd), min(1.0, self.center + Z95 * self.sd)

    @property
    def shown(self) -> float:
        """The true loss is greater than this with a certainty of 90 %."""
        return self.center - Z90 * self.true_sd


def measured_loss(
    labels_N: np.ndarray,
    first_N: np.ndarray,
    other_N: np.ndarray,
    by: str = "top1",
    *,
    units_N: np.ndarray | None = None,
) -> Loss:
    """The loss of accuracy that labels show; `by` as in `metrics.drop`, `units_N` as in `estimated_loss`."""
    mean, low, high = metrics.drop(labels_N, first_N, other_N, by)
    won_N = (first_N == labels_N).astype(np.float64) - (other_N == labels_N)
    strata_N = labels_N if by == "balanced" else np.zeros_like(labels_N)
    sd = (high - low) / 2 / Z95 * rare_effect(won_N, strata_N, units_N) ** 0.5
    return Loss(mean=mean, center=(low + high) / 2, sd=sd, true_sd=sd)


def mean_expected_loss(
    logits_NC: np.ndarray,
    other_NC: np.ndarray,
    temperature: Temperature,
    by: str = "top1",
    *,
    units_N: np.ndarray | None = None,
) -> Loss:
    """The mean of `expected_loss`: the loss of accuracy, with the expectation in the place of the labels.

    An image on which the nets part is won by one with its probability, by the other with the other's, or by none. The
    loss is never above the share of labels changed.

    Args:
        logits_NC: of the net whose probabilities are believed.
        other_NC: of the other net on the same images.
        temperature: of the first net's logits.
        by: "top1", or "balanced" for the mean over the classes, whose shares are then those of the probabilities.
        units_N: as in `estimated_loss`.
    """
    won_N, squares_N = _chances(logits_NC, other_NC, temperature, by)
    n, center = len(won_N), float(won_N.sum()) / (len(won_N) + 2)
    hotter, colder = (
        float(_chances(logits_NC, other_NC, replace(temperature, value=value), by)[0].mean())
        for value in temperature.value * np.exp([temperature.log_error, -temperature.log_error])
    )
    calibration_variance = ((hotter - colder) / 2) ** 2
    label_variance = max(0.0, (float(squares_N.sum()) + 1) / (n + 2) ** 2 - center**2 / (n + 2))
    effect = rare_effect(won_N, np.zeros(n, dtype=np.int64), units_N)
    return Loss(
        mean=float(won_N.mean()),
        center=center,
        sd=float(np.sqrt(effect * label_variance + calibration_variance)),
        true_sd=float(np.sqrt(effect * float(np.var(won_N)) / n + calibration_variance)),
    )


def _chances(
    logits_NC: np.ndarray, other_NC: np.ndarray, temperature: Temperature, by: str
) -> tuple[np.ndarray, np.ndarray]:
    """The expectation of what the first net's answer gains over the other's, and that of its square, float [N]."""
    probs_NC = believed(logits_NC, temperature)
    rows, first_N, other_N = np.arange(len(probs_NC)), logits_NC.argmax(axis=1), other_NC.argmax(axis=1)
    n, classes = probs_NC.shape
    gains_C = np.ones(classes)
    if by == "balanced":  # an image of a class counts by the class's share
        gains_C = 1.0 / (classes * np.maximum(probs_NC.mean(axis=0), 1.0 / n))
    right_N, other_right_N = probs_NC[rows, first_N] * (part := first_N != other_N), probs_NC[rows, other_N] * part
    gain_N, other_gain_N = gains_C[first_N], gains_C[other_N]
    return right_N * gain_N - other_right_N * other_gain_N, right_N * gain_N**2 + other_right_N * other_gain_N**2


def pooled_loss(measured: Loss, n_measured: int, expected: Loss, n_expected: int) -> Loss:
    """The loss over images with labels and others without: every image counts once.

    A missing label is replaced by its expectation (regression imputation: Little and Rubin, Statistical Analysis with
    Missing Data, chapter 4). Weights by precision would leave few labels almost none, and with them the only part that
    does not rest on the calibration.
    """
    shares = np.array([n_measured, n_expected]) / (n_measured + n_expected)

    def sd(of_measured: float, of_expected: float) -> float:
        return float(np.hypot(shares[0] * of_measured, shares[1] * of_expected))

    return Loss(
        mean=float(shares @ [measured.mean, expected.mean]),
        center=float(shares @ [measured.center, expected.center]),
        sd=sd(measured.sd, expected.sd),
        true_sd=sd(measured.true_sd, expected.true_sd),
    )


def estimated_loss(
    labels_N: np.ndarray,
    first_NC: np.ndarray,
    other_NC: np.ndarray,
    temperature: Temperature,
    by: str = "top1",
    *,
    units_N: np.ndarray | None = None,
) -> Loss:
    """The loss of accuracy of one net against another: measured on images with a label, expected on those with -1.

    Args:
        labels_N: class of each image; negative for none.
        first_NC: logits of the one net.
        other_NC: logits of the other.
        temperature: of the first net's logits.
        by: "top1" or "balanced".
        units_N: group or set of copies of each image: those of one are lost or kept together; None where each is alone.
    """
    labeled, others = np.flatnonzero(labels_N >= 0), np.flatnonzero(labels_N < 0)
    of_labeled, of_others = (None if units_N is None else units_N[rows] for rows in (labeled, others))

    def expected() -> Loss:
        return mean_expected_loss(first_NC[others], other_NC[others], temperature, by, units_N=of_others)

    if not len(labeled):
        return expected()
    answers = (first_NC[labeled].argmax(axis=1), other_NC[labeled].argmax(axis=1))
    measured = measured_loss(labels_N[labeled], *answers, by, units_N=of_labeled)
    return pooled_loss(measured, len(labeled), expected(), len(others)) if len(others) else measured
