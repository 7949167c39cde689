"""Transport to another machine by the `ssh` program alone: commands, and files through `cat` there.

scp and sftp are not used: they differ in how they quote, cannot report how much has arrived, and small systems lack
them. The connection is opened once and shared (ControlMaster) over a private socket. The user's configuration of
sharing, forwarding and commands does not apply; the rest of it does.
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
    NO_PYTHON,
    SPARE_BYTES,
    Completed,
    OnLine,
    altered_error,
    disk_full_error,
    error_context,
    one_line,
    remedy,
    require_success,
    stream,
)
from edgedistill.devices.subprocesses import REMEDIES as DEVICE_REMEDIES
from edgedistill.errors import EdgeDistillError, InputError
from edgedistill.measurements import Device
from edgedistill.run.files import atomic, sha256_file

COPY_TIMEOUT_S = 1800.0
CONNECTION = (
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "ConnectTimeout=10",
    "ServerAliveInterval=15",
    "ServerAliveCountMax=4",
    # if this process is killed, the shared connection ends by itself
    "ControlMaster=auto",
    "ControlPersist=60",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    "PermitLocalCommand=no",
    "RemoteCommand=none",
    # keeps a device's login banner out of error messages
    "LogLevel=ERROR",
)
# text in OpenSSH's error (ssh 255) -> fix; the first match applies
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
# errors that another try does not fix
PERMANENT_ERRORS = ("identification has changed", "host key verification failed", "bad configuration option")
# a socket's path is limited to about 100 bytes, and ssh temporarily appends 20
SOCKET_FOLDER_LENGTH = 60
EXIT_SIGHUP, EXIT_SIGTERM = 129, 143


class ConnectionLostError(EdgeDistillError):
    """The connection to a reached device was lost; its files and progress are kept for another try."""


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """The state of a file in the job's folder: its sha256, or "-" without the file, and the bytes of a part."""

    sha256: str
    part_bytes: int


