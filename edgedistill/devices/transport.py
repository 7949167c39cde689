"""How files and commands reach a device: by copying on this machine, or by OpenSSH.

Both work in a folder of their own, made by `connect` and removed when it ends. OpenSSH is the user's: their
configuration, keys and known_hosts; a password is never asked for and an unknown host is never accepted.
"""

from __future__ import annotations

import contextlib
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Protocol

from edgedistill.records import Device, EdgeDistillError, InputError

OnLine = Callable[[str], None]
Completed = subprocess.CompletedProcess[str]
COPY_TIMEOUT_S = 1800.0
CONNECTION = ("BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=15", "ServerAliveCountMax=4")
# what OpenSSH says (ssh 255) -> what a person can do about it; the first that fits
REMEDIES = (
    (
        "identification has changed",
        "if the device was set up anew, `ssh-keygen -R HOST`, then check its new fingerprint",
    ),
    ("host key verification failed", "run `ssh {host}` once and check the fingerprint with whoever set the device up"),
    ("permission denied", "install your key there: `ssh-copy-id {host}`"),
    ("no such file or directory", "check workdir and python of this device in the inventory"),
    ("", "is it on and reachable? try `ssh {host} true`"),
)


class Transport(Protocol):
    """A folder on a device, and the means to fill it, run in it, and read from it."""

    def put(self, files: Sequence[Path]) -> None:
        """Copy files into the folder, flat, under their own names."""

    def run(self, argv: Sequence[str], timeout_s: float, on_line: OnLine | None = None) -> Completed:
        """Run a program in the folder; `on_line` gets every line of its stdout as it comes.

        Raises:
            EdgeDistillError: it exited with another code than 0, or was still running after `timeout_s` seconds.
        """

    def get(self, name: str, to: Path) -> None:
        """Copy a file of the folder to the path `to`."""


@contextlib.contextmanager
def connect(device: Device, ssh_config: Path | None = None) -> Iterator[Transport]:
    """A fresh folder on the device; it is removed on the way out, whatever happened.

    Args:
        device: where to.
        ssh_config: another OpenSSH configuration than the user's.

    Raises:
        EdgeDistillError: the device cannot be reached or its workdir cannot be written.
    """
    transport = Local(device) if device.transport == "local" else OpenSsh(device, ssh_config)
    transport.open()
    try:
        yield transport
    finally:
        transport.close()


def interpreter(device: Device) -> str:
    """The Python that runs the agent on this device."""
    return device.python or (sys.executable if device.transport == "local" else "python3")


class Local:
    """This machine: a folder in `workdir`, or in the system's temporary one."""

    def __init__(self, device: Device) -> None:
        self.device = device

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
        for file in files:
            with _said(self.device, f"copying {file.name}"):
                shutil.copyfile(file, self.folder / file.name)

    def run(self, argv: Sequence[str], timeout_s: float, on_line: OnLine | None = None) -> Completed:
        """Run a program in the folder."""
        with _said(self.device, argv[0]):
            done = stream(argv, timeout_s, on_line, self.folder)
        return _checked(self.device, argv, done)

    def get(self, name: str, to: Path) -> None:
        """Copy a file of the folder to `to`."""
        with _said(self.device, f"fetching {name}"):
            shutil.copyfile(self.folder / name, to)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


