"""edgedistill's int8 graphs of a student, as `edgedistill export --int8` makes them."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgedistill.export import quantize
from edgedistill.recipe.schema import Quantize
from edgedistill.records import Guarded, OnnxModel
from edgedistill.run.files import read_json, read_record, sha256_file

TARGETS = {"cpu": "ours", "tensorrt": "ours-tensorrt"}


def make(folder: Path, out: Path) -> list[tuple[str, Path, str, bool, dict[str, Any]]]:
    """Quantize a student with the product's defaults: calibration, `auto`, and the guard where there are val images.

    Args:
        folder: a student's, as students.prepare fills it.
        out: where the graphs go.

    Returns:
        Per target (name, path, precision, whether it is simulated, facts); `holds` is None where nothing was guarded.
    """
    fp32, started = folder / "student.fp32.onnx", time.monotonic()
    images_NHWC, val = (
        np.load(folder / "calibration.npy"),
        (np.load(folder / "val.npy"), np.load(folder / "val_labels.npy")),
    )
    parent = OnnxModel(
        path=fp32.name,
        sha256=sha256_file(fp32),
        precision="fp32",
        target="any",
        opset=0,
        parent_sha256="",
        size_mb=0.0,
    )
    models = quantize.quantize(fp32, parent, images_NHWC=images_NHWC, settings=Quantize(), folder=out, val=val)
    seconds = round(time.monotonic() - started, 2)
    said = read_json(out / "calibration.json")
    guarded = {one.target: one for one in _guarded(out)} if len(val[1]) else {}
    return [
        (
            TARGETS[one.target],
            out / one.path,
            "int8",
            one.target != "cpu",
            {
                "seconds": seconds,
                "method": said["method"],
                "tried": said["tried"],
                "images": said["images"],
                "guarded": asdict(guarded[one.target]) if one.target in guarded else None,
                "holds": guarded[one.target].holds if one.target in guarded else None,
            },
        )
        for one in models
    ]


def _guarded(out: Path) -> tuple[Guarded, ...]:
    return read_record(out / "guard.json", tuple[Guarded, ...])
