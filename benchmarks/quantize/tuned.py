"""Quantization-aware distillation on the benchmark's students: what it wins back of what int8 lost.

    python -m benchmarks.quantize qat --packs DIR [--students mobilenetv2] [--steps 120]

Every student is quantized as it is and after training on in the arithmetic of the CPU's int8 graph, on the images and
the teacher that it was trained by. All are scored on the same test images. The claim: where int8 loses more than one
point, at least half of it is won back, and the int8 graph answers as the fake-quantized student on 99.5 % of images.
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
IMAGES, RATE, LOST, WON = 32, 1e-4, 1.0, 0.5


def run(name: str, packs: Path, runs: Path, bank: Path, steps: int, method: str) -> None:
    """Quantize a student before and after, and append the line."""
    folder, draw = students.prepare(name, packs, runs, bank), students.drawn(packs, bank)
    model, images = onnx.load(folder / "student.fp32.onnx"), np.load(folder / "calibration.npy")
    test, labels_N = np.load(folder / "test.npy"), np.load(folder / "test_labels.npy")
    settings = Quantize.model_validate({"method": method, "targets": (TARGET,)})
    found = quantize.calibrated(model, images, settings)
    spec = students.spec_of(name, students.PX, len(draw.splits.classes))
    net = fake_quant.student(model, found.ranges, "cpu", learned=True)
    started = time.monotonic()
    with bar(f"{name} in int8", steps) as shown:
        fitted = loop.fit(
            net, students.lesson(draw, spec, steps=steps, images=IMAGES, lr=RATE), on_step=lambda *_: shown(1)
        )
    seconds = time.monotonic() - started
    trained, learned = fake_quant.trained(model, fitted.model)
    graphs = {"ptq": quantize.maker(model, found.ranges, "cpu")(()), "qat": quantize.maker(trained, learned, "cpu")(())}
    fp32_N = predict_onnx(folder / "student.fp32.onnx", test).argmax(1)
    said = {which: predict_onnx(graph.SerializeToString(), test).argmax(1) for which, graph in graphs.items()}
    fake_N = evaluate.logits(fitted.model, spec, test).argmax(1)
    # the literal reading rounds in another order: how far two exact ones part
    literal_N = predict_onnx(graphs["qat"].SerializeToString(), test, simulate=True).argmax(1)
    line = {
        "student": name,
        "method": found.method,
        "steps": steps,
        "batch": IMAGES,
        "lr": RATE,
        "train_seconds": round(seconds, 1),
        "n_test": len(test),
        "top1_fp32": float(np.mean(fp32_N == labels_N)),
        "agreement_with_fake": metrics.agreement(said["qat"], fake_N),
        "agreement_with_itself": metrics.agreement(said["qat"], literal_N),
        **{
            f"{which}_drop": [round(100 * one, 4) for one in metrics.drop(labels_N, fp32_N, predicted)]
            for which, predicted in said.items()
        },
    }
    append(KIND, line)
    say(markdown([line]))


def markdown(lines: Iterable[dict[str, Any]]) -> str:
    """A row a student and calibration, newest line of each, and what becomes of the claim."""
    newest = {(line["student"], line["method"]): line for line in lines}.values()
    rows = [
        "| student | calibration | fp32 top-1 | points lost | after training on | steps | as the fake-quantized "
        "| as its own literal arithmetic |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for line in newest:
        drops = [f"{one[0]:+.2f} [{one[1]:+.2f}, {one[2]:+.2f}]" for one in (line["ptq_drop"], line["qat_drop"])]
        shares = [
            f"{100 * line[name]:.2f} %" if name in line else "-"
            for name in ("agreement_with_fake", "agreement_with_itself")
        ]
        cells = [line["student"], line["method"], f"{100 * line['top1_fp32']:.1f}", *drops, str(line["steps"]), *shares]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([*rows, "", *(f"- {said}" for said in claims(newest))])


def claims(lines: Iterable[dict[str, Any]]) -> list[str]:
    """Each half of the claim with what the lines say of it."""
    known = list(lines)
    losing = [line for line in known if line["ptq_drop"][0] > LOST]
    poor = [line["student"] for line in losing if line["qat_drop"][0] > (1 - WON) * line["ptq_drop"][0]]
    apart = [line["student"] for line in known if line["agreement_with_fake"] < 0.995]
    won = "FAILS" if poor else "holds" if losing else "not tested: none loses that much"
    same = "FAILS" if apart else "holds" if known else "not measured"
    return [
        f"where int8 loses more than {LOST:g} point, half is won back: {won}" + f" ({', '.join(poor)})" * bool(poor),
        f"the int8 graph answers as the fake-quantized student on 99.5 % of images: {same}"
        + f" ({', '.join(apart)})" * bool(apart),
    ]
