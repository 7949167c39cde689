"""What a student learns from, and what one step of its training sees of it.

A step's images and their order follow from (seed, step) alone, and so does which of several processes takes which.
B batch, U its unlabeled images, N images of the train store, C target classes, K classes of one source.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgedistill.data.pixels import normalise
from edgedistill.distill.augment import Places
from edgedistill.distill.methods import METHODS, Batch, Need, Terms
from edgedistill.distill.stream import Stream, Streamed
from edgedistill.distributed import processes
from edgedistill.distributed.device import default_device
from edgedistill.recipe.options import bound_options
from edgedistill.recipe.schema import Distill
from edgedistill.records import StudentSpec

Images = NDArray[np.uint8]
Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a student learns from, at its own input size.

    Attributes:
        images_NHWC: the train store, uint8 [N, px, px, 3]; rows index it.
        labeled: rows with a label, and `labels` of them.
        labels: target classes of `labeled`.
        unlabeled: rows without a label.
        val: rows held out of the labeled.
        val_labels: target classes of `val`.
        source_probs: per source its pseudo-labels for the whole train store, [N, K].
        alphas: per source its weight.
        held_out: rows without a label that are not trained on; with val they measure the held-out loss.
        teacher_NC: what the sources' probes say of every image in the target's classes, for the methods that ask.
        stream: more images without a label, that stand in shards.
    """

    images_NHWC: Images
    labeled: Rows
    labels: Rows
    unlabeled: Rows
    val: Rows
    val_labels: Rows
    source_probs: Mapping[str, NDArray[Any]]
    alphas: Mapping[str, float]
    held_out: Rows = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    teacher_NC: NDArray[Any] | None = None
    stream: Stream | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """What stays the same over the steps: how to train (`settings`), how long, on what, and from which seed."""

    spec: StudentSpec
    material: Material
    settings: Distill
    steps: int
    seed: int

    @property
    def needs(self) -> frozenset[Need]:
        """What the method must be given besides the labels."""
        return METHODS[self.settings.method.name].needs

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources whose own label spaces the method distils from: each gets a head."""
        choice = self.settings.method
        shares = METHODS[choice.name].shares(self.material.alphas, choice.options)
        return tuple(name for name in self.material.source_probs if name in shares)

    @property
    def unlabeled(self) -> Rows:
        """The rows without a label that the method learns from; none for one that asks nothing about them."""
        return self.material.unlabeled if self.needs - {"frozen"} else self.material.unlabeled[:0]

    @property
    def stream(self) -> Stream | None:
        """The shards that the method learns from; as `unlabeled`."""
        return self.material.stream if self.needs - {"frozen"} else None

    @property
    def streamed(self) -> int:
        """How many of a step's unlabeled images come from shards: as many as the share of images that are there."""
        if self.stream is None or not len(self.stream):
            return 0
        return round(self.settings.batch_unlabeled * len(self.stream) / (len(self.stream) + len(self.unlabeled)))

    def loss(self) -> Callable[[Batch], Terms]:
        """The method with its weights and options in place."""
        loss = METHODS[self.settings.method.name].loss
        return partial(loss, alphas=self.material.alphas, **bound_options(loss, self.settings.method.options))


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One step's images [B, px, px, 3], labels [B] (-1 without), pseudo-labels per source [B, K], teacher [B, C].

    The labeled images come first. Of several processes each has its share: `places` and `places_U` say where its
    images stand in the batch and among the unlabeled ones, and `all_UHWC` are those of all processes, kept for the
    methods that draw a strong view for several images at a time.
    """

    images_BHWC: Tensor
    labels_B: Tensor
    source_probs: dict[str, Tensor]
    teacher_BC: Tensor | None = None
    places: Places | None = None
    places_U: Places | None = None
    all_UHWC: Tensor | None = None


def draw_rows(rows: Rows, count: int, seed: int, step: int, stream: int) -> Rows:
    """The `count` rows of a step: a new shuffle each epoch, a function of its arguments alone.

    Args:
        rows: what to draw from, [N]; without rows nothing is drawn.
        count: rows a step; more than N wraps into the next epoch's shuffle.
        seed: of the run.
        step: from 0.
        stream: keeps two draws of one step apart.
    """
    if not len(rows) or not count:
        return rows[:0]
    first = step * count
    epochs = range(first // len(rows), (first + count - 1) // len(rows) + 1)
    order = np.concatenate([np.random.default_rng([seed, stream, epoch]).permutation(rows) for epoch in epochs])
    offset = first - epochs[0] * len(rows)
    return order[offset : offset + count]


def draw_batch(task: Task, step: int) -> Drawn:
    """The images, labels and cached pseudo-labels of one step; a method without sources gets labeled images only.

    Of several processes each gets its share of the labeled and of the unlabeled images.
    """
    material, settings, team = task.material, task.settings, processes.team()
    at = draw_rows(np.arange(len(material.labeled)), settings.batch_labeled, task.seed, step, stream=1)
    extra = draw_rows(task.unlabeled, settings.batch_unlabeled - task.streamed, task.seed, step, stream=2)
    first, second = team.share(len(at)), team.share(len(extra) + task.streamed)
    # a strong view is drawn for several images at a time, so each process draws it for all of them
    everyones = team.size > 1 and "weak" in task.needs
    behind = slice(*(max(0, end - len(extra)) for end in (second.start, second.stop)))
    streamed = _streamed(task, step, slice(0, task.streamed) if everyones else behind)
    own = streamed.at(behind) if streamed and everyones else streamed
    drawn = gather(
        task, material.labeled[at[first]], labels=material.labels[at[first]], unlabeled=extra[second], streamed=own
    )
    if team == processes.ALONE:
        return drawn
    total = len(extra) + task.streamed
    mine = torch.cat([torch.arange(len(at))[first], len(at) + torch.arange(total)[second]])
    whole = _pixels(material.images_NHWC, extra, streamed) if everyones else None
    return replace(
        drawn,
        places=Places(total=len(at) + total, mine=mine),
        places_U=Places(total=total, mine=torch.arange(total)[second]),
        all_UHWC=whole,
    )


def _streamed(task: Task, step: int, own: slice) -> Streamed | None:
    if task.stream is None or own.start >= own.stop:
        return None
    return task.stream.draw(step, task.streamed, own)


def _pixels(images_NHWC: Images, rows: Rows, streamed: Streamed | None) -> Tensor:
    stored = torch.from_numpy(np.asarray(images_NHWC[rows]))
    return torch.cat([stored, torch.from_numpy(streamed.images_UHWC)]) if streamed else stored


def gather(task: Task, labeled: Rows, labels: Rows, unlabeled: Rows, streamed: Streamed | None = None) -> Drawn:
    """Rows of the train store as a batch, the labeled ones first, and what was streamed behind them."""
    rows = np.concatenate([labeled, unlabeled])
    padded = np.concatenate([labels, np.full(len(unlabeled) + (len(streamed.images_UHWC) if streamed else 0), -1)])
    probs = {name: np.asarray(task.material.source_probs[name][rows]) for name in task.sources}
    known = task.material.teacher_NC if "teacher" in task.needs else None
    teacher = None if known is None else np.asarray(known[rows])
    if streamed:
        probs = {name: np.concatenate([one, streamed.source_probs[name]]) for name, one in probs.items()}
        if teacher is not None and streamed.teacher_UC is not None:
            teacher = np.concatenate([teacher, streamed.teacher_UC])
    return Drawn(
        images_BHWC=_pixels(task.material.images_NHWC, rows, streamed),
        labels_B=torch.from_numpy(padded),
        source_probs={name: torch.from_numpy(one) for name, one in probs.items()},
        teacher_BC=None if teacher is None else torch.from_numpy(teacher),
    )


def training_batches(task: Task, images: int = 512, batch: int = 64) -> Iterator[Tensor]:
    """Some of the images that the method trains on, as they are: normalised [B, 3, px, px], for batch statistics."""
    material, chosen = task.material, np.random.default_rng([task.seed, 3])
    rows = chosen.permutation(np.concatenate([material.labeled, task.unlabeled]))
    # of stored and streamed images as many as a step takes of each
    taken = images * task.streamed // (task.settings.batch_labeled + task.settings.batch_unlabeled)
    rows = rows[: images - taken]
    parts = (np.asarray(material.images_NHWC[part]) for part in np.array_split(rows, math.ceil(len(rows) / batch)))
    streamed = np.array_split(task.stream.sample[:taken], math.ceil(taken / batch)) if task.stream and taken else []
    for part in itertools.chain(parts, streamed):
        images_BHWC = torch.from_numpy(part).to(default_device())
        yield normalise(images_BHWC, task.spec.mean, task.spec.std).contiguous(memory_format=torch.channels_last)
