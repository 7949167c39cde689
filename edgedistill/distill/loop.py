"""The training loop for one student and one method; the EMA weights of the last step are the result.

Every step draws its images and its augmentation from (seed, step) alone. A killed run that resumes from its last
checkpoint therefore sees the same batches, and ends with the same weights to the byte.

B batch, N images of the train store, C target classes, K classes of one source.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgedistill.distill import head_start
from edgedistill.distill.ahead import step_batches
from edgedistill.distill.augment import augment, strong_augment
from edgedistill.distill.batches import StepBatch, Task, draw_batch
from edgedistill.distill.checkpoint import resume, save
from edgedistill.distill.evaluate import (
    finish_statistics,
    forward_heads,
    held_out_loss,
    method_batch,
    standing,
    student_input,
    val_accuracy,
)
from edgedistill.distill.methods import Batch, Terms
from edgedistill.distill.read_out import StepLosses, UnreadStep, is_due, read_finite
from edgedistill.distill.state import State, StudentWithHeads, initial_state, optimizer_step, set_learning_rate
from edgedistill.distributed import processes
from edgedistill.distributed.device import forked_random, is_out_of_memory, seed_generator
from edgedistill.records import Accuracy
from edgedistill.run import artifacts, hooks

OnStep = Callable[[int, Mapping[str, float]], object]


@dataclass(frozen=True, kw_only=True)
class TrainedStudent:
    """A trained student (EMA weights, eval mode) and its figures on held-out images.

    Attributes:
        model: the student.
        val: its accuracy on val; None where no image is val.
        loss: the method's source terms on val and the held-out images, from the last source heads; see held_out_loss.
        seconds: training time in seconds, over all processes that resumed the run.
    """

    model: nn.Module
    val: Accuracy | None
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
        on_step: called for each step with its number (from 1) and its scalars, when its losses are read: without a GPU
            after it, else every few steps (read_out.py). Steps that a checkpoint already covers are not repeated.
        rungs: step -> callback that receives evaluate.standing after it; an exception it raises ends the training.
        heads: state of the source heads to begin with; by default as `distill.head_start` says.

    Raises:
        EdgeDistillError: the loss is not finite.
    """
    source_classes = sum(task.material.source_probs[name].shape[1] for name in task.sources)
    frozen = ("",) if "frozen" in task.needs else task.settings.freeze  # "" is the whole backbone
    settings = task.settings.model_copy(update={"freeze": frozen})
    started = time.monotonic()
    if settings.head_start == "ridge" and not (folder and (folder / artifacts.LAST_CHECKPOINT.name).exists()):
        heads = head_start.begin(model, task)
    state = initial_state(model, source_classes, settings, task.seed)
    loss = task.loss()
    if heads:
        state.heads.load_state_dict(heads)
    begin, earlier_seconds = 0, 0.0
    if folder:
        with processes.leader_first():
            begin, earlier_seconds = resume(state, folder)
        processes.require_agreement(begin, "the step to go on from")

    def seconds() -> float:
        return earlier_seconds + time.monotonic() - started

    unread: list[UnreadStep] = []
    with step_batches(task, begin) as batches:
        for step, step_batch in zip(range(begin, task.steps), batches, strict=True):
            set_learning_rate(state.optimizer, task.settings, step, task.steps)
            losses = train_step(state, loss, task, step, step_batch=step_batch)
            unread.append(unread_step(state, task, step + 1, losses))
            if is_due(step + 1, task.steps, task.settings, rungs):
                tell(unread, state, task, folder=folder, on_step=on_step, seconds=seconds)
                unread.clear()
            if step + 1 in rungs:
                processes.run_on_leader(partial(rungs[step + 1], standing(state, task)))
    val, loss_on_val = None, math.nan
    if len(task.material.val):
        val, loss_on_val = val_accuracy(state, task), held_out_loss(state, loss, task)
    else:
        finish_statistics(state, task)
    return TrainedStudent(model=state.ema.eval(), val=val, loss=loss_on_val, seconds=seconds())


