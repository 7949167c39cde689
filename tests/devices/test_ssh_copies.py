"""Copies over OpenSSH that break, arrive altered, or find no room; and what old runs left behind."""

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
from edgedistill.records import Device
from tests.helpers import sshd
from tests.helpers.sshd import HOST, Server

pytestmark = sshd.TIER
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
    """One of 1 MB and one of 8 MB."""
    made = []
    for name, size in (("small model.onnx", MB), ("images.npy", 8 * MB)):
        (tmp_path / name).write_bytes(random.Random(size).randbytes(size))
        made.append(tmp_path / name)
    return made


def folder(device: Device) -> Path:
    (found,) = Path(device.workdir).iterdir()
    return found


def break_off(server: Server, device: Device, files: list[Path], after: int) -> str:
    """A copy whose connection breaks after so many bytes; returns the job's name."""
    job = job_name(device, files)
    with sshd.cable(server) as cable, pytest.raises(ssh.ConnectionLostError):  # noqa: SIM117 the cable is for `connect`
        with connect(device, server.config, job) as there:
            cable.cut_at = cable.sent_bytes + after
            there.put(files)
    return job


def settled(part: Path) -> int:
    """The size of a part once nothing more of it is under way."""
    sizes = [-1]
    sshd.until(lambda: sizes.append(part.stat().st_size) or sizes[-1] == sizes[-8:][0] > MB, 10)
    return sizes[-1]


def test_a_broken_copy_goes_on_where_it_broke(server: Server, device: Device, files: list[Path]) -> None:
    job = break_off(server, device, files, 7 * MB)
    assert (folder(device) / "small model.onnx").read_bytes() == files[0].read_bytes()
    begun = settled(folder(device) / f"{PART}images.npy")
    with sshd.cable(server) as cable, connect(device, server.config, job) as there:
        there.put(files)
        assert 0 < cable.sent_bytes - (8 * MB - begun) < 50_000
        assert [(folder(device) / file.name).read_bytes() for file in files] == [file.read_bytes() for file in files]
        before = cable.sent_bytes
        there.put(files)
        assert cable.sent_bytes - before < 50_000
    assert not (Path(device.workdir) / job).exists()


def test_a_part_with_a_wrong_byte_is_sent_whole(server: Server, device: Device, files: list[Path]) -> None:
    job = break_off(server, device, files, 7 * MB)
    part = folder(device) / f"{PART}images.npy"
    settled(part)
    with part.open("r+b") as stream:
        stream.seek(MB)
        stream.write(b"altered")
    with connect(device, server.config, job) as there:
        there.put(files)
        assert (folder(device) / "images.npy").read_bytes() == files[1].read_bytes()
        assert not part.exists()


def test_a_copy_goes_on_by_itself_once_the_device_is_back(
    server: Server, device: Device, files: list[Path], tmp_path: Path
) -> None:
    with sshd.cable(server) as cable, connect(device, server.config) as there:
        cable.cut_at = cable.sent_bytes + 5 * MB
        count = [sys.executable, "-c", "import os; open('n', 'w').write(str(os.path.getsize('images.npy')))"]
        losses = transport.run_through(there, files, argv=count, result=tmp_path / "n", timeout_s=60.0)
        assert cable.connections == 2
    assert (tmp_path / "n").read_text() == str(8 * MB)
    assert len(losses) == 1 and losses[0].startswith("edge: OpenSSH to edge-test: ")


def test_what_is_altered_before_a_run_is_not_run(server: Server, device: Device, tmp_path: Path) -> None:
    (tmp_path / "agent.py").write_text("open('ran', 'w')")
    with connect(device, server.config) as there:
        there.put([tmp_path / "agent.py"])
        (folder(device) / "agent.py").write_text("open('ran', 'w');")
        with pytest.raises(EdgeDistillError, match=r"agent\.py: not on the device as sent .*nothing was run; try"):
            there.run([sys.executable, "agent.py"], 60.0)
        assert not (folder(device) / "ran").exists()
        (folder(device) / "agent.py").unlink()
        with pytest.raises(EdgeDistillError, match=r"agent\.py: not on the device as sent"):
            there.run([sys.executable, "agent.py"], 60.0)
        there.put([tmp_path / "agent.py"])
        there.run([sys.executable, "agent.py"], 60.0)
        assert (folder(device) / "ran").exists()


