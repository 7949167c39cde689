"""Each pass before and after: what it changes, that the numbers stay, and that its argument stays too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from export_nets import Exported
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgedistill.export import graphs
from edgedistill.export.infer import predict_onnx
from edgedistill.export.quantize import PLACEMENTS, calibrate, int8_graph
from edgedistill.records import EdgeDistillError


def ops(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def run(model: ModelProto, images_NHWC: np.ndarray, folder: Path) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    path = folder / "graph.onnx"
    path.write_bytes(model.SerializeToString())
    return predict_onnx(path, images_NHWC, simulate=True)


def model_of(nodes: list[onnx.NodeProto], given: list[int], answer: list[int], **constants: np.ndarray) -> ModelProto:
    """A float graph x -> y with named initializers."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, given)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, answer)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def answer(model: ModelProto, x: np.ndarray) -> np.ndarray:
    return np.asarray(ReferenceEvaluator(model).run(None, {"x": x})[0])


@pytest.mark.parametrize("axes", [[2, 3], [-1, -2], [3, -2]])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_a_mean_over_the_picture_becomes_a_global_average(axes: list[int], keepdims: int) -> None:
    node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], name="mean", keepdims=keepdims)
    shape = [2, 4, 1, 1] if keepdims else [2, 4]
    before = model_of([node], [2, 4, 5, 6], shape, axes=np.array(axes, dtype=np.int64))
    untouched = before.SerializeToString()
    after = graphs.global_average_pool(before)
    assert ops(after) == (["GlobalAveragePool"] if keepdims else ["GlobalAveragePool", "Flatten"])
    assert not after.graph.initializer
    assert before.SerializeToString() == untouched
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype(np.float32)
    np.testing.assert_allclose(answer(after, x), answer(before, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("given", "axes"), [([2, 4, 5, 6], [1]), ([2, 4, 5, 6], [1, 2, 3]), ([2, 5, 6, 3, 3], [2, 3])])
def test_another_mean_is_left_alone(given: list[int], axes: list[int]) -> None:
    node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], name="mean", keepdims=1)
    shape = [1 if at in axes else size for at, size in enumerate(given)]
    before = model_of([node], given, shape, axes=np.array(axes, dtype=np.int64))
    assert graphs.global_average_pool(before) == before


def test_axes_as_an_attribute_are_read_too() -> None:
    node = helper.make_node("ReduceMean", ["x"], ["y"], name="mean", keepdims=1, axes=[2, 3])
    before = model_of([node], [2, 4, 5, 6], [2, 4, 1, 1])
    before.opset_import[0].version = 17
    assert ops(graphs.global_average_pool(before)) == ["GlobalAveragePool"]


def test_tidy_lifts_constants_and_drops_whatever_nobody_reads() -> None:
    constant = helper.make_node("Constant", [], ["two"], value_float=2.0)
    node = helper.make_node("Mul", ["x", "two"], ["y"], name="double", doc_string="File train.py, line 3")
    before = model_of([constant, node], [3], [3], unread=np.zeros(2, np.float32))
    before.metadata_props.add(key="where", value="/home/someone")
    before.graph.metadata_props.add(key="where", value="/home/someone")
    node_props = before.graph.node[1].metadata_props
    node_props.add(key="stack", value="/home/someone/train.py")
    after = graphs.tidy(before)
    assert ops(after) == ["Mul"]
    assert [tensor.name for tensor in after.graph.initializer] == ["two"]
    assert b"home" not in after.SerializeToString()
    assert b"train.py" not in after.SerializeToString()
    np.testing.assert_array_equal(answer(after, np.arange(3, dtype=np.float32)), [0, 2, 4])


def test_preprocessing_is_what_stands_before_the_first_convolution(exported: Callable[[str], Exported]) -> None:
    model = onnx.load(exported("resnet").path)
    names = set(graphs.preprocessing(model))
    assert [node.op_type for node in model.graph.node if node.name in names] == [
        "Cast",
        "Div",
        "Sub",
        "Div",
        "Transpose",
    ]


def placed(made: Exported) -> ModelProto:
    """The TensorRT placement as ONNX Runtime leaves it: Q/DQ on both branches of every residual Add."""
    model = onnx.load(made.path)
    ranges = calibrate(made.path, made.images_NHWC, "minmax")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "float_conv_branch", lambda graph: graph)
        return int8_graph(model, ranges, "tensorrt")


def float_inputs(model: ModelProto) -> list[list[str]]:
    """What each residual Add reads: the op types behind its two inputs."""
    made = graphs.producers(model)
    return [sorted(made[name].op_type for name in node.input) for node in model.graph.node if node.op_type == "Add"]


