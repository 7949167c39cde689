"""Another machine by the `ssh` program alone: commands, and files through `cat` there.

scp and sftp are not used: they differ in how they quote, cannot tell how much has arrived, and small systems lack them.
The connection is opened once and shared (ControlMaster) by a socket of our own. What the user's configuration says
about sharing, forwarding and commands does not apply; everything else does.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edgedistill.devices import shell
from edgedistill.devices.subprocesses import (
    INVENTORY,
    SPARE_BYTES,
    Completed,
    OnLine,
    altered,
    checked,
    disk_full,
    one_line,
    remedy,
    said,
    stream,
)
from edgedistill.errors import EdgeDistillError, InputError
from edgedistill.records import Device
from edgedistill.run.files import atomic, sha256_file

COPY_TIMEOUT_S = 1800.0
CONNECTION = (
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "ConnectTimeout=10",
    "ServerAliveInterval=15",
    "ServerAliveCountMax=4",
    # should this process be killed, the shared connection ends by itself
    "ControlMaster=auto",
    "ControlPersist=60",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    "PermitLocalCommand=no",
    "RemoteCommand=none",
    # a greeting of the device is no part of what went wrong
    "LogLevel=ERROR",
)
# what OpenSSH says (ssh 255) -> what a person can do about it; the first that fits
REMEDIES = (
    (
        "identification has changed",
        "if the device was set up anew, `ssh-keygen -R HOST`, then check its new fingerprint",
    ),
    ("host key verification failed", "run `ssh {host}` once and check the fingerprint with whoever set the device up"),
    ("unprotected private key file", "`chmod 600` your key"),
    ("permission denied", "install your key there: `ssh-copy-id {host}`"),
    ("could not resolve hostname", "name it in ~/.ssh/config, or give user@address as host in " + INVENTORY),
    ("bad configuration option", "correct your ssh configuration"),
    ("bad owner or permissions", "`chmod 600 ~/.ssh/config`"),
    ("", "is it on and reachable? try `ssh {host} true`"),
)
# no second try makes these right
FINAL = ("identification has changed", "host key verification failed", "bad configuration option")
# a socket's path holds about 100 bytes, of which ssh itself wants 20 for a moment
SOCKET_FOLDER_LENGTH = 60
HANGUP, TERMINATED = 129, 143


class ConnectionLostError(EdgeDistillError):
    """A device that had been reached went away; what has been copied and done there waits for another try."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the job's folder holds of a file: its sha256, or "-", and the bytes of a part."""

    sha256: str
    part_bytes: int


