"""Untrained nets and miniature tasks, for the tests of training."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgedistill.distill.batches import Material, Task
from edgedistill.recipe.schema import Budget, Distill
from edgedistill.recipe.schema import Student as StudentSection
from edgedistill.records import StudentSpec
from edgedistill.students import space

PX = 16


def micro_spec(classes: int = 2, width: int = 8, px: int = PX) -> StudentSpec:
    """The spec of the smallest student."""
    section = StudentSection(families={"micro": {"width": width, "input_px": px}}, budget=Budget())
    return space.candidates(section, classes)[0]


def squares(labels_N: np.ndarray, seed: int) -> np.ndarray:
    """Reddish noise for class 0 and bluish for class 1: uint8 [N, 16, 16, 3]."""
    noise = np.random.default_rng(seed).integers(0, 120, (len(labels_N), PX, PX, 3))
    tint = np.array([[100, 0, 0], [0, 0, 100]])[labels_N][:, None, None, :]
    return np.asarray(noise + tint, dtype=np.uint8)


def make_material(probs: Mapping[str, np.ndarray] | None = None, alphas: Mapping[str, float] | None = None) -> Material:
    """40 images: 16 labeled, 8 of val, 16 unlabeled; one source that knows the classes by default."""
    labels_N = np.arange(40) % 2
    knows = 0.1 + 0.8 * np.eye(2, 3)[labels_N]
    return Material(
        images_NHWC=squares(labels_N, 0),
        labeled=np.arange(16),
        labels=labels_N[:16],
        unlabeled=np.arange(24, 40),
        val=np.arange(16, 24),
        val_labels=labels_N[16:24],
        source_probs=probs if probs is not None else {"knows": knows / knows.sum(axis=1, keepdims=True)},
        alphas=alphas if alphas is not None else {"knows": 1.0},
    )


def task(steps: int, material: Material | None = None, **settings: object) -> Task:
    """A short run of `weighted` on the material."""
    defaults: dict[str, object] = {
        "method": "weighted",
        "batch_labeled": 8,
        "batch_unlabeled": 4,
        "lr": 0.01,
        "checkpoint_every": 5,
        "evaluate_every": 4,
        "ema_decay": 0.9,
    }
    section = Distill.model_validate({**defaults, **settings})
    return Task(spec=micro_spec(), material=material or make_material(), settings=section, steps=steps, seed=7)
