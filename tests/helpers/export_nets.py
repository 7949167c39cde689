"""Real blocks of timm's families, shallow enough to export in seconds; random weights, realistic statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from onnx import ModelProto
from timm.layers import SelectAdaptivePool2d

from edgedistill.export import calibrate
from edgedistill.records import Cost, OnnxModel, StudentSpec

PX, CLASSES = 48, 5
SPEC = StudentSpec(
    family="test",
    options={},
    input_px=PX,
    num_classes=CLASSES,
    cost=Cost(macs_m=0.0, params_m=0.0, weights_mb=0.0),
    mean=(0.5, 0.45, 0.4),
    std=(0.25, 0.2, 0.3),
)

Ranged = tuple[ModelProto, dict[str, calibrate.Range]]


@dataclass(frozen=True)
class Exported:
    """A student, its fp32 graph, and the images that they were compared on."""

    model: torch.nn.Module
    path: Path
    record: OnnxModel
    images_NHWC: np.ndarray


def pictures(n: int, px: int = PX, seed: int = 0) -> np.ndarray:
    """Smooth color noise, uint8 [n, px, px, 3]: large patches under fine grain, as in photographs."""
    generator = np.random.default_rng(seed)
    patches = generator.normal(128, 50, (n, px // 8, px // 8, 3)).repeat(8, axis=1).repeat(8, axis=2)
    return np.clip(patches + generator.normal(0, 15, patches.shape), 0, 255).astype(np.uint8)


def normalized(images_NHWC: np.ndarray, spec: StudentSpec = SPEC) -> torch.Tensor:
    """A student's input, float32 [N, 3, px, px]; computed independently of the exporter's arithmetic."""
    scaled = (images_NHWC.astype(np.float64) / 255.0 - np.array(spec.mean)) / np.array(spec.std)
    return torch.from_numpy(scaled.transpose(0, 3, 1, 2).astype(np.float32))


def calibrate_batch_norms(model: torch.nn.Module) -> torch.nn.Module:
    """Give every batch norm the statistics of real activations, then switch to eval mode."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    model.train()
    with torch.no_grad():
        model(normalized(pictures(16, seed=9)))
    return model.eval()


def _lite() -> torch.nn.Module:
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    return _head([net.conv_stem, net.bn1, *net.blocks[:3]], 40)


def _mobilenet() -> torch.nn.Module:
    net = timm.create_model("mobilenetv2_050", pretrained=False)
    return _head([net.conv_stem, net.bn1, *net.blocks[:3]], 16)


def _resnet() -> torch.nn.Module:
    # by default timm starts the last batch norm of every block at zero, which leaves only the identity
    net = timm.create_model("resnet10t", pretrained=False, zero_init_last=False)
    return _head([net.conv1, net.bn1, net.act1, net.maxpool, net.layer1, net.layer2], 128)


def _mnv3() -> torch.nn.Module:
    net = timm.create_model("mobilenetv3_small_050", pretrained=False)
    return _head([net.conv_stem, net.bn1, *net.blocks[:3]], 24)


def _head(trunk: list[torch.nn.Module], features: int) -> torch.nn.Module:
    pool = SelectAdaptivePool2d(pool_type="avg", flatten=True)
    return torch.nn.Sequential(*trunk, pool, torch.nn.Linear(features, CLASSES))


NETS: dict[str, Callable[[], torch.nn.Module]] = {
    "lite": _lite,
    "mobilenet": _mobilenet,
    "mnv3": _mnv3,
    "resnet": _resnet,
}


def build(name: str) -> torch.nn.Module:
    """One of NETS, the same weights at every call."""
    torch.manual_seed(7)
    return calibrate_batch_norms(NETS[name]())
