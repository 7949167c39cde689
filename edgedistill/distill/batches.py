"""The training data of a student, and the batch of one training step.

A step's images, their order and their division among processes depend on (seed, step) alone.
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

from edgedistill.data.pixels import normalize
from edgedistill.distill.augment import BatchPositions
from edgedistill.distill.methods import METHODS, Batch, Need, Terms
from edgedistill.distill.stream import Stream, StreamBatch
from edgedistill.distributed import processes
from edgedistill.distributed.device import default_device
from edgedistill.recipe.options import bound_options
from edgedistill.recipe.schema import Distill
from edgedistill.records import StudentSpec

Images = NDArray[np.uint8]
Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Material:
    """The training data of a student, at its own input size.

    Attributes:
        images_NHWC: the train store, uint8 [N, px, px, 3]; rows index it.
        labeled: rows with a label.
        labels: target classes of `labeled`.
        unlabeled: rows without a label.
        val: labeled rows held out for validation.
        val_labels: target classes of `val`.
        source_probs: pseudo-labels of each source with classes for the whole train store, [N, K].
        alphas: weight of each of these sources.
        held_out: rows without a label that are not trained on; the held-out loss is computed on them and on val.
        teacher_NC: the teacher's probabilities of the target classes for every image, for the methods that need them.
        stream: further images without a label, read from shards.
        class_weights_C: weights of the labels in the label loss; None where they count alike.
        label_shift_C: added to the logits in the label loss; None without a prior.
        units_L: the group or set of copies of each of `labeled`; None where each is alone.
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
    class_weights_C: NDArray[Any] | None = None
    label_shift_C: NDArray[Any] | None = None
    units_L: Rows | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """All that is constant over the steps: the student, its training data, the settings, the length and the seed."""

    spec: StudentSpec
    material: Material
    settings: Distill
    steps: int
    seed: int

    @property
    def needs(self) -> frozenset[Need]:
        """What the method needs besides the labels."""
        return METHODS[self.settings.method.name].needs

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources whose own label spaces the method distills from; each gets a head."""
        choice = self.settings.method
        shares = METHODS[choice.name].shares(self.material.alphas, choice.options)
        return tuple(name for name in self.material.source_probs if name in shares)

    @property
    def unlabeled(self) -> Rows:
        """The rows without a label that the method learns from; none for a method that does not use them."""
        return self.material.unlabeled if self.needs - {"frozen"} else self.material.unlabeled[:0]

    @property
    def stream(self) -> Stream | None:
        """The shards that the method learns from; None for a method that does not use unlabeled images."""
        return self.material.stream if self.needs - {"frozen"} else None

    @property
    def streamed_per_step(self) -> int:
        """The number of a step's unlabeled images that come from shards, in proportion to the images in shards."""
        if self.stream is None or not len(self.stream):
            return 0
        return round(self.settings.batch_unlabeled * len(self.stream) / (len(self.stream) + len(self.unlabeled)))

    def loss(self) -> Callable[[Batch], Terms]:
        """The method's loss function with source weights and options bound."""
        loss = METHODS[self.settings.method.name].loss
        return partial(loss, alphas=self.material.alphas, **bound_options(loss, self.settings.method.options))


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """One step's images [B, px, px, 3], labels [B] (-1 without), pseudo-labels per source [B, K], teacher [B, C].

    The labeled images come first; `class_weights_C` and `label_shift_C` are for their loss. With several processes each
    holds its share: `positions` and `positions_U` are the positions of its images in the batch and among the unlabeled
    images. `all_UHWC` holds the unlabeled images of all processes, for the methods that draw a strong view for several
    images at a time.
    """

    images_BHWC: Tensor
    labels_B: Tensor
    source_probs: dict[str, Tensor]
    teacher_BC: Tensor | None = None
    positions: BatchPositions | None = None
    positions_U: BatchPositions | None = None
    all_UHWC: Tensor | None = None
    class_weights_C: Tensor | None = None
    label_shift_C: Tensor | None = None

    @property
    def labeled(self) -> int:
        """The number of labeled images."""
        return int((self.labels_B >= 0).sum())

    def images_on(self, device: torch.device) -> StepBatch:
        """The batch with its images on a device; a GPU copies them from pinned memory while the CPU goes on."""
        return replace(
            self,
            images_BHWC=self.images_BHWC.to(device, non_blocking=True),
            all_UHWC=None if self.all_UHWC is None else self.all_UHWC.to(device, non_blocking=True),
        )

    def select(self, indices: Tensor) -> StepBatch:
        """The images at some positions, with their labels and pseudo-labels."""
        return replace(
            self,
            images_BHWC=self.images_BHWC[indices],
            labels_B=self.labels_B[indices],
            source_probs={name: probs_BK[indices] for name, probs_BK in self.source_probs.items()},
            teacher_BC=None if self.teacher_BC is None else self.teacher_BC[indices],
        )


