"""Heads begin as a ridge: they know the labels and the sources before the first step, or at random."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from edgedistill.distill import batches, head_start, loop
from edgedistill.distill.evaluate import logits
from edgedistill.distill.head_start import Scaled
from edgedistill.distill.probes import Labels
from edgedistill.distill.state import refresh_statistics
from edgedistill.students.build import build_student
from tests.helpers.tiny import make_material, micro_spec, task

pytestmark = pytest.mark.usefixtures("cpu")


def first_losses(**settings: object) -> dict[str, float]:
    """The terms of the first step, which are computed before the first update."""
    training_task, terms = task(1, **{"head_start": "ridge", **settings}), dict[str, float]()
    loop.fit(build_student(micro_spec(), 1), training_task, None, lambda step, scalars: terms.update(scalars))
    return terms


def labels_of(labels_L: np.ndarray, units_L: np.ndarray | None = None) -> Labels:
    return Labels(rows=np.arange(len(labels_L)), labels_L=labels_L, units_L=units_L, classes=2)


def test_first_losses_are_below_those_of_random_heads() -> None:
    ridge, random = first_losses(), first_losses(head_start="random")
    assert all(ridge[name] < random[name] for name in ("terms/labels", "terms/source/knows"))


def test_target_head_knows_the_labels_before_training() -> None:
    model, training_task = build_student(micro_spec(), 1), task(1)
    head_start.begin(model, training_task)
    refresh_statistics(model, batches.training_batches(training_task))
    material = training_task.material
    predicted_N = logits(model, micro_spec(), material.images_NHWC[material.val]).argmax(axis=1)
    assert (predicted_N == material.val_labels).all()


@pytest.mark.parametrize("better", ["initial", "renewed"])
def test_features_that_tell_more_of_the_labels_are_taken(better: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of one kind are noise; those of the other are the classes, around a mean of their own."""
    model, training_task = build_student(micro_spec(), 1), task(1, method="transfer")
    width, fitted = int(model.get_submodule("head").in_features), training_task.material  # type: ignore[arg-type]
    truth_N = np.full(len(fitted.images_NHWC), 0)
    truth_N[fitted.labeled] = fitted.labels
    directions_CD = np.random.default_rng(1).normal(0, 1, (training_task.spec.num_classes, width))
    means = {"initial": np.full(width, 3.0), "renewed": np.full(width, -5.0)}

    def features(model: object, task: object, rows: np.ndarray, *, renewed: bool) -> np.ndarray:
        kind = "renewed" if renewed else "initial"
        noise_MD = np.random.default_rng(int(renewed)).normal(0, 1, (len(rows), width))
        return means[kind] + (directions_CD[truth_N[rows]] + 0.1 * noise_MD if kind == better else noise_MD)

    monkeypatch.setattr(head_start, "initial_features", features)
    head_start.begin(model, training_task)
    weight_CD, bias_C = (model.get_parameter(f"head.{name}").detach().numpy() for name in ("weight", "bias"))
    scores_CC = directions_CD @ weight_CD.T  # of each class's features, as the training computes them
    unlike_the_mean_CC = scores_CC + bias_C + means["renewed"] @ weight_CD.T
    assert (unlike_the_mean_CC.argmax(axis=1) == np.arange(len(bias_C))).all()


def test_initial_statistics_that_overflow_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = head_start.initial_features

    def features(model: object, task: object, rows: np.ndarray, *, renewed: bool) -> np.ndarray:
        features_MD = computed(model, task, rows, renewed=renewed)  # type: ignore[arg-type]
        return features_MD if renewed else np.full_like(features_MD, np.inf)

    monkeypatch.setattr(head_start, "initial_features", features)
    model = build_student(micro_spec(), 1)
    assert head_start.begin(model, task(1)).keys() == {"weight", "bias"}
    assert torch.isfinite(model.get_parameter("head.weight")).all()


def test_head_is_the_layer_on_features_as_they_are() -> None:
    features_MD = np.random.default_rng(0).normal(3, 5, (30, 4))
    scaled = head_start.scale(features_MD)
    assert np.square(scaled.scaled_MD).sum(axis=1).mean() == pytest.approx(1.0)
    weights_DK, bias_K = np.arange(8.0).reshape(4, 2), np.array([1.0, -1.0])
    layer = scaled.layer(weights_DK, bias_K)
    np.testing.assert_allclose(features_MD @ layer.weight_KD.T + layer.bias_K, scaled.scaled_MD @ weights_DK + bias_K)
    assert not head_start.scale(np.ones((3, 2))).scaled_MD.any()


