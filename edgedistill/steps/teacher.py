"""The teacher of a training: fitted on the labeled images of a context.

Every process of a training fits it: the leader first, and what that tunes and infers the others find in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgedistill.console import say
from edgedistill.distill import peer
from edgedistill.distill.teachers import TEACHERS, Teacher, adjusted
from edgedistill.distill.tuner import Tuner
from edgedistill.distributed.device import default_device
from edgedistill.recipe.options import bound_options
from edgedistill.run import artifacts
from edgedistill.sources.outputs import Network
from edgedistill.students.build import load_student

if TYPE_CHECKING:
    from edgedistill.steps.context import Context


@dataclass(frozen=True, kw_only=True)
class FittedTeacher:
    """A teacher, the networks that it has beside the sources' by the names of their features, and its peer's share."""

    teacher: Teacher
    networks: dict[str, Network]
    peer_share: peer.Share | None = None


def fit_teacher(context: Context, more: np.ndarray | None = None) -> FittedTeacher:
    """Fit the recipe's teacher: class probabilities of every train image.

    Train images with the pixels of a test image are excluded; their rows are uniform. With a prior its answers are
    shifted to it by those on the unlabeled images.

    Args:
        context: whose labeled images it is fitted to.
        more: rows of train images that are in none of its splits and are answered, too; int64.
    """
    distill, splits = context.recipe.distill, context.splits
    kind, classes = TEACHERS[distill.teacher.name], len(splits.classes)
    more = splits.labeled_rows[:0] if more is None else more
    split_rows = np.sort(np.concatenate([splits.labeled_rows, splits.val_rows, splits.unlabeled_rows, more]))
    tuner = Tuner(
        network=context.networks.__getitem__,
        store=splits.train,
        rows=splits.labeled_rows,
        labels_L=splits.labeled_labels,
        units_L=splits.units_N[splits.labeled_rows],
        classes=classes,
        answered=split_rows,
        settings=distill.augment,
        seed=context.recipe.seed,
        cache=context.run.cache,
    )
    teacher = kind.fit(
        features={name: outputs.features_ND[split_rows] for name, outputs in context.source_outputs.items()},
        alphas=context.weights.alphas,
        rows=np.searchsorted(split_rows, splits.labeled_rows),
        labels_L=splits.labeled_labels,
        classes=classes,
        **({"units_L": tuner.units_L} if kind.grouped else {}),
        **({"tune": tuner.tune} if kind.tunes else {}),
        **bound_options(kind.fit, distill.teacher.options),
    )
    if distill.teacher.options.get("tuned") and not tuner.networks:
        say("  no source is tuned: that takes three labels of every class, and a source with a network of its own")
    if context.prior:
        teacher = adjusted(teacher, context.prior, np.searchsorted(split_rows, splits.unlabeled_rows))
    probs_NC = np.full((splits.train.n, classes), 1.0 / classes, dtype=np.float32)
    probs_NC[split_rows] = teacher.probs_NC
    return FittedTeacher(teacher=replace(teacher, probs_NC=probs_NC), networks=tuner.networks)


def with_peer(context: Context, fitted: FittedTeacher) -> FittedTeacher:
    """The teacher joined by the peer that the step peer trained, and its network among those that answer shards."""
    arrays = artifacts.PEER.read(context.run)
    share = peer.Share(
        weight=float(arrays["weight"]), temperature=float(arrays["temperature"]), judged=int(arrays["judged"])
    )
    if not share.weight:
        return replace(fitted, peer_share=share)
    networks = {**fitted.networks, **({peer.PEER: peer_network(context)} if context.recipe.unlabeled else {})}
    teacher = peer.joined(fitted.teacher, arrays["logits"], share)
    return FittedTeacher(teacher=teacher, networks=networks, peer_share=share)


def peer_network(context: Context) -> Network:
    """The peer as a headless source whose features are its logits."""
    run = artifacts.labels_alone(context.run)
    record = artifacts.RESULT.read(run)
    student = load_student(record.spec, run / record.path).requires_grad_(False).to(default_device())
    return Network(
        forward=lambda images_BCHW: (student(images_BCHW), None),
        input_px=record.spec.input_px,
        mean=record.spec.mean,
        std=record.spec.std,
        sha256=record.sha256,
        has_classes=False,
    )
