"""OpenSSH against a real sshd on the loopback: what arrives, what comes back, and what is said when nobody answers."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgedistill.devices import ssh
from edgedistill.devices.transport import connect
from edgedistill.errors import EdgeDistillError, InputError
from edgedistill.records import Device
from tests.helpers import sshd
from tests.helpers.sshd import HOST, Server

pytestmark = sshd.TIER
ODD = ["a b", "$HOME", "`id`", "it's", '"', "*", "", "-n", "x;y", "\\", "a\\'b!c", "!!", "é"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with sshd.running(tmp_path_factory.mktemp("sshd")) as server:
        yield server


def device(tmp_path: Path, host: str = HOST, folder: str = "remote") -> Device:
    return Device(name="edge", transport="ssh", host=host, python=sys.executable, workdir=str(tmp_path / folder))


def square(device: Device, config: Path, tmp_path: Path, name: str) -> list[str]:
    """Sends a number in a file of that name and gets its square back; returns the lines that came meanwhile."""
    (tmp_path / name).write_text("3")
    lines: list[str] = []
    program = "import sys; n = int(open(sys.argv[1]).read()); open('out', 'w').write(str(n * n)); print(sys.argv[1:])"
    with connect(device, config) as transport:
        transport.put([tmp_path / name])
        transport.run([sys.executable, "-c", program, name, *ODD], 60.0, lines.append)
        transport.get("out", tmp_path / "back")
    assert (tmp_path / "back").read_text() == "9"
    return lines


@pytest.mark.parametrize("name", ["in put.txt", 'it\'s "$HOME" `id`;*.npy', "-n"])
def test_put_run_get_and_nothing_left(server: Server, tmp_path: Path, name: str) -> None:
    assert square(device(tmp_path), server.config, tmp_path, name) == [str([name, *ODD])]
    assert list((tmp_path / "remote").iterdir()) == []


@pytest.mark.parametrize("folder", ["my bench", 'it\'s "$HOME" `id`;*', "a/b/c", "%h"])
def test_any_workdir_is_safe(server: Server, tmp_path: Path, folder: str) -> None:
    square(device(tmp_path, folder=folder), server.config, tmp_path, "in.txt")
    assert (tmp_path / folder).is_dir() and list((tmp_path / folder).iterdir()) == []


def test_bytes_come_back_as_they_are(server: Server, tmp_path: Path) -> None:
    data = bytes(range(256)) * 5
    (tmp_path / "data").write_bytes(data)
    with connect(device(tmp_path), server.config) as transport:
        transport.put([tmp_path / "data"])
        transport.get("data", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data


def test_the_folder_is_its_owners_alone(server: Server, tmp_path: Path) -> None:
    with connect(device(tmp_path), server.config) as transport:
        where = Path(transport.run(["pwd"], 60.0).stdout.strip())
        assert where.parent == tmp_path / "remote"
        assert where.stat().st_mode & 0o777 == 0o700


def test_a_remote_failure_carries_exit_code_and_stderr(server: Server, tmp_path: Path) -> None:
    with connect(device(tmp_path), server.config) as transport:
        with pytest.raises(EdgeDistillError, match="exited with 7: no such thing"):
            transport.run(["sh", "-c", "echo no such thing >&2; exit 7"], 60.0)
        # 255 is ssh's own word for a lost connection, and must not be taken for one
        with pytest.raises(EdgeDistillError, match="exited with 254"):
            transport.run(["sh", "-c", "exit 255"], 60.0)
        with pytest.raises(EdgeDistillError, match=r"exited with 127: .*no-such-program: .*found; install it there"):
            transport.run(["no-such-program"], 60.0)
        with pytest.raises(EdgeDistillError, match="fetching none: none: No such file"):
            transport.get("none", tmp_path / "x")
        assert not (tmp_path / "x").exists()


def test_what_hangs_is_ended_there_too(server: Server, tmp_path: Path) -> None:
    # a program that does not listen to SIGTERM, with a child that holds its output open
    program = "import signal, subprocess; signal.signal(15, signal.SIG_IGN); subprocess.call(['sleep', '1234'])"
    with connect(device(tmp_path), server.config) as transport:
        with pytest.raises(EdgeDistillError, match="still running after 2 s, ended"):
            transport.run([sys.executable, "-c", program], 2.0)
        sshd.until(lambda: "1234" not in commands(server), 10)


def commands(server: Server) -> str:
    """The command lines of everything that runs below the server, or did when its connection was there."""
    done = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert "sshd" in done.stdout
    return "\n".join(line for line in done.stdout.splitlines() if "sleep" in line)


SHELLS = ["dash", "bash", "zsh", "fish", "tcsh", "busybox sh"]


@pytest.mark.parametrize("shell", SHELLS)
def test_any_login_shell_and_its_noise(tmp_path: Path, shell: str) -> None:
    if shutil.which(shell.split(maxsplit=1)[0]) is None:
        pytest.skip(f"no {shell} here")
    (tmp_path / "bin").mkdir()
    if shell.startswith("busybox"):
        (tmp_path / "bin" / "sh").symlink_to(str(shutil.which("busybox")))
    noise = f'echo welcome; echo welcome >&2; PATH={tmp_path}/bin:$PATH exec {shell} -c "$SSH_ORIGINAL_COMMAND"'
    (tmp_path / "sshd").mkdir()
    with sshd.running(tmp_path / "sshd", f"ForceCommand {noise}") as server:
        assert square(device(tmp_path), server.config, tmp_path, "it's") == [str(["it's", *ODD])]


def test_a_small_system_has_no_sha256sum(tmp_path: Path) -> None:
    needed = ["sh", "cat", "mkdir", "touch", "chmod", "find", "rm", "df", "tail", "wc", "cut", "mv", "grep", "sleep"]
    (tmp_path / "bin").mkdir()
    for name in needed:
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    (tmp_path / "sshd").mkdir()
    small = f'ForceCommand exec env -i PATH={tmp_path}/bin sh -c "$SSH_ORIGINAL_COMMAND"'
    with sshd.running(tmp_path / "sshd", small) as server:
        square(device(tmp_path), server.config, tmp_path, "in.txt")


def test_one_connection_carries_everything(server: Server, tmp_path: Path) -> None:
    with sshd.cable(server) as cable:
        square(device(tmp_path), server.config, tmp_path, "in.txt")
        assert cable.connections == 1


HOSTILE = """
  ControlMaster yes
  ControlPath /nonexistent/%h
  ControlPersist no
  RemoteCommand echo mine
  RequestTTY force
  LocalForward 127.0.0.1:{port} localhost:2
  ExitOnForwardFailure yes
  PermitLocalCommand yes
  LocalCommand touch {mine}
  LogLevel QUIET
  BatchMode no
