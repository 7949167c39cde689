"""`python label.py picture.jpg [more.jpg ...]` or `python label.py --camera 0`: which class, and how probable.

An example to start from: Pillow, numpy and onnxruntime are all it needs (a camera also needs OpenCV), and bundle.json
beside it is all it reads. Python 3.8 or later. H and W pixels, C classes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, NoReturn, Optional

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

HERE = Path(__file__).absolute().parent
BILINEAR = getattr(Image, "Resampling", Image).BILINEAR  # Pillow before 9.1 has no Resampling


def fit_square(rgb: Image.Image, store_px: int, input_px: int, fit: str) -> np.ndarray:
    """A picture as the model saw them in training: uint8 [input_px, input_px, 3], RGB.

    Two resizes, first to the size at which training pictures were stored and then to the model's: one resize would
    give slightly other pixels than those the model learnt from.
    """
    square = (store_px, store_px)
    stored = ImageOps.fit(rgb, square, method=BILINEAR) if fit == "crop" else rgb.resize(square, BILINEAR)
    resized = stored if store_px == input_px else stored.resize((input_px, input_px), BILINEAR)
    return np.asarray(resized, dtype=np.uint8)


def read_picture(path: str, store_px: int, input_px: int, fit: str) -> np.ndarray:
    """A picture from disk, turned as its EXIF says: uint8 [input_px, input_px, 3]; 2 when it cannot be read."""
    try:
        with Image.open(path) as image:
            return fit_square((ImageOps.exif_transpose(image) or image).convert("RGB"), store_px, input_px, fit)
    except OSError as error:
        stop(f"{path}: cannot be read as a picture ({error})")


def frames(camera: str) -> Iterator[np.ndarray]:
    """What a camera sees, until it gives no more: RGB, uint8 [H, W, 3]."""
    try:
        import cv2  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        stop(f"{error}; {sys.executable} -m pip install opencv-python-headless")
    capture = cv2.VideoCapture(int(camera) if camera.isdigit() else camera)
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # a frame that waited in a queue shows what was there some time ago
    try:
        there, bgr_HWC = capture.read()
        while there:
            yield np.ascontiguousarray(bgr_HWC[:, :, ::-1])
            there, bgr_HWC = capture.read()
    finally:
        capture.release()


def flags() -> str:
    """What the processor can do, as Linux tells it; nothing elsewhere."""
    told = Path("/proc/cpuinfo")
    return told.read_text(encoding="utf-8", errors="replace") if told.exists() else ""


def start(model: Dict[str, str], provider: str) -> onnxruntime.InferenceSession:
    """A session with that provider of ONNX Runtime; exit code 2 when there is none or it does not start."""
    known = {name.replace("ExecutionProvider", "").lower(): name for name in onnxruntime.get_available_providers()}
    if provider not in known:
        stop(f"onnxruntime has no provider {provider} here; one of: {', '.join(known)}")
    if provider != "cpu" and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # CUDA and cuDNN where pip has put them
    options: Dict[str, Any] = {}
    if provider == "tensorrt":  # an engine takes a minute to build, so it is kept; Q/DQ and float16 must be allowed
        kept = HERE / "engines" / model["sha256"][:16]  # ONNX Runtime does not tell two students' engines apart
        options = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(kept),
                   "trt_int8_enable": str(int(model["precision"] == "int8")),
                   "trt_fp16_enable": str(int(model["precision"] != "fp32"))}  # fmt: skip
    settings = onnxruntime.SessionOptions()
    if platform.machine() in ("x86_64", "AMD64") and "vnni" not in flags():
        settings.add_session_config_entry("session.x64quantprecision", "1")  # or int8 products saturate there
    path = str(HERE / model["file"])
    session = onnxruntime.InferenceSession(path, settings, providers=[(known[provider], options)])
    if known[provider] not in session.get_providers():
        stop(f"{known[provider]} did not start; are its libraries (CUDA, cuDNN, ...) installed?")
    return session


def label(session: onnxruntime.InferenceSession, classes: List[str], picture_HWC: np.ndarray) -> str:
    """The most probable class and its softmax; the normalization of pixels is inside the graph."""
    feed = {session.get_inputs()[0].name: picture_HWC[np.newaxis]}
    logits_C = np.asarray(session.run(None, feed)[0][0], dtype=np.float64)
    exponents_C = np.exp(logits_C - logits_C.max())
    best = int(logits_C.argmax())
    return f"{classes[best]} {exponents_C[best] / exponents_C.sum():.1%}"


def watch(session: onnxruntime.InferenceSession, bundle: Dict[str, Any], camera: str, most: Optional[int]) -> None:
    """A line for each frame until Ctrl-C, or for `most` of them; exit code 2 when a camera ends before that."""
    took_ms: List[float] = []
    try:
        for rgb_HWC in itertools.islice(frames(camera), most):
            begun = time.perf_counter()
            picture_HWC = fit_square(Image.fromarray(rgb_HWC), bundle["store_px"], bundle["input_px"], bundle["fit"])
            said = label(session, bundle["classes"], picture_HWC)
            took_ms.append(1000 * (time.perf_counter() - begun))
            print(f"frame {len(took_ms)}: {said} {took_ms[-1]:.1f} ms", flush=True)
        ended = len(took_ms) != most
    except KeyboardInterrupt:
        ended = False
    if took_ms:
        print(f"{len(took_ms)} frames: median {statistics.median(took_ms):.1f} ms from frame to label", file=sys.stderr)
    if ended and not (took_ms and Path(camera).is_file()):  # a recording has an end, a camera has none
        stop(f"camera {camera}: no frame after {len(took_ms)}; is it plugged in, and not in use elsewhere?")


def stop(what: str) -> NoReturn:
    """One line on stderr and exit code 2."""
    print(what, file=sys.stderr)
    raise SystemExit(2)


def main() -> None:
    """Label every picture named, or what a camera sees."""
    parser = argparse.ArgumentParser(description="label pictures, or what a camera sees, with the model of this bundle")
    parser.add_argument("pictures", nargs="*", metavar="PICTURE")
    parser.add_argument("--camera", help="instead of pictures: a number, or a file or stream that OpenCV opens")
    parser.add_argument("--frames", type=int, help="of the camera, then stop; else Ctrl-C stops")
    parser.add_argument("--provider", default="cpu", help="of ONNX Runtime: cpu, cuda, tensorrt, openvino, ...")
    parser.add_argument("--model", help="by its name in bundle.json, such as fp32; else the bundle's default, which is "
                        "for the cpu, or the first one for any target")  # fmt: skip
    given = parser.parse_args()
    if bool(given.pictures) == bool(given.camera) or (given.frames or 1) < 1:
        parser.error("name pictures, or else a --camera, and no --frames below 1")
    bundle = json.loads((HERE / "bundle.json").read_text(encoding="utf-8"))
    models = {model["name"]: model for model in bundle["models"]}
    anywhere = next((name for name in models if models[name]["target"] == "any"), bundle["default"])
    name = given.model or (bundle["default"] if given.provider == "cpu" else anywhere)
    if name not in models:
        parser.error(f"no model is called {name}; one of: {', '.join(sorted(models))}")
    session = start(models[name], given.provider)
    if given.camera:
        watch(session, bundle, given.camera, given.frames)
    for path in given.pictures:
        picture_HWC = read_picture(path, bundle["store_px"], bundle["input_px"], bundle["fit"])
        print(f"{path}: {label(session, bundle['classes'], picture_HWC)}")


if __name__ == "__main__":
    main()
