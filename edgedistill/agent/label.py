"""`python label.py picture.jpg [more.jpg ...]` or `python label.py --camera 0`: which class, and how probable.

An example to start from: Pillow, numpy and onnxruntime are all it needs (a camera also needs OpenCV, another runtime
its package); pictures.py, unsure.py and bundle.json beside it are all it reads, and agent.pyz for --backend. Python 3.8
or later. H and W pixels, C classes.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NoReturn, Optional

import numpy as np
from PIL import Image

if __package__:  # imported by the package, not run as a program
    from . import pictures, unsure
else:
    import pictures  # type: ignore[import-not-found, no-redef, unused-ignore]
    import unsure  # type: ignore[import-not-found, no-redef, unused-ignore]

HERE = Path(__file__).absolute().parent
# whose int8 graph a provider of ONNX Runtime runs; any other one takes that for a CPU where it is named
PROVIDERS_FOR = {"cpu": "cpu", "tensorrt": "tensorrt", "nvtensorrtrtx": "tensorrt"}
Run = Callable[[np.ndarray], np.ndarray]  # uint8 [1, H, W, 3] -> logits [1, C]


def read_picture(path: str, bundle: Dict[str, Any]) -> np.ndarray:
    """A picture from disk as the model saw them in training: uint8 [input_px, input_px, 3]; 2 if it cannot be read."""
    settings = {name: bundle[name] for name in ("store_px", "input_px", "fit")}
    try:
        return pictures.read(path, **settings, limits=bundle.get("range"))
    except pictures.UnreadableError as error:
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
        has_frame, bgr_HWC = capture.read()
        while has_frame:
            yield np.ascontiguousarray(bgr_HWC[:, :, ::-1])
            has_frame, bgr_HWC = capture.read()
    finally:
        capture.release()


def flags() -> str:
    """What the processor can do, as Linux tells it; nothing elsewhere."""
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def agent_backends() -> Any:
    """The backends of agent.pyz, the program that measures: one adapter for each runtime."""
    sys.path.insert(0, str(HERE / "agent.pyz"))
    try:
        return importlib.import_module("agent.backends")
    except ImportError as error:
        stop(f"{error}; --backend needs agent.pyz of the same bundle; copy the whole bundle again")


def start_backend(model: Dict[str, str], name: str, backends: Any) -> Run:
    """A graph in that backend of agent.pyz; exit code 2 when its runtime is missing or cannot load it."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        backend = backends.create(name)
        backend.build(HERE / model["file"], threads or 1)
    except backends.AgentError as error:
        stop(str(error))
    run: Run = backend.infer
    return run


