"""What suggestions from many rows of features cost."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgedistill.agent.machine import peak_memory_mb
from edgedistill.labeling.pool import CANDIDATES, DIMS
from edgedistill.labels.draws import UNLABELED, keyed_hashes
from edgedistill.labels.suggestions import Pool, joint_features, suggested

KIND = "suggest-many"


def measure(n: int, width: int = 256, count: int = 50) -> dict[str, Any]:
    """Seconds and peak memory of `count` suggestions from n rows of made-up features on disk."""
    with tempfile.TemporaryDirectory() as folder:
        path, random = Path(folder) / "features.npy", np.random.default_rng(0)
        middles = random.standard_normal((100, width)).astype(np.float32)
        array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, width))
        for start in range(0, n, 10_000):
            rows = min(10_000, n - start)
            array[start : start + rows] = middles[random.integers(100, size=rows)] + random.standard_normal(
                (rows, width)
            )
        array.flush()
        del array
        before_mb, started, cpu_started = peak_memory_mb(), time.perf_counter(), time.process_time()
        stored = np.load(path, mmap_mode="r")
        keys = keyed_hashes([str(row) for row in range(n)], "suggest/0")
        order = np.argsort(keys, kind="stable")[:CANDIDATES]
        joint_MD = joint_features([lambda rows: stored[order[rows]]], len(order), DIMS)
        pool = Pool(features_MD=joint_MD, labels_M=np.full(len(order), UNLABELED))
        picks = suggested(pool, count)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    facts = {"rows": n, "width": width, "n": len(picks), "seconds": round(seconds, 1)}
    facts["cpu_seconds"] = round(cpu_seconds, 1)
    return {**facts, "more_memory_mb": round(peak_memory_mb() - before_mb)}


def sentence(line: dict[str, Any]) -> str:
    """What many rows cost, in a sentence."""
    return (
        f"{line['n']} suggestions from {line['rows']:,} made-up rows of {line['width']} features on disk took "
        f"{line['seconds']:.0f} s, {line['cpu_seconds']:.0f} s of them on the processor, and "
        f"{line['more_memory_mb']} MB of memory on {line['cores']} cores ({line['cpu']})."
    )
