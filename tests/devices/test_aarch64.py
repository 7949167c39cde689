"""The bundle on an emulated aarch64 Python: it runs, and its predictions equal those of the host.

The timings of an emulated run are meaningless. N images, C classes, D features of the last layer.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image

from edgedistill.devices import imported
from edgedistill.devices.bench import bench
from edgedistill.devices.bundle import write_bundle
from edgedistill.export.onnx import export
from edgedistill.export.quantize import quantize
from edgedistill.measurements import Device
from edgedistill.recipe.schema import Bench, Export, Quantize
from edgedistill.records import OnnxModel
from tests.helpers import aarch64
from tests.helpers.export_nets import CLASSES, PX, SPEC, build, normalized, pictures

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
MEASURE = Path(__file__).parents[2] / "deploy/jetson/measure.sh"
N = 100
QUICK = Bench(processes=2, rounds=2, samples=20, seconds=0.02, accuracy_images=N)
# run by both interpreters: the outputs of the bundle's agent on the bundle's images
INFER = """
import sys
sys.path.insert(0, "agent.pyz")
import numpy
from pathlib import Path
from agent import backends
model, out = sys.argv[1:]
backend = backends.create("onnxruntime-cpu")
backend.build(Path(model), 1)
numpy.save(out, numpy.concatenate([backend.infer(image[None]) for image in numpy.load("images.npy")]))
"""


@dataclass(frozen=True)
class Shipped:
    """A bundle of fp32 and int8 graphs, the labels of its images, and each model's logits [N, C] on the host."""

    folder: Path
    models: list[OnnxModel]
    labels_N: np.ndarray
    host_logits: dict[str, np.ndarray]


