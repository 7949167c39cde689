"""Distillation methods: pure functions from one batch to named loss terms, whose sum is the loss.

B batch, U its unlabeled images, C target classes, K classes of one source. The student has its target head and one
extra linear head per source in use, in that source's label space; the extra heads are dropped after training.
Terms are logged as they are summed, with their weights applied.

    METHODS[name].loss(batch, alphas, **options) -> {term: scalar tensor}
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from edgedistill.distill.shares import (
    Alphas,
    Options,
    equal_shares,
    heaviest_source,
    named_source,
    no_shares,
    random_source,
    weighted_shares,
)
from edgedistill.errors import InputError
from edgedistill.recipe.options import LATER

if TYPE_CHECKING:
    from torch import Tensor

Unit = Annotated[float, Field(ge=0.0, le=1.0)]
LabelShare = Annotated[float, Field(ge=0.0, le=1.0, description="Share of the labels in the loss.")]
LastLabelShare = Annotated[
    float | None,
    LATER,
    Field(ge=0.0, le=1.0, description="Share of the labels at the last step; it moves there from `lam` evenly."),
]
Temperature = Annotated[
    float,
    Field(
        gt=0.0,
        description="Temperature of student and source; the term is scaled by its square (Hinton et al. 2015).",
    ),
]
Normalise = Annotated[
    bool, Field(description="Divide each source's term by log K, so that 1,000 classes do not outweigh 10.")
]
Sharpen = Annotated[
    float, Field(gt=0.0, description="The teacher's probabilities are raised to this power and normalized.")
]
Threshold = Annotated[float, Field(ge=0.0, le=1.0, description="Least confidence of a pseudo-label that is used.")]
Weight = Annotated[float, Field(ge=0.0, description="Weight of the consistency term.")]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The inputs of a method for one step.

    Attributes:
        target_logits_BC: logits of the student's target head.
        labels_B: target labels, -1 where the image has none.
        source_logits: logits of the student's extra head for each source, [B, K].
        source_probs: cached pseudo-labels of each source for the same images, [B, K]; rows sum to 1.
        teacher_probs_BC: the teacher's probabilities of the target's own classes; rows sum to 1.
        weak_logits_UC: target logits on a weakly augmented view of the unlabeled images, without gradient.
        class_weights_C: weights of the labels in the label loss, of mean 1 over the labels.
        label_shift_C: added to the target logits in the label loss (labels/prior.py).
        progress: share of the training that is done, 0 at the first step and 1 at the last.
    """

    target_logits_BC: Tensor
    labels_B: Tensor
    source_logits: Mapping[str, Tensor]
    source_probs: Mapping[str, Tensor]
    teacher_probs_BC: Tensor | None = None
    weak_logits_UC: Tensor | None = None
    class_weights_C: Tensor | None = None
    label_shift_C: Tensor | None = None
    progress: float = 0.0

    def classes(self, source: str) -> int:
        """K of a source."""
        return int(self.source_logits[source].shape[1])


Terms = dict[str, "Tensor"]
Need = Literal["sources", "teacher", "weak", "frozen"]


def transfer(batch: Batch, alphas: Alphas) -> Terms:
    """Cross-entropy on the labels alone: the baseline of fine-tuning from the initial weights."""
    return {"labels": label_loss(batch)}


def linear_probe(batch: Batch, alphas: Alphas) -> Terms:
    """As `transfer`, but with frozen backbone weights: only the target head is trained."""
    return {"labels": label_loss(batch)}


def fixmatch(batch: Batch, alphas: Alphas, *, threshold: Threshold = 0.95, weight: Weight = 1.0) -> Terms:
    """Label loss plus consistency of two views of the unlabeled images (Sohn et al., FixMatch, NeurIPS 2020).

    CE(labels) + weight * mean over U of [max p_weak >= threshold] CE(strong view, argmax p_weak).

    Args:
        batch: one step's logits and labels; the target head's own logits are those of the strong view.
        alphas: not used; no source takes part.
    """
    return {"labels": label_loss(batch), "consistency": weight * consistency_loss(batch, threshold)}


