"""Images without a label in WebDataset shards: tar files, read from end to end, never unpacked.

What is kept of a shard is small: which of its images can be decoded, their pixels' hashes, and what each source says of
them. Images are decoded anew each time they are needed.
N images of a shard, P the side of the stored square in pixels.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import re
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image

from edgedistill.data import image_store, images
from edgedistill.data.listing import SUFFIXES, UNLABELED, Items, hash_lines, stamp
from edgedistill.errors import EdgeDistillError, InputError
from edgedistill.recipe.schema import Unlabeled
from edgedistill.run.files import atomic, digest, read_json, write_json

Squares = NDArray[np.uint8]
SCHEME = re.compile(r"^([a-z0-9]+):", re.IGNORECASE)
REMOTE = ("http", "https", "gs", "hf")  # what webdataset reads
FIX = 'pip install "edgedistill[scale]"'
AT_ONCE = 64  # images in the hands of the decoding threads


@dataclass(frozen=True, kw_only=True)
class View:
    """How a shard's images are decoded: to squares of so many pixels, cropped or squashed."""

    px: int
    fit: images.Fit


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A shard that was read once: `count` samples, those in `corrupt` not decodable; `folder` holds the rest."""

    url: str
    folder: Path
    count: int
    corrupt: tuple[str, ...]
    data_hash: str

    @property
    def kept(self) -> NDArray[np.int64]:
        """Which of its samples are images: ascending numbers in the order of the tar file, [N]."""
        return np.asarray(np.load(self.folder / "kept.npy"))

    @property
    def hashes(self) -> NDArray[np.bytes_]:
        """sha256 of each stored square's pixels, in hex, [N]."""
        return np.asarray(np.load(self.folder / "hashes.npy"))


def addresses(section: Unlabeled, base: Path) -> list[str]:
    """The shards that a recipe names, in its order, with braces expanded; paths start from `base`.

    Raises:
        InputError: a file is not there, an address is of another kind, a shard is named twice, or webdataset is not
            installed.
    """
    try:
        from braceexpand import braceexpand  # webdataset's own; the whole of it would load torch
    except ImportError:
        raise InputError("unlabeled.kind: wds needs the package webdataset", FIX) from None
    given = [section.urls] if isinstance(section.urls, str) else section.urls
    found = []
    try:
        wanted = list(itertools.chain.from_iterable(braceexpand(url) for url in given))
    except ValueError as error:
        raise InputError(f"unlabeled.urls: {error}", "close every brace") from None
    if not wanted:
        raise InputError("unlabeled.urls: names no shard", "name one at least, or leave `unlabeled` out")
    for one in wanted:
        scheme = SCHEME.match(one)
        if scheme and scheme[1].lower() not in REMOTE:  # "pipe:" among them: a recipe starts no programs
            raise InputError(
                f"unlabeled.urls: {one}: {scheme[1]} is no kind of address that is read here",
                f"name files, or addresses by {', '.join(REMOTE)}",
            )
        if scheme:
            found.append(one)
        else:
            path = base / one
            stamp(path)
            found.append(str(path))
    if len(set(found)) < len(found):
        raise InputError("unlabeled.urls: a shard is named twice", "name each once")
    return found


def fingerprint(section: Unlabeled, base: Path) -> str:
    """Changes when a shard's name does, and for one on disk when its size or time of change does."""
    return hash_lines(_mark(url) for url in addresses(section, base))


def _mark(url: str) -> str:
    return url if SCHEME.match(url) else f"{url}\0{stamp(url)}"


def samples(url: str) -> Iterator[tuple[str, bytes]]:
    """Name and encoded image of every sample of a shard; no bytes where a sample holds no image.

    Raises:
        EdgeDistillError: the shard cannot be read.
    """
    import webdataset as wds

    try:
        with contextlib.closing(wds.gopen(url)) as stream:
            files = ({**one, "__url__": url} for one in wds.tariterators.tar_file_iterator(stream))
            for sample in wds.tariterators.group_by_keys(files):
                pictures = (value for name, value in sample.items() if f".{name.rpartition('.')[2]}" in SUFFIXES)
                yield sample["__key__"], next(pictures, b"")
    except EdgeDistillError:
        raise
    except Exception as error:  # of tarfile, of the address's own reader, of curl
        what = " ".join(str(error).split())[:200] or type(error).__name__
        raise EdgeDistillError(f"{url}: cannot be read ({what})", "what was done is kept; run again") from None


