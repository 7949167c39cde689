"""What a call may not do, whatever its input: start a program, use the network, run the input as code, write elsewhere.

Python's audit events (PEP 578) tell of it. A hook cannot be taken out again, so it is installed once and idle outside
`watch`. What native code does by itself (a system call of a decoder) raises no event.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType
from typing import Any

from tests.fuzz.kind import CANARY

PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty")
NETWORK = ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname", "socket.bind")
# event: the positions of the paths that it changes, and of the folder's descriptor that they are relative to
CHANGES = {
    "os.mkdir": ((0,), 2),
    "os.remove": ((0,), 1),
    "os.rmdir": ((0,), 1),
    "os.rename": ((0, 1), None),
    "os.link": ((1,), None),
    "os.symlink": ((1,), 2),
    "os.truncate": ((0,), None),
    "os.chmod": ((0,), 2),
    "os.chown": ((0,), 3),
    "os.utime": ((0,), 3),
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class ForbiddenError(BaseException):
    """A call did what no input may make it do; no `except Exception` on the way may hide it."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """The folder that may be written to, the libraries that were loaded before, and what was forbidden so far."""

    folder: str
    libraries: str
    violations: list[str] = field(default_factory=list)

    def inside(self, path: Any, folder_descriptor: Any = None) -> bool:
        """Whether a path of an audit event is in the folder; a file that is open already is no path."""
        if isinstance(path, int) or path is None:
            return True
        base = ""
        if isinstance(folder_descriptor, int) and folder_descriptor >= 0:
            base = str(Path(f"/proc/self/fd/{folder_descriptor}").readlink())
        absolute = os.path.realpath(os.path.join(base, os.fsdecode(path)))  # noqa: PTH118 - of bytes, too
        return absolute in (os.devnull, self.folder) or absolute.startswith(f"{self.folder}/")


_watches: list[Watch] = []  # the active one
_installed: list[bool] = []


@contextlib.contextmanager
def watch(folder: Path) -> Iterator[Watch]:
    """Forbid it all in this block, but for writing below `folder`; temporary files are made there."""
    if not _installed:
        _installed.append(True)
        sys.addaudithook(_on_event)
    libraries = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    active = Watch(folder=os.path.realpath(folder), libraries=libraries)
    # a module that is imported late would write its bytecode beside itself
    settings = tempfile.tempdir, sys.dont_write_bytecode
    tempfile.tempdir, sys.dont_write_bytecode = active.folder, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _watches.append(active)
            try:
                yield active
            finally:
                _watches.clear()
    finally:
        tempfile.tempdir, sys.dont_write_bytecode = settings


def _on_event(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watches:
        return
    active = _watches[0]
    rule = RULES.get(event)
    if rule is None or not rule(active, *arguments):
        return
    _watches.clear()  # the report itself reads files
    try:
        violation = f"{event}{tuple(str(argument)[:200] for argument in arguments)}"
        active.violations.append(violation)
    finally:
        _watches.append(active)
    raise ForbiddenError(violation)


def _writes(active: Watch, path: Any, mode: Any, flags: Any) -> bool:
    return isinstance(flags, int) and bool(flags & WRITING) and not active.inside(path)


def _loads(active: Watch, name: Any) -> bool:
    return name is not None and os.path.basename(os.fsdecode(name)) not in active.libraries  # noqa: PTH119


def _imports(active: Watch, module: Any, filename: Any, *rest: Any) -> bool:
    return isinstance(filename, str) and active.inside(filename)


def _compiles(active: Watch, source: Any, filename: Any) -> bool:
    # text that is only parsed (`ast.literal_eval`) is compiled, too, and is not executed
    return _is_file_inside(active, filename)


def _executes(active: Watch, code: Any) -> bool:
    return isinstance(code, CodeType) and (
        CANARY in repr((code.co_names, code.co_consts)) or _is_file_inside(active, code.co_filename)
    )


def _is_file_inside(active: Watch, filename: Any) -> bool:
    return isinstance(filename, str | bytes) and os.path.isabs(filename) and active.inside(filename)  # noqa: PTH117


def _changes(paths: tuple[int, ...], descriptor: int | None) -> Callable[..., bool]:
    def rule(active: Watch, *arguments: Any) -> bool:
        folder = arguments[descriptor] if descriptor is not None else None
        return not all(active.inside(arguments[position], folder) for position in paths)

    return rule


RULES: dict[str, Callable[..., bool]] = {
    **{event: lambda *_: True for event in (*PROGRAMS, *NETWORK, "pickle.find_class")},
    **{event: _changes(*positions) for event, positions in CHANGES.items()},
    "open": _writes,
    "ctypes.dlopen": _loads,
    "import": _imports,
    "compile": _compiles,
    "exec": _executes,
}
