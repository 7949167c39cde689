"""OpenSSH against a real sshd on the loopback: files sent and fetched, and the messages when a connection fails."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.interrupts import processes_of
from edgedistill.devices import ssh
from edgedistill.devices.transport import connect
from edgedistill.errors import EdgeDistillError, InputError
from edgedistill.measurements import Device
from edgedistill.run import interrupts
from tests.helpers import sshd
from tests.helpers.sshd import HOST, Server

pytestmark = sshd.MARKS
ODD = ["a b", "$HOME", "`id`", "it's", '"', "*", "", "-n", "x;y", "\\", "a\\'b!c", "!!", "é"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with sshd.running(tmp_path_factory.mktemp("sshd")) as server:
        yield server


def device(tmp_path: Path, host: str = HOST, folder: str = "remote") -> Device:
    return Device(name="edge", transport="ssh", host=host, python=sys.executable, workdir=str(tmp_path / folder))


def square(device: Device, config: Path, tmp_path: Path, name: str) -> list[str]:
    """Send a number in a file called `name`, fetch its square, and return the lines printed meanwhile."""
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
def test_put_run_get_round_trip_leaves_no_files(server: Server, tmp_path: Path, name: str) -> None:
    assert square(device(tmp_path), server.config, tmp_path, name) == [str([name, *ODD])]
    assert list((tmp_path / "remote").iterdir()) == []


@pytest.mark.parametrize("folder", ["my bench", 'it\'s "$HOME" `id`;*', "a/b/c", "%h"])
def test_workdir_with_special_characters_works(server: Server, tmp_path: Path, folder: str) -> None:
    square(device(tmp_path, folder=folder), server.config, tmp_path, "in.txt")
    assert (tmp_path / folder).is_dir() and list((tmp_path / folder).iterdir()) == []


@pytest.mark.parametrize("forced", ["echo only backups here", "/bin/false", 'echo "$SSH_ORIGINAL_COMMAND"'])
def test_forced_command_is_named(tmp_path: Path, forced: str) -> None:
    fix = r"ForceCommand in sshd_config\) or no shell: use a key and an account that may run programs"
    (tmp_path / "sshd").mkdir()
    with (
        sshd.running(tmp_path / "sshd", f"ForceCommand {forced}") as server,
        pytest.raises(EdgeDistillError, match=fix),
        connect(device(tmp_path), server.config),
    ):
        pass


def test_file_round_trip_preserves_bytes(server: Server, tmp_path: Path) -> None:
    content = bytes(range(256)) * 5
    (tmp_path / "data").write_bytes(content)
    with connect(device(tmp_path), server.config) as transport:
        transport.put([tmp_path / "data"])
        transport.get("data", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content


def test_folder_is_accessible_to_owner_only(server: Server, tmp_path: Path) -> None:
    with connect(device(tmp_path), server.config) as transport:
        folder = Path(transport.run(["pwd"], 60.0).stdout.strip())
        assert folder.parent == tmp_path / "remote"
        assert folder.stat().st_mode & 0o777 == 0o700


def test_remote_failure_carries_exit_code_and_stderr(server: Server, tmp_path: Path) -> None:
    with connect(device(tmp_path), server.config) as transport:
        with pytest.raises(EdgeDistillError, match="exited with 7: no such thing"):
            transport.run(["sh", "-c", "echo no such thing >&2; exit 7"], 60.0)
        # ssh itself exits with 255 for a lost connection; the program's 255 must not be taken for one
        with pytest.raises(EdgeDistillError, match="exited with 254"):
            transport.run(["sh", "-c", "exit 255"], 60.0)
        with pytest.raises(EdgeDistillError, match=r"exited with 127: .*no-such-program: .*found; install it there"):
            transport.run(["no-such-program"], 60.0)
        with pytest.raises(EdgeDistillError, match="fetching none: none: No such file"):
            transport.get("none", tmp_path / "x")
        assert not (tmp_path / "x").exists()


def test_hanging_program_is_ended_on_device(server: Server, tmp_path: Path) -> None:
    # a program that ignores SIGTERM, with a child that holds its output open
    program = "import signal, subprocess; signal.signal(15, signal.SIG_IGN); subprocess.call(['sleep', '1234'])"
    with connect(device(tmp_path), server.config) as transport:
        with pytest.raises(EdgeDistillError, match="still running after 2 s, ended"):
            transport.run([sys.executable, "-c", program], 2.0)
        sshd.wait_until(lambda: "1234" not in commands(server), 10)


@pytest.mark.usefixtures("heeded_ctrl_c")
@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "0123456789abcdef"), (signal.SIGTERM, "")])
def test_signal_ends_the_program_and_the_connection(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, name: str
) -> None:
    monkeypatch.setenv("EDGEDISTILL_MARK", str(tmp_path))  # on this side: sshd does not take it over
    program = "import time; print('ready', flush=True); time.sleep(4321)"
    job = f"job-{name}" if name else ""
    with (
        pytest.raises(SystemExit),
        interrupts.handled(""),
        connect(device(tmp_path), server.config, job) as transport,
    ):
        transport.run([sys.executable, "-c", program], 600.0, lambda line: os.kill(os.getpid(), number))
    sshd.wait_until(lambda: "4321" not in commands(server, "python"), 20)
    sshd.wait_until(lambda: not processes_of(str(tmp_path)), 10)
    # the next try goes on in the job's folder, and would not find a nameless one
    assert [path.name for path in (tmp_path / "remote").iterdir()] == ([job] if job else [])


def commands(server: Server, program: str = "sleep") -> str:
    """Return the command lines of all processes of a program."""
    process = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert "sshd" in process.stdout
    return "\n".join(line for line in process.stdout.splitlines() if program in line)


SHELLS = ["dash", "bash", "zsh", "fish", "tcsh", "busybox sh"]


@pytest.mark.parametrize("shell", SHELLS)
def test_login_shells_and_their_greetings_work(tmp_path: Path, shell: str) -> None:
    if shutil.which(shell.split(maxsplit=1)[0]) is None:
        pytest.skip(f"no {shell} here")
    (tmp_path / "bin").mkdir()
    if shell.startswith("busybox"):
        (tmp_path / "bin" / "sh").symlink_to(str(shutil.which("busybox")))
    noise = f'echo welcome; echo welcome >&2; PATH={tmp_path}/bin:$PATH exec {shell} -c "$SSH_ORIGINAL_COMMAND"'
    (tmp_path / "sshd").mkdir()
    with sshd.running(tmp_path / "sshd", f"ForceCommand {noise}") as server:
        assert square(device(tmp_path), server.config, tmp_path, "it's") == [str(["it's", *ODD])]


def test_device_without_sha256sum_works(tmp_path: Path) -> None:
    needed = ["sh", "cat", "mkdir", "touch", "chmod", "find", "rm", "df", "tail", "wc", "cut", "mv", "grep", "sleep"]
    (tmp_path / "bin").mkdir()
    for name in needed:
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    (tmp_path / "sshd").mkdir()
    small = f'ForceCommand exec env -i PATH={tmp_path}/bin sh -c "$SSH_ORIGINAL_COMMAND"'
    with sshd.running(tmp_path / "sshd", small) as server:
        square(device(tmp_path), server.config, tmp_path, "in.txt")


def test_all_commands_share_one_connection(server: Server, tmp_path: Path) -> None:
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


def test_hostile_ssh_settings_of_user_are_overridden(server: Server, tmp_path: Path) -> None:
    with sshd.cable(server) as cable:
        # a port in use, and a command that leaves a file
        hostile = HOSTILE.format(port=server.port, mine=tmp_path / "mine")
        config = server.altered_config(tmp_path / "config", f"HostKeyAlias {HOST}", f"HostKeyAlias {HOST}{hostile}")
        assert len(square(device(tmp_path), config, tmp_path, "in.txt")) == 1
        assert cable.connections == 1
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("name", ["x" * 100, "%h 'it"])
def test_temporary_folder_with_odd_name_works(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with tempfile.TemporaryDirectory(prefix=name, dir="/tmp") as folder, sshd.cable(server) as cable:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        square(device(tmp_path), server.config, tmp_path, "in.txt")
        assert cable.connections == 1


def test_dead_master_connection_is_replaced(server: Server, tmp_path: Path) -> None:
    connection = ssh.OpenSsh(device(tmp_path), server.config)
    connection.open()
    assert connection.sockets is not None
    check = ["ssh", "-F", str(server.config), "-S", str(connection.sockets / "s"), "-O", "check", HOST]
    status = subprocess.run(check, capture_output=True, text=True, check=True).stderr  # Master running (pid=123)
    subprocess.run(["kill", "-KILL", status.partition("pid=")[2].partition(")")[0]], check=True)
    assert connection.run(["echo", "still here"], 60.0).stdout == "still here\n"
    sockets = connection.sockets
    connection.close()
    assert not sockets.exists()
    assert subprocess.run(check, capture_output=True, check=False).returncode == 255


def refusal(device: Device, config: Path) -> str:
    with pytest.raises(EdgeDistillError) as caught, connect(device, config):
        raise AssertionError("it connected")
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, ssh.ConnectionLostError)
    return str(caught.value)


def test_unreachable_host_is_reported(server: Server, tmp_path: Path) -> None:
    message = refusal(device(tmp_path, "dead"), server.config)
    assert "OpenSSH to dead" in message and "refused" in message
    assert message.endswith("is it on and reachable? try `ssh dead true`")


def test_unresolvable_host_name_is_reported(server: Server, tmp_path: Path) -> None:
    message = refusal(device(tmp_path, "no-such-host.invalid"), server.config)
    assert "Could not resolve hostname" in message
    assert message.endswith("or give user@address as host in deploy/devices.yaml")


def test_silent_host_times_out(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "ConnectTimeout=10" in ssh.CONNECTION
    shorter_timeout = tuple(option.replace("ConnectTimeout=10", "ConnectTimeout=2") for option in ssh.CONNECTION)
    monkeypatch.setattr(ssh, "CONNECTION", shorter_timeout)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = server.altered_config(tmp_path / "config", f"Port {server.port}", f"Port {silent.getsockname()[1]}")
        assert "timed out" in refusal(device(tmp_path), config)


@pytest.mark.parametrize("strict", ["", "\n  StrictHostKeyChecking no"])
def test_changed_host_key_is_refused(server: Server, tmp_path: Path, strict: str) -> None:
    known_hosts = f"{server.folder}/known_hosts"
    (tmp_path / "known").write_text(f"{HOST} {sshd.keygen(tmp_path / 'another')}")
    message = refusal(
        device(tmp_path), server.altered_config(tmp_path / "config", known_hosts, f"{tmp_path}/known{strict}")
    )
    assert "HAS CHANGED" in message.upper() and "@@@" not in message
    assert "ssh-keygen -R" in message


@pytest.mark.parametrize("strict", ["", "\n  StrictHostKeyChecking no"])
def test_unknown_host_key_is_refused_and_not_saved(server: Server, tmp_path: Path, strict: str) -> None:
    known_hosts = tmp_path / "known"
    known_hosts.touch()
    config = server.altered_config(tmp_path / "config", f"{server.folder}/known_hosts", f"{known_hosts}{strict}")
    message = refusal(device(tmp_path), config)
    assert "host key verification failed" in message.lower()
    assert "check the fingerprint" in message
    assert known_hosts.read_text() == ""


def test_uninstalled_key_does_not_ask_for_password(server: Server, tmp_path: Path) -> None:
    sshd.keygen(tmp_path / "stranger")
    message = refusal(
        device(tmp_path), server.altered_config(tmp_path / "config", f"{server.folder}/client", f"{tmp_path}/stranger")
    )
    assert "Permission denied" in message
    assert f"ssh-copy-id {HOST}" in message


def test_server_banner_is_left_out_of_error(tmp_path: Path) -> None:
    (tmp_path / "greeting").write_text("Unauthorized use of this board will be prosecuted.\n")
    (tmp_path / "sshd").mkdir()
    with sshd.running(tmp_path / "sshd", f"Banner {tmp_path}/greeting") as server:
        sshd.keygen(tmp_path / "stranger")
        config = server.altered_config(tmp_path / "config", f"{server.folder}/client", f"{tmp_path}/stranger")
        assert "prosecuted" not in refusal(device(tmp_path), config)


def test_jump_host_does_not_ask_for_passphrase(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the correct passphrase is available, and ssh must not ask for it
    subprocess.run(
        ["ssh-keygen", "-q", "-p", "-N", "secret", "-f", str(copy_key(server, tmp_path))],
        check=True,
        capture_output=True,
    )
    (tmp_path / "ask").write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\necho secret\n")
    (tmp_path / "ask").chmod(0o755)
    monkeypatch.setenv("SSH_ASKPASS", str(tmp_path / "ask"))
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "force")
    jump = server.altered_config(tmp_path / "jump", f"{server.folder}/client", f"{tmp_path}/locked")
    proxy = f"  ProxyCommand ssh -F {jump} -W %h:%p {HOST}\n"
    (tmp_path / "config").write_text(server.config.read_text() + proxy)
    assert "Connection closed" in refusal(device(tmp_path), tmp_path / "config")
    assert not (tmp_path / "asked").exists()


def copy_key(server: Server, tmp_path: Path) -> Path:
    shutil.copy(server.folder / "client", tmp_path / "locked")
    (tmp_path / "locked").chmod(0o600)
    return tmp_path / "locked"


def test_impossible_workdir_is_reported(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = refusal(device(tmp_path, folder="file/x"), server.config)
    assert "file/x" in message and "Not a directory" in message
    assert message.endswith("name another workdir in deploy/devices.yaml")


def test_missing_ssh_client_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="install the OpenSSH client"), connect(device(tmp_path)):
        pass