class OpenSsh:
    """Another machine, by the `ssh` and `scp` programs; a relative `workdir` starts at the home there."""

    def __init__(self, device: Device, config: Path | None = None) -> None:
        self.device = device
        self.options = ["-F", str(config)] if config else []
        for option in CONNECTION:
            self.options += ["-o", option]
        self.folder = f"{device.workdir or 'edgedistill'}/job-{secrets.token_hex(8)}"

    def open(self) -> None:
        """Make the folder, readable by its owner alone."""
        self._ssh(["mkdir", "-p", "-m", "700", "--", self.folder], 60.0)

    def put(self, files: Sequence[Path]) -> None:
        """Copy files into the folder."""
        self._scp([str(file.resolve()) for file in files], f"{self.device.host}:{self.folder}/")

    def run(self, argv: Sequence[str], timeout_s: float, on_line: OnLine | None = None) -> Completed:
        """Run a program in the folder; every argument arrives there as it is."""
        command = f"cd -- {shlex.quote(self.folder)} && exec {shlex.join(argv)}"
        return _checked(
            self.device, argv, self._call(["ssh", *self.options, self.device.host, command], timeout_s, on_line)
        )

    def get(self, name: str, to: Path) -> None:
        """Copy a file of the folder to `to`."""
        self._scp([f"{self.device.host}:{self.folder}/{name}"], str(to.resolve()))

    def close(self) -> None:
        """Remove the folder; a device that went away keeps it, which is no reason to hide an earlier error."""
        with contextlib.suppress(EdgeDistillError):
            self._ssh(["rm", "-rf", "--", self.folder], 60.0)

    def _ssh(self, argv: Sequence[str], timeout_s: float) -> None:
        done = self._call(["ssh", *self.options, self.device.host, shlex.join(argv)], timeout_s)
        _checked(self.device, argv, done)

    def _scp(self, origin: Sequence[str], to: str) -> None:
        done = self._call(["scp", "-q", *self.options, "--", *origin, to], COPY_TIMEOUT_S)
        if done.returncode:
            raise self._unreachable(done.stderr)

    def _call(self, argv: Sequence[str], timeout_s: float, on_line: OnLine | None = None) -> Completed:
        if shutil.which(argv[0]) is None:
            raise InputError(f"{self.device.name}: no program is called {argv[0]} here", "install the OpenSSH client")
        with _said(self.device, argv[0]):
            done = stream(argv, timeout_s, on_line)
        if argv[0] == "ssh" and done.returncode == 255:  # ssh(1): 255 if an error occurred, else the remote code
            raise self._unreachable(done.stderr)
        return done

    def _unreachable(self, stderr: str) -> EdgeDistillError:
        said = " ".join(stderr.split()) or "no reason given"
        remedy = next(fix for sign, fix in REMEDIES if sign in said.lower())
        host = self.device.host
        return EdgeDistillError(f"{self.device.name}: OpenSSH to {host}: {_tail(said)}", remedy.format(host=host))


def stream(argv: Sequence[str], timeout_s: float, on_line: OnLine | None = None, cwd: Path | None = None) -> Completed:
    """Run a program to its end, handing on each line of stdout as it comes; stdin is empty.

    Raises:
        OSError: the program cannot be started.
        subprocess.TimeoutExpired: it was still running after `timeout_s` seconds, and was killed.
    """
    # stderr goes to a file, since a second full pipe would stop the program while this side reads the first
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        with subprocess.Popen(argv, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
                              encoding="utf-8", errors="replace") as process:  # fmt: skip
            expired = threading.Event()
            timer = threading.Timer(timeout_s, _end, (process, expired))
            timer.start()
            try:
                lines = _lines(process.stdout, on_line)
                process.wait()
            finally:
                timer.cancel()
                process.kill()
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


def _end(process: subprocess.Popen[str], expired: threading.Event) -> None:
    expired.set()
    process.kill()


@contextlib.contextmanager
def _said(device: Device, what: str) -> Iterator[None]:
    """Errors of the operating system, and time run out, as one line for a person."""
    try:
        yield
    except subprocess.TimeoutExpired as error:
        raise EdgeDistillError(f"{device.name}: {what}: still running after {error.timeout:.0f} s, ended") from None
    except OSError as error:
        raise EdgeDistillError(f"{device.name}: {what}: {error.strerror}") from None


def _checked(device: Device, argv: Sequence[str], done: Completed) -> Completed:
    if done.returncode:
        said = " ".join(done.stderr.split()) or "nothing on stderr"
        raise EdgeDistillError(f"{device.name}: `{shlex.join(argv)}` exited with {done.returncode}: {_tail(said)}")
    return done


def _tail(text: str, most: int = 600) -> str:
    return text if len(text) <= most else "... " + text[-most:]
