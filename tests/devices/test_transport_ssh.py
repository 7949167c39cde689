"""OpenSSH against a real sshd on the loopback, with keys, port, known_hosts and configuration of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgedistill.devices import bench as stage
from edgedistill.devices.transport import connect
from edgedistill.recipe import Bench
from edgedistill.records import Device, EdgeDistillError, OnnxModel

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
MISSING = [name for name in (SSHD, "ssh", "scp", "ssh-keygen") if shutil.which(name) is None]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=f"not installed here: {', '.join(MISSING)}")]
HOST = "edge-test"


def keygen(path: Path) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path.with_suffix(".pub").read_text()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def server_config(folder: Path, port: int) -> Path:
    config = folder / "sshd_config"
    config.write_text(f"""
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/authorized
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
""")
    return config


def client_config(folder: Path, port: int) -> Path:
    config = folder / "config"
    config.write_text(f"""
Host {HOST} dead
  HostName 127.0.0.1
  Port {port}
  User {getpass.getuser()}
  IdentityFile {folder}/client
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile none
  StrictHostKeyChecking yes
Host dead
  Port 1
""")
    # ssh takes the first value it finds, so the port of `dead` must come before the common one
    common, dead = config.read_text().split("Host dead\n")
    config.write_text(f"Host dead\n{dead}{common}")
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A running sshd; its folder holds `config`, with which ssh reaches it as `edge-test`."""
    folder, port = tmp_path_factory.mktemp("sshd"), free_port()
    host_key = keygen(folder / "host")
    (folder / "authorized").write_text(keygen(folder / "client"))
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}")
    client_config(folder, port)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # as root, sshd wants the folder its service would make
    command = [SSHD, "-D", "-e", "-f", str(server_config(folder, port))]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stderr=log) as server:
        try:
            wait_for(port, server, folder / "log")
            yield folder
        finally:
            server.terminate()


def wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(100):
        assert server.poll() is None, log.read_text()
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError(f"sshd does not listen: {log.read_text()}")


def device(tmp_path: Path, host: str = HOST) -> Device:
    return Device("edge", "ssh", host, sys.executable, str(tmp_path / "remote"))


def test_put_run_get_and_nothing_left(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in put.txt").write_text("3")
    lines: list[str] = []
    program = (
        "import sys; n = int(open('in put.txt').read()); open('out.txt', 'w').write(str(n * n)); print(sys.argv[1:])"
    )
    odd = ["a b", "$HOME", "`id`", "it's", "*", ""]
    with connect(device(tmp_path), folder / "config") as transport:
        transport.put([tmp_path / "in put.txt"])
        transport.run([sys.executable, "-c", program, *odd], 60.0, lines.append)
        transport.get("out.txt", tmp_path / "back.txt")
    assert (tmp_path / "back.txt").read_text() == "9"
    assert lines == [str(odd)]
    assert list((tmp_path / "remote").iterdir()) == []


def test_a_remote_failure_carries_exit_code_and_stderr(folder: Path, tmp_path: Path) -> None:
    with connect(device(tmp_path), folder / "config") as transport:
        with pytest.raises(EdgeDistillError, match="exited with 7: no such thing"):
            transport.run(["sh", "-c", "echo no such thing >&2; exit 7"], 60.0)
        with pytest.raises(EdgeDistillError, match="still running after 1 s"):
            transport.run(["sleep", "20"], 1.0)
        with pytest.raises(EdgeDistillError, match="none"):
            transport.get("none", tmp_path / "x")


def test_bench_over_ssh_is_bench(
    folder: Path, tmp_path: Path, bundle: Path, models: list[tuple[Path, OnnxModel]]
) -> None:
    quick = Bench(processes=2, rounds=2, samples=40, seconds=0.01, accuracy_images=10)
    records = [record for _, record in models]
    config = folder / "config"
    reports = stage.bench(
        bundle, device(tmp_path), "onnxruntime-cpu", quick, records, tmp_path / "out", ssh_config=config
    )
    assert [report.agreement_with_host for report in reports] == [1.0, 1.0]
    assert (tmp_path / "out" / "edge" / "onnxruntime-cpu-int8-cpu.json").is_file()
    assert stage.probe(device(tmp_path), ssh_config=config)["backends"]["onnxruntime-cpu"][0].isdigit()


def refused(device: Device, config: Path) -> str:
    with pytest.raises(EdgeDistillError) as caught, connect(device, config):
        raise AssertionError("it connected")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_unreachable_host_is_said(folder: Path, tmp_path: Path) -> None:
    said = refused(device(tmp_path, "dead"), folder / "config")
    assert "OpenSSH to dead" in said and "refused" in said
    assert said.endswith("is it on and reachable? try `ssh dead true`")


def altered(folder: Path, tmp_path: Path, before: str, after: str) -> Path:
    text = (folder / "config").read_text()
    assert before in text
    (tmp_path / "config").write_text(text.replace(before, after))
    return tmp_path / "config"


def test_a_changed_host_key_is_refused(folder: Path, tmp_path: Path) -> None:
    place, _, _ = (folder / "known_hosts").read_text().partition(" ")
    (tmp_path / "known").write_text(f"{place} {keygen(tmp_path / 'another')}")
    said = refused(device(tmp_path), altered(folder, tmp_path, f"{folder}/known_hosts", f"{tmp_path}/known"))
    assert "HAS CHANGED" in said.upper()
    assert "ssh-keygen -R" in said


def test_an_unknown_host_key_is_refused_and_not_kept(folder: Path, tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.touch()
    said = refused(device(tmp_path), altered(folder, tmp_path, f"{folder}/known_hosts", str(known)))
    assert "host key verification failed" in said.lower()
    assert "check the fingerprint" in said
    assert known.read_text() == ""


def test_a_key_that_is_not_installed_asks_for_no_password(folder: Path, tmp_path: Path) -> None:
    keygen(tmp_path / "stranger")
    said = refused(device(tmp_path), altered(folder, tmp_path, f"{folder}/client", f"{tmp_path}/stranger"))
    assert "Permission denied" in said
    assert f"ssh-copy-id {HOST}" in said
