"""Files of eleven kinds that people bring: what `edgedistill quantize`, ONNX Runtime and ModelOpt answer.

    python -m benchmarks.own_models [--names softmax float16]

Every file is made from one small net, whose last layer is fitted to pictures of four textures. A line is one file.
ModelOpt is installed into an environment of its own, for a CPU. Its int8 graphs are for TensorRT, and are computed as
written.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from PIL import Image
from torch import nn

from benchmarks.lines import append, read, run_program
from benchmarks.quantize.environments import PEERS, SCRIPTS, Built, PeerError, environment, run_command
from edgedistill.console import say
from edgedistill.errors import EdgeDistillError

KIND, PX, CLASSES = "own-models", 48, 4
TOOLS = {"ours": "reason", "static": "static_reason", "modelopt": "modelopt_reason"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def textures(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures, uint8 [n, PX, PX, 3], and their classes: stripes of four directions in colors of their own."""
    generator = np.random.default_rng(seed)
    labels_N = np.arange(n) % CLASSES
    row, column = np.mgrid[:PX, :PX]
    pictures = []
    for label in labels_N:
        angle, phase = np.pi * label / CLASSES + generator.normal(0, 0.1), generator.uniform(0, 6)
        stripes = np.sin(0.7 * (row * np.sin(angle) + column * np.cos(angle)) + phase)
        tint = 20 * np.eye(3)[label % 3] + generator.normal(0, 25, 3)
        pictures.append(128 + 45 * stripes[..., None] + tint + generator.normal(0, 25, (PX, PX, 3)))
    return np.clip(pictures, 0, 255).astype(np.uint8), labels_N


def normalized(images_NHWC: np.ndarray) -> torch.Tensor:
    """The net's input, float32 [N, 3, PX, PX]."""
    scaled = (images_NHWC / 255.0 - np.array(MEAN)) / np.array(STD)
    return torch.from_numpy(scaled.transpose(0, 3, 1, 2).astype(np.float32))


class Net(nn.Sequential):
    """A small convolutional classifier; batch norms have real statistics, and the last layer is fitted."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for inputs, outputs, stride, groups in ((3, 24, 2, 1), (24, 24, 1, 24), (24, 32, 1, 1), (32, 64, 2, 1)):
            kernel = 1 if groups == 1 and stride == 1 else 3
            layers.append(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False))
            layers += [nn.BatchNorm2d(outputs, momentum=None), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))
        images_NHWC, labels_N = textures(240, seed=1)
        with torch.no_grad():
            self.train()(normalized(images_NHWC))
            features_ND = nn.Sequential(*list(self.eval())[:-1])(normalized(images_NHWC)).double()
            rows = torch.cat([features_ND, torch.ones(len(labels_N), 1)], dim=1)
            targets = 8 * torch.eye(CLASSES, dtype=torch.float64)[torch.from_numpy(labels_N)] - 2
            fitted = torch.linalg.solve(rows.T @ rows + 0.01 * torch.eye(65), rows.T @ targets)
            self[-1].weight.copy_(fitted[:-1].T)  # type: ignore[operator]
            self[-1].bias.copy_(fitted[-1])  # type: ignore[operator]


class ChannelsLast(nn.Module):
    """The net behind a transposition."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Scores of images [B, H, W, 3]."""
        scores: torch.Tensor = self.net(images.permute(0, 3, 1, 2))
        return scores


class TwoInputs(nn.Module):
    """The net with a second input, which is added to the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, images: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
        """Scores of images and a prior."""
        scores: torch.Tensor = self.net(images) + prior
        return scores


def scripted(
    net: nn.Module, file: Path, *more: torch.Tensor, shape: Sequence[int] = (1, 3, PX, PX), **options: Any
) -> Path:
    """Write a net by torch's TorchScript exporter."""
    kind = next(net.parameters()).dtype
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = {"opset_version": 17, "input_names": ["pixels"], "output_names": ["scores"], **options}
        torch.onnx.export(net.eval(), (torch.zeros(*shape, dtype=kind), *more), str(file), dynamo=False, **settings)
    return file


