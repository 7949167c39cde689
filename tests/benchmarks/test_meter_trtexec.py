"""trtexec beside the agent's TensorRT: the flags of its versions, what it prints, and what is said where it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.meter import __main__ as command
from benchmarks.meter import compare, graphs, readings, table, trtexec
from benchmarks.meter.compare import Plan
from benchmarks.quantize.environments import PeerError
from edgedistill.errors import EdgeDistillError
from edgedistill.records import OnnxModel

QUICK = Plan(rounds=2, samples=20, seconds=0.02)


@pytest.fixture
def graph(tmp_path: Path) -> graphs.Graph:
    """Only its name is asked for: no program here opens it."""
    return graphs.Graph(
        name="means",
        bundle=tmp_path,
        model=OnnxModel(
            path="means.onnx", sha256="0" * 64, precision="fp32", target="any", opset=18, parent_sha256="", size_mb=0.1
        ),
        px=4,
    )


@pytest.mark.parametrize(
    ("digits", "version"),
    [("8502", "8.5.2"), ("8601", "8.6.1"), ("100300", "10.3.0"), ("101303", "10.13.3"), ("110401", "11.4.1")],
)
def test_trtexec_says_its_version(digits: str, version: str) -> None:
    assert trtexec.parse_version(f"&&&& RUNNING TensorRT.trtexec [TensorRT v{digits}] [b8] # trtexec") == version


def test_every_version_copies_waits_in_a_loop_and_launches_as_the_mode_says() -> None:
    for version in ("8.6.1", "10.3.0"):
        assert trtexec.flags(version, graph=False) == ["--useSpinWait"]
        assert trtexec.flags(version, graph=True) == ["--useSpinWait", "--useCudaGraph"]
    assert trtexec.flags("11.4.1", graph=False) == ["--includeDataTransfers", "--noCudaGraph"]
    assert trtexec.flags("11.4.1", graph=True) == ["--includeDataTransfers"]
    assert [trtexec.types(version, "int8") for version in ("8.6.1", "10.3.0", "11.4.1")] == [
        ["--int8", "--fp16"],
        ["--stronglyTyped"],
        [],
    ]
    assert trtexec.types("8.6.1", "fp32") == [] and trtexec.types("8.6.1", "fp16") == ["--fp16"]


def line(name: str, at: float, percentiles: tuple[int, ...] = (90, 95, 99)) -> str:
    spread = ", ".join(f"percentile({one}%) = {at + one / 100:g} ms" for one in percentiles)
    return f"{name}: min = {at:g} ms, max = {at + 2:g} ms, mean = {at + 0.5:g} ms, median = {at + 0.25:g} ms, {spread}"


def printed(stamp: str, percentiles: tuple[int, ...] = (90, 95, 99)) -> str:
    """What trtexec prints at its end, in the form of its versions: a time stamp or none before each line."""
    said = [
        "Warmup completed 5 queries over 200 ms",
        "Timing trace has 2077 queries over 3.0039 s",
        "",
        "=== Performance summary ===",
        "Throughput: 691.4 qps",
        line("Latency", 1.5, percentiles),
        line("Enqueue Time", 0.1, percentiles),
        line("H2D Latency", 0.01, percentiles),
        line("GPU Compute Time", 1.25, percentiles),
        line("D2H Latency", 0, percentiles),
        "Total Host Walltime: 3.0039 s",
        "Total GPU Compute Time: 2.9 s",
    ]
    return "\n".join(f"{stamp}{one}" for one in said)


@pytest.mark.parametrize("stamp", ["[04/07/2025-23:59:50] [I] ", "[I] ", ""])
def test_the_summary_of_trtexec(stamp: str) -> None:
    found = trtexec.summary(printed(stamp))
    assert set(found) == {"Latency", "Enqueue Time", "H2D Latency", "GPU Compute Time", "D2H Latency"}
    assert found["Latency"] == {"n": 2077, "min": 1.5, "max": 3.5, "p50": 1.75, "p90": 2.4, "p99": 2.49}
    assert found["GPU Compute Time"]["p50"] == 1.5 and found["D2H Latency"]["min"] == 0.0


def test_what_is_no_summary_is_refused() -> None:
    # before 8.2 every figure had a line of its own
    old = "[I] Host Latency\n[I] min: 1.64 ms (end to end 1.66 ms)\n[I] median: 1.65 ms (end to end 3.0 ms)"
    for text in (old, "", "[E] Error[4]: engine could not be created"):
        with pytest.raises(ValueError, match="no performance summary"):
            trtexec.summary(text)
    with pytest.raises(ValueError, match="no version"):
        trtexec.parse_version("trtexec: not found")
    assert "p90" not in trtexec.summary(printed("[I] ", (99,)))["Latency"]  # 8.4 has the 99th alone


def program(folder: Path, version: str, text: str, status: int = 0) -> Path:
    """A trtexec that says what it is told to, and keeps its arguments and its engine."""
    (folder / "said").write_text(f"&&&& RUNNING TensorRT.trtexec [TensorRT v{version}] # trtexec\n{text}\n")
    path = folder / "trtexec"
    path.write_text(f"""#!/bin/sh