def tinted(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return color noise with one tint per class: uint8 [N, px, px, 3] and classes [N]."""
    tints_C3 = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200], [-150, -150, -150], [0, 0, 0]])
    labels_N = np.arange(n) % CLASSES
    return np.clip(pictures(n) + tints_C3[labels_N][:, None, None], 0, 255).astype(np.uint8), labels_N


def fitted(images_NHWC: np.ndarray, labels_N: np.ndarray) -> torch.nn.Module:
    """Return the first blocks of a MobileNetV3 with a head that classifies the tints.

    The blocks include hard-swish and squeeze-excite. The head is a ridge regression: an untrained head's logits
    would be too close together to compare labels.
    """
    net = build("mnv3")
    with torch.no_grad():
        features_ND = net[:-1](normalized(images_NHWC))
        mean_D, scale_D = features_ND.mean(dim=0), features_ND.std(dim=0)
        scaled_ND = (features_ND - mean_D) / scale_D
        targets_NC = 4.0 * torch.nn.functional.one_hot(torch.from_numpy(labels_N), CLASSES) - 2.0
        gram_DD = scaled_ND.T @ scaled_ND + 1e-2 * len(labels_N) * torch.eye(len(mean_D))
        weight_DC = torch.linalg.solve(gram_DD, scaled_ND.T @ targets_NC)
        net[-1].weight.copy_((weight_DC / scale_D[:, None]).T)
        net[-1].bias.copy_(targets_NC.mean(dim=0) - (mean_D / scale_D) @ weight_DC)
    return net


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    folder = tmp_path_factory.mktemp("aarch64")
    images_NHWC, labels_N = tinted(N)
    fp32 = export(
        fitted(images_NHWC, labels_N),
        SPEC,
        path=folder / "student.fp32.onnx",
        images_NHWC=images_NHWC[:8],
        settings=Export(),
    )
    path, settings = folder / fp32.path, Quantize(targets=("cpu",), method="minmax", calibration_images=N)
    (int8,) = quantize(path, fp32, images_NHWC=images_NHWC, settings=settings, folder=folder)
    models = [(path, fp32), (folder / int8.path, int8)]
    about = {"classes": [f"tint{index}" for index in range(CLASSES)], "input_px": PX, "store_px": PX, "fit": "crop"}
    write_bundle(
        bundle := folder / "bundle",
        models,
        description=about,
        images_NHWC=images_NHWC,
        labels_N=labels_N,
        host_predictions={},
    )
    host_logits = {model.name: emulated_logits(Path(sys.executable), bundle, model) for _, model in models}
    host = {name: logits_NC.argmax(axis=1) for name, logits_NC in host_logits.items()}
    write_bundle(bundle, models, description=about, images_NHWC=images_NHWC, labels_N=labels_N, host_predictions=host)
    return Shipped(folder=bundle, models=[model for _, model in models], labels_N=labels_N, host_logits=host_logits)


@pytest.fixture(scope="module", params=aarch64.PYTHONS, ids=lambda version: version.name)
def python(request: pytest.FixtureRequest) -> Path:
    """The emulated interpreter."""
    try:
        return aarch64.interpreter(request.param, aarch64.cache())
    except aarch64.MissingError as error:
        pytest.skip(str(error))


def emulated_logits(python: Path, bundle: Path, model: OnnxModel) -> np.ndarray:
    """Compute the logits float32 [N, C] of the bundle's images with an interpreter."""
    path = bundle.parent / "logits.npy"
    subprocess.run([python, "-c", INFER, model.path, path], cwd=bundle, check=True, timeout=600)
    logits_NC: np.ndarray = np.load(path)
    return logits_NC


def step_bound(path: Path) -> np.ndarray:
    """Bound the change of each logit [C] when one input feature of the last layer is off by one quantization step."""
    graph = onnx.load(path).graph
    producers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    last = producers[graph.output[0].name]
    assert last.op_type == "Gemm" and attribute(last, "transB") == 1
    features, weights = (producers[name] for name in last.input[:2])
    weight_CD, scale_C = (constants[name].astype(np.float64) for name in weights.input[:2])
    bound_C: np.ndarray = np.abs(weight_CD * scale_C.reshape(-1, 1)).max(axis=1) * constants[features.input[1]]
    return bound_C


def attribute(node: onnx.NodeProto, name: str) -> int:
    return next((pair.i for pair in node.attribute if pair.name == name), 0)


def test_bundle_runs_under_bench_on_emulated_device(shipped: Shipped, python: Path, tmp_path: Path) -> None:
    device = Device(name="emulated", python=str(python))
    reports = bench(
        shipped.folder, device, backend="onnxruntime-cpu", settings=QUICK, models=shipped.models, out=tmp_path
    )
    assert [report.artefact for report in reports] == ["fp32", "int8-cpu"]
    for report in reports:
        assert report.facts["machine"] == "aarch64"
        assert report.agreement_with_host is not None and report.agreement_with_host >= 0.99
        # the agreement is that of a useful model, not of one that predicts a single class
        assert report.accuracy is not None and report.accuracy.n == N and report.accuracy.top1 > 0.8
        assert len(report.latency.samples_ms) >= 20
        assert len(report.facts["processes"]) == 2


def test_logits_equal_those_of_host(shipped: Shipped, python: Path) -> None:
    for model in shipped.models:
        host_NC, device_NC = shipped.host_logits[model.name], emulated_logits(python, shipped.folder, model)
        assert float((host_NC.argmax(axis=1) == device_NC.argmax(axis=1)).mean()) >= 0.99
        path = shipped.folder / model.path
        bound = step_bound(path) if model.precision == "int8" else 1e-4 * np.abs(host_NC).max()
        assert (np.abs(host_NC - device_NC).max(axis=0) <= bound).all()


def test_example_program_labels_images_as_on_host(shipped: Shipped, python: Path, tmp_path: Path) -> None:
    for index in range(CLASSES):
        Image.fromarray(np.load(shipped.folder / "images.npy")[index]).save(tmp_path / f"{index}.png")
    pictures = [str(tmp_path / f"{index}.png") for index in range(CLASSES)]
    labels = []
    for program in (Path(sys.executable), python):
        process = subprocess.run(
            [program, "label.py", *pictures],
            cwd=shipped.folder,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        labels.append([line.split(": ")[1].split()[0] for line in process.stdout.splitlines()])
    assert labels[0] == labels[1] and len(labels[1]) == CLASSES


@pytest.mark.parametrize("python", aarch64.PYTHONS[:1], indirect=True, ids=lambda version: version.name)
def test_measure_sh_packs_what_the_host_imports(shipped: Shipped, python: Path, tmp_path: Path) -> None:
    completed = subprocess.run(
        ["sh", str(MEASURE), str(shipped.folder), "board"],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": str(python), "SECONDS_EACH": "0.01", "SAMPLES": "5", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    records = imported.import_reports(tmp_path / "board.zip", shipped.folder, tmp_path / "out")
    assert {(record.backend, record.artefact) for record in records} == {
        ("onnxruntime-cpu", "fp32"),
        ("onnxruntime-cpu", "int8-cpu"),
    }
    assert {record.facts["machine"] for record in records} == {"aarch64"}


def test_step_bound_of_last_layer_is_small(shipped: Shipped) -> None:
    """A large bound would let any logits pass."""
    logits_NC = shipped.host_logits["int8-cpu"]
    assert (step_bound(shipped.folder / "student.int8-cpu.onnx") < 0.02 * (logits_NC.max() - logits_NC.min())).all()
