"""Batch norm over the images of all processes, on a CPU: torch's own SyncBatchNorm has kernels for GPUs alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Mean(torch.autograd.Function):
    """The mean over the processes; each gets back what all of them want of it.

    Of torch's own differentiable all_reduce one is deprecated and the other one private.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        """The same tensor everywhere."""
        return _mean(own)

    @staticmethod
    def backward(ctx: Any, *wanted: Tensor) -> Tensor:
        """Every process's loss depends on every process's part: gradients come as their mean."""
        return _mean(wanted[0])


def _mean(own: Tensor) -> Tensor:
    whole = own.detach().clone()
    distributed.all_reduce(whole)
    return whole.div_(distributed.get_world_size())


class WholeBatchNorm(_BatchNorm):
    """Ioffe and Szegedy 2015 with mean and variance over all processes, which hold equally many images each.

    It takes over the parameters and running statistics of `like`, and what timm's norms do afterwards.
    """

    def __init__(self, like: _BatchNorm) -> None:
        super().__init__(like.num_features, like.eps, like.momentum, like.affine, like.track_running_stats)
        self.load_state_dict(like.state_dict(), strict=False)
        self.weight, self.bias = like.weight, like.bias
        self.drop, self.act = getattr(like, "drop", nn.Identity()), getattr(like, "act", nn.Identity())
        self.train(like.training)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions, the second of them the channels."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, ...] to the same shape."""
        if not self.training:
            return self.act(self.drop(super().forward(input)))  # type: ignore[no-any-return]
        others, shape = [0, *range(2, input.ndim)], [1, -1, *[1] * (input.ndim - 2)]
        # in two passes: the mean of squares less the square of the mean loses digits
        mean_C = Mean.apply(input.float().mean(others))
        centred = input.float() - mean_C.view(shape)
        variance_C = Mean.apply(centred.square().mean(others))
        images = distributed.get_world_size() * input.numel() // input.shape[1]
        self._follow(mean_C.detach(), variance_C.detach(), images)
        scale_C = torch.rsqrt(variance_C + self.eps) * self.weight
        found = (centred * scale_C.view(shape) + self.bias.view(shape)).to(input.dtype)
        return self.act(self.drop(found))  # type: ignore[no-any-return]

    @torch.no_grad()
    def _follow(self, mean_C: Tensor, variance_C: Tensor, count: int) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean_C, self.momentum)
        self.running_var.lerp_(variance_C * count / (count - 1), self.momentum)


def whole_batch(model: nn.Module) -> nn.Module:
    """The model with every batch norm in it replaced by one over all processes."""
    if isinstance(model, _BatchNorm):
        return WholeBatchNorm(model)
    for name, part in model.named_children():
        setattr(model, name, whole_batch(part))
    return model
