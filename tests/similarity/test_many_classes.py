"""Which images a source is scored on: pairs of every class, however many classes there are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedistill.recipe.schema import Weigh
from edgedistill.similarity.weigh import MIN_CLASS_LABELS, asked_rows, probe_rows, stratified_rows, weigh_sources

COUNTS = st.lists(st.integers(1, 30), min_size=2, max_size=12)


def labels_of(counts: list[int]) -> np.ndarray:
    """Labels of classes with so many images each, in random order."""
    return np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts))


def former_rows(labels_N: np.ndarray, limit: int) -> np.ndarray:
    """The subset of the versions that took the first four of all classes by their shares."""
    if len(labels_N) <= limit:
        return np.arange(len(labels_N))
    random, first_N, share_N = np.random.default_rng(0), np.empty(len(labels_N), dtype=bool), np.empty(len(labels_N))
    for label in np.unique(labels_N):
        class_rows = random.permutation(np.flatnonzero(labels_N == label))
        places = np.arange(len(class_rows))
        first_N[class_rows], share_N[class_rows] = places < MIN_CLASS_LABELS, (places + 0.5) / len(class_rows)
    return np.sort(np.lexsort((share_N, ~first_N))[:limit])


@given(counts=COUNTS, more=st.integers(0, 200))
def test_limit_that_holds_four_of_every_class_takes_the_same_rows_as_ever(counts: list[int], more: int) -> None:
    labels_N, limit = labels_of(counts), int(np.minimum(counts, MIN_CLASS_LABELS).sum()) + more
    np.testing.assert_array_equal(stratified_rows(labels_N, limit), former_rows(labels_N, limit))
    np.testing.assert_array_equal(asked_rows(labels_N, np.arange(len(labels_N)), limit), former_rows(labels_N, limit))


@pytest.mark.parametrize(("classes", "images"), [(2, 2500), (10, 700), (100, 40), (200, 60), (500, 5)])
def test_ordinary_probes_are_the_same_as_ever(classes: int, images: int) -> None:
    counts = [images + index % 7 for index in range(classes)]
    labels_N = labels_of(counts)
    np.testing.assert_array_equal(probe_rows(labels_N, None, 2000)[0], former_rows(labels_N, 2000))


@given(counts=COUNTS, limit=st.integers(4, 60))
def test_every_class_of_a_probe_has_two_images(counts: list[int], limit: int) -> None:
    labels_N = labels_of(counts)
    rows, paired = probe_rows(labels_N, None, limit)
    assert paired == (np.count_nonzero(np.array(counts) >= 2) >= 2) and len(rows) <= limit
    assert (np.diff(rows) > 0).all()
    if paired:
        scored, counts_C = np.unique(labels_N[rows], return_counts=True)
        assert counts_C.min() >= 2
        assert len(scored) == min(np.count_nonzero(np.array(counts) >= 2), limit // 2)
        if limit >= sum(min(count, MIN_CLASS_LABELS) for count in counts):
            assert (counts_C >= np.minimum(np.array(counts)[scored], MIN_CLASS_LABELS)).all()


def test_small_classes_keep_their_pairs_beside_large_ones() -> None:
    """600 classes do not get four images each of 2,000: before any has a fourth, all have three."""
    labels_N = np.repeat(np.arange(600), [100] * 300 + [4] * 300)
    counts_C = np.bincount(labels_N[probe_rows(labels_N, None, 2000)[0]], minlength=600)
    assert counts_C.sum() == 2000 and set(counts_C) == {3, 4}


def test_more_classes_than_pairs_fit_are_weighed_by_pairs_of_some(capsys: pytest.CaptureFixture[str]) -> None:
    labels_N = np.repeat(np.arange(21), 4)
    random = np.random.default_rng(0)
    outputs = {
        "knows": (np.eye(21)[labels_N] + 0.1 * random.normal(size=(84, 21)), None),
        "noise": (random.normal(size=(84, 21)), None),
    }
    settings = Weigh.model_validate({"metric": "probe", "also": ["knn"], "bootstrap": 2})
    weights = weigh_sources(outputs, labels_N, settings, seed=0, max_images=40)
    assert weights.probe_images == 40 and weights.alphas["knows"] > 0.9
    assert "40 images hold no two of each of 21 classes: 20 of the classes take part" in capsys.readouterr().err


def test_large_probe_of_many_classes_has_pairs() -> None:
    labels_N = np.repeat(np.arange(1001), 4)
    rows, paired = probe_rows(labels_N, None, 2000)
    counts_C = np.bincount(labels_N[rows])
    assert paired and len(rows) == 2000 and set(counts_C) == {0, 2} and np.count_nonzero(counts_C) == 1000
    np.testing.assert_array_equal(rows, probe_rows(labels_N, None, 2000)[0])


def test_models_are_asked_about_pairs_of_two_units() -> None:
    """300 images of 400 classes, whose images are in recordings of two, are pairs that can be scored."""
    labels_N, units_N = np.repeat(np.arange(400), 6), np.repeat(np.arange(1200), 2)
    rows = asked_rows(labels_N, units_N, 300)
    assert len(rows) == 300 == len(np.unique(units_N[rows]))
    assert set(np.unique(labels_N[rows], return_counts=True)[1]) == {2}
