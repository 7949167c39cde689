"""Images decoded once into a memory-mapped uint8 file: sets larger than memory work, a second run decodes nothing.

A store is a folder that is complete or absent: store.json (sizes, names of undecodable images), images.<px>.u8 (raw
pixels, NHWC), hashes.npy and kept.npy. N stored images, px the side of the stored square in pixels.
"""
# ruff: noqa: N802 - a property carries its shape suffix like every other array

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from edgedistill.agent.pictures import Limits
from edgedistill.data import images
from edgedistill.data.images import View
from edgedistill.data.limits import Decoder, Range
from edgedistill.data.listing import Items
from edgedistill.errors import EdgeDistillError, InputError
from edgedistill.run.files import atomic, digest, read_json, write_json

MAX_CORRUPT = 0.01  # largest share of images that cannot be decoded
FEW_CORRUPT, FEW_SHARE = 3, 0.1  # of a small set so many are left out, too, but no larger share
MAX_LISTED = 5  # names in an error message; all of them are in store.json
Images = Any  # uint8 [N, px, px, 3]: a memory map, or PickedImages; both are read by indexing
CHUNK = 256  # images decoded and not yet written: limits the memory of a build


@dataclass(frozen=True, kw_only=True)
class ImageStore:
    """A finished store. `kept_rows` and `hashes` are read, and the pixels mapped, on access.

    `limits` are the values that became black and white in pictures of more than 8 bits; None if it holds none.
    """

    folder: Path
    px: int
    n: int
    corrupt: tuple[str, ...]
    limits: Limits | None

    @property
    def images_NHWC(self) -> np.memmap[Any, np.dtype[np.uint8]]:
        """The stored squares, uint8 [N, px, px, 3], mapped read-only."""
        # mapped on every access (microseconds): a stored map would be pickled with all its pixels
        return _mapped(self.folder, self.px, self.n)

    @property
    def hashes(self) -> np.ndarray:
        """sha256 of each stored square's pixels, in hex, as bytes (dtype S64) [N]."""
        return np.asarray(np.load(self.folder / "hashes.npy"))

    @property
    def reasons(self) -> dict[str, str]:
        """Why each of the `corrupt` images cannot be decoded, by name."""
        return {image["name"]: image["reason"] for image in read_json(self.folder / "store.json")["corrupt"]}

    @property
    def pixels_hash(self) -> str:
        """Hash of the hashes of all stored squares, in order: a cache key of what is computed from these images."""
        return digest([sha256.hex() for sha256 in self.hashes.tolist()])

    @property
    def kept_rows(self) -> np.ndarray:
        """Rows of the listing's items that are stored, ascending, int64 [N]."""
        return np.asarray(np.load(self.folder / "kept.npy"))

    def resized(self, px: int) -> np.memmap[Any, np.dtype[np.uint8]]:
        """The images at another size, uint8 [N, px, px, 3], mapped read-only; made once from the stored squares.

        Raises:
            EdgeDistillError: the disk is full or cannot be written.
        """
        path = _pixels(self.folder, px)
        if not path.is_file():
            with disk_errors(self.folder), _only_one(self.folder):
                if not path.is_file():  # another process may have made it while this one waited
                    _write_resized(self.images_NHWC, path, px)
        return _mapped(self.folder, px, self.n)


