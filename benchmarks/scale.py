"""What many images cost: asking a source, keeping its answers, reading shards, and a step shared by two processes.

    python -m benchmarks.scale

Sources run on the GPU where torch sees one, else on one thread of the CPU; the images are noise and the nets untrained,
which changes neither time nor bytes. Steps of one and of two processes are taken in turns, each with a process's own
start left out.
"""

from __future__ import annotations

import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import step_cost
from benchmarks.lines import append
from edgedistill.console import bar, say
from edgedistill.data import shards
from edgedistill.distill import batches, loop, state
from edgedistill.distributed import processes
from edgedistill.distributed.device import default_device
from edgedistill.recipe.schema import Source, Student
from edgedistill.run import environment
from edgedistill.sources import outputs, registry
from edgedistill.students import space
from edgedistill.students.build import build_student

SOURCES = (("tf_efficientnet_lite0", 128), ("tf_efficientnet_lite0", 224), ("resnet50", 224), ("convnext_tiny", 224))
STUDENT = {"variant": 0, "input_px": 128, "weights": "none"}
IMAGES, ROUNDS, WARM, STEPS = 64, 5, 2, 8
PHOTO_PX, STORE_PX, IN_A_SHARD = 256, 224, 1000


def where() -> str:
    """What sources are asked on."""
    import torch

    return torch.cuda.get_device_name() if default_device().type == "cuda" else f"{environment.processor()}, one thread"


def asking(model: str, px: int) -> dict[str, Any]:
    """Seconds for IMAGES images in each round, and the bytes that the cache keeps of one."""
    import torch

    torch.set_num_threads(1)
    said = {"name": "one", "kind": "timm", "model": model, "pretrained": False, "input_px": px}
    net = registry.load(Source.model_validate(said), Path())
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, px, px, 3), dtype=np.uint8)
    features, probs = outputs.infer(net, images)
    taken = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        outputs.infer(net, images)
        taken.append(round(time.perf_counter() - started, 5))
    kept = features.shape[1] * 4 + probs.shape[1] * 2  # float32 features, float16 probabilities
    return {
        "kind": "source",
        "model": model,
        "input_px": px,
        "features": features.shape[1],
        "classes": probs.shape[1],
        "bytes": kept,
        "images": IMAGES,
        "seconds": taken,
        "where": where(),
    }


def reading() -> dict[str, Any]:
    """Seconds to read and decode a shard of JPEG photos in each round."""
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "0.tar"
        with tarfile.open(path, "w") as tar:
            for at in range(IN_A_SHARD):
                # smooth, as photos are: noise would make a file of several times their size
                small = Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8))
                out = io.BytesIO()
                small.resize((PHOTO_PX, PHOTO_PX), Image.Resampling.BICUBIC).save(out, "jpeg", quality=90)
                member = tarfile.TarInfo(f"{at:05d}.jpg")
                member.size = out.tell()
                tar.addfile(member, io.BytesIO(out.getvalue()))
        taken = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            count = sum(
                square is not None for _, _, square in shards.squares(str(path), shards.View(px=STORE_PX, fit="crop"))
            )
            taken.append(round(time.perf_counter() - started, 5))
        return {
            "kind": "shard",
            "photo_px": PHOTO_PX,
            "store_px": STORE_PX,
            "images": count,
            "bytes": path.stat().st_size,
            "seconds": taken,
        }


def steps() -> list[float]:
    """Seconds of each of STEPS steps, by as many processes as were started."""
    spec = space.candidates(Student(families={"efficientnet_lite": STUDENT}), step_cost.TARGET_CLASSES)[0]
    job = step_cost.task(spec, 1)
    live, loss, taken = state.start(build_student(spec), step_cost.CLASSES, job.settings, 0), job.loss(), []
    for step in range(WARM + STEPS):
        processes.gathered(None)
        started = time.perf_counter()
        loop.train_step(live, loss, drawn=batches.draw_batch(job, step), task=job, step=step)
        taken.append(round(time.perf_counter() - started, 5))
    return taken[WARM:]


def sharing() -> dict[str, Any]:
    """The same steps by one process and by two, one thread each, in turns."""
    several = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    found: dict[str, list[list[float]]] = {"one": [], "two": []}
    for _ in bar_of(ROUNDS, "steps"):
        for name, launcher in (("one", [sys.executable]), ("two", several)):
            done = subprocess.run(
                [*launcher, "-m", "benchmarks.scale", "steps"], capture_output=True, text=True, check=True, env=alone
            )
            found[name].append(json.loads(done.stdout.strip().splitlines()[-1]))
    return {"kind": "steps", "student": "efficientnet_lite at 128 px", "batch": 64, "seconds": found}


def bar_of(rounds: int, what: str) -> Any:
    """The rounds, with a bar."""
    with bar(what, rounds) as advance:
        for at in range(rounds):
            yield at
            advance(1)


def table(lines: list[dict[str, Any]]) -> str:
    """The newest line of each kind, as Markdown."""
    newest = {(one["kind"], one.get("model"), one.get("input_px"), one.get("where")): one for one in lines}.values()
    out = ["| what | measured | on | commit |", "|---|---|---|---|"]
    for one in newest:
        on = f"{one['cpu']}, {one['cores']} cores"
        if one["kind"] == "source":
            what = f"`{one['model']}` at {one['input_px']} px, a million images"
            million = 1e6 * statistics.median(one["seconds"]) / one["images"]
            told, on = f"{million:,.0f} s; {one['bytes'] / 1e3:.2f} GB of cache", one["where"]
        elif one["kind"] == "shard":
            speed = one["images"] / statistics.median(one["seconds"])
            what = f"shards of {one['photo_px']} px JPEG ({one['bytes'] / one['images'] / 1e3:.0f} kB), to squares"
            told = f"{speed:,.0f} images/s a process; {1e6 / speed:,.0f} s for a million"
        else:
            ratios = [
                statistics.median(single) / statistics.median(both)
                for single, both in zip(one["seconds"]["one"], one["seconds"]["two"], strict=True)
            ]
            what = f"a step of {one['student']}, {one['batch']} images: two processes against one, a thread each"
            told = f"{statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})"
        out.append(f"| {what} | {told} | {on} | {one['commit']} |")
    return "\n".join(out)


def main() -> None:
    """Measure everything and append the lines."""
    if sys.argv[1:] == ["steps"]:
        taken = steps()
        if processes.team().leads:
            print(json.dumps(taken))
        return
    for model, px in SOURCES:
        line = asking(model, px)
        say(f"{model} at {px} px: {statistics.median(line['seconds'])} s for {IMAGES} images")
        append("scale", line)
    for measure in (reading, sharing):
        say(str(append("scale", measure())))


if __name__ == "__main__":
    main()
