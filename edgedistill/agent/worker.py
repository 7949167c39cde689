"""One fresh process: load every variant, measure them in turn, then let the same sessions answer for their accuracy.

N images, B = 1, C target classes.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np

from . import machine, meter
from .backends import Backend, create
from .job import AgentError, Job


def load_array(path: Path, dtype: str, ndim: int) -> np.ndarray:
    """An array from a .npy file, never unpickled.

    Raises:
        AgentError: exit code 2; the file is missing, broken, or holds another type or shape.
    """
    try:
        array: np.ndarray = np.load(str(path), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise AgentError(f"{path}: is not a .npy file of plain numbers ({error})") from None
    if array.dtype != np.dtype(dtype) or array.ndim != ndim or not array.size:
        holds = f"holds {array.dtype} {array.shape}"
        raise AgentError(f"{path}: {holds}, expected {dtype} of {ndim} dimensions, not empty")
    return array


def load_data(job: Job) -> Tuple[np.ndarray, np.ndarray, Dict[str, np.ndarray]]:
    """Images uint8 [N, H, W, 3], labels int64 [N], and the host's predictions int64 [N] per model.

    Raises:
        AgentError: exit code 2; a file is not as the job says, or their lengths differ.
    """
    images_NHWC = load_array(job.images, "uint8", 4)
    labels_N = load_array(job.labels, "int64", 1)
    host = {name: load_array(path, "int64", 1) for name, path in job.host_predictions.items()}
    for name, array in [("labels", labels_N), *host.items()]:
        if len(array) != len(images_NHWC):
            raise AgentError(f"{name}: {len(array)} entries for {len(images_NHWC)} images")
    return images_NHWC, labels_N, host


def work(job: Job, index: int) -> Dict[str, Any]:
    """Measure as process `index` of the job; the first one also predicts.

    Returns:
        {"models": {name: {"warmup_ms", "settled", "rounds_ms", "predicted"}}, "backend": facts, "process": facts}
    """
    images_NHWC, _, _ = load_data(job)
    batches = [np.ascontiguousarray(image[np.newaxis]) for image in images_NHWC]
    # the order of loading decides where weights lie in memory, so it rotates with the process, as the rounds do
    turned = job.models[index % len(job.models) :] + job.models[: index % len(job.models)]
    backends = {model.name: create(job.backend) for model in turned}
    for model in turned:
        backends[model.name].build(model.path, job.threads)
    measured, process = _measure(job, index, backends, batches)
    predicted: Dict[str, List[int]] = {}
    if index == 0:
        predicted = {name: _predict(name, backend, batches[: job.accuracy_images])
                     for name, backend in backends.items()}  # fmt: skip
    first = backends[job.models[0].name]
    facts = {**first.facts(), "window": first.window}
    for backend in backends.values():
        backend.close()
    models = {name: {**vars(one), "predicted": predicted.get(name)} for name, one in measured.items()}
    return {"models": models, "backend": facts, "process": process}


def _measure(
    job: Job, index: int, backends: Dict[str, Backend], batches: List[np.ndarray]
) -> Tuple[Dict[str, meter.Measured], Dict[str, Any]]:
    queries = {name: meter.timed(backend.infer, batches) for name, backend in backends.items()}
    wanted = meter.plan(job.samples, job.seconds, job.processes, job.rounds)
    before, wall, used = machine.state(), time.perf_counter(), machine.cpu_seconds()
    measured = meter.interleave(queries, wanted, on_round=lambda round_: _progress(job, index, round_))
    wall_s, cpu_s = time.perf_counter() - wall, machine.cpu_seconds() - used
    process = {
        "before": before,
        "after": machine.state(),
        "wall_s": round(wall_s, 3),
        "cpu_s": round(cpu_s, 3),
        "cpu_over_wall": round(cpu_s / wall_s, 3),
        "peak_memory_mb": round(machine.peak_memory_mb(), 1),
    }
    return measured, process


def _progress(job: Job, index: int, round_: int) -> None:
    print(f"progress {index * job.rounds + round_ + 1}/{job.processes * job.rounds}", flush=True)


def _predict(name: str, backend: Backend, batches: List[np.ndarray]) -> List[int]:
    logits_NC = np.concatenate([backend.infer(batch) for batch in batches])
    if not np.isfinite(logits_NC).all():
        raise AgentError(f"{name}: answers with values that are not finite numbers", exit_code=1)
    return [int(label) for label in logits_NC.argmax(axis=1)]
