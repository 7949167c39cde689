"""Evaluation of a student: its logits, its accuracy and its held-out loss.

B batch, N images of the train store, C target classes, K classes of one source.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgedistill.agent import metrics
from edgedistill.console import slices
from edgedistill.data.pixels import normalize
from edgedistill.distill.batches import Images, Rows, StepBatch, Task, gather, training_batches
from edgedistill.distill.methods import Batch, Terms
from edgedistill.distill.state import State, StudentWithHeads, refresh_statistics
from edgedistill.distributed.device import autocast
from edgedistill.records import Accuracy, StudentSpec

LEAST_HELD_OUT = 100  # fewer tell no more about a student than labels do


def val_accuracy(state: State, task: Task) -> Accuracy:
    """Compute the accuracy of the EMA weights on val, with batch statistics recomputed for them."""
    finish_statistics(state, task)
    return score(logits(state.ema, task.spec, task.material.images_NHWC[task.material.val]), task.material.val_labels)


def agreement(task: Task, predict: Callable[[Images], NDArray[np.float32]]) -> Accuracy | None:
    """Compute the share of the held-out images that get the teacher's class, as an accuracy against the teacher.

    It needs no label, so there are enough images to compare students on. None without a teacher, or with fewer than
    LEAST_HELD_OUT held-out images.

    Args:
        task: the training task.
        predict: logits [N, C] of images, uint8 [N, px, px, 3].
    """
    material = task.material
    if "teacher" not in task.needs or material.teacher_NC is None or len(material.held_out) < LEAST_HELD_OUT:
        return None
    teacher_N = np.asarray(material.teacher_NC[material.held_out]).argmax(axis=1)
    return score(predict(material.images_NHWC[material.held_out]), teacher_N)


def standing(state: State, task: Task) -> Accuracy:
    """Compute what students are first compared by: the agreement with the teacher, else the accuracy on val."""
    val = val_accuracy(state, task)
    return agreement(task, partial(logits, state.ema, task.spec)) or val


def finish_statistics(state: State, task: Task) -> None:
    """Recompute the batch statistics of the EMA weights, which were averaged without them."""
    refresh_statistics(state.ema, training_batches(task))


def forward_heads(net: nn.Module, images_BCHW: Tensor, task: Task) -> tuple[Tensor, Tensor]:
    """Compute target logits [B, C] and the source heads' logits side by side [B, sum of K], in float32.

    `net` is a StudentWithHeads.
    """
    with autocast(images_BCHW.device, task.settings.precision):
        target_BC, stacked = net(images_BCHW.contiguous(memory_format=torch.channels_last))
        return target_BC.float(), stacked.float()


def method_batch(
    target_BC: Tensor,
    stacked: Tensor,
    step_batch: StepBatch,
    weak_UC: Tensor | None = None,
    *,
    progress: float = 0.0,
) -> Batch:
    """Build the method's input: the heads' logits split by source, with labels, pseudo-labels and teacher."""
    probs = {
        name: probs_BK.to(stacked.device, non_blocking=True).float()
        for name, probs_BK in step_batch.source_probs.items()
    }
    widths = [probs_BK.shape[1] for probs_BK in probs.values()]
    split = dict(zip(probs, torch.split(stacked, widths, dim=1), strict=True)) if probs else {}

    def on_device(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(target_BC.device, non_blocking=True).float()

    return Batch(
        target_logits_BC=target_BC,
        labels_B=step_batch.labels_B.to(target_BC.device, non_blocking=True),
        source_logits=split,
        source_probs=probs,
        teacher_probs_BC=on_device(step_batch.teacher_BC),
        weak_logits_UC=weak_UC,
        class_weights_C=on_device(step_batch.class_weights_C),
        label_shift_C=on_device(step_batch.label_shift_C),
        progress=progress,
    )


def student_input(images_BHWC: Tensor, task: Task, device: torch.device) -> Tensor:
    """Normalize uint8 images as the student takes them, without augmentation: [B, 3, px, px]."""
    return normalize(images_BHWC.to(device), task.spec.mean, task.spec.std)


def held_out_loss(state: State, loss: Callable[[Batch], Terms], task: Task) -> float:
    """Compute the method's source terms on val and the held-out images; for transfer, the label loss on val.

    The label term is left out if there are others: on a few dozen images it prefers the least confident student. The
    source terms can be computed on any image, and rank candidates in the order of their later accuracy (on the
    first quickstart's three candidates with two seeds: both times, and the label term neither time).
    """
    material, device = task.material, next(state.ema.parameters()).device
    unlabeled = material.held_out if task.needs - {"frozen"} else material.held_out[:0]
    step_batch = gather(task, material.val, material.val_labels, unlabeled)
    state.ema.eval()
    with torch.inference_mode():
        net = StudentWithHeads(state.ema, state.heads)
        heads = [
            forward_heads(net, student_input(part, task, device), task)
            for part in torch.split(step_batch.images_BHWC, 64)
        ]
        target, stacked = (torch.cat(parts) for parts in zip(*heads, strict=True))
        terms = loss(method_batch(target, stacked, step_batch, target[step_batch.labels_B < 0]))
    source_terms = {name: term for name, term in terms.items() if name not in {"labels", "consistency"}}
    source_terms = source_terms or {"labels": terms["labels"]}
    return float(sum(term.item() for term in source_terms.values()))


def logits(model: nn.Module, spec: StudentSpec, images_NHWC: Images, batch: int = 64) -> NDArray[np.float32]:
    """Compute the student's logits_NC on uint8 images [N, px, px, 3], without augmentation, in eval mode."""
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        parts = [
            model(normalize(torch.from_numpy(np.array(images_NHWC[part])).to(device), spec.mean, spec.std)).cpu()
            for part in slices(f"torch on {len(images_NHWC)} images", len(images_NHWC), batch)
        ]
    return np.asarray(torch.cat(parts).float().numpy())


def score(logits_NC: NDArray[np.float32], labels_N: Rows) -> Accuracy:
    """Compute the accuracy record of logits against labels."""
    return Accuracy(**metrics.accuracy(labels_N, logits_NC.argmax(axis=1)))