def draw_rows(rows: Rows, count: int, seed: int, step: int, stream: int) -> Rows:
    """Draw the `count` rows of a step from a shuffle that is new each epoch; a function of its arguments alone.

    Args:
        rows: the rows to draw from, [N]; the draw is empty if there are none.
        count: rows per step; more than N continues into the next epoch's shuffle.
        seed: seed of the run.
        step: number of the step, from 0.
        stream: number that separates the draws of one step.
    """
    if not len(rows) or not count:
        return rows[:0]
    first = step * count
    epochs = range(first // len(rows), (first + count - 1) // len(rows) + 1)
    order = np.concatenate([np.random.default_rng([seed, stream, epoch]).permutation(rows) for epoch in epochs])
    offset = first - epochs[0] * len(rows)
    return order[offset : offset + count]


def draw_batch(task: Task, step: int) -> StepBatch:
    """Draw the images, labels and cached pseudo-labels of one step.

    A method without sources gets labeled images only. With several processes each gets its share of the labeled and of
    the unlabeled images.
    """
    material, settings, team = task.material, task.settings, processes.team()
    labeled_indices = draw_rows(np.arange(len(material.labeled)), settings.batch_labeled, task.seed, step, stream=1)
    unlabeled_rows = draw_rows(
        task.unlabeled, settings.batch_unlabeled - task.streamed_per_step, task.seed, step, stream=2
    )
    labeled_share, unlabeled_share = (
        team.share(len(labeled_indices)),
        team.share(len(unlabeled_rows) + task.streamed_per_step),
    )
    # a strong view is drawn for several images at a time, so each process draws it for all of them
    draws_for_all = team.size > 1 and "weak" in task.needs
    own_streamed = slice(*(max(0, end - len(unlabeled_rows)) for end in (unlabeled_share.start, unlabeled_share.stop)))
    stream_batch = _streamed(task, step, slice(0, task.streamed_per_step) if draws_for_all else own_streamed)
    own_stream_batch = stream_batch.select(own_streamed) if stream_batch and draws_for_all else stream_batch
    step_batch = gather(
        task,
        material.labeled[labeled_indices[labeled_share]],
        labels=material.labels[labeled_indices[labeled_share]],
        unlabeled=unlabeled_rows[unlabeled_share],
        streamed=own_stream_batch,
    )
    if team == processes.SINGLE_PROCESS:
        return step_batch
    total = len(unlabeled_rows) + task.streamed_per_step
    indices = torch.cat(
        [torch.arange(len(labeled_indices))[labeled_share], len(labeled_indices) + torch.arange(total)[unlabeled_share]]
    )
    all_UHWC = _pixels(material.images_NHWC, unlabeled_rows, stream_batch) if draws_for_all else None
    return replace(
        step_batch,
        positions=BatchPositions(total=len(labeled_indices) + total, indices=indices),
        positions_U=BatchPositions(total=total, indices=torch.arange(total)[unlabeled_share]),
        all_UHWC=all_UHWC,
    )


def _streamed(task: Task, step: int, own_positions: slice) -> StreamBatch | None:
    if task.stream is None or own_positions.start >= own_positions.stop:
        return None
    return task.stream.draw(step, task.streamed_per_step, own_positions)


def _pixels(images_NHWC: Images, rows: Rows, streamed: StreamBatch | None) -> Tensor:
    stored = torch.from_numpy(np.asarray(images_NHWC[rows]))
    return torch.cat([stored, torch.from_numpy(streamed.images_UHWC)]) if streamed else stored


def gather(task: Task, labeled: Rows, labels: Rows, unlabeled: Rows, streamed: StreamBatch | None = None) -> StepBatch:
    """Collect rows of the train store into a batch: the labeled, then the unlabeled, then the streamed images."""
    rows = np.concatenate([labeled, unlabeled])
    padded = np.concatenate([labels, np.full(len(unlabeled) + (len(streamed.images_UHWC) if streamed else 0), -1)])
    probs = {name: np.asarray(task.material.source_probs[name][rows]) for name in task.sources}
    teacher_NC = task.material.teacher_NC if "teacher" in task.needs else None
    teacher = None if teacher_NC is None else np.asarray(teacher_NC[rows])
    if streamed:
        probs = {name: np.concatenate([probs_NK, streamed.source_probs[name]]) for name, probs_NK in probs.items()}
        if teacher is not None and streamed.teacher_UC is not None:
            teacher = np.concatenate([teacher, streamed.teacher_UC])
    return StepBatch(
        images_BHWC=_pixels(task.material.images_NHWC, rows, streamed),
        labels_B=torch.from_numpy(padded),
        source_probs={name: torch.from_numpy(probs_NK) for name, probs_NK in probs.items()},
        teacher_BC=None if teacher is None else torch.from_numpy(teacher),
        class_weights_C=_float32(task.material.class_weights_C),
        label_shift_C=_float32(task.material.label_shift_C),
    )


def _float32(array: NDArray[Any] | None) -> Tensor | None:
    return None if array is None else torch.tensor(array, dtype=torch.float32)


def training_batches(task: Task, images: int = 512, batch: int = 64) -> Iterator[Tensor]:
    """Yield some of the training images without augmentation, normalized [B, 3, px, px], for batch statistics."""
    material, random = task.material, np.random.default_rng([task.seed, 3])
    rows = random.permutation(np.concatenate([material.labeled, task.unlabeled]))
    # stored and streamed images in the proportion that a step takes
    streamed_count = images * task.streamed_per_step // (task.settings.batch_labeled + task.settings.batch_unlabeled)
    rows = rows[: images - streamed_count]
    parts = (np.asarray(material.images_NHWC[part]) for part in np.array_split(rows, math.ceil(len(rows) / batch)))
    streamed = (
        np.array_split(task.stream.sample[:streamed_count], math.ceil(streamed_count / batch))
        if task.stream and streamed_count
        else []
    )
    for part in itertools.chain(parts, streamed):
        images_BHWC = torch.from_numpy(part).to(default_device())
        yield normalize(images_BHWC, task.spec.mean, task.spec.std).contiguous(memory_format=torch.channels_last)
