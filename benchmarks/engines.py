"""Engines and precisions on this machine: every pair's time against ONNX Runtime's, and what would be chosen.

    python -m benchmarks.engines --packs DIR [--students NAME ...] [--threads 1 2]

A line is a student with a number of threads. Its fp32 graph and the int8 graph for CPUs are those of `edgedistill
export --int8` (students of benchmarks.quantize), the graph for ncnn that of `export: {ncnn: true}`. All engines that
are installed here compete as in `edgedistill bench` (devices/choice.py): timed in turn by one program, the fastest
confirmed against the simplest in fresh processes. A student that has a line with these threads is not run again.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lines import append, read, run_program
from benchmarks.quantize import students
from edgedistill.agent import backends
from edgedistill.console import say
from edgedistill.devices import choice
from edgedistill.devices.bundle import fitting, write_bundle
from edgedistill.export import ncnn
from edgedistill.export.graphs import record
from edgedistill.export.guard import Witnesses
from edgedistill.export.infer import predict_onnx
from edgedistill.export.quantize import quantize
from edgedistill.measurements import Device
from edgedistill.recipe.schema import Bench, Export, Quantize
from edgedistill.records import Guarded, OnnxModel
from edgedistill.run.files import read_record

KIND = "engines"
ENGINES = ("onnxruntime-cpu", "openvino", "openvino-reduced", "ncnn", "ncnn-half", "ncnn-bf16")
IMAGES, CALIBRATION = 500, 500
MIN_SPEEDUP, MAX_DROP = 1.05, 1.0
Shipped = list[tuple[Path, OnnxModel]]


def graphs(student: Path, out: Path) -> tuple[Shipped, bool]:
    """The fp32 graph, its int8 graph for CPUs and its graph for ncnn, and whether int8 holds the accuracy bound.

    Args:
        student: a student's folder, as students.prepare fills it.
        out: folder for the graphs that are made.
    """
    path = student / "student.fp32.onnx"
    fp32 = record(path, "fp32", "any", opset=0)
    images_NHWC, val = np.load(student / "calibration.npy"), np.load(student / "val.npy")
    (int8,) = quantize(
        path,
        fp32,
        images_NHWC=images_NHWC[:CALIBRATION],
        settings=Quantize(targets=("cpu",)),
        folder=out,
        witnesses=Witnesses(images_NHWC=val, labels_N=np.load(student / "val_labels.npy")),
    )
    guarded = out / "guard.json"
    holds = not guarded.is_file() or all(guard.holds for guard in read_record(guarded, tuple[Guarded, ...]))
    shipped = [(path, fp32), (out / int8.path, int8)]
    if ncnn.version():
        model = ncnn.convert(path, fp32, images_NHWC=images_NHWC[:32], folder=out, settings=Export(min_agreement=0.9))
        shipped.append((out / model.path, model))
    return shipped, holds


def pairs(shipped: Shipped, holds: bool) -> list[choice.Pair]:
    """Every installed engine with each of its graphs, ONNX Runtime with int8 (fp32 if int8 does not hold) first."""
    versions = backends.available()
    here = [name for name in ENGINES if versions[name][0].isdigit()]
    competing = []
    for name in here:
        models = [model for _, model in shipped if holds or model.precision != "int8"]
        competing += [choice.Pair(backend=name, model=model) for model in fitting(name, models)]
    simplest = ("onnxruntime-cpu", "int8" if holds else "fp32")
    return sorted(competing, key=lambda pair: (pair.backend, pair.model.precision) != simplest)


def measure(name: str, student: Path, threads: int, settings: Bench) -> dict[str, Any]:
    """One line: all pairs of a student with a number of threads."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shipped, holds = graphs(student, folder)
        images_NHWC, labels_N = np.load(student / "test.npy")[:IMAGES], np.load(student / "test_labels.npy")[:IMAGES]
        host = {model.name: predict_onnx(path, images_NHWC).argmax(1) for path, model in shipped[:2]}
        if len(shipped) > 2:
            host[shipped[2][1].name] = host["fp32"]
        px = images_NHWC.shape[1]
        about = {"classes": [], "input_px": px, "store_px": px, "fit": "crop"}
        write_bundle(
            folder / "bundle",
            [(path, replace(model, path=path.name)) for path, model in shipped],
            description=about,
            images_NHWC=images_NHWC,
            labels_N=labels_N,
            host_predictions=host,
        )
        competing = pairs([(path, replace(model, path=path.name)) for path, model in shipped], holds)
        settings = settings.model_copy(update={"threads": threads})
        chosen = choice.choose(
            folder / "bundle",
            Device(name="local"),
            competing,
            settings,
            min_speedup=MIN_SPEEDUP,
            max_drop=MAX_DROP,
        )
    return {"student": name, "int8_holds": holds, "versions": backends.available(), **asdict(chosen)}