def unread_step(state: State, task: Task, step: int, losses: StepLosses) -> UnreadStep:
    """Keep a step's losses (from 1) with the settings that it had."""
    return UnreadStep(
        step=step,
        lr=state.optimizer.param_groups[0]["lr"],
        micro_batches=state.micro_batches.count,
        compiled=state.net.compiled is not None if task.settings.compile else None,
        losses=losses,
    )


def tell(
    unread: Sequence[UnreadStep],
    state: State,
    task: Task,
    *,
    folder: Path | None,
    on_step: OnStep,
    seconds: Callable[[], float],
) -> None:
    """Read the losses of some steps, record them in `folder`, and tell the callbacks of them, step by step.

    `seconds` is the time of the training until now; the steps are taken to be equally long.

    Raises:
        EdgeDistillError: a loss is not finite.
    """
    for entry, scalars in read_finite(unread):
        if folder and processes.team().is_leader:
            share = entry.step / unread[-1].step
            record_step(folder, state, task, entry=entry, scalars=scalars, seconds=seconds() * share)
            hooks.tell_step(entry.step, scalars)
        on_step(entry.step, scalars)


def train_step(
    state: State, loss: Callable[[Batch], Terms], task: Task, step: int, *, step_batch: StepBatch | None = None
) -> StepLosses:
    """Draw a batch, compute the method's terms on it and take one optimizer step.

    If the GPU's memory does not hold the batch, the step is taken again, in parts (micro_batches.py); if torch cannot
    compile the net, without (compiled.py).

    Args:
        state: the training state; it is changed.
        loss: from Task.loss.
        task: the training data and settings.
        step: number of the step, from 0.
        step_batch: the step's batch, if it has been drawn before.

    Returns:
        The losses, where they were computed: `loss` is the sum of the terms, `terms/NAME` each of them.

    Raises:
        EdgeDistillError: the GPU's memory does not hold the smallest parts.
    """
    step_batch = step_batch or draw_batch(task, step)
    while True:
        try:
            total, terms = add_gradients(state, loss, task=task, step=step, step_batch=step_batch)
            break
        except RuntimeError as error:
            memory_is_full = is_out_of_memory(error)
            if not memory_is_full and not state.net.goes_on_after(error):
                raise
        # not within the except block: there the error still holds the tensors of the step
        state.optimizer.zero_grad(set_to_none=True)
        if memory_is_full:
            unlabeled = len(step_batch.labels_B) - step_batch.labeled
            state.micro_batches.divide_further(step_batch.labeled, unlabeled, step)
    optimizer_step(state, task.settings.ema_decay, step)
    names = ("loss", *(f"terms/{name}" for name in terms))
    return StepLosses(names=names, values_T=torch.stack([total, *terms.values()]))


def add_gradients(
    state: State, loss: Callable[[Batch], Terms], *, task: Task, step: int, step_batch: StepBatch
) -> tuple[Tensor, Terms]:
    """Augment a step's batch, and add the gradients of its loss; returns the loss and its terms, detached."""
    device = next(state.model.parameters()).device
    step_batch = step_batch.images_on(device)
    seed = int(np.random.SeedSequence([task.seed, step]).generate_state(1)[0])
    random = torch.Generator().manual_seed(seed)
    with forked_random(device):
        seed_generator(device, seed)  # dropout draws from (seed, step), too
        images_BCHW = augment(
            student_input(strong_view(step_batch, task), task, device),
            task.settings.augment,
            random,
            step_batch.positions,
        )
        weak_UC = weak_logits(state, step_batch, task, random)
        summed: list[Tensor] = []
        labeled, count, names = step_batch.labeled, state.micro_batches.count, list[str]()
        order = torch.arange(len(step_batch.labels_B))
        for labeled_part, unlabeled_part in state.micro_batches.slices(labeled, len(order) - labeled):
            part = step_batch
            if count > 1:
                indices = torch.cat([order[:labeled][labeled_part], order[labeled:][unlabeled_part]])
                part = step_batch.select(indices)
            part_images = images_BCHW if count == 1 else images_BCHW[indices.to(device, non_blocking=True)]
            part_weak_UC = None if weak_UC is None else weak_UC[unlabeled_part]
            outputs = forward_heads(state.net.module, part_images, task)
            terms = loss(method_batch(*outputs, part, part_weak_UC, progress=step / max(1, task.steps - 1)))
            total = torch.stack(list(terms.values())).sum() / count
            torch.autograd.backward(total)
            summed.append(torch.stack([total, *(term / count for term in terms.values())]).detach())
            names = list(terms)
    total, *values = torch.stack(summed).sum(dim=0)
    return total, dict(zip(names, values, strict=True))


