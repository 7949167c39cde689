"""An untrained network that can be tuned."""

from __future__ import annotations

import timm
import torch

from edgedistill.sources.outputs import Network, Tunable


def untrained_network(px: int = 16) -> Network:
    """A very small ResNet with features alone; pixels are normalized to -1 to 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        net = timm.create_model("test_resnet", num_classes=0).eval().requires_grad_(False)

    def features(module: torch.nn.Module, images_BCHW: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(module(images_BCHW))

    return Network(
        forward=lambda images_BCHW: (features(net, images_BCHW), None),
        input_px=px,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        sha256="untrained",
        has_classes=False,
        tunable=Tunable(module=net, features=features),
    )