def nearest(
    batch: Batch, alphas: Alphas, *, lam: LabelShare = 0.8, temperature: Temperature = 1.0, normalise: Normalise = True
) -> Terms:
    """DistillNearest (our reading of Borup, Phoo, Hariharan, ICCV 2023): label loss plus the most similar source.

    lam * CE(labels) + (1 - lam) * CE(source head, pseudo-labels of the source with the largest weight).
    """
    return mixture(batch, heaviest_source(alphas, {}), lam=lam, temperature=temperature, normalise=normalise)


def single(
    batch: Batch,
    alphas: Alphas,
    *,
    source: str,
    lam: LabelShare = 0.8,
    temperature: Temperature = 1.0,
    normalise: Normalise = True,
) -> Terms:
    """As `nearest`, but from the source named by `source`: measures one source alone.

    Args:
        batch: one step's logits, labels and pseudo-labels.
        alphas: weight of each source; not used.
        source: name of the source.
    """
    return mixture(
        batch, named_source(alphas, {"source": source}), lam=lam, temperature=temperature, normalise=normalise
    )


def random(
    batch: Batch,
    alphas: Alphas,
    *,
    seed: int = 0,
    lam: LabelShare = 0.8,
    temperature: Temperature = 1.0,
    normalise: Normalise = True,
) -> Terms:
    """As `nearest`, but from a source drawn with `seed`: the control for the choice of the source.

    Args:
        batch: one step's logits, labels and pseudo-labels.
        alphas: weight of each source; not used.
        seed: seed of the draw.
    """
    return mixture(batch, random_source(alphas, {"seed": seed}), lam=lam, temperature=temperature, normalise=normalise)


def equal(
    batch: Batch, alphas: Alphas, *, lam: LabelShare = 0.8, temperature: Temperature = 1.0, normalise: Normalise = True
) -> Terms:
    """As `weighted`, but with the same weight for all sources: the control for the weighting."""
    return mixture(batch, equal_shares(alphas, {}), lam=lam, temperature=temperature, normalise=normalise)


def weighted(
    batch: Batch,
    alphas: Alphas,
    *,
    lam: LabelShare = 0.8,
    lam_last: LastLabelShare = None,
    temperature: Temperature = 1.0,
    normalise: Normalise = True,
) -> Terms:
    """DistillWeighted (our reading of Borup, Phoo, Hariharan, ICCV 2023): label loss plus all sources by similarity.

    lam * CE(labels) + (1 - lam) * sum_s alpha_s * CE(head of s, pseudo-labels of s).

    Args:
        batch: one step's logits, labels and pseudo-labels.
        alphas: weight of each source; >= 0, sum 1.
    """
    lam = lam if lam_last is None else lam + (lam_last - lam) * batch.progress
    return mixture(batch, alphas, lam=lam, temperature=temperature, normalise=normalise)


def adapted(batch: Batch, alphas: Alphas, *, lam: LabelShare = 0.5, sharpen: Sharpen = 2.0) -> Terms:
    """Label loss plus a teacher in the target's own classes: a mixture of linear probes on the sources' features.

    lam * CE(labels) + (1 - lam) * CE(target head, teacher), on labeled and unlabeled images. After Vemulapalli et al.
    2023 (arXiv 2311.18237) and SimCLRv2 (Chen et al. 2020); how the probes are mixed is the recipe's `teacher`.

    Args:
        batch: one step's logits, labels and teacher.
        alphas: not used; the teacher is mixed before training.
    """
    return {"labels": lam * label_loss(batch), "teacher": (1.0 - lam) * teacher_loss(batch, sharpen)}


def consistent(
    batch: Batch,
    alphas: Alphas,
    *,
    lam: LabelShare = 0.5,
    sharpen: Sharpen = 2.0,
    threshold: Threshold = 0.95,
    weight: Weight = 0.5,
) -> Terms:
    """`adapted` plus FixMatch's consistency term (Wang et al., USB, NeurIPS 2022, compare such combinations)."""
    return {
        **adapted(batch, alphas, lam=lam, sharpen=sharpen),
        "consistency": weight * consistency_loss(batch, threshold),
    }


