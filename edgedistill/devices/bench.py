"""bench: ship the bundle and a job to a device, run the agent there, and hold its report against what was sent.

bundle, Device, backend, models -> out/<device>/<backend>-<model>.json, BenchReport each
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, TypeAdapter, ValidationError
from tqdm import tqdm

from edgedistill.devices.bundle import AGENT, IMAGES, LABELS, agent_archive, host_file, model_name, verify_bundle
from edgedistill.devices.transport import connect, interpreter
from edgedistill.recipe import Bench
from edgedistill.records import Accuracy, BenchReport, Device, EdgeDistillError, InputError, Latency, OnnxModel
from edgedistill.run import read_json, write_json, write_record

AGENT_TIMEOUT_S = 4 * 3600.0  # a bound on hanging, not on slow devices: an agent that works prints its progress
JOB, REPORT = "job.json", "report.json"


class AgentResult(BaseModel):
    """What the agent says of one model."""

    name: str
    sha256: str
    precision: str
    samples_ms: tuple[float, ...]
    cells: tuple[tuple[int, int, int], ...]
    warmup_ms: tuple[float, ...]
    accuracy: Accuracy
    agreement_with_host: float | None
    ratio_to_fp32: tuple[float, float, float] | None
    warnings: tuple[str, ...]


class AgentReport(BaseModel):
    """report.json of the agent."""

    version: int
    backend: str
    backend_version: str
    window: str
    facts: dict[str, Any]
    results: tuple[AgentResult, ...]


def bench(
    bundle: Path,
    device: Device,
    backend: str,
    settings: Bench,
    models: Sequence[OnnxModel],
    out: Path,
    *,
    ssh_config: Path | None = None,
) -> list[BenchReport]:
    """Measure models of a bundle on a device, write one record each, and return them in the order of `models`.

    Args:
        bundle: a folder that `write_bundle` filled.
        device: where to measure.
        backend: a name of `agent.backends.BACKENDS`.
        settings: the recipe's `bench` section.
        models: which of the bundle's models; the first of precision fp32 is what the others are compared with.
        out: the folder that gets <device>/<backend>-<model>.json.
        ssh_config: another OpenSSH configuration than the user's.

    Raises:
        InputError: the bundle is altered or lacks one of the models.
        EdgeDistillError: the device cannot be reached, the agent failed there, or its report is not of this job.
    """
    files = {path.name: path for path in verify_bundle(bundle)}
    job = make_job(files, backend, settings, models)
    needed = [files[name] for name in _needed(job)]
    answer = _measure(device, needed, job, ssh_config)
    check_report(answer, job, len(np.load(files[LABELS], allow_pickle=False)), device)
    reports = [_record(device, answer, model, one) for model, one in zip(models, answer.results, strict=True)]
    for model, report in zip(models, reports, strict=True):
        write_record(out / device.name / f"{backend}-{model_name(model)}.json", report)
    return reports


def make_job(files: Mapping[str, Path], backend: str, settings: Bench, models: Sequence[OnnxModel]) -> dict[str, Any]:
    """The agent's job, as plain JSON.

    Args:
        files: file name -> path of everything in the bundle.

    Raises:
        InputError: a model is not in the bundle.
    """
    entries = [{"name": model_name(one), "path": Path(one.path).name, "sha256": one.sha256, "precision": one.precision}
               for one in models]  # fmt: skip
    absent = [entry["path"] for entry in entries if entry["path"] not in files]
    if absent or not entries:
        raise InputError(
            f"the bundle has no {', '.join(absent) or 'model to measure'}", "run `edgedistill export` again"
        )
    host = {entry["name"]: host_file(entry["name"]) for entry in entries if host_file(entry["name"]) in files}
    counts = settings.model_dump(include={"threads", "processes", "rounds", "samples", "seconds", "accuracy_images"})
    names = {"images": IMAGES, "labels": LABELS, "host_predictions": host}
    return {"version": 1, "backend": backend, "models": entries, **names, **counts}


def check_report(answer: AgentReport, job: Mapping[str, Any], n_images: int, device: Device) -> None:
    """Hold a report against its job: the same models by name and sha256, enough samples, accuracy over enough images.

    Raises:
        EdgeDistillError: it differs; the message says in what.
    """
    shipped = [(one["name"], one["sha256"]) for one in job["models"]]
    n = min(job["accuracy_images"], n_images)
    problems = []
    if (answer.version, answer.backend) != (job["version"], job["backend"]):
        problems.append(f"version {answer.version} of backend {answer.backend}")
    if [(one.name, one.sha256) for one in answer.results] != shipped:
        problems.append("other models than those shipped")
    for one in answer.results:
        problems += _sample_problems(one, job) + _accuracy_problems(one, n)
    if problems:
        raise EdgeDistillError(f"{device.name}: the report is not of this job: {'; '.join(problems)}", "bench again")


def probe(device: Device, *, ssh_config: Path | None = None) -> dict[str, Any]:
    """What a device says of itself: machine, cpu, versions, state, and which backends can run there.

    Raises:
        EdgeDistillError: it cannot be reached, or its Python cannot run the agent.
    """
    with tempfile.TemporaryDirectory(prefix="edgedistill-") as folder, connect(device, ssh_config) as transport:
        archive = Path(folder) / AGENT
        archive.write_bytes(agent_archive())
        transport.put([archive])
        said = transport.run([interpreter(device), AGENT, "--facts"], 120.0).stdout
    facts: dict[str, Any] = json.loads(said.splitlines()[-1])
    return facts


def _needed(job: Mapping[str, Any]) -> list[str]:
    models = [model["path"] for model in job["models"]]
    return [AGENT, job["images"], job["labels"], *models, *job["host_predictions"].values()]


def _measure(device: Device, files: Sequence[Path], job: Mapping[str, Any], ssh_config: Path | None) -> AgentReport:
    with tempfile.TemporaryDirectory(prefix="edgedistill-") as folder, connect(device, ssh_config) as transport:
        write_json(Path(folder) / JOB, job)
        transport.put([*files, Path(folder) / JOB])
        with tqdm(
            total=job["processes"] * job["rounds"], desc=f"bench {device.name}", unit="round", leave=False, disable=None
        ) as bar:
            transport.run([interpreter(device), AGENT, JOB], AGENT_TIMEOUT_S, _follow(bar))
        transport.get(REPORT, Path(folder) / REPORT)
        raw = read_json(Path(folder) / REPORT)
    try:
        return TypeAdapter(AgentReport).validate_python(raw)
    except ValidationError as error:
        raise EdgeDistillError(
            f"{device.name}: {REPORT} is not a report ({error.error_count()} fields differ)"
        ) from None


def _follow(bar: tqdm[Any]) -> Callable[[str], None]:
    def on_line(line: str) -> None:
        if line.startswith("progress "):
            bar.update(1)

    return on_line


def _sample_problems(one: AgentResult, job: Mapping[str, Any]) -> list[str]:
    count, seconds = len(one.samples_ms), sum(one.samples_ms) / 1000
    problems = []
    if count < job["samples"] or count != sum(cell[2] for cell in one.cells):
        problems.append(f"{one.name}: {count} samples, {job['samples']} asked for")
    # rounding in the sum of many samples must not fail a run that just kept its time
    if seconds < job["seconds"] * (1 - 1e-6):
        problems.append(f"{one.name}: {seconds:.2f} s of samples, {job['seconds']} s asked for")
    if not all(sample > 0 for sample in one.samples_ms):
        problems.append(f"{one.name}: a sample of no duration")
    return problems


def _accuracy_problems(one: AgentResult, n: int) -> list[str]:
    return [] if one.accuracy.n == n else [f"{one.name}: accuracy over {one.accuracy.n} images, {n} asked for"]


def _record(device: Device, answer: AgentReport, model: OnnxModel, one: AgentResult) -> BenchReport:
    return BenchReport(
        device=device.name,
        backend=answer.backend,
        backend_version=answer.backend_version,
        artefact=model_name(model),
        sha256=one.sha256,
        precision=one.precision,
        latency=Latency(one.samples_ms, one.warmup_ms, answer.window),
        accuracy=one.accuracy,
        agreement_with_host=one.agreement_with_host,
        facts={**answer.facts, "cells": [list(cell) for cell in one.cells]},
        warnings=one.warnings,
        ratio_to_fp32=one.ratio_to_fp32,
    )
