"""Shuffled images out of shards, with what sources and teacher say of them: each step's follow from (seed, step) alone.

The shards of an epoch come in a random order and are taken up in windows of some shards; within a window images are
shuffled. While one window is trained on, the next is read and decoded.
N images of all shards, U of them a step, K classes of a source, C target classes.
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
from edgedistill.data.shards import Shard, View, mark, squares
from edgedistill.errors import EdgeDistillError
from edgedistill.sources.outputs import SourceOutputs

Rows = NDArray[np.int64]
Arrays = NDArray[Any]
SHUFFLE = 4  # keeps these draws apart from those of the train store


@dataclass(frozen=True, kw_only=True)
class LabeledShard:
    """A shard, which of its rows take part, and what each source says of all its rows."""

    shard: Shard
    rows: Rows
    outputs: Mapping[str, SourceOutputs]


@dataclass(frozen=True, kw_only=True)
class Streamed:
    """Images [U, px, px, 3], each source's probabilities [U, K], and the teacher's [U, C] where there is one."""

    images_UHWC: Arrays
    source_probs: dict[str, Arrays]
    teacher_UC: Arrays | None

    def at(self, places: Any) -> Streamed:
        """Some of them."""
        teacher = None if self.teacher_UC is None else self.teacher_UC[places]
        return Streamed(
            images_UHWC=self.images_UHWC[places],
            source_probs={name: one[places] for name, one in self.source_probs.items()},
            teacher_UC=teacher,
        )


@dataclass(frozen=True, kw_only=True)
class Window:
    """A stretch of an epoch's order: `shards` and `rows` of its images, [W], the first of them at position `begin`."""

    begin: int
    shards: Rows
    rows: Rows

    @property
    def end(self) -> int:
        """The position behind the last."""
        return self.begin + len(self.rows)


@dataclass(frozen=True, kw_only=True)
class Share:
    """Every how many images a step begins, and which places in it this process takes: from `start` up to `stop`."""

    count: int
    start: int
    stop: int

    def of(self, window: Window) -> Rows:
        """Which places in the window are this process's, ascending."""
        places = np.arange(window.begin, window.end) % self.count
        return np.flatnonzero((places >= self.start) & (places < self.stop))


