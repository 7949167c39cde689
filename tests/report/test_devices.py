"""The devices side by side: what each should run, by its own measurement, under the recipe's budget."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgedistill.records import BenchReport, Energy, Guarded, Latency, OnnxModel
from edgedistill.report.blocks import Block
from edgedistill.report.devices import blocks
from edgedistill.report.facts import read
from edgedistill.run.directory import Run
from edgedistill.run.files import read_record, write_json, write_record
from tests.helpers.report_runs import accuracy, make

CELLS = [[process, round_, 10] for process in (0, 1, 2) for round_ in (0, 1)]
SHA256 = {"fp32": "f" * 64, "fp16": "3" * 64, "int8-tensorrt": "2" * 64}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run whose fp16 graph is there too, and that has no measurement yet."""
    run = make(tmp_path, "verify")
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
    write_json(run / "export/models.json", [asdict(one) for one in (*models, half)])
    return run


def measured(
    run: Run,
    artefact: str,
    ms: float,
    device: str = "orin",
    backend: str = "tensorrt",
    mode: str = "host-to-host",
    **others: Any,
) -> None:
    """Sixty samples around `ms`, the same way around in every cell."""
    batch = int(mode.partition("offline-")[2] or 1)
    samples = tuple(ms * float(factor) for _ in CELLS for factor in np.linspace(0.95, 1.05, 10))
    said: dict[str, Any] = {"facts": {"cells": CELLS}, "agreement_with_host": 1.0, "mode": mode, **others}
    latency = said.pop(
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
        **said,
    )
    write_record(run / f"bench/{device}/{backend}-{artefact}-{mode}.json", report)


def found(run: Run, key: str) -> Block:
    return next(block for block in blocks(read(run)) if block.key == key)


def budget(run: Run, **bound: Any) -> None:
    lock = json.loads((run / "recipe.lock.json").read_text())
    lock["recipe"]["student"]["budget"]["latency_ms"] = bound
    write_json(run / "recipe.lock.json", lock)


def test_int8_for_tensorrt_is_held_against_fp16_and_not_against_fp32(run: Run) -> None:
    measured(run, "fp32", 4.0)
    measured(run, "fp16", 2.0)
    # twice as fast as fp32, and no faster than fp16: nobody should run it
    measured(run, "int8-tensorrt", 2.0, ratio_to_fp32=(2.0, 1.9, 2.1))
    (line,) = [one for one in found(run, "latency-0").lines if one.startswith("int8-tensorrt")]
    assert line.endswith(
        "to run here: fp16, since int8 is 1.00 [1.00, 1.00] times as fast as fp16, and more than 1.05 is asked for"
    )
    assert found(run, "devices").lines == ("orin: fastest: fp16 on tensorrt, p50 2.00 ms",)
    measured(run, "int8-tensorrt", 1.0, ratio_to_fp32=(4.0, 3.9, 4.1))
    assert found(run, "latency-0").lines[-1].endswith("to run here: int8-tensorrt")
    assert found(run, "devices").lines == ("orin: fastest: int8-tensorrt on tensorrt, p50 1.00 ms",)


def test_cells_that_do_not_pair_decide_nothing(run: Run) -> None:
    measured(run, "fp32", 4.0)
    measured(run, "fp16", 2.0, facts={"cells": CELLS[:4]})
    measured(run, "int8-tensorrt", 1.0, ratio_to_fp32=(4.0, 3.9, 4.1))
    assert "to run here" not in found(run, "latency-0").lines[-1]


def test_the_budget_names_the_winner_of_every_device(run: Run) -> None:
    for device, slower in (("orin", 1.0), ("nano", 10.0)):
        measured(run, "fp32", 4.0 * slower, device)
        measured(run, "fp16", 2.0 * slower, device)
    budget(run, at_most=5.0, device="orin", percentile=90.0)
    assert found(run, "devices").lines == (
        "nano: nothing meets 5 ms at p90; the nearest is fp16 on tensorrt, p50 20.0 ms",
        "orin: fastest within 5 ms at p90: fp16 on tensorrt, p50 2.00 ms",
    )
    # p50 is 2.00 and p90 2.08: a bound between them is kept at one percentile and not at the other
    budget(run, at_most=2.04, percentile=90.0)
    assert found(run, "devices").lines[1].startswith("orin: nothing meets 2.04 ms at p90")
    budget(run, at_most=2.04, percentile=50.0)
    assert found(run, "devices").lines[1].startswith("orin: fastest within 2.04 ms at p50: fp16")


