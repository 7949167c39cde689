"""Probing the inventory: devices are probed in parallel, with a time limit, and missing backends are reported."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from edgedistill.agent.backends import BACKENDS
from edgedistill.devices import bench, survey
from edgedistill.errors import EdgeDistillError
from edgedistill.measurements import Device
from tests.helpers import sshd

FACTS = {
    "machine": "aarch64",
    "board": "NVIDIA Jetson Orin Nano",
    "python": "3.10.12",
    "memory_mb": 7990.0,
    "memory_available_mb": 6120.0,
    "power_mode": "MAXN_SUPER",
    "l4t": "36.4.3",
    "governor": ["schedutil"],
    "gpu": {"clock_mhz": 306.0},
    "fixed_clocks": {"cpu": False, "gpu": True},
    "throttling": ["cpu at step 1 of 3"],
    "backends": {
        "onnxruntime-cpu": "1.23.2",
        "onnxruntime-cuda": "not here: no CUDA; install it",
        "tensorrt": "not here: No module named 'tensorrt'; install python3-libnvinfer",
    },
}
ORIN = Device(name="orin", transport="ssh", host="orin", backends=("onnxruntime-cpu", "tensorrt"))


def test_devices_are_probed_in_parallel_and_reported_in_order() -> None:
    together = threading.Barrier(3, timeout=20)

    def probe(device: Device) -> Mapping[str, Any]:
        together.wait()
        time.sleep(0.2 if device.name == "a" else 0.0)
        return {"cpu": device.name}

    probed = survey.survey([Device(name="a"), Device(name="b"), Device(name="c")], probe)
    assert [(answer.device.name, answer.facts["cpu"]) for answer in probed] == [("a", "a"), ("b", "b"), ("c", "c")]


def test_hanging_device_is_abandoned_after_time_limit() -> None:
    ended = threading.Event()

    def probe(device: Device) -> Mapping[str, Any]:
        if device.name == "hung":
            ended.wait(60)
        return FACTS

    started = time.monotonic()
    try:
        hung, fine = survey.survey([Device(name="hung"), Device(name="fine")], probe, answer_s=0.5)
    finally:
        ended.set()
    assert 0.4 < time.monotonic() - started < 10
    assert fine.facts == FACTS and fine.reachable
    assert (hung.reachable, hung.usable, hung.facts) == (False, False, {})
    assert hung.trouble == "hung: no answer within 0.5 s; is it overloaded, or its disk full? ask it again"


INTERRUPTED = """\
import os, shutil, sys, time
from edgedistill.devices import survey
from edgedistill.measurements import Device
from edgedistill.run import interrupts
remove = shutil.rmtree
def slowly(*arguments, **options):
    time.sleep(0.3)
    remove(*arguments, **options)
shutil.rmtree = slowly
try:
    with interrupts.handled("stopped", grace_s=60.0):
        survey.survey([Device(name="hung", python=sys.argv[1], workdir=sys.argv[2])])
finally:
    print(os.listdir(sys.argv[2]))
