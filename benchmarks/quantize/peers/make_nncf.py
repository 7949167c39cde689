"""NNCF's post-training quantization of an fp32 graph, for OpenVINO on a CPU.

    python make_nncf.py --model fp32.onnx --calibration images.npy --out int8.xml --mode default|unquantized

`default` leaves every parameter as it is but the target and the number of calibration images: all are used, as by the
other peers. `unquantized` only converts, which separates the runtime's part in the speed from that of int8.
Runs in an environment of its own, so it imports nothing of this project.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino as ov  # type: ignore[import-not-found, unused-ignore]


def default(model: Path, images_NHWC: np.ndarray, out: Path) -> None:
    """nncf.quantize of the converted graph; images uint8 [N, H, W, 3], one at a time."""
    import nncf  # type: ignore[import-not-found, unused-ignore]

    quantized = nncf.quantize(
        ov.convert_model(str(model)),
        nncf.Dataset(images_NHWC, lambda image_HWC: image_HWC[None]),
        target_device=nncf.TargetDevice.CPU,
        subset_size=len(images_NHWC),
    )
    ov.save_model(quantized, str(out))


def unquantized(model: Path, images_NHWC: np.ndarray, out: Path) -> None:
    """The converted graph as it is."""
    ov.save_model(ov.convert_model(str(model)), str(out), compress_to_fp16=False)


MODES: dict[str, Callable[[Path, np.ndarray, Path], None]] = {"default": default, "unquantized": unquantized}


def main() -> None:
    """Quantize, and write the seconds, without the imports of the runtime, to a file beside the model."""
    parser = argparse.ArgumentParser()
    for name in ("model", "calibration", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--mode", choices=MODES, required=True)
    options = parser.parse_args()
    started = time.monotonic()
    MODES[options.mode](options.model, np.load(options.calibration), options.out)
    options.out.with_suffix(".facts.json").write_text(json.dumps({"seconds": round(time.monotonic() - started, 2)}))


if __name__ == "__main__":
    main()