def test_what_a_guard_refuses_wins_nowhere(run: Run) -> None:
    drop = read_record(run / "quantize/guard.json", tuple[Guarded, ...])[0].drop
    write_json(run / "quantize/guard.json", [asdict(Guarded(target="cpu", holds=False, max_drop=1.0, drop=drop))])
    measured(run, "fp32", 4.0, backend="onnxruntime-cpu")
    measured(run, "int8-cpu", 1.0, backend="onnxruntime-cpu", ratio_to_fp32=(4.0, 3.9, 4.1))
    assert found(run, "devices").lines == ("orin: fastest: fp32 on onnxruntime-cpu, p50 4.00 ms",)


def test_a_guard_is_asked_though_nothing_was_compared(run: Run) -> None:
    drop = read_record(run / "quantize/guard.json", tuple[Guarded, ...])[0].drop
    write_json(run / "quantize/guard.json", [asdict(Guarded(target="cpu", holds=False, max_drop=1.0, drop=drop))])
    measured(run, "int8-cpu", 1.0, backend="onnxruntime-cpu")
    measured(run, "fp32", 4.0, backend="onnxruntime-cpu")
    assert found(run, "devices").lines == ("orin: fastest: fp32 on onnxruntime-cpu, p50 4.00 ms",)


def test_an_earlier_export_wins_nothing(run: Run) -> None:
    measured(run, "fp32", 4.0)
    measured(run, "fp16", 1.0)
    models = read_record(run / "export/models.json", tuple[OnnxModel, ...])
    write_json(run / "export/models.json", [asdict(one) for one in models if one.precision != "fp16"])
    assert found(run, "devices").lines == ("orin: fastest: fp32 on tensorrt, p50 4.00 ms",)


def test_answers_of_another_function_have_no_latency_anywhere(run: Run) -> None:
    measured(run, "fp32", 4.0)
    measured(run, "fp16", 2.0, latency=Latency(samples_ms=(), warmup_ms=(), window="w"), agreement_with_host=0.5)
    row = next(row for row in found(run, "devices").rows if "fp16" in row[0])
    assert row[2:6] == ("-",) * 4
    assert found(run, "latency-0").lines[1] == "fp16: no latency: its answers are not those of the host"
    assert found(run, "devices").lines == ("orin: fastest: fp32 on tensorrt, p50 4.00 ms",)


def test_energy_is_a_column_where_anybody_measured_it(run: Run) -> None:
    measured(run, "fp32", 4.0)
    assert "mJ/image" not in found(run, "devices").header
    measured(run, "fp16", 2.0, energy=Energy(mj_per_image=12.34, meter="INA3221", covers="the whole board"))
    block = found(run, "devices")
    at = block.header.index("mJ/image")
    assert [row[at] for row in block.rows] == ["-", "12.3"]
    assert "12.3 mJ an image by INA3221 (the whole board)" in found(run, "latency-0").lines[1]


def test_modes_have_rows_of_their_own_and_batches_a_block(run: Run) -> None:
    for mode, ms in (("host-to-host", 4.0), ("compute", 3.0), ("offline-8", 16.0)):
        measured(run, "fp32", ms, mode=mode)
    latency = found(run, "latency-0")
    assert [row[0] for row in latency.rows] == ["fp32", "fp32, compute"]
    assert "timed: the window of host-to-host; compute: the window of compute" in latency.note
    # eight images in 16 ms
    assert found(run, "throughput-0").rows == (("fp32", "8", "500", "-"),)
    assert [row[0] for row in found(run, "devices").rows] == ["orin tensorrt fp32"]


def test_where_the_engine_came_from_is_said(run: Run) -> None:
    built = {"engine": "cached", "build_seconds": 12.34}
    measured(run, "fp32", 4.0, facts={"cells": CELLS, "runtime": {"models": {"fp32": built}}})
    assert found(run, "latency-0").lines[0].endswith("; engine cached (12.3 s to build)")


def test_a_noisy_verdict_is_a_warning_and_a_quiet_one_is_not(run: Run) -> None:
    from edgedistill.report.facts import warnings

    measured(run, "fp32", 4.0, verdict="quiet")
    measured(run, "fp16", 2.0, verdict="noisy, because p50/min is 1.50; do: close other programs")
    assert [one for one in warnings(read(run)) if "orin" in one and "earlier" not in one] == [
        "orin, tensorrt, fp16: noisy, because p50/min is 1.50; do: close other programs"
    ]
    assert ", quiet" in found(run, "latency-0").lines[0] and ", noisy" in found(run, "latency-0").lines[1]
