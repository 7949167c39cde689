"""`python label.py picture.jpg [more.jpg ...]`: which class, and how probable, by the model of this bundle.

An example to start from: Pillow, numpy and onnxruntime are all it needs, and bundle.json beside it is all it reads.
H and W pixels, C classes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

HERE = Path(__file__).absolute().parent


def read_picture(path: str, store_px: int, input_px: int, fit: str) -> np.ndarray:
    """A picture as the model saw them in training: uint8 [input_px, input_px, 3], RGB.

    Two resizes, first to the size at which training pictures were stored and then to the model's: one resize would
    give slightly other pixels than those the model learnt from.
    """
    with Image.open(path) as image:
        rgb = (ImageOps.exif_transpose(image) or image).convert("RGB")
    square = (store_px, store_px)
    stored = (
        ImageOps.fit(rgb, square, method=Image.Resampling.BILINEAR)
        if fit == "crop"
        else rgb.resize(square, Image.Resampling.BILINEAR)
    )
    resized = stored if store_px == input_px else stored.resize((input_px, input_px), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.uint8)


def probabilities(session: onnxruntime.InferenceSession, picture_HWC: np.ndarray) -> np.ndarray:
    """Softmax over the classes, float64 [C]; the normalization of pixels is inside the graph."""
    feed = {session.get_inputs()[0].name: picture_HWC[np.newaxis]}
    logits_C = np.asarray(session.run(None, feed)[0][0], dtype=np.float64)
    exponents_C = np.exp(logits_C - logits_C.max())
    shares_C: np.ndarray = exponents_C / exponents_C.sum()
    return shares_C


def main() -> int:
    """Label every picture named; 2 when one of them cannot be read."""
    parser = argparse.ArgumentParser(description="label pictures with the model of this bundle")
    parser.add_argument("pictures", nargs="+", metavar="PICTURE")
    parser.add_argument("--model", help="another model of bundle.json, by name, such as fp32")
    given = parser.parse_args()
    bundle = json.loads((HERE / "bundle.json").read_text(encoding="utf-8"))
    files = {model["name"]: model["file"] for model in bundle["models"]}
    name = given.model or bundle["default"]
    if name not in files:
        parser.error(f"no model is called {name}; one of: {', '.join(sorted(files))}")
    session = onnxruntime.InferenceSession(str(HERE / files[name]), providers=["CPUExecutionProvider"])
    for path in given.pictures:
        try:
            picture_HWC = read_picture(path, bundle["store_px"], bundle["input_px"], bundle["fit"])
        except OSError as error:
            print(f"{path}: cannot be read as a picture ({error})", file=sys.stderr)
            return 2
        shares_C = probabilities(session, picture_HWC)
        best = int(shares_C.argmax())
        print(f"{path}: {bundle['classes'][best]} {shares_C[best]:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
