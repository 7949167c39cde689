"""What it costs that the C library returns the memory of every batch to the system: steps and forward passes on a CPU.

    python -m benchmarks.freed_memory

Every pair is two processes with one thread, one after the other: one as it is, one in which freed memory is kept
(`edgedistill.distributed.device.keep_freed_memory`). Images and weights are random, which changes no time. Processor
seconds, those of the kernel included; ratios of the medians of a pair. No claim: a question.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks.intervals import median_interval
from benchmarks.lines import append, run_program
from edgedistill.agent.machine import peak_memory_mb
from edgedistill.console import bar, say
from edgedistill.distributed.device import keep_freed_memory

KIND = "freed_memory"
PAIRS, REPEATS, CLASSES = 7, 6, 10
LITE0 = {"variant": 0, "weights": "none"}
JOBS: dict[str, dict[str, Any]] = {
    "a step, micro at 32 px": {"families": {"micro": {"width": 16, "input_px": 32}}, "images": 128, "learns": True},
    "a step, EfficientNet-Lite0 at 128 px": {
        "families": {"efficientnet_lite": {**LITE0, "input_px": 128}},
        "images": 48,
        "learns": True,
    },
    "a forward pass, EfficientNet-Lite0 at 160 px": {
        "families": {"efficientnet_lite": {**LITE0, "input_px": 160}},
        "images": 64,
        "learns": False,
    },
}


def job(options: dict[str, Any]) -> dict[str, float]:
    """Run a job in this process; returns its processor seconds and the most memory that the process had, in MB."""
    import torch

    from edgedistill.recipe.schema import Student
    from edgedistill.students import space
    from edgedistill.students.build import build_student

    if options["kept"] and not keep_freed_memory():
        raise SystemExit("freed memory can't be kept here: another C library, a GPU, or MALLOC_ in the environment")
    torch.set_num_threads(1)
    spec = space.candidates(Student(families=options["families"]), CLASSES)[0]
    model = build_student(spec).to(memory_format=torch.channels_last)
    images = torch.randn(options["images"], 3, spec.input_px, spec.input_px)
    images, labels = images.contiguous(memory_format=torch.channels_last), torch.arange(options["images"]) % CLASSES
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    elapsed = []
    for _ in range(2 + REPEATS):
        before = time.process_time()
        if options["learns"]:
            torch.nn.functional.cross_entropy(model.train()(images), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
        else:
            with torch.inference_mode():
                model.eval()(images)
        elapsed.append(time.process_time() - before)
    return {"seconds": round(statistics.median(elapsed[2:]), 4), "mb": peak_memory_mb()}


def measure(name: str) -> dict[str, Any]:
    """Measure a job in pairs of processes; the line has the ratios kept / returned."""
    pairs = []
    with bar(name, PAIRS) as advance:
        for index in range(PAIRS):
            order = (False, True) if index % 2 else (True, False)
            pairs.append({kept: _in_a_process({**JOBS[name], "kept": kept}) for kept in order})
            advance(1)
    time_ratios = [pair[True]["seconds"] / pair[False]["seconds"] for pair in pairs]
    low, high = median_interval(time_ratios)
    return {
        "job": name,
        "ratio": round(statistics.median(time_ratios), 4),
        "ci95": [round(low, 4), round(high, 4)],
        "memory_ratio": round(statistics.median(pair[True]["mb"] / pair[False]["mb"] for pair in pairs), 4),
        "pairs": [{"returned": pair[False], "kept": pair[True]} for pair in pairs],
    }


def _in_a_process(options: dict[str, Any]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.freed_memory", json.dumps(options)]
    measured: dict[str, float] = json.loads(subprocess.check_output(command, stderr=subprocess.DEVNULL))
    return measured


def table(lines: list[dict[str, Any]]) -> str:
    """The newest line of each job as a Markdown table."""
    newest = {line["job"]: line for line in lines}
    rows = [
        f"| {line['job']} | {line['ratio']:.2f} [{line['ci95'][0]:.2f}, {line['ci95'][1]:.2f}] | "
        f"{line['memory_ratio']:.2f} | {line['cpu']} | {line['commit']} |"
        for line in newest.values()
    ]
    head = "| job | processor time, kept / returned, median [95 %] | most memory, kept / returned | on | commit |"
    return "\n".join([head, "|---|---|---|---|---|", *rows])


def main() -> int:
    """Measure every job and append a line for each; with a job's options, run that job."""
    if len(sys.argv) > 1:
        sys.stdout.write(json.dumps(job(json.loads(sys.argv[1]))) + "\n")
        return 0
    for name in JOBS:
        line = measure(name)
        say(f"{name}: {line['ratio']} {line['ci95']}, memory {line['memory_ratio']}")
        say(str(append(KIND, line)))
    return 0


if __name__ == "__main__":
    run_program(main)
