"""Shuffled images from shards with source and teacher outputs; each step's images depend on (seed, step) alone.

The shards of an epoch come in random order and are grouped into windows of several shards; images are shuffled within
a window. While one window is trained on, the next is read and decoded.
N images of all shards, U of them per step, R rows of one shard, K classes of a source, C target classes.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedistill.data import images
from edgedistill.data.shards import Shard, View, pixel_hash, squares
from edgedistill.errors import EdgeDistillError
from edgedistill.sources.outputs import SourceOutputs

Rows = NDArray[np.int64]
Arrays = NDArray[Any]
SHUFFLE = 4  # keeps these draws apart from those of the train store


@dataclass(frozen=True, kw_only=True)
class LabeledShard:
    """A shard, the rows of it that are trained on, and each source's outputs on all its rows."""

    shard: Shard
    rows: Rows
    outputs: Mapping[str, SourceOutputs]


@dataclass(frozen=True, kw_only=True)
class StreamBatch:
    """Images [U, px, px, 3], each source's probabilities [U, K], and the teacher's [U, C] if there is one."""

    images_UHWC: Arrays
    source_probs: dict[str, Arrays]
    teacher_UC: Arrays | None

    def select(self, positions: Any) -> StreamBatch:
        """The images at some positions, with their outputs."""
        teacher = None if self.teacher_UC is None else self.teacher_UC[positions]
        return StreamBatch(
            images_UHWC=self.images_UHWC[positions],
            source_probs={name: probs_UK[positions] for name, probs_UK in self.source_probs.items()},
            teacher_UC=teacher,
        )


@dataclass(frozen=True, kw_only=True)
class Window:
    """Part of an epoch's order: `shards` and `rows` of its W images, [W], the first of them at position `begin`."""

    begin: int
    shards: Rows
    rows: Rows

    @property
    def end(self) -> int:
        """The position after the last image."""
        return self.begin + len(self.rows)


@dataclass(frozen=True, kw_only=True)
class StepShare:
    """The share of this process in each step of `count` images: positions `start` up to `stop` within the step."""

    count: int
    start: int
    stop: int

    def positions_in(self, window: Window) -> Rows:
        """Positions in the window that belong to this process, ascending."""
        positions = np.arange(window.begin, window.end) % self.count
        return np.flatnonzero((positions >= self.start) & (positions < self.stop))


