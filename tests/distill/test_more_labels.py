"""Do more labels pay? Where the teacher still learns, yes; where it knows everything, no; else it cannot be told."""

from __future__ import annotations

import numpy as np
import pytest

from edgedistill.distill.more_labels import LEAST, worth
from edgedistill.records import MoreLabels


def task(n: int, spread: float, classes: int = 4, dims: int = 30) -> tuple[dict[str, np.ndarray], np.ndarray]:
    random = np.random.default_rng(0)
    labels_L = random.integers(classes, size=n)
    middles_CD = random.standard_normal((classes, dims))
    return {"net": middles_CD[labels_L] + spread * random.standard_normal((n, dims))}, labels_L


def answer(n: int, spread: float) -> MoreLabels:
    features, labels_L = task(n, spread)
    return worth(features, labels_L, np.arange(n))


def test_labels_pay_while_the_teacher_learns() -> None:
    record = answer(60, 3.0)
    assert record.gain is not None and record.low is not None and record.high is not None
    assert record.low < record.gain < record.high
    assert record.gain > 1.0
    assert record.goes_on
    assert "label more" in record.text or "they pay" in record.text


def test_labels_no_longer_pay_where_every_answer_is_right() -> None:
    record = answer(200, 0.05)
    assert record.high is not None and record.high <= 1.0
    assert not record.goes_on
    assert record.text.endswith("they no longer pay")


@pytest.mark.parametrize("n", [0, 5, LEAST - 1])
def test_few_labels_cannot_tell(n: int) -> None:
    record = answer(n, 1.0)
    assert record.gain is None
    assert record.goes_on
    assert "too few" in record.text


def test_one_class_cannot_tell() -> None:
    features, labels_L = task(40, 1.0)
    assert worth(features, np.zeros_like(labels_L), np.arange(40)).gain is None


def test_copies_are_never_on_both_sides() -> None:
    """Each picture ten times, with labels that nothing predicts: copies on both sides would look like knowledge."""
    random = np.random.default_rng(1)
    features_UD, labels_U = random.standard_normal((30, 50)), random.integers(2, size=30)
    units_L = np.repeat(np.arange(30), 10)
    features = {"net": features_UD[units_L]}
    divided = worth(features, labels_U[units_L], units_L)
    leaking = worth(features, labels_U[units_L], np.arange(300))
    assert leaking.high is not None and divided.high is not None
    assert leaking.high < 0.5 < divided.high


def test_scored_on_random_labels_alone_where_there_are_enough() -> None:
    features, labels_L = task(80, 3.0)
    units_L = np.arange(80)
    some = np.arange(80) % 2 == 0
    assert not worth(features, labels_L, units_L, is_random_L=some).biased
    few = worth(features, labels_L, units_L, is_random_L=np.arange(80) < 3)
    assert few.biased
    assert "not drawn at random" in few.text


def test_interval_follows_the_labels_that_score() -> None:
    """Where a fifth of the labels may score, the fits have 96 of 100, and the interval is that of four scored ones."""
    features, labels_L = task(200, 3.0)
    many = worth(features, labels_L, np.arange(200))
    few = worth(features, labels_L, np.arange(200), is_random_L=np.arange(200) % 5 == 0)
    assert few.gain is not None and many.gain is not None and few.low is not None and few.high is not None
    assert few.high - few.low > 0 and not few.biased
