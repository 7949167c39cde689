"""The bundle's example program, run from the command line; its pixels equal the project's pixels."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgedistill.agent import label
from edgedistill.data import images
from edgedistill.data.images import View
from edgedistill.devices.bundle import EXAMPLE
from tests.helpers.paths import ROOT

# a fake camera that sees blue: OpenCV gives BGR, so the first channel is bright; FRAMES frames, or endless
CAMERA = """
import os
import sys
import numpy as np

CAP_PROP_BUFFERSIZE = 38


class VideoCapture:
    def __init__(self, source):
        self.frames_left = int(os.environ["FRAMES"])
        print(f"opened {source!r}", file=sys.stderr)

    def set(self, name, value):
        print(f"set {name} to {value}", file=sys.stderr)

    def read(self):
        self.frames_left -= 1
        frame = np.full((50, 70, 3), 20, np.uint8)
        frame[:, :, 0] = 180
        return (self.frames_left != -1, frame if self.frames_left != -1 else None)

    def release(self):
        print("released", file=sys.stderr)
"""
# a fake ONNX Runtime for a GPU: it logs its arguments; STARTS says whether the provider starts
RUNTIME = """
import os
import sys

import numpy as np


def get_available_providers():
    return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


def preload_dlls():
    print("preloaded", file=sys.stderr)


class Input:
    name = "images"


class SessionOptions:
    def add_session_config_entry(self, name, value):
        print(name, value, file=sys.stderr)


class InferenceSession:
    def __init__(self, path, settings, providers):
        self.providers = [name for name, _ in providers]
        print(os.path.basename(path), providers, file=sys.stderr)

    def get_providers(self):
        return [*self.providers, "CPUExecutionProvider"] if os.environ["STARTS"] == "yes" else ["CPUExecutionProvider"]

    def get_inputs(self):
        return [Input]

    def run(self, outputs, feed):
        assert feed["images"].shape == (1, 8, 8, 3)
        return [np.array([[0.0, 9.0, 0.0]], np.float32)]
