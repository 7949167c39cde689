"""Intervals of the scores, and the inputs that `weigh` passes to metrics: the subset, names and reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedistill.errors import InputError
from edgedistill.recipe.schema import Weigh
from edgedistill.records import MetricScore
from edgedistill.similarity.metrics import METRICS, share
from edgedistill.similarity.separability import held_out_scores, rsa
from edgedistill.similarity.weigh import MAX_PROBE_IMAGES, half_sample_interval, weigh_sources
from tests.helpers.probes import MetricInputs, clusters, noise, perfect

FOURS = np.repeat([0, 1], 4)
DATA_METRICS = [name for name in METRICS if name != "static"]


def metric_with_scores(scores: list[float]) -> Callable[..., float]:
    """Return a metric that returns the given scores, one per call."""
    remaining: Iterator[float] = iter(scores)
    return lambda features_ND, probs_NK, labels_N: next(remaining)


def test_interval_by_hand() -> None:
    # halves 0.4 and 0.6: mean 0.5; quantiles at 2.5 and 97.5 % of two points 0.405 and 0.595; around the score 0.7
    interval = half_sample_interval(metric_with_scores([0.7, 0.4, 0.6]), np.eye(8), np.eye(8), FOURS, repeats=2, seed=0)
    assert interval == pytest.approx((0.7, 0.605, 0.795))


def test_interval_contains_score_despite_an_outlying_half() -> None:
    # 49 halves at 1 and one at 0: the mean 0.98 lies under both quantiles
    scores = [1.0, *[1.0] * 49, 0.0]
    score, low, high = half_sample_interval(metric_with_scores(scores), np.eye(8), np.eye(8), FOURS, repeats=50, seed=0)
    assert low <= score <= high
    assert (low, high) == pytest.approx((1.0, 1.02))


def test_interval_stays_within_bounds() -> None:
    # the same two halves around 0.95 would end at 1.045, and around 0.05 begin at -0.045
    for score, expected in ((0.95, (0.95, 0.855, 1.0)), (0.05, (0.05, 0.0, 0.145))):
        metric = metric_with_scores([score, 0.4, 0.6])
        interval = half_sample_interval(metric, np.eye(8), np.eye(8), FOURS, repeats=2, seed=0, bounds=(0.0, 1.0))
        assert interval == pytest.approx(expected)


@pytest.mark.parametrize("counts", [(3, 9), (3, 3), (1, 20)])
def test_interval_of_few_labels_spans_the_bounds(counts: tuple[int, int]) -> None:
    # half of three images is one or two of them, too few to estimate how the three would vary
    labels_N = np.repeat([0, 1], counts)
    rows = np.eye(len(labels_N))
    interval = half_sample_interval(
        metric_with_scores([0.7]), rows, rows, labels_N, repeats=50, seed=0, bounds=(-1.0, 1.0)
    )
    assert interval == (0.7, -1.0, 1.0)


@given(counts=st.lists(st.integers(4, 9), min_size=2, max_size=4), seed=st.integers(0, 9))
def test_halves_are_stratified_and_without_repeats(counts: list[int], seed: int) -> None:
    labels_N = np.repeat(np.arange(len(counts)), counts)
    halves: list[np.ndarray] = []

    def remember(
        features_ND: np.ndarray, probs_NK: np.ndarray, labels_N: np.ndarray, third_NE: np.ndarray
    ) -> float:  # every array is subset alike
        assert (features_ND == probs_NK).all() and (features_ND == third_NE).all()
        halves.append(np.stack([features_ND[:, 0], labels_N]))
        return 0.0

    rows = np.arange(len(labels_N), dtype=np.float64)[:, None]
    half_sample_interval(remember, rows, rows, labels_N, repeats=3, seed=seed, aligned={"third_NE": rows})
    for rows_of_half, labels in halves[1:]:
        assert len(set(rows_of_half)) == len(rows_of_half) and (labels_N[rows_of_half.astype(int)] == labels).all()
        assert [int((labels == label).sum()) for label in range(len(counts))] == [count // 2 for count in counts]


def confused(per_class: int) -> MetricInputs:
    """Return overlapping clusters, and source classes that agree with half of them."""
    features_ND, labels_N = clusters(per_class, spread=4.0)
    rng = np.random.default_rng(1)
    source_classes_N = np.where(rng.random(len(labels_N)) < 0.5, labels_N, rng.integers(0, 3, len(labels_N)))
    return features_ND, 0.7 * np.eye(3)[source_classes_N] + 0.1, labels_N


@pytest.mark.parametrize("name", DATA_METRICS)
def test_interval_is_narrower_with_more_images(name: str) -> None:
    widths = []
    for per_class in (8, 80):
        score, low, high = half_sample_interval(METRICS[name].score, *confused(per_class), repeats=20, seed=1)
        assert low <= score <= high
        widths.append(high - low)
    assert 0.0 < widths[1] < widths[0] / 1.5


def weighed(
    metric: object, outputs: dict[str, tuple[np.ndarray, np.ndarray]], labels_N: np.ndarray, **more: object
) -> list[MetricScore]:
    """Return the scores of one metric, source by source."""
    section = Weigh.model_validate({"metric": metric, "also": [], "bootstrap": 5, **more})
    return [next(iter(source.scores.values())) for source in weigh_sources(outputs, labels_N, section, seed=0).sources]


@pytest.mark.parametrize("name", DATA_METRICS)
@pytest.mark.parametrize("per_class", [3, 12])
def test_every_metric_gives_finite_scores_and_weights(name: str, per_class: int) -> None:
    features_ND, probs_NK, labels_N = confused(per_class)
    best_ND, best_NK, _ = perfect(per_class)
    outputs = {"some": (features_ND, probs_NK), "all": (best_ND, best_NK)}
    for metric_score in weighed(name, outputs, labels_N):
        assert all(math.isfinite(number) for number in (metric_score.score, metric_score.low, metric_score.high))
        assert metric_score.low <= metric_score.score <= metric_score.high and metric_score.ceiling != math.inf
    section = Weigh.model_validate({"metric": name, "also": [], "bootstrap": 2})
    assert weigh_sources(outputs, labels_N, section, seed=0).alphas["all"] > 0.5


def test_few_labels_give_the_bounds_of_the_metric() -> None:
    features_ND, probs_NK, labels_N = confused(3)
    (metric_score,) = weighed("knn", {"some": (features_ND, probs_NK)}, labels_N)
    # three classes: an accuracy of 0 is (0 - 1/3) / (1 - 1/3)
    assert (metric_score.low, metric_score.high) == pytest.approx((-0.5, 1.0))
    (metric_score,) = weighed("leep", {"some": (features_ND, probs_NK)}, labels_N)
    assert (metric_score.low, metric_score.high) == pytest.approx((-np.log(3), 0.0))
    (metric_score,) = weighed("logme", {"some": (features_ND, probs_NK)}, labels_N)
    assert -2.0 < metric_score.low < metric_score.score < metric_score.high < 10.0


def test_static_receives_the_name_of_each_source() -> None:
    features_ND, probs_NK, labels_N = noise(0)
    outputs = dict.fromkeys(("birds", "digits"), (features_ND, probs_NK))
    metric_scores = weighed({"name": "static", "prior": {"birds": 0.8, "digits": 0.3}}, outputs, labels_N)
    # static reads no labels, so its interval has no width
    assert metric_scores == [
        MetricScore(score=0.8, low=0.8, high=0.8, ceiling=1.0),
        MetricScore(score=0.3, low=0.3, high=0.3, ceiling=1.0),
    ]
    with pytest.raises(InputError, match="no score for the source digits, it knows birds"):
        weighed({"name": "static", "prior": {"birds": 0.8}}, outputs, labels_N)
    with pytest.raises(InputError, match="source: unknown key"):
        weighed({"name": "static", "prior": {"birds": 0.8}, "source": "birds"}, outputs, labels_N)


def test_rsa_receives_mean_held_out_scores_as_reference() -> None:
    first, second = clusters(8, spread=2.0), noise(3, n=24)
    outputs = {"knows": (first[0], second[1]), "noise": (second[0], second[1])}
    metric_scores = weighed("rsa", outputs, first[1])
    reference_NC = (held_out_scores(first[0], first[1]) + held_out_scores(second[0], first[1])) / 2
    expected = [rsa(features_ND, probs_NK, first[1], reference_NC) for features_ND, probs_NK in outputs.values()]
    assert [metric_score.score for metric_score in metric_scores] == pytest.approx(expected)
    assert metric_scores[0].low < metric_scores[0].score < metric_scores[0].high
    assert expected[0] > expected[1] + 5.0


def test_minmax_rescales_raw_scores() -> None:
    # log-likelihoods are negative: only their order counts
    features_ND, probs_NK, labels_N = confused(12)
    constant_NK = np.full_like(probs_NK, 1 / 3)
    section = Weigh.model_validate({"metric": "leep", "also": [], "rescale": "minmax", "bootstrap": 2})
    outputs = {"says nothing": (features_ND, constant_NK), "says something": (features_ND, probs_NK)}
    assert weigh_sources(outputs, labels_N, section, seed=0).alphas == {"says nothing": 0.0, "says something": 1.0}


def test_non_finite_source_is_named() -> None:
    features_ND, probs_NK, labels_N = noise(0)
    broken_ND = np.where(np.arange(20) == 3, np.nan, features_ND)
    with pytest.raises(InputError, match="the outputs of the source digits are not finite; leave it out"):
        weighed("parc", {"birds": (features_ND, probs_NK), "digits": (broken_ND, probs_NK)}, labels_N)


def test_large_probe_is_reduced_to_stratified_subset(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[np.ndarray] = []
    remember = lambda f, p, y: calls.append(np.stack([f[:, 0], y])) or 0.5  # noqa: E731
    monkeypatch.setitem(METRICS, "parc", replace(METRICS["parc"], score=remember))
    # 80, 40 and 5 images to 50: the first four of each, then by share, no image twice, always the same
    labels_N = np.repeat([0, 1, 2], [80, 40, 5])
    rows = np.arange(125.0)[:, None]
    section = Weigh.model_validate({"metric": "parc", "also": [], "bootstrap": 2})
    for _ in range(2):
        assert weigh_sources({"one": (rows, rows)}, labels_N, section, seed=0, max_images=50).probe_images == 50
    (rows_of_probe, labels), second_call = calls[0], calls[3]
    assert (
        (rows_of_probe == second_call[0]).all()
        and len(set(rows_of_probe)) == 50
        and (labels_N[rows_of_probe.astype(int)] == labels).all()
    )
    counts = np.bincount(labels.astype(int))
    assert counts[2] >= 4 and counts[0] == pytest.approx(2 * counts[1], abs=2)
    # a probe within the limit is not subset
    assert weigh_sources({"one": (rows, rows)}, labels_N, section, seed=0, max_images=125).probe_images == 125
    assert (MAX_PROBE_IMAGES, len(calls[-3][0])) == (2000, 125)


@pytest.mark.parametrize("name", DATA_METRICS)
@settings(max_examples=10)
@given(inputs=st.builds(noise, st.integers(0, 30), st.sampled_from([12, 30])))
def test_scores_stay_within_bounds_and_shares_are_monotonic(name: str, inputs: MetricInputs) -> None:
    labels_N = inputs[2]
    low, high = METRICS[name].bounds(labels_N)  # type: ignore[misc]
    assert low - 1e-9 <= METRICS[name].score(*inputs) <= high + 1e-9
    shares = share(name, np.linspace(low, high, 9), labels_N)
    assert ((shares >= 0.0) & (shares <= 1.0)).all() and (np.diff(shares) >= 0.0).all() and shares[-1] > 0.9
