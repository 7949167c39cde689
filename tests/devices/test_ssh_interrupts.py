"""A signal to a command whose program runs on a device: both sides end, and one line says so; a real sshd."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.interrupts import remains
from edgedistill.run import artifacts
from tests.helpers import sshd
from tests.helpers.miniature import Project
from tests.helpers.sshd import HOST

pytestmark = [*sshd.MARKS, pytest.mark.usefixtures("heeded_ctrl_c")]
NUMBERS = [signal.SIGINT, signal.SIGTERM]


@dataclass(frozen=True, kw_only=True)
class Desk:
    """A machine whose `ssh` reaches the device of its inventory.

    Attributes:
        folder: the current folder of the commands, with deploy/devices.yaml.
        workdir: the device's.
        temporary: the folder for temporary files.
        mark: in the environment of the commands and of the programs that they start here, but not on the device.
    """

    folder: Path
    workdir: Path
    temporary: Path
    mark: str

    def write_inventory(self, python: str) -> None:
        """Name the Python of the device."""
        (self.folder / "deploy").mkdir(exist_ok=True)
        entry = {"transport": "ssh", "host": HOST, "python": python, "workdir": str(self.workdir)}
        (self.folder / "deploy" / "devices.yaml").write_text(json.dumps({"edge": entry}))

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """Start `edgedistill` as the leader of a process group, as a shell does."""
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "TMPDIR": str(self.temporary), "EDGEDISTILL_MARK": self.mark}
        argv = [sys.executable, "-m", "edgedistill", *map(str, arguments)]
        return subprocess.Popen(
            argv,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def interrupt(self, number: signal.Signals, arguments: list[str | Path], until: Callable[[], object]) -> str:
        """Start a command, send Ctrl-C to its group or a signal to it alone once `until` is true; return its stderr."""
        with self.start(*arguments) as process:
            try:
                sshd.wait_until(lambda: until() or process.poll() is not None, 120)
                commands = "\n".join(self.ssh_processes())
                assert "[mux]" in commands and f"-- {HOST} " in commands  # the shared connection, and a client
                (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
                _, err = process.communicate(timeout=60)
            finally:
                process.kill()
        assert process.returncode == 128 + number, err
        assert remains(self.mark, self.temporary) == ()
        assert self.ssh_processes() == []
        sshd.wait_until(lambda: not processes_on_device(self.workdir), 20)
        return err

    def ssh_processes(self) -> list[str]:
        """The command lines of ssh's clients and of the shared connection, which name its socket."""
        return [line for line in command_lines() if str(self.temporary) in line]


def command_lines() -> list[str]:
    """The command lines of all processes."""
    process = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True)
    return process.stdout.splitlines()


def processes_on_device(workdir: Path) -> list[str]:
    """The processes whose current folder is in `workdir`."""
    folders = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            folders.append(str(link.readlink()))
        except OSError:  # it ended meanwhile
            continue
    return [folder for folder in folders if folder.startswith(f"{workdir}/")]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    (tmp_path / "sshd").mkdir()
    (tmp_path / "bin").mkdir()
    with (
        sshd.running(tmp_path / "sshd") as server,
        tempfile.TemporaryDirectory(dir="/tmp") as temporary,  # a short path, which holds the connection's socket
    ):
        ssh = tmp_path / "bin" / "ssh"
        ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {server.config} "$@"\n')
        ssh.chmod(0o755)
        yield Desk(folder=tmp_path, workdir=tmp_path / "remote", temporary=Path(temporary), mark=uuid.uuid4().hex)


@pytest.mark.parametrize("number", NUMBERS)
def test_interrupted_bench_ends_on_both_sides_and_goes_on(
    desk: Desk, project_copy: Project, number: signal.Signals
) -> None:
    desk.write_inventory(sys.executable)
    # the second process takes seconds
    settings = [f"bench.{setting}" for setting in ("devices=[edge]", "processes=2", "seconds=2.0")]
    arguments = ["bench", project_copy.run, *(word for setting in settings for word in ("--set", setting))]
    err = desk.interrupt(number, arguments, until=lambda: list(desk.workdir.glob("job-*/part-0.json")))
    assert err.splitlines()[-1] == "stopped; the same command goes on from here"
    assert "Traceback" not in err and "edge: " not in err
    (kept,) = desk.workdir.iterdir()
    assert (kept / "part-0.json").is_file()

    with desk.start(*arguments) as process:
        _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    (report,) = project_copy.run.glob(artifacts.bench_reports("edge", "onnxruntime-cpu", "fp32"))
    assert json.loads(report.read_text(encoding="utf-8"))["facts"]["picked_up"] == 1
    assert list(desk.workdir.iterdir()) == []


@pytest.mark.parametrize("number", NUMBERS)
def test_interrupted_devices_ends_on_both_sides_and_removes_its_folder(desk: Desk, number: signal.Signals) -> None:
    hangs = desk.folder / "python"
    hangs.write_text('#!/bin/sh\ntouch "$PWD/runs"\nsleep 600\n')
    hangs.chmod(0o755)
    desk.write_inventory(str(hangs))
    err = desk.interrupt(number, ["devices"], until=lambda: list(desk.workdir.glob("job-*/runs")))
    assert err == "stopped; the same command can be run again\n"
    assert list(desk.workdir.iterdir()) == []
