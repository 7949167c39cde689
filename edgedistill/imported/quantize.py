"""Quantize a classifier of somebody else: calibration, both guards, the ladder and a bundle, in one folder.

N images, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from edgedistill.agent import metrics
from edgedistill.console import say
from edgedistill.devices import bundle
from edgedistill.errors import InputError
from edgedistill.export import graphs
from edgedistill.export import quantize as int8
from edgedistill.export.guard import Witnesses
from edgedistill.export.infer import predict_onnx
from edgedistill.export.precision import TIMING_BACKENDS, Ratio, choose_precision, higher_precision, speed_ratio
from edgedistill.export.verify import accuracy
from edgedistill.imported import images, student
from edgedistill.imported.graph import Imported, Size
from edgedistill.imported.images import Pictures
from edgedistill.imported.student import Preprocessing
from edgedistill.measurements import HOST_TO_HOST, Device
from edgedistill.recipe.schema import Quantize
from edgedistill.records import Drop, Guarded, Kept, OnnxModel, Rung, Target
from edgedistill.run import artifacts, interrupts
from edgedistill.run.files import read_json, usable_folder, write_json
from edgedistill.steps import keep, timing

RECORD, BUNDLE = "quantized.json", "bundle"
FP32 = "student.fp32.onnx"
LEAST_LABELS = 20  # with fewer, graphs are compared with the float graph's own labels
PARITY_IMAGES, TIMED_IMAGES, SHIPPED_IMAGES = 16, 16, 500


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the steps of one quantization share."""

    imported: Imported
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    pictures: Pictures
    settings: Quantize
    folder: Path


def default_folder(file: Path) -> Path:
    """The output folder of a model: runs/quantize-<its name>."""
    return Path("runs") / f"quantize-{file.stem}"


def folder_of(file: Path, out: Path | None, sha256: str) -> Path:
    """The output folder: `out`, else the default one.

    Raises:
        InputError: the default one has the graphs of another model; or the folder cannot be written.
    """
    folder = usable_folder(out or default_folder(file))
    if out is None and (other := _other_model(folder / RECORD, file, sha256)):
        raise InputError(f"{folder}: has the graphs of {other}, and would lose them", "name another folder by --out")
    return folder


def _other_model(record: Path, file: Path, sha256: str) -> str:
    """The file of another model that a folder was finished for; "" if it was for this file, or is not finished."""
    try:
        finished = read_json(record)
    except InputError:
        return ""
    if not isinstance(finished, dict) or finished.get("sha256") == sha256:
        return ""
    other = str(finished.get("model", "another model"))
    # the same file with other content is quantized anew
    return "" if Path(other).resolve() == file.resolve() else other


def quantize(
    file: Path,
    folder_of_images: Path,
    *,
    labels: Path | None = None,
    out: Path | None = None,
    preprocessing: Preprocessing | None = None,
    settings: Quantize | None = None,
    classes: Sequence[str] = (),
    output: str | None = None,
    px: int | Size | None = None,
) -> Path:
    """Quantize a classifier, and return the folder that has the graphs, the record and the bundle.

    Args:
        file: its ONNX file.
        folder_of_images: pictures like those that it will see.
        labels: a labels.csv; without it graphs are compared with the float graph's own labels.
        out: the folder; by default `default_folder`.
        preprocessing: what it does with a picture; of a graph that takes uint8 only `channels` and `fit` count.
        settings: of calibration and guards.
        classes: names, in the order of the outputs.
        output: name of the output with class scores.
        px: side of its input, or height and width, where it takes any size.

    Raises:
        InputError: the model is refused, the pictures or labels do not fit, or the default folder has another model.
        GateError: the graph with its preprocessing inside answers otherwise than the file.
    """
    preprocessing, settings = preprocessing or Preprocessing(), settings or Quantize()
    imported, model = student.adopt(file, preprocessing, output, px)
    n_classes = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    names = images.class_names(imported.metadata, n_classes, classes, labels)
    folder = folder_of(file, out, imported.sha256)
    pictures = images.read(
        folder_of_images,
        labels,
        names,
        px=imported.size,
        fit=preprocessing.fit,
        calibration_images=settings.calibration_images,
    )
    if not imported.uint8:
        _say_preprocessing(preprocessing)
    settings = settings.model_copy(
        update={"calibration_images": min(settings.calibration_images, len(pictures.calibration_NHWC))}
    )
    work = Work(
        imported=imported,
        preprocessing=preprocessing,
        classes=names,
        pictures=pictures,
        settings=settings,
        folder=folder,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).unlink(missing_ok=True)  # last to be written: without it the folder is not complete
    _run(work, model)
    return folder


