"""How files and commands reach a device: by copying on this machine, or by OpenSSH.

Both work in a folder of their own, made by `connect` and removed when it ends, unless the connection broke: then it
waits for another try. OpenSSH is the user's: their configuration, keys and known_hosts; a password is never asked for
and an unknown host is never accepted.
"""

from __future__ import annotations

import contextlib
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
    NO_PROGRAM,
    SPARE_BYTES,
    Completed,
    OnLine,
    altered,
    checked,
    disk_full,
    said,
    stream,
)
from edgedistill.errors import InputError
from edgedistill.records import Device
from edgedistill.run.files import digest, sha256_file

# a Jetson is back after a minute or two; someone may have to find its plug
RECONNECT_S = 600.0
LONGEST_PAUSE_S = 30.0
# a supply too weak for the load reboots the device each time the work begins
MOST_LOSSES = 5
AGAIN = "the same command goes on where it stopped"


class Transport(Protocol):
    """A folder on a device, and the means to fill it, run in it, and read from it."""

    def open(self) -> None:
        """Reach the device and make the folder, or find it again."""

    def put(self, files: Sequence[Path]) -> None:
        """Copy files into the folder, flat, under their own names; what is there already is not sent again."""

    def run(self, argv: Sequence[str], timeout_s: float, on_line: OnLine | None = None) -> Completed:
        """Run a program in the folder; `on_line` gets every line of its stdout as it comes.

        Raises:
            EdgeDistillError: a file is no longer as it was put there, the program exited with another code than 0,
                or it was still running after `timeout_s` seconds.
            ConnectionLostError: the device went away.
        """

    def get(self, name: str, to: Path) -> None:
        """Copy a file of the folder to the path `to`."""

    def close(self, keep: bool = False) -> None:
        """Leave the device, and remove the folder unless it is to be kept."""


@contextlib.contextmanager
def connect(device: Device, ssh_config: Path | None = None, job: str = "") -> Iterator[Transport]:
    """A folder on the device; removed on the way out, unless the device went away or a person interrupts.

    Args:
        device: where to.
        ssh_config: another OpenSSH configuration than the user's.
        job: a name from `job_name`, under which another try finds a kept folder again; without it, a fresh one.

    Raises:
        EdgeDistillError: the device cannot be reached or its workdir cannot be written.
    """
    transport: Transport = Local(device) if device.transport == "local" else OpenSsh(device, ssh_config, job)
    keep = False
    try:
        transport.open()
        yield transport
    except (ConnectionLostError, KeyboardInterrupt):
        keep = True
        raise
    finally:
        transport.close(keep)


def job_name(device: Device, files: Sequence[Path]) -> str:
    """The folder's name for these files and this device's Python: the same job finds its folder again."""
    sums = {file.name: sha256_file(file) for file in files}
    return f"job-{digest([sums, interpreter(device)])[:16]}"


def interpreter(device: Device) -> str:
    """The Python that runs the agent on this device."""
    return device.python or (sys.executable if device.transport == "local" else "python3")


def run_through(
    transport: Transport,
    files: Sequence[Path],
    argv: Sequence[str],
    result: Path,
    timeout_s: float,
    on_line: OnLine | None = None,
) -> list[str]:
    """Put files, run a program and get the file it wrote, through cut connections and reboots of the device.

    Args:
        transport: open.
        files: what the program needs; after an interruption what is missing is sent again.
        argv: a program that, run again, picks its work up.
        result: where the file of that name goes.
        timeout_s: a bound on every single run of it.
        on_line: gets every line of its stdout.

    Returns:
        What interrupted it, a line each; none if nothing did.

    Raises:
        EdgeDistillError: as `Transport.run`.
        ConnectionLostError: it did not come back within RECONNECT_S, or went away more than MOST_LOSSES times.
    """
    losses: list[str] = []
    ended = False
    while True:
        try:
            if not ended:
                transport.put(files)
                transport.run(argv, timeout_s, on_line)
                ended = True
            transport.get(result.name, result)
            return losses
        except ConnectionLostError as error:
            losses.append(error.message)
            if len(losses) > MOST_LOSSES:
                fix = f"does its power supply hold under load? {AGAIN}"
                raise ConnectionLostError(f"{error.message}; lost {len(losses)} times", fix) from None
            say(f"{error.message}; waiting for it to come back")
            _wait_for(transport)


def _wait_for(transport: Transport) -> None:
    until, pause_s = time.monotonic() + RECONNECT_S, 1.0
    while True:
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        try:
            transport.open()
            return
        except ConnectionLostError as error:
            if time.monotonic() > until:
                gone = f"{error.message}; not back within {RECONNECT_S:.0f} s"
                raise ConnectionLostError(gone, f"once it is back, {AGAIN}") from None


class Local:
    """This machine: a folder in `workdir`, or in the system's temporary one."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.folder: Path | None = None
        self.sums: dict[str, str] = {}

    def open(self) -> None:
        """Make the folder."""
        try:
            if self.device.workdir:
                Path(self.device.workdir).mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix="edgedistill-", dir=self.device.workdir or None)).absolute()
        except OSError as error:
            raise InputError(f"{self.device.name}: workdir {self.device.workdir}: {error.strerror}") from None

    def put(self, files: Sequence[Path]) -> None:
        """Copy files into the folder."""
        folder = self._folder()
        for file in files:
            with said(self.device, f"copying {file.name}"):
                needed_bytes, free_bytes = file.stat().st_size + SPARE_BYTES, shutil.disk_usage(folder).free
                if free_bytes < needed_bytes:
                    raise disk_full(self.device, free_bytes, needed_bytes)
                self.sums[file.name] = sha256_file(file)
                shutil.copyfile(file, folder / file.name)

    def run(self, argv: Sequence[str], timeout_s: float, on_line: OnLine | None = None) -> Completed:
        """Run a program in the folder, once every file there has been found as it was put."""
        folder = self._folder()
        with said(self.device, "checking its files"):
            wrong = [name for name, known in self.sums.items() if sha256_file(folder / name) != known]
        if wrong:
            raise altered(self.device, wrong)
        with said(self.device, argv[0], NO_PROGRAM):
            done = stream(argv, timeout_s, on_line, cwd=folder)
        return checked(self.device, argv, done)

    def get(self, name: str, to: Path) -> None:
        """Copy a file of the folder to `to`."""
        with said(self.device, f"fetching {name}"):
            shutil.copyfile(self._folder() / name, to)

    def close(self, keep: bool = False) -> None:
        """Remove the folder; there is no other try here, so none is kept."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _folder(self) -> Path:
        assert self.folder is not None, "open() comes first"
        return self.folder