class PickedImages:
    """Some images of an array, read when they are indexed: a view that copies no pixels."""

    def __init__(self, images_NHWC: np.ndarray, rows: np.ndarray) -> None:
        """View `images_NHWC` [N, px, px, 3] at `rows` [M]."""
        self._images_NHWC, self._rows = images_NHWC, rows
        self.shape = (len(rows), *images_NHWC.shape[1:])
        self.dtype, self.ndim = images_NHWC.dtype, images_NHWC.ndim

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        """The images at `index` of the view, read into memory."""
        return np.asarray(self._images_NHWC[self._rows[index]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All images of the view, read into memory."""
        return np.asarray(self[:], dtype=dtype)


@dataclass(frozen=True, eq=False, kw_only=True)
class Selection:
    """Some images of a store, as a store of their own; `rows` (int64 [M], ascending) index `store`."""

    store: ImageStore
    rows: np.ndarray

    @property
    def px(self) -> int:
        """Side of the stored squares in pixels."""
        return self.store.px

    @property
    def n(self) -> int:
        """Number of selected images."""
        return len(self.rows)

    @property
    def hashes(self) -> np.ndarray:
        """sha256 of each selected square's pixels, in hex, as bytes (dtype S64) [M]."""
        return np.asarray(self.store.hashes[self.rows])

    @property
    def pixels_hash(self) -> str:
        """Hash of the hashes of the selected squares, in order."""
        return digest([sha256.hex() for sha256 in self.hashes.tolist()])

    @property
    def images_NHWC(self) -> Images:
        """The selected squares, uint8 [M, px, px, 3]."""
        return self._picked(self.store.images_NHWC)

    def resized(self, px: int) -> Images:
        """The selected images at another size, uint8 [M, px, px, 3].

        Raises:
            EdgeDistillError: the disk is full or cannot be written.
        """
        return self._picked(self.store.resized(px))

    def _picked(self, images_NHWC: np.ndarray) -> Images:
        # the usual case: everything is selected, and a memory map stays one
        return images_NHWC if len(self.rows) == len(images_NHWC) else PickedImages(images_NHWC, self.rows)


def select(store: ImageStore | Selection, rows: np.ndarray) -> Selection:
    """Some images of a store or of a selection; `rows` (int64 [M], ascending) index it."""
    if isinstance(store, Selection):
        return Selection(store=store.store, rows=store.rows[rows])
    return Selection(store=store, rows=rows)


def build(
    items: Items,
    folder: Path,
    view: View,
    data_range: Range | None,
    *,
    desc: str,
    max_corrupt: float = MAX_CORRUPT,
) -> ImageStore:
    """Open the store in `folder`, or build it from all items in their order, without those that cannot be decoded.

    It is built in a temporary folder and renamed when complete; of several processes one builds it and the others wait.
    A finished store is opened without reading any image.

    Args:
        items: the images.
        folder: the store's folder.
        view: how they are decoded.
        data_range: limits of pictures of more than 8 bits; "auto" measures them over `items`, None refuses such.
        desc: label of the progress bar on stderr.
        max_corrupt: largest share of images that cannot be decoded; of a small set FEW_CORRUPT may be.

    Raises:
        InputError: more than `max_corrupt` of the images cannot be decoded, none can be, or the limits cannot be
            measured.
        EdgeDistillError: the disk is full or cannot be written; what was in `folder` before is unchanged.
    """
    store = open_store(folder)
    if store is not None:
        return store
    with disk_errors(folder), _only_one(folder):
        store = open_store(folder)
        if store is None:
            with _whole_or_nothing(folder) as workplace:
                _fill(workplace, items, Decoder(items, view, data_range), desc=desc, max_corrupt=max_corrupt)
            store = open_store(folder)
    assert store is not None, "a store that was just renamed into place is there"
    return store


def open_store(folder: Path) -> ImageStore | None:
    """The finished store in `folder`; None if there is none, or if its pixels are incomplete."""
    if not (folder / "store.json").is_file():
        return None
    facts = read_json(folder / "store.json", f"delete {folder}; it is written anew")
    store = ImageStore(
        folder=folder,
        px=facts["px"],
        n=facts["n"],
        corrupt=tuple(image["name"] for image in facts["corrupt"]),
        limits=tuple(facts["limits"]) if facts["limits"] else None,
    )
    pixels = _pixels(folder, store.px)
    complete = pixels.is_file() and pixels.stat().st_size == store.n * store.px * store.px * 3
    return store if complete else None


def _pixels(folder: Path, px: int) -> Path:
    return folder / f"images.{px}.u8"


def _mapped(folder: Path, px: int, n: int) -> np.memmap[Any, np.dtype[np.uint8]]:
    return np.memmap(_pixels(folder, px), dtype=np.uint8, mode="r", shape=(n, px, px, 3))


def _only_one(folder: Path) -> FileLock:
    folder.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(folder.with_name(f".{folder.name}.lock"))


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn an error of the disk into one line.

    Raises:
        EdgeDistillError: instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise EdgeDistillError(
            f"{folder}: the image cache cannot be written ({error.strerror or error})",
            "make room on that disk, lower data.store_px, or run elsewhere",
        ) from None


@contextlib.contextmanager
def _whole_or_nothing(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` on success; called under the lock, so leftovers are safe to remove."""
    for leftover in folder.parent.glob(f".{folder.name}.*.tmp"):
        shutil.rmtree(leftover)
    workplace = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    workplace.mkdir()
    try:
        yield workplace
        if folder.exists():  # a store whose pixels were cut short
            shutil.rmtree(folder)
        workplace.replace(folder)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


def _fill(workplace: Path, items: Items, decoder: Decoder, desc: str, max_corrupt: float) -> None:
    kept: list[int] = []
    hashes: list[bytes] = []
    corrupt: list[dict[str, str]] = []
    # written, not mapped: a full disk then raises an OSError here, not a SIGBUS elsewhere
    px = decoder.view.px
    assert isinstance(px, int), "a store holds squares"
    squares = contextlib.closing(_in_order(decoder, len(items), desc))
    with _synced(_pixels(workplace, px)) as pixels, squares as results:
        for row, (square, reason) in enumerate(results):
            if square is None:
                corrupt.append({"name": items.names[row], "reason": reason})
                _refuse_too_many(corrupt, len(items), max_corrupt)
            else:
                pixels.write(square.data)
                kept.append(row)
                hashes.append(hashlib.sha256(square.data).hexdigest().encode())
    if not kept:
        raise InputError(f"{desc}: there are no images", "check the paths in the recipe's data section")
    for name, array in (("kept.npy", np.array(kept, dtype=np.int64)), ("hashes.npy", np.array(hashes, dtype="S64"))):
        with _synced(workplace / name) as stream:
            np.save(stream, array)
    facts = {"px": px, "fit": decoder.view.fit, "n": len(kept), "corrupt": corrupt, "limits": decoder.view.limits}
    write_json(workplace / "store.json", facts)


@contextlib.contextmanager
def _synced(path: Path) -> Iterator[BinaryIO]:
    with path.open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


def _in_order(work: Callable[[int], Any], n: int, desc: str) -> Generator[Any, None, None]:
    """Yield work(0), work(1), ... from threads: Pillow releases the GIL while it decodes and resizes."""
    with ThreadPoolExecutor() as pool, tqdm(total=n, desc=desc, unit="image", disable=None, leave=False) as bar:
        for start in range(0, n, CHUNK):
            for output in pool.map(work, range(start, min(start + CHUNK, n))):
                yield output
                bar.update()


def allowed_corrupt(n: int, max_corrupt: float = MAX_CORRUPT) -> float:
    """How many of so many images may be broken: they are then left out and named."""
    return max(max_corrupt * n, min(FEW_CORRUPT, FEW_SHARE * n))


def _refuse_too_many(corrupt: Sequence[dict[str, str]], n: int, max_corrupt: float) -> None:
    allowed = allowed_corrupt(n, max_corrupt)
    if len(corrupt) <= allowed:
        return
    examples = "; ".join(f"{image['name']} ({image['reason']})" for image in corrupt[:MAX_LISTED])
    more = f"; and {len(corrupt) - MAX_LISTED} more" if len(corrupt) > MAX_LISTED else ""
    raise InputError(
        f"data: more than {int(allowed)} of {n} images cannot be decoded: {examples}{more}", "repair or remove them"
    )


def _write_resized(stored_NHWC: np.ndarray, path: Path, px: int) -> None:
    with atomic(path) as temporary, temporary.open("wb") as stream:
        for square in _in_order(
            lambda row: images.resize(stored_NHWC[row], px), len(stored_NHWC), f"resize to {px} px"
        ):
            stream.write(np.ascontiguousarray(square).data)
