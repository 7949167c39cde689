"""The block that compares devices: the graph each should run, by its own measurements and the recipe's budget."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgedistill.measurements import BenchReport, Energy, EngineChoice, EngineRow, Latency
from edgedistill.records import Guarded, OnnxModel
from edgedistill.report import text
from edgedistill.report.blocks import Block
from edgedistill.report.devices import blocks
from edgedistill.report.facts import read
from edgedistill.report.render import collect
from edgedistill.run.directory import Run
from edgedistill.run.files import read_record, write_json, write_record
from tests.helpers.report_runs import accuracy, make_run

CELLS = [[process, round_, 12] for process in (0, 1, 2) for round_ in (0, 1, 2)]
SHA256 = {"fp32": "f" * 64, "fp16": "3" * 64, "int8-tensorrt": "2" * 64}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with an fp16 graph too, and without measurements."""
    run = make_run(tmp_path, "verify")
    models = list(read_record(run / "export/models.json", tuple[OnnxModel, ...]))
    half = OnnxModel(
        path="export/student.fp16.onnx",
        sha256=SHA256["fp16"],
        precision="fp16",
        target="any",
        opset=18,
        parent_sha256="f" * 64,
        size_mb=1.7,
    )
    write_json(run / "export/models.json", [asdict(model) for model in (*models, half)])
    return run


def write_bench(
    run: Run,
    artefact: str,
    ms: float,
    device: str = "orin",
    backend: str = "tensorrt",
    mode: str = "host-to-host",
    **fields: Any,
) -> None:
    """Write a BenchReport of 108 samples around `ms`, the same in every cell."""
    batch = int(mode.partition("offline-")[2] or 1)
    samples = tuple(ms * float(factor) for _ in CELLS for factor in np.linspace(0.95, 1.05, 12))
    report_fields: dict[str, Any] = {"facts": {"cells": CELLS}, "agreement_with_host": 1.0, "mode": mode, **fields}
    latency = report_fields.pop(
        "latency", Latency(samples_ms=samples, warmup_ms=(9.0,), window=f"the window of {mode}", batch=batch)
    )
    precision = artefact.partition("-")[0]
    sha256 = {**SHA256, "int8-cpu": "1" * 64}[artefact]
    report = BenchReport(
        device=device,
        backend=backend,
        backend_version="10.3.0",
        artefact=artefact,
        sha256=sha256,
        precision=precision,
        latency=latency,
        accuracy=accuracy(0.9, 500),
        **report_fields,
    )
    write_record(run / f"bench/{device}/{backend}-{artefact}-{mode}.json", report)


def block_of(run: Run, key: str) -> Block:
    return next(block for block in blocks(read(run)) if block.key == key)


def set_budget(run: Run, **bound: Any) -> None:
    """Write a latency budget into the recipe of the run."""
    lock = json.loads((run / "recipe.lock.json").read_text())
    lock["recipe"]["student"]["budget"]["latency_ms"] = bound
    write_json(run / "recipe.lock.json", lock)


def test_int8_for_tensorrt_is_compared_with_fp16_not_fp32(run: Run) -> None:
    write_bench(run, "fp32", 4.0)
    write_bench(run, "fp16", 2.0)
    # twice as fast as fp32, but no faster than fp16: not worth running
    write_bench(run, "int8-tensorrt", 2.0, ratio_to_fp32=(2.0, 1.9, 2.1))
    (line,) = [line for line in block_of(run, "latency-0").lines if line.startswith("int8-tensorrt")]
    assert line.endswith(
        "to run here: fp16, since int8 is 1.00 [1.00, 1.00] times as fast as fp16, and more than 1.05 is required"
    )
    assert block_of(run, "devices").lines == ("orin: fastest: fp16 on tensorrt, p50 2.00 ms",)
    write_bench(run, "int8-tensorrt", 1.0, ratio_to_fp32=(4.0, 3.9, 4.1))
    assert block_of(run, "latency-0").lines[-1].endswith("to run here: int8-tensorrt")
    assert block_of(run, "devices").lines == ("orin: fastest: int8-tensorrt on tensorrt, p50 1.00 ms",)


