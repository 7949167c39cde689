"""The very bundle on an aarch64 Python under emulation: it runs, and it answers as it does here.

Its timings mean nothing. N images, C classes, D features of the last layer.
"""

from __future__ import annotations

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

from edgedistill.devices.bench import bench
from edgedistill.devices.bundle import write_bundle
from edgedistill.export.onnx import export
from edgedistill.export.quantize import quantize
from edgedistill.recipe.schema import Bench, Export, Quantize
from edgedistill.records import Device, OnnxModel
from tests.helpers import aarch64
from tests.helpers.export_nets import CLASSES, PX, SPEC, build, normalized, pictures

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
N = 100
QUICK = Bench(processes=2, rounds=2, samples=20, seconds=0.02, accuracy_images=N)
# run by either interpreter: what the bundle's own agent computes of the bundle's images
ANSWERS = """
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
    """A bundle of fp32 and int8, the classes of its images, and the logits [N, C] of each model here."""

    folder: Path
    models: list[OnnxModel]
    labels_N: np.ndarray
    here: dict[str, np.ndarray]


def tinted(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Colour noise with a tint for each class: uint8 [N, px, px, 3] and classes [N]."""
    tints_C3 = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200], [-150, -150, -150], [0, 0, 0]])
    labels_N = np.arange(n) % CLASSES
    return np.clip(pictures(n) + tints_C3[labels_N][:, None, None], 0, 255).astype(np.uint8), labels_N


def taught(images_NHWC: np.ndarray, labels_N: np.ndarray) -> torch.nn.Module:
    """The first blocks of a MobileNetV3, hard-swish and squeeze-excite among them, with a head that tells the tints.

    The head is a ridge regression: logits of no meaning would be too close for labels to be compared.
    """
    net = build("mnv3")
    with torch.no_grad():
        features_ND = net[:-1](normalized(images_NHWC))
        mean_D, scale_D = features_ND.mean(dim=0), features_ND.std(dim=0)
        scaled_ND = (features_ND - mean_D) / scale_D
        wanted_NC = 4.0 * torch.nn.functional.one_hot(torch.from_numpy(labels_N), CLASSES) - 2.0
        gram_DD = scaled_ND.T @ scaled_ND + 1e-2 * len(labels_N) * torch.eye(len(mean_D))
        weight_DC = torch.linalg.solve(gram_DD, scaled_ND.T @ wanted_NC)
        net[-1].weight.copy_((weight_DC / scale_D[:, None]).T)
        net[-1].bias.copy_(wanted_NC.mean(dim=0) - (mean_D / scale_D) @ weight_DC)
    return net


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    folder = tmp_path_factory.mktemp("aarch64")
    images_NHWC, labels_N = tinted(N)
    fp32 = export(
        taught(images_NHWC, labels_N),
        SPEC,
        path=folder / "student.fp32.onnx",
        images_NHWC=images_NHWC[:8],
        settings=Export(),
    )
    path, settings = folder / fp32.path, Quantize(targets=("cpu",), method="minmax", calibration_images=N)
    (int8,) = quantize(path, fp32, images_NHWC=images_NHWC, settings=settings, folder=folder)
    models = [(path, fp32), (folder / int8.path, int8)]
    about = {"classes": [f"tint{at}" for at in range(CLASSES)], "input_px": PX, "store_px": PX, "fit": "crop"}
    write_bundle(
        bundle := folder / "bundle",
        models,
        description=about,
        images_NHWC=images_NHWC,
        labels_N=labels_N,
        host_predictions={},
    )
    here = {one.name: answered(Path(sys.executable), bundle, one) for _, one in models}
    host = {name: logits_NC.argmax(axis=1) for name, logits_NC in here.items()}
    write_bundle(bundle, models, description=about, images_NHWC=images_NHWC, labels_N=labels_N, host_predictions=host)
    return Shipped(folder=bundle, models=[one for _, one in models], labels_N=labels_N, here=here)


