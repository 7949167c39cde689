"""Epochs of edgedistill and of torchdistill, timed in turns from the same initial weights."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.peer_torchdistill import peer
from benchmarks.peer_torchdistill.settings import BATCH, IMAGES, LAM, NAMES, ROUNDS, SOURCES, TARGET_CLASSES, Setting
from edgedistill.console import bar
from edgedistill.data import images as data_images
from edgedistill.distill import loop, state
from edgedistill.distill.batches import Images, Material, Task
from edgedistill.recipe import schema
from edgedistill.recipe.schema import Distill, Source
from edgedistill.recipe.section import Choice
from edgedistill.records import StudentSpec
from edgedistill.sources import outputs, registry
from edgedistill.students import space
from edgedistill.students.build import build_student


def cache(setting: Setting, spec: StudentSpec, images_NHWC: Images, folder: Path) -> dict[str, NDArray[Any]]:
    """Run every source once, resizing and writing included; returns {source: probs [N, K]}.

    The sources normalize as the student does, so that the peer can use one image for both.
    """
    view = {"input_px": setting.source_px, "mean": spec.mean, "std": spec.std}
    probs: dict[str, NDArray[Any]] = {}
    for seed, name in enumerate(NAMES):
        source = {"name": name, "kind": "timm", "model": setting.source, "pretrained": False, "seed": seed, **view}
        net = registry.load(Source.model_validate(source), Path())
        cached = outputs.compute_outputs(net, partial(resized, images_NHWC), "noise", folder)
        assert cached.probs_NK is not None, "the nets are classifiers"
        probs[name] = cached.probs_NK
    return probs


def resized(images_NHWC: Images, px: int) -> Images:
    """Resize images to a source's input size, with Pillow as everywhere in edgedistill."""
    return np.stack([data_images.resize(image, px) for image in images_NHWC])


def edgedistill_task(setting: Setting, spec: StudentSpec, images_NHWC: Images, probs: dict[str, NDArray[Any]]) -> Task:
    """The training task: every image is labeled, so that an epoch has every image once."""
    rows = np.arange(len(images_NHWC))
    labels, empty = rows % TARGET_CLASSES, rows[:0]
    alphas = dict.fromkeys(NAMES, 1 / SOURCES)
    material = Material(
        images_NHWC=images_NHWC,
        labeled=rows,
        labels=labels,
        unlabeled=empty,
        val=empty,
        val_labels=empty,
        source_probs=probs,
        alphas=alphas,
    )
    method = Choice.model_validate({"name": "weighted", "lam": LAM})
    # torchdistill trains in float32 on a GPU, too
    settings = Distill(
        method=method, batch_labeled=BATCH, batch_unlabeled=0, augment=setting.augment, precision="float32"
    )
    return Task(spec=spec, material=material, settings=settings, steps=1, seed=0)


def edgedistill_epochs(job: Task, live: state.State, epochs: int) -> float:
    """Mean seconds of an epoch of edgedistill, drawing of the batches included."""
    loss, started = job.loss(), time.perf_counter()
    for step in range(epochs * (len(job.material.labeled) // BATCH)):
        losses = loop.train_step(live, loss, job, step)
    losses.read()  # waits for a GPU
    return (time.perf_counter() - started) / epochs


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Both trainings of one setting, from the same initial weights, and the seconds of filling the cache."""

    job: Task
    live: state.State
    box: Any
    cache_seconds: float


def prepare(setting: Setting, folder: Path) -> Sides:
    """Set up both sides on random images and untrained sources: neither changes the cost of an epoch."""
    section = schema.Student(families={setting.family: dict(setting.options)})
    spec = space.candidates(section, TARGET_CLASSES)[0]
    images_NHWC = np.random.default_rng(0).integers(0, 256, (IMAGES, spec.input_px, spec.input_px, 3), dtype=np.uint8)
    cache(setting, spec, images_NHWC[:1], folder / "warm-up")
    started = time.perf_counter()
    probs = cache(setting, spec, images_NHWC, folder / "cache")
    cache_seconds = time.perf_counter() - started
    job = edgedistill_task(setting, spec, images_NHWC, probs)
    live = state.initial_state(
        build_student(spec), sum(probs_NK.shape[1] for probs_NK in probs.values()), job.settings, 0
    )
    return Sides(job=job, live=live, box=peer.distillation_box(setting, job, live), cache_seconds=cache_seconds)


def measure(setting: Setting) -> dict[str, Any]:
    """Time interleaved rounds of both sides for one setting."""
    with tempfile.TemporaryDirectory() as folder:
        sides = prepare(setting, Path(folder))
        runs = (
            partial(edgedistill_epochs, sides.job, sides.live, setting.epochs),
            partial(peer.epoch_seconds, sides.box),
        )
        edgedistill_epochs(sides.job, sides.live, 1)
        peer.epoch_seconds(sides.box, batches=1)
        cells = []
        with bar(f"torchdistill beside edgedistill, {setting.family}", ROUNDS) as advance:
            for index in range(ROUNDS):
                seconds = {which: round(runs[which](), 5) for which in ((0, 1) if index % 2 else (1, 0))}
                cells.append([seconds[0], seconds[1]])
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
