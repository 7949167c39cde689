"""Shuffled images from shards with source and teacher outputs; each step's images depend on (seed, step) alone.

The shards of an epoch come in random order and are grouped into windows of several shards; images are shuffled within
a window. While one window is trained on, the next is read and decoded.
N images of all shards, W of them in a window, U of them that are returned, R of one shard, K classes of a source,
C target classes.
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
from edgedistill.data.images import View
from edgedistill.data.shards import Shard, forget, pixel_hash, squares
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
        return StreamBatch(
            images_UHWC=self.images_UHWC[positions],
            source_probs={name: probs_UK[positions] for name, probs_UK in self.source_probs.items()},
            teacher_UC=None if self.teacher_UC is None else self.teacher_UC[positions],
        )


@dataclass(frozen=True, kw_only=True)
class Window:
    """Part of an epoch's order: the shard and the row in it of each image, [W]; the first has position `begin`.

    Positions count the images of all epochs from 0.
    """

    begin: int
    shard_indices: Rows
    rows: Rows

    @property
    def end(self) -> int:
        """The position after the last image."""
        return self.begin + len(self.rows)


@dataclass(frozen=True, kw_only=True)
class StepShare:
    """The share of this process in each step of `count` images: places `start` up to `stop` within the step."""

    count: int
    start: int
    stop: int

    def indices_in(self, window: Window) -> Rows:
        """Indices of the window's images that belong to this process, ascending."""
        places_W = np.arange(window.begin, window.end) % self.count
        return np.flatnonzero((places_W >= self.start) & (places_W < self.stop))


