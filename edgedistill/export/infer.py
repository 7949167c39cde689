"""Inference of ONNX graphs on this machine's CPU by ONNX Runtime, for the parity gate, the ladder and `predict`.

N images, H x W pixels, C target classes.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from edgedistill.agent.ort import keep_arithmetic
from edgedistill.console import bar
from edgedistill.errors import EdgeDistillError, InputError
from edgedistill.export.literal import in_float32, is_quantized
from edgedistill.records import OnnxModel
from edgedistill.run.artifacts import EXPORT

BATCH = 4  # larger batches exceed the caches: an EfficientNet-Lite0 at 224 px takes 1.8 times as long


def artifact_name(model: OnnxModel) -> str:
    """The name of a graph in rungs, tables and benchmarks: "fp32", "int8-cpu", "int8-tensorrt"."""
    return model.name


def relative_error(expected: np.ndarray, actual: np.ndarray) -> float:
    """max |expected - actual| / max |expected| of two arrays of the same shape; infinite for NaN."""
    scale = float(np.abs(expected).max()) or 1.0
    error = float(np.abs(expected - actual).max()) / scale
    return error if np.isfinite(error) else float("inf")


def check_images(images_NHWC: np.ndarray, px: int | None = None) -> None:
    """Check that an array is at least one uint8 RGB image, of `px` x `px` pixels if given.

    Raises:
        InputError: there are no images, or the type or shape differs.
    """
    shape = images_NHWC.shape
    square = px is None or shape[1:3] == (px, px)
    if images_NHWC.dtype != np.uint8 or len(shape) != 4 or shape[0] == 0 or shape[3] != 3 or not square:
        size = "px, px" if px is None else f"{px}, {px}"
        raise InputError(
            f"images: {images_NHWC.dtype} {list(shape)} is not uint8 [N, {size}, 3] with N >= 1",
            "pass them through images.resize first",
        )


def session(path: Path | bytes, *, simulate: bool = False, threads: int = 2) -> Any:
    """Create an ONNX Runtime session on the CPU for a file or a serialized graph.

    With `simulate`, Q/DQ pairs are computed literally in float32, from values rounded to float16 where the graph does.

    Raises:
        EdgeDistillError: ONNX Runtime cannot load the graph.
    """
    import onnx
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    keep_arithmetic(options)
    try:
        model: bytes | str = path if isinstance(path, bytes) else str(path)
        if simulate:
            graph = in_float32(onnx.load_from_string(path) if isinstance(path, bytes) else onnx.load(path))
            if is_quantized(graph):
                options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            model = graph.SerializeToString()
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base class
        reason = " ".join(str(error).split())
        where = "a graph" if isinstance(path, bytes) else path
        too_new = re.search("opset|IR version", reason, re.IGNORECASE)
        fix = "set a lower export.opset, such as 17" if too_new else EXPORT
        raise EdgeDistillError(f"{where}: ONNX Runtime cannot load it ({reason})", fix) from None


def predict_onnx(
    path: Path | bytes, images_NHWC: np.ndarray, *, simulate: bool = False, threads: int = 2
) -> np.ndarray:
    """Compute the logits of an exported student in batches: uint8 [N, px, px, 3] -> float32 [N, C].

    Args:
        path: an ONNX graph with the input `images` and the output `logits`: its file, or its bytes.
        images_NHWC: uint8 RGB at the graph's input size, N >= 1.
        simulate: compute Q/DQ pairs literally in float, without graph optimizations. On a CPU this is the closest
            to TensorRT's int8 arithmetic.
        threads: batches at a time, each in one thread; operators this small do not parallelize well.

    Raises:
        InputError: `images_NHWC` is not uint8 [N, px, px, 3].
        EdgeDistillError: ONNX Runtime cannot load the graph.
    """
    check_images(images_NHWC)
    runner = session(path, simulate=simulate, threads=1)
    name = "a graph" if isinstance(path, bytes) else path.name

    def run_batch(start: int) -> np.ndarray:
        logits_BC: np.ndarray = runner.run(["logits"], {"images": images_NHWC[start : start + BATCH]})[0]
        return logits_BC

    n, batches = len(images_NHWC), []
    with ThreadPoolExecutor(threads) as pool, bar(f"{name} on {n} images", n) as advance:
        for logits_BC in pool.map(run_batch, range(0, n, BATCH)):
            batches.append(logits_BC)
            advance(len(logits_BC))
    return np.concatenate(batches)
