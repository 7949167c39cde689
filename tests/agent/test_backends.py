"""Backends: missing runtimes are reported with the package to install, and providers get the right options."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from edgedistill.agent import backends, cache, machine, ort
from edgedistill.agent.job import AgentError
from tests.helpers import tiny_onnx
from tests.helpers.paths import ROOT


def test_missing_runtime_error_names_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(AgentError, match=r"onnxruntime does not import .* -m pip install onnxruntime$") as caught:
        backends.create("onnxruntime-cpu").build(Path("m.onnx"), 1)
    assert caught.value.exit_code == 2
    assert backends.available()["onnxruntime-cpu"].startswith("not here: onnxruntime does not import")


def test_every_backend_is_listed_with_a_version_or_a_reason() -> None:
    versions = backends.available()
    assert set(versions) == set(backends.BACKENDS)
    assert all(version[0].isdigit() or version.startswith("not here: ") for version in versions.values())


def test_unknown_backend_error_lists_known_backends() -> None:
    with pytest.raises(AgentError, match="one of: onnxruntime-cpu, onnxruntime-cuda"):
        backends.create("dreams")


def test_machine_state_is_read_from_kernel_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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


def test_processor_time_and_memory_have_plausible_units() -> None:
    before = machine.cpu_seconds()
    sum(range(3_000_000))
    assert 0.0 < machine.cpu_seconds() - before < 10.0
    assert 10.0 < machine.peak_memory_mb() < 100_000.0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what a process held without its parent")
def test_peak_memory_is_that_of_the_process_not_of_its_parent() -> None:
    # a parent of 400 MB that starts a small process
    child = "from edgedistill.agent.machine import peak_memory_mb; print(peak_memory_mb())"
    parent = f"import subprocess, sys; held = b'x' * 400_000_000; subprocess.run([sys.executable, '-c', {child!r}])"
    answer = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, cwd=ROOT, check=True)
    assert 5.0 < float(answer.stdout) < 300.0


class Options:
    """Fake of ONNX Runtime's SessionOptions that keeps the configuration entries."""

    def __init__(self) -> None:
        self.entries: dict[str, str] = {}

    def add_session_config_entry(self, name: str, setting: str) -> None:
        self.entries[name] = setting


def install_runtime(
    monkeypatch: pytest.MonkeyPatch, provider: str, starts: bool = True, runs_all_nodes: bool = True
) -> list[Any]:
    """Install a fake onnxruntime with one more provider; return the arguments of every session created."""
    requests: list[Any] = []

    def session(path: str, options: Options, providers: list[tuple[str, dict[str, str]]]) -> Any:
        requests.append((path, options, providers))
        if not runs_all_nodes and "session.disable_cpu_ep_fallback" in options.entries:
            raise RuntimeError("this session has nodes that only the CPU can run")
        started = [name for name, _ in providers] if starts else []
        tensor = SimpleNamespace(name="images")
        return SimpleNamespace(
            get_providers=lambda: [*started, "CPUExecutionProvider"],
            get_inputs=lambda: [tensor],
            get_outputs=lambda: [tensor],
            run=lambda outputs, feed: [np.zeros((1, 3))],
        )

    module = ModuleType("onnxruntime")
    vars(module).update(
        __version__="1.99",
        SessionOptions=Options,
        InferenceSession=session,
        get_available_providers=lambda: [provider, "CPUExecutionProvider"],
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    return requests


@pytest.mark.parametrize("name", sorted(ort.PROVIDERS))
def test_every_provider_is_requested_by_its_own_name(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path))
    provider = ort.PROVIDERS[name].name
    requests = install_runtime(monkeypatch, provider)
    backend = backends.create(f"onnxruntime-{name}")
    (tmp_path / "student.int8-tensorrt.onnx").write_bytes(b"graph")
    backend.build(tmp_path / "student.int8-tensorrt.onnx", 3)
    assert [provider_name for provider_name, _ in requests[-1][2]] == [provider]
    assert backend.facts()["providers"][0] == provider and backend.facts()["whole_graph"] is True
    assert requests[-1][1].intra_op_num_threads == (1 if name == "xnnpack" else 3)


