"""What distillation changes in the loss from int8: the suite's students, distilled and fine-tuned, under the same PTQ.

    python -m benchmarks.quantize distilled --packs DIR [--seeds 0 1] [--minutes M]

Every method's student starts from the same weights on the same labels. Calibration takes the extremes over the same
500 images, and the graph is the CPU's. A cell that has a line is not run again.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.lines import append, read
from benchmarks.suite.bank import Bank
from benchmarks.suite.cells import train_student
from benchmarks.suite.draws import Draw
from benchmarks.suite.protocol import load
from benchmarks.suite.runner import use_one_thread
from benchmarks.suite.statistics import Summary, paired_differences, summarize
from edgedistill.agent import metrics
from edgedistill.console import say
from edgedistill.export import quantize
from edgedistill.export.infer import predict_onnx
from edgedistill.export.onnx import export
from edgedistill.recipe.schema import Export, Quantize

KIND, BASE = "quantize-distilled", "transfer"
METHODS = (BASE, "weighted", "selftrained")
MEASURES = {"drop": "points lost", "differ": "labels changed, %", "noise": "noise of the logits, %"}
SETTINGS = Quantize(method="minmax", targets=("cpu",))


def run(bank: Bank, targets: Sequence[str], seeds: Sequence[int], minutes: float) -> None:
    """Train, quantize and score every cell that has no line yet; no cell is begun after `minutes`."""
    use_one_thread()
    until = time.time() + 60 * minutes
    finished = {key(line) for line in read(KIND)}
    for seed, target in product(seeds, targets):
        draw = Draw(bank=bank, target=target, seed=seed)
        for method in METHODS:
            settings = {"target": target, "method": method, "seed": seed, "config": bank.profile.config(method)}
            if key(settings) in finished or time.time() > until:
                continue
            line = {**settings, **cell(draw, method)}
            append(KIND, line)
            say(f"{target} seed {seed} {method}: {line['drop']:+.2f} points lost, {line['differ']:.2f} % changed")


def key(line: dict[str, Any]) -> tuple[Any, ...]:
    """The identity of a line's cell: target, method, seed and configuration."""
    return tuple(line[name] for name in ("target", "method", "seed", "config"))


def cell(draw: Draw, method: str) -> dict[str, Any]:
    """Train a student and compare its int8 graph with its fp32 graph on the test images."""
    fitted, _ = train_student(draw, method)
    splits, px, test = draw.splits, draw.spec.input_px, draw.splits.open_test()
    test_NHWC, rows = (
        np.asarray(test.store.resized(px)),
        splits.calibration_rows(SETTINGS.calibration_images, draw.seed),
    )
    images_NHWC = np.asarray(splits.train.resized(px)[rows])
    with tempfile.TemporaryDirectory(prefix="edgedistill-") as folder:
        path = Path(folder) / "student.onnx"
        export(fitted.model, draw.spec, path=path, images_NHWC=images_NHWC[:32], settings=Export(min_agreement=0.0))
        model = onnx.load(path)
    ranges = quantize.choose_ranges(model, images_NHWC, SETTINGS).ranges
    fp32_NC = predict_onnx(model.SerializeToString(), test_NHWC, threads=1)
    int8_NC = predict_onnx(quantize.graph_maker(model, ranges, "cpu")(()).SerializeToString(), test_NHWC, threads=1)
    closeness = quantize.closeness(fp32_NC, int8_NC)
    lost, low, high = metrics.drop(test.labels_N, fp32_NC.argmax(1), int8_NC.argmax(1))
    return {
        "top1_fp32": round(float(np.mean(fp32_NC.argmax(1) == test.labels_N)), 6),
        "n_test": len(test_NHWC),
        "calibrated_on": len(images_NHWC),
        "drop": round(100 * lost, 4),
        "drop_ci95": [round(100 * low, 4), round(100 * high, 4)],
        "differ": round(100 * (1 - closeness["agreement"]), 4),
        "noise": round(100 * closeness["noise"], 4),
    }


def markdown(lines: Iterable[dict[str, Any]]) -> str:
    """A row a method: what int8 costs its students, and the difference from the fine-tuned ones of the same draw."""
    newest = {key(line)[:3]: line for line in lines}.values()  # a later line replaces one of other settings
    by_method = {method: [line for line in newest if line["method"] == method] for method in METHODS}
    rows = [
        "| method | fp32 top-1 | " + " | ".join(f"{title} | more than {BASE}" for title in MEASURES.values()) + " |",
        "| --- " * (2 + 2 * len(MEASURES)) + "|",
    ]
    for method, method_lines in by_method.items():
        if method_lines:
            top1 = 100 * float(np.mean([line["top1_fp32"] for line in method_lines]))
            cells = [text for measure in MEASURES for text in _cells(method_lines, by_method[BASE], measure, method)]
            rows.append(f"| {method} | {top1:.1f} | {' | '.join(cells)} |")
    return "\n".join([*rows, "", _verdict_line(by_method)])


def _cells(
    lines: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]], measure: str, method: str
) -> tuple[str, str]:
    mean = float(np.mean([line[measure] for line in lines]))
    difference = _difference(lines, base, measure)
    return (
        f"{mean:.2f}",
        "-"
        if method == BASE or difference is None
        else f"{difference.mean:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]",
    )


def _difference(lines: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]], measure: str) -> Summary | None:
    return summarize(paired_differences(_targets(lines, measure), _targets(base, measure)))


def _targets(lines: Sequence[dict[str, Any]], measure: str) -> dict[str, dict[int, float]]:
    by_target: dict[str, dict[int, float]] = {}
    for line in lines:
        by_target.setdefault(line["target"], {})[line["seed"]] = line[measure]
    return by_target


def _verdict_line(by_method: dict[str, list[dict[str, Any]]]) -> str:
    verdicts = []
    for method in METHODS[1:]:
        difference = (
            _difference(by_method[method], by_method[BASE], "drop") if by_method[method] and by_method[BASE] else None
        )
        if difference is None or len(difference.by_target) < 2:  # one target cannot be resampled
            verdicts.append(f"{method}: not measured")
        else:
            verdict = "more" if difference.low > 0 else "less" if difference.high < 0 else "not measurably more or less"
            verdicts.append(f"{method} students lose {verdict} accuracy to int8 than fine-tuned ones")
    return "; ".join(verdicts) + "."


def bank_of(packs: Path, runs: Path) -> Bank:
    """The suite's bank of the profile that two cores can run."""
    return Bank(packs=packs, runs=runs, profile=load("cpu"))
