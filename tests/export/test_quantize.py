"""One calibration, two int8 graphs: their types, their fusion, their bytes, and what calibration.json says."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from export_nets import Exported, pictures

from edgedistill.export import graphs
from edgedistill.export.infer import predict_onnx
from edgedistill.export.quantize import calibrate, image_hash, quantize
from edgedistill.recipe import Quantize
from edgedistill.records import EdgeDistillError, InputError, OnnxModel
from edgedistill.run import sha256_file

SETTINGS = Quantize(calibration_images=24)


@pytest.fixture(scope="session")
def quantized(
    exported: Callable[[str], Exported], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, list[OnnxModel]]]:
    made: dict[str, tuple[Path, list[OnnxModel]]] = {}

    def get(name: str) -> tuple[Path, list[OnnxModel]]:
        if name not in made:
            folder, fp32 = tmp_path_factory.mktemp(f"{name}-int8"), exported(name)
            made[name] = folder, quantize(fp32.path, fp32.record, fp32.images_NHWC, SETTINGS, folder)
        return made[name]

    return get


Quantized = Callable[[str], tuple[Path, list[OnnxModel]]]


def as_run(path: Path, folder: Path) -> Counter[str]:
    """The ops of the graph that ONNX Runtime makes of it, hardware-specific layouts aside."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


@pytest.mark.parametrize("name", ["lite", "mobilenet", "resnet"])
def test_the_cpu_graph_runs_in_int8_from_end_to_end(
    name: str, exported: Callable[[str], Exported], quantized: Quantized, tmp_path: Path
) -> None:
    folder, (cpu, _) = quantized(name)
    convolutions = Counter(node.op_type for node in onnx.load(exported(name).path).graph.node)["Conv"]
    ops = as_run(folder / cpu.path, tmp_path)
    assert ops["QLinearConv"] == convolutions
    assert ops["QLinearAdd"] >= 2
    assert ops["QLinearGlobalAveragePool"] == ops["QGemm"] == 1
    assert not ops["Conv"] + ops["FusedConv"] + ops["Relu"] + ops["Clip"]
    # one way in, one way out
    assert ops["QuantizeLinear"] == ops["DequantizeLinear"] == 1


@pytest.mark.parametrize("name", ["lite", "mobilenet", "resnet"])
@pytest.mark.parametrize("at", [0, 1], ids=["cpu", "tensorrt"])
def test_int8_stays_close_to_fp32(
    name: str, at: int, exported: Callable[[str], Exported], quantized: Quantized
) -> None:
    folder, models = quantized(name)
    unseen = pictures(32, seed=3)
    wanted = predict_onnx(exported(name).path, unseen)
    got = predict_onnx(folder / models[at].path, unseen, simulate=models[at].target == "tensorrt")
    noise = np.sqrt(np.mean((got - wanted) ** 2)) / wanted.std()
    assert 0 < noise < 0.25


