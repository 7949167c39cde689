"""The training state: student, source heads, EMA weights and optimizer, and the operations of one step on them."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from edgedistill.distill.compiled import TrainingNet, training_net
from edgedistill.distill.micro_batches import MicroBatches
from edgedistill.distributed import processes
from edgedistill.distributed.device import allow_tf32, default_device, keep_freed_memory, move_means
from edgedistill.errors import InputError
from edgedistill.recipe.options import did_you_mean
from edgedistill.recipe.schema import Distill


class StudentWithHeads(nn.Module):
    """A student and its source heads in one forward pass: [B, 3, px, px] to logits [B, C] and [B, sum of K]."""

    def __init__(self, model: nn.Module, heads: nn.Module) -> None:
        super().__init__()
        self.model, self.heads = model, heads

    def forward(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the target logits and the source heads' logits from the same features."""
        features_BD = self.model.backbone(images_BCHW)  # type: ignore[operator]
        return self.model.head(features_BD), self.heads(features_BD)  # type: ignore[operator]


@dataclass(frozen=True, kw_only=True)
class State:
    """The student, its source heads, the running mean of its weights, and the optimizer.

    `net` is the trained module of student and heads in one, compiled or not.
    `micro_batches` is the number of parts of a step's batch.
    """

    model: nn.Module
    heads: nn.Module
    ema: nn.Module
    optimizer: torch.optim.Optimizer
    net: TrainingNet
    micro_batches: MicroBatches = field(default_factory=MicroBatches)

    def parts(self) -> dict[str, Any]:
        """The stateful objects of a checkpoint, by name."""
        return {"model": self.model, "heads": self.heads, "ema": self.ema, "optimiser": self.optimizer}

    @cached_property
    def weights(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The averaged weights and the trained ones; looked up once, for a small student's step is short."""
        return list(self.ema.parameters()), list(self.model.parameters())

    @cached_property
    def statistics(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The buffers of the averaged student, each with the trained one's."""
        return list(zip(self.ema.buffers(), self.model.buffers(), strict=True))


def initial_state(model: nn.Module, source_classes: int, settings: Distill, seed: int) -> State:
    """Create a fresh state, on the GPU if there is one; the source heads are drawn from `seed`.

    Args:
        model: parts `backbone` and `head`.
        source_classes: sum of the label spaces of the sources in use; 0 for none.
        settings: the recipe's `distill` section.
        seed: seed of the source heads.
    """
    processes.team()  # with several processes on several GPUs, each uses its own from here on
    device = default_device()
    allow_tf32()
    keep_freed_memory()
    width = int(model.head.in_features)  # type: ignore[union-attr,arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # one matrix for all source heads: a step with twelve sources is one larger product, not twelve small ones
        heads = nn.Linear(width, source_classes) if source_classes else nn.Identity()
    # channels last is twice as fast for depthwise convolutions on a CPU, and the layout that tensor cores use
    model, heads = model.to(memory_format=torch.channels_last).to(device), heads.to(device)
    freeze(model.backbone, settings.freeze)  # type: ignore[arg-type]
    ema = copy.deepcopy(model).requires_grad_(False)
    model = processes.synchronize_batchnorm(model).train()  # it stays so: the averaged student is evaluated
    optimizer = torch.optim.AdamW(
        parameter_groups(model, heads, settings),
        lr=settings.lr,
        fused=True,  # one pass over the weights: with twelve source heads the optimizer was a seventh of a step
    )
    return State(
        model=model,
        heads=heads,
        ema=ema,
        optimizer=optimizer,
        net=training_net(processes.data_parallel(StudentWithHeads(model, heads)), settings.compile),
    )


def parameter_groups(model: nn.Module, heads: nn.Module, settings: Distill) -> list[dict[str, Any]]:
    """The optimizer's groups: biases and batch norm are not decayed, and heads have `heads_rate` times the rate."""
    if settings.heads_rate == 1.0:
        parts = [(1.0, [model, heads])]
    else:
        parts = [(1.0, [model.backbone]), (settings.heads_rate, [model.head, heads])]  # type: ignore[list-item]
    groups = []
    for rate, modules in parts:
        parameters = [parameter for module in modules for parameter in module.parameters()]
        decayed = [parameter for parameter in parameters if parameter.ndim > 1]
        undecayed = [parameter for parameter in parameters if parameter.ndim <= 1]
        groups.append({"params": decayed, "weight_decay": settings.weight_decay, "rate": rate})
        groups.append({"params": undecayed, "weight_decay": 0.0, "rate": rate})
    return groups


def freeze(backbone: nn.Module, names: Iterable[str]) -> None:
    """Stop gradients in the named modules of a backbone (their batch statistics still follow the data).

    Raises:
        InputError: the backbone has no module of that name.
    """
    modules = dict(backbone.named_modules())
    for name in names:
        if name not in modules:
            raise InputError(f"distill.freeze: the student has no module {name}{did_you_mean(name, modules)}")
        modules[name].requires_grad_(False)


def set_learning_rate(optimizer: torch.optim.Optimizer, settings: Distill, step: int, steps: int) -> None:
    """Set the learning rate of a step (from 0): linear warm-up, then a cosine to zero."""
    warm = max(1, round(settings.warmup_fraction * steps))
    share = (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
    for group in optimizer.param_groups:
        group["lr"] = settings.lr * share * group.get("rate", 1.0)  # older checkpoints have none


def optimizer_step(state: State, ema_decay: float, step: int) -> None:
    """Take one optimizer step along the gradients, clear them, and update the running mean of the weights.

    Batch statistics are copied unaveraged.

    The decay grows with the step (from 0) to `ema_decay`; otherwise a short run would end on its initial weights.
    """
    decay = min(ema_decay, (1 + step) / (10 + step))
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        move_means(*state.weights, 1.0 - decay)
        for averaged, current in state.statistics:
            averaged.copy_(current)


def refresh_statistics(model: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Recompute the batch norm statistics over `batches` of normalized images [B, 3, px, px].

    The running statistics belong to the trained weights; averaged weights need their own (Izmailov et al. 2018,
    "Averaging Weights Leads to Wider Optima", section 3.2). After a short fine-tuning this is worth several points of
    accuracy.
    """
    norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if not norms:  # folded, in quantization-aware training
        model.eval()
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
    model.eval()
    for norm in norms:
        norm.train()  # only the norms: dropout must stay off
    with torch.no_grad():
        for images_BCHW in batches:
            model(images_BCHW)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
