"""job.json, as the agent reads it on a device: the job, the files that it names, and their contents."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from edgedistill.agent import job as jobs
from edgedistill.agent import worker
from tests.fuzz import json_inputs
from tests.fuzz.kind import Kind

MODEL = b"not a graph, and not loaded"
JOB: dict[str, Any] = {
    "version": jobs.VERSION,
    "backend": "onnxruntime-cpu",
    "models": [
        {"name": "fp32", "path": "a.onnx", "sha256": hashlib.sha256(MODEL).hexdigest(), "precision": "fp32"},
        {"name": "int8", "path": "b.onnx", "sha256": hashlib.sha256(MODEL).hexdigest(), "precision": "int8"},
    ],
    "modes": ["host-to-host"],
    "images": "images.npy",
    "labels": "labels.npy",
    "host_predictions": {"fp32": "labels.npy"},
    "pictures": {"width": 64, "height": 48, "store_px": 16, "fit": "crop"},
    "threads": 1,
    "processes": 1,
    "rounds": 2,
    "samples": 4,
    "seconds": 0.5,
    "accuracy_images": 3,
}
WORDS = (*JOB, "a.onnx", "images.npy", "link.npy", "name", "sha256")


def prepare(folder: Path) -> None:
    """The files of the job, and a link that leads out of the folder."""
    for name in ("a.onnx", "b.onnx"):
        (folder / name).write_bytes(MODEL)
    np.save(folder / "images.npy", np.zeros((3, 4, 4, 3), dtype=np.uint8))
    np.save(folder / "labels.npy", np.zeros(3, dtype=np.int64))
    (folder / "link.npy").symlink_to("/etc/passwd")


def call(path: Path) -> None:
    """Read the job, check its files and load its arrays; what it plans must be finite."""
    job = jobs.read(path)
    jobs.check_hashes(job)
    worker.load_data(job)
    names = [job.images, job.labels, *job.host_predictions.values(), *(model.path for model in job.models)]
    assert all(name.parent == path.resolve().parent for name in names), names
    assert np.isfinite(job.seconds)


def cases() -> list[bytes]:
    """Crafted jobs: numbers that are no counts, and names that are no files."""
    numbers = ("Infinity", "NaN", "1e400", "9" * 400, "1e-320", "2147483648", "1000000000000", "-0.0", "true")
    jsons = [
        json.dumps({**JOB, key: "NUMBER"}).replace('"NUMBER"', number)
        for key in ("seconds", *jobs.COUNTS, "version")
        for number in numbers
    ]
    names = (
        "link.npy",
        "",
        ".",
        "..",
        "a/b",
        "a\0b",
        "\ud800",
        "x" * 5000,
        "a\nb",
        "a\x1b[31m",
        "/etc/passwd",
        "job.json",
    )
    jsons += [json.dumps({**JOB, key: name}) for key in ("images", "labels") for name in names]
    jsons += [json.dumps({**JOB, "host_predictions": {name: name}}) for name in names]
    jsons += [json.dumps({**JOB, "models": [{**JOB["models"][0], "path": name, "name": name}]}) for name in names]
    return [*(text.encode() for text in jsons), *json_inputs.documents("version")]


KIND = Kind(
    name="job",
    file="job.json",
    valid=lambda: json.dumps(JOB).encode(),
    make=lambda random: json_inputs.made(random, JOB, WORDS),
    call=call,
    inputs=2000,
    prepare=prepare,
    errors=(jobs.AgentError,),
    cases=functools.cache(cases),
)
