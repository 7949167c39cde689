"""The training loop for one student and one method; the EMA weights of the last step are the result.

Every step draws its images and its augmentation from (seed, step) alone. A killed run that resumes from its last
checkpoint therefore sees the same batches, and ends with the same weights to the byte.

B batch, N images of the train store, C target classes, K classes of one source.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgedistill.distill.augment import augment, strong_augment
from edgedistill.distill.batches import StepBatch, Task, draw_batch
from edgedistill.distill.checkpoint import resume, save
from edgedistill.distill.evaluate import forward_heads, held_out_loss, method_batch, student_input, val_accuracy
from edgedistill.distill.methods import Batch, Terms
from edgedistill.distill.state import State, StudentWithHeads, initial_state, optimizer_step, set_learning_rate
from edgedistill.distributed import processes
from edgedistill.distributed.device import forked_random
from edgedistill.errors import EdgeDistillError
from edgedistill.records import Accuracy
from edgedistill.run import artifacts

OnStep = Callable[[int, Mapping[str, float]], object]


@dataclass(frozen=True, kw_only=True)
class TrainedStudent:
    """A trained student (EMA weights, eval mode) and its figures on held-out images.

    Attributes:
        model: the student.
        val: its accuracy on val.
        loss: the method's source terms on val and the held-out images, from the last source heads; see held_out_loss.
        seconds: training time in seconds, over all processes that resumed the run.
    """

    model: nn.Module
    val: Accuracy
    loss: float
    seconds: float


def fit(
    model: nn.Module,
    task: Task,
    folder: Path | None = None,
    on_step: OnStep = lambda step, scalars: None,
    rungs: Mapping[int, Callable[[Accuracy], object]] = MappingProxyType({}),
    heads: Mapping[str, Any] | None = None,
) -> TrainedStudent:
    """Train `model` (parts `backbone` and `head`) on `task`.

    Args:
        model: from students.build.
        task: the training data and settings.
        folder: where last.pt and metrics.jsonl are written; None writes no files (a search trial).
        on_step: called after each step with its number (from 1) and its scalars; steps that a checkpoint already
            covers are not repeated.
        rungs: step -> callback that receives the accuracy on val after it; an exception it raises ends the training.
        heads: state of the source heads to begin with; drawn from the seed by default.

    Raises:
        EdgeDistillError: the loss is not finite.
    """
    source_classes = sum(task.material.source_probs[name].shape[1] for name in task.sources)
    frozen = ("",) if "frozen" in task.needs else task.settings.freeze  # "" is the whole backbone
    settings = task.settings.model_copy(update={"freeze": frozen})
    state = initial_state(model, source_classes, settings, task.seed)
    loss = task.loss()
    if heads:
        state.heads.load_state_dict(heads)
    begin, earlier_seconds = 0, 0.0
    if folder:
        with processes.leader_first():
            begin, earlier_seconds = resume(state, folder)
        processes.require_agreement(begin, "the step to go on from")
    started = time.monotonic()
    for step in range(begin, task.steps):
        set_learning_rate(state.optimizer, task.settings, step, task.steps)
        scalars = train_step(state, loss, task, step)
        if not math.isfinite(scalars["loss"]):
            raise EdgeDistillError(f"distill: the loss is not finite at step {step + 1}", "lower distill.lr")
        if folder and processes.team().is_leader:
            seconds = earlier_seconds + time.monotonic() - started
            record_step(folder, state, task, step=step + 1, scalars=scalars, seconds=seconds)
        on_step(step + 1, scalars)
        if step + 1 in rungs:
            processes.run_on_leader(partial(rungs[step + 1], val_accuracy(state, task)))
    val = val_accuracy(state, task)
    seconds = earlier_seconds + time.monotonic() - started
    return TrainedStudent(model=state.ema.eval(), val=val, loss=held_out_loss(state, loss, task), seconds=seconds)


def train_step(state: State, loss: Callable[[Batch], Terms], task: Task, step: int) -> dict[str, float]:
    """Draw a batch, compute the method's terms on it and take one optimizer step.

    Args:
        state: the training state; it is changed.
        loss: from Task.loss.
        task: the training data and settings.
        step: number of the step, from 0.

    Returns:
        {"loss": sum of the terms, "terms/<name>": each of them}, means over all processes.
    """
    step_batch = draw_batch(task, step)
    device = next(state.model.parameters()).device
    seed = int(np.random.SeedSequence([task.seed, step]).generate_state(1)[0])
    random = torch.Generator().manual_seed(seed)
    state.model.train()
    with forked_random(device):
        torch.manual_seed(seed)  # dropout draws from (seed, step), too
        images_BCHW = augment(
            student_input(strong_view(step_batch, task), task, device),
            task.settings.augment,
            random,
            step_batch.positions,
        )
        weak_UC = weak_logits(state, step_batch, task, random)
        terms = loss(method_batch(*forward_heads(state.net, images_BCHW, task), step_batch, weak_UC))
    total = torch.stack(list(terms.values())).sum()
    optimizer_step(state, total, task.settings.ema_decay, step)
    # stacked: one wait for the GPU and one message between processes, not one a term
    values = processes.mean(torch.stack([total, *terms.values()]).detach()).tolist()
    return dict(zip(["loss", *(f"terms/{name}" for name in terms)], values, strict=True))


def strong_view(step_batch: StepBatch, task: Task) -> Tensor:
    """Return the batch's uint8 images; for a method with two views, the unlabeled ones are strongly augmented.

    Crops and flips follow for all images.
    """
    if "weak" not in task.needs:
        return step_batch.images_BHWC
    labeled = int((step_batch.labels_B >= 0).sum())
    if step_batch.all_UHWC is None or step_batch.positions_U is None:
        strong_UHWC = strong_augment(step_batch.images_BHWC[labeled:], task.settings.strong)
    else:
        strong_UHWC = strong_augment(step_batch.all_UHWC, task.settings.strong)[step_batch.positions_U.indices]
    return torch.cat([step_batch.images_BHWC[:labeled], strong_UHWC])


def weak_logits(state: State, step_batch: StepBatch, task: Task, random: torch.Generator) -> Tensor | None:
    """Compute target logits [U, C] on a weakly augmented view, without gradient: mild crops and the recipe's flips.

    None for a method that needs no second view.
    """
    if "weak" not in task.needs:
        return None
    device = next(state.model.parameters()).device
    images_UHWC = step_batch.images_BHWC[step_batch.labels_B < 0]
    if not len(images_UHWC):
        return torch.zeros(0, task.spec.num_classes, device=device)
    settings = task.settings.augment
    mild = settings.model_copy(update={"min_area": max(0.8, settings.min_area), "jitter": 0.0})
    with torch.no_grad():
        images_UCHW = augment(student_input(images_UHWC, task, device), mild, random, step_batch.positions_U)
        return forward_heads(StudentWithHeads(state.model, state.heads), images_UCHW, task)[0]


def record_step(
    folder: Path, state: State, task: Task, *, step: int, scalars: Mapping[str, float], seconds: float
) -> None:
    """Append the line of a step (from 1) to metrics.jsonl, with val if an evaluation is due; save a due checkpoint."""
    settings, is_last = task.settings, step == task.steps
    learns_from_unlabeled = len(task.unlabeled) or task.streamed_per_step
    images_per_step = settings.batch_labeled + (settings.batch_unlabeled if learns_from_unlabeled else 0)
    line: dict[str, Any] = {
        "step": step,
        "loss": scalars["loss"],
        "lr": state.optimizer.param_groups[0]["lr"],
        "terms": {name.removeprefix("terms/"): term for name, term in scalars.items() if name != "loss"},
        "images_per_second": round(images_per_step * step / seconds, 2),
    }
    if step % settings.evaluate_every == 0 or is_last:
        line["val"] = asdict(val_accuracy(state, task))
    with (folder / artifacts.METRICS.name).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    if step % settings.checkpoint_every == 0 or is_last:
        save(state, step, seconds, folder)