def start(model: Dict[str, str], provider: str) -> Run:
    """A session with that provider of ONNX Runtime; exit code 2 when there is none or it does not start."""
    try:
        import onnxruntime
    except ImportError as error:
        stop(f"{error}; {sys.executable} -m pip install onnxruntime")
    providers = {name.replace("ExecutionProvider", "").lower(): name for name in onnxruntime.get_available_providers()}
    if provider not in providers:
        stop(f"onnxruntime has no provider {provider} here; one of: {', '.join(providers)}")
    if provider != "cpu" and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # CUDA and cuDNN where pip has put them
    options: Dict[str, Any] = {}
    if provider == "tensorrt":  # an engine takes a minute to build, so it is kept; Q/DQ and float16 must be allowed
        cache = HERE / "engines" / model["sha256"][:16]  # ONNX Runtime does not tell two students' engines apart
        with contextlib.suppress(OSError):  # a bundle that cannot be written to: the engine is built each time
            cache.mkdir(parents=True, exist_ok=True)  # ONNX Runtime makes the last folder alone
            options.update({"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(cache)})
        options["trt_int8_enable"] = str(int(model["precision"] == "int8"))
        options["trt_fp16_enable"] = str(int(model["precision"] != "fp32"))
    settings = onnxruntime.SessionOptions()
    if platform.machine() in ("x86_64", "AMD64") and "vnni" not in flags():
        settings.add_session_config_entry("session.x64quantprecision", "1")  # or int8 products saturate there
    # ONNX Runtime 1.21 and later would quantize the biases of a graph for TensorRT, which makes its answers wrong
    settings.add_session_config_entry("optimization.disable_specified_optimizers", "WeightBiasQuantization")
    path = str(HERE / model["file"])
    try:
        session = onnxruntime.InferenceSession(path, settings, providers=[(providers[provider], options)])
    except Exception as error:  # the runtime's errors have types of its own; an old one does not know the opset
        reason = str(error).strip().partition("\n")[0]
        stop(f"{model['file']}: onnxruntime {onnxruntime.__version__} cannot load it ({reason})")
    if providers[provider] not in session.get_providers():
        stop(f"{providers[provider]} did not start; are its libraries (CUDA, cuDNN, ...) installed?")
    name = session.get_inputs()[0].name
    return lambda images_BHWC: np.asarray(session.run(None, {name: images_BHWC})[0])


def refuse(model: Dict[str, Any], target_name: str, models: Dict[str, Any]) -> None:
    """Exit code 2 where the model is int8 for another target than what runs it: its answers would be others."""
    if model["precision"] == "int8" and (model["target"] == "tensorrt") != (target_name == "tensorrt"):
        target_name = "tensorrt" if target_name == "tensorrt" else "cpu"
        fitting = [
            key for key, other in models.items() if (other["precision"], other["target"]) == ("int8", target_name)
        ]
        instead = (fitting or [key for key, other in models.items() if other["target"] == "any"] or ["another"])[0]
        stop(f"{model['name']} is made for the target {model['target']}, and would answer otherwise here; "
             f"--model {instead}")  # fmt: skip


def answer(run: Run, model: Dict[str, Any], picture_HWC: np.ndarray) -> unsure.Answer:
    """The most probable class; the normalization of pixels is inside the graph."""
    return unsure.answer(run(picture_HWC[np.newaxis])[0], model)


def words(classes: List[str], decision: unsure.Answer) -> str:
    """`cat 81.4%`, or `unknown (cat 38.0%)` where the model's threshold is not reached."""
    best = f"{classes[decision.best]} {decision.probability:.1%}"
    return f"unknown ({best})" if decision.unknown else best


def watch(run: Run, bundle: Dict[str, Any], model: Dict[str, Any], options: Any) -> None:
    """A line for each frame until Ctrl-C, or for `--frames` of them; exit code 2 when a camera ends before that."""
    keeper = new_keeper(options.keep) if options.keep else None
    counts = unsure.Drift(bundle) if "unknown" in bundle else None
    times_ms: List[float] = []
    try:
        for rgb_HWC in itertools.islice(frames(options.camera), options.frames):
            begin = time.perf_counter()
            rgb = Image.fromarray(rgb_HWC)
            picture_HWC = pictures.fit_square(rgb, bundle["store_px"], bundle["input_px"], bundle["fit"])
            decision = answer(run, model, picture_HWC)
            times_ms.append(1000 * (time.perf_counter() - begin))
            print(f"frame {len(times_ms)}: {words(bundle['classes'], decision)} {times_ms[-1]:.1f} ms", flush=True)
            if keeper:
                with writing():
                    keeper.offer(rgb_HWC, bundle["classes"][decision.best], decision)
            if counts:
                counts.add(decision)
                if counts.frames == unsure.WINDOW:
                    tell_drift(counts, keeper)
        ended = len(times_ms) != options.frames
    except KeyboardInterrupt:
        ended = False
    if times_ms:
        median = statistics.median(times_ms)
        print(f"{len(times_ms)} frames: median {median:.1f} ms from frame to label", file=sys.stderr)
    if counts and counts.frames:
        tell_drift(counts, keeper)
    if ended and not (times_ms and Path(options.camera).is_file()):  # a recording has an end, a camera has none
        stop(f"camera {options.camera}: no frame after {len(times_ms)}; is it plugged in, and not in use elsewhere?")


def tell_drift(counts: unsure.Drift, keeper: Optional[unsure.Keeper]) -> None:
    """Print what differs from the report, and add it to the folder of `--keep`."""
    line = counts.line()
    print(unsure.sentence(line), file=sys.stderr, flush=True)
    if keeper:
        with writing():
            keeper.add_drift(line)


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Exit code 2 and one line where the folder of `--keep` cannot be written."""
    try:
        yield
    except OSError as error:
        stop(f"--keep: {error}")


def new_keeper(arguments: List[str]) -> unsure.Keeper:
    """The folder of `--keep N FOLDER`; exit code 2 where it cannot be written or N is no number of frames."""
    number, folder = arguments
    if not number.isdecimal() or not 1 <= int(number) <= unsure.MOST:
        stop(f"--keep {number}: the number of frames is from 1 to {unsure.MOST}, and the folder stands behind it")
    with writing():
        return unsure.Keeper(folder, int(number))


def target(backends: Any, name: str) -> str:
    """Whose graphs a backend runs, such as "cpu"; exit code 2 where no backend has that name."""
    try:
        return str(backends.target_of(name))
    except backends.AgentError as error:
        stop(str(error))


def stop(message: str) -> NoReturn:
    """One line on stderr and exit code 2."""
    print(message, file=sys.stderr)
    raise SystemExit(2)


def main() -> None:
    """Label every picture named, or what a camera sees."""
    parser = argparse.ArgumentParser(description="label pictures, or what a camera sees, with the model of this bundle")
    parser.add_argument("pictures", nargs="*", metavar="PICTURE")
    parser.add_argument("--camera", help="instead of pictures: a number, or a file or stream that OpenCV opens")
    parser.add_argument("--frames", type=int, help="of the camera, then stop; else Ctrl-C stops")
    keep_help = "keep the N frames of the camera that it is least sure of in FOLDER, as pictures to train on"
    parser.add_argument("--keep", nargs=2, metavar=("N", "FOLDER"), help=keep_help)
    parser.add_argument("--provider", default="cpu", help="of ONNX Runtime: cpu, cuda, tensorrt, openvino, ...")
    backend_help = "instead of ONNX Runtime's provider: openvino, or another that `edgedistill bench` measures"
    parser.add_argument("--backend", help=backend_help)
    model_help = "by its name in bundle.json, such as fp32; else the bundle's default, which is for the cpu, or the "
    parser.add_argument("--model", help=model_help + "first one for any target")
    arguments = parser.parse_args()
    if bool(arguments.pictures) == bool(arguments.camera) or (arguments.frames is not None and arguments.frames < 1):
        parser.error("name pictures, or else a --camera, and no --frames below 1")
    if arguments.keep and not arguments.camera:
        parser.error("--keep goes with --camera")
    try:
        bundle = json.loads((HERE / "bundle.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        stop(f"{HERE / 'bundle.json'}: cannot be read ({error}); copy the whole bundle again")
    models = {model["name"]: model for model in bundle["models"]}
    anywhere = next((name for name in models if models[name]["target"] == "any"), bundle["default"])
    backends = agent_backends() if arguments.backend else None
    runs_for = target(backends, arguments.backend) if backends else PROVIDERS_FOR.get(arguments.provider, "any")
    of_its_own = [key for key in models if models[key]["target"] == runs_for == "ncnn"]
    name = arguments.model or (bundle["default"] if runs_for == "cpu" else (of_its_own or [anywhere])[0])
    if name not in models:
        parser.error(f"no model is called {name}; one of: {', '.join(sorted(models))}")
    chosen = models[name]
    refuse(chosen, runs_for, models)
    run = start_backend(chosen, arguments.backend, backends) if backends else start(chosen, arguments.provider)
    if arguments.camera:
        watch(run, bundle, chosen, arguments)
    for path in arguments.pictures:
        print(f"{path}: {words(bundle['classes'], answer(run, chosen, read_picture(path, bundle)))}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
