"""Measure a quantized classifier, or the bare ONNX file, on a device. N images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from edgedistill.agent.metrics import percentiles
from edgedistill.console import aligned, say
from edgedistill.data.images import size_text
from edgedistill.devices import bench as devices
from edgedistill.devices import bundle, inventory
from edgedistill.errors import InputError
from edgedistill.export import graphs
from edgedistill.export.infer import predict_onnx
from edgedistill.imported import student
from edgedistill.imported.quantize import BUNDLE, FP32, RECORD, default_folder, plain_size
from edgedistill.imported.student import Preprocessing
from edgedistill.measurements import BenchReport
from edgedistill.recipe.schema import Bench
from edgedistill.records import OnnxModel
from edgedistill.run import interrupts
from edgedistill.run.files import read_json
from edgedistill.sources.graphs import sha256_graph

BENCH = "bench"
NOISE_IMAGES = 16  # for a bare graph, whose latency does not depend on what the images show
QUANTIZE = "run `edgedistill quantize` again"


def is_imported(path: Path) -> bool:
    """Whether a path is an ONNX file, or a folder that `quantize` wrote."""
    return path.suffix.lower() == ".onnx" or (path / RECORD).is_file()


def folder_of(path: Path) -> Path | None:
    """The folder that `quantize` wrote for a path, which may be the folder itself; None if there is none."""
    if (path / RECORD).is_file():
        return path
    folder = default_folder(path)
    written = (folder / RECORD).is_file() and path.is_file()
    return folder if written and read(folder)["sha256"] == sha256_graph(path.resolve()) else None


def read(folder: Path) -> dict[str, Any]:
    """The record of a quantization.

    Raises:
        InputError: there is none, or it is broken.
    """
    record = read_json(folder / RECORD, QUANTIZE)
    if not isinstance(record, dict) or not {"sha256", "models", "ladder", "kept", "default"} <= set(record):
        raise InputError(f"{folder / RECORD}: is not the record of a quantization", QUANTIZE)
    return record


def models_of(folder: Path) -> list[OnnxModel]:
    """The graphs of a quantization.

    Raises:
        InputError: the record is broken.
    """
    try:
        return TypeAdapter(list[OnnxModel]).validate_python(read(folder)["models"])
    except ValidationError:
        raise InputError(f"{folder / RECORD}: is not the record of a quantization", QUANTIZE) from None


def settings(stated: Mapping[str, Any]) -> Bench:
    """The settings of a measurement: a recipe's `bench`.

    Raises:
        InputError: a key or a value is wrong.
    """
    try:
        return Bench.model_validate(stated)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"bench.{'.'.join(map(str, first['loc']))}: {first['msg']}", "see docs/recipe.md") from None


def bench(path: Path, settings: Bench, base: Path = Path()) -> list[BenchReport]:
    """Measure on the devices and backends of the settings; the reports are written, too, if there is a folder.

    Args:
        path: an ONNX file, or the folder that `quantize` wrote for it. Of a file without one the float graph alone is
            measured, on noise.
        settings: devices, backends, inventory and what else a recipe's `bench` has.
        base: the folder in which the inventory is looked for.

    Raises:
        InputError: the model, a device or a backend cannot be used.
        EdgeDistillError: a device cannot be reached, or a measurement failed.
    """
    folder = folder_of(path)
    if folder is not None:
        return _measure(folder / BUNDLE, models_of(folder), settings=settings, base=base, out=folder / BENCH)
    say(f"  {path}: was not quantized here, so its float graph alone is measured, on noise")
    with interrupts.temporary_folder() as temporary:
        model = _noise_bundle(path, temporary)
        return _measure(temporary / BUNDLE, [model], settings=settings, base=base, out=temporary / BENCH)


def _measure(shipped: Path, models: Sequence[OnnxModel], settings: Bench, base: Path, out: Path) -> list[BenchReport]:
    devices_by_name, reports = inventory.load(inventory.path_for(settings.inventory, base)), []
    for name in dict.fromkeys(settings.devices):
        device = inventory.find(devices_by_name, name)
        for backend in inventory.backends_for(device, tuple(dict.fromkeys(settings.backends))):
            chosen = bundle.fitting(backend, models)
            reports += devices.bench(shipped, device, backend=backend, settings=settings, models=chosen, out=out)
    return reports


def _noise_bundle(file: Path, folder: Path) -> OnnxModel:
    """A bundle of the float graph with random images, and the graph's record."""
    (imported, model), path = student.adopt(file, Preprocessing()), folder / FP32
    px = plain_size(imported.size)
    images_NHWC = np.random.default_rng(0).integers(0, 256, (NOISE_IMAGES, *imported.size, 3), dtype=np.uint8)
    student.check(imported, model, Preprocessing(), images_NHWC)
    graphs.write(model, path)
    predicted_N = predict_onnx(path, images_NHWC).argmax(axis=1)
    record = graphs.record(path, "fp32", "any", opset=graphs.opset(model), parent_sha256=imported.sha256)
    n_classes = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    description = {"classes": [str(index) for index in range(n_classes)], "input_px": px, "store_px": px, "fit": "crop"}
    bundle.write_bundle(
        folder / BUNDLE,
        [(path, record)],
        description=description,
        images_NHWC=images_NHWC,
        labels_N=np.full(NOISE_IMAGES, -1),
        host_predictions={record.name: predicted_N},
    )
    return record


def quantized_text(folder: Path) -> str:
    """What came out of a quantization, for a terminal."""
    record = read(folder)
    images = record["images"]
    by_labels = record["compared_by"] == "labels"
    number = images["labeled"] if by_labels else images["compared"]
    rows: list[tuple[str, ...]] = [("graph", "agreement with fp32", *(("accuracy",) if by_labels else ()), "size MB")]
    for rung, model in zip(record["ladder"], record["models"], strict=True):
        share = (f"{rung['accuracy']['top1']:.1%}",) if by_labels else ()
        rows.append((rung["artefact"], f"{rung['agreement_with_torch']:.1%}", *share, f"{model['size_mb']:.1f}"))
    lines = [
        f"{record['model']}: {len(record['classes'])} classes at {size_text(record['input_px'])}",
        f"calibrated on {images['calibration']} pictures, compared on {number} others"
        + (" with a label" if by_labels else ", by agreement with the float graph"),
        *aligned(rows),
        *(f"{choice['target']}: {choice['artefact']} is kept: {choice['why']}" for choice in record["kept"]),
        f"bundle: {folder / BUNDLE}",
    ]
    return "\n".join(lines)


def bench_text(reports: Sequence[BenchReport]) -> str:
    """The measurements, for a terminal."""
    header = ("device", "backend", "graph", "p50 ms", "p90 ms", "p99 ms", "times as fast as fp32", "verdict")
    rows: list[tuple[str, ...]] = [header]
    for report in reports:
        times = percentiles(report.latency.samples_ms) if report.latency.samples_ms else {}
        cells = (f"{times[name]:.2f}" if name in times else "-" for name in ("p50", "p90", "p99"))
        ratio = report.ratio_to_fp32
        times_as_fast = f"{ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]" if ratio else "-"
        verdict = report.verdict.partition(",")[0] or "-"
        rows.append((report.device, report.backend, report.title, *cells, times_as_fast, verdict))
    notes = [
        f"{report.device}: {report.title}: {text}"
        for report in reports
        for text in (*([report.verdict] if "," in report.verdict else []), *report.warnings)
    ]
    return "\n".join([*aligned(rows), *dict.fromkeys(notes)])
