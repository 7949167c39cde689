"""Where the heads begin: a closed-form ridge from the student's initial features, instead of weights drawn at random.

A head drawn at random spends a short run on finding its place, and meanwhile its gradients distort the backbone's
initial features (Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution",
ICLR 2022: linear probing, then fine-tuning). One pass over the images gives the target's head from the labels and each
source's head from its pseudo-labels.

The features are computed twice: with the batch norm statistics of the initial weights, which are the better ones where
those were trained on many images, and with those of the target's images, by which the training normalizes. The ridge is
fitted to those that tell more of the labels, by its leave-one-out likelihood, and its layer is moved to the mean of the
others. The features are centered, and scaled by one number to a mean squared length of 1, which a linear layer can take
in. The target's head centers them on the labeled images, each class weighing alike, and leave-one-out fits that mean
again; the heads of sources center them on all images. The penalty is the one of largest leave-one-out likelihood, and
so is the scale of the logits, with one label in L + 1 taken for wrong (Platt 1999): a head that were sure of everything
would have no gradient to learn by.

M images, L of them labeled, D features of the student, C target classes, K classes of one source.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgedistill.distill import probes
from edgedistill.similarity.weigh import stratified_rows

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgedistill.distill.batches import Material, Rows, Task

Floats = NDArray[np.floating[Any]]
# of what a head begins with; 2: features with the statistics of the initial weights, where they are better;
# 3: leave-one-out without the image's share in the mean
VERSION = 3
MOST_IMAGES = 4096
MOST_LABELED = 2000  # the Gram matrix of the labeled images grows with their square
MOST_ENTRIES = 20_000_000  # of a matrix of pseudo-labels: 21,000 classes take fewer images
PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)  # for features of mean squared length 1
SUPPORT = 3.0  # a class that has fewer images' worth of probability cannot be estimated, and is pulled to its share


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A linear layer: logits are features [., D] times weight_KD transposed plus bias_K."""

    weight_KD: Floats
    bias_K: Floats


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """Features centered and scaled, [M, D], and how: `scaled = (features - mean_D) / length`."""

    scaled_MD: Floats
    mean_D: Floats
    length: float

    @cached_property
    def spectrum(self) -> tuple[Floats, Floats]:
        """Eigenvalues [D] and eigenvectors [D, D] of the second moments; the heads of all sources share them."""
        values_D, vectors_DD = np.linalg.eigh(self.scaled_MD.T @ self.scaled_MD)
        return values_D, vectors_DD

    def moved(self, other: Scaled) -> Scaled:
        """The same scaled features, to be had from features that lie around another mean."""
        return replace(self, mean_D=other.mean_D)

    def layer(self, weights_DK: Floats, bias_K: Floats) -> Linear:
        """The layer on features as they are, from weights and bias on scaled ones."""
        weight_KD = weights_DK.T / self.length
        return Linear(weight_KD=weight_KD, bias_K=bias_K - weight_KD @ self.mean_D)


def begin(model: nn.Module, task: Task) -> dict[str, Tensor]:
    """Set the target's head of `model`; returns the state of the source heads, side by side as in the training state.

    The images are at most MOST_IMAGES of those that are trained on, drawn from the task's seed; shards are not read.
    """
    import torch

    material, random = task.material, np.random.default_rng([task.seed, 4])
    labeled = stratified_rows(material.labels, MOST_LABELED)
    others = random.permutation(np.concatenate([np.delete(material.labeled, labeled), task.unlabeled]))
    rows = np.concatenate([material.labeled[labeled], others])[:MOST_IMAGES]
    labels = probes.Labels(
        rows=material.labeled, labels_L=material.labels, units_L=material.units_L, classes=task.spec.num_classes
    ).at(labeled)
    training, initial = (initial_features(model, task, rows, renewed=renewed) for renewed in (True, False))
    if not np.isfinite(training).all():
        return {}  # the first step says so
    candidates = [features_MD for features_MD in (training, initial) if np.isfinite(features_MD).all()]
    best = max(candidates, key=lambda features_MD: held_out_likelihood(scale(features_MD, labels.labels_L), labels))
    # the layers are for features as the training computes them
    scaled = scale(best, labels.labels_L).moved(scale(training, labels.labels_L))
    target = target_head(scaled, labels, material)
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(target.weight_KD))  # type: ignore[union-attr,operator]
        model.head.bias.copy_(torch.from_numpy(target.bias_K))  # type: ignore[union-attr,operator]
    if not task.sources:
        return {}
    scaled = scale(best).moved(scale(training))
    heads = [source_head(scaled, np.asarray(material.source_probs[name][rows])) for name in task.sources]
    weight_KD, bias_K = (
        np.concatenate([getattr(head, name) for head in heads]).astype(np.float32) for name in ("weight_KD", "bias_K")
    )
    return {"weight": torch.from_numpy(weight_KD), "bias": torch.from_numpy(bias_K)}