class OpenSsh:
    """A folder `job` in the device's workdir, which starts at the home there unless it is absolute."""

    def __init__(self, device: Device, config: Path | None = None, job: str = "") -> None:
        self.device = device
        self.job = job or f"job-{secrets.token_hex(8)}"
        self.place = {"workdir": device.workdir or "edgedistill", "job": self.job, "python": device.python or "python3"}
        self.options = ["-F", str(config)] if config else []
        for option in CONNECTION:
            self.options += ["-o", option]
        self.reached = False
        self.sums: dict[str, str] = {}
        self.sockets: Path | None = None

    def open(self) -> None:
        """Make the folder, readable by its owner alone, or find it again."""
        if self.sockets is None:
            self.sockets = Path(tempfile.mkdtemp(prefix="edgedistill-", dir=_short_folder()))
        self._prepare([])

    def put(self, files: Sequence[Path]) -> None:
        """Copy files into the folder: only what it lacks, a half file from where it broke; checked on arrival."""
        with said(self.device, "copying"):
            sums = {file.name: sha256_file(file) for file in files}
            sizes = {file.name: file.stat().st_size for file in files}
        free_bytes, there = self._prepare(list(sums))
        missing = [file for file in files if there[file.name].sha256 != sums[file.name]]
        begun = {name: one.part_bytes if one.part_bytes <= sizes[name] else 0 for name, one in there.items()}
        needed_bytes = sum(sizes[file.name] - begun[file.name] for file in missing)
        if missing and free_bytes < needed_bytes + SPARE_BYTES:
            raise disk_full(self.device, free_bytes, needed_bytes + SPARE_BYTES)
        for file in missing:
            self._send(file, sums[file.name], begun[file.name])
        self.sums.update(sums)

    def run(self, argv: Sequence[str], timeout_s: float, on_line: OnLine | None = None) -> Completed:
        """Run a program in the folder, once every file there has been found as sent; arguments arrive as they are."""
        sent = [word for name, known in self.sums.items() for word in (known, name)]
        seen = _AfterStart(on_line)
        values = {**self.place, "count": str(len(self.sums))}
        done = self._call(
            shell.command(shell.RUN, values, [*sent, *argv]), timeout_s, argv[0], seen, stdin=subprocess.PIPE
        )
        if not seen.started:
            raise self._refused(done)
        if done.returncode in (HANGUP, TERMINATED):
            raise ConnectionLostError(f"{self.device.name}: {argv[0]} was ended from outside there", "is it rebooting?")
        done.stdout = done.stdout.partition(f"{shell.STARTED}\n")[2]
        return checked(self.device, argv, done)

    def get(self, name: str, to: Path) -> None:
        """Copy a file of the folder to `to`, whole or not at all."""
        with tempfile.TemporaryFile() as sink:
            done = self._call(self._command(shell.GET, name=name), COPY_TIMEOUT_S, f"fetching {name}", to=sink)
            sink.seek(0)
            _, begun, content = sink.read().partition(f"{shell.STARTED}\n".encode())
        if done.returncode or not begun:
            raise EdgeDistillError(f"{self.device.name}: fetching {name}: {one_line(done.stderr)}")
        with said(self.device, f"fetching {name}"), atomic(to) as temporary:
            temporary.write_bytes(content)

    def close(self, keep: bool = False) -> None:
        """Remove the folder, unless it is to be kept for another try, and hang up; no error of that hides another."""
        try:
            if self.reached and not keep:
                with contextlib.suppress(EdgeDistillError):
                    self._call(self._command(shell.REMOVE), 60.0, "removing the folder")
        finally:
            self._hang_up()
            if self.sockets is not None:
                shutil.rmtree(self.sockets, ignore_errors=True)
                self.sockets = None

    def _prepare(self, names: Sequence[str]) -> tuple[int, dict[str, Found]]:
        """Bytes free on the device, and what is there of each name."""
        done = self._call(shell.command(shell.PREPARE, self.place, names), 300.0, "making its folder")
        if done.returncode:
            raise self._refused(done)
        self.reached = True
        words = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith(f"{shell.OURS} ")]
        # df -P: ... blocks used available capacity% place; the name in front and the place behind may hold spaces
        free = next((re.search(r" (\d+) +\d+% ", " ".join(line) + " ") for line in words if line[0] == "free"), None)
        found = [Found(sha256=line[1], part_bytes=int(line[2])) for line in words if line[0] == "file"]
        if len(found) != len(names):
            raise EdgeDistillError(f"{self.device.name}: its shell answers unlike sh: {one_line(done.stdout)}")
        # a file system that does not tell its room is left to say that it is full
        return int(free[1]) * 1024 if free else 1 << 62, dict(zip(names, found, strict=True))

    def _send(self, file: Path, sum256: str, begun: int) -> None:
        size = str(file.stat().st_size)
        script = self._command(shell.SEND, name=file.name, sum256=sum256, size=size)
        # a part that does not become the file is removed there, and the file sent whole
        for begin in (begun, 0):
            with said(self.device, f"copying {file.name}"), file.open("rb", buffering=0) as source:
                source.seek(begin)
                done = self._call(script, COPY_TIMEOUT_S, f"copying {file.name}", stdin=source)
            if done.returncode == 0:
                return
            if done.returncode != shell.ALTERED:
                raise self._not_copied(file, done)
        raise altered(self.device, [file.name])

    def _not_copied(self, file: Path, done: Completed) -> EdgeDistillError:
        if remedy(done.stderr, (("no space left", "full"), ("quota exceeded", "full"))):
            free_bytes, there = self._prepare([file.name])
            return disk_full(self.device, free_bytes, file.stat().st_size - there[file.name].part_bytes + SPARE_BYTES)
        return EdgeDistillError(f"{self.device.name}: copying {file.name}: {one_line(done.stderr)}")

    def _refused(self, done: Completed) -> EdgeDistillError:
        """Why one of our scripts did not come to its end; what start-up files print is in no way."""
        told = one_line(done.stderr) or f"sh exited with {done.returncode}, nothing on stderr"
        if done.returncode == shell.ALTERED:
            return altered(self.device, [done.stderr.splitlines()[-1]])
        if done.returncode == 127:
            fix = f"install Python 3.8 or later there, or name it in {INVENTORY} (python:)"
            return EdgeDistillError(f"{self.device.name}: no Python: {told}", fix)
        place = f"workdir {self.place['workdir']}"
        return EdgeDistillError(f"{self.device.name}: {place}: {told}", f"name another workdir in {INVENTORY}")

    def _command(self, script: str, **values: str) -> str:
        return shell.command(script, {**self.place, **values})

    def _call(
        self,
        command: str,
        timeout_s: float,
        what: str,
        on_line: OnLine | None = None,
        *,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        to: IO[bytes] | None = None,
    ) -> Completed:
        """One command there; ssh(1): 255 if an error occurred, else the remote code."""
        argv = ["ssh", *self.options, "-T", "-S", self._socket(), "--", self.device.host, command]
        if shutil.which("ssh") is None:
            raise InputError(f"{self.device.name}: no program is called ssh here", "install the OpenSSH client")
        with said(self.device, what):
            done = stream(argv, timeout_s, on_line, env=_without_questions(), stdin=stdin, to=to)
        if done.returncode == 255:
            self._hang_up()
            raise self._unreachable(done.stderr)
        return done

    def _unreachable(self, stderr: str) -> EdgeDistillError:
        told = one_line(stderr) or "the connection broke"
        host = self.device.host
        lost = self.reached and not any(sign in stderr.lower() for sign in FINAL)
        kind = ConnectionLostError if lost else EdgeDistillError
        return kind(f"{self.device.name}: OpenSSH to {host}: {told}", remedy(stderr, REMEDIES).format(host=host))

    def _socket(self) -> str:
        # ssh expands percent signs in it
        return str(self.sockets / "s").replace("%", "%%") if self.sockets else "none"

    def _hang_up(self) -> None:
        """End the shared connection, dead or alive, so that the next command opens another."""
        if self.sockets is None or not (self.sockets / "s").exists():
            return
        argv = ["ssh", *self.options, "-S", self._socket(), "-O", "exit", "--", self.device.host]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            stream(argv, 5.0)
        (self.sockets / "s").unlink(missing_ok=True)


class _AfterStart:
    """Hands lines on once the program runs: what comes before is from start-up files of the account."""

    def __init__(self, on_line: OnLine | None) -> None:
        self.on_line, self.started = on_line, False

    def __call__(self, line: str) -> None:
        if self.started and self.on_line is not None:
            self.on_line(line)
        self.started = self.started or line == shell.STARTED


def _short_folder() -> str:
    usual = tempfile.gettempdir()
    return usual if len(usual) <= SOCKET_FOLDER_LENGTH else "/tmp"


def _without_questions() -> dict[str, str]:
    """Our environment without the windows that ssh would open to ask for a password."""
    kept = {name: value for name, value in os.environ.items() if name != "SSH_ASKPASS"}
    return {**kept, "SSH_ASKPASS_REQUIRE": "never"}
