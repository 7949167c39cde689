"""Copies over OpenSSH that break, arrive altered, or find no space; and folders of old runs."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgedistill.devices import ssh, transport
from edgedistill.devices.shell import PART
from edgedistill.devices.transport import connect, job_name
from edgedistill.errors import EdgeDistillError
from edgedistill.measurements import Device
from tests.helpers import sshd
from tests.helpers.sshd import HOST, Server

pytestmark = sshd.MARKS
MB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with sshd.running(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(name="edge", transport="ssh", host=HOST, python=sys.executable, workdir=str(tmp_path / "remote"))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """A file of 1 MB and a file of 8 MB."""
    paths = []
    for name, size in (("small model.onnx", MB), ("images.npy", 8 * MB)):
        (tmp_path / name).write_bytes(random.Random(size).randbytes(size))
        paths.append(tmp_path / name)
    return paths


def remote_folder(device: Device) -> Path:
    (path,) = Path(device.workdir).iterdir()
    return path


def break_off(server: Server, device: Device, files: list[Path], after: int) -> str:
    """Start a copy whose connection breaks after `after` bytes, and return the job's name."""
    job = job_name(device, files)
    with sshd.cable(server) as cable, pytest.raises(ssh.ConnectionLostError):  # noqa: SIM117 the cable is for `connect`
        with connect(device, server.config, job) as connection:
            cable.cut_at = cable.sent_bytes + after
            connection.put(files)
    return job


def final_size(part: Path) -> int:
    """Return the size of a partial file once it has stopped growing."""
    sizes = [-1]
    sshd.wait_until(lambda: sizes.append(part.stat().st_size) or sizes[-1] == sizes[-8:][0] > MB, 10)
    return sizes[-1]


def test_broken_copy_resumes_where_it_broke(server: Server, device: Device, files: list[Path]) -> None:
    job = break_off(server, device, files, 7 * MB)
    assert (remote_folder(device) / "small model.onnx").read_bytes() == files[0].read_bytes()
    n_sent = final_size(remote_folder(device) / f"{PART}images.npy")
    with sshd.cable(server) as cable, connect(device, server.config, job) as connection:
        connection.put(files)
        assert 0 < cable.sent_bytes - (8 * MB - n_sent) < 50_000
        assert [(remote_folder(device) / file.name).read_bytes() for file in files] == [
            file.read_bytes() for file in files
        ]
        before = cable.sent_bytes
        connection.put(files)
        assert cable.sent_bytes - before < 50_000
    assert not (Path(device.workdir) / job).exists()


def test_altered_partial_file_is_sent_again(server: Server, device: Device, files: list[Path]) -> None:
    job = break_off(server, device, files, 7 * MB)
    part = remote_folder(device) / f"{PART}images.npy"
    final_size(part)
    with part.open("r+b") as stream:
        stream.seek(MB)
        stream.write(b"altered")
    with connect(device, server.config, job) as connection:
        connection.put(files)
        assert (remote_folder(device) / "images.npy").read_bytes() == files[1].read_bytes()
        assert not part.exists()


def test_copy_resumes_by_itself_after_reconnect(
    server: Server, device: Device, files: list[Path], tmp_path: Path
) -> None:
    with sshd.cable(server) as cable, connect(device, server.config) as connection:
        cable.cut_at = cable.sent_bytes + 5 * MB
        program = [sys.executable, "-c", "import os; open('n', 'w').write(str(os.path.getsize('images.npy')))"]
        losses = transport.run_with_reconnect(
            connection, files, argv=program, result_path=tmp_path / "n", timeout_s=60.0
        )
        assert cable.connections == 2
    assert (tmp_path / "n").read_text() == str(8 * MB)
    assert len(losses) == 1 and losses[0].startswith("edge: OpenSSH to edge-test: ")


def test_altered_file_is_not_run(server: Server, device: Device, tmp_path: Path) -> None:
    (tmp_path / "agent.py").write_text("open('ran', 'w')")
    with connect(device, server.config) as connection:
        connection.put([tmp_path / "agent.py"])
        (remote_folder(device) / "agent.py").write_text("open('ran', 'w');")
        with pytest.raises(EdgeDistillError, match=r"agent\.py: not on the device as sent .*nothing was run; try"):
            connection.run([sys.executable, "agent.py"], 60.0)
        assert not (remote_folder(device) / "ran").exists()
        (remote_folder(device) / "agent.py").unlink()
        with pytest.raises(EdgeDistillError, match=r"agent\.py: not on the device as sent"):
            connection.run([sys.executable, "agent.py"], 60.0)
        connection.put([tmp_path / "agent.py"])
        connection.run([sys.executable, "agent.py"], 60.0)
        assert (remote_folder(device) / "ran").exists()