def dynamo(file: Path) -> Path:
    """Torch's newer exporter, with a dynamic batch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = {"input": {0: "batch"}}
        program = torch.onnx.export(
            Net(), (torch.zeros(2, 3, PX, PX),), dynamic_shapes=shapes, dynamo=True, external_data=False, verbose=False
        )
    assert program is not None
    onnx.save(program.model_proto, file)
    return file


def quantized(file: Path) -> Path:
    """An int8 graph of ONNX Runtime."""
    static(scripted(Net(), file.with_name("float.onnx")), file, textures(32, seed=2)[0])
    return file


def external(file: Path) -> Path:
    """Weights in a second file beside the model."""
    model = onnx.load(scripted(Net(), file))
    onnx.save(model, file, save_as_external_data=True, location="weights.bin", size_threshold=64)
    return file


def control_flow(file: Path) -> Path:
    """An If whose branch depends on the image."""
    model = onnx.load(scripted(Net(), file))
    graph = model.graph
    graph.node[-1].output[0] = "plain"
    branches = {}
    for name, operator in (("then_branch", "Identity"), ("else_branch", "Neg")):
        node = helper.make_node(operator, ["plain"], [f"{name}_scores"])
        ends = [helper.make_tensor_value_info(f"{name}_scores", TensorProto.FLOAT, [1, CLASSES])]
        branches[name] = helper.make_graph([node], name, [], ends)
    graph.node.append(helper.make_node("ReduceMean", ["pixels"], ["level"], keepdims=0))
    graph.node.append(helper.make_node("Cast", ["level"], ["bright"], to=TensorProto.BOOL))
    graph.node.append(helper.make_node("If", ["bright"], ["scores"], name="brightness", **branches))
    onnx.save(model, file)
    return file


FREE = {"pixels": {0: "batch", 2: "height", 3: "width"}, "scores": {0: "batch"}}
KINDS: Mapping[str, Callable[[Path], Path]] = {
    "torch, dynamo": dynamo,
    "torch, TorchScript": lambda file: scripted(Net(), file),
    "channels last": lambda file: scripted(ChannelsLast(), file, shape=(1, PX, PX, 3)),
    "softmax": lambda file: scripted(nn.Sequential(Net(), nn.Softmax(dim=1)), file),
    "float16": lambda file: scripted(Net().half(), file),
    "quantized": quantized,
    "external data": external,
    "any size": lambda file: scripted(Net(), file, dynamic_axes=FREE),
    "two inputs": lambda file: scripted(TwoInputs(), file, torch.zeros(1, CLASSES), input_names=["pixels", "prior"]),
    "opset 11": lambda file: scripted(Net(), file, opset_version=11),
    "control flow": control_flow,
}


def static(model: Path, out: Path, images_NHWC: np.ndarray) -> None:
    """ONNX Runtime's quantize_static with every default, the calibration images apart."""
    import onnxruntime as ort
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    inputs = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"]).get_inputs()
    feeds = iter([feed(inputs, images_NHWC[row : row + 1]) for row in range(len(images_NHWC))])

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(feeds, None)

    quantize_static(str(model), str(out), Reader())


def feed(inputs: Sequence[Any], images_NHWC: np.ndarray) -> dict[str, np.ndarray]:
    """What a session of any kind is fed for images."""
    pixels = normalized(images_NHWC).numpy()
    arrays = {}
    for entry in inputs:
        array = pixels if len(entry.shape) == 4 else np.zeros((1, CLASSES), np.float32)
        array = array.transpose(0, 2, 3, 1) if len(entry.shape) == 4 and entry.shape[3] == 3 else array
        arrays[entry.name] = array.astype(np.float16 if entry.type == "tensor(float16)" else np.float32)
    return arrays