@pytest.fixture(scope="module", params=aarch64.PYTHONS, ids=lambda one: one.name)
def python(request: pytest.FixtureRequest) -> Path:
    """The emulated interpreter."""
    try:
        return aarch64.interpreter(request.param, aarch64.cache())
    except aarch64.MissingError as error:
        pytest.skip(str(error))


def answered(python: Path, bundle: Path, model: OnnxModel) -> np.ndarray:
    """Logits float32 [N, C] of the bundle's images in an interpreter."""
    out = bundle.parent / "logits.npy"
    subprocess.run([python, "-c", ANSWERS, model.path, out], cwd=bundle, check=True, timeout=600)
    logits_NC: np.ndarray = np.load(out)
    return logits_NC


def step(path: Path) -> np.ndarray:
    """How far each logit [C] moves at most where one feature that the last layer reads is one quantization step off."""
    graph = onnx.load(path).graph
    made = {name: node for node in graph.node for name in node.output}
    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    last = made[graph.output[0].name]
    assert last.op_type == "Gemm" and attribute(last, "transB") == 1
    features, weights = (made[name] for name in last.input[:2])
    weight_CD, scale_C = (constants[name].astype(np.float64) for name in weights.input[:2])
    moved_C: np.ndarray = np.abs(weight_CD * scale_C.reshape(-1, 1)).max(axis=1) * constants[features.input[1]]
    return moved_C


def attribute(node: onnx.NodeProto, name: str) -> int:
    return next((one.i for one in node.attribute if one.name == name), 0)


def test_the_bundle_is_benched_there(shipped: Shipped, python: Path, tmp_path: Path) -> None:
    device = Device(name="emulated", python=str(python))
    reports = bench(
        shipped.folder, device, backend="onnxruntime-cpu", settings=QUICK, models=shipped.models, out=tmp_path
    )
    assert [report.artefact for report in reports] == ["fp32", "int8-cpu"]
    for report in reports:
        assert report.facts["machine"] == "aarch64"
        assert report.agreement_with_host is not None and report.agreement_with_host >= 0.99
        # what is held against the host is an answer, not one class for all
        assert report.accuracy is not None and report.accuracy.n == N and report.accuracy.top1 > 0.8
        assert len(report.latency.samples_ms) >= 20
        assert len(report.facts["processes"]) == 2


def test_its_logits_are_those_of_this_machine(shipped: Shipped, python: Path) -> None:
    for model in shipped.models:
        here_NC, there_NC = shipped.here[model.name], answered(python, shipped.folder, model)
        assert float((here_NC.argmax(axis=1) == there_NC.argmax(axis=1)).mean()) >= 0.99
        path = shipped.folder / model.path
        bound = step(path) if model.precision == "int8" else 1e-4 * np.abs(here_NC).max()
        assert (np.abs(here_NC - there_NC).max(axis=0) <= bound).all()


def test_the_example_labels_a_picture_there(shipped: Shipped, python: Path, tmp_path: Path) -> None:
    for at in range(CLASSES):
        Image.fromarray(np.load(shipped.folder / "images.npy")[at]).save(tmp_path / f"{at}.png")
    pictures = [str(tmp_path / f"{at}.png") for at in range(CLASSES)]
    said = []
    for program in (Path(sys.executable), python):
        done = subprocess.run(
            [program, "label.py", *pictures],
            cwd=shipped.folder,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said.append([line.split(": ")[1].split()[0] for line in done.stdout.splitlines()])
    assert said[0] == said[1] and len(said[1]) == CLASSES


def test_one_step_of_the_last_layer_is_small(shipped: Shipped) -> None:
    """Else the bound on the logits would let anything pass."""
    logits_NC = shipped.here["int8-cpu"]
    assert (step(shipped.folder / "student.int8-cpu.onnx") < 0.02 * (logits_NC.max() - logits_NC.min())).all()
