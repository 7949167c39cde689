"""A synthetic run directory with round figures, whole or cut off after a step; what the report's tests read."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from edgedistill.records import (
    Accuracy,
    BenchReport,
    Checkpoint,
    Cost,
    Drop,
    Gate,
    Guarded,
    Kept,
    Ladder,
    Latency,
    MetricScore,
    OnnxModel,
    Rung,
    SourceWeight,
    SourceWeights,
    StudentSpec,
)
from edgedistill.run import Run, write_json, write_record

STEPS = ("weigh", "search", "distill", "export", "quantize", "verify", "bench")
CLASSES = ("functional", "defective")
SPEC = StudentSpec(
    "resnet", {"width": 0.5, "depth": 2}, 96, 2, Cost(123.4, 0.85, 3.4, 2.5, ("hard-swish",)), (0.5,) * 3, (0.5,) * 3
)


def accuracy(balanced: float, n: int = 788) -> Accuracy:
    """`balanced` with an interval of two points down and one up, and a top-1 that nobody could mistake for it."""
    return Accuracy(n, 0.5, (0.4, 0.6), balanced, (balanced - 0.02, balanced + 0.01))


def ramp(low_ms: float) -> Latency:
    """101 samples evenly from low to twice low: percentile q is low * (1 + q / 100)."""
    return Latency(tuple(low_ms * (1 + at / 100) for at in range(101)), (9.0,), "session.run, host to host")


def make(root: Path, upto: str = "bench", classes: tuple[str, ...] = CLASSES, name: str = "demo") -> Run:
    """A run directory in which every step up to and with `upto` has finished ("" for none)."""
    run = Run(root / f"{name}-0a1b2c3d")
    writers = (_weigh, _search, _distill, _export, _quantize, _verify, _bench)
    _ground(run, name, classes)
    for step, write in zip(STEPS, writers, strict=True):
        if upto not in STEPS[STEPS.index(step) :]:
            break
        write(run)
    return run


def _ground(run: Run, name: str, classes: tuple[str, ...]) -> None:
    recipe = {"name": name, "about": "Solar cells, two classes.", "data": {"kind": "elpv", "score": "balanced"},
              "sources": [{"name": "lite0", "kind": "timm"}], "student": {"budget": {"macs_m": 150.0}},
              "bench": {"devices": ["local", "board"]}}  # fmt: skip
    write_json(run / "recipe.lock.json", {"base": ".", "recipe": recipe})
    write_json(run / "env.json", {
        "python": "3.12.3", "platform": "Linux", "cpu": "Some CPU", "packages": {"numpy": "2.0.0", "torch": "2.8.0"},
        "commit": "abc1234", "started": "2026-01-02T03:04:05Z", "command": "edgedistill run recipes/demo.yaml",
    })  # fmt: skip
    write_json(run / "data.json", {
        "kind": "elpv", "classes": list(classes), "licence": "CC BY-NC-SA 4.0", "labeled": 40, "val": 10,
        "unlabeled": 1786, "test": 788, "corrupt": ["a.png", "b.png"], "score": "balanced",
    })  # fmt: skip


def _weigh(run: Run) -> None:
    def source(name: str, weight: float, probe: float, parc: float) -> SourceWeight:
        scores = {
            "probe": MetricScore(probe, probe - 0.05, probe + 0.04, 1.0),
            "parc": MetricScore(parc, parc - 3, parc + 3, 50.0),
        }
        return SourceWeight(name, weight, scores)

    sources = (source("lite1", 0.2, 0.7, 31.0), source("lite0", 0.7, 0.8, 22.5), source("mnist-net", 0.1, 0.55, -4.0))
    said = "probe and parc disagree about the best source: lite0 by probe, lite1 by parc"
    write_record(run / "weigh/weights.json", SourceWeights("probe", 50, 12.0, sources, said))


def _search(run: Run) -> None:
    write_record(run / "search/student.json", SPEC)
    rows = [(0, "COMPLETE", 60.0, 0.81), (1, "COMPLETE", 90.0, 0.84), (2, "COMPLETE", 123.4, 0.88),
            (3, "PRUNED", 110.0, ""), (4, "FAIL", 190.0, ""), (5, "COMPLETE", 140.0, 0.87)]  # fmt: skip
    with (run / "search/trials.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(("number", "state", "family", "options", "input_px", "macs_m", "params_m", "weights_mb", "value",
                        "seconds"))  # fmt: skip
        table.writerows((at, state, "resnet", '{"width": 0.5}', 96, macs, 0.85, 3.4, value, 12.5)
                        for at, state, macs, value in rows)  # fmt: skip


def _distill(run: Run) -> None:
    made = Checkpoint("distill/student.safetensors", "c" * 64, SPEC, CLASSES, accuracy(0.92, 10), accuracy(0.915),
                      "weighted", 1000, 84.2)  # fmt: skip
    write_json(run / "distill/result.json", {**asdict(made), "top1": 0.5, "n_test": 788, "ci95": [0.4, 0.6]})
    lines = []
    for step in range(0, 1000, 5):
        falling = float(np.exp(-step / 300))
        terms = {"labeled": 0.5 * falling + 0.05 * np.sin(step), "distill": 0.9 * falling + 0.2}
        lines.append({"step": step, "loss": sum(terms.values()), "terms": terms, "lr": 1e-3, "images_per_second": 900})
        if step % 100 == 50:
            lines.append({"step": step, "val": asdict(accuracy(0.92 - 0.4 * falling, 10))})
    torn = '{"step": 1000, "lo'
    (run / "distill/metrics.jsonl").write_text("\n".join([*map(json.dumps, lines), torn]), encoding="utf-8")


def _export(run: Run) -> None:
    parity = {"agreement": 1.0, "relative_error": 1e-6, "n": 64.0}
    fp32 = OnnxModel("export/student.fp32.onnx", "f" * 64, "fp32", "any", 20, "c" * 64, 3.42, parity)
    write_json(run / "export/models.json", [asdict(fp32)])
    run.enter("export", "k" * 64, [run / "export/models.json"], 1.0)


def _quantize(run: Run) -> None:
    models = [
        OnnxModel("quantize/student.int8-cpu.onnx", "1" * 64, "int8", "cpu", 20, "f" * 64, 0.95),
        OnnxModel("quantize/student.int8-tensorrt.onnx", "2" * 64, "int8", "tensorrt", 20, "f" * 64, 0.96),
    ]
    write_json(run / "quantize/models.json", [asdict(model) for model in models])
    warning = "200 images, not 500, to calibrate"
    told = {"method": "minmax", "images": 200, "warnings": [warning], "sha256": ["0" * 64] * 200}
    write_json(run / "quantize/calibration.json", told)
    drop = Drop(0.3, -0.4, 1.0, 300, 1.2, 500)
    guarded = [Guarded("cpu", True, 1.0, drop, ("conv_stem",), Drop(1.4, 0.2, 2.6, 300, 3.1, 500)),
               Guarded("tensorrt", True, 1.0, drop)]  # fmt: skip
    write_json(run / "quantize/guard.json", [asdict(one) for one in guarded])
    kept = [Kept("cpu", "int8-cpu", "int8", "loses 0.3 points; 2.1 [2.0, 2.2] times as fast as fp32", (2.1, 2.0, 2.2)),
            Kept("tensorrt", "int8-tensorrt", "int8", "loses 0.3 points; its speed is measured there")]  # fmt: skip
    write_json(run / "keep/kept.json", [asdict(one) for one in kept])
    write_json(run / "engines/none.json", {"why": "no builder is installed"})


def _verify(run: Run) -> None:
    ort = "onnxruntime-cpu"
    rungs = (Rung("torch", "c" * 64, "fp32", "any", "torch", accuracy(0.915), 1.0),
             Rung("fp32", "f" * 64, "fp32", "any", ort, accuracy(0.915), 1.0),
             Rung("int8-cpu", "1" * 64, "int8", "cpu", ort, accuracy(0.912), 0.985),
             Rung("int8-tensorrt", "2" * 64, "int8", "tensorrt", ort, accuracy(0.91), 0.98, True))  # fmt: skip
    gates = (Gate("fp32 agreement", 1.0, ">= 0.999", True), Gate("fp32 relative error", 0.002, "<= 0.001", False))
    write_record(run / "verify/ladder.json", Ladder(rungs, gates, (3, 5)))
    images = cells(12)
    labels, other = np.arange(12) % 2, 1 - np.arange(12) % 2
    np.savez(run / "verify/mistakes.npz", images=images, labels=labels, predicted=other,
             confidence=np.linspace(0.99, 0.7, 12))  # fmt: skip
    np.savez(run / "verify/disagreements.npz", images=images[:4], labels=labels[:4], torch=labels[:4], int8=other[:4],
             artefact=np.array(["int8-cpu"] * 4))  # fmt: skip


def cells(count: int, px: int = 96) -> np.ndarray:
    """Pictures somewhat like solar cells: a grey gradient, bars, a dark spot; uint8 [count, px, px, 3]."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:px, :px]
    grey = 120 + 60 * np.sin(columns / px * 3) - 60 * (rows % 32 < 3)
    images = []
    for y, x in generator.integers(10, px - 10, (count, 2)):
        spot = 90 * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 60)
        images.append(np.clip(grey - spot + generator.normal(0, 6, (px, px)), 0, 255))
    return np.repeat(np.asarray(images, dtype=np.uint8)[..., None], 3, axis=3)


def _bench(run: Run) -> None:
    facts = {"machine": "x86_64", "cpu": "Some CPU", "threads": 1, "load_before": [0.1, 0.2]}
    noisy = "noisy: p50/min is 1.5; use a quieter machine or --set bench.seconds=10"
    for device, slower in (("local", 1.0), ("board", 10.0)):
        fp32 = BenchReport(device, "onnxruntime-cpu", "1.20.0", "fp32", "f" * 64, "fp32", ramp(2.0 * slower),
                           accuracy(0.92, 500), 1.0, facts)  # fmt: skip
        int8 = BenchReport(device, "onnxruntime-cpu", "1.20.0", "int8-cpu", "1" * 64, "int8", ramp(1.0 * slower),
                           accuracy(0.91, 500), 1.0, facts, (noisy,), (2.0, 1.9, 2.1))  # fmt: skip
        write_record(run / f"bench/{device}/onnxruntime-cpu-fp32.json", fp32)
        write_record(run / f"bench/{device}/onnxruntime-cpu-int8-cpu.json", int8)
    (run / "bundle").mkdir()
    (run / "bundle/SHA256SUMS").write_text(f"{'1' * 64}  student.int8-cpu.onnx\n", encoding="utf-8")
