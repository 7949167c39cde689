"""Distillation methods: pure functions from one batch to named loss terms, whose sum is the loss.

B batch, C target classes, K classes of one source. The student carries its target head and one extra linear head per
source, in that source's label space; the extra heads are dropped after training. Terms are already weighted, so
what is logged is what is summed.

    METHODS[name](batch, alphas, **options) -> {term: scalar tensor}
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

if TYPE_CHECKING:
    from torch import Tensor

Unit = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]


@dataclass(frozen=True)
class Batch:
    """What a method may see of one step.

    Attributes:
        target_logits_BC: the student's target head.
        labels_B: target labels, -1 where the image has none.
        source_logits: per source, the student's extra head, [B, K].
        source_probs: per source, its cached pseudo-labels for the same images, [B, K]; rows sum to 1.
    """

    target_logits_BC: Tensor
    labels_B: Tensor
    source_logits: Mapping[str, Tensor]
    source_probs: Mapping[str, Tensor]

    def classes(self, source: str) -> int:
        """K of a source."""
        return int(self.source_logits[source].shape[1])


Terms = dict[str, "Tensor"]
Method = Callable[..., Terms]


def transfer(batch: Batch, alphas: Mapping[str, float]) -> Terms:
    """Cross-entropy on the labels alone: fine-tuning from the initial weights, the baseline."""
    return {"labels": label_loss(batch)}


def nearest(
    batch: Batch, alphas: Mapping[str, float], *, lam: Unit = 0.8, temperature: Positive = 1.0, normalise: bool = True
) -> Terms:
    """DistillNearest (our reading of Borup, Phoo, Hariharan, ICCV 2023): labels, and the most similar source alone.

    lam * CE(labels) + (1 - lam) * CE(source head, pseudo-labels of the source with the largest weight).
    """
    best = max(alphas, key=lambda name: alphas[name])
    return mixture(batch, {best: 1.0}, lam, temperature, normalise)


def equal(
    batch: Batch, alphas: Mapping[str, float], *, lam: Unit = 0.8, temperature: Positive = 1.0, normalise: bool = True
) -> Terms:
    """All sources with the same weight: the control that shows what the weighting is worth."""
    return mixture(batch, dict.fromkeys(alphas, 1.0 / len(alphas)), lam, temperature, normalise)


def weighted(
    batch: Batch, alphas: Mapping[str, float], *, lam: Unit = 0.8, temperature: Positive = 1.0, normalise: bool = True
) -> Terms:
    """DistillWeighted (our reading of Borup, Phoo, Hariharan, ICCV 2023): labels, and every source by its similarity.

    lam * CE(labels) + (1 - lam) * sum_s alpha_s * CE(head of s, pseudo-labels of s).

    Args:
        batch: one step's logits, labels and pseudo-labels.
        alphas: weight of each source; >= 0, sum 1.
        lam: share of the labels in the loss.
        temperature: of student and source alike; the source term is scaled by its square (Hinton et al. 2015).
        normalise: divide each source's term by log K, so that 1,000 classes do not outweigh 10.
    """
    return mixture(batch, alphas, lam, temperature, normalise)


METHODS: dict[str, Method] = {"transfer": transfer, "nearest": nearest, "equal": equal, "weighted": weighted}
NEEDS_SOURCES = frozenset({"nearest", "equal", "weighted"})


def label_loss(batch: Batch) -> Tensor:
    """Mean cross-entropy over the labeled images of the batch; 0 where there are none."""
    import torch.nn.functional as F

    labeled = batch.labels_B >= 0
    total = F.cross_entropy(batch.target_logits_BC, batch.labels_B, ignore_index=-1, reduction="sum")
    return total / labeled.sum().clamp(min=1)


def source_loss(logits_BK: Tensor, probs_BK: Tensor, temperature: float, normalise: bool) -> Tensor:
    """Mean cross-entropy of a source head against the source's own distribution, on labeled and unlabeled images.

    Several sources with the same K can be given at once, [B, S, K]; then the result is [S], else a scalar.
    """
    import torch

    if temperature != 1.0:
        softened = probs_BK.clamp(min=1e-8) ** (1.0 / temperature)
        probs_BK = softened / softened.sum(dim=-1, keepdim=True)
    scaled = logits_BK / temperature if temperature != 1.0 else logits_BK
    # rows of probs sum to 1, so the cross-entropy is the log-sum-exp less one inner product
    loss: Tensor = (scaled.logsumexp(dim=-1) - torch.linalg.vecdot(probs_BK, scaled)).mean(dim=0)
    return loss * temperature**2 / (math.log(logits_BK.shape[-1]) if normalise else 1.0)


def mixture(batch: Batch, alphas: Mapping[str, float], lam: float, temperature: float, normalise: bool) -> Terms:
    """`labels` and one term a source with weight, scaled by lam and (1 - lam) * alpha."""
    import torch

    losses: Terms = {}
    active = [name for name, alpha in alphas.items() if alpha > 0.0]
    # sources with label spaces of one size go through together: a dozen ImageNet nets cost three operations, not forty
    for _, group in itertools.groupby(sorted(active, key=batch.classes), key=batch.classes):
        names = list(group)
        logits_BSK = torch.stack([batch.source_logits[name] for name in names], dim=1)
        probs_BSK = torch.stack([batch.source_probs[name] for name in names], dim=1)
        losses |= zip(names, source_loss(logits_BSK, probs_BSK, temperature, normalise), strict=True)
    shares = {f"source/{name}": (1.0 - lam) * alphas[name] * losses[name] for name in active}
    return {"labels": lam * label_loss(batch), **shares}
