"""One calibration, two int8 graphs: files, reproducible bytes, the choice of `auto`, and calibration.json."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from edgedistill.agent import graph_types
from edgedistill.errors import EdgeDistillError, InputError
from edgedistill.export import calibrate, float16, graphs, guard, qdq
from edgedistill.export import quantize as quantization
from edgedistill.export.infer import predict_onnx
from edgedistill.export.quantize import quantize
from edgedistill.recipe.schema import Quantize
from edgedistill.records import OnnxModel
from edgedistill.run.files import sha256_file
from tests.helpers.export_nets import Exported, Ranged, pictures

SETTINGS = Quantize(calibration_images=24)
GRAPHS = ["student.int8-cpu.onnx", "student.int8-tensorrt.onnx"]
Quantized = Callable[[str], tuple[Path, list[OnnxModel]]]


@pytest.fixture(scope="session")
def quantized(exported: Callable[[str], Exported], tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    quantized_nets: dict[str, tuple[Path, list[OnnxModel]]] = {}

    def get(name: str) -> tuple[Path, list[OnnxModel]]:
        if name not in quantized_nets:
            folder, fp32 = tmp_path_factory.mktemp(f"{name}-int8"), exported(name)
            quantized_nets[name] = (
                folder,
                quantize(fp32.path, fp32.record, images_NHWC=fp32.images_NHWC, settings=SETTINGS, folder=folder),
            )
        return quantized_nets[name]

    return get


def saved(folder: Path, name: str = "calibration.json") -> dict:
    return json.loads((folder / name).read_text())


def test_records_match_files(exported: Callable[[str], Exported], quantized: Quantized) -> None:
    folder, models = quantized("resnet")
    parent = exported("resnet").record
    assert [(model.path, model.target) for model in models] == list(zip(GRAPHS, ("cpu", "tensorrt"), strict=True))
    for model in models:
        assert (model.precision, model.opset, model.parent_sha256) == ("int8", parent.opset, parent.sha256)
        assert model.sha256 == sha256_file(folder / model.path)
        assert model.size_mb == (folder / model.path).stat().st_size / 1e6 < 0.35 * parent.size_mb
    # without val images there is no guard.json
    assert {path.name for path in folder.iterdir()} == {*GRAPHS, "calibration.json"}


def test_targets_are_written_in_requested_order(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    student = exported("resnet")
    settings = Quantize(calibration_images=4, targets=("tensorrt", "cpu"), method="minmax")
    models = quantize(student.path, student.record, images_NHWC=student.images_NHWC, settings=settings, folder=tmp_path)
    assert [model.path for model in models] == GRAPHS[::-1]


def test_graphs_are_built_from_ranges_in_calibration_json(
    exported: Callable[[str], Exported], quantized: Quantized
) -> None:
    folder, _ = quantized("mnv3")
    model = onnx.load(exported("mnv3").path)
    ranges = {name: tuple(pair) for name, pair in saved(folder)["ranges"].items()}
    cpu, tensorrt = (onnx.load(folder / name) for name in GRAPHS)
    for graph, target in ((cpu, "cpu"), (tensorrt, "tensorrt")):
        assert [(entry.key, entry.value) for entry in graph.metadata_props] == [(graph_types.TARGET, target)]
        del graph.metadata_props[:]
    assert cpu == qdq.int8_graph(model, ranges, "cpu")
    assert tensorrt == float16.half(qdq.int8_graph(model, ranges, "tensorrt"))


def test_tensorrt_graph_is_float32_before_opset_19(ranged: Callable[[str], Ranged]) -> None:
    model, ranges = ranged("lite")
    old = onnx.version_converter.convert_version(model, 18)
    for graph, float_types in ((model, {np.float32, np.float16}), (old, {np.float32})):
        constants = graphs.constants(quantization.graph_maker(graph, ranges, "tensorrt")(())).values()
        assert {array.dtype.type for array in constants if array.dtype.kind == "f"} == float_types


def test_calibration_json_lists_rule_images_and_ranges(
    exported: Callable[[str], Exported], quantized: Quantized
) -> None:
    folder, _ = quantized("resnet")
    images, calibration = exported("resnet").images_NHWC, saved(folder)
    assert (calibration["images"], calibration["warnings"]) == (24, [])
    assert calibration["sha256"] == [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
    assert set(calibration["tried"]) == set(calibrate.METHODS) == {"minmax", "percentile", "mse", "entropy"}
    best = calibration["tried"][calibration["method"]]
    for trial in calibration["tried"].values():
        assert 0 < trial["agreement"] <= best["agreement"] and trial["noise"] > 0
        assert trial["agreement"] < best["agreement"] or trial["noise"] >= best["noise"]
    statistics = calibrate.collect(onnx.load(exported("resnet").path), images, sorted(calibration["ranges"]))
    ranges = calibrate.ranges(statistics, calibration["method"])
    assert list(calibration["ranges"]) == list(ranges)
    np.testing.assert_allclose(list(calibration["ranges"].values()), list(ranges.values()), rtol=1e-5)


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse", "entropy"])
def test_requested_rule_is_used(method: str, exported: Callable[[str], Exported], tmp_path: Path) -> None:
    student = exported("resnet")
    settings = Quantize(calibration_images=8, method=method, targets=("cpu",))
    quantize(student.path, student.record, images_NHWC=student.images_NHWC, settings=settings, folder=tmp_path)
    calibration = saved(tmp_path)
    assert (calibration["method"], calibration["tried"], calibration["images"], len(calibration["sha256"])) == (
        method,
        {},
        8,
        8,
    )
    statistics = calibrate.collect(onnx.load(student.path), student.images_NHWC[:8], ["relu"])["relu"]
    assert calibration["ranges"]["relu"] == pytest.approx(calibrate.METHODS[method](statistics))


def test_bad_rule_is_tried_and_not_chosen(exported: Callable[[str], Exported], monkeypatch: pytest.MonkeyPatch) -> None:
    student = exported("resnet")
    rules = {"terrible": lambda statistics: (statistics.low / 50, statistics.high / 50), "minmax": calibrate.minmax}
    monkeypatch.setattr(calibrate, "METHODS", rules)
    for target in ("cpu", "tensorrt"):
        settings = Quantize(calibration_images=24, targets=(target,))
        calibration = quantization.choose_ranges(onnx.load(student.path), student.images_NHWC, settings)
        assert calibration.method == "minmax"
        assert calibration.tried["terrible"]["noise"] > 3 * calibration.tried["minmax"]["noise"]


def test_auto_chooses_highest_agreement_then_lowest_noise(
    exported: Callable[[str], Exported], monkeypatch: pytest.MonkeyPatch
) -> None:
    student = exported("resnet")
    fp32_NC = predict_onnx(student.path, student.images_NHWC)
    shift = {"quiet": 0.0, "even": 2.0, "best": 1.0}
    names = iter(shift)

    def int8_logits(graph: ModelProto, images_NHWC: np.ndarray, target: str) -> np.ndarray:
        name = next(names)
        logits_NC = fp32_NC + shift[name]  # the same shift for every class: noise without changed labels
        if name == "quiet":
            logits_NC[0] = -logits_NC[0]  # one image has another label
        return logits_NC

    monkeypatch.setattr(calibrate, "METHODS", dict.fromkeys(shift, calibrate.minmax))
    monkeypatch.setattr(quantization, "int8_logits", int8_logits)
    settings = Quantize(calibration_images=24, targets=("cpu",))
    calibration = quantization.choose_ranges(onnx.load(student.path), student.images_NHWC, settings)
    assert calibration.method == "best"
    assert {name: trial["agreement"] for name, trial in calibration.tried.items()} == {
        "quiet": pytest.approx(23 / 24),
        "even": 1.0,
        "best": 1.0,
    }
    assert calibration.tried["even"]["noise"] == pytest.approx(2 * calibration.tried["best"]["noise"], rel=1e-3)


def test_closeness_matches_hand_calculation() -> None:
    # the standard deviation of 0, 2, 2, 0 is 1; one of four values is off by 4, so the root mean square is 2
    closeness = quantization.closeness(np.array([[0.0, 2.0], [2.0, 0.0]]), np.array([[4.0, 2.0], [2.0, 0.0]]))
    assert closeness == {"agreement": 0.5, "noise": pytest.approx(2.0)}


def test_too_few_images_give_warning_and_surplus_images_are_ignored(
    exported: Callable[[str], Exported], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    student = exported("resnet")
    few = Quantize(calibration_images=100, targets=("cpu",))
    with caplog.at_level(logging.WARNING):
        quantize(student.path, student.record, images_NHWC=student.images_NHWC[:3], settings=few, folder=tmp_path)
    line = "quantize: calibrated on 3 images of the 100 asked for; train has no more"
    assert line in caplog.messages
    assert saved(tmp_path)["warnings"] == [line]
    quantize(
        student.path,
        student.record,
        images_NHWC=student.images_NHWC,
        settings=Quantize(calibration_images=2, targets=("cpu",)),
        folder=tmp_path,
    )
    assert (saved(tmp_path)["images"], saved(tmp_path)["warnings"]) == (2, [])


def test_guard_reports_loss_of_each_target_with_val_images(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    student, unseen = exported("resnet"), pictures(20, seed=6)
    labels = predict_onnx(student.path, unseen).argmax(1)
    settings = Quantize(calibration_images=24, max_drop=50.0)
    models = quantize(
        student.path,
        student.record,
        images_NHWC=student.images_NHWC,
        settings=settings,
        folder=tmp_path,
        witnesses=guard.Witnesses(images_NHWC=unseen, labels_N=labels),
        score="balanced",
    )
    assert {path.name for path in tmp_path.iterdir()} >= {*GRAPHS, "calibration.json", "guard.json"}
    records = saved(tmp_path, "guard.json")
    assert [(record["target"], record["holds"], record["max_drop"], record["floats"]) for record in records] == [
        ("cpu", True, 50.0, []),
        ("tensorrt", True, 50.0, []),
    ]
    for record, model in zip(records, models, strict=True):
        predicted_N = predict_onnx(tmp_path / model.path, unseen, simulate=model.target == "tensorrt").argmax(1)
        recalls = [np.mean(predicted_N[labels == label] == label) for label in np.unique(labels)]
        assert record["drop"]["points"] == pytest.approx(100 * (1 - np.mean(recalls)))
        assert (record["drop"]["n"], record["drop"]["images"]) == (20, 44)


def test_sensitivity_json_ranks_layers_when_bound_is_broken(
    exported: Callable[[str], Exported], tmp_path: Path
) -> None:
    """Val holds only images whose label int8 changes, with fp32's labels, so int8 loses all of them."""
    student, unseen = exported("lite"), pictures(64, seed=6)
    fp32_NC = predict_onnx(student.path, unseen)
    settings = Quantize(calibration_images=4, method="minmax", targets=("tensorrt",), max_drop=0.0)
    (model,) = quantize(
        student.path, student.record, images_NHWC=student.images_NHWC, settings=settings, folder=tmp_path
    )
    int8_NC = predict_onnx(tmp_path / model.path, unseen, simulate=True)
    changed = fp32_NC.argmax(1) != int8_NC.argmax(1)
    assert changed.any()
    val = guard.Witnesses(images_NHWC=unseen[changed], labels_N=fp32_NC.argmax(1)[changed])
    (model,) = quantize(
        student.path, student.record, images_NHWC=student.images_NHWC, settings=settings, folder=tmp_path, witnesses=val
    )
    (record,) = saved(tmp_path, "guard.json")
    assert (record["before"] or record["drop"])["points"] == 100.0
    ranked = saved(tmp_path, "sensitivity.json")["tensorrt"]
    convolutions = [node.name for node in onnx.load(student.path).graph.node if node.op_type in ("Conv", "Gemm")]
    assert set(ranked) == set(convolutions)
    assert sorted(ranked.values()) == list(ranked.values())[::-1]
    assert record["floats"] == list(ranked)[: len(record["floats"])]
    assert sha256_file(tmp_path / model.path) == model.sha256


