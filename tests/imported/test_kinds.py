"""ONNX files of eleven kinds, and broken ones: each works, and answers as the file itself, or is refused by name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from benchmarks.own_models import KINDS, PX, ChannelsLast, Net, answers, scripted, textures
from edgedistill.errors import GateError, InputError
from edgedistill.export import calibrate, placement, qdq
from edgedistill.export.infer import predict_onnx
from edgedistill.imported import graph, settings, student
from edgedistill.imported.student import Preprocessing
from edgedistill.records import Target

REFUSED = {
    "quantized": r"is quantized already: node \S+ is (QuantizeLinear|DequantizeLinear)",
    "two inputs": r"has 2 inputs \(pixels, prior\)",
    "control flow": r"has control flow: node brightness is If",
}
NOTES = {"softmax": "its last Softmax was left out", "float16": "float16 weights", "opset 11": "opset 11 was converted"}
SLOW = {"torch, dynamo"}  # the exporter alone takes five seconds


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in KINDS]
)
def test_kind_answers_as_the_file_or_is_refused_by_name(name: str, tmp_path: Path) -> None:
    file, images_NHWC = KINDS[name](tmp_path / "model.onnx"), textures(10, seed=5)[0]
    if name in REFUSED:
        with pytest.raises(InputError, match=REFUSED[name]):
            graph.read(file)
        return
    imported = graph.read(file, px=PX if name == "any size" else None)
    assert NOTES.get(name, "") in " ".join(imported.notes) and bool(imported.notes) == (name in NOTES)
    model = student.as_student(imported, Preprocessing())
    onnx.checker.check_model(model, full_check=True)
    (images,) = model.graph.input
    shape = [dim.dim_value or dim.dim_param for dim in images.type.tensor_type.shape.dim]
    assert (images.name, shape) == ("images", ["batch", PX, PX, 3])
    np.testing.assert_array_equal(
        predict_onnx(model.SerializeToString(), images_NHWC).argmax(axis=1), answers(file, images_NHWC)
    )
    assert student.check(imported, model, Preprocessing(), images_NHWC)["agreement"] == 1.0
    folded = {node.op_type for node in model.graph.node}
    assert "GlobalAveragePool" in folded and not folded & {"BatchNormalization", "Softmax", "Shape", "Constant"}


def test_names_may_be_those_of_the_product(tmp_path: Path) -> None:
    names = {"input_names": ["images"], "output_names": ["logits"]}
    imported = graph.read(scripted(nn.Sequential(Net(), nn.Softmax(dim=1)), tmp_path / "model.onnx", **names))
    model = student.as_student(imported, Preprocessing())
    assert student.check(imported, model, Preprocessing(), textures(10, seed=5)[0])["agreement"] == 1.0


def test_any_size_needs_a_size(tmp_path: Path) -> None:
    file = KINDS["any size"](tmp_path / "model.onnx")
    with pytest.raises(
        InputError, match=r"images of any size; state one: `edgedistill quantize .*model.onnx --px 224`"
    ):
        graph.read(file)
    file = KINDS["torch, TorchScript"](tmp_path / "model.onnx")
    with pytest.raises(InputError, match=rf"its input is {PX} x {PX} px, not 64 px"):
        graph.read(file, px=64)


@pytest.mark.parametrize("name", ["channels first", "channels last", "any size"])
def test_input_may_be_no_square(name: str, tmp_path: Path) -> None:
    file, shape = tmp_path / "model.onnx", (1, PX, 2 * PX)
    net, dims = (ChannelsLast(), (*shape, 3)) if name == "channels last" else (Net(), (1, 3, *shape[1:]))
    free = {"dynamic_axes": {"pixels": {2: "height", 3: "width"}}} if name == "any size" else {}
    scripted(net, file, shape=dims, **free)
    imported = graph.read(file, px=shape[1:] if free else None)
    assert imported.size == (PX, 2 * PX)
    model, squares_NHWC = student.as_student(imported, Preprocessing(channels="BGR")), textures(12, seed=5)[0]
    sides_NHWC = np.concatenate([squares_NHWC[:6], squares_NHWC[6:]], axis=2)
    assert student.check(imported, model, Preprocessing(channels="BGR"), sides_NHWC)["agreement"] == 1.0
    if not free:
        with pytest.raises(InputError, match=rf"its input is {PX} x {2 * PX} px, not {2 * PX} x {PX} px; leave out"):
            graph.read(file, px=(2 * PX, PX))


def test_layers_may_share_a_weight(tmp_path: Path) -> None:
    layers = list(Net())
    shared = nn.Sequential(*layers[:4], nn.ReLU(), layers[3], *layers[5:])  # a convolution twice
    imported = graph.read(scripted(shared, tmp_path / "model.onnx"))
    weights = [node.input[1] for node in imported.model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(weights) == 6 == len(set(weights))
    model = student.as_student(imported, Preprocessing())
    assert student.check(imported, model, Preprocessing(), textures(10, seed=5)[0])["agreement"] == 1.0
    ranges = defaultdict[str, tuple[float, float]](lambda: (-10.0, 10.0))
    for target in ("cpu", "tensorrt"):
        onnx.checker.check_model(qdq.int8_graph(model, ranges, cast("Target", target)), full_check=True)


def test_size_is_a_side_or_height_and_width() -> None:
    assert (settings.size("224"), settings.size("224x320")) == (224, (224, 320))
    for text in ("", "x", "224x", "1x2x3", "-1", "2.5"):
        with pytest.raises(InputError, match="is no size"):
            settings.size(text)


def test_wrong_preprocessing_in_the_graph_fails_the_gate(tmp_path: Path) -> None:
    imported = graph.read(KINDS["torch, TorchScript"](tmp_path / "model.onnx"))
    model = student.as_student(imported, Preprocessing())
    with pytest.raises(GateError, match="answers otherwise than the file"):
        student.check(imported, model, Preprocessing(mean=(0.5, 0.5, 0.5)), textures(10, seed=5)[0])


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
@pytest.mark.parametrize("name", ["torch, TorchScript", "channels last"])
def test_range_and_channels_are_those_stated(name: str, channels: str, tmp_path: Path) -> None:
    """(value / 255 * 255 - mean) / std of the channels in the stated order, computed here by hand."""
    imported, images_NHWC = graph.read(KINDS[name](tmp_path / "model.onnx")), textures(6, seed=5)[0]
    stated = {"mean": [120, 110, 100], "std": [60, 50, 40], "range": 255, "channels": channels}
    model = student.as_student(imported, Preprocessing.model_validate(stated))
    ordered = images_NHWC if channels == "RGB" else images_NHWC[..., [2, 1, 0]]
    pixels = ((ordered.astype(np.float64) - [120, 110, 100]) / [60, 50, 40]).astype(np.float32)
    fed = pixels.transpose(0, 3, 1, 2) if imported.channels_first else pixels
    np.testing.assert_allclose(
        predict_onnx(model.SerializeToString(), images_NHWC), graph.run(imported, fed), rtol=1e-3, atol=1e-3
    )


def test_other_weights_beside_a_file_are_another_model(tmp_path: Path) -> None:
    KINDS["external data"](tmp_path / "model.onnx")
    before = graph.read(tmp_path / "model.onnx").sha256
    weights = tmp_path / "weights.bin"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1
    weights.write_bytes(bytes(content))
    after = graph.read(tmp_path / "model.onnx").sha256
    assert after != before
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/link.onnx").symlink_to(tmp_path / "model.onnx")
    assert graph.read(tmp_path / "elsewhere/link.onnx").sha256 == after


def outside(file: Path) -> None:
    KINDS["external data"](file)
    (file.parent / "weights.bin").rename(file.parent.parent / "weights.bin")
    (file.parent / "weights.bin").symlink_to(file.parent.parent / "weights.bin")


def missing(file: Path) -> None:
    KINDS["external data"](file)
    (file.parent / "weights.bin").unlink()


def parent_path(file: Path) -> None:
    model = onnx.load(KINDS["external data"](file), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../weights.bin"
    file.write_bytes(model.SerializeToString())


def text(file: Path) -> None:
    file.write_text("not a graph", encoding="utf-8")


def features(file: Path) -> None:
    model = onnx.load(scripted(Net(), file))
    pooled = next(node for node in model.graph.node if node.op_type == "Flatten").output[0]
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(pooled, TensorProto.FLOAT, [1, 64]))
    onnx.save(model, file)


def boxes(file: Path) -> None:
    model = onnx.load(scripted(Net(), file))
    conv = next(node for node in model.graph.node if node.op_type == "Conv").output[0]
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(conv, TensorProto.FLOAT, None))
    onnx.save(model, file)


def several_labels(file: Path) -> None:
    model = onnx.load(scripted(Net(), file))
    model.graph.node[-1].output[0] = "logits"
    model.graph.node.append(helper.make_node("Sigmoid", ["logits"], ["scores"]))
    onnx.save(model, file)


def foreign(file: Path) -> None:
    model = onnx.load(scripted(Net(), file))
    model.graph.node[-1].output[0] = "logits"
    model.graph.node.append(helper.make_node("FastGelu", ["logits"], ["scores"], domain="com.microsoft"))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, file)


def old(file: Path) -> None:
    model = onnx.load(scripted(Net(), file))
    model.opset_import[0].version = 10
    onnx.save(model, file)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (outside, "is in weights.bin, outside of the model's folder"),
        (parent_path, r"is in \.\./weights\.bin, outside of the model's folder"),
        (missing, "is in weights.bin, which is not there"),
        (text, "is not an ONNX file"),
        (features, "is no classifier: its output .* comes from GlobalAveragePool, as features do"),
        (boxes, r"is no classifier: its output .*, not scores of classes \[B, C\]"),
        (several_labels, "comes from Sigmoid, as several labels do"),
        (foreign, r"has the operator com\.microsoft\.FastGelu"),
        (old, "has opset 10, and 11 to 23 are supported"),
        (Path.touch, "is not an ONNX file"),
        (lambda file: None, "is not a file"),
    ],
)
def test_other_files_are_refused_by_name(make: Callable[[Path], None], problem: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    make(folder / "model.onnx")
    with pytest.raises(InputError, match=problem):
        graph.read(folder / "model.onnx")


def test_fixed_batch_in_a_constant_is_refused(tmp_path: Path) -> None:
    model = onnx.load(scripted(Net(), tmp_path / "model.onnx", shape=(2, 3, PX, PX)))
    model.graph.node[-1].output[0] = "logits"
    rows = np.array([[0.0] * 4, [9.0, 0, 0, 0]], np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(rows, "rows"))
    model.graph.node.append(helper.make_node("Add", ["logits", "rows"], ["scores"]))
    onnx.save(model, tmp_path / "model.onnx")
    imported = graph.read(tmp_path / "model.onnx")
    with pytest.raises((InputError, GateError), match="fixed"):
        student.check(imported, student.as_student(imported, Preprocessing()), Preprocessing(), textures(8, seed=5)[0])


CHANNELS, OUTPUTS = 8, 5


def with_head(file: Path, nodes: list[onnx.NodeProto], **constants: np.ndarray) -> Path:
    """A convolution, its pooled features `flat` [B, CHANNELS], and these nodes up to `scores`."""
    random = np.random.default_rng(0)
    constants["kernel"] = random.normal(size=(CHANNELS, 3, 3, 3))
    body = [
        helper.make_node("Conv", ["pixels", "kernel"], ["conv"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["r1"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r1"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
    ]
    made = helper.make_graph(
        [*body, *nodes],
        "net",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["B", 3, PX, PX])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["B", OUTPUTS])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    return file


def head(*inputs: str) -> onnx.NodeProto:
    return helper.make_node("Gemm", [*inputs], ["scores"], name="head")


RANDOM = np.random.default_rng(1)
WEIGHT, SQUARE = RANDOM.normal(size=(CHANNELS, OUTPUTS)), RANDOM.normal(size=(CHANNELS, CHANNELS))
HEADS: dict[str, tuple[list[onnx.NodeProto], dict[str, np.ndarray]]] = {
    "bias [1, C]": ([head("flat", "w", "b")], {"w": WEIGHT, "b": RANDOM.normal(size=(1, OUTPUTS))}),
    "scalar bias": ([head("flat", "w", "b")], {"w": WEIGHT, "b": np.array(0.7)}),
    "MatMul and Add of [1, C]": (
        [helper.make_node("MatMul", ["flat", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["scores"])],
        {"w": WEIGHT, "b": RANDOM.normal(size=(1, OUTPUTS))},
    ),
    "an activation as the bias": (
        [
            helper.make_node("MatMul", ["flat", "s"], ["m"]),
            helper.make_node("Add", ["m", "flat"], ["z"]),
            head("z", "w"),
        ],
        {"w": WEIGHT, "s": SQUARE},
    ),
    "names that int8 graphs give": (
        [head("flat", "w", "r1_scale")],
        {"w": WEIGHT, "r1_scale": RANDOM.normal(size=OUTPUTS)},
    ),
}


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
@pytest.mark.parametrize("name", HEADS)
def test_heads_of_every_form_are_quantized(name: str, target: Target, tmp_path: Path) -> None:
    nodes, constants = HEADS[name]
    file, images_NHWC = with_head(tmp_path / "model.onnx", nodes, **constants), textures(12, seed=6)[0]
    model = student.as_student(graph.read(file), Preprocessing())
    prepared = qdq.prepare(model, target)
    statistics = calibrate.collect(prepared, images_NHWC, placement.make_plan(prepared, target).ranged_tensors())
    int8 = qdq.int8_graph(model, calibrate.ranges(statistics, "minmax"), target)
    float_NC, int8_NC = (predict_onnx(part.SerializeToString(), images_NHWC) for part in (model, int8))
    assert np.abs(int8_NC - float_NC).max() < 0.1 * np.abs(float_NC).max()
