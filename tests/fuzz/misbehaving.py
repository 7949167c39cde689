"""A kind whose calls do what no product call may do: the first line of an input names the misdeed."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from edgedistill.errors import InputError
from tests.fuzz.kind import CANARY, Kind

MESSAGES = {"two lines": "a\nb", "long": "x" * 5000, "cursor": "a\x1b[31mb", "empty": " "}


class _PlainError(Exception):
    """An error whose message is as it is given."""


def _import(path: Path) -> None:
    (path.parent / "module_of_input.py").write_text("", encoding="utf-8")
    sys.path.insert(0, str(path.parent))
    try:
        importlib.invalidate_caches()
        importlib.import_module("module_of_input")
    finally:
        sys.path.remove(str(path.parent))


def _swallowed(path: Path) -> None:
    with contextlib.suppress(BaseException):
        os.system("true")


def _say(path: Path) -> None:
    raise _PlainError(MESSAGES[path.read_text(encoding="utf-8")])


def _refuse(path: Path) -> None:
    raise InputError("no")


MISDEEDS: dict[str, Callable[[Path], object]] = {
    "program": lambda path: subprocess.run(["true"], check=False),
    "shell": lambda path: os.system("true"),
    "spawn": lambda path: os.posix_spawn("/bin/true", ["true"], {}),
    "network": lambda path: socket.create_connection(("127.0.0.1", 9)),
    "address": lambda path: socket.getaddrinfo("example.invalid", 80),
    "write": lambda path: (path.parents[1] / "elsewhere").write_bytes(b""),
    "folder": lambda path: (path.parents[1] / "elsewhere").mkdir(),
    "rename": lambda path: path.rename(path.parents[1] / "elsewhere"),
    "remove": lambda path: Path("/nonexistent/file").unlink(missing_ok=True),
    "pickle": lambda path: pickle.loads(pickle.dumps(os.getcwd)),
    "code": lambda path: eval(f"{CANARY!r} and 3"),
    "module": _import,
    "library": lambda path: ctypes.CDLL(str(path)),
    "swallowed": _swallowed,
    "canary": lambda path: (path.parent / CANARY).touch(),
    "traceback": lambda path: {}["key"],
    "exit": lambda path: sys.exit(3),
    "hang": lambda path: time.sleep(60),
    "crash": lambda path: ctypes.string_at(0),
    **dict.fromkeys(MESSAGES, _say),
    "refused": _refuse,
    "accepted": lambda path: (path.parent / "own").write_bytes(b""),
}


def call(path: Path) -> None:
    """Do what the input says."""
    MISDEEDS[path.read_text(encoding="utf-8")](path)


KIND = Kind(
    name="misbehaving",
    file="misdeed.txt",
    valid=lambda: b"accepted",
    make=lambda random: b"accepted",
    call=call,
    inputs=2,
    errors=(InputError, _PlainError),
    cases=lambda: [name.encode() for name in MISDEEDS],
)
