"""bench on this machine, end to end: the archive in fresh processes, and the report compared with its job."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tqdm import tqdm

from edgedistill.agent import worker
from edgedistill.devices import bench
from edgedistill.errors import EdgeDistillError, InputError
from edgedistill.measurements import BenchReport, Device
from edgedistill.recipe.schema import Bench
from edgedistill.records import OnnxModel
from edgedistill.run.files import read_record, sha256_file

QUICK = Bench(processes=3, rounds=3, samples=100, seconds=0.02, accuracy_images=24, picture=(96, 64))
LOCAL = Device(name="local")
Models = list[tuple[Path, OnnxModel]]


@pytest.fixture
def records(models: Models) -> list[OnnxModel]:
    return [record for _, record in models]


def test_bench_writes_the_reports_it_returns(bundle: Path, records: list[OnnxModel], tmp_path: Path) -> None:
    reports = bench.bench(
        bundle, LOCAL, backend="onnxruntime-cpu", settings=QUICK, models=records, out=tmp_path / "out"
    )
    names = ["onnxruntime-cpu-fp32.json", "onnxruntime-cpu-int8-cpu.json"]
    assert [read_record(tmp_path / "out" / "local" / name, BenchReport) for name in names] == reports
    for report, model in zip(reports, records, strict=True):
        assert (report.sha256, report.device) == (model.sha256, "local")
        # ceil(100 / 9) = 12 a cell
        assert len(report.latency.samples_ms) >= 9 * 12
        assert sum(report.latency.samples_ms) >= 20
        assert len(report.latency.warmup_ms) >= 3 * (20 + 3 * 3)
        assert report.accuracy is not None
        assert (report.accuracy.n, report.accuracy.top1) == (24, 22 / 24)
        assert report.agreement_with_host == 1.0
        assert [tuple(cell[:2]) for cell in report.facts["cells"]] == [(p, r) for p in (0, 1, 2) for r in (0, 1, 2)]
        assert len(report.facts["processes"]) == 3
        assert list(report.to_label) == ["file", "frame"]
        assert all(len(latency.samples_ms) >= 9 * 12 for latency in report.to_label.values())
        assert report.to_label["frame"].window.startswith("a frame of 96 x 64 RGB pixels in memory")
    assert reports[0].ratio_to_fp32 is None
    assert reports[1].ratio_to_fp32 is not None
    middle, low, high = reports[1].ratio_to_fp32
    assert 0 < low <= middle <= high


def test_predictions_that_differ_from_host_are_warned_of(
    bundle: Path, records: list[OnnxModel], tmp_path: Path
) -> None:
    # the host's predictions are all class 0: two thirds differ
    np.save(bundle / "host.fp32.npy", np.zeros(30, np.int64))
    _rewrite_checksums(bundle)
    (report,) = bench.bench(
        bundle, LOCAL, backend="onnxruntime-cpu", settings=QUICK, models=records[:1], out=tmp_path / "out"
    )
    assert report.agreement_with_host == pytest.approx(8 / 24)
    assert any(warning.startswith("answers differ") for warning in report.warnings)
    # with wrong predictions, the measured latency is not this model's
    assert (report.latency.samples_ms, report.ratio_to_fp32, report.verdict) == ((), None, "")
    assert report.to_label == {}


def test_offline_throughput_is_a_separate_mode(bundle: Path, records: list[OnnxModel], tmp_path: Path) -> None:
    settings = QUICK.model_copy(update={"offline": (4,), "picture": None})
    reports = bench.bench(
        bundle, LOCAL, backend="onnxruntime-cpu", settings=settings, models=records, out=tmp_path / "out"
    )
    assert [(report.artefact, report.mode, report.latency.batch) for report in reports] == [
        ("fp32", "host-to-host", 1),
        ("fp32", "offline-4", 4),
        ("int8-cpu", "host-to-host", 1),
        ("int8-cpu", "offline-4", 4),
    ]
    # batches of four give the predictions of single images; the ratio is to fp32 in the same batches
    assert all(report.accuracy and report.accuracy.n == 24 and report.agreement_with_host == 1.0 for report in reports)
    assert reports[1].ratio_to_fp32 is None and reports[3].ratio_to_fp32 is not None
    assert reports[1].latency.window.endswith("batches of 4")
    assert (tmp_path / "out" / "local" / "onnxruntime-cpu-fp32-offline-4.json").is_file()
    assert all(report.to_label == {} for report in reports)
    model_facts = reports[0].facts["runtime"]["models"]
    assert set(model_facts) == {"fp32", "fp32, offline-4", "int8-cpu", "int8-cpu, offline-4"}


def test_backend_measures_only_its_own_modes() -> None:
    assert bench.modes_of("onnxruntime-cpu", QUICK) == ["host-to-host"]
    assert bench.modes_of("tensorrt", QUICK) == ["host-to-host", "compute", "host-to-host-graph", "compute-graph"]
    compute_only = Bench(modes=("compute",))
    with pytest.raises(InputError, match=r"bench\.modes: onnxruntime-cpu has only host-to-host"):
        bench.modes_of("onnxruntime-cpu", compute_only)


def _rewrite_checksums(bundle: Path) -> None:
    names = sorted(path.name for path in bundle.iterdir() if path.name != "SHA256SUMS")
    sums = subprocess.run(["sha256sum", *names], cwd=bundle, capture_output=True, check=True).stdout
    (bundle / "SHA256SUMS").write_bytes(sums)


def test_altered_bundle_is_refused_before_any_run(bundle: Path, records: list[OnnxModel]) -> None:
    (bundle / "agent.pyz").write_bytes(b"something else")
    with pytest.raises(InputError, match=r"agent\.pyz"):
        bench.bench(bundle, LOCAL, backend="onnxruntime-cpu", settings=QUICK, models=records, out=bundle.parent / "out")
    assert not (bundle.parent / "out").exists()


def test_model_outside_bundle_is_refused(bundle: Path, records: list[OnnxModel], tmp_path: Path) -> None:
    missing_model = dataclasses.replace(records[0], path="export/other.onnx")
    with pytest.raises(InputError, match=r"no other\.onnx"):
        bench.bench(
            bundle, LOCAL, backend="onnxruntime-cpu", settings=QUICK, models=[missing_model], out=tmp_path / "out"
        )


def test_graph_with_another_hash_is_refused_on_device(bundle: Path, records: list[OnnxModel]) -> None:
    other_graph = dataclasses.replace(records[0], sha256="0" * 64)
    with pytest.raises(EdgeDistillError, match=r"exited with 2: agent: .*fp32\.onnx: sha256 is"):
        bench.bench(
            bundle, LOCAL, backend="onnxruntime-cpu", settings=QUICK, models=[other_graph], out=bundle.parent / "out"
        )


def test_unloadable_graph_raises_one_line_error(bundle: Path, records: list[OnnxModel]) -> None:
    (bundle / "student.fp32.onnx").write_bytes(b"not a graph")
    _rewrite_checksums(bundle)
    broken = dataclasses.replace(records[0], sha256=sha256_file(bundle / "student.fp32.onnx"))
    with pytest.raises(EdgeDistillError, match=r"exited with 1: agent: InvalidProtobuf: .*fp32\.onnx"):
        bench.bench(
            bundle, LOCAL, backend="onnxruntime-cpu", settings=QUICK, models=[broken], out=bundle.parent / "out"
        )


def test_missing_provider_raises_one_line_error(bundle: Path, records: list[OnnxModel]) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is installed: the provider is not missing here")
    with pytest.raises(EdgeDistillError) as caught:
        bench.bench(
            bundle, LOCAL, backend="onnxruntime-cuda", settings=QUICK, models=records, out=bundle.parent / "out"
        )
    assert "exited with 2: agent: onnxruntime" in str(caught.value)
    assert "has no CUDAExecutionProvider" in str(caught.value)


def test_python_without_runtime_raises_one_line_error(bundle: Path, records: list[OnnxModel], tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')  # no site-packages: no numpy
    bare.chmod(0o755)
    with pytest.raises(EdgeDistillError, match=r"No module named 'numpy'; .* -m pip install numpy"):
        bench.bench(
            bundle,
            Device(name="local", python=str(bare)),
            backend="onnxruntime-cpu",
            settings=QUICK,
            models=records,
            out=tmp_path / "out",
        )


def test_probe_lists_python_backends_and_machine() -> None:
    facts = bench.probe(LOCAL)
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["backends"]["onnxruntime-cpu"][0].isdigit()
    assert "machine" in facts


REPORT: dict[str, Any] = {
    "version": 2,
    "backend": "onnxruntime-cpu",
    "backend_version": "1",
    "facts": {},
    "results": [
        {
            "name": "fp32",
            "mode": "host-to-host",
            "batch": 1,
            "window": "",
            "sha256": "ab",
            "precision": "fp32",
            "samples_ms": [1.0] * 4,
            "cells": [[0, 0, 4]],
            "warmup_ms": [],
            "agreement_with_host": None,
            "ratio_to_fp32": None,
            "warnings": [],
            "accuracy": {"n": 3, "top1": 1, "top1_ci95": [0, 1], "balanced": 1, "balanced_ci95": [0, 1]},
        }
    ],
}
JOB: dict[str, Any] = {
    "version": 2,
    "backend": "onnxruntime-cpu",
    "modes": ["host-to-host"],
    "models": [{"name": "fp32", "sha256": "ab"}],
    "samples": 4,
    "seconds": 0.004,
    "accuracy_images": 3,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "tensorrt"}, "version 2 of backend tensorrt"),
        ({"mode": "compute"}, "other models than those shipped"),
        ({"sha256": "cd"}, "other models than those shipped"),
        ({"samples_ms": [2.0] * 3, "cells": [[0, 0, 3]]}, "fp32: 3 samples, 4 asked for"),
        ({"samples_ms": [0.5] * 4}, "fp32: 0.00 s of samples, 0.004 s asked for"),
        ({"samples_ms": [2.0, 2.0, 2.0, 0.0]}, "a sample of no duration"),
        ({"accuracy": {**REPORT["results"][0]["accuracy"], "n": 2}}, "accuracy over 2 images, 3 asked for"),
    ],
)
def test_report_of_another_job_is_refused(changes: dict[str, Any], message: str) -> None:
    report = bench.AgentReport.model_validate(REPORT)
    bench.check_report(report, JOB, 30, LOCAL)
    altered = json.loads(json.dumps(REPORT))
    section = altered if "backend" in changes else altered["results"][0]
    section.update(changes)
    with pytest.raises(EdgeDistillError, match="the report is not of this job") as caught:
        bench.check_report(bench.AgentReport.model_validate(altered), JOB, 30, LOCAL)
    assert message in str(caught.value)


def test_interrupted_run_resumes_after_last_finished_process(
    bundle: Path, records: list[OnnxModel], tmp_path: Path
) -> None:
    files = {path.name: path for path in bundle.iterdir()}
    job = tmp_path / "job"
    job.mkdir()
    for path in bundle.iterdir():
        (job / path.name).write_bytes(path.read_bytes())
    (job / "job.json").write_text(json.dumps(bench.make_job(files, "onnxruntime-cpu", QUICK, records)))
    run = [sys.executable, "agent.pyz", "job.json"]
    first_run = subprocess.run(
        [*run, "--worker", "0", "--part", "part-0.json"], cwd=job, capture_output=True, check=True
    )
    assert first_run.stdout.count(b"progress") == QUICK.rounds
    measured = json.loads((job / "part-0.json").read_text())["variants"]["fp32"]["rounds_ms"]
    second_run = subprocess.run(run, cwd=job, capture_output=True, check=True)
    assert second_run.stdout.count(b"progress") == (QUICK.processes - 1) * QUICK.rounds
    report = json.loads((job / "report.json").read_text())
    assert report["facts"]["picked_up"] == 1
    # the first process's samples come from the interrupted run, and no partial files remain
    assert report["results"][0]["samples_ms"][: len(measured[0])] == measured[0]
    assert not list(job.glob("part-*"))


@pytest.mark.usefixtures("heeded_ctrl_c")
@pytest.mark.parametrize(
    ("number", "code", "line"),
    [(signal.SIGINT, 130, "agent: stopped; the same command goes on from here\n"), (signal.SIGTERM, 143, "")],
)
def test_signal_to_the_agent_ends_its_worker(
    bundle: Path, records: list[OnnxModel], number: signal.Signals, code: int, line: str
) -> None:
    files = {path.name: path for path in bundle.iterdir()}
    endless = QUICK.model_copy(update={"processes": 1, "rounds": 1000, "seconds": 6000.0})
    (bundle / "job.json").write_text(json.dumps(bench.make_job(files, "onnxruntime-cpu", endless, records)))
    with subprocess.Popen(
        [sys.executable, "agent.pyz", "job.json"], cwd=bundle, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (pids := [int(word) for word in children.read_text().split()]):
            time.sleep(0.01)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err.decode()) == (code, line)
    with pytest.raises(ProcessLookupError):
        while True:
            os.kill(pids[0], 0)
            time.sleep(0.01)


def test_batches_are_views_and_last_is_padded_from_first() -> None:
    images_NHWC = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)
    assert [batch.ravel().tolist() for batch in worker._batches(images_NHWC, 2)] == [[0, 1], [2, 3], [4, 0]]
    assert [batch.ravel().tolist() for batch in worker._batches(images_NHWC, 8)] == [[0, 1, 2, 3, 4, 0, 1, 2]]
    singles = worker._batches(images_NHWC, 1)
    assert len(singles) == 5 and all(np.shares_memory(batch, images_NHWC) for batch in singles)


def test_agent_messages_besides_progress_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with tqdm(total=4, disable=True) as bar:
        follow = bench.show_progress(bar)
        for line in ("waiting for another measurement on this device", "progress 3/4", ""):
            follow(line)
        assert "waiting for another measurement" in capsys.readouterr().err
