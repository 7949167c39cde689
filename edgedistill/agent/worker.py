"""One fresh process: load every variant, measure them in turn, then let the same sessions answer for their accuracy.

N images, B images of one query, C target classes. A variant is a model in one mode of measuring (backends.py).
"""

from __future__ import annotations

import itertools
import time
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np

from . import backends, machine, meter, power, to_label
from .backends import Backend
from .job import AgentError, Job, variant

HOST_TO_HOST = "host-to-host"


def load_array(path: Path, dtype: str, ndim: int) -> np.ndarray:
    """An array from a .npy file, never unpickled.

    Raises:
        AgentError: exit code 2; the file is missing, broken, or holds another type or shape.
    """
    try:
        # a file that is shorter than its header claims cannot be mapped, and takes no memory
        array = np.array(np.lib.format.open_memmap(str(path), mode="r"))
    except Exception as error:  # of a broken header, also those of tokenize and ast
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise AgentError(f"{path}: is not a .npy file of plain numbers ({reason})") from None
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
        {"variants": {variant: {"warmup_ms", "settled", "rounds_ms", "window", "predicted"}}, "backend": facts,
        "process": facts}; from host to host also "to_label" ({start: as above}), and "not_to_label": why there is none
    """
    images_NHWC, _, _ = load_data(job)
    loaded = _load(job, index)
    queries = {variant(name, mode): _query(loaded[name, backends.batch_of(mode)], mode, images_NHWC)
               for name, mode in _turned(job, index)}  # fmt: skip
    with to_label.made(job.pictures, images_NHWC) as pictures_made:
        windows = to_label.windows(pictures_made) if pictures_made else {}
        for name, mode in _turned(job, index):
            if pictures_made and mode == HOST_TO_HOST:
                starts = to_label.queries(pictures_made, loaded[name, 1].infer)
                queries.update({to_label.variant(name, start): query for start, query in starts.items()})
        measured, process = _measure(job, index, queries)
    answers: Dict[str, List[int]] = {}
    if index == 0:
        answers = _answers(job, loaded, images_NHWC[: job.accuracy_images])
    found = {}
    for model, mode in itertools.product(job.models, job.modes):
        name, batch = variant(model.name, mode), backends.batch_of(mode)
        found[name] = {**measured[name], "predicted": answers.get(name), "batch": batch,
                       "window": backends.window(loaded[model.name, batch], mode)}  # fmt: skip
        if mode == HOST_TO_HOST:
            found[name]["to_label"] = {start: {**measured[to_label.variant(model.name, start)], "window": window}
                                       for start, window in windows.items()}  # fmt: skip
            found[name]["not_to_label"] = to_label.missing() if job.pictures else None
    facts = {variant(model.name, mode): loaded[model.name, backends.batch_of(mode)].facts()
             for model, mode in itertools.product(job.models, job.modes)}  # fmt: skip
    for backend in loaded.values():
        backend.close()
    return {"variants": found, "backend": {**next(iter(facts.values())), "models": facts}, "process": process}


def _turned(job: Job, index: int) -> List[Tuple[str, str]]:
    """(model, mode) of every variant, in this process's order."""
    every = [(model.name, mode) for mode in job.modes for model in job.models]
    # the order of loading decides where weights lie in memory, so it rotates with the process, as the rounds do
    return every[index % len(every) :] + every[: index % len(every)]


def _load(job: Job, index: int) -> Dict[Tuple[str, int], Backend]:
    """A backend for every model and batch size, loaded in this process's order."""
    models = {model.name: model for model in job.models}
    loaded: Dict[Tuple[str, int], Backend] = {}
    for name, mode in _turned(job, index):
        batch = backends.batch_of(mode)
        if (name, batch) not in loaded:
            backend = loaded[name, batch] = backends.create(models[name].backend or job.backend)
            backends.window(backend, mode)
            backend.build(models[name].path, job.threads, batch)
    return loaded


def _query(backend: Backend, mode: str, images_NHWC: np.ndarray) -> meter.Query:
    batches = _batches(images_NHWC, backends.batch_of(mode))
    if mode.startswith("compute"):
        return meter.given(partial(backend.compute_ms, mode=mode), batches)
    return meter.timed(partial(backend.infer, mode=_launch(mode)), batches)


def _launch(mode: str) -> str:
    """The mode in which a variant answers: how it launches its work decides that, not how it is timed."""
    return "host-to-host-graph" if mode.endswith("-graph") else "host-to-host"


def _batches(images_NHWC: np.ndarray, batch: int) -> List[np.ndarray]:
    """The images in order, `batch` at a time; the last batch is filled up from the first images."""
    n = len(images_NHWC)
    whole = [images_NHWC[start : start + batch] for start in range(0, n - batch + 1, batch)]  # views: nothing is copied
    rest = [np.ascontiguousarray(images_NHWC[np.arange(n - n % batch, n - n % batch + batch) % n])] if n % batch else []
    return whole + rest


def _measure(job: Job, index: int, queries: Dict[str, meter.Query]) -> Tuple[Dict[str, Dict[str, Any]], Dict[str, Any]]:
    """What was measured of every variant, with the joules of its cells; and what the machine did meanwhile."""
    wanted = meter.plan(job.samples, job.seconds, job.processes, job.rounds)
    before = machine.state()
    with power.start(job.backend) as energy:
        wall, used = time.perf_counter(), machine.cpu_seconds()
        measured = meter.interleave(
            queries, wanted, on_round=lambda round_: _progress(job, index, round_), on_edge=energy.mark
        )
        wall_s, cpu_s = time.perf_counter() - wall, machine.cpu_seconds() - used
        # the samples of the meter are gone with it
        found = {name: {**vars(one), "joules": power.over(energy, one.windows_s)} for name, one in measured.items()}
    process = {
        "before": before,
        "after": machine.state(),
        "wall_s": round(wall_s, 3),
        "cpu_s": round(cpu_s, 3),
        "cpu_over_wall": round(cpu_s / wall_s, 3),
        "peak_memory_mb": round(machine.peak_memory_mb(), 1),
        "energy": {"meter": energy.name, "covers": energy.covers},
    }
    return found, process


def _progress(job: Job, index: int, round_: int) -> None:
    print(f"progress {index * job.rounds + round_ + 1}/{job.processes * job.rounds}", flush=True)


def _answers(job: Job, loaded: Dict[Tuple[str, int], Backend], images_NHWC: np.ndarray) -> Dict[str, List[int]]:
    """What every variant predicts; those of one batch size and one way to launch share their answers."""
    known: Dict[Tuple[str, int, str], List[int]] = {}
    found = {}
    for model, mode in itertools.product(job.models, job.modes):
        key = (model.name, backends.batch_of(mode), _launch(mode))
        if key not in known:
            answers = _predict(model.name, loaded[key[:2]], _batches(images_NHWC, key[1]), key[2])
            known[key] = answers[: len(images_NHWC)]
        found[variant(model.name, mode)] = known[key]
    return found


def _predict(name: str, backend: Backend, batches: List[np.ndarray], mode: str) -> List[int]:
    logits_NC = np.concatenate([backend.infer(batch, mode) for batch in batches])
    if not np.isfinite(logits_NC).all():
        raise AgentError(f"{name}: answers with values that are not finite numbers", exit_code=1)
    return [int(label) for label in logits_NC.argmax(axis=1)]
