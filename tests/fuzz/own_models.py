"""ONNX files as classifiers to quantize: read, given the product's ends, and compared with themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgedistill.imported import student
from edgedistill.imported.student import Preprocessing
from tests.fuzz import onnx_graphs
from tests.fuzz.kind import Kind


def call(path: Path) -> None:
    """What `edgedistill quantize` does before it reads pictures, and the comparison with two of them."""
    imported, model = student.adopt(path, Preprocessing(), px=None)
    if max(imported.size) <= 64:
        images_NHWC = np.random.default_rng(0).integers(0, 256, (2, *imported.size, 3), dtype=np.uint8)
        student.check(imported, model, Preprocessing(), images_NHWC)


KIND = Kind(
    name="own-model",
    file="model.onnx",
    valid=onnx_graphs.KIND.valid,
    make=onnx_graphs.make,
    call=call,
    inputs=400,
    prepare=onnx_graphs.prepare,
    cases=onnx_graphs.KIND.cases,
)
