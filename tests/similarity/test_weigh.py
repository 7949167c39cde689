"""From scores to weights: values by hand, edge cases, properties, and the resulting record."""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedistill.errors import InputError
from edgedistill.recipe.schema import Weigh
from edgedistill.records import SourceWeight, SourceWeights
from edgedistill.report import weights as report_weights
from edgedistill.similarity.metrics import METRICS, Metric, ceiling_one
from edgedistill.similarity.weigh import weigh_sources, weights_of
from tests.helpers.clusters import recordings

SCORES = st.lists(st.floats(-2.0, 2.0), min_size=1, max_size=8)
POWERS = st.sampled_from([0.0, 0.5, 1.0, 12.0, 1000.0])
RESCALES: list[Literal["ceiling", "minmax"]] = ["ceiling", "minmax"]


@pytest.mark.parametrize(
    ("scores", "ceiling", "power", "rescale", "expected"),
    [
        # e = (0.8, 0.4): squares 0.64 and 0.16, shares 0.64/0.8 and 0.16/0.8
        ([0.8, 0.4], 1.0, 2.0, "ceiling", [0.8, 0.2]),
        # e = (60, 30, -5)/80 = (3/4, 3/8, 0): shares 2 : 1 : 0
        ([60.0, 30.0, -5.0], 80.0, 1.0, "ceiling", [2 / 3, 1 / 3, 0.0]),
        # above the ceiling counts as the ceiling: e = (1, 1/2), cubes 1 and 1/8
        ([90.0, 40.0], 80.0, 3.0, "ceiling", [8 / 9, 1 / 9]),
        # stretched over the sources: e = (1, 1/2, 0)
        ([3.0, 2.0, 1.0], 1.0, 1.0, "minmax", [2 / 3, 1 / 3, 0.0]),
        # two sources: minmax gives all weight to the better, for any scores
        ([0.81, 0.80], 1.0, 1.0, "minmax", [1.0, 0.0]),
        ([0.5, 0.5, 0.5], 1.0, 12.0, "ceiling", [1 / 3] * 3),
        ([0.5, 0.5, 0.5], 1.0, 12.0, "minmax", [1 / 3] * 3),
        # no source is above chance: uniform, not 0 / 0
        ([-0.1, -0.2], 1.0, 12.0, "ceiling", [0.5, 0.5]),
        ([5.0, 7.0], 0.0, 12.0, "ceiling", [0.5, 0.5]),
        # power 0: every source alike
        ([0.9, 0.1, 0.5], 1.0, 0.0, "ceiling", [1 / 3] * 3),
        # a huge power: the best alone, and ties share
        ([0.9, 0.1, 0.9], 1.0, 1e6, "ceiling", [0.5, 0.0, 0.5]),
        # (1e-3)^400 is 0 in float64; relative to the best it is 1
        ([1e-3, 5e-4], 1.0, 400.0, "ceiling", [1.0, 0.0]),
        ([0.3], 1.0, 12.0, "ceiling", [1.0]),
        ([-0.3], 1.0, 12.0, "minmax", [1.0]),
    ],
)
def test_weights_by_hand(
    scores: list[float], ceiling: float, power: float, rescale: Literal["ceiling", "minmax"], expected: list[float]
) -> None:
    np.testing.assert_allclose(weights_of(np.array(scores), ceiling, power, rescale), expected, atol=1e-12)


@given(scores=SCORES, power=POWERS, rescale=st.sampled_from(RESCALES))
def test_weights_are_a_mixture_and_follow_the_scores(
    scores: list[float], power: float, rescale: Literal["ceiling", "minmax"]
) -> None:
    alphas_S = weights_of(np.array(scores), 1.0, power, rescale)
    assert alphas_S.shape == (len(scores),) and (alphas_S >= 0.0).all()
    assert alphas_S.sum() == pytest.approx(1.0)
    assert (np.diff(alphas_S[np.argsort(scores, kind="stable")]) >= 0.0).all()


@given(scores=SCORES, rescale=st.sampled_from(RESCALES))
def test_weight_of_best_source_grows_with_power(scores: list[float], rescale: Literal["ceiling", "minmax"]) -> None:
    best = int(np.argmax(scores))
    shares = [weights_of(np.array(scores), 1.0, power, rescale)[best] for power in (0.5, 1.0, 4.0, 50.0)]
    assert all(later >= earlier - 1e-12 for earlier, later in itertools.pairwise(shares))


