"""A real sshd on the loopback, with keys, port, known_hosts and configuration of its own, and a cable to cut."""

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
MARKS = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=f"not installed here: {', '.join(MISSING)}")]
HOST = "edge-test"


class Server:
    """sshd in `folder`; `config` there lets ssh reach it as `edge-test`, through a cable if there is one."""

    def __init__(self, folder: Path, settings: str = "") -> None:
        self.folder, self.settings = folder, settings
        self.port = free_port()
        host_key = keygen(folder / "host")
        (folder / "authorized").write_text(keygen(folder / "client"))
        (folder / "known_hosts").write_text(f"{HOST} {host_key}")
        (folder / "config").write_text(self.client(self.port))
        (folder / "sshd_config").write_text(self.server())
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(
                mode=0o755, exist_ok=True
            )  # as root, sshd needs the folder that its service creates

    def client(self, port: int) -> str:
        """A client's configuration, without the options that the program sets itself."""
        # ssh takes the first matching value, so the port of `dead` must come before the common one
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

    def altered_config(self, path: Path, before: str, after: str) -> Path:
        """The client's configuration with `before` replaced by `after`, written to `path`."""
        assert before in self.config.read_text()
        path.write_text(self.config.read_text().replace(before, after))
        return path

    def start(self) -> None:
        """Start listening; returns once a connection is accepted."""
        command = [SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")]
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(command, stderr=log)
        wait_until(lambda: self.process.poll() is not None or listens(self.port), 10)
        assert self.process.poll() is None, (self.folder / "log").read_text()

    def stop(self) -> None:
        """Kill the server, its sessions and their processes, as a power failure would."""
        for pid in reversed(descendants(self.process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


class Cable:
    """Forwards connections to a port of this machine, until it is cut; own threads, no bytes lost or changed."""

    def __init__(self, to_port: int) -> None:
        self.to_port = to_port
        self.sent_bytes = 0  # toward the server
        self.connections = 0
        self.cut_at: int | None = None  # breaks once after so many bytes, and carries the next connection
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
            while chunk := source.recv(1 << 14):
                if source in self.frozen:
                    continue
                if to_server:
                    self.sent_bytes += len(chunk)
                    if self.cut_at is not None and self.sent_bytes >= self.cut_at:
                        self.cut_at = None
                        self.cut()
                sink.sendall(chunk)
        # the far end gets no signal from a silent failure
        for end in (source, sink) if not self.silent else ():
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Break every connection; both ends notice."""
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def unplug_silently(self) -> None:
        """Break the client's end without a signal to the server, as a router that loses power does."""
        self.silent = True
        for end in self.ends[::2]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def freeze(self) -> None:
        """Drop all bytes of the present connections, without a signal to either end; new connections work."""
        self.frozen = list(self.ends)

    def remove(self) -> None:
        """Close the listener and every connection."""
        self.listener.close()
        self.cut()
        for end in self.ends:
            end.close()


@contextlib.contextmanager
def running(folder: Path, settings: str = "") -> Iterator[Server]:
    """A server that listens, and is stopped on exit."""
    server = Server(folder, settings)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def cable(server: Server) -> Iterator[Cable]:
    """A cable between the client's `config` and the server."""
    cable_ = Cable(server.port)
    server.config.write_text(server.client(cable_.port))
    try:
        yield cable_
    finally:
        cable_.remove()
        server.config.write_text(server.client(server.port))


def keygen(path: Path) -> str:
    """Create a key pair; returns the public key."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path.with_suffix(".pub").read_text()


def free_port() -> int:
    """A port that no process listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def listens(port: int) -> bool:
    """Whether a process listens on the port."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def descendants(pid: int) -> list[int]:
    """A process and its descendants, parents first."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    pids = [pid]
    for parent_pid in pids:
        pids += [child for child, parent in parents.items() if parent == parent_pid]
    return pids


def wait_until(condition: Callable[[], object], seconds: float) -> None:
    """Wait until `condition()` is true.

    Raises:
        AssertionError: it is not true within `seconds`.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)