def test_source_head_is_nearer_to_the_source_than_its_mean() -> None:
    random = np.random.default_rng(0)
    features_MD = random.normal(0, 1, (400, 6))
    probs_MK = softmax(features_MD @ random.normal(0, 1, (6, 5)), axis=1)
    layer = head_start.source_head(head_start.scale(features_MD[:200]), probs_MK[:200])
    fitted_MK = log_softmax(features_MD[200:] @ layer.weight_KD.T + layer.bias_K, axis=1)
    entropy = -(probs_MK[200:] * np.log(probs_MK[200:])).sum(axis=1).mean()
    excess = -(probs_MK[200:] * fitted_MK).sum(axis=1).mean() - entropy
    excess_of_mean = -(probs_MK[200:] * np.log(probs_MK[:200].mean(axis=0))).sum(axis=1).mean() - entropy
    assert excess < 0.3 * excess_of_mean


def test_source_head_of_pure_noise_is_the_mean() -> None:
    random = np.random.default_rng(0)
    probs_MK = random.dirichlet(np.ones(5), 300)
    scaled = head_start.scale(random.normal(0, 1, (300, 20)))
    layer = head_start.source_head(scaled, probs_MK)
    features_MD = scaled.scaled_MD * scaled.length + scaled.mean_D
    fitted_MK = softmax(features_MD @ layer.weight_KD.T + layer.bias_K, axis=1)
    assert np.abs(fitted_MK - probs_MK.mean(axis=0)).max() < 0.1


def test_head_on_separable_labels_is_not_sure_of_everything() -> None:
    """Sixteen labels: about one in seventeen may be wrong."""
    assert 0.01 < first_losses(method="transfer")["terms/labels"] < 0.3


def test_head_on_features_that_say_nothing_is_not_sure() -> None:
    """As many images as labels: what centers the features may not tell the ridge the labels that it leaves out."""
    labels_L, random = np.array([0, 1] * 20), np.random.default_rng(0)
    training_task = task(1, replace(make_material(), labels=labels_L), method="transfer")
    scaled = head_start.scale(random.normal(0, 1, (40, 500)), labels_L)
    layer = head_start.target_head(scaled, labels_of(labels_L), training_task.material)
    probs_MC = softmax(random.normal(0, 1, (300, 500)) @ layer.weight_KD.T + layer.bias_K, axis=1)
    assert np.abs(probs_MC - 0.5).mean() < 0.1


@pytest.mark.parametrize("weighted", [False, True])
def test_bias_is_that_of_the_shares_in_the_label_loss(weighted: bool) -> None:
    """Features that say nothing: three of four labels are of the first class."""
    labels_L, material = np.array([0, 0, 0, 1] * 4), make_material()
    weights_C = np.array([2 / 3, 2.0]) if weighted else None
    training_task = task(1, replace(material, labels=labels_L, class_weights_C=weights_C))
    scaled = Scaled(scaled_MD=np.zeros((16, 3)), mean_D=np.zeros(3), length=1.0)
    bias_C = head_start.target_head(scaled, labels_of(labels_L), training_task.material).bias_K
    assert softmax(bias_C) == pytest.approx([0.5, 0.5] if weighted else [12.5 / 17, 4.5 / 17])


def test_methods_without_sources_get_a_target_head_alone() -> None:
    assert head_start.begin(build_student(micro_spec(), 1), task(1, method="transfer")) == {}


def test_random_start_leaves_the_heads_to_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_start, "begin", None)
    assert "terms/labels" in first_losses(head_start="random")


def test_resumed_training_begins_no_head_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = loop.fit(build_student(micro_spec(), 1), task(5, head_start="ridge"), tmp_path)
    monkeypatch.setattr(head_start, "begin", None)
    again = loop.fit(build_student(micro_spec(), 1), task(5, head_start="ridge"), tmp_path)
    assert torch.equal(fitted.model.get_parameter("head.weight"), again.model.get_parameter("head.weight"))


def test_start_changes_nothing_but_the_heads() -> None:
    model = build_student(micro_spec(), 1)
    before = copy.deepcopy(model.state_dict())
    head_start.begin(model, task(1))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.weight", "head.bias"}
