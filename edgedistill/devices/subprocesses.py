"""Programs run to their end, bounded in time, and what they say when they fail as one line for a person."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from edgedistill.errors import EdgeDistillError
from edgedistill.records import Device

OnLine = Callable[[str], None]
Completed = subprocess.CompletedProcess[str]
INVENTORY = "deploy/devices.yaml"
MAKE_ROOM = f"make room there, or name another workdir in {INVENTORY}"
NO_PROGRAM = f"install it there, or name another in {INVENTORY} (python:)"
# what a program on the device says -> what a person can do about it; the first that fits
REMEDIES = (
    ("no space left on device", MAKE_ROOM),
    ("disk quota exceeded", MAKE_ROOM),
    ("file system is read-only", f"name another workdir in {INVENTORY}"),
    ("read-only file system", f"name another workdir in {INVENTORY}"),
)
# left free beside what is copied: the agent's report and its parts
PATIENCE_S = 3.0  # between asking a program to end and ending it
SPARE_BYTES = 16 << 20


def stream(
    argv: Sequence[str],
    timeout_s: float,
    on_line: OnLine | None = None,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    to: IO[bytes] | None = None,
) -> Completed:
    """Run a program to its end, handing on each line of its stdout as it comes.

    It gets a session of its own: no terminal to ask for a password on, and nothing of it outlives its time.

    Args:
        argv: the program and its arguments.
        timeout_s: after so many seconds it is ended, with every process it started.
        on_line: gets every line of stdout, without its end.
        cwd: the folder it runs in.
        env: its environment, if another than ours.
        stdin: what it reads; with subprocess.PIPE nothing comes, and it ends when this side does.
        to: a file that gets stdout as it is, instead of `on_line` and the result.

    Raises:
        OSError: the program cannot be started.
        subprocess.TimeoutExpired: it was still running after `timeout_s` seconds, and was ended.
    """
    # stderr goes to a file, since a second full pipe would stop the program while this side reads the first
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        with subprocess.Popen(
            argv,
            cwd=cwd,
            env=env,
            stdin=stdin,
            stdout=to or subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        ) as process:
            expired = threading.Event()
            timer = threading.Timer(timeout_s, _expire, (process, expired))
            timer.start()
            try:
                lines = _lines(process.stdout, on_line)
                process.wait()
            finally:
                timer.cancel()
                if process.returncode is None:
                    _end(process)
        if expired.is_set():
            raise subprocess.TimeoutExpired(list(argv), timeout_s)
        errors.seek(0)
        return subprocess.CompletedProcess(list(argv), process.returncode, "".join(lines), errors.read())


def _lines(stdout: IO[str] | None, on_line: OnLine | None) -> list[str]:
    lines = []
    for line in stdout or ():
        lines.append(line)
        if on_line is not None:
            on_line(line.rstrip("\n"))
    return lines


def _expire(process: subprocess.Popen[str], expired: threading.Event) -> None:
    expired.set()
    _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """First asked, then made to: a program that only speaks for another, as of a container, has to end that one."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE_S)
        os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def said(device: Device, what: str, fix: str = "") -> Iterator[None]:
    """Errors of the operating system, and time run out, as one line for a person.

    Raises:
        EdgeDistillError: instead of OSError and subprocess.TimeoutExpired.
    """
    try:
        yield
    except subprocess.TimeoutExpired as error:
        raise EdgeDistillError(f"{device.name}: {what}: still running after {error.timeout:.0f} s, ended") from None
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise EdgeDistillError(f"{device.name}: {what}: {error.strerror}", MAKE_ROOM if full else fix) from None


def checked(device: Device, argv: Sequence[str], done: Completed) -> Completed:
    """What a program returned, when it returned 0.

    Raises:
        EdgeDistillError: it did not; the message holds its exit code and what it said on stderr.
    """
    if done.returncode == 0:
        return done
    told = one_line(done.stderr) or "nothing on stderr"
    # sh(1): 127 a program that is not there, 126 one that cannot be executed
    fix = NO_PROGRAM if done.returncode in (126, 127) else remedy(done.stderr, REMEDIES)
    raise EdgeDistillError(f"{device.name}: `{shlex.join(argv)}` exited with {done.returncode}: {told}", fix)


def remedy(told: str, remedies: Sequence[tuple[str, str]]) -> str:
    """The first fix of (sign, fix) whose sign is in what was told, or none."""
    return next((fix for sign, fix in remedies if sign in told.lower()), "")


def one_line(text: str, most: int = 600) -> str:
    """What a program wrote, as one line of at most about `most` characters, the end of it; frames of @ are left out."""
    lines = [
        " ".join(line.strip("@ \t").split()) if line.startswith("@") else " ".join(line.split())
        for line in text.splitlines()
    ]
    told = " ".join(line for line in lines if line)
    return told if len(told) <= most else "... " + told[-most:]


def disk_full(device: Device, free_bytes: int, needed_bytes: int) -> EdgeDistillError:
    """The error of a device without the room for what is to be copied."""
    place = device.workdir or "its work folder"
    room = f"{free_bytes / 1e6:.1f} MB free, {needed_bytes / 1e6:.1f} MB needed"
    return EdgeDistillError(f"{device.name}: no space left in {place}: {room}", MAKE_ROOM)


def altered(device: Device, names: Sequence[str]) -> EdgeDistillError:
    """The error of files that are not, on the device, what was sent."""
    what = f"{', '.join(names)}: not on the device as sent (sha256 differs), so nothing was run"
    return EdgeDistillError(f"{device.name}: {what}", "try again; if it happens again, check its disk and memory")
