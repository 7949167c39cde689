"""A synthetic run directory with round figures, complete or stopped after a step, for the report's tests."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from edgedistill.measurements import BenchReport, Latency
from edgedistill.records import (
    Accuracy,
    Checkpoint,
    Cost,
    Drop,
    Gate,
    Guarded,
    Kept,
    Ladder,
    MetricScore,
    OnnxModel,
    Rule,
    Rung,
    SourceWeight,
    SourceWeights,
    StudentSpec,
    Unknown,
)
from edgedistill.run import artifacts
from edgedistill.run.artifacts import save_arrays
from edgedistill.run.directory import Run
from edgedistill.run.files import write_json, write_record

STEPS = ("weigh", "search", "distill", "export", "quantize", "verify", "bench")
CLASSES = ("functional", "defective")
ANSWERS = 100  # by which the report shows when the student says "unknown"
SPEC = StudentSpec(
    family="resnet",
    options={"width": 0.5, "depth": 2},
    input_px=96,
    num_classes=2,
    cost=Cost(macs_m=123.4, params_m=0.85, weights_mb=3.4, activation_mb=2.5, int8_risks=("hard-swish",)),
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
)


def accuracy(balanced: float, n: int = 788) -> Accuracy:
    """`balanced` with an interval of two points down and one up, and a top-1 that differs clearly."""
    return Accuracy(
        n=n, top1=0.5, top1_ci95=(0.4, 0.6), balanced=balanced, balanced_ci95=(balanced - 0.02, balanced + 0.01)
    )


def ramp(low_ms: float) -> Latency:
    """101 samples spaced evenly from low to twice low: percentile q is low * (1 + q / 100)."""
    return Latency(
        samples_ms=tuple(low_ms * (1 + index / 100) for index in range(101)),
        warmup_ms=(9.0,),
        window="session.run, host to host",
    )


def make_run(root: Path, upto: str = "bench", classes: tuple[str, ...] = CLASSES, name: str = "demo") -> Run:
    """A run directory in which every step up to and with `upto` has finished ("" for none)."""
    run = Run(path=root / f"{name}-0a1b2c3d")
    writers = (_weigh, _search, _distill, _export, _quantize, _verify, _bench)
    _basics(run, name, classes)
    for step, write in zip(STEPS, writers, strict=True):
        if upto not in STEPS[STEPS.index(step) :]:
            break
        write(run)
    return run


def _basics(run: Run, name: str, classes: tuple[str, ...]) -> None:
    recipe = {
        "name": name,
        "about": "Solar cells, two classes.",
        "data": {"kind": "elpv", "score": "balanced"},
        "sources": [{"name": "lite0", "kind": "timm"}],
        "student": {"budget": {"macs_m": 150.0}},
        "bench": {"devices": ["local", "board"]},
    }
    write_json(run / "recipe.lock.json", {"base": ".", "recipe": recipe})
    write_json(
        run / "env.json",
        {
            "python": "3.12.3",
            "platform": "Linux",
            "cpu": "Some CPU",
            "packages": {"numpy": "2.0.0", "torch": "2.8.0"},
            "commit": "abc1234",
            "started": "2026-01-02T03:04:05Z",
            "command": "edgedistill run recipes/demo.yaml",
        },
    )
    write_json(
        run / "data.json",
        {
            "kind": "elpv",
            "classes": list(classes),
            "licence": "CC BY-NC-SA 4.0",
            "labeled": 40,
            "val": 10,
            "unlabeled": 1786,
            "test": 788,
            "corrupt": ["a.png", "b.png"],
            "score": "balanced",
        },
    )


def _weigh(run: Run) -> None:
    def source(name: str, weight: float, probe: float, parc: float) -> SourceWeight:
        scores = {
            "probe": MetricScore(score=probe, low=probe - 0.05, high=probe + 0.04, ceiling=1.0),
            "parc": MetricScore(score=parc, low=parc - 3, high=parc + 3, ceiling=50.0),
        }
        return SourceWeight(name=name, weight=weight, scores=scores)

    sources = (source("lite1", 0.2, 0.7, 31.0), source("lite0", 0.7, 0.8, 22.5), source("mnist-net", 0.1, 0.55, -4.0))
    disagreement = "probe and parc disagree about the best source: lite0 by probe, lite1 by parc"
    write_record(
        run / "weigh/weights.json",
        SourceWeights(metric="probe", probe_images=50, power=12.0, sources=sources, disagreement=disagreement),
    )


def _search(run: Run) -> None:
    write_record(run / "search/student.json", SPEC)
    rows = [
        (0, "COMPLETE", 60.0, 0.81),
        (1, "COMPLETE", 90.0, 0.84),
        (2, "COMPLETE", 123.4, 0.88),
        (3, "PRUNED", 110.0, ""),
        (4, "FAIL", 190.0, ""),
        (5, "COMPLETE", 140.0, 0.87),
    ]
    with (run / "search/trials.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(
            ("number", "state", "family", "options", "input_px", "macs_m", "params_m", "weights_mb", "value", "seconds")
        )
        table.writerows(
            (number, state, "resnet", '{"width": 0.5}', 96, macs, 0.85, 3.4, score, 12.5)
            for number, state, macs, score in rows
        )


def _distill(run: Run) -> None:
    checkpoint = Checkpoint(
        path="distill/student.safetensors",
        sha256="c" * 64,
        spec=SPEC,
        classes=CLASSES,
        val=accuracy(0.92, 10),
        test=accuracy(0.915),
        method="weighted",
        steps=1000,
        train_seconds=84.2,
    )
    write_json(run / "distill/result.json", {**asdict(checkpoint), "top1": 0.5, "n_test": 788, "ci95": [0.4, 0.6]})
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
    fp32 = OnnxModel(
        path="export/student.fp32.onnx",
        sha256="f" * 64,
        precision="fp32",
        target="any",
        opset=20,
        parent_sha256="c" * 64,
        size_mb=3.42,
        parity=parity,
    )
    write_json(run / "export/models.json", [asdict(fp32)])
    run.record_step("export", "k" * 64, [run / "export/models.json"], 1.0)


def _quantize(run: Run) -> None:
    models = [
        OnnxModel(
            path="quantize/student.int8-cpu.onnx",
            sha256="1" * 64,
            precision="int8",
            target="cpu",
            opset=20,
            parent_sha256="f" * 64,
            size_mb=0.95,
        ),
        OnnxModel(
            path="quantize/student.int8-tensorrt.onnx",
            sha256="2" * 64,
            precision="int8",
            target="tensorrt",
            opset=20,
            parent_sha256="f" * 64,
            size_mb=0.96,
        ),
    ]
    write_json(run / "quantize/models.json", [asdict(model) for model in models])
    warning = "200 images, not 500, to calibrate"
    calibration = {"method": "minmax", "images": 200, "warnings": [warning], "sha256": ["0" * 64] * 200}
    write_json(run / "quantize/calibration.json", calibration)
    drop = Drop(points=0.3, low=-0.4, high=1.0, n=300, differ=1.2, images=500)
    guarded = [
        Guarded(
            target="cpu",
            holds=True,
            max_drop=1.0,
            drop=drop,
            floats=("conv_stem",),
            before=Drop(points=1.4, low=0.2, high=2.6, n=300, differ=3.1, images=500),
        ),
        Guarded(target="tensorrt", holds=True, max_drop=1.0, drop=drop),
    ]
    write_json(run / "quantize/guard.json", [asdict(verdict) for verdict in guarded])
    kept = [
        Kept(
            target="cpu",
            artefact="int8-cpu",
            precision="int8",
            why="loses 0.3 points; 2.1 [2.0, 2.2] times as fast as fp32",
            ratio=(2.1, 2.0, 2.2),
        ),
        Kept(
            target="tensorrt",
            artefact="int8-tensorrt",
            precision="int8",
            why="loses 0.3 points; its speed is measured there",
        ),
    ]
    write_json(run / "keep/kept.json", [asdict(choice) for choice in kept])
    write_json(run / "engines/none.json", {"why": "no builder is installed"})


def rung(name: str, digit: str, *, backend: str, top1: float, agreement: float, simulated: bool = False) -> Rung:
    """A rung of the ladder; precision and target follow from the graph's name, the hash is one digit."""
    precision, _, target = name.partition("-")
    return Rung(
        artefact=name,
        sha256=digit * 64,
        precision="fp32" if name == "torch" else precision,
        target=target or "any",
        backend=backend,
        accuracy=accuracy(top1),
        agreement_with_torch=agreement,
        simulated=simulated,
    )