def test_graph_that_tensorrt_would_misread_is_not_written(
    ranged: Callable[[str], Ranged], exported: Callable[[str], Exported], tmp_path: Path
) -> None:
    cpu = qdq.int8_graph(*ranged("resnet"), "cpu")
    with pytest.raises(EdgeDistillError, match=r"student\.int8-tensorrt\.onnx: node .* uint8 instead of int8"):
        quantization.write(cpu, exported("resnet").record, "tensorrt", tmp_path)
    assert not list(tmp_path.iterdir())
    assert (
        quantization.write(cpu, dataclasses.replace(exported("resnet").record, opset=21), "cpu", tmp_path).opset == 21
    )


def test_images_of_wrong_type_are_refused(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    student = exported("resnet")
    with pytest.raises(InputError, match="is not uint8"):
        quantize(
            student.path,
            student.record,
            images_NHWC=student.images_NHWC.astype(np.float32),
            settings=SETTINGS,
            folder=tmp_path,
        )
    assert not list(tmp_path.iterdir())


REPEAT = """
import sys, numpy as np
from pathlib import Path
from edgedistill.export.quantize import quantize
from edgedistill.recipe.schema import Quantize
from edgedistill.records import OnnxModel
fp32, images, folder = map(Path, sys.argv[1:])
parent = OnnxModel(path="", sha256="", precision="fp32", target="any", opset=20, parent_sha256="", size_mb=0.0)
quantize(fp32, parent, np.load(images), settings=Quantize(calibration_images=24), folder=folder)
"""


def test_bytes_repeat_in_another_process_with_another_hash_seed(
    exported: Callable[[str], Exported], quantized: Quantized, tmp_path: Path
) -> None:
    student = exported("mobilenet")
    folder, models = quantized("mobilenet")
    np.save(tmp_path / "images.npy", student.images_NHWC)
    arguments = [str(student.path), str(tmp_path / "images.npy"), str(tmp_path)]
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    subprocess.run([sys.executable, "-c", REPEAT, *arguments], check=True, env=environment, timeout=120)
    for name in (*(model.path for model in models), "calibration.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name
