"""Measure on a device: ship the bundle and a job, run the agent there, and check its report against the job.

Each model and mode gives one record, a BenchReport in <device>/<backend>-<model>.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, TypeAdapter, ValidationError
from tqdm import tqdm

from edgedistill.agent import backends as agent_backends
from edgedistill.agent.job import VERSION, variant
from edgedistill.agent.verdict import MOST_LOSS, disagreement
from edgedistill.console import say
from edgedistill.devices.bundle import (
    AGENT,
    DESCRIPTION,
    IMAGES,
    LABELS,
    agent_archive,
    host_file,
    model_name,
    verify_bundle,
)
from edgedistill.devices.subprocesses import NO_PYTHON, one_line
from edgedistill.devices.transport import connect, interpreter, job_name, run_with_reconnect
from edgedistill.errors import EdgeDistillError, InputError
from edgedistill.measurements import HOST_TO_HOST, BenchReport, Device, Energy, Latency
from edgedistill.recipe.schema import Bench
from edgedistill.records import Accuracy, OnnxModel
from edgedistill.run import interrupts
from edgedistill.run.artifacts import EXPORT
from edgedistill.run.files import read_json, write_json, write_record

AGENT_TIMEOUT_S = 4 * 3600.0  # bounds an agent that hangs; slow devices finish well within it
JOB, REPORT = "job.json", "report.json"


class ToLabel(BaseModel):
    """The agent's latencies from a picture to its label."""

    samples_ms: tuple[float, ...]
    warmup_ms: tuple[float, ...]
    window: str


class Measurement(BaseModel):
    """The agent's measurement of one model in one mode, an entry of `results` in its report.json."""

    name: str
    mode: str
    batch: int
    window: str
    sha256: str
    precision: str
    samples_ms: tuple[float, ...]
    cells: tuple[tuple[int, int, int], ...]  # process, round and number of samples
    warmup_ms: tuple[float, ...]
    accuracy: Accuracy
    agreement_with_host: float | None
    loss_to_host: tuple[float, float, float] | None = None
    ratio_to_fp32: tuple[float, float, float] | None
    warnings: tuple[str, ...]
    verdict: str = ""
    energy: Energy | None = None
    first_calls_ms: tuple[float, ...] = ()
    to_label: dict[str, ToLabel] = {}

    @property
    def computes_same(self) -> bool:
        """Whether its answers are those of the verified model."""
        return self.loses_at_most(100 * MOST_LOSS)

    def loses_at_most(self, points: float) -> bool:
        """Whether its answers are those of the verified model, where an arithmetic of its own may lose some points."""
        return not disagreement(self.agreement_with_host, self.accuracy.n, self.loss_to_host, points / 100)

    @property
    def variant_name(self) -> str:
        """The displayed name of the model and mode."""
        return variant(self.name, self.mode)


class AgentReport(BaseModel):
    """report.json of the agent."""

    version: int
    backend: str
    backend_version: str
    facts: dict[str, Any]
    results: tuple[Measurement, ...]


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
    """Measure models of a bundle on a device in every requested mode that the backend has; write one record each.

    Records are returned model by model, in the order of `models` and of the modes.

    Args:
        bundle: a folder that `write_bundle` filled.
        device: the device to measure on.
        backend: a name of `agent.backends.BACKENDS`.
        settings: the recipe's `bench` section.
        models: models of the bundle; the others are compared with the first of precision fp32.
        out: folder for <device>/<backend>-<model>.json, and <backend>-<model>-<mode>.json for modes other than host to
            host.
        ssh_config: OpenSSH configuration file to use instead of the user's.

    Raises:
        InputError: the bundle is altered or lacks one of the models.
        EdgeDistillError: the device cannot be reached, the agent failed there, or its report is not of this job.
    """
    files = {path.name: path for path in verify_bundle(bundle)}
    job = make_job(files, backend, settings, models)
    agent_report = run_agent(device, [files[name] for name in job_files(job)], job, ssh_config)
    labels_N = np.load(files[LABELS], allow_pickle=False)
    check_report(agent_report, job, len(labels_N), device)
    records = device_records(device, agent_report, labels_N)
    write_records(out, records)
    return records


def device_records(device: Device, report: AgentReport, labels_N: np.ndarray) -> list[BenchReport]:
    """The records of an agent's report; without accuracy unless all images have a label."""
    records = [_bench_report(device, report, measurement) for measurement in report.results]
    # with folds the images have no labels, and of somebody else's model some may have none: to the agent -1 is a class
    if (labels_N < 0).any():
        records = [replace(record, accuracy=None) for record in records]
    return records


