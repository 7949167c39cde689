"""Does distillation make a student harder to quantize? The suite's students under one PTQ, distilled and fine-tuned.

    python -m benchmarks.quantize distilled --packs DIR [--seeds 0 1] [--minutes M]

Every method's student starts from the same weights on the same labels; ranges are the extremes over the same 500
images, and the graph is the CPU's. A cell that has a line is not run again.
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
from benchmarks.suite.cells import Draw, trained
from benchmarks.suite.protocol import load
from benchmarks.suite.runner import one_thread
from benchmarks.suite.statistics import Across, across, minus
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
    """Train, quantize and score what no line has yet; no cell is begun after `minutes`."""
    one_thread()
    until = time.time() + 60 * minutes
    done = {key(line) for line in read(KIND)}
    for seed, target in product(seeds, targets):
        draw = Draw(bank=bank, target=target, seed=seed)
        for method in METHODS:
            wanted = {"target": target, "method": method, "seed": seed, "config": bank.profile.config(method)}
            if key(wanted) in done or time.time() > until:
                continue
            line = {**wanted, **cell(draw, method)}
            append(KIND, line)
            say(f"{target} seed {seed} {method}: {line['drop']:+.2f} points lost, {line['differ']:.2f} % changed")


def key(line: dict[str, Any]) -> tuple[Any, ...]:
    """What makes two lines the same cell."""
    return tuple(line[name] for name in ("target", "method", "seed", "config"))


def cell(draw: Draw, method: str) -> dict[str, Any]:
    """Train a student, and say what int8 does to it on the test images."""
    fitted, _ = trained(draw, method)
    splits, px, held = draw.splits, draw.spec.input_px, draw.splits.test()
    test, rows = np.asarray(held.store.at(px)), splits.calibration_rows(SETTINGS.calibration_images, draw.seed)
    images = np.asarray(splits.train.at(px)[rows])
    with tempfile.TemporaryDirectory(prefix="edgedistill-") as folder:
        path = Path(folder) / "student.onnx"
        export(fitted.model, draw.spec, path=path, images_NHWC=images[:32], settings=Export(min_agreement=0.0))
        model = onnx.load(path)
    ranges = quantize.calibrated(model, images, SETTINGS).ranges
    fp32_NC = predict_onnx(model.SerializeToString(), test, threads=1)
    int8_NC = predict_onnx(quantize.maker(model, ranges, "cpu")(()).SerializeToString(), test, threads=1)
    close = quantize.closeness(fp32_NC, int8_NC)
    lost, low, high = metrics.drop(held.labels_N, fp32_NC.argmax(1), int8_NC.argmax(1))
    return {
        "top1_fp32": round(float(np.mean(fp32_NC.argmax(1) == held.labels_N)), 6),
        "n_test": len(test),
        "calibrated_on": len(images),
        "drop": round(100 * lost, 4),
        "drop_ci95": [round(100 * low, 4), round(100 * high, 4)],
        "differ": round(100 * (1 - close["agreement"]), 4),
        "noise": round(100 * close["noise"], 4),
    }


def markdown(lines: Iterable[dict[str, Any]]) -> str:
    """A row a method: what int8 costs its students, and how much more than the fine-tuned ones of the same draw."""
    newest = {key(line)[:3]: line for line in lines}.values()  # a later line of other settings takes the place
    configs = {method: [line for line in newest if line["method"] == method] for method in METHODS}
    rows = [
        "| method | fp32 top-1 | " + " | ".join(f"{what} | more than {BASE}" for what in MEASURES.values()) + " |",
        "| --- " * (2 + 2 * len(MEASURES)) + "|",
    ]
    for method, mine in configs.items():
        if mine:
            top1 = 100 * float(np.mean([line["top1_fp32"] for line in mine]))
            cells = [one for name in MEASURES for one in _cells(mine, configs[BASE], name, method)]
            rows.append(f"| {method} | {top1:.1f} | {' | '.join(cells)} |")
    return "\n".join([*rows, "", _said(configs)])


def _cells(mine: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]], name: str, method: str) -> tuple[str, str]:
    own = float(np.mean([line[name] for line in mine]))
    more = _more(mine, base, name)
    return (
        f"{own:.2f}",
        "-" if method == BASE or more is None else f"{more.mean:+.2f} [{more.low:+.2f}, {more.high:+.2f}]",
    )


def _more(mine: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]], name: str) -> Across | None:
    return across(minus(_targets(mine, name), _targets(base, name)))


def _targets(lines: Sequence[dict[str, Any]], name: str) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for line in lines:
        found.setdefault(line["target"], {})[line["seed"]] = line[name]
    return found


def _said(configs: dict[str, list[dict[str, Any]]]) -> str:
    harder = []
    for method in METHODS[1:]:
        more = _more(configs[method], configs[BASE], "drop") if configs[method] and configs[BASE] else None
        if more is None or len(more.by_target) < 2:  # of one target there is nothing to draw from
            harder.append(f"{method}: not measured")
        else:
            verdict = "more" if more.low > 0 else "less" if more.high < 0 else "not measurably more or less"
            harder.append(f"{method} students lose {verdict} accuracy to int8 than fine-tuned ones")
    return "; ".join(harder) + "."


def bank_of(packs: Path, runs: Path) -> Bank:
    """The suite's bank of the profile that two cores can run."""
    return Bank(packs=packs, runs=runs, profile=load("cpu"))