def test_provider_that_leaves_nodes_to_cpu_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = install_runtime(monkeypatch, "CUDAExecutionProvider", runs_all_nodes=False)
    backend = backends.create("onnxruntime-cuda")
    backend.build(Path("m.onnx"), 1)
    assert backend.facts()["whole_graph"] is False
    assert ["session.disable_cpu_ep_fallback" in request[1].entries for request in requests] == [True, False]


def test_provider_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    install_runtime(monkeypatch, "CUDAExecutionProvider", starts=False)
    with pytest.raises(AgentError, match=r"CUDAExecutionProvider did not start; are its libraries"):
        backends.create("onnxruntime-cuda").build(Path("m.onnx"), 1)


@pytest.mark.parametrize(
    ("file", "int8", "half"), [("a.fp32.onnx", "0", "0"), ("a.fp16.onnx", "0", "1"), ("a.int8-tensorrt.onnx", "1", "1")]
)
def test_tensorrt_provider_gets_precision_of_graph_and_cache(
    file: str, int8: str, half: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path))
    requests = install_runtime(monkeypatch, "TensorrtExecutionProvider")

    def options_of(graph: bytes, batch: int = 1) -> dict[str, str]:
        (tmp_path / file).write_bytes(graph)
        backends.create("onnxruntime-tensorrt").build(tmp_path / file, 1, batch)
        options: dict[str, str] = requests[-1][2][0][1]
        return options

    options = options_of(b"graph")
    assert (options["trt_int8_enable"], options["trt_fp16_enable"]) == (int8, half)
    assert Path(options["trt_engine_cache_path"]).is_dir() and options["trt_engine_cache_enable"] == "1"
    # a student trained again has the same names, and so would its engine
    other_options = [options_of(b"graph, trained again"), options_of(b"graph", 8)]
    assert len({choice["trt_engine_cache_path"] for choice in (options, *other_options)}) == 3
    assert options_of(b"graph") == options


@pytest.mark.parametrize(
    ("provider", "target", "instead"),
    [
        ("cpu", "tensorrt", "int8-cpu"),
        ("cuda", "tensorrt", "fp32"),
        ("tensorrt", "cpu", "int8-tensorrt"),
        ("cpu", "cpu", ""),
        ("cuda", "cpu", ""),
        ("tensorrt", "tensorrt", ""),
        ("tensorrt", "any", ""),
    ],
)
def test_graph_for_another_target_is_refused(
    provider: str, target: str, instead: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path))
    requests = install_runtime(monkeypatch, ort.PROVIDERS[provider].name)
    path = tiny_onnx.write(tmp_path / "student.onnx", "int8")
    model = onnx.load(path)
    if target != "any":
        onnx.helper.set_model_props(model, {"target": target})
    onnx.save(model, path)
    backend = backends.create(f"onnxruntime-{provider}")
    if not instead:
        backend.build(path, 1)
        option = "optimization.disable_specified_optimizers"
        assert {request[1].entries[option] for request in requests} == {"WeightBiasQuantization"}
        return
    problem = f"student.onnx is made for the target {target}, .*; take {instead}$"
    with pytest.raises(AgentError, match=problem) as caught:
        backend.build(path, 1)
    assert caught.value.exit_code == 2 and not requests


def test_batches_and_targets_are_derived_from_names() -> None:
    assert [backends.batch_of(mode) for mode in ("host-to-host", "compute-graph", "offline-8")] == [1, 1, 8]
    cpu = backends.create("onnxruntime-cpu")
    assert backends.window(cpu, "offline-8").endswith("; batches of 8")
    for wrong in ("compute", "offline-0", "offline"):
        with pytest.raises(AgentError, match=f"has no mode {wrong}; one of: host-to-host, offline-B"):
            backends.window(cpu, wrong)
    names = (
        "onnxruntime-cpu",
        "onnxruntime-openvino",
        "onnxruntime-cuda",
        "onnxruntime-tensorrt",
        "tensorrt",
        "tensorrt-rtx",
    )
    assert [backends.target_of(name) for name in names] == ["cpu", "cpu", "any", "tensorrt", "tensorrt", "tensorrt"]


def test_cache_follows_environment_and_never_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EDGEDISTILL_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert cache.folder("engines") == tmp_path / "user" / "edgedistill" / "engines"
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path / "own"))
    assert cache.folder("engines") == tmp_path / "own" / "engines" and (tmp_path / "own" / "engines").is_dir()
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path / "file"))
    assert not cache.folder("engines").exists()
