"""Images without a label in WebDataset shards: tar files, read from start to end, never unpacked.

The cache of a shard is small: which of its images can be decoded, their pixels' hashes, and each source's outputs on
them. The images are decoded again each time they are needed.
N images of a shard, P the side of the stored square in pixels.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import re
import tarfile
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image

from edgedistill.agent.pictures import NeedsLimitsError, open_picture, reason
from edgedistill.data import image_store, images
from edgedistill.data.images import View
from edgedistill.data.limits import Decoder
from edgedistill.data.listing import RULES, SUFFIXES, Items, hash_lines, stamp
from edgedistill.errors import EdgeDistillError, InputError
from edgedistill.labels.draws import UNLABELED
from edgedistill.recipe.data_section import Unlabeled
from edgedistill.run.files import atomic, read_json, write_json

Squares = NDArray[np.uint8]
SCHEME = re.compile(r"^([a-z0-9]+):", re.IGNORECASE)
REMOTE = ("http", "https", "gs", "hf")  # schemes that webdataset reads
FIX = 'pip install "edgedistill[scale]"'
FIX_NAMES = "name shards with jpg, png or webp files"
MAX_SHARDS = 1_000_000
MAX_IMAGE_BYTES, MAX_OTHER_BYTES = 1 << 30, 1 << 36  # of a file in a shard
META = re.compile(r"__[^/]*__($|/)")  # webdataset's own files in a shard
INTEGERS = re.compile(r"(-?\d{1,15})\.\.(-?\d{1,15})(?:\.\.-?(\d{1,15}))?")  # inside braces
DECODE_BATCH = 64  # images decoded in parallel at a time


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A shard that was read once: `count` samples, of which `corrupt` cannot be decoded; `folder` is its cache."""

    url: str
    folder: Path
    count: int
    corrupt: tuple[str, ...]
    data_hash: str

    @property
    def sample_numbers(self) -> NDArray[np.int64]:
        """Numbers of the samples that are images, ascending, in the order of the tar file, [N]."""
        return np.asarray(np.load(self.folder / "kept.npy"))

    @property
    def hashes(self) -> NDArray[np.bytes_]:
        """sha256 of each stored square's pixels, in hex, [N]."""
        return np.asarray(np.load(self.folder / "hashes.npy"))


def addresses(section: Unlabeled, base: Path) -> list[str]:
    """The shards of a recipe, in its order, with braces expanded; paths are relative to `base`.

    Raises:
        InputError: a file is missing, an address has another scheme, a shard is named twice, or webdataset is not
            installed.
    """
    try:
        from braceexpand import braceexpand  # a dependency of webdataset; webdataset itself imports torch
    except ImportError:
        raise InputError("unlabeled.kind: wds needs the package webdataset", FIX) from None
    patterns = [section.urls] if isinstance(section.urls, str) else section.urls
    locations = []
    if sum(map(_address_count, patterns)) > MAX_SHARDS:
        raise InputError(f"unlabeled.urls: names more than {MAX_SHARDS} shards", "check the numbers in braces")
    try:
        urls = list(itertools.chain.from_iterable(braceexpand(url) for url in patterns))
    except ValueError as error:
        raise InputError(f"unlabeled.urls: {error}", "close every brace") from None
    except RecursionError:
        raise InputError("unlabeled.urls: braces are nested too deeply", "name the shards in a list") from None
    if not urls:
        raise InputError("unlabeled.urls: names no shard", "name one at least, or leave `unlabeled` out")
    for url in urls:
        scheme = SCHEME.match(url)
        if scheme and scheme[1].lower() not in REMOTE:  # "pipe:" too: a recipe must not start programs
            raise InputError(
                f"unlabeled.urls: {url}: {scheme[1]} is not a supported kind of address",
                f"name files, or addresses by {', '.join(REMOTE)}",
            )
        if scheme:
            locations.append(url)
        else:
            path = base / url
            stamp(path)
            locations.append(str(path))
    if len(set(locations)) < len(locations):
        raise InputError("unlabeled.urls: a shard is named twice", "name each once")
    return locations


def _address_count(pattern: str) -> int:
    """The number of addresses that a pattern with braces stands for: braceexpand itself has no bound."""
    counts = [[0, 1, 0]]  # of each open brace: alternatives before the last comma, those since, where it begins
    escaped = False
    for place, letter in enumerate(pattern):
        if escaped or letter == "\\":
            escaped = not escaped
        elif letter == "{":
            counts.append([0, 1, place + 1])
        elif letter == "," and len(counts) > 1:
            counts[-1][:2] = sum(counts[-1][:2]), 1
        elif letter == "}" and len(counts) > 1:
            before, last, begin = counts.pop()
            integers = INTEGERS.fullmatch(pattern[begin:place])
            if integers:
                start, end, step = (int(number or 1) for number in integers.groups())
                last = abs(end - start) // (step or 1) + 1
            counts[-1][1] *= before + last
    return counts[0][1]