def with_answers(run: Run, threshold: float = 0.4, coverage: float | None = 0.9, accuracy: float | None = None) -> Run:
    """Confidences of 1 to 100 %: the surest 80 are right, all others wrong."""
    rule = Rule(temperature=1.5, threshold=threshold)
    confidence_N = np.arange(ANSWERS, 0, -1) / ANSWERS
    labels_N = np.zeros(ANSWERS, dtype=np.int64)
    predicted_N = (np.arange(ANSWERS) >= 80).astype(np.int64)
    record = Unknown(
        coverage=coverage,
        accuracy=accuracy,
        labels=10,
        matched=0,
        rules={"fp32": rule, "int8-cpu": rule},
        scored=rule,
        answered=0.61,
        expected_on=ANSWERS,
        shares=(0.7, 0.3),
    )
    artifacts.UNKNOWN.write(run, record)
    save_arrays(
        artifacts.UNKNOWN_ANSWERS.path_in(run),
        labels=labels_N,
        predicted=predicted_N,
        confidence=confidence_N,
        softmax=np.full(ANSWERS, 0.99),
    )
    return run


def _verify(run: Run) -> None:
    ort = "onnxruntime-cpu"
    rungs = (
        rung("torch", "c", backend="torch", top1=0.915, agreement=1.0),
        rung("fp32", "f", backend=ort, top1=0.915, agreement=1.0),
        rung("int8-cpu", "1", backend=ort, top1=0.912, agreement=0.985),
        rung("int8-tensorrt", "2", backend=ort, top1=0.91, agreement=0.98, simulated=True),
    )
    gates = (
        Gate(name="fp32 agreement", value=1.0, bound=">= 0.999", passed=True),
        Gate(name="fp32 relative error", value=0.002, bound="<= 0.001", passed=False),
    )
    write_record(run / "verify/ladder.json", Ladder(rungs=rungs, gates=gates, worst=(3, 5)))
    np.savez(run / "verify/predictions.npz", **predictions())
    images = cells(12)
    labels, wrong_labels = np.arange(12) % 2, 1 - np.arange(12) % 2
    np.savez(
        run / "verify/mistakes.npz",
        images=images,
        labels=labels,
        predicted=wrong_labels,
        confidence=np.linspace(0.99, 0.7, 12),
    )
    np.savez(
        run / "verify/disagreements.npz",
        images=images[:4],
        labels=labels[:4],
        torch=labels[:4],
        int8=wrong_labels[:4],
        artefact=np.array(["int8-cpu"] * 4),
    )
    with_answers(run)
    _bundle(run)


