"""A private PostgreSQL server for a test: own folder, loopback, free port, stopped at the end."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


def programs() -> Path:
    """The folder of initdb and postgres; skips the test where PostgreSQL is not installed."""
    initdbs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    if not initdbs:
        pytest.skip("no PostgreSQL on this machine: apt-get install postgresql")
    return initdbs[-1].parent


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def server() -> Iterator[str]:
    """The address of a fresh, empty database."""
    binaries, port = programs(), free_port()
    folder = Path(tempfile.mkdtemp(prefix="edgedistill-postgres-"))
    user = None
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root; its package creates a user
        user = "postgres"
        os.chown(folder, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder} -c fsync=off"

    def call(*argv: str) -> None:
        subprocess.run(argv, check=True, user=user, cwd=folder, timeout=60, capture_output=True)

    database, log = str(folder / "data"), str(folder / "log")
    try:
        call(str(binaries / "initdb"), "-D", database, "-U", "edge", "-A", "trust", "--no-sync")
        call(str(binaries / "pg_ctl"), "-D", database, "-l", log, "-w", "-o", options, "start")
        try:
            yield f"postgresql://edge@127.0.0.1:{port}/postgres"
        finally:
            call(str(binaries / "pg_ctl"), "-D", database, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
