"""The cost of more sources: a training step with twelve cached sources of 1,000 classes against a step with one.

    python -m benchmarks.step_cost

The two are interleaved in one process, in rounds; each round gives a ratio. The images are noise and the students are
untrained: neither changes the cost of a step. The claim: the ratio is at most 1.15.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any

import numpy as np

from benchmarks.intervals import median_interval
from benchmarks.lines import append
from edgedistill.console import bar, say
from edgedistill.distill import batches, loop, state
from edgedistill.recipe.schema import Distill, Student
from edgedistill.recipe.section import Choice
from edgedistill.records import StudentSpec
from edgedistill.students import space
from edgedistill.students.build import build_student

IMAGES, CLASSES, TARGET_CLASSES, ROUNDS, STEPS = 512, 1000, 10, 12, 4
STUDENTS: dict[str, dict[str, Any]] = {
    "efficientnet_lite": {"variant": 0, "input_px": 128, "weights": "none"},
    "micro": {"width": 16, "input_px": 32},
}


def task(spec: StudentSpec, sources: int) -> batches.Task:
    """A task on random images with `sources` cached sources of equal weight."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (IMAGES, spec.input_px, spec.input_px, 3), dtype=np.uint8)
    names = [f"source{index}" for index in range(sources)]
    probs = {name: random.dirichlet(np.full(CLASSES, 0.1), IMAGES).astype(np.float16) for name in names}
    rows, labels = np.arange(IMAGES), np.arange(IMAGES) % TARGET_CLASSES
    material = batches.Material(
        images_NHWC=images,
        labeled=rows[:100],
        labels=labels[:100],
        unlabeled=rows[120:],
        val=rows[100:120],
        val_labels=labels[100:120],
        source_probs=probs,
        alphas=dict.fromkeys(names, 1 / sources),
    )
    settings = Distill(method=Choice(name="weighted"), batch_labeled=16, batch_unlabeled=48)
    return batches.Task(spec=spec, material=material, settings=settings, steps=ROUNDS * STEPS, seed=0)


def seconds(job: batches.Task, live: state.State, first: int) -> float:
    """Seconds of STEPS steps from step `first`, drawing of the batches included."""
    loss, started = job.loss(), time.perf_counter()
    for step in range(first, first + STEPS):
        losses = loop.train_step(live, loss, job, step)
    losses.read()  # waits for a GPU
    return time.perf_counter() - started


def measure(family: str, options: dict[str, Any]) -> dict[str, Any]:
    """Time interleaved rounds of one and twelve sources for one student; the line has the ratio and its 95 % CI."""
    spec = space.candidates(Student(families={family: options}), TARGET_CLASSES)[0]
    runs = []
    for sources in (1, 12):
        job = task(spec, sources)
        live = state.initial_state(build_student(spec), sources * CLASSES, job.settings, 0)
        seconds(job, live, 0)
        runs.append(partial(seconds, job, live))
    with bar(f"step cost of {family}", ROUNDS) as advance:
        cells: list[tuple[float, float]] = []
        for index in range(ROUNDS):
            order = (0, 1) if index % 2 else (1, 0)
            pair = {which: runs[which](STEPS * (index + 1)) for which in order}
            cells.append((pair[0], pair[1]))
            advance(1)
    ratios = [twelve / single for single, twelve in cells]
    low, high = median_interval(ratios)
    return {
        "student": family,
        "input_px": spec.input_px,
        "macs_m": round(spec.cost.macs_m, 3),
        "batch": 64,
        "source_classes": CLASSES,
        "ratio": round(statistics.median(ratios), 4),
        "ci95": [round(low, 4), round(high, 4)],
        "steps_a_round": STEPS,
        "seconds": [[round(elapsed, 5) for elapsed in cell] for cell in cells],
    }


def table(lines: list[dict[str, Any]]) -> str:
    """The lines as a Markdown table."""
    rows = [
        f"| {line['student']} at {line['input_px']} px, {line['macs_m']:.0f} M MACs | {line['ratio']:.3f} "
        f"[{line['ci95'][0]:.3f}, {line['ci95'][1]:.3f}] | {line['cpu']}, {line['cores']} cores | {line['commit']} |"
        for line in lines
    ]
    return "\n".join(
        ["| student | twelve sources / one source, median [95 %] | on | commit |", "|---|---|---|---|", *rows]
    )


def main() -> None:
    """Measure every student and append a line for each."""
    for family, options in STUDENTS.items():
        line = measure(family, options)
        say(f"{family}: {line['ratio']} {line['ci95']}")
        say(str(append("step_cost", line)))


if __name__ == "__main__":
    main()