def _say_preprocessing(preprocessing: Preprocessing) -> None:
    for name in ("mean", "std", "range"):
        default = "" if name in preprocessing.model_fields_set else " (the default)"
        say(f"  {name}: {getattr(preprocessing, name)}{default}")


def _run(work: Work, model: ModelProto) -> None:
    """Write the float graphs, the int8 graphs, the bundle and the record."""
    from edgedistill.export.onnx import half

    folder, pictures = work.folder, work.pictures
    for note in work.imported.notes:
        say(f"  {note}")
    parity = student.check(work.imported, model, work.preprocessing, pictures.compared_NHWC[:PARITY_IMAGES])
    graphs.write(model, folder / FP32)
    opset, parent = graphs.opset(model), work.imported.sha256
    fp32 = graphs.record(folder / FP32, "fp32", "any", opset=opset, parent_sha256=parent, parity=parity)
    fp16 = half(folder / FP32, fp32, pictures.calibration_NHWC[:PARITY_IMAGES])
    floats = [fp32, *([fp16] if fp16 else [])]
    float_NC = predict_onnx(folder / FP32, pictures.compared_NHWC)
    by_labels = pictures.labeled >= LEAST_LABELS
    witness_labels_N = pictures.labels_N if by_labels else float_NC.argmax(axis=1)
    quantized = int8.quantize(
        folder / FP32,
        fp32,
        images_NHWC=pictures.calibration_NHWC,
        settings=work.settings,
        folder=folder,
        witnesses=Witnesses(images_NHWC=pictures.compared_NHWC, labels_N=witness_labels_N),
        half=fp16 is not None,
        time=lambda graph, target: timing.graph_ratio(graph, floats, target, partial(_ratio, work)),
    )
    models = [*floats, *quantized]
    guarded = _guarded(folder, agreement=not by_labels)
    kept = [_keep(work, models, target, guarded[target]) for target in work.settings.targets]
    for choice in kept:
        say(f"  {choice.target}: {choice.artefact}: {choice.why}")
    predictions = {
        name: predict_onnx(folder / entry.path, pictures.compared_NHWC, simulate=entry.target == "tensorrt").argmax(1)
        for name, entry in ((entry.name, entry) for entry in models)
    }
    default = next((choice.artefact for choice in kept if choice.target == "cpu"), "fp32")
    _bundle(work, models, predictions, default)
    ladder = rungs(work, models, predictions, by_labels)
    _record(work, models, ladder=ladder, kept=kept, guarded=guarded, default=default)


def rungs(
    work: Work, models: Sequence[OnnxModel], predictions: Mapping[str, np.ndarray], by_labels: bool
) -> list[Rung]:
    """Every graph on the compared images: accuracy by the labels, and agreement with the float graph.

    Without labels its own labels take their place, so that accuracy is agreement.
    """
    labels_N = work.pictures.labels_N if by_labels else predictions["fp32"]
    rows = labels_N >= 0
    return [
        Rung(
            artefact=entry.name,
            sha256=entry.sha256,
            precision=entry.precision,
            target=entry.target,
            backend="onnxruntime-cpu",
            accuracy=accuracy(np.eye(len(work.classes))[predictions[entry.name][rows]], labels_N[rows]),
            agreement_with_torch=metrics.agreement(predictions["fp32"], predictions[entry.name]),
            simulated=entry.target == "tensorrt",
        )
        for entry in models
    ]


def _guarded(folder: Path, *, agreement: bool) -> dict[Target, Guarded]:
    """The accuracy guard's records by target, which say whether labels or agreement were compared."""
    records = artifacts.GUARD.load(folder / artifacts.GUARD.name)
    return {
        entry.target: replace(
            entry, drop=_of_agreement(entry.drop), before=entry.before and _of_agreement(entry.before)
        )
        if agreement
        else entry
        for entry in records
    }