def write_records(out: Path, records: Sequence[BenchReport]) -> None:
    """Write each record to <device>/<backend>-<model>.json, or <backend>-<model>-<mode>.json if not host to host."""
    for record in records:
        mode = "" if record.mode == HOST_TO_HOST else f"-{record.mode}"
        write_record(out / record.device / f"{record.backend}-{record.artefact}{mode}.json", record)


def make_job(files: Mapping[str, Path], backend: str, settings: Bench, models: Sequence[OnnxModel]) -> dict[str, Any]:
    """Build the agent's job, as plain JSON.

    Args:
        files: file name -> path of every file of the bundle.
        backend: a name of `agent.backends.BACKENDS`.
        settings: the recipe's `bench` section.
        models: models to measure.

    Raises:
        InputError: a model is not in the bundle, or the backend has none of the modes.
    """
    entries = [
        {"name": model_name(model), "path": Path(model.path).name, "sha256": model.sha256, "precision": model.precision}
        for model in models
    ]
    absent = [entry["path"] for entry in entries if entry["path"] not in files]
    if absent or not entries:
        raise InputError(
            f"the bundle has no {', '.join(absent) or 'model to measure'}", "run `edgedistill export` again"
        )
    host = {entry["name"]: host_file(entry["name"]) for entry in entries if host_file(entry["name"]) in files}
    return {
        "version": VERSION,
        "backend": backend,
        "models": entries,
        "modes": modes_of(backend, settings),
        "images": IMAGES,
        "labels": LABELS,
        "host_predictions": host,
        "pictures": pictures_of(files, settings),
        **settings.model_dump(include={"threads", "processes", "rounds", "samples", "seconds", "accuracy_images"}),
    }


def pictures_of(files: Mapping[str, Path], settings: Bench) -> dict[str, Any] | None:
    """The pictures that are labeled on the device, and how they become the model's input; None for none."""
    if settings.picture is None or DESCRIPTION not in files:
        return None
    (width, height), description = settings.picture, read_json(files[DESCRIPTION], EXPORT)
    return {"width": width, "height": height, "store_px": description["store_px"], "fit": description["fit"]}


def modes_of(backend: str, settings: Bench) -> list[str]:
    """The requested modes that the backend has, and one mode per batch size of offline throughput.

    Raises:
        InputError: there is none.
    """
    supported = agent_backends.create(backend).modes
    modes = [mode for mode in settings.modes if mode in supported] + [f"offline-{batch}" for batch in settings.offline]
    if not modes:
        supported_list = ", ".join(supported)
        raise InputError(f"bench.modes: {backend} has only {supported_list}", "name one of these, or bench.offline")
    return modes


def job_files(job: Mapping[str, Any]) -> list[str]:
    """Names of the bundle's files that the job needs on the device."""
    models = [model["path"] for model in job["models"]]
    return list(dict.fromkeys([AGENT, job["images"], job["labels"], *models, *job["host_predictions"].values()]))


def run_agent(device: Device, files: Sequence[Path], job: Mapping[str, Any], ssh_config: Path | None) -> AgentReport:
    """Run the agent on the device with a job and its files; the report's facts have the number of interruptions."""
    rounds = job["processes"] * job["rounds"]
    with interrupts.temporary_folder() as folder:
        write_json(folder / JOB, job)
        uploads, report_path = [*files, folder / JOB], folder / REPORT
        with (
            connect(device, ssh_config, job_name(device, uploads)) as transport,
            tqdm(total=rounds, desc=f"bench {device.name}", unit="round", leave=False, disable=None) as bar,
        ):
            interruptions = run_with_reconnect(
                transport,
                uploads,
                argv=[interpreter(device), AGENT, JOB],
                result_path=report_path,
                timeout_s=AGENT_TIMEOUT_S,
                on_line=show_progress(bar),
            )
        raw = read_json(report_path, "bench again")
    try:
        agent_report = TypeAdapter(AgentReport).validate_python(raw)
        return agent_report.model_copy(update={"facts": {**agent_report.facts, "interruptions": interruptions}})
    except ValidationError as error:
        raise EdgeDistillError(
            f"{device.name}: {REPORT} is not a report ({error.error_count()} fields differ)", NO_PYTHON
        ) from None


def show_progress(bar: tqdm[Any]) -> Callable[[str], None]:
    """Make a callback for the agent's lines: `progress <rounds done>/<rounds>` moves `bar`, others are printed."""

    def on_line(line: str) -> None:
        keyword, _, fraction = line.partition(" ")
        rounds_done = fraction.partition("/")[0]
        if keyword == "progress" and rounds_done.isdigit():
            # a resumed agent begins where it was interrupted
            bar.update(int(rounds_done) - bar.n)
        elif line:
            say(f"  {line}")

    return on_line


