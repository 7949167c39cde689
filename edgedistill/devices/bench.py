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

from edgedistill.agent import backends as agent_backends
from edgedistill.agent.job import VERSION, variant
from edgedistill.agent.verdict import disagreement
from edgedistill.console import say
from edgedistill.devices.bundle import AGENT, IMAGES, LABELS, agent_archive, host_file, model_name, verify_bundle
from edgedistill.devices.transport import connect, interpreter, job_name, run_through
from edgedistill.errors import EdgeDistillError, InputError
from edgedistill.recipe.schema import Bench
from edgedistill.records import HOST_TO_HOST, Accuracy, BenchReport, Device, Energy, Latency, OnnxModel
from edgedistill.run.files import read_json, write_json, write_record

AGENT_TIMEOUT_S = 4 * 3600.0  # a bound on hanging, not on slow devices: an agent that works prints its progress
JOB, REPORT = "job.json", "report.json"


class AgentResult(BaseModel):
    """What the agent says of one model."""

    name: str
    mode: str
    batch: int
    window: str
    sha256: str
    precision: str
    samples_ms: tuple[float, ...]
    cells: tuple[tuple[int, int, int], ...]
    warmup_ms: tuple[float, ...]
    accuracy: Accuracy
    agreement_with_host: float | None
    ratio_to_fp32: tuple[float, float, float] | None
    warnings: tuple[str, ...]
    verdict: str = ""
    energy: Energy | None = None
    first_calls_ms: tuple[float, ...] = ()

    @property
    def called(self) -> str:
        """What a person calls this variant."""
        return variant(self.name, self.mode)