@dataclass(eq=False, kw_only=True)
class Stream:
    """The images of all shards at one input size, in an order drawn from a seed.

    Args:
        shards: the shards.
        view: how images are decoded.
        px: the student's input size in pixels.
        seed: seed of the order.
        mixed: least number of images in a window.
        sources: sources whose probabilities are returned.
        teacher: function from each source's features to the teacher's probabilities, if the method needs them.
    """

    shards: tuple[LabeledShard, ...]
    view: View
    px: int
    seed: int
    mixed: int
    sources: tuple[str, ...] = ()
    teacher: Callable[[Mapping[str, Arrays]], Arrays] | None = None
    _windows_by_epoch: dict[int, list[Window]] = field(default_factory=dict, repr=False)
    # this process's images of the current and the next window, by the window's begin
    batches_ahead: dict[tuple[int, StepShare], Future[StreamBatch]] = field(default_factory=dict, repr=False)
    _read_lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _ahead_lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __len__(self) -> int:
        """N."""
        return sum(len(labeled.rows) for labeled in self.shards)

    def draw(self, step: int, count: int, own: slice | None = None) -> StreamBatch:
        """Return the `count` images of a step (from 0), or those of them at the places `own`.

        Raises:
            EdgeDistillError: a shard can no longer be read.
        """
        own = own or slice(0, count)
        share = StepShare(count=count, start=own.start, stop=own.stop)
        begin, end = step * count + share.start, step * count + share.stop
        batches = []
        for window in self._windows_from(begin):  # a step may begin in one window and end in the next
            if window.begin >= end:
                break
            own_positions = share.indices_in(window) + window.begin
            selected = np.flatnonzero((own_positions >= begin) & (own_positions < end))
            if len(selected):
                batches.append(self._window_batch(window, share).select(selected))
        return _joined(batches)

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
        if epoch not in self._windows_by_epoch:
            recent = {earlier: windows for earlier, windows in self._windows_by_epoch.items() if earlier >= epoch - 1}
            self._windows_by_epoch = {**recent, epoch: self._draw_windows(epoch)}
        return self._windows_by_epoch[epoch]

    def _draw_windows(self, epoch: int) -> list[Window]:
        """Draw an epoch's order: of the shards, then of the images in each window."""
        random = np.random.default_rng([self.seed, SHUFFLE, epoch])
        order = random.permutation(len(self.shards)).tolist()
        windows: list[Window] = []
        begin, members = epoch * len(self), list[int]()
        for index in order:
            members.append(index)
            if sum(len(self.shards[member].rows) for member in members) < self.mixed and index != order[-1]:
                continue
            rows = np.concatenate([self.shards[member].rows for member in members])
            shard_indices = np.repeat(members, [len(self.shards[member].rows) for member in members])
            shuffle = random.permutation(len(rows))
            windows.append(Window(begin=begin, shard_indices=shard_indices[shuffle], rows=rows[shuffle]))
            begin, members = windows[-1].end, []
        return [window for window in windows if len(window.rows)]

    def _window_batch(self, window: Window, share: StepShare) -> StreamBatch:
        """Return this process's images of a window, in its order, and begin to read the next window."""
        following = next(self._windows_from(window.end))
        needed = {(needed_window.begin, share): needed_window for needed_window in (window, following)}
        # two at a time where a GPU's batches are gathered ahead, and a pruned candidate's thread has not ended yet
        with self._ahead_lock:
            for key in [key for key in self.batches_ahead if key not in needed]:
                self.batches_ahead.pop(key).cancel()
            for key, needed_window in needed.items():
                if key not in self.batches_ahead:
                    self.batches_ahead[key] = self._read_async(needed_window, share.indices_in(needed_window))
            return self.batches_ahead[window.begin, share].result()

    def _read_async(self, window: Window, indices: Rows) -> Future[StreamBatch]:
        """Start `_read` in a daemon thread, so that a read that hangs does not keep the process from exiting."""
        future: Future[StreamBatch] = Future()

        def read() -> None:
            with self._read_lock:  # one window after the other: the trainer waits for the first
                if not future.set_running_or_notify_cancel():
                    return
                try:
                    future.set_result(self._read(window, indices))
                except BaseException as error:
                    future.set_exception(error)

        threading.Thread(target=read, daemon=True).start()
        return future

    def _read(self, window: Window, indices: Rows) -> StreamBatch:
        """Decode some images of a window, and collect their source and teacher outputs."""
        images_UHWC = np.empty((len(indices), self.px, self.px, 3), dtype=np.uint8)
        source_probs: dict[str, Arrays] = {}
        teacher_UC: Arrays | None = None
        shard_indices_U, rows_U = window.shard_indices[indices], window.rows[indices]
        for shard_index in np.unique(shard_indices_U):
            labeled = self.shards[shard_index]
            selected = np.flatnonzero(shard_indices_U == shard_index)
            rows = rows_U[selected]
            images_UHWC[selected] = self._decode(labeled.shard, rows)
            for name in self.sources:
                probs_RK = labeled.outputs[name].rows(rows)[1]
                assert probs_RK is not None, "the method takes shares of sources with classes alone"
                if name not in source_probs:
                    source_probs[name] = np.empty((len(indices), probs_RK.shape[1]), probs_RK.dtype)
                source_probs[name][selected] = probs_RK
            if self.teacher is not None:
                features = {name: np.asarray(outputs.features_ND[rows]) for name, outputs in labeled.outputs.items()}
                teacher_RC = self.teacher(features)
                if teacher_UC is None:
                    teacher_UC = np.empty((len(indices), teacher_RC.shape[1]), np.float32)
                teacher_UC[selected] = teacher_RC
        return StreamBatch(images_UHWC=images_UHWC, source_probs=source_probs, teacher_UC=teacher_UC)

    def _decode(self, shard: Shard, rows: Rows) -> Arrays:
        """Decode the images of some rows of a shard, [R, px, px, 3]; the shard is dropped if their pixels changed."""
        numbers = shard.sample_numbers[rows].tolist()
        hashes = dict(zip(numbers, shard.hashes[rows].tolist(), strict=True))
        # the outputs, and the check that the image is not in val or test, are valid for these pixels only
        resized = {
            number: images.resize(square, self.px)
            for number, _, square in squares(shard.url, self.view, frozenset(numbers))
            if square is not None and pixel_hash(square) == hashes[number]
        }
        if len(resized) < len(rows):
            forget(shard)
            problem = f"{len(rows) - len(resized)} of its images are not those that were labeled"
            raise EdgeDistillError(f"{shard.url}: {problem}", "run again: the shard is then labeled anew")
        return np.stack([resized[number] for number in numbers])


def _joined(batches: list[StreamBatch]) -> StreamBatch:
    if len(batches) == 1:
        return batches[0]
    teacher_parts = [batch.teacher_UC for batch in batches if batch.teacher_UC is not None]
    return StreamBatch(
        images_UHWC=np.concatenate([batch.images_UHWC for batch in batches]),
        source_probs={
            name: np.concatenate([batch.source_probs[name] for batch in batches]) for name in batches[0].source_probs
        },
        teacher_UC=np.concatenate(teacher_parts) if teacher_parts else None,
    )
