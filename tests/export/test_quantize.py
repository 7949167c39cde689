"""One calibration, two int8 graphs: the files, their bytes, how `auto` chooses, and what calibration.json says."""

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

from edgedistill.errors import EdgeDistillError, InputError
from edgedistill.export import calibrate, graphs, qdq
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
    made: dict[str, tuple[Path, list[OnnxModel]]] = {}

    def get(name: str) -> tuple[Path, list[OnnxModel]]:
        if name not in made:
            folder, fp32 = tmp_path_factory.mktemp(f"{name}-int8"), exported(name)
            made[name] = (
                folder,
                quantize(fp32.path, fp32.record, images_NHWC=fp32.images_NHWC, settings=SETTINGS, folder=folder),
            )
        return made[name]

    return get


def saved(folder: Path, name: str = "calibration.json") -> dict:
    return json.loads((folder / name).read_text())


def test_the_records_say_what_is_on_disk(exported: Callable[[str], Exported], quantized: Quantized) -> None:
    folder, models = quantized("resnet")
    parent = exported("resnet").record
    assert [(model.path, model.target) for model in models] == list(zip(GRAPHS, ("cpu", "tensorrt"), strict=True))
    for model in models:
        assert (model.precision, model.opset, model.parent_sha256) == ("int8", parent.opset, parent.sha256)
        assert model.sha256 == sha256_file(folder / model.path)
        assert model.size_mb == (folder / model.path).stat().st_size / 1e6 < 0.35 * parent.size_mb
    # without val images there is nothing to guard with
    assert {path.name for path in folder.iterdir()} == {*GRAPHS, "calibration.json"}


