"""Backends: what is missing is said, with what to install."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgedistill.agent import backends, machine
from edgedistill.agent.job import AgentError


def test_a_missing_runtime_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(AgentError, match=r"onnxruntime does not import .* -m pip install onnxruntime$") as caught:
        backends.create("onnxruntime-cpu").build(Path("m.onnx"), 1)
    assert caught.value.exit_code == 2
    assert backends.available()["onnxruntime-cpu"].startswith("not here: onnxruntime does not import")


def test_every_backend_is_listed_with_a_version_or_a_reason() -> None:
    found = backends.available()
    assert set(found) == set(backends.BACKENDS)
    assert all(said[0].isdigit() or said.startswith("not here: ") for said in found.values())


def test_an_unknown_backend_lists_the_known() -> None:
    with pytest.raises(AgentError, match="one of: onnxruntime-cpu, onnxruntime-cuda"):
        backends.create("openvino")


def test_the_state_of_the_machine_is_read_and_not_guessed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("cpu0", "cpu1"):
        (tmp_path / name / "cpufreq").mkdir(parents=True)
        (tmp_path / name / "cpufreq" / "scaling_governor").write_text("performance\n")
        (tmp_path / name / "cpufreq" / "scaling_cur_freq").write_text("1510400\n")
    (tmp_path / "thermal_zone0").mkdir()
    (tmp_path / "thermal_zone0" / "type").write_text("cpu-thermal\n")
    (tmp_path / "thermal_zone0" / "temp").write_text("48500\n")
    monkeypatch.setattr(machine, "CPUS", tmp_path)
    monkeypatch.setattr(machine, "THERMAL", tmp_path)
    state = machine.state()
    assert state["governor"] == ["performance"]
    assert state["clock_mhz"] == [1510.4, 1510.4]
    assert state["temperature_c"] == {"thermal_zone0 cpu-thermal": 48.5}
    monkeypatch.setattr(machine, "CPUS", tmp_path / "none")
    monkeypatch.setattr(machine, "THERMAL", tmp_path / "none")
    assert not {"governor", "temperature_c"} & set(machine.state())


def test_processor_time_and_memory_have_sane_units() -> None:
    before = machine.cpu_seconds()
    sum(range(3_000_000))
    assert 0.0 < machine.cpu_seconds() - before < 10.0
    assert 10.0 < machine.peak_memory_mb() < 100_000.0
