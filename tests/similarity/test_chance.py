"""The test against chance: its level, its power, and the shares of sources that do not pass it."""

from __future__ import annotations

import numpy as np
import pytest

from edgedistill.distill.teachers import TEACHERS
from edgedistill.recipe.schema import Weigh
from edgedistill.similarity.chance import answers_p_value, better_than_chance, p_value
from edgedistill.similarity.weigh import weigh_sources


@pytest.fixture
def few_permutations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgedistill.similarity.chance.REPEATS", 199)


def images(seed: int, count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Features of four classes, and their labels."""
    random = np.random.default_rng(seed)
    labels_N = np.arange(count) % 4
    return 2.0 * np.eye(4, 16)[labels_N] + random.normal(0, 1, (count, 16)), labels_N


def noise(seed: int, count: int = 40) -> np.ndarray:
    return np.random.default_rng(1000 + seed).normal(0, 1, (count, 16))


def test_p_is_the_share_of_permutations_that_do_as_well() -> None:
    """Two of each class, far apart: of the 6 divisions of four images into two and two, 2 are right (p = 1/3)."""
    features_LD = np.array([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]])
    assert p_value(features_LD, np.array([0, 0, 1, 1])) == pytest.approx(1 / 3, abs=0.03)


def test_features_that_say_nothing_are_chance_however_frequent_a_class_is() -> None:
    assert p_value(np.ones((100, 3)), np.array([0] * 90 + [1] * 10)) == 1.0


@pytest.mark.usefixtures("few_permutations")
def test_level_holds_for_noise() -> None:
    p = [p_value(noise(seed), np.arange(40) % 4) for seed in range(100)]
    assert 1 <= sum(np.array(p) <= 0.05) <= 11  # 5 in the mean; 11 is the 99th percentile


@pytest.mark.usefixtures("few_permutations")
def test_level_holds_for_images_that_are_alike() -> None:
    """Ten images, four near copies of each, whose labels say nothing."""
    p = [
        p_value(np.repeat(noise(seed, 10), 4, axis=0), np.random.default_rng(seed).permutation(np.arange(40) % 4))
        for seed in range(100)
    ]
    assert sum(np.array(p) <= 0.05) <= 11


def test_all_sources_stay_where_none_passes_and_without_a_test() -> None:
    features, labels_L = images(0)
    sources = {name: noise(seed) for seed, name in enumerate("abc")}
    assert better_than_chance(sources, labels_L, 0.001) == ("a", "b", "c")
    assert better_than_chance({**sources, "good": features}, labels_L, 0.05) == ("good",)
    assert better_than_chance({**sources, "good": features}, labels_L, 1.0) == ("a", "b", "c", "good")


def test_step_down_lets_the_second_source_through_at_the_level_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Holm: 0.03 passes beside 0.001, where Bonferroni asks for 0.025; 0.06 stops what follows it."""
    p = iter([0.03, 0.001, 0.06, 0.03, 0.001])
    monkeypatch.setattr("edgedistill.similarity.chance.p_value", lambda features_LD, labels_L: next(p))
    sources = {name: noise(0) for name in "abc"}
    labels_L = np.arange(40) % 4
    assert better_than_chance({"a": noise(0), "b": noise(0)}, labels_L, 0.05) == ("a", "b")
    assert better_than_chance(sources, labels_L, 0.05) == ("c",)


@pytest.mark.parametrize("name", ["stacked", "selftrained"])
@pytest.mark.usefixtures("few_permutations")
def test_source_at_chance_has_no_share_of_the_teacher(name: str) -> None:
    features, labels_N = images(0, 80)
    sources, rows = {"useful": features, "untrained": noise(0, 80)}, np.arange(40)
    alphas = dict.fromkeys(sources, 0.5)

    def shares(**options: float) -> dict[str, float]:
        fitted = TEACHERS[name].fit(
            features=sources, alphas=alphas, rows=rows, labels_L=labels_N[rows], classes=4, **options
        )
        assert fitted.predict({source: array[:3] for source, array in sources.items()}).shape == (3, 4)
        return dict(fitted.weights)

    assert shares() == {"useful": 1.0, "untrained": 0.0}
    assert shares(level=1.0)["untrained"] > 0.02


def test_source_at_chance_has_no_weight() -> None:
    features, labels_N = images(0)
    outputs = {"useful": (features, None), "untrained": (noise(2), None)}

    def weights(**settings: float) -> tuple[dict[str, float], tuple[str, ...]]:
        weighed = weigh_sources(outputs, labels_N, Weigh(also=(), bootstrap=2, power=0.0, **settings), seed=0)
        return weighed.alphas, weighed.blind

    assert weights() == ({"useful": 1.0, "untrained": 0.0}, ("untrained",))
    assert weights(level=1.0) == ({"useful": 0.5, "untrained": 0.5}, ())


def test_answers_to_noise_pass_as_often_as_the_level_says() -> None:
    random = np.random.default_rng(0)
    shares = np.array([0.7, 0.2, 0.1])
    p = [answers_p_value(random.choice(3, 40, p=shares), random.choice(3, 40, p=shares)) for _ in range(200)]
    assert 0.02 <= (np.array(p) <= 0.1).mean() <= 0.16
    labels = np.arange(40) % 3
    assert answers_p_value(np.where(np.arange(40) < 25, labels, 0), labels) < 0.001
    assert answers_p_value(np.zeros(40, dtype=np.int64), labels) == 1.0  # the most frequent class tells nothing