def combined(
    batch: Batch,
    alphas: Alphas,
    *,
    lam: LabelShare = 0.3,
    sources: Unit = 0.3,
    sharpen: Sharpen = 2.0,
    temperature: Temperature = 1.0,
    normalise: Normalise = True,
) -> Terms:
    """`adapted` plus the weighted sources' own label spaces as an auxiliary task (after UNIC, Sariyildiz et al. 2024).

    lam * CE(labels) + (1 - lam - sources) * CE(target head, teacher) + sources * sum_s alpha_s CE(head of s, s).

    Args:
        batch: one step's logits, labels, pseudo-labels and teacher.
        alphas: weight of each source; >= 0, sum 1.
        sources: share of the sources in the loss; `lam` and `sources` sum to at most 1, the rest is the teacher's.

    Raises:
        InputError: lam + sources is over 1.
    """
    if lam + sources > 1.0:
        raise InputError("distill.method: lam + sources is over 1", "lower one of them")
    auxiliary = mixture(batch, alphas, lam=1.0 - sources, temperature=temperature, normalise=normalise)
    del auxiliary["labels"]
    teacher = (1.0 - lam - sources) * teacher_loss(batch, sharpen)
    return {"labels": lam * label_loss(batch), "teacher": teacher, **auxiliary}


def no_problem(options: Options, sources: Collection[str]) -> str:
    """Find no problem: the signature checks all options."""
    return ""


def source_problem(options: Options, sources: Collection[str]) -> str:
    """Check that the option `source` names a source."""
    name = options.get("source")
    return "" if name in sources else f"no source is called {name}; name one of: {', '.join(sources)}"


def shares_problem(options: Options, sources: Collection[str]) -> str:
    """Check that the options `lam` and `sources` do not sum to more than 1."""
    lam, auxiliary = options.get("lam", 0.3), options.get("sources", 0.3)
    if not (isinstance(lam, float | int) and isinstance(auxiliary, float | int)):
        return ""
    return "lam + sources is over 1, which leaves nothing for the teacher; lower one" if lam + auxiliary > 1.0 else ""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A distillation method.

    Attributes:
        loss: from a batch and the sources' weights to named loss terms; keyword-only parameters are recipe options.
        needs: inputs it needs besides the labels.
        shares: from weights and options to the sources whose own label spaces it distills from, and their shares.
        version: raised when the method computes something else for the same settings; lines of the suite made under
            another version are not mixed with these.
        problem: checks what the signature cannot; returns a message, "" if options are right. Called before any work.
    """

    loss: Callable[..., Terms]
    needs: frozenset[Need] = frozenset()
    shares: Callable[[Alphas, Options], dict[str, float]] = no_shares
    problem: Callable[[Options, Collection[str]], str] = no_problem
    version: int = 1

    @property
    def uses_sources(self) -> bool:
        """Whether it learns from sources, in their label spaces or through a teacher."""
        return bool(self.needs & {"sources", "teacher"})

    @property
    def uses_more_than_labels(self) -> bool:
        """Whether it learns from sources or from images without a label."""
        return bool(self.needs - {"frozen"})


SOURCES: frozenset[Need] = frozenset({"sources"})
METHODS: dict[str, Method] = {
    "transfer": Method(loss=transfer),
    "linear_probe": Method(loss=linear_probe, needs=frozenset({"frozen"})),
    "fixmatch": Method(loss=fixmatch, needs=frozenset({"weak"})),
    "random": Method(loss=random, needs=SOURCES, shares=random_source),
    "nearest": Method(loss=nearest, needs=SOURCES, shares=heaviest_source),
    "single": Method(loss=single, needs=SOURCES, shares=named_source, problem=source_problem),
    "equal": Method(loss=equal, needs=SOURCES, shares=equal_shares),
    "weighted": Method(loss=weighted, needs=SOURCES, shares=weighted_shares),
    "adapted": Method(loss=adapted, needs=frozenset({"teacher"})),
    "consistent": Method(loss=consistent, needs=frozenset({"teacher", "weak"})),
    "combined": Method(
        loss=combined, needs=frozenset({"teacher", "sources"}), shares=weighted_shares, problem=shares_problem
    ),
}


def consistency_loss(batch: Batch, threshold: float) -> Tensor:
    """FixMatch's term over the unlabeled images, a scalar; 0 if there are none or none reaches the threshold."""
    import torch.nn.functional as F

    assert batch.weak_logits_UC is not None, "the method needs the weak view"
    # the unlabeled ones in their order; a mask would make the CPU wait for the GPU, to learn how many they are
    order_B = (batch.labels_B >= 0).byte().argsort(stable=True)
    strong_UC = batch.target_logits_BC[order_B[: len(batch.weak_logits_UC)]]
    confidence_U, pseudo_U = batch.weak_logits_UC.softmax(dim=1).max(dim=1)
    losses_U = F.cross_entropy(strong_UC, pseudo_U, reduction="none") * (confidence_U >= threshold)
    return losses_U.sum() / max(1, len(losses_U))


