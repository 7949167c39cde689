"""All that changes while a student trains, and how it is saved and found again."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgedistill.distributed import processes
from edgedistill.distributed.device import default_device
from edgedistill.errors import InputError
from edgedistill.recipe.options import did_you_mean
from edgedistill.recipe.schema import Distill


class Joint(nn.Module):
    """A student and its source heads in one forward pass: [B, 3, px, px] to logits [B, C] and [B, sum of K]."""

    def __init__(self, model: nn.Module, heads: nn.Module) -> None:
        super().__init__()
        self.model, self.heads = model, heads

    def forward(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All heads see the same features."""
        features_BD = self.model.backbone(images_BCHW)  # type: ignore[operator]
        return self.model.head(features_BD), self.heads(features_BD)  # type: ignore[operator]


@dataclass(frozen=True, kw_only=True)
class State:
    """The student, its source heads, the running mean of its weights, and the optimiser.

    `net` is student and heads as they are trained: with their gradients averaged where there are several processes.
    """

    model: nn.Module
    heads: nn.Module
    ema: nn.Module
    optimiser: torch.optim.Optimizer
    net: nn.Module

    def parts(self) -> dict[str, Any]:
        """Name and stateful object of everything a checkpoint holds."""
        return {"model": self.model, "heads": self.heads, "ema": self.ema, "optimiser": self.optimiser}


def start(model: nn.Module, source_classes: int, settings: Distill, seed: int) -> State:
    """A fresh state on the GPU if there is one; the source heads are drawn from `seed`.

    Args:
        model: parts `backbone` and `head`.
        source_classes: sum of the label spaces of the sources in use; 0 for none.
        settings: the recipe's `distill` section.
        seed: of the source heads.
    """
    processes.team()  # of several processes on several GPUs each has its own from here on
    device = default_device()
    width = int(model.head.in_features)  # type: ignore[union-attr,arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # one matrix for all source heads: a step with twelve sources is one larger product, not twelve small ones
        heads = nn.Linear(width, source_classes) if source_classes else nn.Identity()
    # channels last is twice as fast for depthwise convolutions on a CPU, and what tensor cores want
    model, heads = model.to(memory_format=torch.channels_last).to(device), heads.to(device)
    freeze(model.backbone, settings.freeze)  # type: ignore[arg-type]
    ema = copy.deepcopy(model).requires_grad_(False)
    model = processes.synchronised(model)
    parameters = [*model.parameters(), *heads.parameters()]
    decayed = [one for one in parameters if one.ndim > 1]
    plain = [one for one in parameters if one.ndim <= 1]  # biases and batch norm are not decayed
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=settings.lr,
        fused=True,  # one pass over the weights: with twelve source heads the optimiser was a seventh of a step
    )
    return State(model=model, heads=heads, ema=ema, optimiser=optimiser, net=processes.wrapped(Joint(model, heads)))


def freeze(backbone: nn.Module, names: Iterable[str]) -> None:
    """Stop the gradient at the named modules of a backbone (their batch statistics still follow the data).

    Raises:
        InputError: the backbone has no module of that name.
    """
    known = dict(backbone.named_modules())
    for name in names:
        if name not in known:
            raise InputError(f"distill.freeze: the student has no module {name}{did_you_mean(name, known)}")
        known[name].requires_grad_(False)


def set_rate(optimiser: torch.optim.Optimizer, settings: Distill, step: int, steps: int) -> None:
    """The learning rate of a step (from 0): linear warm-up, then a cosine to zero."""
    warm = max(1, round(settings.warmup_fraction * steps))
    share = (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
    for group in optimiser.param_groups:
        group["lr"] = settings.lr * share


def descend(state: State, loss: torch.Tensor, ema_decay: float, step: int) -> None:
    """One optimiser step, then the running mean of the weights; batch statistics are taken over as they are.

    The mean's decay grows with the step (from 0) towards `ema_decay`, or a short run would end on its initial weights.
    """
    decay = min(ema_decay, (1 + step) / (10 + step))
    state.optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    state.optimiser.step()
    with torch.no_grad():
        for mean, weight in zip(state.ema.parameters(), state.model.parameters(), strict=True):
            mean.lerp_(weight, 1.0 - decay)
        for mine, theirs in zip(state.ema.buffers(), state.model.buffers(), strict=True):
            mine.copy_(theirs)


def refresh_statistics(model: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Take the batch norm statistics anew over `batches` of normalised images [B, 3, px, px].

    The running ones belong to the weights that moved; averaged weights have statistics of their own (Izmailov et al.
    2018, "Averaging Weights Leads to Wider Optima", section 3.2). After a short fine-tuning that is worth points.
    """
    norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if not norms:  # folded, in quantization-aware training
        model.eval()
        return
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
    model.eval()
    for norm in norms:
        norm.train()  # and nothing else: dropout has no part in statistics
    with torch.no_grad():
        for images_BCHW in batches:
            model(images_BCHW)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
    model.eval()
