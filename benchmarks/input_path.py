"""The input path alone: training batches and decoded pictures a second, beside what a GPU would take.

    python -m benchmarks.input_path                                  a line, in about a minute
    python -m benchmarks.input_path --gpu-images 2489 --gpu-px 224   beside another GPU's rate, as stated by somebody

Batches are gathered, pinned (with a GPU) and put ahead by the training loop's own thread; nobody trains on them. With a
GPU the augmentation runs there; what it costs on the CPU is a column of its own. The images are noise, which changes
nothing. Pictures are JPEG files, decoded and resized to squares by processes, and by threads as in the image store:
Pillow releases the GIL. The GPU's rate is not measured. Its maker states it for 224 px, and it is scaled with the
pixels to other sizes, which flatters the GPU, since small images leave it idle.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import step_cost
from benchmarks.lines import append, run_program
from edgedistill.console import say
from edgedistill.data import images
from edgedistill.distill.ahead import step_batches
from edgedistill.distill.augment import augment
from edgedistill.distill.batches import StepBatch, Task
from edgedistill.distill.evaluate import student_input
from edgedistill.distributed.device import has_gpu
from edgedistill.recipe.schema import Student
from edgedistill.students import space

KIND = "input_path"
SIZES_PX, AHEAD, WARM_BATCHES = (32, 128, 224), 3, 4
ROUNDS, SECONDS = 3, 1.0
STORE_PX = 224
PHOTOS = (((4000, 3000), 6), ((256, 256), 200))  # width and height, and how many
WORKERS = (("1 process", "process", 1), ("2 processes", "process", 2), ("2 threads", "thread", 2))
GPU_IMAGES, GPU_PX = 2489.0, 224
GPU_SOURCE = (
    "EfficientNet-B0 at 224 px in mixed precision on one A100 80GB, by NVIDIA/DeepLearningExamples, "
    "PyTorch/Classification/ConvNets/efficientnet/README.md"
)


def job(px: int) -> Task:
    """An endless training of a small student on noise, with one source."""
    spec = space.candidates(Student(families={"micro": {"width": 16, "input_px": px}}), step_cost.TARGET_CLASSES)[0]
    return replace(step_cost.task(spec, 1), steps=10**9)


def on_cpu(task: Task, batch: StepBatch) -> None:
    """Normalize and augment a batch as a training step does, on the CPU."""
    pixels = student_input(batch.images_BHWC, task, torch.device("cpu"))
    augment(pixels, task.settings.augment, torch.Generator().manual_seed(0), batch.positions)


def batch_rates(task: Task, work: Callable[[StepBatch], object]) -> list[float]:
    """Images a second in each round that the loop's input path delivers, with `work` done on every batch."""
    per_batch = task.settings.batch_labeled + task.settings.batch_unlabeled
    with step_batches(task, 0, AHEAD) as batches:
        for _ in range(WARM_BATCHES):
            work(next(batches))
        rates = []
        for _ in range(ROUNDS):
            count, started = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - started) < SECONDS or not count:
                work(next(batches))
                count += per_batch
            rates.append(round(count / elapsed, 1))
    return rates