def fingerprint(section: Unlabeled, base: Path) -> str:
    """Hash of the shards' names, and of the size and modification time of those on disk."""
    return hash_lines([RULES, *(_url_stamp(url) for url in addresses(section, base))])


def forget(shard: Shard) -> None:
    """Have a shard whose images are others labeled anew; steps that have read it have other keys from then on."""
    path = _changes_file(shard.url, shard.folder.parent)
    write_json(path, {"times": _times_changed(path) + 1})
    (shard.folder / "shard.json").unlink(missing_ok=True)


def changes(section: Unlabeled, base: Path, cache: Path) -> str:
    """A hash of how often images of the shards turned out to be others than those labeled; "" for never.

    The address of a shard that is not on disk says nothing of its images.
    """
    if not (cache / "shards/changed").is_dir():
        return ""
    files = [_changes_file(url, cache / "shards") for url in addresses(section, base)]
    times = list(map(_times_changed, files))
    return hash_lines(times) if any(times) else ""


def _times_changed(file: Path) -> int:
    return int(read_json(file, f"delete {file}")["times"]) if file.is_file() else 0


def _changes_file(url: str, folder: Path) -> Path:
    return folder / "changed" / f"{hash_lines([url])[:32]}.json"


def _url_stamp(url: str) -> list[str | int]:
    return [url] if SCHEME.match(url) else [url, *stamp(url)]


def samples(url: str) -> Iterator[tuple[str, bytes]]:
    """Yield name and encoded image of every sample of a shard; empty bytes if a sample holds no image.

    Raises:
        InputError: a sample has several images.
        EdgeDistillError: the shard cannot be read.
    """
    import webdataset as wds

    try:
        with contextlib.closing(wds.gopen(url)) as stream:
            for sample in wds.tariterators.group_by_keys(_members(url, stream), lcase=False):
                yield sample["__key__"], _picture(url, sample)
    except EdgeDistillError:
        raise
    except Exception as error:  # from tarfile, the reader of the scheme, or curl
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        again = "run again" if SCHEME.match(url) else "copy it anew, or take it out of unlabeled.urls"
        raise EdgeDistillError(f"{url}: cannot be read ({reason})", f"{again}; finished work is kept") from None


def _members(url: str, stream: Any) -> Iterator[dict[str, Any]]:
    """Yield the files of a tar stream as webdataset groups them; those that are no images are not read.

    webdataset's own iterator reads files of any size; a sparse or compressed one takes a few bytes of the shard.
    """
    with tarfile.open(fileobj=stream, mode="r|*") as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined, unused-ignore]  # else every header stays in memory
            is_image = Path(member.name).suffix.lower() in SUFFIXES
            most = MAX_IMAGE_BYTES if is_image else MAX_OTHER_BYTES
            if member.size > most:  # tarfile goes on to the claimed end even where the stream has ended
                raise InputError(
                    f"{url}: {member.name} has {member.size} bytes, and {most} are the most", "leave it out"
                )
            if member.isreg() and not META.match(member.name):
                file = tar.extractfile(member) if is_image else None
                yield {"fname": member.name, "data": file.read() if file else b"", "__url__": url}


def _picture(url: str, sample: Mapping[str, Any]) -> bytes:
    """The image of a sample, of {extension: content}: `png` before `mask.png`; empty bytes if there is none."""
    dotted = [extension for extension in sample if f".{extension.rpartition('.')[2].lower()}" in SUFFIXES]
    plain = [extension for extension in dotted if "." not in extension]
    extensions = plain or dotted
    if len(extensions) > 1:
        first, second = (f"{sample['__key__']}.{extension}" for extension in extensions[:2])
        raise InputError(
            f"{url}: {first} and {second} are two images of one sample: in WebDataset the files whose names are equal"
            " up to the first dot are one sample",
            "keep one image a sample" if plain else "rename the images without dots before the suffix",
        )
    return bytes(sample[extensions[0]]) if extensions else b""


