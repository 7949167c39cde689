"""measure.sh packs what a board measured; the host reads the archive as a stranger's file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgedistill.devices import bench, imported
from edgedistill.errors import InputError
from edgedistill.measurements import BenchReport
from edgedistill.records import OnnxModel
from edgedistill.run.files import read_record
from tests.devices.test_bench import LOCAL, QUICK
from tests.helpers.paths import ROOT

BACKEND = "onnxruntime-cpu"
Contents = dict[str, bytes]
Pack = Callable[[Contents], Path]


@pytest.fixture
def contents(bundle: Path, models: list[tuple[Path, OnnxModel]]) -> Contents:
    """The members of an archive with a real measurement."""
    files = {path.name: path for path in bundle.iterdir()}
    job = bench.make_job(files, BACKEND, QUICK, [record for _, record in models])
    paths = [files[name] for name in bench.job_files(job)]
    report = bench.run_agent(LOCAL, paths, job, None).model_dump(mode="json")
    return {f"{BACKEND}/job.json": json.dumps(job).encode(), f"{BACKEND}/report.json": json.dumps(report).encode()}


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    def write(members: Contents) -> Path:
        path = tmp_path / "board.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return path

    return write


def changed(contents: Contents, change: Callable[[Any], object], member: str = "report") -> Contents:
    """The contents after a change of the report, or of the job."""
    raw = json.loads(contents[f"{BACKEND}/{member}.json"])
    change(raw)
    return {**contents, f"{BACKEND}/{member}.json": json.dumps(raw).encode()}


def refused(path: Path, bundle: Path, tmp_path: Path, problem: str) -> None:
    with pytest.raises(InputError, match=problem) as caught:
        imported.import_reports(path, bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists() and str(caught.value).isprintable()


def test_measurements_of_a_board_become_records(contents: Contents, pack: Pack, bundle: Path, tmp_path: Path) -> None:
    records = imported.import_reports(pack(contents), bundle, tmp_path / "out")
    assert [(record.device, record.artefact) for record in records] == [
        ("imported-board", "fp32"),
        ("imported-board", "int8-cpu"),
    ]
    path = tmp_path / "out/imported-board/onnxruntime-cpu-fp32.json"
    assert read_record(path, BenchReport) == records[0] and records[0].facts["imported"] is True
    assert len(records[0].latency.samples_ms) >= 100


@pytest.mark.parametrize(
    "name",
    ["../evil.json", "/etc/passwd", "onnxruntime-cpu/../../x/report.json", "onnxruntime-cpu/model.onnx", "a\x1b[2J"],
)
def test_members_of_other_names_are_refused(
    name: str, contents: Contents, pack: Pack, bundle: Path, tmp_path: Path
) -> None:
    refused(pack({**contents, name: b"{}"}), bundle, tmp_path, "has the member")


def test_links_encrypted_double_and_many_members_are_refused(
    contents: Contents, pack: Pack, bundle: Path, tmp_path: Path
) -> None:
    path = tmp_path / "board.zip"
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("tensorrt/report.json")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    refused(path, bundle, tmp_path, "has the member")
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        for _ in range(2):
            archive.writestr("tensorrt/report.json", b"{}")
    refused(path, bundle, tmp_path, "twice")
    refused(
        pack({**contents, **{f"b{index}/job.json": b"{}" for index in range(64)}}), bundle, tmp_path, "more than 64"
    )
    refused(pack({"tensorrt/job.json": b"{}"}), bundle, tmp_path, "has no job.json and report.json for tensorrt")


def test_bombs_are_refused(contents: Contents, pack: Pack, bundle: Path, tmp_path: Path) -> None:
    path = pack({**contents, f"{BACKEND}/report.json": b" " * (imported.MOST_MEMBER_BYTES + 1)})
    assert path.stat().st_size < 100_000
    refused(path, bundle, tmp_path, "more than 16 MB")
    with (tmp_path / "board.zip").open("wb") as file:
        file.truncate(imported.MOST_BYTES + 1)
    refused(tmp_path / "board.zip", bundle, tmp_path, "at most 32 MB")
    deep = b"[" * 100_000
    refused(pack({**contents, f"{BACKEND}/report.json": deep}), bundle, tmp_path, "cannot be read as JSON")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x1f\x8b not a zip", bytes(range(256))])
def test_what_is_no_zip_is_refused(content: bytes, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "board.zip").write_bytes(content)
    refused(tmp_path / "board.zip", bundle, tmp_path, "cannot be read as a zip")


def test_every_damaged_byte_is_refused_or_harmless(
    contents: Contents, pack: Pack, bundle: Path, tmp_path: Path
) -> None:
    whole = pack(contents).read_bytes()
    for position in range(0, len(whole), max(1, len(whole) // 60)):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        (tmp_path / "board.zip").write_bytes(damaged)
        try:
            imported.import_reports(tmp_path / "board.zip", bundle, tmp_path / "out")
        except InputError as error:
            assert str(error).isprintable()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda report: report["results"][0]["samples_ms"].clear(), "0 samples"),
        (lambda report: report["results"][0].update(samples_ms=[-1.0] * 200), "samples"),
        (lambda report: report["results"][0].update(sha256="0" * 64), "other models"),
        (lambda report: report.update(results="all"), "fields are not those of a report"),
        (lambda report: report.update(backend="tensorrt"), "is not this backend's folder"),
        (lambda report: report["facts"].update(power=float("nan")), "NaN is no number"),
        (lambda report: report["facts"].update(power=10**400), "too large"),
    ],
)
def test_reports_that_are_none_are_refused(
    change: Callable[[Any], object], problem: str, contents: Contents, pack: Pack, bundle: Path, tmp_path: Path
) -> None:
    refused(pack(changed(contents, change)), bundle, tmp_path, problem)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda job: job["models"][0].update(sha256="0" * 64), "is not a graph of this run's bundle"),
        (lambda job: job["models"][0].update(path="../bundle/student.fp32.onnx"), "not the name of a file"),
        (lambda job: job.update(images="/etc/passwd"), "must be the name of a file"),
        (lambda job: job.update(command="rm"), "unknown key"),
        (lambda job: job["models"][0].update(name="../../evil"), "is not a graph of this run's bundle"),
        (lambda job: job["models"][0].update(precision="int8"), "is not a graph of this run's bundle"),
        (lambda job: job.update(modes=["../../evil"]), "has no mode"),
        (lambda job: job.update(backend="tensorrt"), "is not this backend's folder"),
    ],
)
def test_jobs_that_are_none_are_refused(
    change: Callable[[Any], object], problem: str, contents: Contents, pack: Pack, bundle: Path, tmp_path: Path
) -> None:
    refused(pack(changed(contents, change, "job")), bundle, tmp_path, problem)


def test_no_markup_and_no_nested_facts_are_taken_over(
    contents: Contents, pack: Pack, bundle: Path, tmp_path: Path
) -> None:
    hostile = "<script>alert(1)</script>\x1b[2J[x](javascript:y) `rm` " + "z" * 5000

    def change(report: Any) -> None:
        report["facts"].update(model=hostile, **{hostile: "x", "runtime": "no mapping", "processes": {"a": [hostile]}})
        report["backend_version"] = hostile
        for measurement in report["results"]:
            measurement.update(verdict=hostile, window=hostile, warnings=[hostile])

    records = imported.import_reports(pack(changed(contents, change)), bundle, tmp_path / "out")
    text = (tmp_path / "out/imported-board/onnxruntime-cpu-fp32.json").read_text()
    assert not any(mark in text for mark in ("<", ">", "`", "\\u001b", "](", "z" * 400))
    assert not any(isinstance(fact, dict) for name, fact in records[0].facts.items() if name != "runtime")


def test_names_that_are_no_device_are_refused(contents: Contents, pack: Pack, bundle: Path, tmp_path: Path) -> None:
    path = pack(contents).rename(tmp_path / "..zip")
    refused(path, bundle, tmp_path, "not that of a device")


@pytest.mark.slow
def test_measure_sh_packs_what_the_host_imports(bundle: Path, tmp_path: Path) -> None:
    completed = subprocess.run(
        ["sh", str(ROOT / "deploy/jetson/measure.sh"), str(bundle), "board"],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": sys.executable, "SECONDS_EACH": "0.1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    records = imported.import_reports(tmp_path / "board.zip", bundle, tmp_path / "out")
    assert {record.backend for record in records} >= {BACKEND}
    assert {record.artefact for record in records} == {"fp32", "int8-cpu"}


@pytest.mark.slow
def test_measure_sh_refuses_an_altered_bundle(bundle: Path, tmp_path: Path) -> None:
    (bundle / "agent.pyz").write_bytes(b"another")
    completed = subprocess.run(
        ["sh", str(ROOT / "deploy/jetson/measure.sh"), str(bundle), "board"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert completed.returncode != 0 and not (tmp_path / "board.zip").exists()