class AgentReport(BaseModel):
    """report.json of the agent."""

    version: int
    backend: str
    backend_version: str
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
    """Measure models of a bundle on a device in every mode asked for that the backend has; write one record each.

    They are returned model by model, in the order of `models` and of the modes.

    Args:
        bundle: a folder that `write_bundle` filled.
        device: where to measure.
        backend: a name of `agent.backends.BACKENDS`.
        settings: the recipe's `bench` section.
        models: which of the bundle's models; the first of precision fp32 is what the others are compared with.
        out: the folder that gets <device>/<backend>-<model>.json, and <backend>-<model>-<mode>.json for another mode
            than host to host.
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
    reports = [_record(device, answer, one) for one in answer.results]
    for report in reports:
        mode = "" if report.mode == HOST_TO_HOST else f"-{report.mode}"
        write_record(out / device.name / f"{backend}-{report.artefact}{mode}.json", report)
    return reports


def make_job(files: Mapping[str, Path], backend: str, settings: Bench, models: Sequence[OnnxModel]) -> dict[str, Any]:
    """The agent's job, as plain JSON.

    Args:
        files: file name -> path of everything in the bundle.

    Raises:
        InputError: a model is not in the bundle, or the backend has none of the modes.
    """
    entries = [
        {"name": model_name(one), "path": Path(one.path).name, "sha256": one.sha256, "precision": one.precision}
        for one in models
    ]
    absent = [entry["path"] for entry in entries if entry["path"] not in files]
    if absent or not entries:
        raise InputError(
            f"the bundle has no {', '.join(absent) or 'model to measure'}", "run `edgedistill export` again"
        )
    host = {entry["name"]: host_file(entry["name"]) for entry in entries if host_file(entry["name"]) in files}
    counts = settings.model_dump(include={"threads", "processes", "rounds", "samples", "seconds", "accuracy_images"})
    names = {"images": IMAGES, "labels": LABELS, "host_predictions": host}
    modes = {"modes": modes_of(backend, settings)}
    return {"version": VERSION, "backend": backend, "models": entries, **modes, **names, **counts}


def modes_of(backend: str, settings: Bench) -> list[str]:
    """The modes asked for that the backend has, and one more for every batch size of offline throughput.

    Raises:
        InputError: there is none.
    """
    has = agent_backends.create(backend).modes
    modes = [mode for mode in settings.modes if mode in has] + [f"offline-{batch}" for batch in settings.offline]
    if not modes:
        raise InputError(f"bench.modes: {backend} has only {', '.join(has)}", "name one of these, or bench.offline")
    return modes


def check_report(answer: AgentReport, job: Mapping[str, Any], n_images: int, device: Device) -> None:
    """Hold a report against its job: the same models by name and sha256, enough samples, accuracy over enough images.

    Raises:
        EdgeDistillError: it differs; the message says in what.
    """
    shipped = [(one["name"], mode, one["sha256"]) for one in job["models"] for mode in job["modes"]]
    n = min(job["accuracy_images"], n_images)
    problems = []
    if (answer.version, answer.backend) != (job["version"], job["backend"]):
        problems.append(f"version {answer.version} of backend {answer.backend}")
    if [(one.name, one.mode, one.sha256) for one in answer.results] != shipped:
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
    rounds, agent = job["processes"] * job["rounds"], [interpreter(device), AGENT, JOB]
    with tempfile.TemporaryDirectory(prefix="edgedistill-") as folder:
        write_json(Path(folder) / JOB, job)
        sent, report = [*files, Path(folder) / JOB], Path(folder) / REPORT
        with (
            connect(device, ssh_config, job_name(device, sent)) as transport,
            tqdm(total=rounds, desc=f"bench {device.name}", unit="round", leave=False, disable=None) as bar,
        ):
            losses = run_through(
                transport, sent, argv=agent, result=report, timeout_s=AGENT_TIMEOUT_S, on_line=_follow(bar)
            )
        raw = read_json(report)
    try:
        answer = TypeAdapter(AgentReport).validate_python(raw)
        return answer.model_copy(update={"facts": {**answer.facts, "interruptions": losses}})
    except ValidationError as error:
        raise EdgeDistillError(
            f"{device.name}: {REPORT} is not a report ({error.error_count()} fields differ)"
        ) from None


def _follow(bar: tqdm[Any]) -> Callable[[str], None]:
    def on_line(line: str) -> None:
        word, _, count = line.partition(" ")
        done = count.partition("/")[0]
        if word == "progress" and done.isdigit():
            # an agent that picks up its work begins where it was interrupted
            bar.update(int(done) - bar.n)
        elif line:
            say(f"  {line}")

    return on_line


def _sample_problems(one: AgentResult, job: Mapping[str, Any]) -> list[str]:
    count, seconds = len(one.samples_ms), sum(one.samples_ms) / 1000
    problems = []
    if count < job["samples"] or count != sum(cell[2] for cell in one.cells):
        problems.append(f"{one.called}: {count} samples, {job['samples']} asked for")
    # rounding in the sum of many samples must not fail a run that just kept its time
    if seconds < job["seconds"] * (1 - 1e-6):
        problems.append(f"{one.called}: {seconds:.2f} s of samples, {job['seconds']} s asked for")
    if not all(sample > 0 for sample in one.samples_ms):
        problems.append(f"{one.called}: a sample of no duration")
    return problems


def _accuracy_problems(one: AgentResult, n: int) -> list[str]:
    return [] if one.accuracy.n == n else [f"{one.called}: accuracy over {one.accuracy.n} images, {n} asked for"]


def _record(device: Device, answer: AgentReport, one: AgentResult) -> BenchReport:
    # how fast another function answers is not this model's latency: it is left out, and the warning says why
    same = not disagreement(one.agreement_with_host, one.accuracy.n)
    samples_ms, warmup_ms = (one.samples_ms, one.warmup_ms) if same else ((), ())
    before = answer.facts.get("picked_up", 0)
    interrupted = (f"the run was interrupted and picked up: {before} of its processes are from before",) * bool(before)
    return BenchReport(
        device=device.name,
        backend=answer.backend,
        backend_version=answer.backend_version,
        artefact=one.name,
        sha256=one.sha256,
        precision=one.precision,
        latency=Latency(samples_ms=samples_ms, warmup_ms=warmup_ms, window=one.window, batch=one.batch),
        accuracy=one.accuracy,
        agreement_with_host=one.agreement_with_host,
        facts={
            **answer.facts,
            "cells": [list(cell) for cell in one.cells] if same else [],
            "first_calls_ms": list(one.first_calls_ms),
        },
        warnings=one.warnings + interrupted,
        ratio_to_fp32=one.ratio_to_fp32 if same else None,
        mode=one.mode,
        verdict=one.verdict if same else "",
        energy=one.energy if same else None,
    )