"""


def test_interrupted_survey_leaves_neither_program_nor_folder(tmp_path: Path) -> None:
    hanging = tmp_path / "python"
    hanging.write_text("#!/bin/sh\necho $$ > ../../pid\nkill -s TERM $PPID\nexec sleep 600\n")
    hanging.chmod(0o755)
    # a program of its own: a signal that comes too late must not end the tests
    process = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, hanging, tmp_path / "work"],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (process.returncode, process.stderr, process.stdout) == (143, "stopped\n", "[]\n")
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


def test_error_of_one_device_leaves_others_usable() -> None:
    def probe(device: Device) -> Mapping[str, Any]:
        if device.name == "broken":
            raise EdgeDistillError("broken: python: exited with 2", "install numpy")
        if device.name == "odd":
            raise ValueError("what is this")
        return FACTS

    broken, odd, fine = survey.survey([Device(name="broken"), Device(name="odd"), Device(name="fine")], probe)
    assert (broken.trouble, broken.usable) == ("broken: python: exited with 2; install numpy", False)
    assert (odd.trouble, odd.usable) == ("odd: unexpected ValueError: what is this", False)
    assert fine.usable


def test_refused_ssh_connection_is_reported_as_unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text("#!/bin/sh\necho 'ssh: connect to host orin port 22: Connection refused' >&2\nexit 255\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (orin,) = survey.survey([ORIN])
    assert (orin.reachable, orin.usable) == (False, False)
    assert "Connection refused" in orin.trouble and "`ssh orin true`" in orin.trouble


def test_host_without_ssh_client_is_told_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (orin,) = survey.survey([ORIN])
    assert not orin.reachable and "install the OpenSSH client" in orin.trouble


@pytest.mark.slow
@pytest.mark.skipif(bool(sshd.MISSING), reason=f"not installed here: {', '.join(sshd.MISSING)}")
def test_survey_over_ssh_reports_each_device(tmp_path: Path) -> None:
    (tmp_path / "sshd").mkdir()
    with sshd.running(tmp_path / "sshd") as server:
        probe = partial(bench.probe, ssh_config=server.config)
        python, workdir = sys.executable, str(tmp_path / "remote")
        fine, dead, no_python = survey.survey(
            [
                Device(name="fine", transport="ssh", host=sshd.HOST, python=python, workdir=workdir),
                Device(name="dead", transport="ssh", host="dead", python=python, workdir=workdir),
                Device(name="no-python", transport="ssh", host=sshd.HOST, python="/no/python", workdir=workdir),
            ],
            probe,
        )
    assert fine.usable and fine.facts["backends"]["onnxruntime-cpu"][0].isdigit()
    assert (dead.reachable, dead.usable) == (False, False) and "refused" in dead.trouble
    assert (no_python.reachable, no_python.usable) == (True, False) and "no Python" in no_python.trouble
    assert [line.split()[1] for line in survey.table([fine, dead, no_python]).splitlines()[1:4]] == ["yes", "no", "yes"]


def test_survey_of_local_devices_reports_backends(tmp_path: Path) -> None:
    python = tmp_path / "python"
    fine, broken, lacking = survey.survey(
        [
            Device(name="fine"),
            Device(name="broken", python=str(python)),
            Device(name="lacking", backends=("tensorrt-rtx",)),
        ]
    )
    assert fine.usable and fine.facts["backends"]["onnxruntime-cpu"][0].isdigit()
    assert set(fine.facts["backends"]) == set(BACKENDS)
    assert (broken.reachable, broken.usable) == (True, False) and str(python) in broken.trouble
    if fine.facts["backends"]["tensorrt-rtx"].startswith("not here"):
        assert list(lacking.missing) == ["tensorrt-rtx"] and not lacking.usable


@pytest.mark.parametrize(
    ("script", "printed"),
    [
        ("exit 0", "nothing on stdout"),
        ("echo; echo", "nothing on stdout"),
        ("echo hello", "hello"),
        ("echo 3", "3"),
        ("echo '[]'", r"\[\]"),
    ],
)
def test_python_that_prints_no_facts_is_one_line(tmp_path: Path, script: str, printed: str) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    (status,) = survey.survey([Device(name="box", python=str(python))])
    assert re.fullmatch(
        rf"box: `{python} agent\.pyz --facts` printed no facts: {printed}; name a Python 3\.8 .*\(python:\)",
        status.trouble,
    )
    assert status.reachable and not status.usable


def test_only_configured_backends_count_as_missing() -> None:
    assert survey.DeviceStatus(device=Device(name="pi"), facts=FACTS).missing == {}
    orin = survey.DeviceStatus(device=ORIN, facts=FACTS)
    assert orin.missing == {"tensorrt": "No module named 'tensorrt'; install python3-libnvinfer"}
    assert (orin.usable, survey.DeviceStatus(device=Device(name="pi"), facts=FACTS).usable) == (False, True)
    former = survey.DeviceStatus(device=Device(name="pi", backends=("tensorrt-rtx",)), facts=FACTS)
    assert list(former.missing) == ["tensorrt-rtx"]


def test_table_lists_devices_and_problems() -> None:
    unreached = survey.DeviceStatus(
        device=Device(name="pi", transport="ssh", host="pi"),
        facts={},
        trouble="pi: OpenSSH to pi: refused",
        reachable=False,
    )
    expected = """\
device  reachable  machine                  Python   memory              power mode  governor
orin    yes        NVIDIA Jetson Orin Nano  3.10.12  6.1 of 8.0 GB free  MAXN_SUPER  schedutil
pi      no         -                        -        -                   -           -

orin: Jetson Linux 36.4.3, cpu clock follows the load, throttling: cpu at step 1 of 3
orin: runs onnxruntime-cpu 1.23.2
orin: missing tensorrt: No module named 'tensorrt'; install python3-libnvinfer
orin: without onnxruntime-cuda; `edgedistill devices orin` says why
pi: OpenSSH to pi: refused"""
    assert survey.table([survey.DeviceStatus(device=ORIN, facts=FACTS), unreached]) == expected
    detailed = survey.table([survey.DeviceStatus(device=ORIN, facts=FACTS)], why=True).splitlines()
    assert detailed[-1] == "orin: without onnxruntime-cuda: no CUDA; install it"


def test_json_lists_devices_and_problems() -> None:
    orin, pi = survey.as_json(
        [
            survey.DeviceStatus(device=ORIN, facts=FACTS),
            survey.DeviceStatus(device=Device(name="pi"), facts={}, trouble="pi: refused", reachable=False),
        ]
    )
    assert (orin["reachable"], orin["usable"], list(orin["missing"])) == (True, False, ["tensorrt"])
    assert (orin["wanted"], orin["facts"]) == (["onnxruntime-cpu", "tensorrt"], FACTS)
    assert (pi["reachable"], pi["usable"], pi["trouble"], pi["missing"]) == (False, False, "pi: refused", {})


def test_unknown_fact_is_shown_as_dash() -> None:
    row = survey.table(
        [survey.DeviceStatus(device=Device(name="old"), facts={"machine": "armv7l", "memory_mb": 1000.0})]
    ).splitlines()[1]
    assert row.split() == ["old", "yes", "armv7l", "-", "1.0", "GB", "-", "-"]
