"""Do more labels pay? Where the teacher still learns, yes; where it knows everything, no; else it cannot be told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgedistill.distill import more_labels
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


def test_interval_follows_the_labels_that_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 labels 96 train where a fifth may score, and 80 where all may: the first gives the narrower interval."""
    sizes: list[int] = []

    def teacher(features: Any, rows: np.ndarray, labels_L: np.ndarray, **_: Any) -> SimpleNamespace:
        """Right on a quarter to all of the scored pictures, in the same order of fits whatever their number."""
        scored = len(features["net"]) - len(rows)
        truth = features["net"][len(rows) :, 0].astype(int)
        right = np.arange(scored) < scored * (1 + len(sizes) * 7 % 4) // 4
        sizes.append(len(rows))
        return SimpleNamespace(probs_NC=np.eye(4)[np.concatenate([labels_L, np.where(right, truth, (truth + 1) % 4)])])

    monkeypatch.setattr(more_labels, "stacked", teacher)
    labels_L, widths = np.arange(100) % 4, []
    for is_random_L in (np.arange(100) % 5 == 0, np.ones(100, dtype=bool)):
        sizes.clear()
        record = worth({"net": labels_L[:, None].astype(float)}, labels_L, np.arange(100), is_random_L=is_random_L)
        assert record.low is not None and record.high is not None and not record.biased
        widths.append((max(sizes), record.high - record.low))
    (most, narrow), (fewer, wide) = widths
    assert (most, fewer) == (96, 80) and narrow < 0.8 * wide
