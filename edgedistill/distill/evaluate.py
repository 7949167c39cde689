"""How a student answers, without training it: its logits, its accuracy, its loss on what was held out.

B batch, N images of the train store, C target classes, K classes of one source.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgedistill.agent import metrics
from edgedistill.console import slices
from edgedistill.data.pixels import normalise
from edgedistill.distill.batches import Drawn, Images, Rows, Task, gather, training_batches
from edgedistill.distill.methods import Batch, Terms
from edgedistill.distill.state import Joint, State, refresh_statistics
from edgedistill.records import Accuracy, StudentSpec


def on_val(state: State, task: Task) -> Accuracy:
    """Accuracy of the EMA weights on val, batch statistics made anew; the next step's update writes over those."""
    refresh_statistics(state.ema, training_batches(task))
    return score(logits(state.ema, task.spec, task.material.images_NHWC[task.material.val]), task.material.val_labels)


def heads_of(net: nn.Module, images_BCHW: Tensor, task: Task) -> tuple[Tensor, Tensor]:
    """Target logits [B, C] and the source heads' logits side by side [B, sum of K], in float32; `net` is a Joint."""
    kind, asked = images_BCHW.device.type, task.settings.precision
    reduced = asked == "bfloat16" or (asked == "auto" and kind == "cuda")
    with torch.autocast(kind, torch.bfloat16, enabled=reduced):
        target_BC, stacked = net(images_BCHW.contiguous(memory_format=torch.channels_last))
        return target_BC.float(), stacked.float()


def as_batch(target_BC: Tensor, stacked: Tensor, drawn: Drawn, weak_UC: Tensor | None = None) -> Batch:
    """The heads' logits, cut apart by source, beside labels, pseudo-labels and teacher: what the method sees."""
    probs = {name: value.to(stacked.device).float() for name, value in drawn.source_probs.items()}
    widths = [value.shape[1] for value in probs.values()]
    split = dict(zip(probs, torch.split(stacked, widths, dim=1), strict=True)) if probs else {}
    teacher_BC = drawn.teacher_BC.to(target_BC.device).float() if drawn.teacher_BC is not None else None
    return Batch(
        target_logits_BC=target_BC,
        labels_B=drawn.labels_B.to(target_BC.device),
        source_logits=split,
        source_probs=probs,
        teacher_probs_BC=teacher_BC,
        weak_logits_UC=weak_UC,
    )


def plain(images_BHWC: Tensor, task: Task, device: torch.device) -> Tensor:
    """uint8 images as the student takes them, normalised, without augmentation: [B, 3, px, px]."""
    return normalise(images_BHWC.to(device), task.spec.mean, task.spec.std)


def held_out_loss(state: State, loss: Callable[[Batch], Terms], task: Task) -> float:
    """How well the student answers as its sources do, on val and the images held out; for transfer, its loss on val.

    The label term is left out where there are others: on a few dozen images it prefers the student that is least
    sure, while the source terms, which can be asked of any image, put candidates in the order of their later accuracy
    (on the quickstart's three candidates with two seeds: both times, and the label term neither time).
    """
    material, device = task.material, next(state.ema.parameters()).device
    unlabeled = material.held_out if task.needs - {"frozen"} else material.held_out[:0]
    drawn = gather(task, material.val, material.val_labels, unlabeled)
    state.ema.eval()
    with torch.inference_mode():
        net = Joint(state.ema, state.heads)
        heads = [heads_of(net, plain(part, task, device), task) for part in torch.split(drawn.images_BHWC, 64)]
        target, stacked = (torch.cat(parts) for parts in zip(*heads, strict=True))
        terms = loss(as_batch(target, stacked, drawn, target[drawn.labels_B < 0]))
    counted = {name: value for name, value in terms.items() if name not in {"labels", "consistency"}}
    counted = counted or {"labels": terms["labels"]}
    return float(sum(value.item() for value in counted.values()))


def logits(model: nn.Module, spec: StudentSpec, images_NHWC: Images, batch: int = 64) -> NDArray[np.float32]:
    """The student's logits_NC on uint8 images [N, px, px, 3], without augmentation, in eval mode."""
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        parts = [
            model(normalise(torch.from_numpy(np.array(images_NHWC[part])).to(device), spec.mean, spec.std)).cpu()
            for part in slices(f"torch on {len(images_NHWC)} images", len(images_NHWC), batch)
        ]
    return np.asarray(torch.cat(parts).float().numpy())


def score(logits_NC: NDArray[np.float32], labels_N: Rows) -> Accuracy:
    """Accuracy record of logits against labels."""
    return Accuracy(**metrics.accuracy(labels_N, logits_NC.argmax(axis=1)))
