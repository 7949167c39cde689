"""torchdistill's side: its DistillationBox on the nets, images, losses and weights of edgedistill's task.

torchdistill takes one teacher (its issue 517 asks for several), so the eight sources are the parts of one module, which
also enlarges the student's image for them. N images, B of them in a batch, K classes of a source, D features.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.peer_torchdistill.settings import LAM, NAMES, SOURCES, Setting
from edgedistill.data.pixels import normalize
from edgedistill.distill import state
from edgedistill.distill.augment import augment
from edgedistill.distill.batches import Task
from edgedistill.distributed.device import default_device

COLLATE = "edgedistill_augmented"


class Sources(nn.Module):
    """All sources as one module, the teacher of torchdistill; it enlarges the student's images to the sources' size."""

    def __init__(self, nets: Mapping[str, nn.Module], px: int) -> None:
        super().__init__()
        self.nets, self.px = nn.ModuleDict(nets), px

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Compute each source's logits [B, K] of the student's images."""
        if images_BCHW.shape[-1] != self.px:
            images_BCHW = functional.interpolate(images_BCHW, (self.px, self.px), mode="bilinear")
        images_BCHW = images_BCHW.contiguous(memory_format=torch.channels_last)
        return {name: net(images_BCHW) for name, net in self.nets.items()}


class Student(nn.Module):
    """A copy of edgedistill's student whose source heads are modules of their own: KDLoss finds logits by module."""

    def __init__(self, live: state.State) -> None:
        super().__init__()
        model, stacked = copy.deepcopy(live.model), live.heads.state_dict()
        self.backbone, self.head, self.heads = model.backbone, model.head, nn.ModuleDict()
        for name, weight, bias in zip(
            NAMES, stacked["weight"].chunk(SOURCES), stacked["bias"].chunk(SOURCES), strict=True
        ):
            self.heads[name] = head = nn.Linear(weight.shape[1], weight.shape[0])
            head.load_state_dict({"weight": weight, "bias": bias})

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Compute target logits [B, C]; the source heads run for the forward hooks alone."""
        features_BD = self.backbone(images_BCHW.contiguous(memory_format=torch.channels_last))  # type: ignore[operator]
        for head in self.heads.values():
            head(features_BD)
        target_BC: Tensor = self.head(features_BD)  # type: ignore[operator]
        return target_BC


def teacher(setting: Setting) -> Sources:
    """The nets of `timing.cache`, initialized from the same seeds."""
    nets = {}
    for seed, name in enumerate(NAMES):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            nets[name] = timm.create_model(setting.source, pretrained=False).to(memory_format=torch.channels_last)
    return Sources(nets, setting.source_px).eval()


def collate(samples: Sequence[Any], job: Task, random: torch.Generator) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Collate torchdistill's samples (uint8 [px, px, 3], label, {}) to a batch with edgedistill's augmentation."""
    images, labels, _ = zip(*samples, strict=True)
    images_BCHW = normalize(torch.stack(images), job.spec.mean, job.spec.std)
    return augment(images_BCHW, job.settings.augment, random), torch.stack(labels), {}


def stage(job: Task) -> dict[str, Any]:
    """torchdistill's configuration of a training stage, which its users write in YAML, with edgedistill's loss."""
    classes = {name: probs.shape[1] for name, probs in job.material.source_probs.items()}
    terms = {
        name: {
            "criterion": {
                "key": "KDLoss",
                "kwargs": {
                    "student_module_path": f"heads.{name}",
                    "student_module_io": "output",
                    "teacher_module_path": f"nets.{name}",
                    "teacher_module_io": "output",
                    "temperature": 1.0,
                    "alpha": 0.0,
                },
            },
            "weight": (1 - LAM) * job.material.alphas[name] / math.log(classes[name]),
        }
        for name in NAMES
    }
    labels = {
        "criterion": {"key": "CrossEntropyLoss", "kwargs": {}},
        "criterion_wrapper": {
            "key": "SimpleLossWrapper",
            "kwargs": {
                "input": {"is_from_teacher": False, "module_path": ".", "io": "output"},
                "target": {"uses_label": True},
            },
        },
        "weight": LAM,
    }
    settings = job.settings
    rates = {"lr": settings.lr, "weight_decay": settings.weight_decay, "fused": True}
    return {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "collate_fn": COLLATE,
            "kwargs": {"batch_size": settings.batch_labeled, "num_workers": 0},
            "sampler": {
                "class_or_func": torch.utils.data.RandomSampler,
                "kwargs": {"generator": torch.Generator().manual_seed(0)},
            },
        },
        "teacher": {
            "forward_proc": "forward_batch_only",
            "requires_grad": False,
            "forward_hook": {"input": [], "output": [f"nets.{name}" for name in NAMES]},
        },
        "student": {
            "forward_proc": "forward_batch_only",
            "forward_hook": {"input": [], "output": [f"heads.{name}" for name in NAMES]},
        },
        "optimizer": {"key": "AdamW", "kwargs": rates},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"labels": labels, **terms}}},
    }


def distillation_box(setting: Setting, job: Task, live: state.State) -> Any:
    """torchdistill's DistillationBox on the images, nets and initial weights of `job` and `live`."""
    from torchdistill.core.distillation import get_distillation_box  # type: ignore[import-not-found, unused-ignore]
    from torchdistill.datasets import registry  # type: ignore[import-not-found, unused-ignore]

    registry.register_collate_func(partial(collate, job=job, random=torch.Generator().manual_seed(0)), key=COLLATE)
    images_NHWC, labels_N = job.material.images_NHWC, job.material.labels
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(images_NHWC), torch.from_numpy(labels_N))
    return get_distillation_box(
        teacher(setting), Student(live), {"train": dataset}, stage(job), default_device(), None, False, 1
    )


def epoch_seconds(box: Any, batches: int | None = None) -> float:
    """Seconds of an epoch (or of its first batches) of a DistillationBox, with the loop of torchdistill's examples."""
    device, started = default_device(), time.perf_counter()
    box.pre_epoch_process(epoch=0)
    for images_BCHW, labels_B, extra in itertools.islice(box.train_data_loader, batches):
        loss = box.forward_process(images_BCHW.to(device), labels_B.to(device), extra)
        box.post_forward_process(loss=loss)
        loss.item()
    box.post_epoch_process()
    return time.perf_counter() - started
