"""What an export spends most of its time on: the graphs for TensorRT, simulated on a CPU, as written and in float32.

    python -m benchmarks.export_time RUN

RUN is an exported run directory. Both forms of a graph take the same images in turn, and each round gives a ratio of
their processor times, so that other load on the machine does not count. The claim: the graph with Q/DQ pairs takes at
most 0.6 of the time, and no bit of its logits differs.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lines import append, run_program
from edgedistill.console import bar, say
from edgedistill.export.infer import BATCH, session
from edgedistill.run.directory import find_run

KIND, ROUNDS, IMAGES, MOST = "export_time", 12, 8, 0.6
GRAPHS = {"int8-tensorrt": "quantize/student.int8-tensorrt.onnx", "fp16": "export/student.fp16.onnx"}


def as_written(path: Path) -> Any:
    """A session without any optimization, which is how these graphs were simulated before."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def measure(name: str, path: Path, px: int) -> dict[str, Any]:
    """Time both forms of a graph in interleaved rounds; the line has the ratio and its 95 % interval."""
    random = np.random.default_rng(0)
    images_NHWC = random.integers(0, 256, (IMAGES, px, px, 3), dtype=np.uint8)
    runners = {"written": as_written(path), "float32": session(path, simulate=True, threads=1)}
    milliseconds: dict[str, list[float]] = {form: [] for form in runners}
    logits: dict[str, np.ndarray] = {}
    with bar(f"simulate {name}", ROUNDS) as advance:
        for index in range(ROUNDS):
            for form in sorted(runners, reverse=bool(index % 2)):
                started = time.process_time()
                parts = [
                    runners[form].run(["logits"], {"images": images_NHWC[start : start + BATCH]})[0]
                    for start in range(0, IMAGES, BATCH)
                ]
                milliseconds[form].append(1000 * (time.process_time() - started) / IMAGES)
                logits[form] = np.concatenate(parts)
            advance(1)
    ratios = np.divide(milliseconds["float32"], milliseconds["written"])
    low, high = np.quantile([np.median(random.choice(ratios, ROUNDS)) for _ in range(2000)], [0.025, 0.975])
    largest = float(np.abs(logits["float32"] - logits["written"]).max() / np.abs(logits["written"]).max())
    return {
        "graph": name,
        "input_px": px,
        "ratio": round(float(np.median(ratios)), 4),
        "ci95": [round(float(low), 4), round(float(high), 4)],
        "ms": {form: round(statistics.median(times), 2) for form, times in milliseconds.items()},
        "largest_difference": largest,
    }


def table(lines: list[dict[str, Any]]) -> str:
    """The newest line of each graph as a Markdown table, and the verdict on the claim."""
    if not lines:
        return "Not measured yet."
    newest = {line["graph"]: line for line in lines}
    rows = [
        f"| {name} | {line['ms']['written']:.1f} | {line['ms']['float32']:.1f} | {line['ratio']:.2f} "
        f"[{line['ci95'][0]:.2f}, {line['ci95'][1]:.2f}] | {line['largest_difference']:.1g} |"
        for name, line in newest.items()
    ]
    quantized = newest["int8-tensorrt"]
    holds = quantized["ci95"][1] <= MOST and quantized["largest_difference"] == 0
    head = "| graph | as written, ms | in float32, ms | ratio, median [95 %] | largest relative difference |"
    claim = f"int8-tensorrt takes at most {MOST} of the time and gives the same bits: {'holds' if holds else 'FAILS'}."
    return "\n".join([head, "|---|---|---|---|---|", *rows, "", claim])


def main() -> int:
    """Measure the graphs of a run, and append a line for each."""
    run = find_run(Path(sys.argv[1]))
    for name, relative in GRAPHS.items():
        path = run.path / relative
        px = session(path).get_inputs()[0].shape[1]
        line = measure(name, path, px)
        say(f"{name}: {line['ratio']} {line['ci95']}, largest difference {line['largest_difference']}")
        say(str(append(KIND, line)))
    return 0


if __name__ == "__main__":
    run_program(main)