@pytest.mark.parametrize("name", ["lite", "mobilenet", "resnet"])
def test_one_branch_of_every_residual_add_becomes_float(
    name: str, exported: Callable[[str], Exported], tmp_path: Path
) -> None:
    made = exported(name)
    before = placed(made)
    untouched = before.SerializeToString()
    after = graphs.float_conv_branch(before)
    adds = ops(after).count("Add")
    assert adds >= 2
    assert float_inputs(before) == [["DequantizeLinear", "DequantizeLinear"]] * adds
    assert float_inputs(after) == [["Conv", "DequantizeLinear"]] * adds
    assert ops(before).count("QuantizeLinear") - ops(after).count("QuantizeLinear") == adds
    assert ops(before).count("DequantizeLinear") - ops(after).count("DequantizeLinear") == adds
    assert before.SerializeToString() == untouched
    # fewer roundings: the sum moves by no more than the half steps that are gone, and nearer to the float graph
    wanted = predict_onnx(made.path, made.images_NHWC)
    error = [np.abs(run(model, made.images_NHWC, tmp_path) - wanted).mean() for model in (before, after)]
    assert 0 < error[1] < 1.1 * error[0] < 0.1 * np.abs(wanted).max()


def test_where_both_branches_end_in_a_convolution_the_deeper_one_is_float(exported: Callable[[str], Exported]) -> None:
    after = graphs.float_conv_branch(placed(exported("resnet")))
    made, add = graphs.producers(after), [node for node in after.graph.node if node.op_type == "Add"][-1]
    (conv,) = [made[name] for name in add.input if made[name].op_type == "Conv"]
    # the downsample branch has a 1 x 1 kernel, the main branch a 3 x 3
    kernel = next(list(one.ints) for one in conv.attribute if one.name == "kernel_shape")
    assert kernel == [3, 3]


def test_a_branch_that_is_read_elsewhere_keeps_its_pair(exported: Callable[[str], Exported]) -> None:
    model = placed(exported("mobilenet"))
    add = next(node for node in model.graph.node if node.op_type == "Add")
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in add.input)
    after = graphs.float_conv_branch(model)
    assert float_inputs(after)[0] == ["DequantizeLinear", "DequantizeLinear"]


def test_a_graph_for_tensorrt_passes_and_one_for_the_cpu_is_refused(exported: Callable[[str], Exported]) -> None:
    made = exported("resnet")
    model, ranges = onnx.load(made.path), calibrate(made.path, made.images_NHWC, "minmax")
    graphs.refuse_for_tensorrt(int8_graph(model, ranges, "tensorrt"), "student.onnx")
    cpu = int8_graph(model, ranges, "cpu")
    first = next(node.name for node in cpu.graph.node if node.op_type.endswith("Linear"))
    with pytest.raises(EdgeDistillError, match=rf"^student\.onnx: node {first}: \w+.*TensorRT would misread it; use"):
        graphs.refuse_for_tensorrt(cpu, "student.onnx")
    assert set(PLACEMENTS) == {"cpu", "tensorrt"}


def pair(zero: np.ndarray | None, *, constant: bool = False) -> ModelProto:
    points = {} if zero is None else {"zero": zero}
    scale = ["scale", *points]
    quantized = np.array([1, 2, 3], dtype=np.int8 if zero is None else zero.dtype)
    dequantize = helper.make_node("DequantizeLinear", ["q", *scale], ["d"], name="dq")
    quantize = helper.make_node("QuantizeLinear", ["x", *scale], ["q"], name="q")
    add = helper.make_node("Add", ["x", "d"], ["y"], name="add")
    extra = {"q": quantized} if constant else {}
    nodes = [dequantize, add] if constant else [quantize, dequantize, add]
    return model_of(nodes, [3], [3], scale=np.array(0.5, np.float32), **points, **extra)


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (pair(np.array(0, np.uint8)), "node q: uint8 instead of int8"),
        (pair(np.array(3, np.int8)), "node q: zero point 3 instead of 0"),
        (pair(None), "node q: no zero point, which means uint8"),
        (pair(np.array(0, np.int32), constant=True), r"node dq: a quantized bias \(int32\)"),
        (pair(np.array(0, np.int8), constant=True), "node dq: a quantized constant that is not a weight"),
    ],
    ids=["uint8", "zero point", "no zero point", "bias", "constant"],
)
def test_what_tensorrt_misreads_is_refused_by_name(model: ModelProto, complaint: str) -> None:
    with pytest.raises(EdgeDistillError, match=complaint):
        graphs.refuse_for_tensorrt(model, "student.onnx")


def test_a_symmetric_int8_pair_is_not_refused() -> None:
    graphs.refuse_for_tensorrt(pair(np.array(0, np.int8)), "student.onnx")
