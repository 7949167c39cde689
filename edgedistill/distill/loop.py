"""The training loop: one student, one method, so many steps; the EMA weights of the last step are the result.

Every step draws its images and its augmentation from (seed, step) alone. A run that was killed and goes on from its
last checkpoint therefore sees what it would have seen, and ends with the same weights to the byte.

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

from edgedistill.distill.augment import augment, strengthened
from edgedistill.distill.batches import Drawn, Task, draw_batch
from edgedistill.distill.checkpoint import resume, save
from edgedistill.distill.evaluate import as_batch, heads_of, held_out_loss, on_val, plain
from edgedistill.distill.methods import Batch, Terms
from edgedistill.distill.state import Joint, State, descend, set_rate, start
from edgedistill.distributed import processes
from edgedistill.errors import EdgeDistillError
from edgedistill.records import Accuracy
from edgedistill.run import artifacts

OnStep = Callable[[int, Mapping[str, float]], object]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A trained student (EMA weights, eval mode) and how it does on what it was not trained on.

    Attributes:
        model: the student.
        val: its accuracy on val.
        loss: the method's source terms on val and the images held out, by the last source heads; see held_out_loss.
        seconds: training time, over all processes that took part.
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
) -> Fitted:
    """Train `model` (parts `backbone` and `head`) as `task` says.

    Args:
        model: from student.build.
        task: what stays the same over the steps.
        folder: where last.pt and metrics.jsonl go; None trains without a trace (a search trial).
        on_step: called after each step with its number (from 1) and its scalars; steps that a checkpoint already
            covers are not repeated.
        rungs: step -> what is called with the accuracy on val after it; what it raises ends the training.
        heads: the source heads to begin with; drawn from the seed where there are none.

    Raises:
        EdgeDistillError: the loss is no longer finite.
    """
    classes = sum(task.material.source_probs[name].shape[1] for name in task.sources)
    kept = ("",) if "frozen" in task.needs else task.settings.freeze  # "" is the whole backbone
    state, loss = start(model, classes, task.settings.model_copy(update={"freeze": kept}), task.seed), task.loss()
    if heads:
        state.heads.load_state_dict(heads)
    begin, before = 0, 0.0
    if folder:
        with processes.leader_first():
            begin, before = resume(state, folder)
        processes.agreed(begin, "the step to go on from")
    started = time.monotonic()
    for step in range(begin, task.steps):
        set_rate(state.optimiser, task.settings, step, task.steps)
        scalars = train_step(state, loss, drawn=draw_batch(task, step), task=task, step=step)
        if not math.isfinite(scalars["loss"]):
            raise EdgeDistillError(f"distill: the loss is not finite at step {step + 1}", "lower distill.lr")
        if folder and processes.team().leads:
            record(
                folder, state, task=task, step=step + 1, scalars=scalars, seconds=before + time.monotonic() - started
            )
        on_step(step + 1, scalars)
        if step + 1 in rungs:
            processes.led(partial(rungs[step + 1], on_val(state, task)))
    val = on_val(state, task)
    seconds = before + time.monotonic() - started
    return Fitted(model=state.ema.eval(), val=val, loss=held_out_loss(state, loss, task), seconds=seconds)


def train_step(state: State, loss: Callable[[Batch], Terms], drawn: Drawn, task: Task, step: int) -> dict[str, float]:
    """Forward, the method's terms, one step of the optimiser; returns {"loss", "terms/..."} of the whole batch."""
    device = next(state.model.parameters()).device
    seed = int(np.random.SeedSequence([task.seed, step]).generate_state(1)[0])
    random = torch.Generator().manual_seed(seed)
    state.model.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # dropout draws from (seed, step), too
        images_BCHW = augment(plain(seen(drawn, task), task, device), task.settings.augment, random, drawn.places)
        weak_UC = weak_logits(state, drawn, task, random)
        terms = loss(as_batch(*heads_of(state.net, images_BCHW, task), drawn, weak_UC))
    total = torch.stack(list(terms.values())).sum()
    descend(state, total, task.settings.ema_decay, step)
    values = processes.mean(torch.stack([total, *terms.values()]).detach()).tolist()  # one wait, not one a term
    return dict(zip(["loss", *(f"terms/{name}" for name in terms)], values, strict=True))


def seen(drawn: Drawn, task: Task) -> Tensor:
    """The step's uint8 images before crops and flips: unlabeled ones strongly augmented where two views are asked."""
    if "weak" not in task.needs:
        return drawn.images_BHWC
    labeled = int((drawn.labels_B >= 0).sum())
    if drawn.all_UHWC is None or drawn.places_U is None:
        strong_UHWC = strengthened(drawn.images_BHWC[labeled:], task.settings.strong)
    else:
        strong_UHWC = strengthened(drawn.all_UHWC, task.settings.strong)[drawn.places_U.mine]
    return torch.cat([drawn.images_BHWC[:labeled], strong_UHWC])


def weak_logits(state: State, drawn: Drawn, task: Task, random: torch.Generator) -> Tensor | None:
    """The target head [U, C] on a weakly augmented view, without gradient: small crops, the recipe's flips.

    None for a method that asks for no second view.
    """
    if "weak" not in task.needs:
        return None
    device, images_UHWC = next(state.model.parameters()).device, drawn.images_BHWC[drawn.labels_B < 0]
    if not len(images_UHWC):
        return torch.zeros(0, task.spec.num_classes, device=device)
    usual = task.settings.augment
    weak = usual.model_copy(update={"min_area": max(0.8, usual.min_area), "jitter": 0.0})
    with torch.no_grad():
        images_UCHW = augment(plain(images_UHWC, task, device), weak, random, drawn.places_U)
        return heads_of(Joint(state.model, state.heads), images_UCHW, task)[0]


def record(folder: Path, state: State, task: Task, step: int, scalars: Mapping[str, float], seconds: float) -> None:
    """A line a step, an evaluation now and then, and after the line the checkpoint that covers it."""
    settings, last = task.settings, step == task.steps
    images = settings.batch_labeled + (settings.batch_unlabeled if len(task.unlabeled) or task.streamed else 0)
    line: dict[str, Any] = {
        "step": step,
        "loss": scalars["loss"],
        "lr": state.optimiser.param_groups[0]["lr"],
        "terms": {name[len("terms/") :]: value for name, value in scalars.items() if name.startswith("terms/")},
        "images_per_second": round(images * step / seconds, 2),
    }
    if step % settings.evaluate_every == 0 or last:
        line["val"] = asdict(on_val(state, task))
    with (folder / artifacts.METRICS.name).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
    if step % settings.checkpoint_every == 0 or last:
        save(state, step, seconds, folder)