"""


def test_the_users_settings_of_sharing_and_commands_do_no_harm(server: Server, tmp_path: Path) -> None:
    with sshd.cable(server) as cable:
        # a port that is taken, and a command that leaves a trace
        hostile = HOSTILE.format(port=server.port, mine=tmp_path / "mine")
        config = server.altered(tmp_path / "config", f"HostKeyAlias {HOST}", f"HostKeyAlias {HOST}{hostile}")
        assert len(square(device(tmp_path), config, tmp_path, "in.txt")) == 1
        assert cable.connections == 1
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("name", ["x" * 100, "%h 'it"])
def test_any_temporary_folder_will_do(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with tempfile.TemporaryDirectory(prefix=name, dir="/tmp") as folder, sshd.cable(server) as cable:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        square(device(tmp_path), server.config, tmp_path, "in.txt")
        assert cable.connections == 1


def test_a_dead_master_is_replaced(server: Server, tmp_path: Path) -> None:
    found = ssh.OpenSsh(device(tmp_path), server.config)
    found.open()
    assert found.sockets is not None
    check = ["ssh", "-F", str(server.config), "-S", str(found.sockets / "s"), "-O", "check", HOST]
    told = subprocess.run(check, capture_output=True, text=True, check=True).stderr  # Master running (pid=123)
    subprocess.run(["kill", "-KILL", told.partition("pid=")[2].partition(")")[0]], check=True)
    assert found.run(["echo", "still here"], 60.0).stdout == "still here\n"
    sockets = found.sockets
    found.close()
    assert not sockets.exists()
    assert subprocess.run(check, capture_output=True, check=False).returncode == 255


def refused(device: Device, config: Path) -> str:
    with pytest.raises(EdgeDistillError) as caught, connect(device, config):
        raise AssertionError("it connected")
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, ssh.ConnectionLostError)
    return str(caught.value)


def test_an_unreachable_host_is_said(server: Server, tmp_path: Path) -> None:
    said = refused(device(tmp_path, "dead"), server.config)
    assert "OpenSSH to dead" in said and "refused" in said
    assert said.endswith("is it on and reachable? try `ssh dead true`")


def test_a_name_that_does_not_resolve_is_said(server: Server, tmp_path: Path) -> None:
    said = refused(device(tmp_path, "no-such-host.invalid"), server.config)
    assert "Could not resolve hostname" in said
    assert said.endswith("or give user@address as host in deploy/devices.yaml")


def test_a_host_that_never_answers_is_given_up(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "ConnectTimeout=10" in ssh.CONNECTION
    soon = tuple(one.replace("ConnectTimeout=10", "ConnectTimeout=2") for one in ssh.CONNECTION)
    monkeypatch.setattr(ssh, "CONNECTION", soon)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = server.altered(tmp_path / "config", f"Port {server.port}", f"Port {silent.getsockname()[1]}")
        assert "timed out" in refused(device(tmp_path), config)


@pytest.mark.parametrize("strict", ["", "\n  StrictHostKeyChecking no"])
def test_a_changed_host_key_is_refused(server: Server, tmp_path: Path, strict: str) -> None:
    known = f"{server.folder}/known_hosts"
    (tmp_path / "known").write_text(f"{HOST} {sshd.keygen(tmp_path / 'another')}")
    said = refused(device(tmp_path), server.altered(tmp_path / "config", known, f"{tmp_path}/known{strict}"))
    assert "HAS CHANGED" in said.upper() and "@@@" not in said
    assert "ssh-keygen -R" in said


@pytest.mark.parametrize("strict", ["", "\n  StrictHostKeyChecking no"])
def test_an_unknown_host_key_is_refused_and_not_kept(server: Server, tmp_path: Path, strict: str) -> None:
    known = tmp_path / "known"
    known.touch()
    config = server.altered(tmp_path / "config", f"{server.folder}/known_hosts", f"{known}{strict}")
    said = refused(device(tmp_path), config)
    assert "host key verification failed" in said.lower()
    assert "check the fingerprint" in said
    assert known.read_text() == ""


def test_a_key_that_is_not_installed_asks_for_no_password(server: Server, tmp_path: Path) -> None:
    sshd.keygen(tmp_path / "stranger")
    said = refused(
        device(tmp_path), server.altered(tmp_path / "config", f"{server.folder}/client", f"{tmp_path}/stranger")
    )
    assert "Permission denied" in said
    assert f"ssh-copy-id {HOST}" in said


def test_a_greeting_is_no_part_of_what_went_wrong(tmp_path: Path) -> None:
    (tmp_path / "greeting").write_text("Unauthorised use of this board will be prosecuted.\n")
    (tmp_path / "sshd").mkdir()
    with sshd.running(tmp_path / "sshd", f"Banner {tmp_path}/greeting") as server:
        sshd.keygen(tmp_path / "stranger")
        config = server.altered(tmp_path / "config", f"{server.folder}/client", f"{tmp_path}/stranger")
        assert "prosecuted" not in refused(device(tmp_path), config)


def test_a_jump_host_asks_for_no_passphrase_either(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a right answer is at hand, and nobody may ask for it
    subprocess.run(
        ["ssh-keygen", "-q", "-p", "-N", "secret", "-f", str(locked(server, tmp_path))], check=True, capture_output=True
    )
    (tmp_path / "ask").write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\necho secret\n")
    (tmp_path / "ask").chmod(0o755)
    monkeypatch.setenv("SSH_ASKPASS", str(tmp_path / "ask"))
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "force")
    jump = server.altered(tmp_path / "jump", f"{server.folder}/client", f"{tmp_path}/locked")
    proxy = f"  ProxyCommand ssh -F {jump} -W %h:%p {HOST}\n"
    (tmp_path / "config").write_text(server.config.read_text() + proxy)
    assert "Connection closed" in refused(device(tmp_path), tmp_path / "config")
    assert not (tmp_path / "asked").exists()


def locked(server: Server, tmp_path: Path) -> Path:
    shutil.copy(server.folder / "client", tmp_path / "locked")
    (tmp_path / "locked").chmod(0o600)
    return tmp_path / "locked"


def test_a_workdir_that_cannot_be_is_said(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = refused(device(tmp_path, folder="file/x"), server.config)
    assert "file/x" in said and "Not a directory" in said
    assert said.endswith("name another workdir in deploy/devices.yaml")


def test_no_ssh_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="install the OpenSSH client"), connect(device(tmp_path)):
        pass
