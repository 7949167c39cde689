"""The comparison of meters: order of the readings, parsing of their output, verdicts, and the table."""

from __future__ import annotations

import json
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.meter import __main__ as command
from benchmarks.meter import compare, driver, graphs, readings, table, trtexec
from benchmarks.meter.compare import Plan
from benchmarks.quantize import environments
from benchmarks.quantize.environments import Built, PeerError
from edgedistill.devices.bundle import agent_archive
from edgedistill.errors import InputError

QUICK = Plan(rounds=2, samples=20, seconds=0.02, batch=3)


def mean_graph(path: Path, px: int = 4, dtype: int = TensorProto.UINT8) -> Path:
    """A student whose logits are the means of an image's channels."""
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["logits"], keepdims=0),
    ]
    images = helper.make_tensor_value_info("images", dtype, ["n", px, px, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])
    axes = numpy_helper.from_array(np.array([1, 2], np.int64), "axes")
    graph = helper.make_graph(nodes, "student", [images], [logits], [axes])
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


@pytest.fixture
def graph(tmp_path: Path) -> graphs.Graph:
    return graphs.from_file(mean_graph(tmp_path / "means.onnx"), tmp_path / "runs")


def test_sides_alternate_and_take_turns_to_begin() -> None:
    readings: list[str] = []

    def side(name: str) -> compare.Reading:
        readings.append(name)
        return {"n": len(readings)}

    cells = compare.rounds(lambda: side("ours"), lambda: side("theirs"), 3, "test")
    assert readings == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert [cell["first"] for cell in cells] == ["ours", "theirs", "ours"]
    assert [(cell["ours"]["n"], cell["theirs"]["n"]) for cell in cells] == [(1, 2), (4, 3), (5, 6)]


def cells(ours: list[float], theirs: list[float], mark: str = "p50") -> list[dict[str, Any]]:
    return [{"ours": {mark: own}, "theirs": {mark: peer}} for own, peer in zip(ours, theirs, strict=True)]


def test_ratio_is_median_over_rounds_of_theirs_over_ours() -> None:
    # ratios 1.0, 1.1, 1.04, 1.02: the median of them, not the ratio of the medians
    comparison = compare.compare(cells([1.0, 10.0, 100.0, 50.0] * 3, [1.0, 11.0, 104.0, 51.0] * 3))["p50"]
    assert (comparison["ours"], comparison["theirs"], comparison["ratio"], comparison["within"]) == (
        30.0,
        31.0,
        1.03,
        True,
    )
    assert 1.0 <= comparison["interval"][0] <= 1.03 <= comparison["interval"][1] <= 1.1
    few = compare.compare(cells([1.0, 1.0, 1.0], [1.2, 1.1, 1.3]))["p50"]
    assert (few["ratio"], few["interval"], few["within"]) == (1.2, None, False)


@pytest.mark.parametrize(("theirs", "within"), [(1.049, True), (1.051, False), (0.951, True), (0.949, False)])
def test_within_bounds_ratio_on_both_sides(theirs: float, within: bool) -> None:
    assert compare.compare(cells([1.0] * 4, [theirs] * 4, "per_second"))["per_second"]["within"] is within


def test_only_quantities_of_both_sides_are_compared() -> None:
    rounds = [{"ours": {"n": 1, "p50": 1.0, "p99": 2.0, "min": 0.5}, "theirs": {"n": 1, "p50": 1.0, "min": 0.5}}]
    assert list(compare.compare(rounds)) == ["p50"]


def test_agent_reads_percentiles_and_rate(graph: graphs.Graph) -> None:
    latency = readings.agent(graph, QUICK, Path(sys.executable))
    assert latency["n"] >= 20 and 0 < latency["min"] <= latency["p50"] <= latency["p90"] <= latency["p99"]
    assert latency["version"][0].isdigit() and isinstance(latency["verdict"], str)
    rate = readings.agent(graph, QUICK, Path(sys.executable), mode="offline")
    assert rate["n"] >= 7 and rate["per_second"] > 0 and "p50" not in rate


def test_rate_counts_images_not_batches() -> None:
    assert readings.summary([100.0, 300.0], 4) == {"per_second": 20.0}
    assert readings.summary([1.0, 2.0, 3.0], None)["p50"] == 2.0


