"""One measurement at a time on a device: two at once would each slow the other down, and neither would know."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from typing import Callable, Iterator

from .job import AgentError

LOCK = os.path.join(tempfile.gettempdir(), "edgedistill-agent.lock")
MOST_S = 3600.0


@contextlib.contextmanager
def alone(say: Callable[[str], None], most_s: float = MOST_S, pause_s: float = 1.0) -> Iterator[None]:
    """Wait until no other agent measures here, and keep others waiting; the lock ends with the process.

    Args:
        say: told once that there is somebody to wait for.
        most_s: how long to wait, in seconds.
        pause_s: between two looks.

    Raises:
        AgentError: exit code 1; the other one was still measuring after `most_s` seconds.
    """
    try:
        import fcntl
    except ImportError:  # a system without file locks: nobody else can be seen
        yield
        return
    handle = _open()
    try:
        until = time.monotonic() + most_s
        waited = False
        while not _locked(fcntl, handle):
            if time.monotonic() >= until:
                raise AgentError(f"another measurement has been running here for {most_s:.0f} s; end it", exit_code=1)
            if not waited:
                say("waiting for another measurement on this device")
            waited = True
            time.sleep(pause_s)
        yield
    finally:
        os.close(handle)


def _open() -> int:
    try:
        # another user's file in a sticky folder cannot be opened with O_CREAT, even to be read
        return os.open(LOCK, os.O_RDONLY)
    except FileNotFoundError:
        handle = os.open(LOCK, os.O_RDONLY | os.O_CREAT, 0o644)
        os.fchmod(handle, 0o644)  # whatever the umask: others must be able to wait for us
        return handle


def _locked(fcntl: object, handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # type: ignore[attr-defined]
    except BlockingIOError:
        return False
    return True