echo "$@" >> {folder}/asked
for one in "$@"; do case "$one" in --saveEngine=*) echo engine > "${{one#*=}}";; esac; done
cat {folder}/said
exit {status}
""")
    path.chmod(0o755)
    return path


def test_trtexec_builds_once_and_is_told_what_makes_it_comparable(graph: graphs.Graph, tmp_path: Path) -> None:
    path, engine = str(program(tmp_path, "110401", printed("[I] "))), tmp_path / "kept.engine"
    assert trtexec.installed(path) == "11.4.1"
    first = trtexec.reading(path, "11.4.1", graph=graph, engine=engine, plan=QUICK, mode="compute")
    second = trtexec.reading(path, "11.4.1", graph=graph, engine=engine, plan=QUICK, mode="host-to-host-graph")
    assert (first["p50"], second["p50"]) == (1.5, 1.75)
    help_, build, load = (tmp_path / "asked").read_text().splitlines()
    assert help_ == "--help" and f"--onnx={graph.path}" in build and "--noCudaGraph" in build
    assert f"--loadEngine={engine}" in load and "--onnx" not in load and "--noCudaGraph" not in load
    assert all("--shapes=images:1x4x4x3" in one and "--includeDataTransfers" in one for one in (build, load))
    with pytest.raises(PeerError, match="exit status 3"):
        trtexec.installed(str(program(tmp_path, "110401", "no device", status=3)))


def test_where_trtexec_is_not_the_line_says_so(
    graph: graphs.Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEDISTILL_CACHE", "")
    monkeypatch.setattr(trtexec.shutil, "which", lambda name: None)
    (absent,) = command.beside_trtexec(graph, QUICK, tmp_path)
    assert absent == {"graph": "means", "peer": "trtexec", "absent": "not here: no program is called trtexec"}
    assert "| means | trtexec | not here: no program is called trtexec |" in table.markdown([absent])
    monkeypatch.setattr(trtexec.shutil, "which", lambda name: str(program(tmp_path, "100300", "")))

    def missing(*_: Any, **__: Any) -> None:
        raise EdgeDistillError("tensorrt does not import")

    monkeypatch.setattr(readings, "agent", missing)
    (absent,) = command.beside_trtexec(graph, QUICK, tmp_path)
    assert absent["absent"] == "not measured: tensorrt does not import"


@pytest.mark.parametrize(("version", "same"), [("10.3.0.26", True), ("10.3.1", False)])
def test_trtexec_runs_the_agents_engine_where_the_versions_are_the_same(
    version: str, same: bool, graph: graphs.Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEDISTILL_CACHE", "")
    monkeypatch.setattr(trtexec.shutil, "which", lambda name: str(program(tmp_path, "100300", printed("[I] "))))

    def agent(graph: graphs.Graph, plan: Plan, python: Path, backend: str, mode: str) -> compare.Reading:
        engines = Path(trtexec.os.environ["EDGEDISTILL_CACHE"]) / "engines"
        engines.mkdir(exist_ok=True)
        (engines / "abc.engine").touch()
        return {"n": 20, "version": version, "p50": 1.5, "p90": 2.2, "p99": 2.3}

    monkeypatch.setattr(readings, "agent", agent)
    lines = list(command.beside_trtexec(graph, QUICK, tmp_path))
    assert [one["scenario"] for one in lines] == list(trtexec.MODES)
    assert [one["judged"] for one in lines] == [True, True, False, False]
    assert {one["engine"] for one in lines} == {"the agent's" if same else "each its own"}
    asked = (tmp_path / "asked").read_text()
    assert asked.count("abc.engine") == (8 if same else 0) and asked.count("--saveEngine") == (0 if same else 1)
    assert lines[0]["compared"]["p50"] == {"ours": 1.5, "theirs": 1.5, "ratio": 1.0, "interval": None, "within": True}
    assert table.markdown(lines).count("not judged: other windows") == 6
