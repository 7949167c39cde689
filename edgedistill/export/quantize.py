"""One calibration, and from its ranges one int8 graph for each backend, by ONNX Runtime's static quantizer.

What TensorRT wants is what ONNX Runtime on a CPU cannot fuse, and the reverse, so the placement of the Q/DQ pairs is
the backend's and the ranges are everybody's. N images, H x W pixels.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgedistill.export import graphs
from edgedistill.export.infer import check_images
from edgedistill.progress import slices
from edgedistill.recipe import Quantize
from edgedistill.records import EdgeDistillError, OnnxModel, Target
from edgedistill.run import sha256_file, write_json

log = logging.getLogger(__name__)

Ranges = dict[str, tuple[float, float]]
BATCH = 8  # histograms hold every activation of a batch in memory at once


@dataclass(frozen=True)
class Placement:
    """Where a backend wants its Q/DQ pairs, in the words of onnxruntime.quantization."""

    activations: str
    op_types: tuple[str, ...]
    options: Mapping[str, Any]


# Weights use all of int8 (no reduce_range). With VNNI that is exact. On x86 without it, AVX2 adds two uint8 x int8
# products into a saturating 16-bit lane, and large activations clip; ONNX Runtime's session.x64quantprecision=1 picks
# exact kernels there at some cost in time. Seven-bit weights would instead charge every device for the old ones.
CPU = Placement(
    "QUInt8",
    ("Conv", "Gemm", "MatMul", "Add", "MaxPool", "AveragePool", "GlobalAveragePool", "Relu", "Clip", "Flatten",
     "Reshape", "Concat"),
    {"ActivationSymmetric": False, "WeightSymmetric": True},
)  # fmt: skip

# Symmetric int8, float bias, and no pair between an operator and its activation (TensorRT developer guide, "Working
# with Quantized Types", placement recommendations); graphs.float_conv_branch does what no option can.
TENSORRT = Placement(
    "QInt8",
    ("Conv", "Gemm", "MatMul", "Add", "MaxPool"),
    {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": ["Conv", "Gemm", "MatMul", "Add"],
    },
)

PLACEMENTS: dict[Target, Placement] = {"cpu": CPU, "tensorrt": TENSORRT}


def image_hash(image_HWC: np.ndarray) -> str:
    """sha256 of an image's raw pixels, in hex: how calibration.json names the images it saw."""
    return hashlib.sha256(np.ascontiguousarray(image_HWC).tobytes()).hexdigest()


def quantize(
    fp32: Path, parent: OnnxModel, images_NHWC: np.ndarray, settings: Quantize, folder: Path
) -> list[OnnxModel]:
    """Calibrate once, and write `student.int8-<target>.onnx` for every target, with `calibration.json` beside them.

    Args:
        fp32: the graph that `export` wrote.
        parent: its record.
        images_NHWC: uint8 [N, px, px, 3] of train; the first `settings.calibration_images` are used.
        settings: method, number of images, targets.
        folder: where the files go.

    Returns:
        A record per target, in the order of `settings.targets`; `path` is the bare file name.

    Raises:
        InputError: `images_NHWC` is not uint8 [N, px, px, 3] with N >= 1.
        EdgeDistillError: a range is not finite, or the graph is not one TensorRT would read as meant.
    """
    check_images(images_NHWC)
    used = images_NHWC[: settings.calibration_images]
    complaints = _complaints(len(used), settings)
    for line in complaints:
        log.warning(line)
    ranges = calibrate(fp32, used, settings.method)
    write_json(
        folder / "calibration.json",
        {
            "method": settings.method,
            "images": len(used),
            "warnings": complaints,
            "ranges": ranges,
            "sha256": [image_hash(image) for image in used],
        },
    )
    model = onnx.load(fp32)
    return [_write(int8_graph(model, ranges, target), parent, target, folder) for target in settings.targets]


