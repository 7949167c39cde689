"""The bundle's list of checksums, as the host reads it before anything of the bundle is used."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from random import Random

from edgedistill.devices.bundle import verify_bundle
from tests.fuzz.kind import Kind
from tests.fuzz.mutations import COMMANDS, PLACES, TEXTS, changed_text, mangled

FILES = {"agent.pyz": b"agent", "images.npy": b"images", "student.fp32.onnx": b"graph"}
LINES = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in FILES.items()]
TOKENS = (*TEXTS, *COMMANDS, *PLACES, "  ", " *", "\\", "sub/agent.pyz", "agent.pyz", "pipe", "f" * 64, "F" * 64)


def prepare(folder: Path) -> None:
    """The files of the list, and one outside of the folder."""
    for name, content in FILES.items():
        (folder / name).write_bytes(content)


def make(random: Random) -> bytes:
    """A changed list."""
    if random.random() < 0.3:
        return mangled(random, "".join(LINES).encode())
    return changed_text(random, "".join(LINES), TOKENS).encode("utf-8", "surrogatepass")


def cases() -> list[bytes]:
    """Crafted lists: empty, in other encodings, names outside of the folder."""
    texts = [
        "",
        "\n",
        LINES[0] * 2,
        *(f"{'0' * 64}  {place}\n" for place in (*PLACES, "sub/../agent.pyz", "a\0b", "x" * 5000)),
    ]
    return [
        *(text.encode() for text in texts),
        "".join(LINES).encode("utf-16"),
        b"\xff\xfe",
        bytes(range(256)),
        b"\x80\x04\x95",
    ]


def call(path: Path) -> None:
    """Verify the bundle; only files in its folder may be named."""
    for file in verify_bundle(path.parent):
        assert file.parent == path.parent and file.is_file()


KIND = Kind(
    name="bundle",
    file="SHA256SUMS",
    valid=lambda: "".join(LINES).encode(),
    make=make,
    call=call,
    inputs=500,
    prepare=prepare,
    cases=functools.cache(cases),
)