def teacher_loss(batch: Batch, sharpen: float) -> Tensor:
    """Mean cross-entropy of the target head against the sharpened teacher."""
    assert batch.teacher_probs_BC is not None, "the method needs the teacher"
    return source_loss(batch.target_logits_BC, sharpened(batch.teacher_probs_BC, sharpen), 1.0, False)


def sharpened(probs_BC: Tensor, power: float) -> Tensor:
    """Raise probabilities to `power` and normalize them; 1 returns them unchanged."""
    if power == 1.0:
        return probs_BC
    powers_BC = (probs_BC / probs_BC.amax(dim=-1, keepdim=True)) ** power
    return powers_BC / powers_BC.sum(dim=-1, keepdim=True)


def label_loss(batch: Batch) -> Tensor:
    """Mean cross-entropy over the labeled images of the batch, weighted and shifted; 0 if there are none."""
    import torch.nn.functional as F

    labels_B, weights_C, logits_BC = batch.labels_B, batch.class_weights_C, batch.target_logits_BC
    if batch.label_shift_C is not None:
        logits_BC = logits_BC + batch.label_shift_C
    total = F.cross_entropy(logits_BC, labels_B, weight=weights_C, ignore_index=-1, reduction="sum")
    return total / (labels_B >= 0).sum().clamp(min=1)


def source_loss(logits_BK: Tensor, probs_BK: Tensor, temperature: float, normalise: bool) -> Tensor:
    """Mean cross-entropy of a source head against the source's own distribution, on labeled and unlabeled images.

    Several sources with the same K can be stacked, [B, S, K]; then the result is [S], else a scalar.
    """
    import torch

    if temperature != 1.0:
        softened_BK = probs_BK.clamp(min=1e-8) ** (1.0 / temperature)
        probs_BK = softened_BK / softened_BK.sum(dim=-1, keepdim=True)
    scaled = logits_BK / temperature if temperature != 1.0 else logits_BK
    # rows of probs sum to 1, so the cross-entropy is the log-sum-exp minus one inner product
    loss: Tensor = (scaled.logsumexp(dim=-1) - torch.linalg.vecdot(probs_BK, scaled)).mean(dim=0)
    return loss * temperature**2 / (math.log(max(2, logits_BK.shape[-1])) if normalise else 1.0)


def mixture(batch: Batch, alphas: Alphas, lam: float, temperature: float, normalise: bool) -> Terms:
    """Compute `labels` and one term per source with weight, scaled by lam and (1 - lam) * alpha."""
    import torch

    losses: Terms = {}
    active = [name for name, alpha in alphas.items() if alpha > 0.0]
    # sources with label spaces of the same size are stacked: a dozen ImageNet nets cost three operations, not forty
    for _, group in itertools.groupby(sorted(active, key=batch.classes), key=batch.classes):
        names = list(group)
        logits_BSK = torch.stack([batch.source_logits[name] for name in names], dim=1)
        probs_BSK = torch.stack([batch.source_probs[name] for name in names], dim=1)
        losses |= zip(names, source_loss(logits_BSK, probs_BSK, temperature, normalise), strict=True)
    shares = {f"source/{name}": (1.0 - lam) * alphas[name] * losses[name] for name in active}
    return {"labels": lam * label_loss(batch), **shares}
