"""The cost of many images: running a source, caching its outputs, reading shards, and a step shared by two processes.

    python -m benchmarks.scale

Sources run on the GPU where torch sees one, else on one thread of the CPU. The images are noise and the nets untrained,
which changes neither time nor bytes. Steps of one and of two processes alternate; the start of a process is not timed.
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
from edgedistill.data import images, shards
from edgedistill.distill import loop, state
from edgedistill.distributed import processes
from edgedistill.distributed.device import default_device, has_gpu, is_reduced
from edgedistill.recipe.schema import Source, Student
from edgedistill.run import environment
from edgedistill.sources import outputs, registry
from edgedistill.students import space
from edgedistill.students.build import build_student

SOURCES = (("tf_efficientnet_lite0", 128), ("tf_efficientnet_lite0", 224), ("resnet50", 224), ("convnext_tiny", 224))
STUDENT = {"variant": 0, "input_px": 128, "weights": "none"}
IMAGES, ROUNDS, WARM, STEPS = 64, 5, 2, 8
TIMES_FOR_A_GPU = 16  # so many more images: it takes 256 at a time
PHOTO_PX, STORE_PX, SHARD_IMAGES = 256, 224, 1000


def device_name() -> str:
    """The device that sources run on."""
    import torch

    return torch.cuda.get_device_name() if default_device().type == "cuda" else f"{environment.processor()}, one thread"


def time_inference(model: str, px: int) -> dict[str, Any]:
    """Seconds that a source takes for some images in each round, and the bytes that the cache keeps of an image."""
    import torch

    torch.set_num_threads(1)
    source = {"name": "one", "kind": "timm", "model": model, "pretrained": False, "input_px": px}
    net = registry.load(Source.model_validate(source), Path())
    count = IMAGES * (TIMES_FOR_A_GPU if has_gpu() else 1)
    images = np.random.default_rng(0).integers(0, 256, (count, px, px, 3), dtype=np.uint8)
    features, probs = outputs.infer(net, images)
    assert probs is not None, "the net is a classifier"
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        outputs.infer(net, images)
        seconds.append(round(time.perf_counter() - started, 5))
    bytes_per_image = features.shape[1] * 4 + probs.shape[1] * 2  # float32 features, float16 probabilities
    return {
        "kind": "source",
        "model": model,
        "input_px": px,
        "features": features.shape[1],
        "classes": probs.shape[1],
        "bytes": bytes_per_image,
        "images": count,
        "precision": "bfloat16" if is_reduced(default_device(), "auto") else "float32",
        "seconds": seconds,
        "where": device_name(),
    }


def time_shard_reading() -> dict[str, Any]:
    """Seconds to read and decode a shard of JPEG photos in each round."""
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "0.tar"
        with tarfile.open(path, "w") as tar:
            for index in range(SHARD_IMAGES):
                # smooth, as photos are: noise would make a file of several times their size
                small = Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8))
                out = io.BytesIO()
                small.resize((PHOTO_PX, PHOTO_PX), Image.Resampling.BICUBIC).save(out, "jpeg", quality=90)
                member = tarfile.TarInfo(f"{index:05d}.jpg")
                member.size = out.tell()
                tar.addfile(member, io.BytesIO(out.getvalue()))
        seconds = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            count = sum(
                square is not None for _, _, square in shards.squares(str(path), images.View(px=STORE_PX, fit="crop"))
            )
            seconds.append(round(time.perf_counter() - started, 5))
        return {
            "kind": "shard",
            "photo_px": PHOTO_PX,
            "store_px": STORE_PX,
            "images": count,
            "bytes": path.stat().st_size,
            "seconds": seconds,
        }


def time_steps() -> list[float]:
    """Seconds of each of STEPS steps, shared by as many processes as torch.distributed.run started."""
    spec = space.candidates(Student(families={"efficientnet_lite": STUDENT}), step_cost.TARGET_CLASSES)[0]
    job = step_cost.task(spec, 1)
    live, loss, seconds = state.initial_state(build_student(spec), step_cost.CLASSES, job.settings, 0), job.loss(), []
    for step in range(WARM + STEPS):
        processes.all_gather(None)
        started = time.perf_counter()
        loop.train_step(live, loss, job, step).read()
        seconds.append(round(time.perf_counter() - started, 5))
    return seconds[WARM:]


def time_shared_steps() -> dict[str, Any]:
    """Seconds of the same steps by one process and by two, of one thread each, in turns."""
    several = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    seconds: dict[str, list[list[float]]] = {"one": [], "two": []}
    for _ in with_bar(ROUNDS, "steps"):
        for name, launcher in (("one", [sys.executable]), ("two", several)):
            process = subprocess.run(
                [*launcher, "-m", "benchmarks.scale", "steps"], capture_output=True, text=True, check=True, env=alone
            )
            seconds[name].append(json.loads(process.stdout.strip().splitlines()[-1]))
    return {"kind": "steps", "student": "efficientnet_lite at 128 px", "batch": 64, "seconds": seconds}


def with_bar(rounds: int, title: str) -> Any:
    """Yield the number of each round, with a progress bar."""
    with bar(title, rounds) as advance:
        for index in range(rounds):
            yield index
            advance(1)


def table(lines: list[dict[str, Any]]) -> str:
    """The newest line of each kind, as Markdown."""
    newest = {
        (line["kind"], line.get("model"), line.get("input_px"), line.get("where")): line for line in lines
    }.values()
    out = ["| what | measured | on | commit |", "|---|---|---|---|"]
    for line in newest:
        on = f"{line['cpu']}, {line['cores']} cores"
        if line["kind"] == "source":
            subject = f"`{line['model']}` at {line['input_px']} px, a million images"
            million = 1e6 * statistics.median(line["seconds"]) / line["images"]
            measured, on = f"{million:,.0f} s; {line['bytes'] / 1e3:.2f} GB of cache", line["where"]
        elif line["kind"] == "shard":
            speed = line["images"] / statistics.median(line["seconds"])
            subject = (
                f"shards of {line['photo_px']} px JPEG ({line['bytes'] / line['images'] / 1e3:.0f} kB), to squares"
            )
            measured = f"{speed:,.0f} images/s a process; {1e6 / speed:,.0f} s for a million"
        else:
            ratios = [
                statistics.median(single) / statistics.median(both)
                for single, both in zip(line["seconds"]["one"], line["seconds"]["two"], strict=True)
            ]
            subject = f"a step of {line['student']}, {line['batch']} images: two processes against one, a thread each"
            measured = f"{statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})"
        out.append(f"| {subject} | {measured} | {on} | {line['commit']} |")
    return "\n".join(out)


def main() -> None:
    """Measure everything and append the lines; with the argument `steps`, print the seconds of `time_steps` as JSON."""
    if sys.argv[1:] == ["steps"]:
        seconds = time_steps()
        if processes.team().is_leader:
            print(json.dumps(seconds))
        return
    for model, px in SOURCES:
        line = time_inference(model, px)
        say(f"{model} at {px} px: {statistics.median(line['seconds'])} s for {line['images']} images")
        append("scale", line)
    for measure in (time_shard_reading, time_shared_steps):
        say(str(append("scale", measure())))


if __name__ == "__main__":
    main()