def test_time_to_the_label_stands_beside_the_models_own(run: Run) -> None:
    to_label = {
        start: Latency(samples_ms=(ms - 1, ms, ms + 1), warmup_ms=(9.0,), window=f"from a {start}")
        for start, ms in (("file", 14.0), ("frame", 7.0))
    }
    write_bench(run, "fp32", 4.0, to_label=to_label)
    write_bench(run, "fp16", 2.0)
    block = block_of(run, "latency-0")
    assert block.header[-2:] == ("file to label, p50 ms", "frame to label, p50 ms")
    assert {row[0]: row[-2:] for row in block.rows} == {"fp32": ("14.0", "7.00"), "fp16": ("-", "-")}
    assert block.note.endswith("; file to label: from a file; frame to label: from a frame")
    (summary,) = [report for report in collect(run)["bench"] if report["artefact"] == "fp32"]
    assert summary["to_label"]["file"]["percentiles_ms"]["p50"] == 14.0
    assert "samples_ms" not in summary["to_label"]["file"]


def test_unpaired_cells_give_no_choice(run: Run) -> None:
    write_bench(run, "fp32", 4.0)
    write_bench(run, "fp16", 2.0, facts={"cells": CELLS[:4]})
    write_bench(run, "int8-tensorrt", 1.0, ratio_to_fp32=(4.0, 3.9, 4.1))
    assert "to run here" not in block_of(run, "latency-0").lines[-1]


def test_nothing_is_recommended_of_few_samples(run: Run) -> None:
    write_bench(run, "fp32", 4.0)
    latency = Latency(samples_ms=(2.0,) * 99, warmup_ms=(9.0,), window="w")
    write_bench(run, "fp16", 2.0, latency=latency)
    assert block_of(run, "devices").lines == (
        "orin: too few samples (99) to recommend an artifact, at least 100 are needed",
    )


def test_budget_names_fastest_graph_of_every_device(run: Run) -> None:
    for device, slowdown in (("orin", 1.0), ("nano", 10.0)):
        write_bench(run, "fp32", 4.0 * slowdown, device)
        write_bench(run, "fp16", 2.0 * slowdown, device)
    set_budget(run, at_most=5.0, device="orin", percentile=90.0)
    assert block_of(run, "devices").lines == (
        "nano: nothing meets 5 ms at p90; the nearest is fp16 on tensorrt, p50 20.0 ms",
        "orin: fastest within 5 ms at p90: fp16 on tensorrt, p50 2.00 ms",
    )
    # p50 is 2.00 and p90 2.08: a bound between them is met at p50 and not at p90
    set_budget(run, at_most=2.04, percentile=90.0)
    assert block_of(run, "devices").lines[1].startswith("orin: nothing meets 2.04 ms at p90")
    set_budget(run, at_most=2.04, percentile=50.0)
    assert block_of(run, "devices").lines[1].startswith("orin: fastest within 2.04 ms at p50: fp16")


def test_graph_refused_by_guard_is_never_fastest(run: Run) -> None:
    drop = read_record(run / "quantize/guard.json", tuple[Guarded, ...])[0].drop
    write_json(run / "quantize/guard.json", [asdict(Guarded(target="cpu", holds=False, max_drop=1.0, drop=drop))])
    write_bench(run, "fp32", 4.0, backend="onnxruntime-cpu")
    write_bench(run, "int8-cpu", 1.0, backend="onnxruntime-cpu", ratio_to_fp32=(4.0, 3.9, 4.1))
    assert block_of(run, "devices").lines == ("orin: fastest: fp32 on onnxruntime-cpu, p50 4.00 ms",)


def test_guard_applies_without_a_comparison(run: Run) -> None:
    drop = read_record(run / "quantize/guard.json", tuple[Guarded, ...])[0].drop
    write_json(run / "quantize/guard.json", [asdict(Guarded(target="cpu", holds=False, max_drop=1.0, drop=drop))])
    write_bench(run, "int8-cpu", 1.0, backend="onnxruntime-cpu")
    write_bench(run, "fp32", 4.0, backend="onnxruntime-cpu")
    assert block_of(run, "devices").lines == ("orin: fastest: fp32 on onnxruntime-cpu, p50 4.00 ms",)


def test_graph_of_earlier_export_is_never_fastest(run: Run) -> None:
    write_bench(run, "fp32", 4.0)
    write_bench(run, "fp16", 1.0)
    models = read_record(run / "export/models.json", tuple[OnnxModel, ...])
    write_json(run / "export/models.json", [asdict(model) for model in models if model.precision != "fp16"])
    assert block_of(run, "devices").lines == ("orin: fastest: fp32 on tensorrt, p50 4.00 ms",)


