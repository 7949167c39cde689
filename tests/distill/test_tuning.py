"""Sources tuned to labels: what they learn, and that what is held out is."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from edgedistill.distill import tuning
from edgedistill.distill.probes import Labels, softmax
from edgedistill.distill.tuning import TunedSource, head_scores, tune, tuned_network
from edgedistill.errors import InputError
from edgedistill.recipe.schema import Augment
from edgedistill.sources.outputs import Network, Tunable, infer
from tests.helpers.tiny import squares
from tests.helpers.tunable import untrained_network

LABELS = np.arange(20) % 2
FOLDS = np.arange(20) // 2 % 5


def tuned(source: Network, labels_L: np.ndarray = LABELS, folds_L: np.ndarray = FOLDS, seed: int = 0) -> TunedSource:
    settings = Augment(min_area=0.8, jitter=0.1)
    return tune(source, squares(LABELS, 1), alone(labels_L), folds_L=folds_L, settings=settings, seed=seed)


def alone(labels_L: np.ndarray) -> Labels:
    """Labels of two classes, each image a unit of its own."""
    rows = np.arange(len(labels_L))
    return Labels(rows=rows, labels_L=labels_L, units_L=rows, classes=2)


@pytest.fixture(scope="module")
def source() -> Network:
    return untrained_network()


def test_tuned_source_tells_classes_of_new_images(source: Network) -> None:
    result = tuned(source)
    assert result.held_out_LC.sum(axis=1) == pytest.approx(np.ones(20), abs=1e-5)
    assert (result.held_out_LC.argmax(axis=1) == LABELS).mean() >= 0.9
    network = tuned_network(source, result.state, "mine")
    new = np.arange(40) % 2
    features_MD, probs = infer(network, squares(new, 2))
    assert probs is None and not network.has_classes and network.sha256 == "mine"
    head = {part: result.state[f"head.{part}"] for part in ("weight", "bias")}
    assert (head_scores(head, features_MD).argmax(axis=1) == new).mean() >= 0.9
    assert np.abs(features_MD - infer(source, squares(new, 2))[0]).max() > 1e-3


def test_labels_of_a_fold_change_nothing_that_is_held_out_there(
    source: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "TEMPERATURES", (100.0,))  # it is fitted to the labels of all folds
    other = np.where(FOLDS == 0, 1 - LABELS, LABELS)
    first, second = tuned(source).held_out_LC, tuned(source, other).held_out_LC
    assert np.array_equal(first[FOLDS == 0], second[FOLDS == 0])
    assert not np.isclose(first[FOLDS != 0], second[FOLDS != 0]).any()


def test_classes_with_more_labels_are_not_preferred(source: Network) -> None:
    images_LHWC = np.random.default_rng(3).integers(0, 255, (60, 16, 16, 3), dtype=np.uint8)
    labels = np.where(np.arange(60) % 5 == 0, 1, 0)
    folds = np.arange(60) // 5 % 4
    result = tune(source, images_LHWC, alone(labels), folds_L=folds, settings=Augment(), seed=0)
    assert result.held_out_LC[:, 0].mean() == pytest.approx(0.5, abs=0.1)  # 0.8 of the labels are of this class


def test_answers_above_the_range_of_float16_stay_finite(source: Network) -> None:
    assert source.tunable is not None
    loud = copy.deepcopy(source.tunable.module)
    with torch.no_grad():
        for parameter in loud.bn1.parameters():  # type: ignore[union-attr]
            parameter.mul_(1e6)
    network = replace(source, tunable=Tunable(module=loud, features=source.tunable.features))
    assert np.isfinite(tuned(network).held_out_LC).all()


def test_net_whose_answers_are_not_finite_is_refused(source: Network) -> None:
    assert source.tunable is not None
    features = source.tunable.features
    overflowing = Tunable(
        module=source.tunable.module, features=lambda module, images: features(module, images) * np.inf
    )
    with pytest.raises(InputError, match="not finite"):
        tuned(replace(source, tunable=overflowing))


def test_without_memory_for_views_the_stem_runs_in_every_batch(
    source: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "MEMORY", 1000)
    assert (tuned(source).held_out_LC.argmax(axis=1) == LABELS).mean() >= 0.9


def test_seed_decides(source: Network) -> None:
    first, again, other = (tuned(source, seed=seed).held_out_LC for seed in (3, 3, 4))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_image_in_no_fold_always_trains(source: Network) -> None:
    folds = np.where(np.arange(20) < 2, -1, FOLDS)
    result = tuned(source, folds_L=folds)
    assert result.held_out_LC[:2] == pytest.approx(np.full((2, 2), 0.5))
    assert (result.held_out_LC[2:].argmax(axis=1) == LABELS[2:]).mean() >= 0.9


def test_net_that_is_no_chain_is_tuned_as_well(source: Network) -> None:
    assert source.tunable is not None

    def features(module: object, images_BCHW: object) -> object:
        # the tail of a divided net gets what is no image: then this fails, and the net is trained as a whole
        assert images_BCHW.shape[1] == 3  # type: ignore[attr-defined]
        return source.tunable.features(module, images_BCHW)  # type: ignore[union-attr, arg-type]

    whole = replace(source, tunable=Tunable(module=source.tunable.module, features=features))  # type: ignore[arg-type]
    assert tuned(whole).held_out_LC == pytest.approx(tuned(source).held_out_LC, abs=0.05)


def test_head_begins_without_the_help_of_copies() -> None:
    """Features of noise, each image twice: a copy tells its image's label, and nothing tells that of new images."""
    features = np.repeat(np.random.default_rng(5).normal(size=(20, 64)), 2, axis=0)
    labels = alone(np.arange(20).repeat(2) % 2)
    single, together = (
        tuning.ridge_head(features, replace(labels, units_L=units)).weight.norm()
        for units in (np.arange(40), np.arange(20).repeat(2))
    )
    assert together < 0.8 * single
    assert torch.equal(
        tuning.ridge_head(features, replace(labels, units_L=None)).weight, tuning.ridge_head(features, labels).weight
    )


def test_temperature_is_part_of_the_head(source: Network) -> None:
    result = tuned(source)
    network = tuned_network(source, result.state, "mine")
    head = {part: result.state[f"head.{part}"] for part in ("weight", "bias")}
    probs_LC = softmax(head_scores(head, infer(network, squares(LABELS, 1))[0]))
    # the net that was trained on all labels is no less sure of them than the nets that were not
    assert probs_LC[np.arange(20), LABELS].mean() >= result.held_out_LC[np.arange(20), LABELS].mean() - 0.05