def _upstream(node: onnx.NodeProto, made: dict[str, onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The chain of first inputs, from the node up to the graph's input."""
    above = made.get(node.input[0])
    return [] if above is None else [above, *_upstream(above, made)]


def _is_behind_conv(node: onnx.NodeProto, made: dict[str, onnx.NodeProto]) -> bool:
    return any(above.op_type == "Conv" for above in _upstream(node, made))


@pytest.mark.parametrize("name", ["lite", "resnet"])
def test_preprocessing_stays_float_and_bias_is_float_for_tensorrt(name: str, quantized: Quantized) -> None:
    folder, models = quantized(name)
    for record in models:
        model = onnx.load(folder / record.path)
        made = graphs.producers(model)
        first = next(node for node in model.graph.node if node.op_type == "Conv" and not _is_behind_conv(node, made))
        assert [node.op_type for node in _upstream(first, made)] == [
            "DequantizeLinear", "QuantizeLinear", "Transpose", "Div", "Sub", "Div", "Cast",
        ]  # fmt: skip
    tensorrt = onnx.load(folder / models[1].path)
    known, made = graphs.constants(tensorrt), graphs.producers(tensorrt)
    for conv in (node for node in tensorrt.graph.node if node.op_type == "Conv"):
        assert len(conv.input) < 3 or known[conv.input[2]].dtype == np.float32
        weight = made[conv.input[1]]
        assert known[weight.input[0]].dtype == np.int8
        assert known[weight.input[1]].shape == known[weight.input[0]].shape[:1]  # a scale per channel


def test_no_pair_stands_between_a_convolution_and_its_activation_for_tensorrt(quantized: Quantized) -> None:
    folder, models = quantized("resnet")
    model = onnx.load(folder / models[1].path)
    made = graphs.producers(model)
    relus = [node for node in model.graph.node if node.op_type == "Relu"]
    assert {made[node.input[0]].op_type for node in relus} <= {"Conv", "Add"}


def test_the_records_say_what_is_on_disk(exported: Callable[[str], Exported], quantized: Quantized) -> None:
    folder, models = quantized("resnet")
    parent = exported("resnet").record
    assert [(model.path, model.target) for model in models] == [
        ("student.int8-cpu.onnx", "cpu"),
        ("student.int8-tensorrt.onnx", "tensorrt"),
    ]
    for model in models:
        assert (model.precision, model.opset, model.parent_sha256) == ("int8", parent.opset, parent.sha256)
        assert model.sha256 == sha256_file(folder / model.path)
        assert model.size_mb < 0.35 * parent.size_mb
    names = {"student.int8-cpu.onnx", "student.int8-tensorrt.onnx", "calibration.json"}
    assert {path.name for path in folder.iterdir()} == names
    assert not list(exported("resnet").path.parent.glob("*inferred*"))


def test_calibration_json_names_every_image_and_range(
    exported: Callable[[str], Exported], quantized: Quantized
) -> None:
    folder, _ = quantized("resnet")
    images = exported("resnet").images_NHWC
    saved = json.loads((folder / "calibration.json").read_text())
    assert (saved["method"], saved["images"], saved["warnings"]) == ("minmax", 24, [])
    assert saved["sha256"] == [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
    assert image_hash(images[:, ::-1][0]) == hashlib.sha256(images[0][::-1].tobytes()).hexdigest()
    logits = predict_onnx(exported("resnet").path, images)
    np.testing.assert_allclose(saved["ranges"]["logits"], [logits.min(), logits.max()], rtol=1e-4)


def test_too_few_images_are_said_and_surplus_ones_not_used(
    exported: Callable[[str], Exported], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = exported("resnet")
    few = Quantize(calibration_images=100, targets=("cpu",))
    with caplog.at_level(logging.WARNING):
        quantize(made.path, made.record, made.images_NHWC[:3], few, tmp_path)
    line = "quantize: calibrated on 3 images of the 100 asked for; train has no more"
    assert line in caplog.messages
    assert json.loads((tmp_path / "calibration.json").read_text())["warnings"] == [line]
    quantize(made.path, made.record, made.images_NHWC, Quantize(calibration_images=2, targets=("cpu",)), tmp_path)
    assert json.loads((tmp_path / "calibration.json").read_text())["images"] == 2


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_the_histogram_methods_cut_within_the_extremes_and_print_nothing(
    method: str, exported: Callable[[str], Exported], capsys: pytest.CaptureFixture[str]
) -> None:
    made = exported("resnet")
    extremes = calibrate(made.path, made.images_NHWC, "minmax")
    ranges = calibrate(made.path, made.images_NHWC, method)
    assert ranges.keys() == extremes.keys()
    assert all(low >= extremes[name][0] - 1e-5 and high <= extremes[name][1] + 1e-5
               for name, (low, high) in ranges.items())  # fmt: skip
    assert ranges != extremes
    assert not capsys.readouterr().out


def test_ranges_do_not_depend_on_how_images_are_batched(exported: Callable[[str], Exported]) -> None:
    made = exported("resnet")
    whole = calibrate(made.path, made.images_NHWC[:9], "minmax")
    parts = [calibrate(made.path, made.images_NHWC[at : at + 3], "minmax") for at in (0, 3, 6)]
    for name, (low, high) in whole.items():
        wanted = min(part[name][0] for part in parts), max(part[name][1] for part in parts)
        np.testing.assert_allclose((low, high), wanted, rtol=1e-4, atol=1e-5)


def test_a_diverged_student_is_named(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    made = exported("resnet")
    model = onnx.load(made.path)
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    weight.CopyFrom(onnx.numpy_helper.from_array(np.full(weight.dims, np.inf, np.float32), weight.name))
    path = tmp_path / "student.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(EdgeDistillError, match=r"quantize: tensor \w+ ranges from .*: train it again"):
        calibrate(path, made.images_NHWC[:2], "minmax")


def test_images_of_another_type_are_refused(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    made = exported("resnet")
    with pytest.raises(InputError, match="is not uint8"):
        quantize(made.path, made.record, made.images_NHWC.astype(np.float32), SETTINGS, tmp_path)


AGAIN = """
import sys, numpy as np
from pathlib import Path
from edgedistill.export.quantize import quantize
from edgedistill.recipe import Quantize
from edgedistill.records import OnnxModel
fp32, images, folder = map(Path, sys.argv[1:])
parent = OnnxModel("", "", "fp32", "any", 20, "", 0.0)
quantize(fp32, parent, np.load(images), Quantize(calibration_images=24), folder)
"""


def test_bytes_repeat_in_another_process_with_another_hash_seed(
    exported: Callable[[str], Exported], quantized: Quantized, tmp_path: Path
) -> None:
    made = exported("mobilenet")
    folder, models = quantized("mobilenet")
    np.save(tmp_path / "images.npy", made.images_NHWC)
    arguments = [str(made.path), str(tmp_path / "images.npy"), str(tmp_path)]
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    subprocess.run([sys.executable, "-c", AGAIN, *arguments], check=True, env=environment, timeout=120)
    for name in (*(model.path for model in models), "calibration.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name
