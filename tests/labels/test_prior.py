"""Shares are estimated, stated ones are checked, and shifts make a model imply the shares that they should."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from edgedistill.errors import InputError
from edgedistill.labels import prior
from edgedistill.labels.prior import Prior, class_weights, estimated_shares, from_recipe, matching_shift

SHARES_C = np.array([0.7, 0.2, 0.1])
CLASSES = ("cat", "dog", "fox")


def images(shares_C: np.ndarray, n: int = 20000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Log-likelihoods of images at three points of a plane, and their classes, drawn at some shares."""
    generator = np.random.default_rng(seed)
    centers = np.array([[0.0, 0.0], [1.5, 0.0], [0.0, 1.5]])
    labels_N = generator.choice(3, n, p=shares_C)
    places_N2 = centers[labels_N] + generator.normal(size=(n, 2))
    return -0.5 * ((places_N2[:, None] - centers) ** 2).sum(axis=2), labels_N


def test_mean_answer_is_the_prior() -> None:
    logits_NC = np.random.default_rng(0).normal(0, 3, (500, 3))
    shift_C = matching_shift(logits_NC, SHARES_C)
    assert softmax(logits_NC + shift_C, axis=1).mean(axis=0) == pytest.approx(SHARES_C, abs=1e-4)


@pytest.mark.parametrize("implied_C", [np.ones(3) / 3, np.array([0.2, 0.3, 0.5])])
def test_shift_does_not_depend_on_the_shares_that_a_model_implies(implied_C: np.ndarray) -> None:
    likelihoods_NC, labels_N = images(SHARES_C)
    logits_NC = likelihoods_NC + np.log(implied_C)
    shift_C = Prior(shares_C=SHARES_C, score="top1").shift(logits_NC)
    assert shift_C is not None
    ratio = softmax(np.log(implied_C) + shift_C)
    assert ratio == pytest.approx(SHARES_C, abs=0.02)  # the posterior at the prior, but for 20,000 images' chance
    right = [(answers.argmax(axis=1) == labels_N).mean() for answers in (logits_NC, logits_NC + shift_C)]
    assert right[1] > right[0] + 0.05


def test_balanced_accuracy_is_answered_at_equal_shares() -> None:
    likelihoods_NC, _ = images(SHARES_C)
    shift_C = Prior(shares_C=SHARES_C, score="balanced").shift(likelihoods_NC + np.log(SHARES_C))
    assert shift_C is not None
    assert softmax(np.log(SHARES_C) + shift_C) == pytest.approx(np.ones(3) / 3, abs=0.02)


def test_shift_is_unknown_with_few_images_or_an_estimated_prior() -> None:
    logits_NC = np.zeros((prior.LEAST_IMAGES, 3))
    assert Prior(shares_C=SHARES_C, score="top1").shift(logits_NC) is not None
    assert Prior(shares_C=SHARES_C, score="top1").shift(logits_NC[1:]) is None
    assert Prior(shares_C=SHARES_C, score="top1", stated=False).shift(logits_NC) is None


@pytest.mark.parametrize("score", ["top1", "balanced"])
def test_label_loss_is_least_at_the_aim(score: prior.Score) -> None:
    # of images that all look alike the best logits plus the shift are the labels' shares, so the answer is the aim
    counts_C = np.array([30.0, 30.0, 300.0])
    at_prior = Prior(shares_C=SHARES_C, score=score)
    logits_C = np.log((counts_C + 0.5) / (counts_C + 0.5).sum()) - at_prior.label_shift(counts_C)
    assert softmax(logits_C) == pytest.approx(SHARES_C if score == "top1" else np.ones(3) / 3)


def test_class_without_a_label_has_a_finite_shift() -> None:
    assert np.isfinite(Prior(shares_C=SHARES_C, score="top1").label_shift(np.array([5, 0, 2]))).all()


def test_estimate_takes_chance_for_chance_and_imbalance_for_imbalance() -> None:
    assert estimated_shares(np.array([9, 11, 10, 10])) == pytest.approx(np.ones(4) / 4, abs=0.01)
    assert estimated_shares(np.array([700, 200, 100])) == pytest.approx(SHARES_C, abs=0.01)
    few = estimated_shares(np.array([40, 2, 0]))
    assert few[0] < 40 / 42 and 0 < few[2] < few[1] and few.sum() == pytest.approx(1)


def test_weights_give_every_class_with_labels_the_same_sum() -> None:
    counts_C = np.array([30, 10, 0])
    weights_C = class_weights("balanced", counts_C, "top1")
    assert weights_C is not None and weights_C[:2] * counts_C[:2] == pytest.approx([20, 20])
    assert class_weights("none", counts_C, "balanced") is None and class_weights("auto", counts_C, "top1") is None
    assert class_weights("auto", counts_C, "balanced") == pytest.approx(weights_C)


def test_stated_shares_are_in_the_order_of_the_classes() -> None:
    stated = from_recipe({"fox": 0.1, "cat": 0.7, "dog": 0.2}, CLASSES, np.ones(3), "top1")
    assert stated is not None and stated.stated and stated.shares_C == pytest.approx(SHARES_C)
    assert from_recipe(None, CLASSES, np.ones(3), "top1") is None
    estimated = from_recipe("labels", CLASSES, np.array([70, 20, 10]), "top1")
    assert estimated is not None and not estimated.stated


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"cat": 0.7, "dog": 0.2, "foxx": 0.1}, "no class is called foxx; did you mean fox?"),
        ({"True": 0.7, "False": 0.3}, "no class is called True; put names such as yes, no, on and off in quotes"),
        ({"cat": 0.8, "dog": 0.2}, "class fox has no share; state the share of every class"),
    ],
)
def test_prior_of_other_classes_is_refused(setting: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=r"data\.prior: ") as caught:
        from_recipe(setting, CLASSES, np.ones(3), "top1")
    assert message in str(caught.value)