class OpenSsh:
    """A folder `job` in the device's workdir; a relative workdir starts at the home folder there."""

    def __init__(self, device: Device, config: Path | None = None, job: str = "") -> None:
        self.device = device
        self.job = job or f"job-{secrets.token_hex(8)}"
        self.variables = {
            "workdir": device.workdir or "edgedistill",
            "job": self.job,
            "python": device.python or "python3",
        }
        self.options = ["-F", str(config)] if config else []
        for option in CONNECTION:
            self.options += ["-o", option]
        self.reached = False
        self.sums: dict[str, str] = {}
        self.sockets: Path | None = None

    def open(self) -> None:
        """Make the folder, readable by its owner only, or reuse the existing one."""
        if self.sockets is None:
            self.sockets = Path(tempfile.mkdtemp(prefix="edgedistill-", dir=_short_folder()))
        self._prepare([])

    def put(self, files: Sequence[Path]) -> None:
        """Copy missing files into the folder, resume partial copies, and check each on arrival."""
        with error_context(self.device, "copying"):
            sums = {file.name: sha256_file(file) for file in files}
            sizes = {file.name: file.stat().st_size for file in files}
        free_bytes, remote_files = self._prepare(list(sums))
        missing = [file for file in files if remote_files[file.name].sha256 != sums[file.name]]
        part_sizes = {
            name: remote_file.part_bytes if remote_file.part_bytes <= sizes[name] else 0
            for name, remote_file in remote_files.items()
        }
        needed_bytes = sum(sizes[file.name] - part_sizes[file.name] for file in missing)
        if missing and free_bytes < needed_bytes + SPARE_BYTES:
            raise disk_full_error(self.device, free_bytes, needed_bytes + SPARE_BYTES)
        for file in missing:
            self._send(file, sums[file.name], part_sizes[file.name])
        self.sums.update(sums)

    def run(self, argv: Sequence[str], timeout_s: float, on_line: OnLine | None = None) -> Completed:
        """Run a program in the folder after checking every file there; arguments arrive unchanged."""
        checksums = [word for name, sha256 in self.sums.items() for word in (sha256, name)]
        after_start = _AfterStart(on_line)
        values = {**self.variables, "count": str(len(self.sums))}
        completed = self._call(
            shell.command(shell.RUN, values, [*checksums, *argv]),
            timeout_s,
            argv[0],
            after_start,
            stdin=subprocess.PIPE,
        )
        if not after_start.started:
            raise self._script_error(completed)
        if completed.returncode in (EXIT_SIGHUP, EXIT_SIGTERM):
            raise ConnectionLostError(f"{self.device.name}: {argv[0]} was ended from outside there", "is it rebooting?")
        completed.stdout = completed.stdout.partition(f"{shell.STARTED}\n")[2]
        return require_success(self.device, argv, completed)

    def get(self, name: str, to: Path) -> None:
        """Copy a file of the folder to `to`, atomically."""
        with tempfile.TemporaryFile() as sink:
            completed = self._call(self._command(shell.GET, name=name), COPY_TIMEOUT_S, f"fetching {name}", to=sink)
            sink.seek(0)
            _, started, content = sink.read().partition(f"{shell.STARTED}\n".encode())
        if completed.returncode or not started:
            missing = "No such file" in completed.stderr
            raise EdgeDistillError(
                f"{self.device.name}: fetching {name}: {one_line(completed.stderr)}", NO_PYTHON if missing else ""
            )
        with error_context(self.device, f"fetching {name}"), atomic(to) as temporary:
            temporary.write_bytes(content)

    def close(self, keep: bool = False) -> None:
        """Remove the folder, unless `keep` holds it for another try, and disconnect; errors of both are suppressed."""
        try:
            if self.reached and not keep:
                with contextlib.suppress(EdgeDistillError):
                    self._call(self._command(shell.REMOVE), 60.0, "removing the folder")
        finally:
            self._hang_up()
            if self.sockets is not None:
                shutil.rmtree(self.sockets, ignore_errors=True)
                self.sockets = None

    def _prepare(self, names: Sequence[str]) -> tuple[int, dict[str, RemoteFile]]:
        """Make the folder; returns the bytes free on the device and the state of each file."""
        completed = self._call(shell.command(shell.PREPARE, self.variables, names), 300.0, "making its folder")
        if shell.RAN not in completed.stdout.splitlines():
            raise self._no_shell_error(completed)
        if completed.returncode:
            raise self._script_error(completed)
        self.reached = True
        words = [line.split()[1:] for line in completed.stdout.splitlines() if line.startswith(f"{shell.MARKER} ")]
        # df -P: name blocks used available capacity% mount point; name and mount point may contain spaces
        free = next((re.search(r" (\d+) +\d+% ", " ".join(line) + " ") for line in words if line[0] == "free"), None)
        remote_files = [RemoteFile(sha256=line[1], part_bytes=int(line[2])) for line in words if line[0] == "file"]
        if len(remote_files) != len(names):
            raise EdgeDistillError(
                f"{self.device.name}: its shell answers unlike sh: {one_line(completed.stdout)}",
                "use an account there whose login shell is sh, bash, zsh, fish or csh",
            )
        # if the file system does not report its free space, a full disk shows when a copy fails
        return int(free[1]) * 1024 if free else 1 << 62, dict(zip(names, remote_files, strict=True))

    def _send(self, file: Path, sum256: str, part_bytes: int) -> None:
        size = str(file.stat().st_size)
        script = self._command(shell.SEND, name=file.name, sum256=sum256, size=size)
        # a part that does not complete to the file is removed there, and the file is sent from its beginning
        for begin in (part_bytes, 0):
            with error_context(self.device, f"copying {file.name}"), file.open("rb", buffering=0) as source:
                source.seek(begin)
                completed = self._call(script, COPY_TIMEOUT_S, f"copying {file.name}", stdin=source)
            if completed.returncode == 0:
                return
            if completed.returncode != shell.EXIT_ALTERED:
                raise self._copy_error(file, completed)
        raise altered_error(self.device, [file.name])

    def _copy_error(self, file: Path, completed: Completed) -> EdgeDistillError:
        if remedy(completed.stderr, (("no space left", "full"), ("quota exceeded", "full"))):
            free_bytes, remote_files = self._prepare([file.name])
            return disk_full_error(
                self.device, free_bytes, file.stat().st_size - remote_files[file.name].part_bytes + SPARE_BYTES
            )
        return EdgeDistillError(f"{self.device.name}: copying {file.name}: {one_line(completed.stderr)}")

    def _script_error(self, completed: Completed) -> EdgeDistillError:
        """The error of a script that failed; lines that start-up files print do not matter."""
        message = one_line(completed.stderr) or f"sh exited with {completed.returncode}, nothing on stderr"
        if completed.returncode == shell.EXIT_ALTERED:
            return altered_error(self.device, [completed.stderr.splitlines()[-1]])
        if completed.returncode == 127:
            fix = f"install Python 3.8 or later there, or name it in {INVENTORY} (python:)"
            return EdgeDistillError(f"{self.device.name}: no Python: {message}", fix)
        if completed.returncode != shell.EXIT_FOLDER:
            return EdgeDistillError(f"{self.device.name}: {message}", remedy(completed.stderr, DEVICE_REMEDIES))
        location = f"workdir {self.variables['workdir']}"
        return EdgeDistillError(f"{self.device.name}: {location}: {message}", f"name another workdir in {INVENTORY}")

    def _no_shell_error(self, completed: Completed) -> EdgeDistillError:
        """The error of a host that did not run our script, but a program of its own."""
        output = one_line(f"{completed.stdout}\n{completed.stderr}", 200) or "nothing"
        return EdgeDistillError(
            f"{self.device.name}: {self.device.host} runs another program than sh, which says: {output}",
            "its key or account has a forced command (command= in authorized_keys there, ForceCommand in sshd_config)"
            " or no shell: use a key and an account that may run programs",
        )

    def _command(self, script: str, **values: str) -> str:
        return shell.command(script, {**self.variables, **values})

    def _call(
        self,
        command: str,
        timeout_s: float,
        action: str,
        on_line: OnLine | None = None,
        *,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        to: IO[bytes] | None = None,
    ) -> Completed:
        """Run one command there; ssh(1): 255 if an error occurred, else the remote code."""
        argv = ["ssh", *self.options, "-T", "-S", self._socket(), "--", self.device.host, command]
        if shutil.which("ssh") is None:
            raise InputError(f"{self.device.name}: no program is called ssh here", "install the OpenSSH client")
        with error_context(self.device, action):
            completed = stream(argv, timeout_s, on_line, env=_noninteractive_environment(), stdin=stdin, to=to)
        if completed.returncode == 255:
            self._hang_up()
            raise self._connection_error(completed.stderr)
        return completed

    def _connection_error(self, stderr: str) -> EdgeDistillError:
        message = one_line(stderr) or "the connection broke"
        host = self.device.host
        was_lost = self.reached and not any(sign in stderr.lower() for sign in PERMANENT_ERRORS)
        error_type = ConnectionLostError if was_lost else EdgeDistillError
        return error_type(
            f"{self.device.name}: OpenSSH to {host}: {message}", remedy(stderr, REMEDIES).format(host=host)
        )

    def _socket(self) -> str:
        # ssh expands percent signs in it
        return str(self.sockets / "s").replace("%", "%%") if self.sockets else "none"

    def _hang_up(self) -> None:
        """End the shared connection, working or not, so that the next command opens another."""
        if self.sockets is None or not (self.sockets / "s").exists():
            return
        argv = ["ssh", *self.options, "-S", self._socket(), "-O", "exit", "--", self.device.host]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            stream(argv, 5.0)
        (self.sockets / "s").unlink(missing_ok=True)


class _AfterStart:
    """Passes lines on once the program runs; earlier lines are printed by the account's start-up files."""

    def __init__(self, on_line: OnLine | None) -> None:
        self.on_line, self.started = on_line, False

    def __call__(self, line: str) -> None:
        if self.started and self.on_line is not None:
            self.on_line(line)
        self.started = self.started or line == shell.STARTED


def _short_folder() -> str:
    default = tempfile.gettempdir()
    return default if len(default) <= SOCKET_FOLDER_LENGTH else "/tmp"


def _noninteractive_environment() -> dict[str, str]:
    """The environment without the windows that ssh would open to ask for a password."""
    environment = {name: value for name, value in os.environ.items() if name != "SSH_ASKPASS"}
    return {**environment, "SSH_ASKPASS_REQUIRE": "never"}
