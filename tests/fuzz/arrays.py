"""Arrays of the bundle (.npy), as the agent reads them: never unpickled."""

from __future__ import annotations

import functools
import io
import pickle
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from edgedistill.agent.job import AgentError
from edgedistill.agent.worker import load_array
from tests.fuzz.kind import CANARY, Kind
from tests.fuzz.mutations import changed_text, mangled

TOKENS = (
    "(",
    ")",
    "{",
    "}",
    "'",
    ",",
    "3",
    "-1",
    "9" * 20,
    "True",
    "False",
    "None",
    "'|O'",
    "'<i8'",
    "'|V9'",
    "L",
    "_",
)


def saved(array: Any, **settings: Any) -> bytes:
    """The bytes of a .npy file."""
    stream = io.BytesIO()
    np.save(stream, array, **settings)
    return stream.getvalue()


def with_header(header: str, version: int = 1) -> bytes:
    """A .npy file of a few zeros with this header."""
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes((version, 0)) + length + header.encode("utf-8", "replace") + bytes(48)


VALID = saved(np.zeros((2, 2, 4, 3), dtype=np.uint8))
HEADER = "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 2, 4, 3), }\n"


def make(random: Random) -> bytes:
    """Changed bytes, or a changed header."""
    if random.random() < 0.5:
        return mangled(random, VALID)
    return with_header(changed_text(random, HEADER, TOKENS), random.choice((1, 1, 2, 3)))


class _Touch:
    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (f"touch {CANARY}",)


def cases() -> list[bytes]:
    """Pickles, zip files and headers that claim more than there is."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr("a.npy", VALID)
    shapes = ("(99999999999,)", "(-1, 4, 4, 3)", "(0, 4, 4, 3)", "()", "(2**40, 1, 1, 1)", "[2, 2]", "(1e9,)", "('a',)")
    kinds = ("'|O'", "'<f8'", "'|u1,|u1'", "[('a', '|u1')]", "'|S99999999999'", "'>u1'", "'M8[s]'", "3", f"{CANARY}()")
    headers = [HEADER.replace("(2, 2, 4, 3)", shape) for shape in shapes]
    headers += [HEADER.replace("'|u1'", kind) for kind in kinds]
    headers += [
        "",
        "{}",
        "[" * 5000,
        "(" * 200,
        f"__import__('os').system('touch {CANARY}')",
        "{'descr': " + "-" * 9000,
    ]
    return [
        *(pickle.dumps(content) for content in (_Touch(), np.zeros(3), [1, 2])),
        *(
            archive.getvalue(),
            saved(np.array([_Touch()], dtype=object)),
            b"",
            b"\x93NUMPY",
            b"\x93NUMPY\xff\xff",
            b"PK",
        ),
        *(with_header(header) for header in headers),
    ]


KIND = Kind(
    name="array",
    file="images.npy",
    valid=lambda: VALID,
    make=make,
    call=lambda path: load_array(Path(path), "uint8", 4),
    inputs=500,
    errors=(AgentError,),
    cases=functools.cache(cases),
)
