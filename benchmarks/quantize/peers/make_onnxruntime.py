"""ONNX Runtime's own static quantization of an fp32 graph.

    python make_onnxruntime.py --model fp32.onnx --calibration images.npy --out int8.onnx --mode default|preset

`default` leaves every parameter of quantize_static as it is. `preset` follows its documentation for x86 CPUs with
VNNI: the graph is prepared first, then QDQ, unsigned activations, signed weights per channel, the full range of both.
Runs in an environment of its own, so it imports nothing of this project. B images a batch.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quant_pre_process,
    quantize_static,
)

CPUINFO = Path("/proc/cpuinfo")


class Reader(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
    """Calibration images uint8 [N, H, W, 3], one at a time."""

    def __init__(self, images_NHWC: np.ndarray) -> None:
        self.images = iter(images_NHWC)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next image as a batch of one, or None after the last."""
        image_HWC = next(self.images, None)
        return None if image_HWC is None else {"images": image_HWC[None]}


def default(model: Path, images_NHWC: np.ndarray, out: Path) -> None:
    """quantize_static with every default."""
    quantize_static(str(model), str(out), Reader(images_NHWC))


def preset(model: Path, images_NHWC: np.ndarray, out: Path) -> None:
    """quantize_static with the settings of its documentation for x86 CPUs."""
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(model), str(prepared))
        quantize_static(
            str(prepared),
            str(out),
            Reader(images_NHWC),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=not has_vnni(),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )


def has_vnni() -> bool:
    """Whether the processor adds products of 8 bits without saturation; without it the weights get 7 bits."""
    return CPUINFO.exists() and "vnni" in CPUINFO.read_text()


MODES: dict[str, Callable[[Path, np.ndarray, Path], None]] = {"default": default, "preset": preset}


def main() -> None:
    """Quantize, and write the seconds, without the imports, to a file beside the model."""
    parser = argparse.ArgumentParser()
    for name in ("model", "calibration", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--mode", choices=MODES, required=True)
    options = parser.parse_args()
    started = time.monotonic()
    MODES[options.mode](options.model, np.load(options.calibration), options.out)
    facts = {
        "seconds": round(time.monotonic() - started, 2),
        "reduce_range": options.mode == "preset" and not has_vnni(),
    }
    options.out.with_suffix(".facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