def _of_agreement(drop: Drop) -> Drop:
    return replace(drop, agreement=True, low=max(0.0, drop.low))  # by its own labels the float graph is never wrong


def _keep(work: Work, models: Sequence[OnnxModel], target: Target, guarded: Guarded) -> Kept:
    """The speed guard: int8 is kept if it is measurably faster on this machine, where it runs here."""
    int8_model = next(entry for entry in models if entry.target == target and entry.precision == "int8")
    ratio, untimed, backend = None, keep.UNTIMED, TIMING_BACKENDS[target]
    if guarded.holds and backend in timing.runtimes():
        ratio, untimed = keep.speed(partial(_ratio, work), [higher_precision(target, models), int8_model], backend)
    return choose_precision(
        target, models, guarded=guarded, min_speedup=work.settings.min_speedup, ratio=ratio, untimed=untimed
    )


def _ratio(work: Work, pair: Sequence[OnnxModel], backend: str) -> Ratio | None:
    """The first graph's time over the second's, measured in turn on this machine."""
    shown_NHWC = work.pictures.calibration_NHWC[:TIMED_IMAGES]
    say(f"  timing {' and '.join(entry.name for entry in pair)} on this machine")
    with interrupts.temporary_folder() as folder:
        reports = timing.measure(
            folder,
            [(work.folder / entry.path, entry) for entry in pair],
            Device(name="local"),
            backend=backend,
            settings={**timing.PAIR, "modes": [HOST_TO_HOST], "accuracy_images": len(shown_NHWC)},
            description=_description(work, pair[0].name),
            images_NHWC=shown_NHWC,
        )
    return speed_ratio(*reports)


def plain_size(size: Size) -> int | list[int]:
    """A size in a bundle or a record: the side of a square, or height and width."""
    height, width = size
    return height if height == width else [height, width]


def _description(work: Work, default: str) -> dict[str, Any]:
    return {
        "name": work.imported.file.stem,
        "classes": list(work.classes),
        "input_px": plain_size(work.imported.size),
        "store_px": plain_size(work.imported.size),
        "fit": work.preprocessing.fit,
        "range": None,
        "default": default,
        "licence": "not stated",
    }


def _bundle(work: Work, models: Sequence[OnnxModel], predictions: Mapping[str, np.ndarray], default: str) -> None:
    """The folder that is copied to a device; images without a label have -1."""
    shown = np.argsort(work.pictures.labels_N < 0, kind="stable")[:SHIPPED_IMAGES]  # those with a label first
    bundle.write_bundle(
        work.folder / BUNDLE,
        [(work.folder / entry.path, entry) for entry in models],
        description=_description(work, default),
        images_NHWC=work.pictures.compared_NHWC[shown],
        labels_N=work.pictures.labels_N[shown],
        host_predictions={name: predicted_N[shown] for name, predicted_N in predictions.items()},
    )


def _record(
    work: Work,
    models: Sequence[OnnxModel],
    ladder: Sequence[Rung],
    kept: Sequence[Kept],
    guarded: Mapping[Target, Guarded],
    default: str,
) -> None:
    """Write quantized.json, the last file: a folder without it is not complete."""
    pictures = work.pictures
    record = {
        "version": 1,
        "model": str(work.imported.file.absolute()),
        "sha256": work.imported.sha256,
        "classes": list(work.classes),
        "input_px": plain_size(work.imported.size),
        "preprocessing": work.preprocessing.model_dump(mode="json"),
        "uint8": work.imported.uint8,
        "notes": list(work.imported.notes),
        "images": {
            "calibration": len(pictures.calibration_NHWC),
            "compared": len(pictures.compared_NHWC),
            "labeled": pictures.labeled,
        },
        "compared_by": "labels" if pictures.labeled >= LEAST_LABELS else "agreement",
        "max_drop": work.settings.max_drop,
        "models": [asdict(entry) for entry in models],
        "ladder": [asdict(rung) for rung in ladder],
        "guard": [asdict(entry) for entry in guarded.values()],
        "kept": [asdict(choice) for choice in kept],
        "default": default,
    }
    write_json(work.folder / RECORD, record)
