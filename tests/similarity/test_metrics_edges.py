"""Every metric at the edges: degenerate inputs, errors, invariances and limits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedistill.errors import InputError
from edgedistill.recipe.options import option_problems
from edgedistill.similarity.likelihood import hscore, label_entropy, leep, logme, logme_chance, nce
from edgedistill.similarity.metrics import METRICS, share, static
from edgedistill.similarity.separability import cka, parc, probe, rsa
from tests.helpers.probes import NO_PROBS, MetricInputs, clusters, noise, perfect, softmax

DATA_METRICS = {name: metric.score for name, metric in METRICS.items() if name != "static"}
OF_FEATURES = [name for name in DATA_METRICS if name not in ("leep", "nce")]
OF_PROBS = ["leep", "nce"]
STANDARDIZING = ["parc", "rsa", "hscore", "probe"]


def test_metrics_table_lists_all_metrics() -> None:
    assert list(METRICS) == ["parc", "rsa", "cka", "leep", "nce", "hscore", "logme", "knn", "probe", "static"]


@pytest.mark.parametrize("name", DATA_METRICS)
def test_single_class_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name}: the probe holds a single class; label images of a second class"):
        METRICS[name].score(np.eye(4), np.full((4, 2), 0.5), np.zeros(4, dtype=np.int64))


@pytest.mark.parametrize("name", OF_FEATURES)
@pytest.mark.parametrize("constant", [0.0, 0.1, 1.0, 1e30])
def test_constant_features_score_at_chance(name: str, constant: float) -> None:
    # 0.1 is no binary fraction: the mean differs from it in the last digit, which must not count as a feature
    labels_N = np.arange(12) % 3
    score = METRICS[name].score(np.full((12, 5), constant), NO_PROBS, labels_N)
    assert np.isfinite(score) and share(name, np.array([score]), labels_N) == pytest.approx(0.0, abs=1e-9)
    if name != "logme":
        assert score == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("name", OF_PROBS)
def test_constant_probabilities_score_negative_label_entropy(name: str) -> None:
    labels_N = np.array([0, 0, 0, 1, 1, 2])
    constant_NK = np.tile([0.7, 0.3, 0.0], (6, 1))
    assert METRICS[name].score(np.eye(6), constant_NK, labels_N) == pytest.approx(-label_entropy(labels_N))
    # a source of one class carries no information
    assert METRICS[name].score(np.eye(6), np.ones((6, 1)), labels_N) == pytest.approx(-label_entropy(labels_N))


@pytest.mark.parametrize("name", OF_PROBS)
def test_source_classes_without_mass_change_nothing(name: str) -> None:
    features_ND, probs_NK, labels_N = noise(0)
    more_NK = np.hstack([np.zeros((60, 2)), probs_NK, np.zeros((60, 3))])
    assert METRICS[name].score(features_ND, more_NK, labels_N) == pytest.approx(
        METRICS[name].score(features_ND, probs_NK, labels_N)
    )
    assert nce(features_ND, more_NK, labels_N, compat="dbolya") != nce(features_ND, more_NK, labels_N)


@pytest.mark.parametrize("name", OF_PROBS)
@pytest.mark.parametrize(
    "rows", [np.full((6, 2), 0.2), np.zeros((6, 2)), np.tile([1.5, -0.5], (6, 1))], ids=["half", "none", "negative"]
)
def test_invalid_probabilities_are_refused(name: str, rows: np.ndarray) -> None:
    with pytest.raises(InputError, match=f"{name}: the source's outputs are not probabilities"):
        METRICS[name].score(np.eye(6), rows, np.arange(6) % 2)


@pytest.mark.parametrize("name", DATA_METRICS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_refused(name: str, bad: float) -> None:
    features_ND, probs_NK, labels_N = noise(0)
    features_ND[3, 1] = probs_NK[3, 1] = bad
    with pytest.raises(InputError, match="not finite"):
        METRICS[name].score(features_ND, probs_NK, labels_N)


@pytest.mark.parametrize("name", DATA_METRICS)
def test_mismatched_row_counts_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="do not fit"):
        METRICS[name].score(np.eye(4), np.full((4, 2), 0.5), np.array([0, 1, 1]))


@pytest.mark.parametrize(
    ("name", "expected"),
    # one pair of images has no ranks to compare, and each of two images is explained only by itself: all at chance
    [("parc", 0.0), ("rsa", 0.0), ("hscore", 0.0), ("leep", -np.log(2)), ("nce", -np.log(2))],
)
def test_two_images_score_at_chance(name: str, expected: float) -> None:
    features_ND = np.array([[1.0, 0.0, 2.0], [0.0, 3.0, 1.0]])
    score = METRICS[name].score(features_ND, np.full((2, 2), 0.5), np.array([0, 1]))
    assert score == pytest.approx(expected) and share(name, np.array([score]), np.array([0, 1])) == 0.0


def test_two_images_are_refused_by_metrics_that_need_more() -> None:
    for name in ("probe", "knn"):
        with pytest.raises(InputError, match=f"{name}: a class has a single labeled image; give two labels a class"):
            METRICS[name].score(np.eye(2), NO_PROBS, np.array([0, 1]))
    with pytest.raises(InputError, match="cka: 2 labeled images, and its unbiased estimate needs four"):
        cka(np.eye(2), NO_PROBS, np.array([0, 1]))
    # centered, (1, 0) and (0, 1) are +-(1/2, -1/2), as the labels are
    assert cka(np.eye(2), NO_PROBS, np.array([0, 1]), debiased=False) == pytest.approx(1.0)
    assert np.isfinite(logme(np.eye(2), NO_PROBS, np.array([0, 1])))


@pytest.mark.parametrize("name", [name for name in DATA_METRICS if name not in ("probe", "knn")])
def test_class_of_one_image_is_scored(name: str) -> None:
    features_ND, probs_NK, labels_N = noise(1, n=13)
    labels_N = np.where(np.arange(13) == 5, 7, labels_N)
    assert np.isfinite(METRICS[name].score(features_ND, probs_NK, labels_N))


@pytest.mark.parametrize("name", DATA_METRICS)
@pytest.mark.parametrize(("n", "dims"), [(12, 300), (60, 2), (9, 1), (12, 12)])
def test_any_ratio_of_features_to_images_is_scored(name: str, n: int, dims: int) -> None:
    features_ND, probs_NK, labels_N = noise(2, n=n, dims=dims)
    low, high = METRICS[name].bounds(labels_N)  # type: ignore[misc]
    score = METRICS[name].score(features_ND, probs_NK, labels_N)
    assert low <= score <= high
    # half precision, as a cache may hold it
    assert np.isfinite(METRICS[name].score(features_ND.astype(np.float16), probs_NK.astype(np.float16), labels_N))


def test_plain_hscore_of_more_features_than_images_is_its_ceiling() -> None:
    # the shrunk form is the default because this one cannot distinguish noise from a perfect source
    assert hscore(*noise(2, n=12, dims=300), form="plain") == pytest.approx(2.0)
    assert abs(np.mean([hscore(*noise(seed, n=12, dims=300)) for seed in range(50)])) < 0.2


@pytest.mark.parametrize("metric", [parc, rsa, hscore])
def test_fewer_images_than_dimensions_are_not_reduced(metric: Callable[..., float]) -> None:
    features_ND, labels_N = clusters(3, spread=1.0, dims=40)
    assert metric(features_ND, NO_PROBS, labels_N, dims=32) == metric(features_ND, NO_PROBS, labels_N)
    assert metric(features_ND, NO_PROBS, labels_N, dims=5) != metric(features_ND, NO_PROBS, labels_N)
    assert metric(np.ones((9, 40)), NO_PROBS, labels_N, dims=5) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("name", DATA_METRICS)
def test_perfect_source_has_share_1_and_chance_0(name: str) -> None:
    features_ND, probs_NK, labels_N = perfect()
    # RSA needs the features of a net trained on the target
    metric = partial(rsa, reference_NE=features_ND) if name == "rsa" else METRICS[name].score
    best = share(name, np.array([metric(features_ND, probs_NK, labels_N)]), labels_N)
    assert best == pytest.approx(1.0, abs=1e-3)
    draws = [noise(seed, n=120) for seed in range(20)]
    chance = [METRICS[name].score(*draw) for draw in draws]
    # 120 images are many against 3 classes; each share is cut off at 0, and their mean keeps what lies above
    assert share(name, np.array(chance), draws[0][2]).mean() < 0.05
    assert share(name, np.array([METRICS[name].chance(labels_N)]), labels_N) == 0.0


def test_shares_by_hand() -> None:
    labels_N = np.array([0, 0, 1, 1])
    # e^-H = 1/2: a likelihood of 3/4 is half the way to 1
    assert share("leep", np.log([0.5, 0.75, 1.0, 0.4]), labels_N) == pytest.approx([0.0, 0.5, 1.0, 0.0])
    # half the variance explained is log(2) / 2 of evidence
    assert share("logme", logme_chance(labels_N) + np.array([0.0, 0.5 * np.log(2)]), labels_N) == pytest.approx(
        [0, 0.5]
    )
    # a share of 1/2 has the variance 1/4: -log(2 pi e / 4) / 2
    assert logme_chance(labels_N) == pytest.approx(-0.5 * np.log(2 * np.pi * np.e / 4))
    # three classes: 2 is perfect
    assert share("hscore", np.array([1.0, -0.3]), np.array([0, 1, 2])) == pytest.approx([0.5, 0.0])
    # one image a class: no pair shares one, and PARC cannot be anything but 0
    assert share("parc", np.array([0.0]), np.array([0, 1, 2])) == 0.0


def scores_of_all(features_ND: np.ndarray, probs_NK: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
    """Return the scores of every metric but static; RSA gets a reference computed row by row from the features."""
    scores = {name: metric(features_ND, probs_NK, labels_N) for name, metric in DATA_METRICS.items()}
    return {**scores, "rsa": rsa(features_ND, probs_NK, labels_N, np.abs(features_ND - 1.0))}


PROBES = st.builds(noise, st.integers(0, 50), st.sampled_from([12, 31]), st.sampled_from([4, 40]), st.just(5))


@settings(max_examples=15)
@given(inputs=PROBES, seed=st.integers(0, 5))
def test_scores_are_independent_of_image_order(inputs: MetricInputs, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(inputs[2]))
    first, second = scores_of_all(*inputs), scores_of_all(*(array_of_inputs[order] for array_of_inputs in inputs))
    # the probe's folds depend on the order
    del first["probe"], second["probe"]
    assert second == pytest.approx(first, abs=1e-6)


@settings(max_examples=15)
@given(inputs=PROBES, names=st.permutations([0, 1, 2]), gap=st.integers(1, 9))
def test_scores_are_independent_of_class_names(inputs: MetricInputs, names: list[int], gap: int) -> None:
    features_ND, probs_NK, labels_N = inputs
    renamed_N = gap * np.array(names)[labels_N] + 4
    assert scores_of_all(features_ND, probs_NK, renamed_N) == pytest.approx(scores_of_all(*inputs), abs=1e-6)


@settings(max_examples=15)
@given(inputs=PROBES, exponent=st.integers(-6, 6), seed=st.integers(0, 5))
def test_scores_are_independent_of_feature_scale(inputs: MetricInputs, exponent: int, seed: int) -> None:
    # all features by one factor; and, for the metrics that standardize, each by its own. LogME's guard has a scale
    features_ND, probs_NK, labels_N = inputs
    each_D = 2.0 ** np.random.default_rng(seed).integers(-6, 7, features_ND.shape[1])
    for name in set(OF_FEATURES) - {"logme"}:
        before = METRICS[name].score(features_ND, probs_NK, labels_N)
        assert METRICS[name].score(features_ND * 2.0**exponent, probs_NK, labels_N) == pytest.approx(before, abs=1e-6)
        if name in STANDARDIZING:
            assert METRICS[name].score(features_ND * each_D, probs_NK, labels_N) == pytest.approx(before, abs=1e-6)


@settings(max_examples=15)
@given(inputs=PROBES, seed=st.integers(0, 5))
def test_cka_and_logme_are_invariant_under_rotation(inputs: MetricInputs, seed: int) -> None:
    features_ND, probs_NK, labels_N = inputs
    dims = features_ND.shape[1]
    turn_DD = np.linalg.qr(np.random.default_rng(seed).normal(size=(dims, dims)))[0]
    for metric in (cka, logme):
        before = metric(features_ND, probs_NK, labels_N)
        assert metric(features_ND @ turn_DD, probs_NK, labels_N) == pytest.approx(before, abs=1e-6)


def test_probe_is_the_same_for_the_same_seed() -> None:
    features_ND, labels_N = clusters(15, spread=4.0)
    scores = [probe(features_ND, NO_PROBS, labels_N, seed=seed) for seed in (3, 3, 4, 5, 6)]
    assert scores[0] == scores[1] and len(set(scores)) > 1


@pytest.mark.parametrize(
    ("source", "prior", "message"),
    [
        ("ants", {"birds": 0.8, "digits": 0.3}, "no score for the source ants, it knows birds, digits; add it under"),
        ("ants", {}, "no score for the source ants, it knows no source"),
        ("birds", {"birds": 62.3}, "static: the prior of birds is 62.3; write a fraction"),
        ("birds", {"birds": float("nan")}, "static: the prior of birds is nan"),
    ],
)
def test_static_names_missing_or_invalid_prior(source: str, prior: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        static(np.eye(2), NO_PROBS, np.array([0, 1]), source, prior=prior)


@pytest.mark.parametrize(
    ("name", "options", "wrong"),
    [
        ("static", {"prior": {"birds": 0.5}}, []),
        ("static", {"prior": {"birds": 0.5}, "source": "birds"}, ["source"]),
        ("static", {}, ["prior"]),
        ("rsa", {"reference_NE": [1.0]}, ["reference_NE"]),
        ("parc", {"dims": 0}, ["dims"]),
        ("parc", {"dims": 32, "compat": "dbolya"}, []),
        ("probe", {"folds": 1}, ["folds"]),
        ("knn", {"k": 0}, ["k"]),
        ("hscore", {"form": "plain", "dims": 32}, []),
        ("cka", {"debiased": False}, []),
    ],
)
def test_metric_options_are_checked_against_the_signature(
    name: str, options: dict[str, object], wrong: list[str]
) -> None:
    assert [problem.key[-1] for problem in option_problems(METRICS[name].score, options, ())] == wrong


def test_nce_is_0_for_noise_with_one_source_class_per_image() -> None:
    # a known weakness: with one source class per image, NCE reads the labels off the classes
    features_ND, _, labels_N = noise(0, n=12)
    assert nce(features_ND, softmax(5.0 * np.eye(12)), labels_N) == pytest.approx(0.0)
    assert leep(features_ND, softmax(np.eye(12)), labels_N) < -0.5