def initial_features(model: nn.Module, task: Task, rows: Rows, batch: int = 64, *, renewed: bool) -> Floats:
    """The backbone's features of some images before training, without augmentation, float64 [M, D].

    `renewed` takes the statistics of batch norm from the target's images; else they are those of the initial weights.
    """
    import torch

    from edgedistill.data.pixels import normalize
    from edgedistill.distill.batches import training_batches
    from edgedistill.distill.state import refresh_statistics
    from edgedistill.distributed import processes
    from edgedistill.distributed.device import default_device

    processes.team()  # with several processes on several GPUs, each uses its own from here on
    device = default_device()
    net = copy.deepcopy(model).to(memory_format=torch.channels_last).to(device)
    net.eval()
    if renewed:
        refresh_statistics(net, training_batches(task))
    images_NHWC, parts = task.material.images_NHWC, []
    with torch.inference_mode():
        for start in range(0, len(rows), batch):
            images = torch.from_numpy(np.array(images_NHWC[rows[start : start + batch]])).to(device)
            images_BCHW = normalize(images, task.spec.mean, task.spec.std)
            features_BD = net.backbone(images_BCHW.contiguous(memory_format=torch.channels_last))  # type: ignore[operator]
            parts.append(features_BD.double().cpu())
    return np.asarray(torch.cat(parts).numpy())


def scale(features_MD: Floats, labels_L: Rows | None = None) -> Scaled:
    """Center features on their mean and divide them by the root of their mean squared length; constant ones stay 0.

    With labels only the first L images are taken, and each class has the same weight in the mean.
    """
    weight_M = None
    if labels_L is not None:
        features_MD, weight_M = features_MD[: len(labels_L)], 1.0 / probes.class_balance(labels_L)
    mean_D = np.average(features_MD, axis=0, weights=weight_M)
    centered_MD = features_MD - mean_D
    length = float(np.sqrt(np.square(centered_MD).sum(axis=1).mean())) or 1.0
    return Scaled(scaled_MD=centered_MD / length, mean_D=mean_D, length=length)


def held_out_likelihood(scaled: Scaled, labels: probes.Labels) -> float:
    """Mean log-likelihood of the labels of L images by a ridge on the others; 0 where a class has one label."""
    if not probes.at_least_two_per_class(labels.labels_L, labels.units_L):
        return 0.0
    left_out_LC = ridge(gram(scaled), labels).loo_probs_LC
    return probes.log_likelihood(np.log(np.maximum(left_out_LC, 1e-300)), labels.labels_L)


def gram(scaled: Scaled) -> Floats:
    """Inner products of scaled features, [M, M]."""
    return np.asarray(scaled.scaled_MD @ scaled.scaled_MD.T)


def ridge(gram_LL: Floats, labels: probes.Labels) -> probes.Probe:
    """The ridge on the labels of L images, whose mean is fitted, too."""
    return probes.probe_from_gram(
        gram_LL, labels.rows, labels.labels_L, labels.classes, units_L=labels.units_L, mean_of_labeled=True
    )


