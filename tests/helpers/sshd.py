"""A real sshd on the loopback, with keys, port, known_hosts and configuration of its own, and a cable to pull out."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
MISSING = [name for name in (SSHD, "ssh", "ssh-keygen") if shutil.which(name) is None]
TIER = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=f"not installed here: {', '.join(MISSING)}")]
HOST = "edge-test"


class Server:
    """sshd in `folder`; `config` there lets ssh reach it as `edge-test`, by a cable if one is laid."""

    def __init__(self, folder: Path, settings: str = "") -> None:
        self.folder, self.settings = folder, settings
        self.port = free_port()
        host_key = keygen(folder / "host")
        (folder / "authorized").write_text(keygen(folder / "client"))
        (folder / "known_hosts").write_text(f"{HOST} {host_key}")
        (folder / "config").write_text(self.client(self.port))
        (folder / "sshd_config").write_text(self.server())
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # as root, sshd wants the folder its service would make

    def client(self, port: int) -> str:
        """A client's configuration; nothing in it asks for what the program should ask for itself."""
        # ssh takes the first value it finds, so the port of `dead` must come before the common one
        return f"""
Host dead
  Port 1
Host {HOST} dead
  HostName 127.0.0.1
  HostKeyAlias {HOST}
  Port {port}
  User {getpass.getuser()}
  IdentityFile {self.folder}/client
  IdentitiesOnly yes
  UserKnownHostsFile {self.folder}/known_hosts
  GlobalKnownHostsFile none
"""

    def server(self) -> str:
        """The server's configuration."""
        return f"""
Port {self.port}
ListenAddress 127.0.0.1
HostKey {self.folder}/host
AuthorizedKeysFile {self.folder}/authorized
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
{self.settings}
"""

    @property
    def config(self) -> Path:
        return self.folder / "config"

    def altered(self, to: Path, before: str, after: str) -> Path:
        """The client's configuration with a part of it replaced, in the file `to`."""
        assert before in self.config.read_text()
        to.write_text(self.config.read_text().replace(before, after))
        return to

    def start(self) -> None:
        """Listen; returns once a connection is taken."""
        command = [SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")]
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(command, stderr=log)
        until(lambda: self.process.poll() is not None or listens(self.port), 10)
        assert self.process.poll() is None, (self.folder / "log").read_text()

    def stop(self) -> None:
        """Power off: the server, its sessions and what runs in them, without a word."""
        for pid in reversed(descendants(self.process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


class Cable:
    """Carries connections to a port of this machine, until it is cut; threads of its own, no bytes lost or changed."""

    def __init__(self, to_port: int) -> None:
        self.to_port = to_port
        self.sent_bytes = 0  # towards the server
        self.connections = 0
        self.cut_at: int | None = None  # after so many bytes it breaks once, and carries the next connection
        self.plugged, self.silent = True, False
        self.ends: list[socket.socket] = []
        self.frozen: list[socket.socket] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                if not self.plugged:
                    near.close()
                    continue
                self.connections += 1
                self.silent = False
                far = socket.create_connection(("127.0.0.1", self.to_port))
                self.ends += [near, far]
                threading.Thread(target=self._carry, args=(near, far, True), daemon=True).start()
                threading.Thread(target=self._carry, args=(far, near, False), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, to_server: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 14):
                if source in self.frozen:
                    continue
                if to_server:
                    self.sent_bytes += len(data)
                    if self.cut_at is not None and self.sent_bytes >= self.cut_at:
                        self.cut_at = None
                        self.cut()
                sink.sendall(data)
        # the far end hears nothing when the cable died silently
        for end in (source, sink) if not self.silent else ():
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Both ends see their connection break."""
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def unplug_silently(self) -> None:
        """The client's end breaks, while the server hears nothing at all: as a router that lost its power."""
        self.silent = True
        for end in self.ends[::2]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def freeze(self) -> None:
        """Nothing gets through any more, and neither end hears of it; the next connection is another."""
        self.frozen = list(self.ends)

    def remove(self) -> None:
        """No connection more, and every end closed."""
        self.listener.close()
        self.cut()
        for end in self.ends:
            end.close()


@contextlib.contextmanager
def running(folder: Path, settings: str = "") -> Iterator[Server]:
    """A server that listens, and is gone afterwards."""
    server = Server(folder, settings)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def cable(server: Server) -> Iterator[Cable]:
    """A cable between the client's `config` and the server."""
    laid = Cable(server.port)
    server.config.write_text(server.client(laid.port))
    try:
        yield laid
    finally:
        laid.remove()
        server.config.write_text(server.client(server.port))


def keygen(path: Path) -> str:
    """A new key pair; returns the public one."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path.with_suffix(".pub").read_text()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def listens(port: int) -> bool:
    """Whether somebody does."""
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def descendants(pid: int) -> list[int]:
    """A process and all that come from it, parents first."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def until(true: Callable[[], object], seconds: float) -> None:
    """Wait for something to become true.

    Raises:
        AssertionError: it did not.
    """
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)
