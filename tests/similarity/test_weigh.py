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
from edgedistill.similarity.metrics import METRICS, Metric, ceiling_one
from edgedistill.similarity.weigh import weigh_sources, weights_of

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
