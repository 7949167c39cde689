"""Run programs with a time limit, and turn their failures into one-line errors."""

from __future__ import annotations

import contextlib
import errno
import shlex
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from edgedistill.errors import EdgeDistillError
from edgedistill.measurements import Device
from edgedistill.run import interrupts

OnLine = Callable[[str], None]
Completed = subprocess.CompletedProcess[str]
INVENTORY = "deploy/devices.yaml"
MAKE_ROOM = f"make room there, or name another workdir in {INVENTORY}"
NO_PROGRAM = f"install it there, or name another in {INVENTORY} (python:)"
NO_PYTHON = f"name a Python 3.8 or later in {INVENTORY} (python:)"  # of a program that does and says nothing
# text in the stderr of a program on the device -> fix; the first match applies
REMEDIES = (
    ("no space left on device", MAKE_ROOM),
    ("disk quota exceeded", MAKE_ROOM),
    ("file system is read-only", f"name another workdir in {INVENTORY}"),
    ("read-only file system", f"name another workdir in {INVENTORY}"),
)
# free space to leave for the agent's report and its parts
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
    """Run a program to its end, passing on each line of its stdout as it comes.

    It runs in a session of its own: it has no terminal to ask for a password on, and none of its processes outlives it.

    Args:
        argv: the program and its arguments.
        timeout_s: seconds after which it is ended, with every process it started.
        on_line: called with every line of stdout, without its line end.
        cwd: the folder it runs in.
        env: its environment, by default this process's.
        stdin: its input; with subprocess.PIPE it is empty, and ends when this process does.
        to: a file that stdout is written to, instead of `on_line` and the return value.

    Raises:
        OSError: the program cannot be started.
        subprocess.TimeoutExpired: it was still running after `timeout_s` seconds, and was ended.
    """
    # stderr goes to a file, since a second full pipe would stop the program while this side reads the first
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        with interrupts.child_session(
            argv,
            cwd=cwd,
            env=env,
            stdin=stdin,
            stdout=to or subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            errors="replace",
        ) as process:
            expired = threading.Event()
            timer = threading.Timer(timeout_s, _expire, (process, expired))
            timer.daemon = True  # an exception before the block below would leave it running
            timer.start()
            try:
                lines = _lines(process.stdout, on_line)
                process.wait()
            finally:
                timer.cancel()
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
    interrupts.end_session(process)


@contextlib.contextmanager
def error_context(device: Device, action: str, fix: str = "") -> Iterator[None]:
    """Turn errors of the operating system and timeouts into one line.

    Args:
        device: the device that the action concerns.
        action: what was being done, for the message.
        fix: the fix to suggest, unless the disk is full.

    Raises:
        EdgeDistillError: instead of OSError and subprocess.TimeoutExpired.
    """
    try:
        yield
    except subprocess.TimeoutExpired as error:
        raise EdgeDistillError(f"{device.name}: {action}: still running after {error.timeout:.0f} s, ended") from None
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise EdgeDistillError(f"{device.name}: {action}: {error.strerror}", MAKE_ROOM if full else fix) from None


def require_success(device: Device, argv: Sequence[str], completed: Completed) -> Completed:
    """Return `completed` if the program exited with 0.

    Raises:
        EdgeDistillError: it did not; the message holds its exit code and its stderr.
    """
    if completed.returncode == 0:
        return completed
    message = one_line(completed.stderr)
    # sh(1): 127 a program that is not there, 126 one that cannot be executed
    fix = NO_PROGRAM if completed.returncode in (126, 127) else remedy(completed.stderr, REMEDIES)
    fix, message = fix or ("" if message else NO_PYTHON), message or "nothing on stderr"
    raise EdgeDistillError(f"{device.name}: `{shlex.join(argv)}` exited with {completed.returncode}: {message}", fix)


def remedy(message: str, remedies: Sequence[tuple[str, str]]) -> str:
    """The fix of the first (sign, fix) whose sign is in the message, or ""."""
    return next((fix for sign, fix in remedies if sign in message.lower()), "")


def one_line(text: str, max_chars: int = 600) -> str:
    """Join a program's output into one line, only its end if longer than `max_chars`; frames of @ are removed."""
    lines = [
        " ".join(line.strip("@ \t").split()) if line.startswith("@") else " ".join(line.split())
        for line in text.splitlines()
    ]
    line = " ".join(line for line in lines if line)
    return line if len(line) <= max_chars else "... " + line[-max_chars:]


def disk_full_error(device: Device, free_bytes: int, needed_bytes: int) -> EdgeDistillError:
    """The error of a device without enough free space for the files to copy."""
    place = device.workdir or "its work folder"
    room = f"{free_bytes / 1e6:.1f} MB free, {needed_bytes / 1e6:.1f} MB needed"
    return EdgeDistillError(f"{device.name}: no space left in {place}: {room}", MAKE_ROOM)


def altered_error(device: Device, names: Sequence[str]) -> EdgeDistillError:
    """The error of files that differ on the device from what was sent."""
    problem = f"{', '.join(names)}: not on the device as sent (sha256 differs), so nothing was run"
    return EdgeDistillError(f"{device.name}: {problem}", "try again; if it happens again, check its disk and memory")
