"""Measurements of another's board: the archive of deploy/jetson/measure.sh, read on the host as a stranger's file.

The archive is a zip with `<backend>/job.json` and `<backend>/report.json` for each backend. Nothing of it is extracted,
run or linked to. The number, names and sizes of its members are checked before one is read, JSON is bounded and finite,
the job and the report must be of the agent's form and of the run's own graphs, and texts lose what could be markup or
move a cursor.
"""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from edgedistill.agent import backends
from edgedistill.agent import job as jobs
from edgedistill.agent.job import AgentError
from edgedistill.devices.bench import JOB, REPORT, AgentReport, check_report, device_records, write_records
from edgedistill.devices.bundle import DESCRIPTION, LABELS, verify_bundle
from edgedistill.errors import EdgeDistillError, InputError
from edgedistill.measurements import BenchReport, Device
from edgedistill.run import interrupts
from edgedistill.run.files import read_json

MOST_BYTES = 32_000_000  # of the archive
MOST_MEMBERS = 64
MOST_MEMBER_BYTES = 16_000_000  # of a member, unpacked
MOST_DEPTH = 12
MOST_TEXT = 300  # characters
MOST_NUMBER = 1e15
MEMBER = re.compile(rf"([a-z0-9-]{{1,40}})/({re.escape(JOB)}|{re.escape(REPORT)})")
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,39}", re.IGNORECASE)
MARKUP = re.compile(r"[<>&`|*\[\]{}\\]")
FIX = "ask for the file that deploy/jetson/measure.sh wrote, of this run's bundle"


def import_reports(path: Path, bundle: Path, out: Path) -> list[BenchReport]:
    """Check an archive of measurements and write its records, as `bench` writes those of a device.

    Args:
        path: the archive; the device is called `imported-` and the file's name without its ending.
        bundle: the bundle that was measured.
        out: folder for <device>/<backend>-<model>.json.

    Raises:
        InputError: the file is no such archive, or it is of another bundle; nothing is written then.
    """
    if not NAME.fullmatch(path.stem):
        raise InputError(f"{path}: its name is not that of a device", "use letters, digits, - and _, at most 40")
    device = Device(name=f"imported-{path.stem}")
    members = read_members(path)
    files = {file.name: file for file in verify_bundle(bundle)}
    labels_N = np.load(files[LABELS], allow_pickle=False)
    records: list[BenchReport] = []
    for backend in sorted(members):
        where = f"{path}: {backend}"
        job = _job(members[backend], where, files)
        report = _report(members[backend], where)
        if (report.backend, job["backend"]) != (backend, backend):
            raise InputError(f"{where}: is not this backend's folder", FIX)
        try:
            for mode in job["modes"]:
                backends.window(backends.create(backend), mode)
            check_report(report, job, len(labels_N), device)
        except (AgentError, EdgeDistillError) as error:
            raise InputError(f"{where}: {error}", FIX) from None
        records += device_records(device, report, labels_N)
    write_records(out, records)
    return records


