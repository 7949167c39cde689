"""Quantization-aware distillation of the benchmark's students: the share of int8's loss that it regains.

    python -m benchmarks.quantize qat --packs DIR [--students mobilenetv2] [--steps 120]

Every student is quantized as it is, and again after further training in the arithmetic of the CPU's int8 graph, with
the images and the teacher of its first training. All are scored on the same test images. The claim: where int8 loses
more than one point, at least half of it is regained, and the int8 graph's labels agree with those of the
fake-quantized student on 99.5 % of images.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.lines import append
from benchmarks.quantize import students
from edgedistill.agent import metrics
from edgedistill.console import bar, say
from edgedistill.distill import evaluate, loop
from edgedistill.export import fake_quant, quantize
from edgedistill.export.infer import predict_onnx
from edgedistill.recipe.schema import Quantize

KIND, TARGET = "quantize-qat", "cpu"
IMAGES, LEARNING_RATE, MIN_LOSS, SHARE_REGAINED = 32, 1e-4, 1.0, 0.5


def run(name: str, packs: Path, runs: Path, bank: Path, steps: int, method: str) -> None:
    """Quantize a student before and after quantization-aware training, and append the line."""
    folder, draw = students.prepare(name, packs, runs, bank), students.training_draw(packs, bank)
    model, images_NHWC = onnx.load(folder / "student.fp32.onnx"), np.load(folder / "calibration.npy")
    test_NHWC, labels_N = np.load(folder / "test.npy"), np.load(folder / "test_labels.npy")
    settings = Quantize.model_validate({"method": method, "targets": (TARGET,)})
    calibration = quantize.choose_ranges(model, images_NHWC, settings)
    spec = students.spec_of(name, students.PX, len(draw.splits.classes))
    net = fake_quant.student(model, calibration.ranges, "cpu", learned=True)
    started = time.monotonic()
    with bar(f"{name} in int8", steps) as advance:
        fitted = loop.fit(
            net,
            students.training_task(draw, spec, steps=steps, images=IMAGES, lr=LEARNING_RATE),
            on_step=lambda *_: advance(1),
        )
    seconds = time.monotonic() - started
    trained, learned_ranges = fake_quant.trained_graph(model, fitted.model)
    graphs = {
        "ptq": quantize.graph_maker(model, calibration.ranges, "cpu")(()),
        "qat": quantize.graph_maker(trained, learned_ranges, "cpu")(()),
    }
    fp32_N = predict_onnx(folder / "student.fp32.onnx", test_NHWC).argmax(1)
    labels_by_kind = {
        kind: predict_onnx(graph.SerializeToString(), test_NHWC).argmax(1) for kind, graph in graphs.items()
    }
    fake_N = evaluate.logits(fitted.model, spec, test_NHWC).argmax(1)
    # the literal arithmetic rounds in another order: how far two exact evaluations of one graph differ
    literal_N = predict_onnx(graphs["qat"].SerializeToString(), test_NHWC, simulate=True).argmax(1)
    line = {
        "student": name,
        "method": calibration.method,
        "steps": steps,
        "batch": IMAGES,
        "lr": LEARNING_RATE,
        "train_seconds": round(seconds, 1),
        "n_test": len(test_NHWC),
        "top1_fp32": float(np.mean(fp32_N == labels_N)),
        "agreement_with_fake": metrics.agreement(labels_by_kind["qat"], fake_N),
        "agreement_with_itself": metrics.agreement(labels_by_kind["qat"], literal_N),
        **{
            f"{kind}_drop": [round(100 * points, 4) for points in metrics.drop(labels_N, fp32_N, predicted_N)]
            for kind, predicted_N in labels_by_kind.items()
        },
    }
    append(KIND, line)
    say(markdown([line]))


def markdown(lines: Iterable[dict[str, Any]]) -> str:
    """A row for the newest line of each student and calibration, and the verdict on each claim."""
    newest = {(line["student"], line["method"]): line for line in lines}.values()
    rows = [
        "| student | calibration | fp32 top-1 | points lost | after training on | steps | as the fake-quantized "
        "| as its own literal arithmetic |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for line in newest:
        drops = [f"{drop[0]:+.2f} [{drop[1]:+.2f}, {drop[2]:+.2f}]" for drop in (line["ptq_drop"], line["qat_drop"])]
        shares = [
            f"{100 * line[name]:.2f} %" if name in line else "-"
            for name in ("agreement_with_fake", "agreement_with_itself")
        ]
        cells = [line["student"], line["method"], f"{100 * line['top1_fp32']:.1f}", *drops, str(line["steps"]), *shares]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([*rows, "", *(f"- {claim}" for claim in claims(newest))])


def claims(lines: Iterable[dict[str, Any]]) -> list[str]:
    """Each part of the claim with its verdict from the lines."""
    all_lines = list(lines)
    losing = [line for line in all_lines if line["ptq_drop"][0] > MIN_LOSS]
    losing_more = [
        line["student"] for line in losing if line["qat_drop"][0] > (1 - SHARE_REGAINED) * line["ptq_drop"][0]
    ]
    disagreeing = [line["student"] for line in all_lines if line["agreement_with_fake"] < 0.995]
    loss_verdict = "FAILS" if losing_more else "holds" if losing else "not tested: none loses that much"
    agreement_verdict = "FAILS" if disagreeing else "holds" if all_lines else "not measured"
    return [
        f"where int8 loses more than {MIN_LOSS:g} point, half is won back: {loss_verdict}"
        + f" ({', '.join(losing_more)})" * bool(losing_more),
        f"the int8 graph answers as the fake-quantized student on 99.5 % of images: {agreement_verdict}"
        + f" ({', '.join(disagreeing)})" * bool(disagreeing),
    ]