"""


def command(bundle: Path, *argv: str) -> list[str]:
    return [sys.executable, str(bundle / "label.py"), *argv]


def run_label(bundle: Path, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(bundle, *argv), capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **env}
    )


@pytest.fixture
def modules(tmp_path: Path) -> str:
    """A folder for PYTHONPATH that holds the fake camera."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "cv2.py").write_text(CAMERA)
    return str(folder)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A green picture, wider than high, with noise."""
    pixels = np.random.default_rng(3).integers(0, 60, size=(50, 70, 3), dtype=np.uint8)
    pixels[:, :, 1] += 120
    Image.fromarray(pixels).save(tmp_path / "green.png")
    return tmp_path / "green.png"


def test_picture_is_labeled(bundle: Path, picture: Path) -> None:
    process = run_label(bundle, str(picture))
    assert process.returncode == 0, process.stderr
    # logits 0.1 * (about 30, 150, 30): softmax gives green 1 / (1 + 2 exp(-12)) = 99.999 %
    assert process.stdout == f"{picture}: green 100.0%\n"
    assert run_label(bundle, str(picture), "--model", "int8-cpu").stdout == process.stdout


def test_invalid_arguments_are_reported(bundle: Path, picture: Path) -> None:
    process = run_label(bundle, str(bundle / "bundle.json"))
    assert process.returncode == 2
    assert "cannot be read as a picture" in process.stderr
    assert "one of: fp32, int8-cpu" in run_label(bundle, str(picture), "--model", "fp23").stderr
    for arguments in (
        [],
        [str(picture), "--camera", "0"],
        ["--camera", "0", "--frames", "-1"],
        ["--camera", "0", "--frames", "0"],
    ):
        process = run_label(bundle, *arguments)
        assert process.returncode == 2 and "name pictures, or else a --camera" in process.stderr


def test_camera_frames_are_labeled(bundle: Path, modules: str) -> None:
    process = run_label(bundle, "--camera", "0", "--frames", "3", PYTHONPATH=modules, FRAMES="9")
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    # logits 0.1 * (20, 20, 180): softmax gives blue 1 / (1 + 2 exp(-16)); a frame not turned to RGB would be red
    untimed = [re.sub(r" [0-9.]+ ms$", "", line) for line in lines]
    assert untimed == [f"frame {n}: blue 100.0%" for n in (1, 2, 3)]
    assert all(float(line.split()[-2]) > 0 for line in lines)
    opened, buffered, released, summary = process.stderr.splitlines()
    assert (opened, buffered, released) == ("opened 0", "set 38 to 1", "released")
    assert re.fullmatch(r"3 frames: median [0-9.]+ ms from frame to label", summary)


def test_stream_address_is_passed_to_opencv_unchanged(bundle: Path, modules: str) -> None:
    process = run_label(bundle, "--camera", "rtsp://door/1", "--frames", "1", PYTHONPATH=modules, FRAMES="9")
    assert process.returncode == 0 and "opened 'rtsp://door/1'" in process.stderr


@pytest.mark.parametrize(("n_frames", "arguments"), [("0", []), ("2", []), ("2", ["--frames", "5"])])
def test_camera_that_stops_is_reported(bundle: Path, modules: str, n_frames: str, arguments: list[str]) -> None:
    process = run_label(bundle, "--camera", "0", *arguments, PYTHONPATH=modules, FRAMES=n_frames)
    assert (process.returncode, len(process.stdout.splitlines())) == (2, int(n_frames))
    assert process.stderr.endswith(
        f"camera 0: no frame after {n_frames}; is it plugged in, and not in use elsewhere?\n"
    )
    assert "released" in process.stderr


def test_end_of_recording_is_no_error(bundle: Path, modules: str, tmp_path: Path) -> None:
    (tmp_path / "door.mp4").touch()
    process = run_label(bundle, "--camera", str(tmp_path / "door.mp4"), PYTHONPATH=modules, FRAMES="2")
    assert (process.returncode, len(process.stdout.splitlines())) == (0, 2), process.stderr
    process = run_label(bundle, "--camera", str(tmp_path / "door.mp4"), PYTHONPATH=modules, FRAMES="0")
    assert process.returncode == 2 and "no frame after 0" in process.stderr


def test_ctrl_c_ends_camera_without_traceback(bundle: Path, modules: str) -> None:
    env = {**os.environ, "PYTHONPATH": modules, "FRAMES": "1000000000"}
    with subprocess.Popen(
        command(bundle, "--camera", "0"), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert all("blue" in line for line in lines)
    assert (process.returncode, "Traceback" in errors, "released" in errors) == (0, False, True), errors
    assert "ms from frame to label" in errors


def test_pictures_are_labeled_without_opencv(bundle: Path, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "cv2.py").write_text("raise ImportError('No module named cv2')")
    process = run_label(bundle, "--camera", "0", PYTHONPATH=str(tmp_path))
    assert process.returncode == 2
    assert process.stderr == f"No module named cv2; {sys.executable} -m pip install opencv-python-headless\n"
    assert run_label(bundle, str(picture), PYTHONPATH=str(tmp_path)).returncode == 0


def test_backend_of_the_agent_labels_without_onnx_runtime(bundle: Path, picture: Path, modules: str) -> None:
    pytest.importorskip("openvino", reason="needs the extra `openvino`")
    (Path(modules) / "onnxruntime.py").write_text("raise ImportError('not on this device')")
    process = run_label(bundle, str(picture), "--backend", "openvino", PYTHONPATH=modules)
    assert re.fullmatch(r".*green\.png: green \d+\.\d%\n", process.stdout), process.stderr
    assert "not on this device; " in run_label(bundle, str(picture), PYTHONPATH=modules).stderr


def test_backend_that_is_missing_is_reported(bundle: Path, picture: Path, modules: str) -> None:
    process = run_label(bundle, str(picture), "--backend", "dreams")
    assert process.returncode == 2
    assert process.stderr.startswith("no backend is called dreams; one of: onnxruntime-cpu")
    (Path(modules) / "openvino.py").write_text("raise ImportError('No module named openvino')")
    process = run_label(bundle, str(picture), "--backend", "openvino", PYTHONPATH=modules)
    assert process.returncode == 2 and process.stderr.endswith("-m pip install openvino\n")
    (bundle / "agent.pyz").unlink()
    process = run_label(bundle, str(picture), "--backend", "openvino")
    assert process.returncode == 2 and "--backend needs agent.pyz of the same bundle" in process.stderr


def test_missing_provider_is_reported(bundle: Path, picture: Path) -> None:
    process = run_label(bundle, str(picture), "--provider", "dreams")
    assert process.returncode == 2
    assert re.fullmatch(r"onnxruntime has no provider dreams here; one of: .*cpu\n", process.stderr)


@pytest.mark.parametrize(
    ("arguments", "file", "int8", "half"),
    [([], "student.fp32.onnx", "0", "0"), (["--model", "int8-tensorrt"], "student.int8-tensorrt.onnx", "1", "1")],
)
def test_gpu_provider_uses_graph_for_any_target(
    bundle: Path, picture: Path, modules: str, arguments: list[str], file: str, int8: str, half: str
) -> None:
    description = with_graph_for_tensorrt(bundle)
    (Path(modules) / "onnxruntime.py").write_text(RUNTIME)
    process = run_label(bundle, str(picture), "--provider", "tensorrt", *arguments, PYTHONPATH=modules, STARTS="yes")
    assert (process.returncode, process.stdout) == (0, f"{picture}: green 100.0%\n"), process.stderr
    preloaded, *settings, session = process.stderr.splitlines()
    assert settings[-1] == "optimization.disable_specified_optimizers WeightBiasQuantization"
    models = {model["file"]: model["sha256"] for model in description["models"]}
    engine_folder = str(bundle / "engines" / models[file][:16])
    options = {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": engine_folder,
        "trt_int8_enable": int8,
        "trt_fp16_enable": half,
    }
    assert (preloaded, session) == ("preloaded", f"{file} {[('TensorrtExecutionProvider', options)]}")
    process = run_label(bundle, str(picture), "--provider", "cuda", PYTHONPATH=modules, STARTS="no")
    assert process.returncode == 2 and "CUDAExecutionProvider did not start" in process.stderr
    on_cpu = run_label(bundle, str(picture), PYTHONPATH=modules, STARTS="yes")
    assert on_cpu.stderr.splitlines()[-1] == "student.int8-cpu.onnx [('CPUExecutionProvider', {})]"


def with_graph_for_tensorrt(bundle: Path) -> dict[str, Any]:
    """Add an int8 graph for TensorRT to a bundle whose default is the int8 graph for a CPU; returns bundle.json."""
    description: dict[str, Any] = json.loads((bundle / "bundle.json").read_text())
    graph = {"name": "int8-tensorrt", "file": "student.int8-tensorrt.onnx", "precision": "int8", "target": "tensorrt"}
    description["models"].append({**graph, "sha256": "7" * 64})
    description["default"] = "int8-cpu"
    (bundle / "bundle.json").write_text(json.dumps(description))
    return description


@pytest.mark.parametrize(
    ("provider", "model", "instead"),
    [
        ("tensorrt", "int8-cpu", "int8-tensorrt"),
        ("cuda", "int8-tensorrt", "int8-cpu"),
        ("cpu", "int8-tensorrt", "int8-cpu"),
    ],
)
def test_graph_for_another_target_is_refused(
    bundle: Path, picture: Path, modules: str, provider: str, model: str, instead: str
) -> None:
    with_graph_for_tensorrt(bundle)
    (Path(modules) / "onnxruntime.py").write_text(RUNTIME)
    arguments = (str(picture), "--provider", provider, "--model", model)
    process = run_label(bundle, *arguments, PYTHONPATH=modules, STARTS="yes")
    assert (process.returncode, process.stdout) == (2, "")
    target = model.partition("-")[2]
    assert process.stderr == (
        f"{model} is made for the target {target}, and would answer otherwise here; --model {instead}\n"
    )


@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize(("store_px", "input_px"), [(48, 32), (32, 32), (24, 40)])
def test_pixels_equal_those_of_the_project(picture: Path, fit: images.Fit, store_px: int, input_px: int) -> None:
    expected = images.read(picture, View(px=store_px, fit=fit), input_px)
    bundle = {"store_px": store_px, "input_px": input_px, "fit": fit}
    assert np.array_equal(label.read_picture(str(picture), bundle), expected)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    half = np.zeros((40, 40, 3), np.uint8)
    half[:20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    Image.fromarray(half).save(tmp_path / "turned.jpg", exif=exif)
    actual = label.read_picture(str(tmp_path / "turned.jpg"), {"store_px": 20, "input_px": 20, "fit": "crop"})
    assert np.array_equal(actual, images.read(tmp_path / "turned.jpg", View(px=20, fit="crop"), 20))
    assert actual[:, -1].mean() > 200
    assert actual[:, 0].mean() < 50


@pytest.mark.parametrize("name", EXAMPLE)
def test_deploy_folder_has_the_same_programs(name: str) -> None:
    assert (ROOT / "deploy/bundle" / name).read_bytes() == Path(label.__file__).with_name(name).read_bytes()