def answers(model: Path, images_NHWC: np.ndarray, *, as_written: bool = False) -> np.ndarray:
    """The classes that a file gives to images, one by one; `as_written` leaves out what ONNX Runtime fuses."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    if as_written:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    rows = [feed(session.get_inputs(), images_NHWC[row : row + 1]) for row in range(len(images_NHWC))]
    return np.array([int(session.run(None, row)[0].argmax()) for row in rows])


def modelopt(model: Path, images_NHWC: np.ndarray, built: Built) -> Path:
    """ModelOpt's int8 graph of a file, with every default but the calibration on a CPU.

    Raises:
        PeerError: it fails; the message is the last line of what it prints.
    """
    import onnxruntime as ort

    out, images = model.with_name("modelopt.onnx"), model.with_name("calibration.npz")
    inputs = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"]).get_inputs()
    feeds = [feed(inputs, images_NHWC[row : row + 1]) for row in range(len(images_NHWC))]
    inputs_by_name = {entry.name: np.concatenate([arrays[entry.name] for arrays in feeds]) for entry in inputs}
    np.savez(images, **inputs_by_name)  # type: ignore[arg-type]
    words = ["--model", str(model), "--calibration", str(images), "--out", str(out), "--mode", "default"]
    run_command([str(built.python), str(SCRIPTS / PEERS["modelopt"].script), *words])
    return out


def quantizing_nodes(model: Path) -> int:
    """How many QuantizeLinear a file has."""
    return sum(node.op_type == "QuantizeLinear" for node in onnx.load(model, load_external_data=False).graph.node)


def measure(name: str, folder: Path, built: Built) -> dict[str, Any]:
    """The answers of the three tools to a kind of file: agreement with that file on other images, or the reason."""
    from edgedistill.export.infer import predict_onnx
    from edgedistill.imported.quantize import quantize

    model = KINDS[name](folder / "model.onnx")
    calibration_NHWC, compared_NHWC = textures(64, seed=2)[0], textures(200, seed=3)[0]
    (folder / "photos").mkdir()
    for row, image in enumerate([*calibration_NHWC, *calibration_NHWC[:, ::-1]]):
        Image.fromarray(image).save(folder / f"photos/{row:03}.png")
    line: dict[str, Any] = {"name": name, "ours": None, "reason": "", "static": None, "static_reason": "", "kept": ""}
    try:
        written = quantize(model, folder / "photos", out=folder / "out", px=PX if name == "any size" else None)
        float_N = answers(model, compared_NHWC)
        int8_NC = predict_onnx(written / "student.int8-cpu.onnx", compared_NHWC)
        line["ours"] = float((int8_NC.argmax(axis=1) == float_N).mean())
    except EdgeDistillError as error:
        line["reason"] = str(error).replace(str(folder), "").lstrip("/")
    try:
        static(model, folder / "static.onnx", calibration_NHWC)
        line["static"] = float((answers(folder / "static.onnx", compared_NHWC) == answers(model, compared_NHWC)).mean())
    except Exception as error:  # whatever a tool raises is its answer
        line["static_reason"] = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}".replace(str(folder), "")
    return line | modelopt_answer(model, calibration_NHWC, compared_NHWC, built)


def modelopt_answer(
    model: Path, calibration_NHWC: np.ndarray, compared_NHWC: np.ndarray, built: Built
) -> dict[str, Any]:
    """ModelOpt's part of a line: agreement with the file on the compared images, or the reason."""
    line: dict[str, Any] = {"modelopt": None, "modelopt_reason": "", "modelopt_packages": dict(built.versions)}
    try:
        graph = modelopt(model, calibration_NHWC, built)
        equal_N = answers(graph, compared_NHWC, as_written=True) == answers(model, compared_NHWC)
        line["modelopt"] = float(equal_N.mean())
        if quantizing_nodes(graph) <= quantizing_nodes(model):
            line["modelopt_reason"] = "left as it is"
    except PeerError as error:
        line["modelopt_reason"] = str(error)
    except Exception as error:  # ONNX Runtime's errors share no base class
        line["modelopt_reason"] = f"its graph does not run: {' '.join(str(error).split())[:120]}"
    return line


def table() -> str:
    """The table of docs/your-model.md."""
    newest = {line["name"]: line for line in read(KIND)}
    rows = [
        "| file | edgedistill quantize | ONNX Runtime's quantize_static | ModelOpt's quantize |",
        "| --- | --- | --- | --- |",
    ]
    for name in KINDS:
        if line := newest.get(name):
            ours = f"{line['ours']:.1%}" if line["ours"] is not None else line["reason"]
            peer = f"{line['static']:.1%}" if line["static"] is not None else line["static_reason"]
            rows.append(f"| {name} | {ours} | {peer} | {_modelopt_cell(line)} |")
    return "\n".join(rows)


def _modelopt_cell(line: Mapping[str, Any]) -> str:
    share, reason = line.get("modelopt"), line.get("modelopt_reason", "-")
    return reason if share is None else f"{share:.1%}" + (f", {reason}" if reason else "")


def main() -> int:
    """Measure every kind, or those named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="*", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--runs", type=Path, default=Path("runs/own-models"), help="folder of ModelOpt's environment")
    options = parser.parse_args()
    built = environment(PEERS["modelopt"].environment, options.runs / "environments")
    for name in options.names:
        with tempfile.TemporaryDirectory(prefix="edgedistill-") as folder:
            line = measure(name, Path(folder), built)
        append(KIND, line)
        shares = (line[tool] or line[reason] for tool, reason in TOOLS.items())
        say(f"{name}: {' | '.join(map(str, shares))}")
    return 0


if __name__ == "__main__":
    run_program(main)
