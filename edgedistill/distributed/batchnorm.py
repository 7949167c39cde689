"""Batch norm over the images of all processes, on a CPU: torch's own SyncBatchNorm supports only GPUs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Mean(torch.autograd.Function):
    """Differentiable mean over the processes; the gradients are averaged, too.

    Of torch's two differentiable all_reduce functions one is deprecated and the other is private.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        """The mean, the same tensor in every process."""
        return _mean(own)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """The mean of the gradients: every process's loss depends on every process's input."""
        return _mean(gradients[0])


def _mean(own: Tensor) -> Tensor:
    total = own.detach().clone()
    distributed.all_reduce(total)
    return total.div_(distributed.get_world_size())


class CpuSyncBatchNorm(_BatchNorm):
    """Batch norm (Ioffe and Szegedy 2015) over all processes, each with equally many images.

    Parameters and running statistics are those of `like`, as are the dropout and activation of timm's norms.
    """

    def __init__(self, like: _BatchNorm) -> None:
        super().__init__(
            like.num_features,
            eps=like.eps,
            momentum=like.momentum,
            affine=like.affine,
            track_running_stats=like.track_running_stats,
        )
        self.load_state_dict(like.state_dict(), strict=False)
        self.weight, self.bias = like.weight, like.bias
        self.drop, self.act = getattr(like, "drop", nn.Identity()), getattr(like, "act", nn.Identity())
        self.train(like.training)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of dimensions; the second is the channels."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalize [B, C, ...]; the shape stays."""
        if not self.training:
            return self.act(self.drop(super().forward(input)))  # type: ignore[no-any-return]
        reduced_dims, shape = [0, *range(2, input.ndim)], [1, -1, *[1] * (input.ndim - 2)]
        # in two passes: the mean of squares less the square of the mean loses digits
        mean_C = Mean.apply(input.float().mean(reduced_dims))
        centered = input.float() - mean_C.view(shape)
        variance_C = Mean.apply(centered.square().mean(reduced_dims))
        images = distributed.get_world_size() * input.numel() // input.shape[1]
        self._follow(mean_C.detach(), variance_C.detach(), images)
        scale_C = torch.rsqrt(variance_C + self.eps) * self.weight
        normalized = (centered * scale_C.view(shape) + self.bias.view(shape)).to(input.dtype)
        return self.act(self.drop(normalized))  # type: ignore[no-any-return]

    @torch.no_grad()
    def _follow(self, mean_C: Tensor, variance_C: Tensor, count: int) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean_C, self.momentum)
        self.running_var.lerp_(variance_C * count / (count - 1), self.momentum)


def to_sync_batchnorm(model: nn.Module) -> nn.Module:
    """Replace every batch norm of the model by one over all processes."""
    if isinstance(model, _BatchNorm):
        return CpuSyncBatchNorm(model)
    for name, part in model.named_children():
        setattr(model, name, to_sync_batchnorm(part))
    return model