def strong_view(step_batch: StepBatch, task: Task) -> Tensor:
    """Return the batch's uint8 images; for a method with two views, the unlabeled ones are strongly augmented.

    Crops and flips follow for all images.
    """
    if "weak" not in task.needs:
        return step_batch.images_BHWC
    labeled = step_batch.labeled
    if step_batch.all_UHWC is None or step_batch.positions_U is None:
        strong_UHWC = strong_augment(step_batch.images_BHWC[labeled:], task.settings.strong)
    else:
        all_UHWC = strong_augment(step_batch.all_UHWC, task.settings.strong)
        strong_UHWC = all_UHWC[step_batch.positions_U.indices.to(all_UHWC.device, non_blocking=True)]
    return torch.cat([step_batch.images_BHWC[:labeled], strong_UHWC])


def weak_logits(state: State, step_batch: StepBatch, task: Task, random: torch.Generator) -> Tensor | None:
    """Compute target logits [U, C] on a weakly augmented view, without gradient: mild crops and the recipe's flips.

    None for a method that needs no second view.
    """
    if "weak" not in task.needs:
        return None
    device = next(state.model.parameters()).device
    images_UHWC = step_batch.images_BHWC[step_batch.labeled :]
    if not len(images_UHWC):
        return torch.zeros(0, task.spec.num_classes, device=device)
    settings = task.settings.augment
    mild = settings.model_copy(update={"min_area": max(0.8, settings.min_area), "jitter": 0.0})
    with torch.no_grad():
        images_UCHW = augment(student_input(images_UHWC, task, device), mild, random, step_batch.positions_U)
        net = StudentWithHeads(state.model, state.heads)
        parts = [forward_heads(net, part, task)[0] for part in images_UCHW.chunk(state.micro_batches.count)]
        return torch.cat(parts)


def record_step(
    folder: Path, state: State, task: Task, *, entry: UnreadStep, scalars: Mapping[str, float], seconds: float
) -> None:
    """Append the line of a step to metrics.jsonl, with val if an evaluation is due; save a due checkpoint.

    Both are due only at the last step whose losses are read: the state is that after it.
    """
    settings, step, is_last = task.settings, entry.step, entry.step == task.steps
    learns_from_unlabeled = len(task.unlabeled) or task.streamed_per_step
    images_per_step = settings.batch_labeled + (settings.batch_unlabeled if learns_from_unlabeled else 0)
    line: dict[str, Any] = {
        "step": step,
        "loss": scalars["loss"],
        "lr": entry.lr,
        "terms": {name.removeprefix("terms/"): term for name, term in scalars.items() if name != "loss"},
        "images_per_second": round(images_per_step * step / seconds, 2),
    }
    if entry.micro_batches > 1:
        line["micro_batches"] = entry.micro_batches
    if entry.compiled is not None:
        line["compiled"] = entry.compiled
    if len(task.material.val) and (step % settings.evaluate_every == 0 or is_last):
        line["val"] = asdict(val := val_accuracy(state, task))
        hooks.tell_evaluation(step, {"top1": val.top1, "balanced": val.balanced})
    with (folder / artifacts.METRICS.name).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    if step % settings.checkpoint_every == 0 or is_last:
        save(state, step, seconds, folder)