def _complaints(n: int, settings: Quantize) -> list[str]:
    if n >= settings.calibration_images:
        return []
    return [f"quantize: calibrated on {n} images of the {settings.calibration_images} asked for; train has no more"]


def _write(graph: onnx.ModelProto, parent: OnnxModel, target: Target, folder: Path) -> OnnxModel:
    path = folder / f"student.int8-{target}.onnx"
    if target == "tensorrt":
        graphs.refuse_for_tensorrt(graph, str(path))
    graphs.write(graph, path)
    size_mb = path.stat().st_size / 1e6
    return OnnxModel(path.name, sha256_file(path), "int8", target, parent.opset, parent.sha256, size_mb)


def calibrate(fp32: Path, images_NHWC: np.ndarray, method: str) -> Ranges:
    """The range of every tensor that any target quantizes: {tensor: (lowest, highest)}, sorted by name.

    Args:
        fp32: a float graph with the input `images`.
        images_NHWC: uint8 [N, px, px, 3]; seen in small batches, so memory does not grow with N.
        method: "minmax", "percentile" (99.999) or "entropy", as onnxruntime.quantization defines them.

    Raises:
        EdgeDistillError: a range is not finite.
    """
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    methods = {name.lower(): one for name, one in CalibrationMethod.__members__.items()}
    op_types = sorted({op for placement in PLACEMENTS.values() for op in placement.op_types})
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        # the calibrator writes beside the graph it is given, and the run directory is no place for that
        copied = Path(scratch) / "fp32.onnx"
        copied.write_bytes(fp32.read_bytes())
        calibrator = create_calibrator(
            copied, op_types, str(Path(scratch) / "augmented.onnx"), calibrate_method=methods[method]
        )
        for part in slices("calibrate", len(images_NHWC), BATCH):
            calibrator.collect_data(_Feed(images_NHWC[part]))
        found = calibrator.compute_data()
    return {name: _range(name, found[name].range_value) for name in sorted(found.keys())}


class _Feed:
    """One batch in the form that ONNX Runtime's calibrators read: a dict, then None."""

    def __init__(self, images_NHWC: np.ndarray) -> None:
        self._batches: Iterator[dict[str, np.ndarray]] = iter([{"images": np.ascontiguousarray(images_NHWC)}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep stdout for results: the histogram calibrators print a line a batch."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere), warnings.catch_warnings():
        # a tensor of NaN gets an error of its own, by name
        warnings.filterwarnings("ignore", "All-NaN (slice|axis) encountered", RuntimeWarning)
        yield


def _range(name: str, found: tuple[Any, Any]) -> tuple[float, float]:
    low, high = (float(np.asarray(value).reshape(-1)[0]) for value in found)
    if not (np.isfinite(low) and np.isfinite(high)):
        problem = f"quantize: tensor {name} ranges from {low} to {high}"
        raise EdgeDistillError(problem, "the student's weights diverged: train it again with a smaller distill.lr")
    return low, high


def int8_graph(model: onnx.ModelProto, ranges: Ranges, target: Target) -> onnx.ModelProto:
    """The int8 graph of one target: Q/DQ pairs in its places, weights int8 per channel, preprocessing left float.

    Args:
        model: the float graph; it is not changed.
        ranges: what `calibrate` found for it.
        target: "cpu" or "tensorrt".
    """
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import QuantType

    placement = PLACEMENTS[target]
    data = {name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()}
    quantizer = QDQQuantizer(
        onnx.shape_inference.infer_shapes(model),
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType[placement.activations],
        tensors_range=TensorsData(CalibrationMethod.MinMax, data),
        nodes_to_quantize=[],
        nodes_to_exclude=[*graphs.preprocessing(model), *graphs.with_constant(model, "Add")],
        op_types_to_quantize=list(placement.op_types),
        extra_options=dict(placement.options),
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    placed = graphs.tidy(quantizer.model.model)
    return graphs.float_conv_branch(placed) if target == "tensorrt" else placed