@dataclass(eq=False, kw_only=True)
class Stream:
    """The images of all shards at one input size, in the order of a seed.

    Args:
        parts: the shards.
        view: how they are decoded.
        px: the student's input size in pixels.
        seed: of the order.
        mixed: images in a window, at least.
        sources: whose probabilities are wanted.
        teacher: from each source's features to the teacher's probabilities, where that is wanted.
    """

    parts: tuple[LabeledShard, ...]
    view: View
    px: int
    seed: int
    mixed: int
    sources: tuple[str, ...] = ()
    teacher: Callable[[Mapping[str, Arrays]], Arrays] | None = None
    _orders: dict[int, list[Window]] = field(default_factory=dict, repr=False)
    _ready: dict[tuple[int, Share], Future[Streamed]] = field(default_factory=dict, repr=False)
    _turn: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __len__(self) -> int:
        """N."""
        return sum(len(one.rows) for one in self.parts)

    def draw(self, step: int, count: int, own: slice | None = None) -> Streamed:
        """The images of a step (from 0), or those of its places `own`.

        Raises:
            EdgeDistillError: a shard cannot be read any more.
        """
        share = Share(count=count, start=own.start, stop=own.stop) if own else Share(count=count, start=0, stop=count)
        first, end = step * count + share.start, step * count + share.stop
        found = []
        for window in self._windows_from(first):
            if window.begin >= end:
                break
            mine = share.of(window) + window.begin
            wanted = np.flatnonzero((mine >= first) & (mine < end))
            if len(wanted):
                found.append(self._loaded(window, share).at(wanted))
        return _joined(found)

    @cached_property
    def sample(self) -> Arrays:
        """A few hundred images as they are, [M, px, px, 3], for batch statistics."""
        window = next(self._windows_from(0))
        return self._read(window, np.arange(min(512, len(window.rows)))).images_UHWC

    def _windows_from(self, position: int) -> Iterator[Window]:
        """The windows in their order, beginning with the one that holds `position`."""
        for epoch in itertools.count(position // len(self)):
            yield from (one for one in self._windows(epoch) if one.end > position)

    def _windows(self, epoch: int) -> list[Window]:
        if epoch not in self._orders:
            self._orders = {at: known for at, known in self._orders.items() if at >= epoch - 1}
            self._orders[epoch] = self._order(epoch)
        return self._orders[epoch]

    def _order(self, epoch: int) -> list[Window]:
        random, found = np.random.default_rng([self.seed, SHUFFLE, epoch]), []
        held: list[tuple[int, Rows]] = []
        begin = epoch * len(self)
        for place, shard in enumerate(order := random.permutation(len(self.parts))):
            held.append((int(shard), self.parts[shard].rows))
            if sum(len(rows) for _, rows in held) >= self.mixed or place == len(order) - 1:
                shards = np.concatenate([np.full(len(rows), at) for at, rows in held])
                shuffle = random.permutation(len(shards))
                window = Window(
                    begin=begin, shards=shards[shuffle], rows=np.concatenate([rows for _, rows in held])[shuffle]
                )
                found.append(window)
                begin, held = window.end, []
        return [one for one in found if len(one.rows)]

    def _loaded(self, window: Window, share: Share) -> Streamed:
        """This process's images of a window, in its order; the window after it is then on its way."""
        following = next(self._windows_from(window.end))
        wanted = {(one.begin, share): one for one in (window, following)}
        for key in [key for key in self._ready if key not in wanted]:
            self._ready.pop(key).cancel()
        for key, one in wanted.items():
            if key not in self._ready:
                self._ready[key] = self._ahead(one, share.of(one))
        return self._ready[window.begin, share].result()

    def _ahead(self, window: Window, places: Rows) -> Future[Streamed]:
        """`_read` on its way. By a daemon: a process ends without waiting for an address that does not answer."""
        promised: Future[Streamed] = Future()

        def keep() -> None:
            with self._turn:  # one window after the other: the first is waited for
                if not promised.set_running_or_notify_cancel():
                    return
                try:
                    promised.set_result(self._read(window, places))
                except BaseException as error:
                    promised.set_exception(error)

        threading.Thread(target=keep, daemon=True).start()
        return promised

    def _read(self, window: Window, places: Rows) -> Streamed:
        """The images at some places of a window, decoded, and all that is known of them."""
        pixels = np.empty((len(places), self.px, self.px, 3), dtype=np.uint8)
        probs: dict[str, Arrays] = {}
        teacher: Arrays | None = None
        for at in np.unique(window.shards[places]):
            part = self.parts[at]
            here = np.flatnonzero(window.shards[places] == at)
            rows = window.rows[places[here]]
            pixels[here] = self._decoded(part.shard, rows)
            for name in self.sources:
                said = np.asarray(part.outputs[name].probs_NK[rows])
                probs.setdefault(name, np.empty((len(places), said.shape[1]), said.dtype))[here] = said
            if self.teacher is not None:
                taught = self.teacher({name: np.asarray(one.features_ND[rows]) for name, one in part.outputs.items()})
                teacher = np.empty((len(places), taught.shape[1]), np.float32) if teacher is None else teacher
                teacher[here] = taught
        return Streamed(images_UHWC=pixels, source_probs=probs, teacher_UC=teacher)

    def _decoded(self, shard: Shard, rows: Rows) -> Arrays:
        kept, known = shard.kept[rows], shard.hashes[rows].tolist()
        seen = squares(shard.url, self.view, frozenset(kept.tolist()))
        marks = dict(zip(kept.tolist(), known, strict=True))
        # what was said of an image, and that it stands in no val or test, was said of these pixels
        found = {
            at: images.resize(square, self.px)
            for at, _, square in seen
            if square is not None and mark(square) == marks[at]
        }
        if len(found) < len(rows):
            (shard.folder / "shard.json").unlink(missing_ok=True)
            what = f"{len(rows) - len(found)} of its images are not those that were labeled"
            raise EdgeDistillError(f"{shard.url}: {what}", "run again: the shard is then labeled anew")
        return np.stack([found[int(at)] for at in kept])


def _joined(parts: list[Streamed]) -> Streamed:
    if len(parts) == 1:
        return parts[0]
    teacher = [one.teacher_UC for one in parts if one.teacher_UC is not None]
    return Streamed(
        images_UHWC=np.concatenate([one.images_UHWC for one in parts]),
        source_probs={
            name: np.concatenate([one.source_probs[name] for one in parts]) for name in parts[0].source_probs
        },
        teacher_UC=np.concatenate(teacher) if teacher else None,
    )