def read_members(path: Path) -> dict[str, dict[str, bytes]]:
    """The contents of an archive: backend -> {job.json, report.json}.

    Raises:
        InputError: the file is no zip, or its members are not those, are too many or too large.
    """
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path}: is not a file of at most {MOST_BYTES // 10**6} MB", FIX)
        with zipfile.ZipFile(path) as archive:
            members = _contents(path, archive)
    except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a zip ({plain(str(error))})", FIX) from None
    incomplete = sorted(backend for backend, contents in members.items() if contents.keys() != {JOB, REPORT})
    if incomplete or not members:
        raise InputError(f"{path}: has no {JOB} and {REPORT} for {', '.join(incomplete) or 'any backend'}", FIX)
    return members


def _contents(path: Path, archive: zipfile.ZipFile) -> dict[str, dict[str, bytes]]:
    entries = archive.infolist()
    if len(entries) > MOST_MEMBERS:
        raise InputError(f"{path}: has more than {MOST_MEMBERS} members", FIX)
    members: dict[str, dict[str, bytes]] = {}
    for entry in entries:
        match = MEMBER.fullmatch(entry.filename)
        # the upper half of external_attr is the Unix mode: a symbolic link is no regular file
        mode = entry.external_attr >> 16
        if not match or entry.flag_bits & 1 or (mode and mode & 0o170000 not in (0, 0o100000)):
            raise InputError(f"{path}: has the member {plain(entry.filename)}", FIX)
        backend, name = match.groups()
        if name in members.setdefault(backend, {}):
            raise InputError(f"{path}: has {backend}/{name} twice", FIX)
        with archive.open(entry) as stream:
            # what the entry says of its size is the stranger's, too
            content = stream.read(MOST_MEMBER_BYTES + 1)
        if len(content) > MOST_MEMBER_BYTES:
            raise InputError(f"{path}: {backend}/{name} has more than {MOST_MEMBER_BYTES // 10**6} MB", FIX)
        members[backend][name] = content
    return members


def _job(contents: Mapping[str, bytes], where: str, files: Mapping[str, Path]) -> dict[str, Any]:
    """The job, checked by the agent's own rules; its graphs must be those of the bundle."""
    job = _json(contents[JOB], f"{where}/{JOB}")
    with interrupts.temporary_folder() as folder:
        (folder / JOB).write_bytes(contents[JOB])
        try:
            checked = jobs.read(folder / JOB)
        except AgentError as error:
            raise InputError(f"{where}: {plain(str(error).replace(str(folder), ''))}", FIX) from None
    # a name becomes that of a file: it must be one of the bundle's own
    shipped = read_json(files[DESCRIPTION], "run `edgedistill export` again")["models"]
    known = {(model["name"], model["file"], model["sha256"], model["precision"]) for model in shipped}
    for model in checked.models:
        if (model.name, model.path.name, model.sha256, model.precision) not in known:
            raise InputError(f"{where}: {plain(model.name)} is not a graph of this run's bundle", FIX)
    return job


def _report(contents: Mapping[str, bytes], where: str) -> AgentReport:
    raw = _json(contents[REPORT], f"{where}/{REPORT}")
    try:
        report = TypeAdapter(AgentReport).validate_python(raw)
    except ValidationError as error:
        raise InputError(f"{where}/{REPORT}: {error.error_count()} fields are not those of a report", FIX) from None
    kept: dict[str, Any] = {
        key: entry for key, entry in report.facts.items() if isinstance(entry, str | int | float | bool)
    }
    runtime = report.facts.get("runtime")
    if isinstance(runtime, dict):
        kept["runtime"] = {key: entry for key, entry in runtime.items() if isinstance(entry, str | int | float | bool)}
    picked_up = kept.get("picked_up")
    kept["picked_up"] = picked_up if isinstance(picked_up, int) else 0
    return report.model_copy(update={"facts": {**kept, "imported": True}})


def _json(content: bytes, where: str) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number")

    try:
        raw = json.loads(content.decode("utf-8"), parse_constant=refuse)
        checked = _cleaned(raw, 0)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: cannot be read as JSON ({plain(str(error))})", FIX) from None
    if not isinstance(checked, dict):
        raise InputError(f"{where}: is not a JSON object", FIX)
    return checked


def _cleaned(part: Any, depth: int) -> Any:
    """A part of JSON with plain texts; ValueError if it is too deep, or a number is not finite or is too large."""
    if depth > MOST_DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(part, dict):
        return {plain(key): _cleaned(entry, depth + 1) for key, entry in part.items()}
    if isinstance(part, list):
        return [_cleaned(entry, depth + 1) for entry in part]
    if isinstance(part, str):
        return plain(part)
    if isinstance(part, int | float) and not -MOST_NUMBER <= part <= MOST_NUMBER:
        raise ValueError("a number is too large")
    return part


def plain(text: str) -> str:
    """A stranger's text without markup, control characters and great length."""
    readable = "".join(letter if letter.isprintable() else " " for letter in text[:MOST_TEXT])
    return MARKUP.sub(" ", readable)
