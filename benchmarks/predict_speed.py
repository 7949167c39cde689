"""`edgedistill predict` compared with decoding alone: pictures a second, interleaved on all cores.

    python -m benchmarks.predict_speed runs/latest [--pictures 600] [--rounds 7]

The pictures are made up: JPEG files of 1,280 x 960 px. "decode" is Pillow's `load` in as many threads as there are
cores; "square" decodes and resizes to the student's input, which is the least that an answer needs; "predict" is the
student's stream, which also answers. All read the same files, in turn.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.lines import append, read, run_program
from edgedistill.data import images
from edgedistill.predict.student import load

KIND = "predict-speed"
SIZE = (1280, 960)


def make_pictures(folder: Path, count: int) -> list[Path]:
    """Write smooth pictures with some grain, as a camera's are."""
    generator = np.random.default_rng(0)
    paths = []
    for number in range(count):
        coarse = Image.fromarray(generator.integers(0, 255, (24, 32, 3), dtype=np.uint8)).resize(SIZE)
        grain = generator.normal(0, 6, (SIZE[1], SIZE[0], 3))
        path = folder / f"{number:05d}.jpg"
        Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).save(path, quality=90)
        paths.append(path)
    return paths


def decode(path: Path) -> None:
    """Decode a picture."""
    with Image.open(path) as image:
        image.load()


def measure(run: Path, count: int, rounds: int) -> dict[str, Any]:
    """The line: pictures a second of each round of both."""
    student = load(run)

    def decoded(paths: Sequence[Path]) -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            deque(pool.map(decode, paths), maxlen=0)

    def squared(paths: Sequence[Path]) -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            deque(pool.map(partial(images.read, view=student.view, input_px=student.input_px), paths), maxlen=0)

    def answered(paths: Sequence[Path]) -> None:
        deque(student.stream(paths), maxlen=0)

    ways: dict[str, Callable[[Sequence[Path]], None]] = {"decode": decoded, "square": squared, "predict": answered}
    per_second: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory(prefix="edgedistill-") as folder:
        paths = make_pictures(Path(folder), count)
        for way in ways.values():
            way(paths[:50])
        for _ in range(rounds):
            for name, way in ways.items():
                started = time.perf_counter()
                way(paths)
                per_second[name].append(round(count / (time.perf_counter() - started), 1))
    return {"pictures": count, "size": SIZE, "student": repr(student).split(", ", 1)[1][:-1], "per_second": per_second}


def table(lines: list[dict[str, Any]]) -> str:
    """The newest line as a sentence."""
    if not lines:
        return "No line yet."
    line = lines[-1]
    shares = {}
    for name in ("decode", "square"):
        pairs = zip(line["per_second"]["predict"], line["per_second"][name], strict=True)
        ratios = [answered / other for answered, other in pairs]
        shares[name] = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
    width, height = line["size"]
    median = statistics.median(line["per_second"]["predict"])
    return (
        f"A student ({line['student']}) answers {median:.0f} JPEG pictures of {width} x {height} px a second on "
        f"{line['cores']} cores ({line['cpu']}): {shares['square']} of the "
        f"throughput of decoding and resizing alone, {shares['decode']} of decoding alone (median and range of "
        f"{len(ratios)} rounds)."
    )


def main() -> int:
    """Append a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/latest"))
    parser.add_argument("--pictures", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    append(KIND, measure(options.run, options.pictures, options.rounds))
    print(table(list(read(KIND))))
    return 0


if __name__ == "__main__":
    run_program(main)
