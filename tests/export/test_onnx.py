"""Export from torch to ONNX: the graph, reproducible bytes, and failures of the parity gate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch

from edgedistill.errors import EdgeDistillError, GateError, InputError
from edgedistill.export import graphs
from edgedistill.export import onnx as exporter
from edgedistill.export.infer import predict_onnx
from edgedistill.export.onnx import export
from edgedistill.recipe.schema import Export
from edgedistill.run.files import sha256_file
from tests.helpers.export_nets import NETS, SPEC, Exported, build, normalized, pictures


def ops(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize("name", NETS)
def test_graph_takes_raw_pixels_and_matches_torch(name: str, exported: Callable[[str], Exported]) -> None:
    student = exported(name)
    with torch.inference_mode():
        expected_NC = student.model(normalized(student.images_NHWC)).numpy()
    actual_NC = predict_onnx(student.path, student.images_NHWC)
    np.testing.assert_allclose(actual_NC, expected_NC, atol=1e-4 * np.abs(expected_NC).max())
    assert student.record.parity["agreement"] == 1.0
    assert student.record.parity["relative_error"] < 1e-4
    assert student.record.parity["n"] == len(student.images_NHWC)


@pytest.mark.parametrize("name", NETS)
def test_preprocessing_comes_first_and_unsupported_operators_are_absent(
    name: str, exported: Callable[[str], Exported]
) -> None:
    graph_ops = ops(exported(name).path)
    # TensorRT refuses to transpose uint8
    assert graph_ops.index("Cast") < graph_ops.index("Transpose") < graph_ops.index("Conv")
    assert "GlobalAveragePool" in graph_ops
    assert not {"ReduceMean", "BatchNormalization", "Gather", "Shape", "Pad", "Constant"} & set(graph_ops)


def test_input_and_output_are_named_and_typed_with_any_batch(exported: Callable[[str], Exported]) -> None:
    student = exported("resnet")
    graph = onnx.load(student.path).graph
    (graph_input,), (graph_output,) = graph.input, graph.output
    assert (graph_input.name, graph_input.type.tensor_type.elem_type) == ("images", onnx.TensorProto.UINT8)
    assert (graph_output.name, graph_output.type.tensor_type.elem_type) == ("logits", onnx.TensorProto.FLOAT)
    assert graph_input.type.tensor_type.shape.dim[0].dim_param == "batch"
    for n in (1, 3):
        assert predict_onnx(student.path, student.images_NHWC[:n]).shape == (n, SPEC.num_classes)


def test_record_matches_file(exported: Callable[[str], Exported]) -> None:
    student = exported("resnet")
    record, model = student.record, onnx.load(student.path)
    assert record.path == student.path.name
    assert record.sha256 == sha256_file(student.path)
    assert record.size_mb == student.path.stat().st_size / 1e6
    assert record.opset == model.opset_import[0].version
    assert (record.precision, record.target) == ("fp32", "any")
    assert model.ir_version <= 10  # ONNX Runtime 1.19, the oldest on a device, reads no newer


def test_equal_weights_give_equal_bytes_without_local_paths(
    tmp_path: Path, exported: Callable[[str], Exported]
) -> None:
    student, second_path, model = exported("resnet"), tmp_path / "student.fp32.onnx", build("resnet").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = [type(module) for module in model.modules()]
    export(model, SPEC, path=second_path, images_NHWC=student.images_NHWC, settings=Export())
    assert second_path.read_bytes() == student.path.read_bytes()
    for leak in (b"File ", b".py", str(Path.cwd()).encode(), str(tmp_path).encode()):
        assert leak not in second_path.read_bytes()
    assert list(tmp_path.iterdir()) == [second_path]
    # the caller's model is unchanged
    assert model.training
    assert [type(module) for module in model.modules()] == modules
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_opset_17_is_written_with_matching_ir_version(tmp_path: Path, exported: Callable[[str], Exported]) -> None:
    student, path = exported("lite"), tmp_path / "student.onnx"
    model = exporter.lower_opset(onnx.load(student.path), 17)
    graphs.write(model, path)
    assert exporter.check_opset(model, 17) == 17
    assert model.ir_version == 8
    assert "Pad" not in ops(path)  # TensorFlow-style padding is in the convolutions
    np.testing.assert_array_equal(
        predict_onnx(path, student.images_NHWC, simulate=True),
        predict_onnx(student.path, student.images_NHWC, simulate=True),
    )


def test_changed_opset_is_refused() -> None:
    graph = onnx.helper.make_model(
        onnx.helper.make_graph([], "empty", [], []), opset_imports=[onnx.helper.make_opsetid("", 20)]
    )
    assert exporter.check_opset(graph, None) == 20
    with pytest.raises(EdgeDistillError, match=r"asked for 19, the exporter gave 20"):
        exporter.check_opset(graph, 19)


def test_branches_are_merged_before_export(tmp_path: Path) -> None:
    block = timm.create_model("mobileone_s0", pretrained=False).stages[0]
    stem = torch.nn.Conv2d(3, 48, 3, stride=2)
    head = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.LazyLinear(SPEC.num_classes))
    model = torch.nn.Sequential(stem, block, head)
    with torch.no_grad():
        model(normalized(pictures(2)))
    path = tmp_path / "student.onnx"
    export(model.eval(), SPEC, path=path, images_NHWC=pictures(8), settings=Export())
    # the remaining one belongs to the preprocessing
    assert ops(path).count("Add") == 1
    assert "GlobalAveragePool" in ops(path)


def test_parity_gate_refuses_other_weights_and_names_worst_image(exported: Callable[[str], Exported]) -> None:
    student = exported("resnet")
    perturbed = build("resnet")
    with torch.no_grad():
        perturbed[-1].bias[2] += 0.05
    network = exporter.prepare_student(perturbed, SPEC)
    with pytest.raises(GateError, match=r"worst is image \d+, class 2: [-\d.]+ in torch, [-\d.]+ in ONNX"):
        exporter.check_parity(network, student.path, student.images_NHWC, Export())


def test_parity_gate_checks_labels_and_values_separately(exported: Callable[[str], Exported]) -> None:
    student = exported("resnet")
    shifted = build("resnet")
    with torch.no_grad():
        shifted[-1].bias += 100.0  # every label stays, every value moves
    network = exporter.prepare_student(shifted, SPEC)
    assert (
        exporter.check_parity(network, student.path, student.images_NHWC, Export(max_relative_error=2.0))["agreement"]
        == 1.0
    )
    with pytest.raises(GateError, match=r"agreement 1\.0000"):
        exporter.check_parity(network, student.path, student.images_NHWC, Export())


def test_non_finite_logits_fail_parity_gate(exported: Callable[[str], Exported]) -> None:
    student, network = exported("resnet"), build("resnet")
    with torch.no_grad():
        network[-1].bias[0] = float("nan")
    with pytest.raises(GateError, match="relative error inf"):
        exporter.check_parity(
            exporter.prepare_student(network, SPEC), student.path, student.images_NHWC, Export(min_agreement=0.0)
        )


@pytest.mark.parametrize(
    "images",
    [pictures(2).astype(np.float32), pictures(2)[0], pictures(2)[:0], pictures(2, px=32)],
    ids=["float", "one image", "none", "size"],
)
def test_images_of_wrong_type_or_shape_are_refused(images: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not uint8"):
        export(torch.nn.Identity(), SPEC, path=tmp_path / "student.onnx", images_NHWC=images, settings=Export())
    assert not list(tmp_path.iterdir())


def test_normalization_follows_spec_and_opset_follows_recipe(tmp_path: Path) -> None:
    class FirstPixel(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images[:, :, 0, 0]

    spec = dataclasses.replace(SPEC, num_classes=3, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    image = np.full((1, SPEC.input_px, SPEC.input_px, 3), (255, 0, 51), dtype=np.uint8)
    record = export(FirstPixel(), spec, path=tmp_path / "student.onnx", images_NHWC=image, settings=Export(opset=17))
    assert record.opset == 17
    # (255/255 - 0.5) / 0.5 = 1, (0 - 0.25) / 0.25 = -1, (51/255 - 0) / 1 = 0.2
    actual = predict_onnx(tmp_path / "student.onnx", image)
    np.testing.assert_allclose(actual, [[1.0, -1.0, 0.2]], atol=1e-6)
