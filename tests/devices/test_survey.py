"""Probing the inventory: all at once, bounded in time, and what is missing said once and in full."""

from __future__ import annotations

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
from edgedistill.records import Device
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


def test_devices_are_asked_at_the_same_time_and_answer_in_order() -> None:
    together = threading.Barrier(3, timeout=20)

    def ask(device: Device) -> Mapping[str, Any]:
        together.wait()
        time.sleep(0.2 if device.name == "a" else 0.0)
        return {"cpu": device.name}

    probed = survey.survey([Device(name="a"), Device(name="b"), Device(name="c")], ask)
    assert [(one.device.name, one.facts["cpu"]) for one in probed] == [("a", "a"), ("b", "b"), ("c", "c")]


def test_a_device_that_hangs_costs_no_more_than_its_time() -> None:
    ended = threading.Event()

    def ask(device: Device) -> Mapping[str, Any]:
        if device.name == "hung":
            ended.wait(60)
        return FACTS

    begun = time.monotonic()
    try:
        hung, fine = survey.survey([Device(name="hung"), Device(name="fine")], ask, answer_s=0.5)
    finally:
        ended.set()
    assert 0.4 < time.monotonic() - begun < 10
    assert fine.facts == FACTS and fine.reachable
    assert (hung.reachable, hung.usable, hung.facts) == (False, False, {})
    assert hung.trouble == "hung: no answer within 0.5 s; is it overloaded, or its disk full? ask it again"


def test_an_error_of_one_device_is_its_own() -> None:
    def ask(device: Device) -> Mapping[str, Any]:
        if device.name == "broken":
            raise EdgeDistillError("broken: python: exited with 2", "install numpy")
        if device.name == "odd":
            raise ValueError("what is this")
        return FACTS

    broken, odd, fine = survey.survey([Device(name="broken"), Device(name="odd"), Device(name="fine")], ask)
    assert (broken.trouble, broken.usable) == ("broken: python: exited with 2; install numpy", False)
    assert (odd.trouble, odd.usable) == ("odd: unexpected ValueError: what is this", False)
    assert fine.usable


def test_what_ssh_cannot_reach_is_not_reachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text("#!/bin/sh\necho 'ssh: connect to host orin port 22: Connection refused' >&2\nexit 255\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (one,) = survey.survey([ORIN])
    assert (one.reachable, one.usable) == (False, False)
    assert "Connection refused" in one.trouble and "`ssh orin true`" in one.trouble


def test_a_machine_without_ssh_reaches_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (one,) = survey.survey([ORIN])
    assert not one.reachable and "install the OpenSSH client" in one.trouble


@pytest.mark.slow
@pytest.mark.skipif(bool(sshd.MISSING), reason=f"not installed here: {', '.join(sshd.MISSING)}")
def test_devices_over_ssh(tmp_path: Path) -> None:
    (tmp_path / "sshd").mkdir()
    with sshd.running(tmp_path / "sshd") as server:
        ask = partial(bench.probe, ssh_config=server.config)
        at, place = sys.executable, str(tmp_path / "remote")
        fine, dead, no_python = survey.survey(
            [
                Device(name="fine", transport="ssh", host=sshd.HOST, python=at, workdir=place),
                Device(name="dead", transport="ssh", host="dead", python=at, workdir=place),
                Device(name="no-python", transport="ssh", host=sshd.HOST, python="/no/python", workdir=place),
            ],
            ask,
        )
    assert fine.usable and fine.facts["backends"]["onnxruntime-cpu"][0].isdigit()
    assert (dead.reachable, dead.usable) == (False, False) and "refused" in dead.trouble
    assert (no_python.reachable, no_python.usable) == (True, False) and "no Python" in no_python.trouble
    assert [line.split()[1] for line in survey.table([fine, dead, no_python]).splitlines()[1:4]] == ["yes", "no", "yes"]


def test_this_machine_answers_for_itself(tmp_path: Path) -> None:
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


def test_what_is_missing_is_only_what_the_device_is_there_for() -> None:
    assert survey.Probed(device=Device(name="pi"), facts=FACTS).missing == {}
    one = survey.Probed(device=ORIN, facts=FACTS)
    assert one.missing == {"tensorrt": "No module named 'tensorrt'; install python3-libnvinfer"}
    assert (one.usable, survey.Probed(device=Device(name="pi"), facts=FACTS).usable) == (False, True)
    former = survey.Probed(device=Device(name="pi", backends=("tensorrt-rtx",)), facts=FACTS)
    assert list(former.missing) == ["tensorrt-rtx"]


def test_the_table() -> None:
    unreached = survey.Probed(
        device=Device(name="pi", transport="ssh", host="pi"),
        facts={},
        trouble="pi: OpenSSH to pi: refused",
        reachable=False,
    )
    shown = """\
device  reachable  machine                  Python   memory              power mode  governor
orin    yes        NVIDIA Jetson Orin Nano  3.10.12  6.1 of 8.0 GB free  MAXN_SUPER  schedutil
pi      no         -                        -        -                   -           -

orin: Jetson Linux 36.4.3, cpu clock follows the load, throttling: cpu at step 1 of 3
orin: runs onnxruntime-cpu 1.23.2
orin: missing tensorrt: No module named 'tensorrt'; install python3-libnvinfer
orin: without onnxruntime-cuda; `edgedistill devices orin` says why
pi: OpenSSH to pi: refused"""
    assert survey.table([survey.Probed(device=ORIN, facts=FACTS), unreached]) == shown
    named = survey.table([survey.Probed(device=ORIN, facts=FACTS)], why=True).splitlines()
    assert named[-1] == "orin: without onnxruntime-cuda: no CUDA; install it"


def test_for_programs() -> None:
    orin, pi = survey.as_json(
        [
            survey.Probed(device=ORIN, facts=FACTS),
            survey.Probed(device=Device(name="pi"), facts={}, trouble="pi: refused", reachable=False),
        ]
    )
    assert (orin["reachable"], orin["usable"], list(orin["missing"])) == (True, False, ["tensorrt"])
    assert (orin["wanted"], orin["facts"]) == (["onnxruntime-cpu", "tensorrt"], FACTS)
    assert (pi["reachable"], pi["usable"], pi["trouble"], pi["missing"]) == (False, False, "pi: refused", {})


def test_a_fact_that_is_not_there_is_a_dash() -> None:
    row = survey.table(
        [survey.Probed(device=Device(name="old"), facts={"machine": "armv7l", "memory_mb": 1000.0})]
    ).splitlines()[1]
    assert row.split() == ["old", "yes", "armv7l", "-", "1.0", "GB", "-", "-"]
