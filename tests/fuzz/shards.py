"""WebDataset shards: read from start to end, decoded, and their facts written to the cache."""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import lzma
import tarfile
from pathlib import Path
from random import Random

from PIL import Image

from edgedistill.data import shards
from edgedistill.recipe.data_section import Unlabeled
from tests.fuzz.kind import CANARY, Kind
from tests.fuzz.mutations import PLACES, mangled

NAMES = ("a.png", "b.png", "c.jpg", "c.txt", "d/e.webp", "f.mask.png")
ODD_NAMES = (
    *("../../x.png", "/etc/x.png", "a/../../b.png", "", ".", "..", "a" * 300 + ".png", "x" * 5000 + ".png", "a\nb.png"),
    *(
        "\x1b[31m.png",
        "\udcff.png",
        "a.",
        ".png",
        "a..png",
        "a.PNG.",
        "__meta__",
        "__x__/a.png",
        "a.png/b.png",
        "a b.png",
    ),
    *(f"$(touch {CANARY}).png", "a.pyd", "a.pickle", "a.png.pyd", "-rf.png", *PLACES),
)
TYPES = (
    *(tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE),
    *(tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, b"x", b"g", b"L", b"K", b"?"),
)


def picture(number: int, format_name: str = "png") -> bytes:
    """An encoded picture."""
    stream = io.BytesIO()
    Image.new("RGB", (12, 8), (number, 7, 3)).save(stream, format_name)
    return stream.getvalue()


PICTURES = {
    name: picture(number, {"jpg": "jpeg", "webp": "webp"}.get(name[-3:], "png")) for number, name in enumerate(NAMES)
}


def archive(random: Random, odd: float) -> bytes:
    """A tar file; with the probability `odd` a member has an odd name, type, link, size or header of PAX."""
    stream = io.BytesIO()
    form = random.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT))
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for name, content in PICTURES.items():
            member = tarfile.TarInfo(random.choice(ODD_NAMES) if random.random() < odd else name)
            member.size = len(content)
            if random.random() < odd:
                member.type = random.choice(TYPES)
                member.linkname = random.choice((*NAMES, *PLACES))
            if form == tarfile.PAX_FORMAT and random.random() < odd:
                keys = ("size", "path", "mtime", "GNU.sparse.size", "GNU.sparse.realsize", "GNU.sparse.map", "comment")
                texts = ("-1", "99999999999999", "0", "x", "", "1e9", "0,1,2,3", "nan", "../x.png")
                member.pax_headers = {random.choice(keys): random.choice(texts)}
            try:
                tar.addfile(member, io.BytesIO(content))
            except (ValueError, UnicodeError, OverflowError):  # a name that the format cannot hold
                continue
    return stream.getvalue()


def make(random: Random) -> bytes:
    """A tar file with odd members, or with changed bytes; compressed at times."""
    content = archive(random, odd=0.3) if random.random() < 0.5 else mangled(random, archive(random, odd=0.0))
    packed = random.random()
    if packed < 0.15:
        content = random.choice((gzip.compress, bz2.compress, lzma.compress))(content)
        return mangled(random, content) if random.random() < 0.5 else content
    return content


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """The header of a member, whatever size it claims."""
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def sparse(size: int) -> bytes:
    """A sparse member of `size` zeros in a few hundred bytes (GNU format 1.0)."""
    member = tarfile.TarInfo("a.png")
    sparse_map = b"1\n0\n0\n"
    member.size = 512
    member.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "a.png",
        "GNU.sparse.realsize": str(size),
    }
    return member.tobuf(tarfile.PAX_FORMAT) + sparse_map.ljust(512, b"\0") + bytes(1024)


def cases() -> list[bytes]:
    """Crafted archives: sizes that are claimed, holes, bombs, headers without end."""
    valid = KIND.valid()
    zeros = io.BytesIO()
    with gzip.open(zeros, "wb") as stream:
        stream.write(header("a.png", 2 << 30))
        for _ in range(2048):
            stream.write(bytes(1 << 20))
    return [
        *(b"", bytes(10_240), b"\x1f\x8b", b"BZh9", b"\xfd7zXZ\x00", b"PK\x03\x04", valid[:600], valid[:-1500]),
        *(header("a.png", size) for size in (1 << 20, 1 << 33, 1 << 60)),
        *(header("a.png", 1 << 40, kind) + bytes(2000) for kind in (b"x", b"g", b"L", b"K")),
        *(sparse(size) for size in (0, 1 << 20, 1 << 33, 1 << 60)),
        b"".join(header(f"{n}.txt", 0) for n in range(20_000)),
        header("a" * 90 + ".png", 5, b"L") * 500,
        zeros.getvalue(),
        valid + valid,
    ]


def call(path: Path) -> None:
    """Read the shard, decode its pictures, and write its facts to the cache, as a run does."""
    (url,) = shards.addresses(Unlabeled(kind="wds", urls=path.name), path.parent)
    shard, decoded = shards.open_shard(url, shards.View(px=8, fit="crop"), path.parent / "cache")
    assert len(shard.sample_numbers) == len(decoded().squares) <= shard.count


KIND = Kind(
    name="tar",
    file="a.tar",
    valid=lambda: archive(Random("valid"), odd=0.0),
    make=make,
    call=call,
    inputs=800,
    cases=functools.cache(cases),
)