def write_photos(folder: Path, size: tuple[int, int], count: int) -> list[Path]:
    """Write smooth JPEG files, as photos are: noise would make files of several times their size."""
    random, paths = np.random.default_rng(0), []
    for index in range(count):
        small = Image.fromarray(random.integers(0, 256, (max(2, size[1] // 32), max(2, size[0] // 32), 3), np.uint8))
        paths.append(folder / f"{index}.jpg")
        small.resize(size, Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


@contextmanager
def pools() -> Iterator[dict[str, Executor]]:
    """Each kind of workers by its name."""
    spawned = partial(ProcessPoolExecutor, mp_context=get_context("spawn"))
    with ExitStack() as stack:
        yield {
            name: stack.enter_context((spawned if kind == "process" else ThreadPoolExecutor)(workers))
            for name, kind, workers in WORKERS
        }


def decoding(executors: dict[str, Executor], size: tuple[int, int], count: int) -> dict[str, Any]:
    """Seconds to decode and resize photos in each round, by each kind of workers in turn."""
    read = partial(images.read, view=images.View(px=STORE_PX, fit="crop"), input_px=STORE_PX)
    seconds: dict[str, list[float]] = {name: [] for name in executors}
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photos(Path(folder), size, count)
        for executor in executors.values():
            list(executor.map(read, paths[:2]))  # processes start and import
        for name in [name for _ in range(ROUNDS) for name in executors]:
            started = time.perf_counter()
            list(executors[name].map(read, paths, chunksize=max(1, count // 32)))
            seconds[name].append(round(time.perf_counter() - started, 5))
        size_bytes = sum(path.stat().st_size for path in paths)
    return {"photo": list(size), "store_px": STORE_PX, "images": count, "bytes": size_bytes, "seconds": seconds}


def measure(gpu_images: float, gpu_px: int) -> dict[str, Any]:
    """Measure everything; returns the line."""
    rates = {}
    for px in SIZES_PX:
        task = job(px)
        rates[str(px)] = {
            "gathered": batch_rates(task, lambda batch: None),
            "augmented": batch_rates(task, partial(on_cpu, task)),
        }
    with pools() as executors:
        decoded = [decoding(executors, size, count) for size, count in PHOTOS]
    is_default = (gpu_images, gpu_px) == (GPU_IMAGES, GPU_PX)
    return {
        "batch": 64,
        "ahead": AHEAD,
        "pinned": has_gpu(),
        "threads": torch.get_num_threads(),
        "images_per_second": rates,
        "stated": {"images_per_second": gpu_images, "px": gpu_px, "by": GPU_SOURCE if is_default else "the caller"},
        "decoding": decoded,
    }


def table(lines: Iterable[dict[str, Any]]) -> str:
    """The newest line as two Markdown tables, and what was only stated."""
    line = next(iter(reversed(list(lines))), None)
    if line is None:
        return "Not measured yet."
    stated = line["stated"]
    rows = [
        "| input size | batches a second: images/s | augmented on the CPU, too | a GPU takes, stated | batches / GPU |",
        "|---|---|---|---|---|",
    ]
    for px, rates in line["images_per_second"].items():
        gathered, augmented = (statistics.median(rates[name]) for name in ("gathered", "augmented"))
        gpu = stated["images_per_second"] * (stated["px"] / int(px)) ** 2
        rows.append(f"| {px} px | {gathered:,.0f} | {augmented:,.0f} | {gpu:,.0f} | {gathered / gpu:.2f} |")
    names = list(line["decoding"][0]["seconds"])
    rows += ["", f"| decoded and resized, images/s | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for photos in line["decoding"]:
        width, height = photos["photo"]
        size = f"{width} x {height} ({photos['bytes'] / photos['images'] / 1e6:.2f} MB)"
        cells = [f"{photos['images'] / statistics.median(photos['seconds'][name]):,.1f}" for name in names]
        rows.append(f"| {size} | {' | '.join(cells)} |")
    pinned = "pinned" if line["pinned"] else "not pinned, without a GPU"
    where = f"{line['cpu']}, {line['cores']} cores, {line['threads']} threads of torch, commit {line['commit']}"
    return "\n".join(
        [
            *rows,
            "",
            f"Batches of {line['batch']}, {line['ahead']} ahead, {pinned}; {where}. What a GPU takes is stated, not"
            f" measured: {stated['images_per_second']:,.0f} images/s ({stated['by']}), scaled with the pixels.",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Measure, append the line and print its table; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.input_path", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--gpu-images", type=float, default=GPU_IMAGES, help="images a second that a GPU trains on, stated"
    )
    parser.add_argument("--gpu-px", type=int, default=GPU_PX, help="the input size of that figure")
    options = parser.parse_args(sys.argv[1:] if argv is None else argv)
    started = time.monotonic()
    path = append(KIND, measure(options.gpu_images, options.gpu_px))
    say(f"{path}: a line, in {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    run_program(main)