class Loadgen(types.ModuleType):
    """A double of mlperf_loadgen: it issues the queries of the scenario and writes a log in the real format."""

    def __init__(self, completes: bool = True) -> None:
        super().__init__("mlperf_loadgen")
        self.completed: Counter[int] = Counter()
        self.settings: list[Any] = []
        self.TestScenario = types.SimpleNamespace(SingleStream="SingleStream", Offline="Offline")
        self.TestMode = types.SimpleNamespace(PerformanceOnly="PerformanceOnly")
        self.TestSettings = types.SimpleNamespace
        self.LogSettings = lambda: types.SimpleNamespace(log_output=types.SimpleNamespace())
        self.completes = completes

    def QuerySampleResponse(self, id_: int, address: int, size: int) -> int:  # noqa: N802 - names of the real module
        assert (address, size) == (0, 0)
        return id_

    def QuerySamplesComplete(self, responses: list[int]) -> None:  # noqa: N802
        self.completed.update(responses)

    def ConstructSUT(self, issue: Any, flush: Any) -> Any:  # noqa: N802
        return issue

    def ConstructQSL(self, total: int, in_memory: int, load: Any, unload: Any) -> int:  # noqa: N802
        assert total == in_memory
        return total

    def StartTestWithLogSettings(self, issue: Any, images: int, settings: Any, log: Any) -> None:  # noqa: N802
        self.settings.append(settings)
        queries = [
            types.SimpleNamespace(id=number, index=number * 7 % images) for number in range(settings.min_query_count)
        ]
        for batch in [queries] if settings.scenario == "Offline" else [[query] for query in queries]:
            issue(batch)
        marks = {
            "min_latency_ns": 1e6,
            "50.00_percentile_latency_ns": 2e6,
            "90.00_percentile_latency_ns": 3e6,
            "99.00_percentile_latency_ns": 4e6,
            "max_latency_ns": 5e6,
            "query_count": len(queries),
        }
        offline = {"effective_samples_per_query": len(queries), "result_samples_per_second": 80.5}
        logged = offline if settings.scenario == "Offline" else {f"result_{name}": mark for name, mark in marks.items()}
        lines = [f":::MLLOG {json.dumps({'key': key, 'value': entry})}" for key, entry in logged.items()]
        text = "\n".join(["not a line of the log", *lines] if self.completes else [])
        (Path(log.log_output.outdir) / "mlperf_log_detail.txt").write_text(text)

    def DestroyQSL(self, library: Any) -> None:  # noqa: N802
        """Nothing to release."""

    def DestroySUT(self, sut: Any) -> None:  # noqa: N802
        """Nothing to release."""


def drive(
    graph: graphs.Graph, scenario: str, batch: int, monkeypatch: pytest.MonkeyPatch, capsys: Any, completes: bool = True
) -> tuple[dict[str, Any], Loadgen]:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", double := Loadgen(completes))
    monkeypatch.setattr(sys, "path", sys.path[:])
    options = {
        "agent": graph.bundle / "agent.pyz",
        "model": graph.path,
        "images": graph.bundle / "images.npy",
        "scenario": scenario,
        "threads": 1,
        "batch": batch,
        "samples": 20,
        "seconds": 0.5,
    }
    try:
        assert driver.main([part for name, option in options.items() for part in (f"--{name}", str(option))]) == 0
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "agent"]:
            monkeypatch.delitem(sys.modules, name)
    return json.loads(capsys.readouterr().out), double