def _bundle(run: Run) -> None:
    (run / "bundle").mkdir()
    inputs = (
        ("data", "elpv", "CC BY-NC-SA 4.0", "no"),
        ("source", "lite0", "not stated", "not stated"),
        ("source", "lite1", "apache-2.0", "yes"),
    )
    licences = [dict(zip(("what", "name", "licence", "commercial"), entry, strict=True)) for entry in inputs]
    write_json(run / "bundle/bundle.json", {"licences": licences, "commercial": "no"})
    (run / "bundle/SHA256SUMS").write_text(f"{'1' * 64}  student.int8-cpu.onnx\n", encoding="utf-8")


def predictions() -> dict[str, np.ndarray]:
    """500 of 788 test images are of class 0. int8-cpu has 460 and 260 right, fp32 470 and 258, torch all."""
    labels = np.repeat([0, 1], [500, 288])
    return {
        "labels": labels,
        "torch": labels,
        "fp32": np.repeat([0, 1, 0, 1], [470, 30, 30, 258]),
        "int8-cpu": np.repeat([0, 1, 0, 1], [460, 40, 28, 260]),
    }


def cells(count: int, px: int = 96) -> np.ndarray:
    """Pictures resembling solar cells: a gray gradient, bars, a dark spot; uint8 [count, px, px, 3]."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:px, :px]
    gray = 120 + 60 * np.sin(columns / px * 3) - 60 * (rows % 32 < 3)
    images = []
    for y, x in generator.integers(10, px - 10, (count, 2)):
        spot = 90 * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 60)
        images.append(np.clip(gray - spot + generator.normal(0, 6, (px, px)), 0, 255))
    return np.repeat(np.asarray(images, dtype=np.uint8)[..., None], 3, axis=3)


def _bench(run: Run) -> None:
    facts = {"machine": "x86_64", "cpu": "Some CPU", "threads": 1, "load_before": [0.1, 0.2]}
    noisy = "noisy: p50/min is 1.5; use a quieter machine or --set bench.seconds=10"
    for device, slowdown in (("local", 1.0), ("board", 10.0)):
        fp32 = BenchReport(
            device=device,
            backend="onnxruntime-cpu",
            backend_version="1.20.0",
            artefact="fp32",
            sha256="f" * 64,
            precision="fp32",
            latency=ramp(2.0 * slowdown),
            accuracy=accuracy(0.92, 500),
            agreement_with_host=1.0,
            facts=facts,
        )
        int8 = BenchReport(
            device=device,
            backend="onnxruntime-cpu",
            backend_version="1.20.0",
            artefact="int8-cpu",
            sha256="1" * 64,
            precision="int8",
            latency=ramp(1.0 * slowdown),
            accuracy=accuracy(0.91, 500),
            agreement_with_host=1.0,
            facts=facts,
            warnings=(noisy,),
            ratio_to_fp32=(2.0, 1.9, 2.1),
        )
        write_record(run / f"bench/{device}/onnxruntime-cpu-fp32.json", fp32)
        write_record(run / f"bench/{device}/onnxruntime-cpu-int8-cpu.json", int8)
