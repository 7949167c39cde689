"""edgedistill's int8 graphs of a student, as `edgedistill export --int8` makes them."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgedistill.export import graphs, quantize
from edgedistill.export.guard import Witnesses
from edgedistill.recipe.schema import Quantize
from edgedistill.records import Guarded
from edgedistill.run.files import read_json, read_record

TARGETS = {"cpu": "ours", "tensorrt": "ours-tensorrt"}


def make_models(folder: Path, out: Path) -> list[tuple[str, Path, str, bool, dict[str, Any]]]:
    """Quantize a student with the product's defaults: calibration `auto`, and the guard where there are val images.

    Args:
        folder: a student's folder, as students.prepare fills it.
        out: folder for the graphs.

    Returns:
        For each target (name, path, precision, whether it is simulated, facts); the fact `holds` is None without guard.
    """
    fp32, started = folder / "student.fp32.onnx", time.monotonic()
    images_NHWC = np.load(folder / "calibration.npy")
    val = Witnesses(images_NHWC=np.load(folder / "val.npy"), labels_N=np.load(folder / "val_labels.npy"))
    parent = graphs.record(fp32, "fp32", "any", opset=0)
    models = quantize.quantize(fp32, parent, images_NHWC=images_NHWC, settings=Quantize(), folder=out, witnesses=val)
    seconds = round(time.monotonic() - started, 2)
    calibration = read_json(out / "calibration.json")
    guards = {guard.target: guard for guard in _guards(out)} if len(val.labels_N) else {}
    return [
        (
            TARGETS[model.target],
            out / model.path,
            "int8",
            model.target != "cpu",
            {
                "seconds": seconds,
                "method": calibration["method"],
                "tried": calibration["tried"],
                "images": calibration["images"],
                "guarded": asdict(guards[model.target]) if model.target in guards else None,
                "holds": guards[model.target].holds if model.target in guards else None,
            },
        )
        for model in models
    ]


def _guards(out: Path) -> tuple[Guarded, ...]:
    return read_record(out / "guard.json", tuple[Guarded, ...])