def test_loadgen_single_stream_gives_milliseconds_per_image(
    graph: graphs.Graph, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, double = drive(graph, "SingleStream", batch=1, monkeypatch=monkeypatch, capsys=capsys)
    assert {name: reading[name] for name in ("n", "min", "p50", "p90", "p99", "max")} == {
        "n": 20,
        "min": 1.0,
        "p50": 2.0,
        "p90": 3.0,
        "p99": 4.0,
        "max": 5.0,
    }
    # 20 queries of the graph, then 500 that do nothing; each is answered once per test
    assert double.completed == Counter(range(20)) + Counter(range(500)) and isinstance(reading["settled"], bool)
    bounds = [(settings.min_duration_ms, settings.min_query_count) for settings in double.settings]
    assert bounds == [(500, 20), (50, 500)]
    assert all(settings.single_stream_expected_latency_ns > 0 for settings in double.settings)
    assert reading["runtime"]["version"][0].isdigit() and reading["empty_ms"] == 2.0


def test_loadgen_offline_gives_rate(
    graph: graphs.Graph, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, double = drive(graph, "Offline", batch=8, monkeypatch=monkeypatch, capsys=capsys)
    assert (reading["n"], reading["per_second"]) == (20, 80.5)
    assert double.completed == Counter(range(20))


def test_incomplete_loadgen_log_is_an_error(
    graph: graphs.Graph, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="the test broke off"):
        drive(graph, "SingleStream", batch=1, monkeypatch=monkeypatch, capsys=capsys, completes=False)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_real_loadgen_and_agent_agree_in_order_of_magnitude(
    graph: graphs.Graph, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        loadgen = environments.environment("loadgen", tmp_path / "environments")
    except PeerError as error:
        pytest.skip(f"mlcommons-loadgen cannot be installed here: {error}")
    single, offline = command.beside_loadgen(graph, QUICK, loadgen)
    assert list(single["compared"]) == ["p50", "p90", "p99"] and list(offline["compared"]) == ["per_second"]
    # a graph of microseconds on a shared machine: only the order of magnitude, not the 5 %
    assert 0.1 < single["compared"]["p50"]["ratio"] < 10 and 0.1 < offline["compared"]["per_second"]["ratio"] < 10
    assert all(cell["theirs"]["n"] >= 20 for cell in (*single["rounds"], *offline["rounds"]))
    assert "mlcommons-loadgen 6.0.17, SingleStream" in table.markdown([single, offline])


def result_line(**fields: Any) -> dict[str, Any]:
    comparison = {"ours": 1.0, "theirs": 1.02, "ratio": 1.02, "interval": [1.01, 1.03], "within": True}
    rounds = [{"ours": {"verdict": verdict}, "theirs": {"empty_ms": 0.0125}} for verdict in ("quiet", "noisy, because")]
    return {
        "graph": "a",
        "precision": "fp32",
        "peer": "mlcommons-loadgen",
        "scenario": "SingleStream",
        "judged": True,
        "versions": {"mlcommons-loadgen": "6.0", "onnxruntime": "1.2"},
        "plan": vars(QUICK),
        "rounds": rounds,
        "compared": {"p50": comparison},
        "cpu": "c",
        "cores": 2,
        "commit": "abc",
        **fields,
    }


def test_table_shows_newest_line_and_disclaims_mlperf() -> None:
    old = result_line(measured="2025-01-01", versions={"mlcommons-loadgen": "5.0"})
    text = table.markdown([result_line(measured="2026-01-01"), old])
    row = "| a, fp32 | mlcommons-loadgen 6.0, SingleStream | p50 | 1.000 ms | 1.020 ms | 1.020 [1.010, 1.030] | yes |"
    assert row in text and "5.0" not in text
    assert "quiet in 1 of 2 rounds, a query that does nothing takes loadgen 0.013 ms" in text
    assert "onnxruntime 1.2, 1 thread(s), 2 rounds of 20 images" in text
    assert table.DISCLAIMER in text and "MLPerf result" not in text.replace(table.DISCLAIMER, "")
    assert "Not measured yet." in table.markdown([])


def test_measured_peer_replaces_its_absence() -> None:
    absent = {"graph": "a", "peer": "mlcommons-loadgen", "absent": "not here", "measured": "2025-01-01"}
    assert "not here" in table.markdown([absent]) and "not here" not in table.markdown([absent, result_line()])
    assert "not here" in table.markdown([{**absent, "graph": "b"}, result_line()])


@pytest.mark.parametrize(
    ("within", "interval", "verdict"),
    [
        (True, [0.96, 1.04], "yes"),
        (True, [0.96, 1.06], "yes; its interval reaches beyond"),
        (True, None, "yes; no interval"),
        (False, [1.06, 1.2], "no"),
        (False, None, "no"),
        (False, [1.04, 1.2], "no; its interval reaches within"),
    ],
)
def test_verdict_names_interval(within: bool, interval: list[float] | None, verdict: str) -> None:
    assert table.verdict(within, interval) == verdict


def test_run_writes_line_per_scenario_and_fast_run_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written: list[dict[str, Any]] = []
    monkeypatch.setattr(
        command, "environment", lambda name, folder: Built(python=Path(sys.executable), versions={}, seconds=0.0)
    )
    monkeypatch.setattr(command, "append", lambda kind, line: written.append({"kind": kind, **line}))
    monkeypatch.setattr(readings, "agent", lambda *_, **__: {"n": 1, "p50": 1.0, "per_second": 2.0})
    monkeypatch.setattr(readings, "loadgen", lambda *_, **__: {"n": 1, "p50": 1.0, "per_second": 2.0})
    monkeypatch.setattr(trtexec, "program", lambda: None)
    model = mean_graph(tmp_path / "m.onnx")
    arguments = ["run", "--model", str(model), "--runs", str(tmp_path / "runs"), "--rounds", "4"]
    assert command.main([*arguments, "--fast"]) == 0 and not written
    assert command.main(arguments) == 0
    assert [(line["kind"], line.get("scenario")) for line in written] == [
        ("meter", "SingleStream"),
        ("meter", "Offline"),
        ("meter", None),
    ]
    assert len(written[0]["rounds"]) == 4 and written[0]["compared"]["p50"]["within"]
    assert json.loads(json.dumps(written)) and "yes" in capsys.readouterr().err


def test_file_that_is_not_a_student_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not uint8"):
        graphs.from_file(mean_graph(tmp_path / "float.onnx", dtype=TensorProto.FLOAT), tmp_path)
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(InputError, match="is not an ONNX graph"):
        graphs.from_file(tmp_path / "text.onnx", tmp_path)


def test_bundle_has_current_agent(graph: graphs.Graph) -> None:
    assert (graph.bundle / "agent.pyz").read_bytes() == agent_archive()
    assert (graph.px, graph.model.precision, graph.path.exists()) == (4, "fp32", True)