def table(lines: Sequence[dict[str, Any]] | None = None) -> str:
    """The Markdown tables of the newest line of each student and number of threads; a sentence where there is none."""
    newest = {(line["student"], line["threads"]): line for line in (read(KIND) if lines is None else lines)}
    if not newest:
        return "Not measured yet: `python -m benchmarks.engines` on a machine that does nothing else."
    parts = []
    for threads in sorted({threads for _, threads in newest}):
        shown = {name: line for (name, count), line in newest.items() if count == threads}
        first = next(iter(shown.values()))
        flags = f" ({', '.join(first['cpu_flags'])})" if first["cpu_flags"] else ""
        parts.append(f"{first['cpu']}{flags}, {threads} {'thread' if threads == 1 else 'threads'}:\n")
        parts.append("| student | engine | graph | p50 ms | times as fast as the simplest | points lost |")
        parts.append("| --- | --- | --- | ---: | ---: | ---: |")
        parts += [row for name, line in shown.items() for row in _rows(name, line)]
        parts += ["", *(f"- {name}: {line['why']}" for name, line in shown.items()), ""]
    return "\n".join(parts).rstrip()


def _rows(name: str, line: dict[str, Any]) -> Iterator[str]:
    for row in line["rows"]:
        is_chosen = (row["backend"], row["artefact"]) == (line["backend"], line["artefact"])
        engine = f"**{row['backend']}**" if is_chosen else row["backend"]
        speed = "the simplest" if row["ratio"] is None else "{:.2f} [{:.2f}, {:.2f}]".format(*row["ratio"])
        lost = "-" if row["loss"] is None else "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * part for part in row["loss"]))
        time_ms = f"{row['p50_ms']:.2f}" if row["same"] else "other answers"
        yield f"| {name} | {engine} | {row['artefact']} | {time_ms} | {speed if row['same'] else '-'} | {lost} |"


def main(argv: list[str] | None = None) -> int:
    """Measure what has no line yet."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__.splitlines()[0])
    parser.add_argument("--packs", type=Path, required=True, help="directory of packs: NAME/train.parquet")
    parser.add_argument("--runs", type=Path, default=Path("runs/quantize"), help="directory of the students")
    parser.add_argument("--students", nargs="+", choices=students.STUDENTS, default=students.STUDENTS)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rehearse", action="store_true", help="print the table and append no line")
    options = parser.parse_args(argv)
    sizes = {"processes": options.processes, "samples": options.samples, "seconds": options.seconds}
    settings = Bench.model_validate({**sizes, "accuracy_images": IMAGES})
    known, rehearsed = {(line["student"], line["threads"]) for line in read(KIND)}, []
    for name in options.students:
        for threads in options.threads:
            if (name, threads) in known and not options.rehearse:
                continue
            say(f"{name}, {threads} threads")
            student = students.prepare(name, packs=options.packs, runs=options.runs)
            line = measure(name, student, threads, settings)
            rehearsed.append(line)
            if not options.rehearse:
                append(KIND, line)
    print(table(rehearsed))
    return 0


if __name__ == "__main__":
    run_program(main)
