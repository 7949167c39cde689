"""Agreement of the int8 graph with the fake-quantized student that it was written from, without any training.

    python -m benchmarks.quantize alike --packs DIR [--students efficientnet-lite0 resnet18]

The fake-quantized student, ONNX Runtime's integer kernels, and the literal arithmetic of every Q/DQ pair classify the
same test images. The student rounds as the kernels do; the literal arithmetic rounds in another order, so a sum that
lies between two quantization steps may be rounded to the other one.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.lines import append, read
from benchmarks.quantize import students
from edgedistill.agent import metrics
from edgedistill.console import say
from edgedistill.distill import evaluate
from edgedistill.export import fake_quant, quantize
from edgedistill.export.infer import predict_onnx
from edgedistill.recipe.schema import Quantize

KIND, MIN_AGREEMENT = "quantize-alike", 0.995
MENDED = "2026-11-23T08:19:09Z"  # of d8e37fd: before it the student and the kernels rounded in other orders


def run(name: str, packs: Path, runs: Path) -> None:
    """Calibrate a student, compute the labels of all three, and append their pairwise agreement."""
    folder = students.prepare(name, packs, runs)
    model, images_NHWC = onnx.load(folder / "student.fp32.onnx"), np.load(folder / "calibration.npy")
    test_NHWC, labels_N = np.load(folder / "test.npy"), np.load(folder / "test_labels.npy")
    calibration = quantize.choose_ranges(model, images_NHWC, Quantize(targets=("cpu",)))
    net = fake_quant.student(model, calibration.ranges, "cpu", learned=False)
    graph = quantize.graph_maker(model, calibration.ranges, "cpu")(()).SerializeToString()
    spec = students.spec_of(folder)
    labels_by_kind = {
        "fake": evaluate.logits(net, spec, test_NHWC).argmax(1),
        "int8": predict_onnx(graph, test_NHWC).argmax(1),
        "literal": predict_onnx(graph, test_NHWC, simulate=True).argmax(1),
    }
    pairs = {
        f"{first}_{second}": metrics.agreement(labels_by_kind[first], labels_by_kind[second])
        for first, second in (("fake", "int8"), ("fake", "literal"), ("int8", "literal"))
    }
    line = {
        "student": name,
        "method": calibration.method,
        "n_test": len(test_NHWC),
        "top1": float(np.mean(labels_by_kind["int8"] == labels_N)),
        **pairs,
    }
    append(KIND, line)
    say(markdown(read(KIND)))


def markdown(lines: Iterable[dict[str, Any]]) -> str:
    """A row a student, newest line of each; lines that are older than the arithmetic are left out by name."""
    by_age: dict[bool, dict[str, dict[str, Any]]] = {True: {}, False: {}}
    for line in lines:
        by_age[line["measured"] >= MENDED][line["student"]] = line
    newest, former = by_age[True], {name: by_age[False][name] for name in by_age[False] if name not in by_age[True]}
    if not newest and not former:
        return "Not measured yet."
    rows = [
        "| student | int8 top-1 | images | fake and int8 | fake and literal | int8 and literal | on | commit |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, line in newest.items():
        shares = (f"{100 * line[pair]:.2f} %" for pair in ("fake_int8", "fake_literal", "int8_literal"))
        where = f"{line['cpu']}, {line['cores']} cores | {line['commit']}"
        rows.append(f"| {name} | {100 * line['top1']:.1f} | {line['n_test']} | {' | '.join(shares)} | {where} |")
    agreeing = [name for name, line in newest.items() if line["fake_int8"] >= MIN_AGREEMENT]
    claim = f"{100 * MIN_AGREEMENT:g} % or more of the int8 graph's labels are the fake-quantized student's: "
    left_out = [f"{name} (commit {line['commit']})" for name, line in former.items()]
    note = f"- left out, as measured before the arithmetic was mended: {', '.join(left_out)}"
    return "\n".join([*rows, "", f"- {claim}{', '.join(agreeing) or 'nowhere'}", *[note] * bool(left_out)])
