"""`edgedistill predict`: label and probability of pictures by the bundle's graph; torch is not loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from edgedistill.agent import backends
from edgedistill.data import images
from edgedistill.devices.bundle import verify_bundle
from edgedistill.errors import InputError
from edgedistill.run.directory import Run
from edgedistill.run.files import read_json


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The student's class for a picture, and its probability in [0, 1]."""

    path: Path
    label: str
    probability: float


def predict(run: Run, paths: Sequence[Path]) -> list[Prediction]:
    """Label pictures with the default graph of the run's bundle, the one chosen for a CPU.

    Raises:
        InputError: the run has no bundle, the bundle was altered, or a picture cannot be read.
    """
    folder = run / "bundle"
    verify_bundle(folder)
    bundle = read_json(folder / "bundle.json")
    graph = next(model for model in bundle["models"] if model["name"] == bundle["default"])
    images_HWC = [_read(path, bundle) for path in paths]
    backend = backends.create("onnxruntime-cpu")
    backend.build(folder / graph["file"], threads=1)
    try:
        return [
            _label(path, backend.infer(image_HWC[None])[0], bundle["classes"])
            for path, image_HWC in zip(paths, images_HWC, strict=True)
        ]
    finally:
        backend.close()


def _read(path: Path, bundle: dict[str, int | str]) -> np.ndarray:
    try:
        return images.read(
            path, int(bundle["store_px"]), int(bundle["input_px"]), "squash" if bundle["fit"] == "squash" else "crop"
        )
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{path}: not a picture that can be read ({getattr(error, 'strerror', None) or error})"
        ) from None


def _label(path: Path, logits_C: np.ndarray, classes: Sequence[str]) -> Prediction:
    exponents_C = np.exp(logits_C - logits_C.max())
    best = int(logits_C.argmax())
    return Prediction(path=path, label=classes[best], probability=float(exponents_C[best] / exponents_C.sum()))