def check_report(report: AgentReport, job: Mapping[str, Any], n_images: int, device: Device) -> None:
    """Compare a report with its job: the same models by name and sha256, enough samples, accuracy over enough images.

    Args:
        report: the agent's report.
        job: from `make_job`.
        n_images: number of test images in the bundle.
        device: the device, for the message.

    Raises:
        EdgeDistillError: it differs; the message lists the differences.
    """
    shipped = [(model["name"], mode, model["sha256"]) for model in job["models"] for mode in job["modes"]]
    n_accuracy = min(job["accuracy_images"], n_images)
    problems = []
    if (report.version, report.backend) != (job["version"], job["backend"]):
        problems.append(f"version {report.version} of backend {report.backend}")
    if [(measurement.name, measurement.mode, measurement.sha256) for measurement in report.results] != shipped:
        problems.append("other models than those shipped")
    for measurement in report.results:
        problems += _measurement_problems(measurement, job, n_accuracy)
    if problems:
        raise EdgeDistillError(f"{device.name}: the report is not of this job: {'; '.join(problems)}", "bench again")


def _measurement_problems(measurement: Measurement, job: Mapping[str, Any], n_accuracy: int) -> list[str]:
    name, n = measurement.variant_name, measurement.accuracy.n
    count, seconds = len(measurement.samples_ms), sum(measurement.samples_ms) / 1000
    problems = []
    if count < job["samples"] or count != sum(cell[2] for cell in measurement.cells):
        problems.append(f"{name}: {count} samples, {job['samples']} asked for")
    # rounding in the sum of many samples must not fail a run of exactly the requested time
    if seconds < job["seconds"] * (1 - 1e-6):
        problems.append(f"{name}: {seconds:.2f} s of samples, {job['seconds']} s asked for")
    to_label = [sample_ms for start in measurement.to_label.values() for sample_ms in start.samples_ms]
    if not all(sample_ms > 0 for sample_ms in (*measurement.samples_ms, *to_label)):
        problems.append(f"{name}: a sample of no duration")
    if n != n_accuracy:
        problems.append(f"{name}: accuracy over {n} images, {n_accuracy} asked for")
    return problems


def _bench_report(device: Device, report: AgentReport, measurement: Measurement) -> BenchReport:
    """The record of a measurement.

    A graph that disagrees with the host computes another function: its times are left out, and a warning of the agent
    says why.
    """
    computes_same = measurement.computes_same
    warnings = measurement.warnings
    if resumed_processes := report.facts.get("picked_up", 0):
        warnings += (f"the run was interrupted and picked up: {resumed_processes} of its processes are from before",)
    return BenchReport(
        device=device.name,
        backend=report.backend,
        backend_version=report.backend_version,
        artefact=measurement.name,
        sha256=measurement.sha256,
        precision=measurement.precision,
        latency=Latency(
            samples_ms=measurement.samples_ms if computes_same else (),
            warmup_ms=measurement.warmup_ms if computes_same else (),
            window=measurement.window,
            batch=measurement.batch,
        ),
        accuracy=measurement.accuracy,
        agreement_with_host=measurement.agreement_with_host,
        facts={
            **report.facts,
            "cells": [list(cell) for cell in measurement.cells] if computes_same else [],
            "first_calls_ms": list(measurement.first_calls_ms),
            **({"loss_to_host": list(measurement.loss_to_host)} if measurement.loss_to_host else {}),
        },
        warnings=warnings,
        ratio_to_fp32=measurement.ratio_to_fp32 if computes_same else None,
        mode=measurement.mode,
        verdict=measurement.verdict if computes_same else "",
        energy=measurement.energy if computes_same else None,
        to_label={start: Latency(**latency.model_dump()) for start, latency in measurement.to_label.items()}
        if computes_same
        else {},
    )


def probe(device: Device, *, ssh_config: Path | None = None) -> dict[str, Any]:
    """Read a device's facts: machine, cpu, versions, state, and which backends can run there.

    Raises:
        EdgeDistillError: it cannot be reached, or its Python cannot run the agent.
    """
    with interrupts.temporary_folder() as folder, connect(device, ssh_config) as transport:
        archive = folder / AGENT
        archive.write_bytes(agent_archive())
        transport.put([archive])
        stdout = transport.run([interpreter(device), AGENT, "--facts"], 120.0).stdout
    try:
        facts = json.loads(stdout.strip().rpartition("\n")[2])
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        printed = one_line(stdout) or "nothing on stdout"
        message = f"{device.name}: `{interpreter(device)} {AGENT} --facts` printed no facts: {printed}"
        raise EdgeDistillError(message, NO_PYTHON)
    return facts