def squares(url: str, view: View, selected: Container[int] | None = None) -> Iterator[tuple[int, str, Squares | None]]:
    """Yield number, name and decoded square [P, P, 3] of the selected samples, in order; None for a broken one."""
    numbered = (
        (number, *sample) for number, sample in enumerate(samples(url)) if selected is None or number in selected
    )
    with ThreadPoolExecutor() as pool:  # Pillow releases the GIL while it decodes
        while batch := list(itertools.islice(numbered, DECODE_BATCH)):
            names, encoded = [name for _, name, _ in batch], [content for _, _, content in batch]
            items = Items(
                names=names, labels_N=np.full(len(batch), UNLABELED), load=functools.partial(_opened, encoded)
            )
            decoded = pool.map(Decoder(items, view, view.limits), range(len(batch)))
            yield from ((number, name, square) for (number, name, _), (square, _) in zip(batch, decoded, strict=True))


def require_image(url: str, view: View) -> None:
    """Decode the first sample of a shard.

    Raises:
        InputError: it is no image. One of more than 8 bits is, also where the view has no limits yet.
        EdgeDistillError: the shard cannot be read.
    """
    name, content = next(samples(url), ("its first sample", b""))
    try:
        with open_picture(io.BytesIO(content)) as image:
            images.to_square(image, view)
    except NeedsLimitsError:
        return
    except MemoryError:
        raise
    except Exception as error:  # on broken bytes Pillow raises errors of many types
        raise InputError(f"{url}: {name} is no image ({reason(error)})", FIX_NAMES) from None


def _opened(encoded: Sequence[bytes], row: int) -> Image.Image:
    return open_picture(io.BytesIO(encoded[row]))


def open_shard(url: str, view: View, cache: Path) -> tuple[Shard, Callable[[], Decoded]]:
    """Open a shard from the cache; read it on the first call.

    Args:
        url: address of the shard.
        view: how it is decoded.
        cache: folder of all caches.

    Returns:
        The shard, and a function that returns its decoded images and reads them on its first call. All images are in
        memory, for a moment twice.

    Raises:
        InputError: more than one in a hundred of its samples are no images, or a sample has several.
        EdgeDistillError: it cannot be read.
    """
    folder = cache / "shards" / hash_lines([RULES, _url_stamp(url), view.px, view.fit, view.limits])[:32]
    folder.mkdir(parents=True, exist_ok=True)
    decoded = functools.cache(lambda: _decoded(url, view))
    with FileLock(folder / ".lock"):
        if not (folder / "shard.json").is_file():
            _write_facts(url, folder, decoded())
        facts = read_json(folder / "shard.json", f"delete {folder}; it is written anew")
    shard = Shard(
        url=url, folder=folder, count=facts["count"], corrupt=tuple(facts["corrupt"]), data_hash=facts["data_hash"]
    )
    return shard, decoded


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A shard in memory: squares [N, P, P, 3] of the decodable samples, names of the others, number of all samples."""

    squares: Squares
    sample_numbers: NDArray[np.int64]
    corrupt: tuple[str, ...]
    count: int


def pixel_hash(square: Squares) -> bytes:
    """sha256 of a square's pixels, in hex."""
    return sha256(square.tobytes()).hexdigest().encode()


def _decoded(url: str, view: View) -> Decoded:
    numbered = list(squares(url, view))
    images = [(number, square) for number, _, square in numbered if square is not None]
    if not images:
        raise InputError(f"{url}: holds no images", FIX_NAMES)
    return Decoded(
        squares=np.stack([square for _, square in images]),
        sample_numbers=np.array([number for number, _ in images]),
        corrupt=tuple(name for _, name, square in numbered if square is None),
        count=len(numbered),
    )


def _write_facts(url: str, folder: Path, decoded: Decoded) -> None:
    if len(decoded.corrupt) > image_store.MAX_CORRUPT * decoded.count:
        examples = ", ".join(decoded.corrupt[: image_store.MAX_LISTED])
        raise InputError(
            f"{url}: {len(decoded.corrupt)} of {decoded.count} samples are no images: {examples}",
            "repair the shard, or leave it out",
        )
    hashes = np.array([pixel_hash(square) for square in decoded.squares], dtype="S64")
    for name, array in (("kept.npy", decoded.sample_numbers), ("hashes.npy", hashes)):
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
    """Rows per shard whose pixel hash is not in `hashes` and does not occur in an earlier row."""
    hashes_by_shard = [shard.hashes for shard in shards]
    all_hashes = np.concatenate(hashes_by_shard)
    fresh = np.zeros(len(all_hashes), dtype=bool)
    fresh[np.unique(all_hashes, return_index=True)[1]] = True
    fresh &= ~np.isin(all_hashes, hashes)
    return [
        np.flatnonzero(part)
        for part in np.split(fresh, np.cumsum([len(shard_hashes) for shard_hashes in hashes_by_shard])[:-1])
    ]