def test_copy_altered_twice_is_given_up(device: Device, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "cat").write_text("#!/bin/sh\necho once >>" + str(tmp_path / "times") + "\nexec tr a b\n")
    (tmp_path / "bin" / "cat").chmod(0o755)
    (tmp_path / "agent.py").write_text("a = 1")
    (tmp_path / "sshd").mkdir()
    force = f'ForceCommand PATH={tmp_path}/bin:$PATH exec sh -c "$SSH_ORIGINAL_COMMAND"'
    with sshd.running(tmp_path / "sshd", force) as server, connect(device, server.config) as connection:
        with pytest.raises(EdgeDistillError, match=r"agent\.py: not on the device as sent"):
            connection.put([tmp_path / "agent.py"])
        assert list(remote_folder(device).iterdir()) == []
    assert (tmp_path / "times").read_text() == "once\nonce\n"


@pytest.fixture
def small_disk(device: Device) -> Iterator[Path]:
    """The workdir, mounted as a disk of 2 MB."""
    disk = Path(device.workdir)
    disk.mkdir()
    process = mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk))
    if process.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {process.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def mount(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", *argv], capture_output=True, text=True, check=False)


def test_full_disk_is_reported_before_any_copy(
    server: Server, device: Device, files: list[Path], small_disk: Path
) -> None:
    with sshd.cable(server) as cable, connect(device, server.config) as connection:
        with pytest.raises(EdgeDistillError) as caught:
            connection.put(files)
        assert cable.sent_bytes < 50_000
    shortage = f"no space left in {small_disk}: 2.1 MB free, 26.2 MB needed"
    assert str(caught.value) == f"edge: {shortage}; make room there, or name another workdir in deploy/devices.yaml"


def test_disk_that_fills_during_copy_is_reported_and_copy_resumes(
    server: Server, device: Device, files: list[Path], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "SPARE_BYTES", -100 * MB)
    with sshd.cable(server) as cable, connect(device, server.config) as connection:
        with pytest.raises(EdgeDistillError, match=r"no space left in .*: 0\.0 MB free, .* MB needed; make room there"):
            connection.put(files)
        assert mount("-o", "remount,size=64m", str(small_disk)).returncode == 0
        before = cable.sent_bytes
        connection.put(files)
        assert cable.sent_bytes - before < 7.5 * MB
        assert (remote_folder(device) / "images.npy").read_bytes() == files[1].read_bytes()


def test_only_stale_job_folders_are_removed(server: Server, device: Device, tmp_path: Path) -> None:
    work = Path(device.workdir)
    stale, recent = work / "job-0123456789abcdef", work / "job-fedcba9876543210"
    foreign = [work / "job-mine", work / "results", work / "job-0123456789abcdef0", work / "job-0123456789ABCDEF"]
    for path in (stale, recent, *foreign):
        path.mkdir(parents=True)
    target = tmp_path / "user's"
    target.mkdir()
    (target / "kept").touch()
    (stale / "link").symlink_to(target)
    (stale / "model.onnx").touch()
    link = work / "job-00000000000000ff"
    link.symlink_to(target)
    five_days_ago = time.time() - 5 * 24 * 3600
    for path in (stale, *foreign, target, link):
        os.utime(path, (five_days_ago, five_days_ago), follow_symlinks=False)
    with connect(device, server.config):
        pass
    assert set(work.iterdir()) == {recent, link, *foreign}
    assert (target / "kept").exists()


def test_link_in_place_of_folder_is_refused(server: Server, device: Device, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.mkdir()
    Path(device.workdir).mkdir()
    (Path(device.workdir) / "job-0123456789abcdef").symlink_to(target)
    with pytest.raises(EdgeDistillError, match="is a link"), connect(device, server.config, "job-0123456789abcdef"):
        pass
    assert target.is_dir() and list(target.iterdir()) == []


def test_keyboard_interrupt_keeps_the_folder(server: Server, device: Device, files: list[Path]) -> None:
    job = job_name(device, files)
    with pytest.raises(KeyboardInterrupt), connect(device, server.config, job) as connection:
        connection.put(files[:1])
        raise KeyboardInterrupt
    assert remote_folder(device).name == job
    with pytest.raises(EdgeDistillError, match="exited with 1"), connect(device, server.config, job) as connection:
        connection.run(["false"], 60.0)
    assert list(Path(device.workdir).iterdir()) == []


def test_job_name_follows_contents_of_files(device: Device, files: list[Path]) -> None:
    name = job_name(device, files)
    assert job_name(device, files[::-1]) == name
    assert job_name(device, files[:1]) != name
    files[0].write_bytes(b"another")
    assert job_name(device, files) != name
