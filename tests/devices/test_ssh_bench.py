"""bench over OpenSSH, on a device that loses its connection, reboots, or lacks what it needs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgedistill.devices import bench, ssh, transport
from edgedistill.devices.transport import connect, run_with_reconnect
from edgedistill.errors import EdgeDistillError
from edgedistill.measurements import BenchReport, Device
from edgedistill.recipe.schema import Bench
from edgedistill.records import OnnxModel
from tests.helpers import sshd
from tests.helpers.sshd import HOST, Cable, Server

pytestmark = sshd.MARKS
QUICK = Bench(processes=2, rounds=2, samples=40, seconds=0.01, accuracy_images=10)
# the second process takes seconds, so that the connection can be cut during it
SLOW = Bench(processes=2, rounds=2, samples=40, seconds=6.0, accuracy_images=10, picture=None)
Models = list[tuple[Path, OnnxModel]]
Measure = Callable[[Device, Bench], list[BenchReport]]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "sshd").mkdir()
    with sshd.running(tmp_path / "sshd") as server:
        yield server


@pytest.fixture
def cable(server: Server) -> Iterator[Cable]:
    with sshd.cable(server) as cable:
        yield cable


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(name="edge", transport="ssh", host=HOST, python=sys.executable, workdir=str(tmp_path / "remote"))


@pytest.fixture
def measure(server: Server, bundle: Path, models: Models, tmp_path: Path) -> Measure:
    records = [record for _, record in models]

    def run_bench(device: Device, settings: Bench) -> list[BenchReport]:
        out = tmp_path / "out"
        return bench.bench(
            bundle,
            device,
            backend="onnxruntime-cpu",
            settings=settings,
            models=records,
            out=out,
            ssh_config=server.config,
        )

    return run_bench


def test_bench_over_ssh_measures_and_cleans_up(
    measure: Measure, device: Device, server: Server, tmp_path: Path
) -> None:
    reports = measure(device, QUICK)
    assert [report.agreement_with_host for report in reports] == [1.0, 1.0]
    assert [report.facts["interruptions"] for report in reports] == [[], []]
    assert (tmp_path / "out" / "edge" / "onnxruntime-cpu-int8-cpu.json").is_file()
    assert list(Path(device.workdir).iterdir()) == []
    assert bench.probe(device, ssh_config=server.config)["backends"]["onnxruntime-cpu"][0].isdigit()


def when_half_done(device: Device, action: Callable[[], None]) -> threading.Thread:
    """Start a thread that runs `action` once the agent's first process has written its part."""

    def watch() -> None:
        sshd.wait_until(lambda: list(Path(device.workdir).glob("job-*/part-0.json")), 120)
        action()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def check_picked_up(reports: list[BenchReport], parts: int) -> None:
    for report in reports:
        assert len(report.facts["interruptions"]) == 1
        assert report.facts["picked_up"] == parts
        # 2 processes of 2 rounds each, every cell exactly once
        assert [tuple(cell[:2]) for cell in report.facts["cells"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
        assert report.agreement_with_host == 1.0


def test_bench_resumes_after_cut_connection(measure: Measure, device: Device, cable: Cable) -> None:
    cut = when_half_done(device, cable.cut)
    check_picked_up(measure(device, SLOW), 1)
    cut.join()
    assert cable.connections == 2
    assert list(Path(device.workdir).iterdir()) == []


@pytest.mark.parametrize("keeps", [True, False], ids=["its disk", "nothing"])
def test_bench_resumes_after_reboot_that_keeps(measure: Measure, device: Device, server: Server, keeps: bool) -> None:
    def reboot() -> None:
        server.stop()
        threading.Event().wait(2.0)
        if not keeps:
            (folder,) = Path(device.workdir).iterdir()
            folder.rename(folder.parent.with_name("lost"))
        server.start()

    reboot_thread = when_half_done(device, reboot)
    check_picked_up(measure(device, SLOW), 1 if keeps else 0)
    reboot_thread.join()


# a parent with a child that appends its process id every 50 ms; the first child never ends
BEATS = """
import os, subprocess, sys, time
if len(sys.argv) == 2:
    sys.exit(subprocess.call([sys.executable, *sys.argv, 'child']))
first, n = not os.path.exists(sys.argv[1]), 0
while first or n < 40:
    open(sys.argv[1], 'a').write(f'{os.getpid()}\\n')
    n += 1
    time.sleep(0.05)
open('result', 'w').write('done')
"""


@pytest.mark.parametrize("action", ["cut", "unplug_silently", "freeze"])
def test_lost_program_ends_before_its_replacement_starts(
    server: Server, device: Device, cable: Cable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    # a connection is given up after a minute of silence; here after three seconds
    sooner = {"ServerAliveInterval=15": "ServerAliveInterval=1", "ServerAliveCountMax=4": "ServerAliveCountMax=2"}
    assert set(sooner) <= set(ssh.CONNECTION)
    monkeypatch.setattr(ssh, "CONNECTION", tuple(sooner.get(option, option) for option in ssh.CONNECTION))
    (tmp_path / "beats.py").write_text(BEATS)
    beats = tmp_path / "beats"

    def disconnect() -> None:
        sshd.wait_until(beats.exists, 60)
        threading.Event().wait(0.5)
        getattr(cable, action)()

    thread = threading.Thread(target=disconnect)
    thread.start()
    with connect(device, server.config) as connection:
        argv = [sys.executable, "beats.py", str(beats)]
        losses = run_with_reconnect(
            connection, [tmp_path / "beats.py"], argv=argv, result_path=tmp_path / "result", timeout_s=60.0
        )
    thread.join()
    assert len(losses) == 1
    workers = beats.read_text().split()
    first, last = workers[0], workers[-1]
    assert first != last
    switch = workers.index(last)
    assert workers == [first] * switch + [last] * 40


def test_agent_ends_when_host_disconnects(server: Server, device: Device, cable: Cable, tmp_path: Path) -> None:
    (tmp_path / "beats.py").write_text(BEATS)
    beats = tmp_path / "beats"
    connection = ssh.OpenSsh(device, server.config)
    connection.open()
    connection.put([tmp_path / "beats.py"])

    def disconnect() -> None:
        sshd.wait_until(beats.exists, 60)
        cable.plugged = False
        cable.cut()

    thread = threading.Thread(target=disconnect)
    thread.start()
    with pytest.raises(ssh.ConnectionLostError):
        connection.run([sys.executable, "beats.py", str(beats)], 60.0)
    thread.join()
    connection.close()
    threading.Event().wait(1.0)
    count = len(beats.read_text())
    threading.Event().wait(0.5)
    assert len(beats.read_text()) == count


def test_absent_device_keeps_its_partial_results(
    measure: Measure, device: Device, cable: Cable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "RECONNECT_S", 2.0)

    def unplug() -> None:
        cable.plugged = False
        cable.cut()

    thread = when_half_done(device, unplug)
    with pytest.raises(ssh.ConnectionLostError, match="not back within 2 s; once it is back, the same command goes on"):
        measure(device, SLOW)
    thread.join()
    cable.plugged = True
    sent_before = cable.sent_bytes
    reports = measure(device, SLOW)
    assert [report.facts["picked_up"] for report in reports] == [1, 1]
    assert cable.sent_bytes - sent_before < 30_000  # the agent alone is 40 kB


def test_repeated_connection_losses_end_the_run(
    server: Server, device: Device, cable: Cable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "MAX_CONNECTION_LOSSES", 2)
    argv = ["sh", "-c", "echo loaded; sleep 30"]
    with pytest.raises(ssh.ConnectionLostError, match="lost 3 times; does its power supply hold under load"):  # noqa: SIM117
        with connect(device, server.config) as connection:
            run_with_reconnect(
                connection, [], argv=argv, result_path=tmp_path / "none", timeout_s=60.0, on_line=lambda _: cable.cut()
            )
    assert cable.connections >= 3
    assert len(list(Path(device.workdir).iterdir())) == 1


def test_changed_host_key_after_reboot_ends_the_run(
    server: Server, device: Device, cable: Cable, tmp_path: Path
) -> None:
    def swap(_: str) -> None:
        (server.folder / "known_hosts").write_text(f"{HOST} {sshd.keygen(tmp_path / 'another')}")
        cable.cut()

    with connect(device, server.config) as connection, pytest.raises(EdgeDistillError, match="ssh-keygen -R") as caught:
        run_with_reconnect(
            connection,
            [],
            argv=["sh", "-c", "echo loaded; sleep 30"],
            result_path=tmp_path / "none",
            timeout_s=60.0,
            on_line=swap,
        )
    assert not isinstance(caught.value, ssh.ConnectionLostError)


def test_missing_python_is_reported(measure: Measure, device: Device) -> None:
    with pytest.raises(EdgeDistillError) as caught:
        measure(Device(name="edge", transport="ssh", host=HOST, python="python9", workdir=device.workdir), QUICK)
    fix = "install Python 3.8 or later there, or name it in deploy/devices.yaml (python:)"
    assert str(caught.value) == f"edge: no Python: python9: not found; {fix}"


def script(path: Path, line: str) -> str:
    path.write_text(f'#!/bin/sh\nexec {line} "$@"\n')
    path.chmod(0o755)
    return str(path)


def test_old_python_is_reported(measure: Measure, device: Device, tmp_path: Path) -> None:
    body = "import runpy, sys; sys.version_info = (3, 6, 9, 'final', 0); del sys.argv[0]; "
    run = "runpy.run_path(sys.argv[0], run_name='__main__')"
    old = script(tmp_path / "old python", f'{sys.executable} -c "{body}{run}"')
    with pytest.raises(EdgeDistillError) as caught:
        measure(Device(name="edge", transport="ssh", host=HOST, python=old, workdir=device.workdir), QUICK)
    too_old = "agent: Python 3.6.9 is too old, 3.8 or later is needed; name another in deploy/devices.yaml (python:)"
    assert str(caught.value).endswith(f"exited with 2: {too_old}")


def test_missing_numpy_or_runtime_is_reported(measure: Measure, device: Device, tmp_path: Path) -> None:
    bare = script(tmp_path / "bare", f"{sys.executable} -I -S")
    with pytest.raises(EdgeDistillError, match=r"exited with 2: agent: .*'numpy'; .* -m pip install numpy$"):
        measure(Device(name="edge", transport="ssh", host=HOST, python=bare, workdir=device.workdir), QUICK)
    # this module shadows the installed onnxruntime, for the agent and the processes it starts
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "onnxruntime.py").write_text("raise ImportError('libgomp.so.1: cannot open')")
    python = script(tmp_path / "with numpy", f"env PYTHONPATH={tmp_path}/site {sys.executable}")
    with pytest.raises(EdgeDistillError, match=r"exited with 2: agent: onnxruntime .* -m pip install onnxruntime"):
        measure(Device(name="edge", transport="ssh", host=HOST, python=python, workdir=device.workdir), QUICK)
    assert list(Path(device.workdir).iterdir()) == []


def test_altered_bundle_is_not_sent(measure: Measure, device: Device, bundle: Path, cable: Cable) -> None:
    with (bundle / "agent.pyz").open("ab") as stream:
        stream.write(b"altered")
    with pytest.raises(EdgeDistillError, match=r"agent\.pyz: not as in SHA256SUMS"):
        measure(device, QUICK)
    assert cable.connections == 0
