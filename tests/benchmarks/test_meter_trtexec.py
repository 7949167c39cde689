"""trtexec compared with the agent's TensorRT: flags of its versions, parsing of its output, and its absence."""

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
    """A graph record without a file; no test opens it."""
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
def test_version_is_parsed_from_banner(digits: str, version: str) -> None:
    assert trtexec.parse_version(f"&&&& RUNNING TensorRT.trtexec [TensorRT v{digits}] [b8] # trtexec") == version


def test_flags_of_each_version_match_mode_and_precision() -> None:
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


def line(name: str, ms: float, percentiles: tuple[int, ...] = (90, 95, 99)) -> str:
    spread = ", ".join(f"percentile({percentile}%) = {ms + percentile / 100:g} ms" for percentile in percentiles)
    return f"{name}: min = {ms:g} ms, max = {ms + 2:g} ms, mean = {ms + 0.5:g} ms, median = {ms + 0.25:g} ms, {spread}"


def summary_text(stamp: str, percentiles: tuple[int, ...] = (90, 95, 99)) -> str:
    """The summary that trtexec prints, with the stamp of its version before each line."""
    lines = [
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
    return "\n".join(f"{stamp}{text}" for text in lines)


@pytest.mark.parametrize("stamp", ["[04/07/2025-23:59:50] [I] ", "[I] ", ""])
def test_summary_of_trtexec_is_parsed(stamp: str) -> None:
    marks = trtexec.summary(summary_text(stamp))
    assert set(marks) == {"Latency", "Enqueue Time", "H2D Latency", "GPU Compute Time", "D2H Latency"}
    assert marks["Latency"] == {"n": 2077, "min": 1.5, "max": 3.5, "p50": 1.75, "p90": 2.4, "p99": 2.49}
    assert marks["GPU Compute Time"]["p50"] == 1.5 and marks["D2H Latency"]["min"] == 0.0


def test_output_without_summary_is_refused() -> None:
    # before 8.2 each figure was on its own line
    old = "[I] Host Latency\n[I] min: 1.64 ms (end to end 1.66 ms)\n[I] median: 1.65 ms (end to end 3.0 ms)"
    for text in (old, "", "[E] Error[4]: engine could not be created"):
        with pytest.raises(ValueError, match="no performance summary"):
            trtexec.summary(text)
    with pytest.raises(ValueError, match="no version"):
        trtexec.parse_version("trtexec: not found")
    assert "p90" not in trtexec.summary(summary_text("[I] ", (99,)))["Latency"]  # 8.4 prints only the 99th


def program(folder: Path, version: str, text: str, status: int = 0) -> Path:
    """A fake trtexec that prints `text`, records its arguments and writes its engine."""
    (folder / "output").write_text(f"&&&& RUNNING TensorRT.trtexec [TensorRT v{version}] # trtexec\n{text}\n")
    path = folder / "trtexec"
    path.write_text(f"""#!/bin/sh
echo "$@" >> {folder}/arguments
for argument in "$@"; do case "$argument" in --saveEngine=*) echo engine > "${{argument#*=}}";; esac; done
cat {folder}/output
exit {status}
""")
    path.chmod(0o755)
    return path


def test_trtexec_builds_once_with_comparable_flags(graph: graphs.Graph, tmp_path: Path) -> None:
    path, engine = str(program(tmp_path, "110401", summary_text("[I] "))), tmp_path / "kept.engine"
    assert trtexec.installed_version(path) == "11.4.1"
    first = trtexec.reading(path, "11.4.1", graph=graph, engine=engine, plan=QUICK, mode="compute")
    second = trtexec.reading(path, "11.4.1", graph=graph, engine=engine, plan=QUICK, mode="host-to-host-graph")
    assert (first["p50"], second["p50"]) == (1.5, 1.75)
    help_, build, load = (tmp_path / "arguments").read_text().splitlines()
    assert help_ == "--help" and f"--onnx={graph.path}" in build and "--noCudaGraph" in build
    assert f"--loadEngine={engine}" in load and "--onnx" not in load and "--noCudaGraph" not in load
    assert all("--shapes=images:1x4x4x3" in call and "--includeDataTransfers" in call for call in (build, load))
    with pytest.raises(PeerError, match="exit status 3"):
        trtexec.installed_version(str(program(tmp_path, "110401", "no device", status=3)))


def test_absent_trtexec_gives_line_with_reason(
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
def test_trtexec_runs_engine_of_agent_if_versions_match(
    version: str, same: bool, graph: graphs.Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEDISTILL_CACHE", "")
    monkeypatch.setattr(trtexec.shutil, "which", lambda name: str(program(tmp_path, "100300", summary_text("[I] "))))

    def agent(graph: graphs.Graph, plan: Plan, python: Path, backend: str, mode: str) -> compare.Reading:
        engines = Path(trtexec.os.environ["EDGEDISTILL_CACHE"]) / "engines"
        engines.mkdir(exist_ok=True)
        (engines / "abc.engine").touch()
        return {"n": 20, "version": version, "p50": 1.5, "p90": 2.2, "p99": 2.3}

    monkeypatch.setattr(readings, "agent", agent)
    lines = list(command.beside_trtexec(graph, QUICK, tmp_path))
    assert [row["scenario"] for row in lines] == list(trtexec.MODES)
    assert [row["judged"] for row in lines] == [True, True, False, False]
    assert {row["engine"] for row in lines} == {"the agent's" if same else "each its own"}
    calls = (tmp_path / "arguments").read_text()
    assert calls.count("abc.engine") == (8 if same else 0) and calls.count("--saveEngine") == (0 if same else 1)
    assert lines[0]["compared"]["p50"] == {"ours": 1.5, "theirs": 1.5, "ratio": 1.0, "interval": None, "within": True}
    assert table.markdown(lines).count("not judged: other windows") == 6
