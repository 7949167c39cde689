"""Speed beside a peer: a training epoch from eight sources, in edgedistill and in torchdistill.

    pip install torchdistill
    CUDA_VISIBLE_DEVICES= python -m benchmarks.peer_torchdistill        four to six minutes on two cores

edgedistill asks each source once and keeps the answers; torchdistill has its teachers in the loop (release 0.3.3 could
keep the answers of a teacher, `CacheableDataset`; 1.1.5 has nothing like it). The two are interleaved in one
process, in rounds; each round gives a ratio. Beside it stands what the cache costs once, and from how many epochs on
edgedistill is the faster one with that cost in the bill. The claim to test: at least five times. It cannot hold for a
student as large as its sources: its own step costs three or four of their forward passes, with them or without.

What is the same on both sides: the nets and their initial weights, the images, the batches' size, the augmentation
(edgedistill's, of a whole batch; for torchdistill in a registered collate function), the memory layout, the losses and
their weights (a test holds the gradients against each other), AdamW, and the process with its threads. An epoch shows
every image once, each with a label: which images have one does not change what an epoch costs.

What is torchdistill's own: DistillationBox with its data loader, forward hooks, WeightedSumLoss of a KDLoss a source
and a CrossEntropyLoss, optimiser and epoch processes. The loop over the loader is the one that its users write, as in
its examples/torchvision/image_classification.py, without logs and validation. It takes one teacher (its issue 517 asks
for several), so the eight nets are the parts of one module, which also enlarges the student's image for them.

What is not the same, and cannot be: torchdistill's teachers answer for the augmented image, the cache for the image as
it is. edgedistill also keeps the running mean of the weights. Neither side saves or evaluates anything here.
"""

from __future__ import annotations

import copy
import itertools
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.lines import append
from edgedistill.console import bar, say
from edgedistill.data import images as data_images
from edgedistill.data.pixels import normalise
from edgedistill.distill import loop, state
from edgedistill.distill.augment import augment
from edgedistill.distill.batches import Images, Material, Task, draw_batch
from edgedistill.distributed.device import default_device
from edgedistill.recipe import schema
from edgedistill.recipe.schema import Augment, Choice, Distill, Source
from edgedistill.records import StudentSpec
from edgedistill.sources import outputs, registry
from edgedistill.students import space
from edgedistill.students.build import build_student

SOURCES, IMAGES, BATCH, TARGET_CLASSES, ROUNDS, LAM, CLAIM = 8, 192, 64, 10, 5, 0.8, 5.0
NAMES = tuple(f"source{at}" for at in range(SOURCES))
COLLATE = "edgedistill_augmented"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A student and its sources; `epochs` of edgedistill go into a round, so that both sides run for seconds."""

    family: str
    options: Mapping[str, Any]
    epochs: int
    source: str = "tf_efficientnet_lite0"
    source_px: int = 128
    augment: Augment = field(default_factory=Augment)


SETTINGS = (
    Setting(family="micro", options={"width": 16, "input_px": 32}, epochs=16),
    Setting(family="efficientnet_lite", options={"variant": 0, "input_px": 128, "weights": "none"}, epochs=1),
)


class Sources(nn.Module):
    """All sources as the one teacher that torchdistill takes; every net gets the image at its own size."""

    def __init__(self, nets: Mapping[str, nn.Module], px: int) -> None:
        super().__init__()
        self.nets, self.px = nn.ModuleDict(nets), px

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """From the student's images to each source's logits, [B, K]."""
        if images_BCHW.shape[-1] != self.px:
            images_BCHW = functional.interpolate(images_BCHW, (self.px, self.px), mode="bilinear")
        images_BCHW = images_BCHW.contiguous(memory_format=torch.channels_last)
        return {name: net(images_BCHW) for name, net in self.nets.items()}


class Student(nn.Module):
    """A copy of edgedistill's student with each source head as a module of its own: KDLoss finds logits by module."""

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
        """Target logits [B, C]; the source heads' logits are for the hooks."""
        features_BD = self.backbone(images_BCHW.contiguous(memory_format=torch.channels_last))  # type: ignore[operator]
        for head in self.heads.values():
            head(features_BD)
        target_BC: Tensor = self.head(features_BD)  # type: ignore[operator]
        return target_BC


def cache(setting: Setting, spec: StudentSpec, images_NHWC: Images, folder: Path) -> dict[str, NDArray[Any]]:
    """edgedistill's one pass over the sources, resizing and writing included; from each source's name to probs [N, K].

    The sources normalise as the student does, so that the peer's one image serves both.
    """
    view, probs = {"input_px": setting.source_px, "mean": spec.mean, "std": spec.std}, {}
    for seed, name in enumerate(NAMES):
        said = {"name": name, "kind": "timm", "model": setting.source, "pretrained": False, "seed": seed, **view}
        net = registry.load(Source.model_validate(said), Path())
        probs[name] = outputs.outputs(net, partial(resized, images_NHWC), "noise", folder).probs_NK
    return probs


