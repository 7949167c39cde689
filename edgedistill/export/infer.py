"""An ONNX graph on this machine's CPU, through ONNX Runtime: what parity, the ladder and `predict` share.

N images, H x W pixels, C target classes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from edgedistill.agent import machine
from edgedistill.console import bar
from edgedistill.errors import EdgeDistillError, InputError
from edgedistill.records import OnnxModel

BATCH = 4  # more at a time leave the caches: 1.8 times the time of an EfficientNet-Lite0 at 224 px


def artefact_name(model: OnnxModel) -> str:
    """What a rung, a table and a bench call this graph: "fp32", "int8-cpu", "int8-tensorrt"."""
    return model.name


def relative_error(wanted: np.ndarray, got: np.ndarray) -> float:
    """max |wanted - got| / max |wanted|; any two arrays of one shape. NaN counts as infinitely wrong."""
    scale = float(np.abs(wanted).max()) or 1.0
    error = float(np.abs(wanted - got).max()) / scale
    return error if np.isfinite(error) else float("inf")


def check_images(images_NHWC: np.ndarray, px: int | None = None) -> None:
    """Refuse anything that is not at least one uint8 RGB image (of `px` pixels, where given).

    Raises:
        InputError: no images, another type or another shape.
    """
    shape = images_NHWC.shape
    square = px is None or shape[1:3] == (px, px)
    if images_NHWC.dtype != np.uint8 or len(shape) != 4 or shape[0] == 0 or shape[3] != 3 or not square:
        wanted = "px, px" if px is None else f"{px}, {px}"
        raise InputError(
            f"images: {images_NHWC.dtype} {list(shape)} is not uint8 [N, {wanted}, 3] with N >= 1",
            "pass them through images.resize first",
        )


def session(path: Path | bytes, *, simulate: bool = False, threads: int = 2) -> Any:
    """An ONNX Runtime session on the CPU, of a file or of a graph's bytes.

    `simulate` leaves every Q/DQ pair as literal float arithmetic.

    Raises:
        EdgeDistillError: ONNX Runtime refuses the graph.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if machine.saturates():
        # pairs of uint8 x int8 products saturate at 16 bits; the flag picks exact, slower kernels
        # (onnxruntime_session_options_config_keys.h). With VNNI it would only make int8 slow: 5.2 ms for 3.0 ms.
        options.add_session_config_entry("session.x64quantprecision", "1")
    if simulate:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        given = path if isinstance(path, bytes) else str(path)
        return ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base class
        reason = " ".join(str(error).split())
        where = "a graph" if isinstance(path, bytes) else path
        raise EdgeDistillError(f"{where}: ONNX Runtime cannot load it ({reason})", "export it again") from None


def predict_onnx(
    path: Path | bytes, images_NHWC: np.ndarray, *, simulate: bool = False, threads: int = 2
) -> np.ndarray:
    """Logits of an exported student, batch by batch: uint8 [N, px, px, 3] -> float32 [N, C].

    Args:
        path: an ONNX graph with the input `images` and the output `logits`: its file, or its bytes.
        images_NHWC: uint8 RGB at the graph's input size, N >= 1.
        simulate: compute Q/DQ pairs literally in float, all graph optimizations off. This is what the graph says,
            and the nearest a CPU comes to TensorRT's int8 arithmetic.
        threads: batches at a time, each in one thread: operators this small share their work badly.

    Raises:
        InputError: `images_NHWC` is not uint8 [N, px, px, 3].
        EdgeDistillError: ONNX Runtime refuses the graph.
    """
    check_images(images_NHWC)
    running = session(path, simulate=simulate, threads=1)
    name = "a graph" if isinstance(path, bytes) else path.name

    def answer(at: int) -> np.ndarray:
        logits_BC: np.ndarray = running.run(["logits"], {"images": images_NHWC[at : at + BATCH]})[0]
        return logits_BC

    n, found = len(images_NHWC), []
    with ThreadPoolExecutor(threads) as pool, bar(f"{name} on {n} images", n) as shown:
        for logits_BC in pool.map(answer, range(0, n, BATCH)):
            found.append(logits_BC)
            shown(len(logits_BC))
    return np.concatenate(found)