def test_disagreeing_outputs_have_no_latency(run: Run) -> None:
    write_bench(run, "fp32", 4.0)
    write_bench(run, "fp16", 2.0, latency=Latency(samples_ms=(), warmup_ms=(), window="w"), agreement_with_host=0.5)
    row = next(row for row in block_of(run, "devices").rows if "fp16" in row[0])
    assert row[2:6] == ("-",) * 4
    assert block_of(run, "latency-0").lines[1] == "fp16: no latency: its outputs differ from the host's"
    assert block_of(run, "devices").lines == ("orin: fastest: fp32 on tensorrt, p50 4.00 ms",)


def test_energy_is_a_column_if_any_device_measured_it(run: Run) -> None:
    write_bench(run, "fp32", 4.0)
    assert "mJ/image" not in block_of(run, "devices").header
    write_bench(run, "fp16", 2.0, energy=Energy(mj_per_image=12.34, meter="INA3221", covers="the whole board"))
    block = block_of(run, "devices")
    column = block.header.index("mJ/image")
    assert [row[column] for row in block.rows] == ["-", "12.3"]
    assert "12.3 mJ per image by INA3221 (the whole board)" in block_of(run, "latency-0").lines[1]


def test_modes_have_own_rows_and_batches_own_block(run: Run) -> None:
    for mode, ms in (("host-to-host", 4.0), ("compute", 3.0), ("offline-8", 16.0)):
        write_bench(run, "fp32", ms, mode=mode)
    latency = block_of(run, "latency-0")
    assert [row[0] for row in latency.rows] == ["fp32", "fp32, compute"]
    assert "timed: the window of host-to-host; compute: the window of compute" in latency.note
    # eight images in 16 ms
    assert block_of(run, "throughput-0").rows == (("fp32", "8", "500", "-"),)
    assert [row[0] for row in block_of(run, "devices").rows] == ["orin tensorrt fp32"]


def test_origin_and_build_time_of_engine_are_shown(run: Run) -> None:
    engine = {"engine": "cached", "build_seconds": 12.34}
    write_bench(run, "fp32", 4.0, facts={"cells": CELLS, "runtime": {"models": {"fp32": engine}}})
    assert block_of(run, "latency-0").lines[0].endswith("; engine cached (12.3 s to build)")


def test_noisy_verdict_is_a_warning_and_quiet_is_not(run: Run) -> None:
    from edgedistill.report.facts import warnings

    write_bench(run, "fp32", 4.0, verdict="quiet")
    write_bench(run, "fp16", 2.0, verdict="noisy, because p50/min is 1.50; do: close other programs")
    assert [line for line in warnings(read(run)) if "orin" in line and "earlier" not in line] == [
        "orin, tensorrt, fp16: noisy, because p50/min is 1.50; do: close other programs"
    ]
    write_bench(run, "fp16", 2.0, verdict="too few samples (4), at least 100 are needed; do: this")
    assert "orin, tensorrt, fp16: too few samples (4), at least 100 are needed; do: this" in warnings(read(run))
    write_bench(run, "fp16", 2.0, verdict="noisy, because p50/min is 1.50; do: close other programs")
    assert ", quiet" in block_of(run, "latency-0").lines[0] and ", noisy" in block_of(run, "latency-0").lines[1]


def test_engine_of_this_machine_stands_with_the_precision(run: Run) -> None:
    row = EngineRow(
        backend="onnxruntime-cpu", artefact="int8-cpu", p50_ms=1.0, ratio=None, same=True, agreement=1.0, loss=None
    )
    for device, why in (("local", "openvino int8-cpu: faster"), ("pi", "onnxruntime-cpu fp32: simplest")):
        choice = EngineChoice(
            device=device,
            backend="openvino",
            artefact="int8-cpu",
            why=why,
            ratio=None,
            rows=(row,),
            cpu="X",
            cpu_flags=(),
            threads=1,
        )
        write_record(run / f"choice/{device}.json", choice)
    (precision,) = [block for block in text.blocks(read(run)) if block.key == "kept"]
    engines = [line for line in precision.lines if line.startswith("engine on ")]
    assert engines == ["engine on local: openvino int8-cpu: faster"]