def resized(images_NHWC: Images, px: int) -> Images:
    """The images at a source's input size, by Pillow as everywhere in edgedistill."""
    return np.stack([data_images.resize(image, px) for image in images_NHWC])


def our_task(setting: Setting, spec: StudentSpec, images_NHWC: Images, probs: dict[str, NDArray[Any]]) -> Task:
    """Every image labeled, so that an epoch is every image once."""
    rows = np.arange(len(images_NHWC))
    labels, nothing = rows % TARGET_CLASSES, rows[:0]
    alphas = dict.fromkeys(NAMES, 1 / SOURCES)
    material = Material(
        images_NHWC=images_NHWC,
        labeled=rows,
        labels=labels,
        unlabeled=nothing,
        val=nothing,
        val_labels=nothing,
        source_probs=probs,
        alphas=alphas,
    )
    method = Choice.model_validate({"name": "weighted", "lam": LAM})
    settings = Distill(method=method, batch_labeled=BATCH, batch_unlabeled=0, augment=setting.augment)
    return Task(spec=spec, material=material, settings=settings, steps=1, seed=0)


def our_epochs(job: Task, live: state.State, epochs: int) -> float:
    """Mean seconds of an epoch of edgedistill, drawing of the batches included."""
    loss, started = job.loss(), time.perf_counter()
    for step in range(epochs * (len(job.material.labeled) // BATCH)):
        loop.train_step(live, loss, drawn=draw_batch(job, step), task=job, step=step)
    return (time.perf_counter() - started) / epochs


def their_epoch(box: Any, batches: int | None = None) -> float:
    """Seconds of an epoch (or of its first batches) of a DistillationBox, as torchdistill's examples write the loop."""
    device, started = default_device(), time.perf_counter()
    box.pre_epoch_process(epoch=0)
    for images_BCHW, labels_B, extra in itertools.islice(box.train_data_loader, batches):
        loss = box.forward_process(images_BCHW.to(device), labels_B.to(device), extra)
        box.post_forward_process(loss=loss)
        loss.item()
    box.post_epoch_process()
    return time.perf_counter() - started


def collate(samples: Sequence[Any], job: Task, random: torch.Generator) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """torchdistill's samples, (uint8 [px, px, 3], label, {}) each, as a batch augmented the way edgedistill does."""
    images, labels, _ = zip(*samples, strict=True)
    images_BCHW = normalise(torch.stack(images), job.spec.mean, job.spec.std)
    return augment(images_BCHW, job.settings.augment, random), torch.stack(labels), {}


def teacher(setting: Setting) -> Sources:
    """The nets of `cache`, from the same seeds."""
    nets = {}
    for seed, name in enumerate(NAMES):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            nets[name] = timm.create_model(setting.source, pretrained=False).to(memory_format=torch.channels_last)
    return Sources(nets, setting.source_px).eval()


def stage(job: Task) -> dict[str, Any]:
    """torchdistill's configuration of a training stage with edgedistill's loss: what its users write in YAML."""
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
            "kwargs": {"batch_size": BATCH, "num_workers": 0},
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
    data = torch.utils.data.TensorDataset(torch.from_numpy(images_NHWC), torch.from_numpy(labels_N))
    return get_distillation_box(
        teacher(setting), Student(live), {"train": data}, stage(job), default_device(), None, False, 1
    )


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Both trainings of one setting, from the same initial weights, and the seconds that the cache took."""

    job: Task
    live: state.State
    box: Any
    cache_seconds: float


def prepare(setting: Setting, folder: Path) -> Sides:
    """Noise for images, random nets for sources: neither changes what an epoch costs."""
    section = schema.Student(families={setting.family: dict(setting.options)})
    spec = space.candidates(section, TARGET_CLASSES)[0]
    images_NHWC = np.random.default_rng(0).integers(0, 256, (IMAGES, spec.input_px, spec.input_px, 3), dtype=np.uint8)
    cache(setting, spec, images_NHWC[:1], folder / "warm-up")
    started = time.perf_counter()
    probs = cache(setting, spec, images_NHWC, folder / "cache")
    taken = time.perf_counter() - started
    job = our_task(setting, spec, images_NHWC, probs)
    live = state.start(build_student(spec), sum(one.shape[1] for one in probs.values()), job.settings, 0)
    return Sides(job=job, live=live, box=distillation_box(setting, job, live), cache_seconds=taken)


def measure(setting: Setting) -> dict[str, Any]:
    """Interleaved rounds of both sides for one setting."""
    with tempfile.TemporaryDirectory() as folder:
        sides = prepare(setting, Path(folder))
        runs = (partial(our_epochs, sides.job, sides.live, setting.epochs), partial(their_epoch, sides.box))
        our_epochs(sides.job, sides.live, 1)
        their_epoch(sides.box, batches=1)
        cells = []
        with bar(f"torchdistill beside edgedistill, {setting.family}", ROUNDS) as advance:
            for at in range(ROUNDS):
                taken = {which: round(runs[which](), 5) for which in ((0, 1) if at % 2 else (1, 0))}
                cells.append([taken[0], taken[1]])
                advance(1)
    spec = sides.job.spec
    return {
        "torchdistill": metadata.version("torchdistill"),
        "student": setting.family,
        "input_px": spec.input_px,
        "macs_m": round(spec.cost.macs_m, 3),
        "source": setting.source,
        "source_px": setting.source_px,
        "sources": SOURCES,
        "images": IMAGES,
        "batch": BATCH,
        "threads": torch.get_num_threads(),
        "epochs_a_round": [setting.epochs, 1],
        "seconds": cells,
        "cache_seconds": round(sides.cache_seconds, 3),
    }


def ratio(seconds: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Median over the rounds of theirs / ours, and its 95 % interval (bootstrap of the rounds)."""
    ratios = [theirs / ours for ours, theirs in seconds]
    draws = [np.median(np.random.default_rng(draw).choice(ratios, len(ratios))) for draw in range(2000)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return statistics.median(ratios), float(low), float(high)


def epoch_seconds(seconds: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Median seconds of an epoch, ours and theirs."""
    ours, theirs = zip(*seconds, strict=True)
    return statistics.median(ours), statistics.median(theirs)


def whole_run(epochs: int, cache_seconds: float, ours: float, theirs: float) -> float:
    """How many times as fast a training of so many epochs is with its cache in the bill."""
    return epochs * theirs / (cache_seconds + epochs * ours)


def break_even(cache_seconds: float, ours: float, theirs: float) -> int | None:
    """The smallest number of epochs after which edgedistill, cache included, took no longer; None where it never is."""
    if theirs <= ours:
        return None
    return max(1, math.ceil(cache_seconds / (theirs - ours)))


def verdict(low: float, high: float) -> str:
    """Whether the interval of the ratio bears the claim out."""
    if low >= CLAIM:
        return "yes"
    return "no" if high < CLAIM else "undecided"


def row(line: Mapping[str, Any]) -> str:
    """One line as a row of the table."""
    middle, low, high = ratio(line["seconds"])
    ours, theirs = epoch_seconds(line["seconds"])
    even = break_even(*(costs := (line["cache_seconds"], ours, theirs)))
    return " | ".join(
        [
            f"| {line['student']} at {line['input_px']} px, {line['macs_m']:.0f} M MACs; {line['sources']} x "
            f"{line['source']} at {line['source_px']} px",
            f"{theirs:.2f} s",
            f"{ours:.2f} s",
            f"{middle:.1f} [{low:.1f}, {high:.1f}]",
            verdict(low, high),
            f"{line['cache_seconds']:.1f} s = {line['cache_seconds'] / ours:.1f} epochs",
            "never" if even is None else f"{even}",
            " / ".join(f"{whole_run(epochs, *costs):.1f}" for epochs in (10, 100)),
            f"{line['torchdistill']}; {line['images']} images, batches of {line['batch']}, {line['threads']} threads",
            f"{line['cpu']}, {line['cores']} cores | {line['commit']} |",
        ]
    )


def table(lines: list[dict[str, Any]]) -> str:
    """The lines as a Markdown table."""
    heads = [
        "student; sources",
        "an epoch of torchdistill",
        "of edgedistill",
        "times as fast, median [95 %]",
        f"{CLAIM:.0f} times at least",
        "the cache, once, in epochs of edgedistill",
        "ahead from epoch",
        "times as fast with the cache, 10 / 100 epochs",
        "torchdistill",
        "on",
        "commit",
    ]
    return "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *map(row, lines)])


def main() -> None:
    """Measure every setting and append the lines."""
    if util.find_spec("torchdistill") is None:
        sys.exit("torchdistill is not installed here; pip install torchdistill")
    if default_device().type != "cpu":
        sys.exit("this compares on the CPU (edgedistill alone would use bfloat16 on a GPU); set CUDA_VISIBLE_DEVICES=")
    for setting in SETTINGS:
        line = measure(setting)
        middle, low, high = ratio(line["seconds"])
        say(f"{setting.family}: {middle:.2f} [{low:.2f}, {high:.2f}] times as fast; {CLAIM:.0f}: {verdict(low, high)}")
        say(str(append("peer_torchdistill", line)))


if __name__ == "__main__":
    main()
