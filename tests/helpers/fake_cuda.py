"""Builds fake_cudart.c, and reads and sets its state."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

KINDS = ("device", "pinned", "stream", "event", "graph", "exec")


def compile_library(folder: Path) -> Path:
    """Compile fake_cudart.c to a shared library in `folder`; skip the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here (cc): the fake libcudart cannot be built")
    library = folder / "libcudart.so.12"
    source = Path(__file__).with_name("fake_cudart.c")
    command = [compiler, "-std=c11", "-D_POSIX_C_SOURCE=200809L", "-Wall", "-Wextra", "-g", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", str(library), str(source)], check=True, timeout=120)
    return library


class Fake:
    """A loaded fake libcudart: its live objects, its call log, and the failures set for it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.library = ctypes.CDLL(str(path))
        self.library.fake_calls.restype = ctypes.c_char_p
        self.library.fake_reset()

    def fail(self, symbol: str, code: int, after: int = 0) -> None:
        """Let the call number `after` from now to `symbol` return `code`."""
        self.library.fake_fail(symbol.encode(), code, after)

    def live(self) -> dict[str, int]:
        """Numbers of objects that were created and not freed, by kind; empty if all were freed."""
        counts = {kind: self.library.fake_live(kind.encode()) for kind in KINDS}
        return {kind: count for kind, count in counts.items() if count}

    def calls(self) -> list[str]:
        """The calls since the previous `calls()`, without the queries (versions, capture states)."""
        names = self.library.fake_calls().decode().split()
        self.library.fake_forget_calls()
        return [name for name in names if "Version" not in name and "IsCapturing" not in name]
