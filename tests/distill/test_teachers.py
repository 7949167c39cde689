"""Mixtures of probes against scikit-learn and against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from edgedistill.distill import probes, teachers
from edgedistill.distill.teachers import TEACHERS
from edgedistill.labels.prior import Prior
from edgedistill.recipe.options import option_problems
from tests.helpers.clusters import clusters, recordings


def accuracy(probs_NC: np.ndarray, truth: np.ndarray) -> float:
    return float((probs_NC.argmax(axis=1) == truth).mean())


@pytest.mark.parametrize("width", [5, 39, 40, 41, 90])
def test_weighted_ridge_equals_scikit_learn(width: int) -> None:
    random = np.random.default_rng(0)
    features, targets = random.normal(size=(40, width)), random.normal(size=(40, 2))
    weight = random.uniform(0.1, 1.0, size=40)
    reference = Ridge(alpha=0.7, fit_intercept=False).fit(features, targets, sample_weight=weight).predict(features)
    assert features @ probes.weighted_ridge(features, weight, targets, 0.7) == pytest.approx(reference)


def test_mixing_weights_by_hand() -> None:
    likelihood = np.array([[0.9, 0.1]] * 10)
    assert teachers.mixing_weights(likelihood, 0.0) == pytest.approx([1.0, 0.0], abs=1e-9)
    # with one pseudo-observation an image: w = (r + 1/2) / 2 where r = 0.9 w / (0.9 w + 0.1 (1 - w));
    # that is 1.6 w^2 - 1.1 w - 0.05 = 0, so w = (1.1 + sqrt(1.21 + 0.32)) / 3.2 = 0.730291
    assert teachers.mixing_weights(likelihood, 1.0)[0] == pytest.approx(0.730291, abs=1e-5)
    assert teachers.mixing_weights(np.full((4, 5), 0.3), 0.0) == pytest.approx([0.2] * 5)


def test_complementary_sources_get_equal_mixing_weights() -> None:
    halves = np.array([[0.8, 0.2]] * 6 + [[0.2, 0.8]] * 6)
    assert teachers.mixing_weights(halves, 0.0) == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("name", ["stacked", "selftrained"])
def test_source_that_knows_recordings_alone_gets_no_share(name: str) -> None:
    """Frames of one recording tell each other; new recordings are told by the source that knows the classes."""
    features, labels_N, units_N = recordings(n_recordings=44, frames=10, classes=2)
    rows = np.flatnonzero(units_N < 12)
    new = units_N >= 12
    shares, right = {}, {}
    for kind, units_L in (("grouped", units_N[rows]), ("apart", None)):
        teacher = TEACHERS[name].fit(
            features=features,
            alphas=dict.fromkeys(features, 0.5),
            rows=rows,
            labels_L=labels_N[rows],
            classes=2,
            units_L=units_L,
        )
        shares[kind] = teacher.weights["recording"]
        right[kind] = accuracy(teacher.probs_NC[new], labels_N[new])
    assert shares["grouped"] < 0.1 and shares["apart"] > 0.3
    assert right["grouped"] > right["apart"] + 0.1


def test_stacking_prefers_the_informative_source() -> None:
    good, truth = clusters(3.0)
    noise = np.random.default_rng(5).normal(size=good.shape)
    rows = np.arange(30)
    teacher = TEACHERS["stacked"].fit(
        features={"good": good, "noise": noise},
        alphas={"good": 0.5, "noise": 0.5},
        rows=rows,
        labels_L=truth[rows],
        classes=3,
    )
    assert teacher.weights["good"] > 0.8 and sum(teacher.weights.values()) == pytest.approx(1.0)
    assert teacher.probs_NC.sum(axis=1) == pytest.approx(np.ones(len(truth)))
    assert teacher.accuracy > 0.7 and accuracy(teacher.probs_NC, truth) > 0.7


def test_similarity_follows_the_source_weights() -> None:
    good, truth = clusters(3.0)
    noise = np.random.default_rng(5).normal(size=good.shape)
    rows, sources = np.arange(30), {"good": good, "noise": noise}
    alone = TEACHERS["similarity"].fit(
        features=sources, alphas={"good": 1.0, "noise": 0.0}, rows=rows, labels_L=truth[rows], classes=3
    )
    assert alone.weights == {"good": 1.0}
    assert np.array_equal(alone.probs_NC, probes.probe(good, rows, truth[rows], 3).probs_NC)
    worse = TEACHERS["similarity"].fit(
        features=sources, alphas={"good": 0.2, "noise": 0.8}, rows=rows, labels_L=truth[rows], classes=3
    )
    assert worse.accuracy < alone.accuracy


@pytest.mark.parametrize("name", TEACHERS)
@pytest.mark.parametrize("dims", [64, 8])
def test_predictions_on_new_images_equal_those_on_fitted_ones(name: str, dims: int) -> None:
    features, truth = clusters(3.0)
    sources = {"a": features, "b": clusters(1.0, seed=3)[0]}
    options = {"dims": dims} if name == "selftrained" else {}
    rows = np.arange(30)
    teacher = TEACHERS[name].fit(
        features=sources, alphas={"a": 0.7, "b": 0.3}, rows=rows, labels_L=truth[rows], classes=3, **options
    )
    predicted_NC = teacher.predict({name: features_of_source[100:140] for name, features_of_source in sources.items()})
    tolerance = 0.02 if name == "selftrained" and dims < 12 else 1e-4  # a randomized SVD's directions are not exact
    np.testing.assert_allclose(predicted_NC, teacher.probs_NC[100:140], atol=tolerance)
    new, labels = clusters(3.0, seed=9)
    assert accuracy(teacher.predict({"a": new, "b": clusters(1.0, seed=10)[0]}), labels) > 0.85


def test_self_training_gains_from_unlabeled_images() -> None:
    gains = []
    for seed in range(4):
        features, truth = clusters(3.5, n=600, dims=40, seed=seed)
        rows = np.arange(9)
        plain, trained = (
            TEACHERS[name].fit(features={"a": features}, alphas={"a": 1.0}, rows=rows, labels_L=truth[rows], classes=3)
            for name in ("stacked", "selftrained")
        )
        gains.append(accuracy(trained.probs_NC, truth) - accuracy(plain.probs_NC, truth))
    assert min(gains) > 0.0 and np.mean(gains) > 0.03


@pytest.mark.parametrize("name", TEACHERS)
def test_class_without_labels_and_constant_features_stay_finite(name: str) -> None:
    features, truth = clusters(2.0, n=60)
    rows = np.flatnonzero(truth < 2)[:10]
    sources = {"a": features, "constant": np.ones((60, 4), dtype=np.float32)}
    teacher = TEACHERS[name].fit(
        features=sources, alphas={"a": 0.5, "constant": 0.5}, rows=rows, labels_L=truth[rows], classes=3
    )
    assert np.isfinite(teacher.probs_NC).all() and teacher.probs_NC.sum(axis=1) == pytest.approx(np.ones(60))


def test_options_are_checked_against_the_signature() -> None:
    assert option_problems(TEACHERS["selftrained"].fit, {"rounds": 0}, ()) and option_problems(
        TEACHERS["stacked"].fit, {"shrinkage": 1.0}, ()
    )
    assert (
        option_problems(TEACHERS["selftrained"].fit, {"rounds": 3, "weight": 0.5, "penalty": 1, "dims": 64}, ()) == []
    )


@pytest.mark.parametrize("name", TEACHERS)
def test_one_label_per_class_suffices_for_a_good_source(name: str) -> None:
    features, truth = clusters(6.0, n=300)
    sources = {"good": features, "noise": np.random.default_rng(3).normal(size=features.shape)}
    teacher = TEACHERS[name].fit(
        features=sources, alphas={"good": 0.9, "noise": 0.1}, rows=np.arange(3), labels_L=truth[:3], classes=3
    )
    assert accuracy(teacher.probs_NC, truth) > 0.9


@pytest.mark.parametrize("name", TEACHERS)
def test_adjusted_teacher_knows_the_prior_and_tells_other_images(name: str) -> None:
    shares_C = np.array([0.8, 0.1, 0.1])
    truth = np.random.default_rng(1).choice(3, 400, p=shares_C)
    truth[:12] = np.arange(12) % 3  # labels that are drawn balanced
    features = (1.5 * np.eye(12)[truth] + np.random.default_rng(2).normal(size=(400, 12))).astype(np.float32)
    rows, rest = np.arange(12), np.arange(12, 400)
    teacher = TEACHERS[name].fit({"a": features}, {"a": 1.0}, rows=rows, labels_L=truth[rows], classes=3)
    adjusted = teachers.adjusted(teacher, Prior(shares_C=shares_C, score="top1"), rest)
    assert adjusted.probs_NC[rest].mean(axis=0) == pytest.approx(shares_C, abs=1e-3)
    assert adjusted.predict({"a": features}) == pytest.approx(adjusted.probs_NC, abs=1e-4)
    assert accuracy(adjusted.probs_NC[rest], truth[rest]) > accuracy(teacher.probs_NC[rest], truth[rest]) + 0.03
    # an estimate shifts by formula: the odds of two classes change by those of the prior
    estimated = teachers.adjusted(teacher, Prior(shares_C=shares_C, score="top1", stated=False), rest)
    odds = (estimated.probs_NC[:, 0] / estimated.probs_NC[:, 1]) / (teacher.probs_NC[:, 0] / teacher.probs_NC[:, 1])
    assert odds == pytest.approx(8, rel=1e-3)


def tuned_column(held_out: np.ndarray, probs: np.ndarray, features: np.ndarray, folds: np.ndarray) -> teachers.Tuned:
    column = teachers.Column(
        probs_NC=probs, held_out_LC=held_out, predict=lambda features_MD: probs[: len(features_MD)]
    )
    return teachers.Tuned(folds_L=folds, features={"a (tuned)": features}, columns={"a (tuned)": column})


def test_features_that_were_tuned_to_the_labels_make_the_joint_probe_no_surer() -> None:
    features, truth = clusters(1.0)
    rows, folds = np.arange(45), np.arange(45) // 3 % 5
    known = features.copy()
    known[rows] += 6.0 * np.random.default_rng(0).normal(size=(3, features.shape[1]))[truth[rows]].astype(np.float32)
    honest = probes.probe(features, rows, truth[rows], 3)
    tunings = tuned_column(honest.loo_probs_LC, honest.probs_NC, known, folds)
    labels = (rows, truth[rows], 3, None, lambda ranked, most: tunings)
    first, teacher = (
        TEACHERS[name].fit({"a": features}, {"a": 1.0}, *labels, tuned=1) for name in ("stacked", "selftrained")
    )
    assert teacher.weights["a (tuned)"] > 0.1
    rest = np.arange(45, len(truth))
    assert teacher.probs_NC[rest].max(axis=1).mean() < first.probs_NC[rest].max(axis=1).mean() + 0.1


@pytest.mark.parametrize("name", ["stacked", "selftrained"])
@pytest.mark.parametrize("overfits", [True, False])
def test_tuned_source_weighs_what_it_is_worth_on_left_out_labels(name: str, overfits: bool) -> None:
    features, truth = clusters(2.0 if overfits else 1.0)
    better, _ = clusters(3.0, seed=2)
    rows, folds = np.arange(45), np.arange(45) // 3 % 5
    knows = 0.02 + 0.94 * np.eye(3)[truth]
    guesses = 0.02 + 0.94 * np.eye(3)[np.random.default_rng(0).permutation(truth[rows])]
    # it is sure of the labels that it was trained on in both cases
    probs = np.full((240, 3), 1 / 3) if overfits else knows.copy()
    probs[rows] = knows[rows]
    tunings = tuned_column(guesses if overfits else knows[rows], probs, features if overfits else better, folds)
    asked_for: list[tuple[list[str], int]] = []

    def tune(ranked: Sequence[str], most: int) -> teachers.Tuned:
        asked_for.append((list(ranked), most))
        return tunings

    noise = np.random.default_rng(1).normal(size=features.shape).astype(np.float32)
    fit = partial(
        TEACHERS[name].fit,
        features={"noise": noise, "a": features},
        alphas={"noise": 0.5, "a": 0.5},
        rows=rows,
        labels_L=truth[rows],
        classes=3,
    )
    plain, teacher = fit(), fit(tune=tune, tuned=1)
    assert asked_for == [(["a"], 1)]  # noise is not told from chance
    share = teacher.weights["a (tuned)"]
    assert share == 0.0 if overfits else share > 0.8
    assert 0.0 < fit(tune=tune, tuned=1, level=1.0).weights["a (tuned)"] < 0.2 or not overfits
    rest = np.arange(45, 240)
    gain = accuracy(teacher.probs_NC[rest], truth[rest]) - accuracy(plain.probs_NC[rest], truth[rest])
    assert abs(gain) < 0.05 if overfits else gain > 0.1
    assert sum(teacher.weights.values()) == pytest.approx(1.0) and teacher.weights["noise"] == 0.0
    new = {"noise": noise[:9], "a": features[:9], "a (tuned)": tunings.features["a (tuned)"][:9]}
    assert teacher.predict(new) == pytest.approx(teacher.probs_NC[:9], abs=1e-4)


@pytest.mark.parametrize("name", ["stacked", "selftrained"])
def test_labels_in_no_fold_decide_no_weights(name: str) -> None:
    features, truth = clusters(2.0)
    rows = np.arange(30)
    folds = np.where(rows < 6, -1, rows // 3 % 5)
    weights = []
    for first_answer in (0.01, 0.98):  # what the tuned source says of images in no fold
        held_out = np.full((30, 3), 1 / 3)
        held_out[:6] = (1 - first_answer) / 2
        held_out[np.arange(6), truth[:6]] = first_answer
        tunings = tuned_column(held_out, np.full((240, 3), 1 / 3), features, folds)
        teacher = TEACHERS[name].fit(
            features={"a": features},
            alphas={"a": 1.0},
            rows=rows,
            labels_L=truth[rows],
            classes=3,
            tune=lambda ranked, most, result=tunings: result,
            tuned=1,
        )
        weights.append(teacher.weights)
    assert weights[0] == weights[1]


@pytest.mark.parametrize(("labels", "tuned"), [([0, 1, 2, 0, 1], 1), ([0, 1, 2, 0, 1, 2], 0)])
def test_no_source_is_tuned_unless_wanted_and_possible(labels: list[int], tuned: int) -> None:
    features, _ = clusters(2.0)

    def tune(ranked: Sequence[str], most: int) -> None:
        raise AssertionError

    rows = np.arange(len(labels))
    teacher = TEACHERS["stacked"].fit(
        features={"a": features},
        alphas={"a": 1.0},
        rows=rows,
        labels_L=np.array(labels),
        classes=3,
        tune=tune,
        tuned=tuned,
    )
    assert teacher.weights == {"a": 1.0}
