"""Builds fake_cudart.c and talks to it."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

KINDS = ("device", "pinned", "stream", "event", "graph", "exec")


def compiled(folder: Path) -> Path:
    """fake_cudart.c as a shared library in `folder`; skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here (cc): the fake libcudart cannot be built")
    library = folder / "libcudart.so.12"
    source = Path(__file__).with_name("fake_cudart.c")
    command = [compiler, "-std=c11", "-D_POSIX_C_SOURCE=200809L", "-Wall", "-Wextra", "-g", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", str(library), str(source)], check=True, timeout=120)
    return library


class Fake:
    """The ledger of one loaded fake."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.library = ctypes.CDLL(str(path))
        self.library.fake_calls.restype = ctypes.c_char_p
        self.library.fake_reset()

    def fail(self, symbol: str, code: int, after: int = 0) -> None:
        """Have the call number `after` from now to `symbol` return `code`."""
        self.library.fake_fail(symbol.encode(), code, after)

    def live(self) -> dict[str, int]:
        """What was made and not given back, by kind; empty when all was."""
        counts = {kind: self.library.fake_live(kind.encode()) for kind in KINDS}
        return {kind: count for kind, count in counts.items() if count}

    def calls(self) -> list[str]:
        """Every call since the last time this was asked, without those that only ask."""
        found = self.library.fake_calls().decode().split()
        self.library.fake_forget_calls()
        return [name for name in found if "Version" not in name and "IsCapturing" not in name]