@dataclass(eq=False, kw_only=True)
class Stream:
    """The images of all shards at one input size, in an order drawn from a seed.

    Args:
        parts: the shards.
        view: how images are decoded.
        px: the student's input size in pixels.
        seed: seed of the order.
        mixed: least number of images in a window.
        sources: sources whose probabilities are returned.
        teacher: function from each source's features to the teacher's probabilities, if the method needs them.
    """

    parts: tuple[LabeledShard, ...]
    view: View
    px: int
    seed: int
    mixed: int
    sources: tuple[str, ...] = ()
    teacher: Callable[[Mapping[str, Arrays]], Arrays] | None = None
    _orders: dict[int, list[Window]] = field(default_factory=dict, repr=False)
    ready_batches: dict[tuple[int, StepShare], Future[StreamBatch]] = field(default_factory=dict, repr=False)
    _read_lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __len__(self) -> int:
        """N."""
        return sum(len(part.rows) for part in self.parts)

    def draw(self, step: int, count: int, own: slice | None = None) -> StreamBatch:
        """Return the images of a step (from 0), or those at its positions `own`.

        Raises:
            EdgeDistillError: a shard can no longer be read.
        """
        share = (
            StepShare(count=count, start=own.start, stop=own.stop)
            if own
            else StepShare(count=count, start=0, stop=count)
        )
        first, end = step * count + share.start, step * count + share.stop
        parts = []
        for window in self._windows_from(first):
            if window.begin >= end:
                break
            own_positions = share.positions_in(window) + window.begin
            selected = np.flatnonzero((own_positions >= first) & (own_positions < end))
            if len(selected):
                parts.append(self._loaded(window, share).select(selected))
        return _joined(parts)

    @cached_property
    def sample(self) -> Arrays:
        """A few hundred images without augmentation, [M, px, px, 3], for batch statistics."""
        window = next(self._windows_from(0))
        return self._read(window, np.arange(min(512, len(window.rows)))).images_UHWC

    def _windows_from(self, position: int) -> Iterator[Window]:
        """Yield the windows in order, beginning with the one that holds `position`."""
        for epoch in itertools.count(position // len(self)):
            yield from (window for window in self._windows(epoch) if window.end > position)

    def _windows(self, epoch: int) -> list[Window]:
        if epoch not in self._orders:
            self._orders = {key: windows for key, windows in self._orders.items() if key >= epoch - 1}
            self._orders[epoch] = self._order(epoch)
        return self._orders[epoch]

    def _order(self, epoch: int) -> list[Window]:
        random, windows = np.random.default_rng([self.seed, SHUFFLE, epoch]), []
        window_parts: list[tuple[int, Rows]] = []
        begin = epoch * len(self)
        for place, part_index in enumerate(order := random.permutation(len(self.parts))):
            window_parts.append((int(part_index), self.parts[part_index].rows))
            if sum(len(rows) for _, rows in window_parts) >= self.mixed or place == len(order) - 1:
                shards = np.concatenate([np.full(len(rows), part_index) for part_index, rows in window_parts])
                shuffle = random.permutation(len(shards))
                window = Window(
                    begin=begin,
                    shards=shards[shuffle],
                    rows=np.concatenate([rows for _, rows in window_parts])[shuffle],
                )
                windows.append(window)
                begin, window_parts = window.end, []
        return [window for window in windows if len(window.rows)]

    def _loaded(self, window: Window, share: StepShare) -> StreamBatch:
        """Return this process's images of a window, in its order, and begin to read the next window."""
        following = next(self._windows_from(window.end))
        upcoming = {(window.begin, share): window, (following.begin, share): following}
        for key in [key for key in self.ready_batches if key not in upcoming]:
            self.ready_batches.pop(key).cancel()
        for key, ahead in upcoming.items():
            if key not in self.ready_batches:
                self.ready_batches[key] = self._read_async(ahead, share.positions_in(ahead))
        return self.ready_batches[window.begin, share].result()

    def _read_async(self, window: Window, positions: Rows) -> Future[StreamBatch]:
        """Start `_read` in a daemon thread, so that a read that hangs does not keep the process from exiting."""
        future: Future[StreamBatch] = Future()

        def read() -> None:
            with self._read_lock:  # one window after the other: the trainer waits for the first
                if not future.set_running_or_notify_cancel():
                    return
                try:
                    future.set_result(self._read(window, positions))
                except BaseException as error:
                    future.set_exception(error)

        threading.Thread(target=read, daemon=True).start()
        return future

    def _read(self, window: Window, positions: Rows) -> StreamBatch:
        """Decode the images at some positions of a window, and collect their source and teacher outputs."""
        pixels = np.empty((len(positions), self.px, self.px, 3), dtype=np.uint8)
        probs: dict[str, Arrays] = {}
        teacher: Arrays | None = None
        for part_index in np.unique(window.shards[positions]):
            part = self.parts[part_index]
            selected = np.flatnonzero(window.shards[positions] == part_index)
            rows = window.rows[positions[selected]]
            pixels[selected] = self._decoded(part.shard, rows)
            for name in self.sources:
                probs_RK = np.asarray(part.outputs[name].probs_NK[rows])
                probs.setdefault(name, np.empty((len(positions), probs_RK.shape[1]), probs_RK.dtype))[selected] = (
                    probs_RK
                )
            if self.teacher is not None:
                teacher_RC = self.teacher(
                    {name: np.asarray(outputs.features_ND[rows]) for name, outputs in part.outputs.items()}
                )
                teacher = np.empty((len(positions), teacher_RC.shape[1]), np.float32) if teacher is None else teacher
                teacher[selected] = teacher_RC
        return StreamBatch(images_UHWC=pixels, source_probs=probs, teacher_UC=teacher)

    def _decoded(self, shard: Shard, rows: Rows) -> Arrays:
        image_positions, hashes = shard.sample_numbers[rows], shard.hashes[rows].tolist()
        decoded = squares(shard.url, self.view, frozenset(image_positions.tolist()))
        marks = dict(zip(image_positions.tolist(), hashes, strict=True))
        # the outputs, and the check that the image is not in val or test, are valid for these pixels only
        resized = {
            position: images.resize(square, self.px)
            for position, _, square in decoded
            if square is not None and pixel_hash(square) == marks[position]
        }
        if len(resized) < len(rows):
            (shard.folder / "shard.json").unlink(missing_ok=True)
            problem = f"{len(rows) - len(resized)} of its images are not those that were labeled"
            raise EdgeDistillError(f"{shard.url}: {problem}", "run again: the shard is then labeled anew")
        return np.stack([resized[int(position)] for position in image_positions])


def _joined(parts: list[StreamBatch]) -> StreamBatch:
    if len(parts) == 1:
        return parts[0]
    teacher = [part.teacher_UC for part in parts if part.teacher_UC is not None]
    return StreamBatch(
        images_UHWC=np.concatenate([part.images_UHWC for part in parts]),
        source_probs={
            name: np.concatenate([part.source_probs[name] for part in parts]) for name in parts[0].source_probs
        },
        teacher_UC=np.concatenate(teacher) if teacher else None,
    )