def test_what_arrives_altered_twice_is_given_up(device: Device, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "cat").write_text("#!/bin/sh\necho once >>" + str(tmp_path / "times") + "\nexec tr a b\n")
    (tmp_path / "bin" / "cat").chmod(0o755)
    (tmp_path / "agent.py").write_text("a = 1")
    (tmp_path / "sshd").mkdir()
    force = f'ForceCommand PATH={tmp_path}/bin:$PATH exec sh -c "$SSH_ORIGINAL_COMMAND"'
    with sshd.running(tmp_path / "sshd", force) as server, connect(device, server.config) as there:
        with pytest.raises(EdgeDistillError, match=r"agent\.py: not on the device as sent"):
            there.put([tmp_path / "agent.py"])
        assert list(folder(device).iterdir()) == []
    assert (tmp_path / "times").read_text() == "once\nonce\n"


@pytest.fixture
def small_disk(device: Device) -> Iterator[Path]:
    """The workdir on a disk of 2 MB."""
    place = Path(device.workdir)
    place.mkdir()
    done = mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place))
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def mount(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", *argv], capture_output=True, text=True, check=False)


def test_a_full_disk_is_said_before_anything_is_sent(
    server: Server, device: Device, files: list[Path], small_disk: Path
) -> None:
    with sshd.cable(server) as cable, connect(device, server.config) as there:
        with pytest.raises(EdgeDistillError) as caught:
            there.put(files)
        assert cable.sent_bytes < 50_000
    room = f"no space left in {small_disk}: 2.1 MB free, 26.2 MB needed"
    assert str(caught.value) == f"edge: {room}; make room there, or name another workdir in deploy/devices.yaml"


def test_a_disk_that_fills_up_meanwhile_is_said_and_the_copy_goes_on(
    server: Server, device: Device, files: list[Path], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "SPARE_BYTES", -100 * MB)
    with sshd.cable(server) as cable, connect(device, server.config) as there:
        with pytest.raises(EdgeDistillError, match=r"no space left in .*: 0\.0 MB free, .* MB needed; make room there"):
            there.put(files)
        assert mount("-o", "remount,size=64m", str(small_disk)).returncode == 0
        before = cable.sent_bytes
        there.put(files)
        assert cable.sent_bytes - before < 7.5 * MB
        assert (folder(device) / "images.npy").read_bytes() == files[1].read_bytes()


def test_old_folders_of_ours_go_and_nothing_else(server: Server, device: Device, tmp_path: Path) -> None:
    work = Path(device.workdir)
    ours, young = work / "job-0123456789abcdef", work / "job-fedcba9876543210"
    foreign = [work / "job-mine", work / "results", work / "job-0123456789abcdef0", work / "job-0123456789ABCDEF"]
    for place in (ours, young, *foreign):
        place.mkdir(parents=True)
    target = tmp_path / "someone's"
    target.mkdir()
    (target / "kept").touch()
    (ours / "link").symlink_to(target)
    (ours / "model.onnx").touch()
    link = work / "job-00000000000000ff"
    link.symlink_to(target)
    old = time.time() - 5 * 24 * 3600
    for place in (ours, *foreign, target, link):
        os.utime(place, (old, old), follow_symlinks=False)
    with connect(device, server.config):
        pass
    assert set(work.iterdir()) == {young, link, *foreign}
    assert (target / "kept").exists()


def test_a_link_in_place_of_the_folder_is_refused(server: Server, device: Device, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.mkdir()
    Path(device.workdir).mkdir()
    (Path(device.workdir) / "job-0123456789abcdef").symlink_to(target)
    with pytest.raises(EdgeDistillError, match="is a link"), connect(device, server.config, "job-0123456789abcdef"):
        pass
    assert target.is_dir() and list(target.iterdir()) == []


def test_a_person_who_interrupts_finds_the_folder_again(server: Server, device: Device, files: list[Path]) -> None:
    job = job_name(device, files)
    with pytest.raises(KeyboardInterrupt), connect(device, server.config, job) as there:
        there.put(files[:1])
        raise KeyboardInterrupt
    assert folder(device).name == job
    with pytest.raises(EdgeDistillError, match="exited with 1"), connect(device, server.config, job) as there:
        there.run(["false"], 60.0)
    assert list(Path(device.workdir).iterdir()) == []


def test_another_job_another_folder(device: Device, files: list[Path]) -> None:
    name = job_name(device, files)
    assert job_name(device, files[::-1]) == name
    assert job_name(device, files[:1]) != name
    files[0].write_bytes(b"another")
    assert job_name(device, files) != name