def target_head(scaled: Scaled, labels: probes.Labels, material: Material) -> Linear:
    """The head on the labels of L images: a ridge as in `probes.probe_from_gram`, at the labels' shares.

    The ridge counts all classes alike. The label loss does not where labels are unequal, weighted or shifted: the bias
    is that of the shares and the shift which the loss will see.
    """
    gram_LL, classes = gram(scaled), labels.classes
    probe = ridge(gram_LL, labels)
    weights_DC = scaled.scaled_MD.T @ probe.duals_LC * (probe.temperature / _temperature(probe, gram_LL, labels))
    mass_C = np.bincount(material.labels, minlength=classes).astype(np.float64)
    if material.class_weights_C is not None:
        mass_C *= material.class_weights_C
    bias_C = np.log((mass_C + 1.0 / classes) / (mass_C.sum() + 1.0))
    if material.label_shift_C is not None:
        bias_C -= material.label_shift_C
    return scaled.layer(weights_DC, bias_C - bias_C.mean())


def _temperature(probe: probes.Probe, gram_LL: Floats, labels: probes.Labels) -> float:
    """What the ridge's scores are divided by: most likely on those left out, or on all where a class has one label."""
    count, classes = probe.loo_probs_LC.shape
    scores_LC = gram_LL @ probe.duals_LC * probe.temperature
    if probes.at_least_two_per_class(labels.labels_L, labels.units_L):
        scores_LC = np.log(np.maximum(probe.loo_probs_LC, 1e-300)) * probe.temperature
    targets_LC = np.eye(classes)[labels.labels_L] * (1.0 - 1.0 / (count + 1)) + 1.0 / (count + 1) / classes
    return max(probes.TEMPERATURES, key=lambda temperature: _mean_likelihood(scores_LC / temperature, targets_LC))


def source_head(scaled: Scaled, probs_MK: Floats) -> Linear:
    """The head on a source's pseudo-labels: a ridge on the softmax's first-order expansion about their mean.

    softmax(log m + z) is m + m z to first order, so z is fitted to (p - m) / m. Classes that hardly occur divide by
    SUPPORT / M more. On ImageNet's classes and small students this comes closer to the source than a ridge on log p or
    on p with a scale.
    """
    count = min(len(probs_MK), max(1, MOST_ENTRIES // probs_MK.shape[1]))
    if count < len(probs_MK):
        scaled = replace(scaled, scaled_MD=scaled.scaled_MD[:count])
    scaled_MD, probs_MK = scaled.scaled_MD, probs_MK[:count].astype(np.float64)
    mean_K = probs_MK.mean(axis=0)
    targets_MK = (probs_MK - mean_K) / (mean_K + SUPPORT / count)
    bias_K = np.log((count * mean_K + 1.0 / len(mean_K)) / (count + 1.0))
    values_D, vectors_DD = scaled.spectrum
    rotated_MD = scaled_MD @ vectors_DD
    moments_DK = rotated_MD.T @ targets_MK
    best: tuple[float, Floats] | None = None
    for penalty in PENALTIES:
        weights_DK = moments_DK / (values_D + penalty)[:, None]
        leverage_M = (np.square(rotated_MD) / (values_D + penalty)).sum(axis=1) + 1.0 / count
        # leave-one-out of a linear smoother: the residual divided by one minus the leverage
        left_out_MK = targets_MK - (targets_MK - rotated_MD @ weights_DK) / np.maximum(1.0 - leverage_M, 1e-6)[:, None]
        likelihood = _mean_likelihood(left_out_MK + bias_K, probs_MK)
        if best is None or likelihood > best[0]:
            best = likelihood, weights_DK
    assert best is not None, "there are penalties to try"
    return scaled.layer(vectors_DD @ best[1], bias_K)


def _mean_likelihood(logits_MK: Floats, probs_MK: Floats) -> float:
    """Minus the mean cross-entropy of the logits against probabilities."""
    top_M = logits_MK.max(axis=1, keepdims=True)
    log_sum_M = np.log(np.exp(logits_MK - top_M).sum(axis=1)) + top_M[:, 0]
    return float((np.einsum("mk,mk->m", logits_MK, probs_MK) - log_sum_M * probs_MK.sum(axis=1)).mean())
