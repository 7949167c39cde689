"""NVIDIA ModelOpt's int8 Q/DQ graph of an fp32 graph, with Q/DQ by TensorRT's rules, calibrated on the CPU.

    python make_modelopt.py --model fp32.onnx --calibration images.npy --out int8.onnx --mode default

Every parameter but the execution provider has its default: entropy calibration, the rest of the graph in fp16. Images
may be a .npz with an array for each input; a model's weights.bin is taken, too.
Runs in an environment of its own, so it imports nothing of this project.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from modelopt.onnx.quantization import quantize  # type: ignore[import-not-found, unused-ignore]


def default(model: Path, images_NHWC: np.ndarray | dict[str, np.ndarray], out: Path) -> None:
    """modelopt.onnx.quantization.quantize with its defaults; images uint8 [N, H, W, 3], or what each input takes."""
    with tempfile.TemporaryDirectory() as folder:  # it writes intermediate graphs beside its input
        copy = Path(folder) / model.name
        shutil.copy(model, copy)
        if (weights := model.with_name("weights.bin")).is_file():
            shutil.copy(weights, folder)
        quantize(str(copy), calibration_data=images_NHWC, calibration_eps=["cpu"], output_path=str(out.resolve()))


def main() -> None:
    """Quantize, and write the seconds, without the imports, to a file beside the model."""
    parser = argparse.ArgumentParser()
    for name in ("model", "calibration", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--mode", choices=("default",), required=True)
    options = parser.parse_args()
    started = time.monotonic()
    images = np.load(options.calibration)
    default(options.model, images if options.calibration.suffix == ".npy" else dict(images), options.out)
    options.out.with_suffix(".facts.json").write_text(json.dumps({"seconds": round(time.monotonic() - started, 2)}))


if __name__ == "__main__":
    main()