def outputs_with_scores(**scores: tuple[float, float]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return outputs on two images whose first feature is the score of "probe", and the second that of "parc"."""
    return {name: (np.tile(pair, (2, 1)), np.ones((2, 1))) for name, pair in scores.items()}


@pytest.fixture
def metrics_from_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics whose score is a feature, so that expected values can be computed by hand."""
    for column, name in enumerate(("probe", "parc")):
        metric = Metric(
            score=lambda f, p, y, column=column: float(f[0, column]), ceiling=ceiling_one, bounds=METRICS[name].bounds
        )
        monkeypatch.setitem(METRICS, name, metric)


@pytest.mark.usefixtures("metrics_from_features")
def test_record_holds_weights_scores_and_disagreement() -> None:
    settings = Weigh.model_validate({"metric": "probe", "also": ["parc"], "power": 2.0})
    # probe: 0.8, 0.4 -> 0.8, 0.2; parc: 0.3, 0.9 -> 1 : 9 -> 0.1, 0.9
    source_weights = weigh_sources(
        outputs_with_scores(birds=(0.8, 0.3), digits=(0.4, 0.9)), np.array([0, 1]), settings, seed=0
    )
    assert (source_weights.metric, source_weights.probe_images, source_weights.power) == ("probe", 2, 2.0)
    assert source_weights.alphas == pytest.approx({"birds": 0.8, "digits": 0.2})
    assert source_weights.sources[1].scores["parc"].score == 0.9
    assert source_weights.disagreement == (
        "parc would put digits first (weight 0.90), probe puts birds first (and digits at 0.20). "
        "The weights follow probe."
    )
    # 1 / (0.64 + 0.04)
    assert source_weights.effective_sources == pytest.approx(1 / 0.68)


@pytest.mark.usefixtures("metrics_from_features")
def test_agreement_is_not_reported_and_progress_is_counted() -> None:
    steps: list[int] = []
    settings = Weigh.model_validate({"metric": "parc", "also": ["probe", "parc"]})
    source_weights = weigh_sources(
        outputs_with_scores(a=(0.8, 0.5), b=(0.4, 0.2)), np.array([0, 1]), settings, seed=0, progress=steps.append
    )
    assert source_weights.disagreement == ""
    assert list(source_weights.sources[0].scores) == ["probe", "parc"]
    assert sum(steps) == 4  # two sources by two metrics; the metric named twice is scored once


def test_informative_source_outweighs_noise() -> None:
    labels_N = np.arange(40) % 2
    noise_ND = np.random.default_rng(0).normal(size=(40, 6))
    knows_ND = noise_ND + 3.0 * labels_N[:, None]
    probs_NK = np.full((40, 2), 0.5)
    settings = Weigh(bootstrap=4)
    outputs = {"noise": (noise_ND, probs_NK), "knows": (knows_ND, probs_NK)}
    first, second = (weigh_sources(outputs, labels_N, settings, seed=3) for _ in range(2))
    assert first.alphas["knows"] > 0.9
    assert first == second


def test_unknown_metric_option_is_refused() -> None:
    settings = Weigh.model_validate({"metric": {"name": "parc", "dim": 32}, "also": []})
    with pytest.raises(InputError, match="dim: unknown key; did you mean dims"):
        weigh_sources(outputs_with_scores(a=(0.0, 0.0)), np.array([0, 1]), settings, seed=0)


def test_effective_number_of_sources() -> None:
    def mixture(*weights: float) -> SourceWeights:
        return SourceWeights(
            metric="probe",
            probe_images=8,
            power=1.0,
            sources=tuple(
                SourceWeight(name=str(index), weight=weight, scores={}) for index, weight in enumerate(weights)
            ),
        )

    assert mixture(0.25, 0.25, 0.25, 0.25).effective_sources == pytest.approx(4.0)
    assert mixture(1.0, 0.0).effective_sources == pytest.approx(1.0)


OPTIONS = {"static": {"prior": {"": 0.5}}}


@pytest.mark.parametrize("name", METRICS)
def test_metric_looks_at_what_it_declares(name: str) -> None:
    random = np.random.default_rng(2)
    labels_N = np.arange(30) % 3
    features_ND, probs_NK = random.normal(size=(30, 5)) + labels_N[:, None], random.dirichlet(np.ones(4), 30)
    needs, options = METRICS[name].needs, OPTIONS.get(name, {})
    score = METRICS[name].score(features_ND, probs_NK, labels_N, **options)
    for need, changed in (("features", (None, probs_NK)), ("classes", (features_ND, None))):
        if need not in needs:
            assert METRICS[name].score(*changed, labels_N, **options) == score
        else:
            with pytest.raises((AttributeError, TypeError, InputError)):
                METRICS[name].score(*changed, labels_N, **options)


def with_headless() -> tuple[dict[str, tuple[np.ndarray, np.ndarray | None]], np.ndarray]:
    """Two sources with classes, of which `knows` is right more often, and a headless one with the best features."""
    random, labels_N = np.random.default_rng(5), np.arange(40) % 2
    noise_ND, onehot_NK = random.normal(size=(40, 6)), np.eye(2)[labels_N]
    return {
        "knows": (noise_ND + 0.7 * labels_N[:, None], 0.2 + 0.6 * onehot_NK),
        "headless": (noise_ND + 3.0 * labels_N[:, None], None),
        "guesses": (noise_ND + 0.6 * labels_N[:, None], 0.45 + 0.1 * onehot_NK),
    }, labels_N


def test_headless_source_is_weighed_where_features_are_enough() -> None:
    outputs, labels_N = with_headless()
    settings = Weigh.model_validate({"metric": "probe", "also": ["leep"], "bootstrap": 4, "power": 2, "level": 1})
    weights = weigh_sources(outputs, labels_N, settings, seed=3)
    assert weights.features_only == ("headless",)
    assert [sorted(source.scores) for source in weights.sources] == [["leep", "probe"], ["probe"], ["leep", "probe"]]
    assert max(weights.alphas, key=lambda name: weights.alphas[name]) == "headless"
    assert sum(weights.alphas.values()) == pytest.approx(1.0)
    assert "leep would put knows first" in weights.disagreement
    shares = weights.class_alphas
    assert list(shares) == ["knows", "guesses"] and sum(shares.values()) == pytest.approx(1.0)
    assert shares["knows"] / shares["guesses"] == pytest.approx(weights.alphas["knows"] / weights.alphas["guesses"])
    # without the headless source the others have the same scores, and the same weights but for rounding
    del outputs["headless"]
    others = weigh_sources(outputs, labels_N, settings, seed=3)
    assert others.features_only == () and others.class_alphas == others.alphas == pytest.approx(shares)


def test_headless_source_has_no_weight_by_a_metric_that_needs_classes() -> None:
    outputs, labels_N = with_headless()
    steps: list[int] = []
    settings = Weigh.model_validate({"metric": "leep", "also": ["nce", "probe"], "bootstrap": 4})
    weights = weigh_sources(outputs, labels_N, settings, seed=3, progress=steps.append)
    assert sum(steps) == 9
    assert weights.alphas["headless"] == 0.0 and list(weights.sources[1].scores) == ["probe"]
    assert "probe would put headless first" in weights.disagreement and "nce" not in weights.disagreement
    del outputs["headless"]
    others = weigh_sources(outputs, labels_N, settings, seed=3)
    assert others.alphas == weights.class_alphas  # to the bit


def test_metric_that_needs_classes_cannot_decide_among_headless_sources() -> None:
    outputs, labels_N = with_headless()
    only = {"headless": outputs["headless"]}
    with pytest.raises(
        InputError, match=r"weigh\.metric: leep needs the sources' classes, and no source has any; use a"
    ):
        weigh_sources(only, labels_N, Weigh.model_validate({"metric": "leep", "bootstrap": 4}), seed=3)
    settings = Weigh.model_validate({"metric": "probe", "also": ["leep"], "bootstrap": 4})
    weights = weigh_sources(only, labels_N, settings, seed=3)
    assert weights.alphas == {"headless": 1.0} and weights.disagreement == "" and weights.class_alphas == {}


def test_metric_that_declares_no_needs_scores_no_headless_source(monkeypatch: pytest.MonkeyPatch) -> None:
    score = METRICS["probe"].score
    monkeypatch.setitem(METRICS, "mine", Metric(score=score, ceiling=ceiling_one, bounds=METRICS["probe"].bounds))
    outputs, labels_N = with_headless()
    weights = weigh_sources(outputs, labels_N, Weigh.model_validate({"metric": "mine", "bootstrap": 4}), seed=3)
    assert weights.alphas["headless"] == 0.0


def test_shares_are_uniform_if_only_the_headless_source_has_weight() -> None:
    sources = [SourceWeight(name=name, weight=weight, scores={}) for name, weight in (("a", 0), ("b", 0), ("c", 1))]
    record = SourceWeights(metric="probe", probe_images=8, power=1.0, sources=tuple(sources), features_only=("c",))
    assert record.class_alphas == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize("metric", ["probe", "knn", "parc"])
def test_class_with_a_single_label_takes_no_part(metric: str) -> None:
    rng = np.random.default_rng(0)
    labels_N = np.repeat([0, 1, 2], [6, 6, 1])
    outputs = {name: (rng.normal(size=(13, 4)), np.full((13, 3), 1 / 3)) for name in ("first", "second")}
    settings = Weigh.model_validate({"metric": metric, "also": [], "bootstrap": 2})
    without = {name: (features_ND[:12], probs_NK[:12]) for name, (features_ND, probs_NK) in outputs.items()}
    weights = weigh_sources(outputs, labels_N, settings, seed=0)
    assert weights == weigh_sources(without, labels_N[:12], settings, seed=0)
    assert weights.probe_images == 12


def test_source_that_knows_recordings_alone_weighs_little() -> None:
    features, labels_N, units_N = recordings(n_recordings=24, frames=10, classes=2)
    outputs = {name: (features_ND, None) for name, features_ND in features.items()}
    settings = Weigh.model_validate({"also": ["knn"], "bootstrap": 2})
    apart = weigh_sources(outputs, labels_N, settings, seed=0)
    grouped = weigh_sources(outputs, labels_N, settings, seed=0, units_N=units_N)
    assert apart.alphas["recording"] > 0.45 and grouped.alphas["recording"] < 0.1
    assert apart.probe_images == 240 and grouped.probe_images == 24


def test_images_that_are_alone_in_their_units_all_take_part() -> None:
    outputs, labels_N = with_headless()
    settings = Weigh.model_validate({"also": [], "bootstrap": 2})
    alone = weigh_sources(outputs, labels_N, settings, seed=0, units_N=np.arange(len(labels_N)))
    assert alone == weigh_sources(outputs, labels_N, settings, seed=0)


def test_sources_weigh_the_same_where_no_two_classes_have_two_labels() -> None:
    """As in a fold of two labels a class."""
    labels_N = np.array([0, 1, 1])
    random = np.random.default_rng(0)
    outputs = {name: (random.normal(size=(3, 4)), np.full((3, 2), 0.5)) for name in ("a", "b")}
    weights = weigh_sources(outputs, labels_N, Weigh.model_validate({"also": ["parc"], "bootstrap": 2}), seed=0)
    assert weights.alphas == {"a": 0.5, "b": 0.5} and set(weights.sources[0].scores) == {"parc"}
    assert "all sources weigh the same" in report_weights.table(weights)
    by_parc = weigh_sources(outputs, labels_N, Weigh.model_validate({"metric": "parc", "also": ["knn"]}), seed=0)
    assert set(by_parc.sources[0].scores) == {"parc"}


def test_sources_that_are_nearly_the_same_share_one_weight() -> None:
    random, labels_N = np.random.default_rng(3), np.arange(60) % 3
    first, second = (2.0 * np.eye(3, 20)[labels_N] + random.normal(size=(60, 20)) for _ in range(2))
    outputs = {"a": (first, None), "copy": (first + 0.01 * random.normal(size=first.shape), None), "b": (second, None)}

    def weights(alike: str) -> list[float]:
        settings = Weigh.model_validate({"also": [], "bootstrap": 2, "power": 0, "alike": alike})
        return list(weigh_sources(outputs, labels_N, settings, seed=0).alphas.values())

    assert weights("each") == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert weights("once") == pytest.approx([0.25, 0.25, 0.5])
