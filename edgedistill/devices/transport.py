"""Transports of files and commands to a device: copies on this machine, or OpenSSH.

Both use a folder of their own, made by `connect` and removed when it ends, unless the connection broke: then the folder
is kept for another try. OpenSSH uses the user's configuration, keys and known_hosts; it never asks for a password and
never accepts an unknown host.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from edgedistill.console import say
from edgedistill.devices.ssh import ConnectionLostError, OpenSsh
from edgedistill.devices.subprocesses import (
    INVENTORY,
    MAKE_ROOM,
    NO_PROGRAM,
    NO_PYTHON,
    SPARE_BYTES,
    Completed,
    OnLine,
    altered_error,
    disk_full_error,
    error_context,
    require_success,
    stream,
)
from edgedistill.errors import InputError
from edgedistill.measurements import Device
from edgedistill.run import interrupts
from edgedistill.run.files import digest, sha256_file

# a Jetson reboots in a minute or two; a person may have to restore its power
RECONNECT_S = 600.0
MAX_PAUSE_S = 30.0
# with a power supply too weak for the load, the device reboots each time the work begins
MAX_CONNECTION_LOSSES = 5
RESUME_HINT = "the same command goes on where it stopped"


class Transport(Protocol):
    """A folder on a device, with operations to copy files to and from it and to run programs in it."""

    def open(self) -> None:
        """Connect to the device and make the folder, or reuse the existing one."""

    def put(self, files: Sequence[Path]) -> None:
        """Copy files into the folder, flat, under their own names; unchanged files are not sent again."""

    def run(self, argv: Sequence[str], timeout_s: float, on_line: OnLine | None = None) -> Completed:
        """Run a program in the folder; `on_line` is called with every line of its stdout as it comes.

        Raises:
            EdgeDistillError: a file was altered after it was copied, the program exited with another code than 0, or it
                was still running after `timeout_s` seconds.
            ConnectionLostError: the connection to the device was lost.
        """

    def get(self, name: str, to: Path) -> None:
        """Copy a file of the folder to the path `to`."""

    def close(self, keep: bool = False) -> None:
        """Disconnect from the device, and remove the folder unless `keep`."""


@contextlib.contextmanager
def connect(device: Device, ssh_config: Path | None = None, job: str = "") -> Iterator[Transport]:
    """Open a folder on the device; it is removed on exit, unless the connection is lost or a signal interrupts a job.

    Args:
        device: the device to connect to.
        ssh_config: OpenSSH configuration file to use instead of the user's.
        job: a name from `job_name`, under which another try reuses a kept folder; by default a fresh folder, which no
            other try can find.

    Raises:
        EdgeDistillError: the device cannot be reached or its workdir cannot be written.
    """
    transport: Transport = LocalTransport(device) if device.transport == "local" else OpenSsh(device, ssh_config, job)
    keep = False
    try:
        transport.open()
        yield transport
    except (ConnectionLostError, KeyboardInterrupt):
        # a signal ends ssh, too: to another thread this looks like a lost connection
        keep = bool(job) or interrupts.exit_code() is None
        raise
    finally:
        transport.close(keep)


def job_name(device: Device, files: Sequence[Path]) -> str:
    """The folder's name for these files and this device's Python: the same job reuses its folder."""
    sums = {file.name: sha256_file(file) for file in files}
    return f"job-{digest([sums, interpreter(device)])[:16]}"


def interpreter(device: Device) -> str:
    """The Python that runs the agent on this device."""
    return device.python or (sys.executable if device.transport == "local" else "python3")


def run_with_reconnect(
    transport: Transport,
    files: Sequence[Path],
    argv: Sequence[str],
    result_path: Path,
    timeout_s: float,
    on_line: OnLine | None = None,
) -> list[str]:
    """Copy files, run a program and fetch the file it wrote, despite lost connections and reboots of the device.

    Args:
        transport: an open transport.
        files: files that the program needs; after an interruption missing ones are sent again.
        argv: a program that resumes its work when run again.
        result_path: local path for the program's output file, which has the same file name.
        timeout_s: time limit in seconds of each run of the program.
        on_line: called with every line of its stdout.

    Returns:
        The interruptions, one line each.

    Raises:
        EdgeDistillError: as `Transport.run`.
        ConnectionLostError: the connection was lost for more than RECONNECT_S seconds, or more than
            MAX_CONNECTION_LOSSES times.
    """
    losses: list[str] = []
    program_done = False
    while True:
        try:
            if not program_done:
                transport.put(files)
                transport.run(argv, timeout_s, on_line)
                program_done = True
            transport.get(result_path.name, result_path)
            return losses
        except ConnectionLostError as error:
            losses.append(error.message)
            if len(losses) > MAX_CONNECTION_LOSSES:
                fix = f"does its power supply hold under load? {RESUME_HINT}"
                raise ConnectionLostError(f"{error.message}; lost {len(losses)} times", fix) from None
            say(f"{error.message}; waiting for it to come back")
            _reconnect(transport)


def _reconnect(transport: Transport) -> None:
    deadline, pause_s = time.monotonic() + RECONNECT_S, 1.0
    while True:
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, MAX_PAUSE_S)
        try:
            transport.open()
            return
        except ConnectionLostError as error:
            if time.monotonic() > deadline:
                message = f"{error.message}; not back within {RECONNECT_S:.0f} s"
                raise ConnectionLostError(message, f"once it is back, {RESUME_HINT}") from None


class LocalTransport:
    """This machine: a folder in `workdir`, where "~" is a home folder, or in the system's temporary folder."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.folder: Path | None = None
        self.sums: dict[str, str] = {}

    def open(self) -> None:
        """Make the folder."""
        workdir = self.device.workdir
        try:
            parent = Path(workdir).expanduser() if workdir else None
            if parent is not None:
                parent.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix="edgedistill-", dir=parent)).absolute()
        except OSError as error:
            place = f"workdir {workdir}" if workdir else f"the temporary folder {tempfile.gettempdir()}"
            message = f"{self.device.name}: {place}: {error.strerror}"
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise InputError(message, MAKE_ROOM if full else f"name another workdir in {INVENTORY}") from None
        except RuntimeError:  # pathlib's, for a user without a home folder
            message = f"{self.device.name}: workdir {workdir}: there is no such home folder"
            raise InputError(message, f"name another workdir in {INVENTORY}") from None

    def put(self, files: Sequence[Path]) -> None:
        """Copy files into the folder."""
        folder = self._folder()
        for file in files:
            with error_context(self.device, f"copying {file.name}"):
                needed_bytes, free_bytes = file.stat().st_size + SPARE_BYTES, shutil.disk_usage(folder).free
                if free_bytes < needed_bytes:
                    raise disk_full_error(self.device, free_bytes, needed_bytes)
                self.sums[file.name] = sha256_file(file)
                shutil.copyfile(file, folder / file.name)

    def run(self, argv: Sequence[str], timeout_s: float, on_line: OnLine | None = None) -> Completed:
        """Run a program in the folder after checking that every file there is as it was copied."""
        folder = self._folder()
        with error_context(self.device, "checking its files"):
            changed = [name for name, sha256 in self.sums.items() if sha256_file(folder / name) != sha256]
        if changed:
            raise altered_error(self.device, changed)
        with error_context(self.device, argv[0], NO_PROGRAM):
            completed = stream(argv, timeout_s, on_line, cwd=folder)
        return require_success(self.device, argv, completed)

    def get(self, name: str, to: Path) -> None:
        """Copy a file of the folder to `to`."""
        with error_context(self.device, f"fetching {name}", NO_PYTHON):
            shutil.copyfile(self._folder() / name, to)

    def close(self, keep: bool = False) -> None:
        """Remove the folder, whatever `keep` is: a local run is not retried."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _folder(self) -> Path:
        assert self.folder is not None, "open() comes first"
        return self.folder