def squares(url: str, view: View, wanted: Container[int] | None = None) -> Iterator[tuple[int, str, Squares | None]]:
    """Number, name and decoded square [P, P, 3] of the samples that are wanted, in order; None for a broken one."""
    numbered = ((at, *one) for at, one in enumerate(samples(url)) if wanted is None or at in wanted)
    with ThreadPoolExecutor() as pool:  # Pillow gives up Python's lock while it decodes
        while some := list(itertools.islice(numbered, AT_ONCE)):
            names, encoded = [name for _, name, _ in some], [data for _, _, data in some]
            items = Items(names=names, labels_N=np.full(len(some), UNLABELED), load=functools.partial(_opened, encoded))
            done = pool.map(functools.partial(image_store.decode, items, px=view.px, fit=view.fit), range(len(some)))
            yield from ((at, name, square) for (at, name, _), (square, _) in zip(some, done, strict=True))


def _opened(encoded: Sequence[bytes], at: int) -> Image.Image:
    return Image.open(io.BytesIO(encoded[at]))


def open_shard(url: str, view: View, cache: Path) -> tuple[Shard, Callable[[], Decoded]]:
    """Read a shard once; from the cache where that was done before.

    Args:
        url: of the shard.
        view: how it is decoded.
        cache: folder of all caches.

    Returns:
        The shard, and a function that gives its decoded images, which are read when it is first called. They are all
        in memory, at times twice.

    Raises:
        InputError: more than one in a hundred of its samples are no images.
        EdgeDistillError: it cannot be read.
    """
    folder = cache / "shards" / digest([_mark(url), view.px, view.fit])[:32]
    folder.mkdir(parents=True, exist_ok=True)
    decoded = functools.cache(lambda: _decoded(url, view))
    with FileLock(folder / ".lock"):
        if not (folder / "shard.json").is_file():
            _write_facts(url, folder, decoded())
        facts = read_json(folder / "shard.json")
    shard = Shard(
        url=url, folder=folder, count=facts["count"], corrupt=tuple(facts["corrupt"]), data_hash=facts["data_hash"]
    )
    return shard, decoded


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A shard in memory: squares [N, P, P, 3] of the samples `kept`, the names of the others, and how many in all."""

    squares: Squares
    kept: NDArray[np.int64]
    corrupt: tuple[str, ...]
    count: int


def mark(square: Squares) -> bytes:
    """sha256 of a square's pixels, in hex."""
    return sha256(square.tobytes()).hexdigest().encode()


def _decoded(url: str, view: View) -> Decoded:
    found = list(squares(url, view))
    kept = [(at, square) for at, _, square in found if square is not None]
    if not kept:
        raise InputError(f"{url}: holds no images", "name shards with jpg, png or webp files")
    return Decoded(
        squares=np.stack([square for _, square in kept]),
        kept=np.array([at for at, _ in kept]),
        corrupt=tuple(name for _, name, square in found if square is None),
        count=len(found),
    )


def _write_facts(url: str, folder: Path, decoded: Decoded) -> None:
    if len(decoded.corrupt) > image_store.MAX_CORRUPT * decoded.count:
        named = ", ".join(decoded.corrupt[: image_store.NAMED])
        raise InputError(
            f"{url}: {len(decoded.corrupt)} of {decoded.count} samples are no images: {named}",
            "repair the shard, or leave it out",
        )
    hashes = np.array([mark(one) for one in decoded.squares], dtype="S64")
    for name, array in (("kept.npy", decoded.kept), ("hashes.npy", hashes)):
        with atomic(folder / name) as temporary, temporary.open("wb") as stream:
            np.save(stream, array)
    facts = {
        "url": url,
        "count": decoded.count,
        "corrupt": decoded.corrupt,
        "data_hash": sha256(hashes.tobytes()).hexdigest(),
    }
    write_json(folder / "shard.json", facts)


def fresh_rows(shards: Sequence[Shard], hashes: NDArray[np.bytes_]) -> list[NDArray[np.int64]]:
    """Per shard the rows whose pixels have none of `hashes`, and that no row before them has."""
    marks = [shard.hashes for shard in shards]
    everything = np.concatenate(marks)
    new = np.zeros(len(everything), dtype=bool)
    new[np.unique(everything, return_index=True)[1]] = True
    new &= ~np.isin(everything, hashes)
    return [np.flatnonzero(part) for part in np.split(new, np.cumsum([len(one) for one in marks])[:-1])]