def test_targets_come_in_the_order_asked_for(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    made = exported("resnet")
    settings = Quantize(calibration_images=4, targets=("tensorrt", "cpu"), method="minmax")
    models = quantize(made.path, made.record, images_NHWC=made.images_NHWC, settings=settings, folder=tmp_path)
    assert [model.path for model in models] == GRAPHS[::-1]


def test_the_files_are_the_graphs_of_the_ranges_that_calibration_json_holds(
    exported: Callable[[str], Exported], quantized: Quantized
) -> None:
    folder, _ = quantized("mnv3")
    model = onnx.load(exported("mnv3").path)
    ranges = {name: tuple(pair) for name, pair in saved(folder)["ranges"].items()}
    cpu, tensorrt = (onnx.load(folder / name) for name in GRAPHS)
    assert cpu == qdq.int8_graph(model, ranges, "cpu")
    assert tensorrt == graphs.half(qdq.int8_graph(model, ranges, "tensorrt"))


def test_before_opset_19_the_graph_for_tensorrt_is_in_float32(ranged: Callable[[str], Ranged]) -> None:
    model, ranges = ranged("lite")
    old = onnx.version_converter.convert_version(model, 18)
    for given, types in ((model, {np.float32, np.float16}), (old, {np.float32})):
        constants = graphs.constants(quantization.maker(given, ranges, "tensorrt")(())).values()
        assert {array.dtype.type for array in constants if array.dtype.kind == "f"} == types


def test_calibration_json_names_the_rule_every_image_and_every_range(
    exported: Callable[[str], Exported], quantized: Quantized
) -> None:
    folder, _ = quantized("resnet")
    images, got = exported("resnet").images_NHWC, saved(folder)
    assert (got["images"], got["warnings"]) == (24, [])
    assert got["sha256"] == [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
    assert set(got["tried"]) == set(calibrate.METHODS) == {"minmax", "percentile", "mse", "entropy"}
    best = got["tried"][got["method"]]
    for one in got["tried"].values():
        assert 0 < one["agreement"] <= best["agreement"] and one["noise"] > 0
        assert one["agreement"] < best["agreement"] or one["noise"] >= best["noise"]
    seen = calibrate.collect(onnx.load(exported("resnet").path), images, sorted(got["ranges"]))
    wanted = calibrate.ranges(seen, got["method"])
    assert list(got["ranges"]) == list(wanted)
    np.testing.assert_allclose(list(got["ranges"].values()), list(wanted.values()), rtol=1e-5)


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse", "entropy"])
def test_a_rule_that_is_asked_for_is_the_one_that_is_used(
    method: str, exported: Callable[[str], Exported], tmp_path: Path
) -> None:
    made = exported("resnet")
    settings = Quantize(calibration_images=8, method=method, targets=("cpu",))
    quantize(made.path, made.record, images_NHWC=made.images_NHWC, settings=settings, folder=tmp_path)
    got = saved(tmp_path)
    assert (got["method"], got["tried"], got["images"], len(got["sha256"])) == (method, {}, 8, 8)
    seen = calibrate.collect(onnx.load(made.path), made.images_NHWC[:8], ["relu"])["relu"]
    assert got["ranges"]["relu"] == pytest.approx(calibrate.METHODS[method](seen))


def test_a_terrible_rule_is_tried_and_not_chosen(
    exported: Callable[[str], Exported], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = exported("resnet")
    rules = {"terrible": lambda seen: (seen.low / 50, seen.high / 50), "minmax": calibrate.minmax}
    monkeypatch.setattr(calibrate, "METHODS", rules)
    for target in ("cpu", "tensorrt"):
        settings = Quantize(calibration_images=24, targets=(target,))
        got = quantization.calibrated(onnx.load(made.path), made.images_NHWC, settings)
        assert got.method == "minmax"
        assert got.tried["terrible"]["noise"] > 3 * got.tried["minmax"]["noise"]


def test_auto_takes_the_most_equal_labels_and_among_those_the_least_noise(
    exported: Callable[[str], Exported], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = exported("resnet")
    wanted_NC = predict_onnx(made.path, made.images_NHWC)
    shift = {"quiet": 0.0, "even": 2.0, "best": 1.0}
    names = iter(shift)

    def answers(graph: ModelProto, images_NHWC: np.ndarray, target: str) -> np.ndarray:
        name = next(names)
        got_NC = wanted_NC + shift[name]  # the same on every class: noise, and the labels stay
        if name == "quiet":
            got_NC[0] = -got_NC[0]  # one image has another label
        return got_NC

    monkeypatch.setattr(calibrate, "METHODS", dict.fromkeys(shift, calibrate.minmax))
    monkeypatch.setattr(quantization, "answers", answers)
    settings = Quantize(calibration_images=24, targets=("cpu",))
    got = quantization.calibrated(onnx.load(made.path), made.images_NHWC, settings)
    assert got.method == "best"
    assert {name: one["agreement"] for name, one in got.tried.items()} == {
        "quiet": pytest.approx(23 / 24),
        "even": 1.0,
        "best": 1.0,
    }
    assert got.tried["even"]["noise"] == pytest.approx(2 * got.tried["best"]["noise"], rel=1e-3)


def test_closeness_by_hand() -> None:
    # standard deviation of 0, 2, 2, 0 is 1; one of four values is off by 4, so the root mean square is 2
    got = quantization.closeness(np.array([[0.0, 2.0], [2.0, 0.0]]), np.array([[4.0, 2.0], [2.0, 0.0]]))
    assert got == {"agreement": 0.5, "noise": pytest.approx(2.0)}


def test_too_few_images_are_said_and_surplus_ones_not_used(
    exported: Callable[[str], Exported], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = exported("resnet")
    few = Quantize(calibration_images=100, targets=("cpu",))
    with caplog.at_level(logging.WARNING):
        quantize(made.path, made.record, images_NHWC=made.images_NHWC[:3], settings=few, folder=tmp_path)
    line = "quantize: calibrated on 3 images of the 100 asked for; train has no more"
    assert line in caplog.messages
    assert saved(tmp_path)["warnings"] == [line]
    quantize(
        made.path,
        made.record,
        images_NHWC=made.images_NHWC,
        settings=Quantize(calibration_images=2, targets=("cpu",)),
        folder=tmp_path,
    )
    assert (saved(tmp_path)["images"], saved(tmp_path)["warnings"]) == (2, [])


def test_with_val_the_guard_says_what_each_target_loses(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    made, unseen = exported("resnet"), pictures(20, seed=6)
    labels = predict_onnx(made.path, unseen).argmax(1)
    settings = Quantize(calibration_images=24, max_drop=50.0)
    models = quantize(
        made.path,
        made.record,
        images_NHWC=made.images_NHWC,
        settings=settings,
        folder=tmp_path,
        val=(unseen, labels),
        score="balanced",
    )
    assert {path.name for path in tmp_path.iterdir()} >= {*GRAPHS, "calibration.json", "guard.json"}
    said = saved(tmp_path, "guard.json")
    assert [(one["target"], one["holds"], one["max_drop"], one["floats"]) for one in said] == [
        ("cpu", True, 50.0, []),
        ("tensorrt", True, 50.0, []),
    ]
    for one, model in zip(said, models, strict=True):
        got = predict_onnx(tmp_path / model.path, unseen, simulate=model.target == "tensorrt").argmax(1)
        recalls = [np.mean(got[labels == label] == label) for label in np.unique(labels)]
        assert one["drop"]["points"] == pytest.approx(100 * (1 - np.mean(recalls)))
        assert (one["drop"]["n"], one["drop"]["images"]) == (20, 44)


def test_where_the_bound_breaks_sensitivity_json_ranks_the_layers(
    exported: Callable[[str], Exported], tmp_path: Path
) -> None:
    """Labels that are never fp32's own: nothing can be lost, so labels are made that int8 alone gets wrong."""
    made, unseen = exported("lite"), pictures(64, seed=6)
    fp32 = predict_onnx(made.path, unseen)
    settings = Quantize(calibration_images=4, method="minmax", targets=("tensorrt",), max_drop=0.0)
    (model,) = quantize(made.path, made.record, images_NHWC=made.images_NHWC, settings=settings, folder=tmp_path)
    got = predict_onnx(tmp_path / model.path, unseen, simulate=True)
    changed = fp32.argmax(1) != got.argmax(1)
    assert changed.any()
    val = unseen[changed], fp32.argmax(1)[changed]
    (model,) = quantize(
        made.path, made.record, images_NHWC=made.images_NHWC, settings=settings, folder=tmp_path, val=val
    )
    (said,) = saved(tmp_path, "guard.json")
    assert (said["before"] or said["drop"])["points"] == 100.0
    ranked = saved(tmp_path, "sensitivity.json")["tensorrt"]
    convolutions = [node.name for node in onnx.load(made.path).graph.node if node.op_type in ("Conv", "Gemm")]
    assert set(ranked) == set(convolutions)
    assert sorted(ranked.values()) == list(ranked.values())[::-1]
    assert said["floats"] == list(ranked)[: len(said["floats"])]
    assert sha256_file(tmp_path / model.path) == model.sha256


def test_a_graph_that_tensorrt_would_misread_is_not_written(
    ranged: Callable[[str], Ranged], exported: Callable[[str], Exported], tmp_path: Path
) -> None:
    cpu = qdq.int8_graph(*ranged("resnet"), "cpu")
    with pytest.raises(EdgeDistillError, match=r"student\.int8-tensorrt\.onnx: node .* uint8 instead of int8"):
        quantization.write(cpu, exported("resnet").record, "tensorrt", tmp_path)
    assert not list(tmp_path.iterdir())
    assert (
        quantization.write(cpu, dataclasses.replace(exported("resnet").record, opset=21), "cpu", tmp_path).opset == 21
    )


def test_images_of_another_type_are_refused(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    made = exported("resnet")
    with pytest.raises(InputError, match="is not uint8"):
        quantize(
            made.path, made.record, images_NHWC=made.images_NHWC.astype(np.float32), settings=SETTINGS, folder=tmp_path
        )
    assert not list(tmp_path.iterdir())


AGAIN = """
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
    made = exported("mobilenet")
    folder, models = quantized("mobilenet")
    np.save(tmp_path / "images.npy", made.images_NHWC)
    arguments = [str(made.path), str(tmp_path / "images.npy"), str(tmp_path)]
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    subprocess.run([sys.executable, "-c", AGAIN, *arguments], check=True, env=environment, timeout=120)
    for name in (*(model.path for model in models), "calibration.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name
