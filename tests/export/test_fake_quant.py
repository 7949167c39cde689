"""The float graph in torch with fake quantization: it computes what the int8 graph computes, and it trains."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

from edgedistill.data.pixels import normalize
from edgedistill.errors import EdgeDistillError
from edgedistill.export import calibrate, fake_quant, graphs, operators, qdq
from edgedistill.export.infer import predict_onnx
from edgedistill.export.placement import make_plan
from edgedistill.records import Target
from tests.helpers.export_nets import Exported, normalized, pictures

NAMES = ["lite", "mobilenet", "resnet", "mnv3"]
TARGETS: list[Target] = ["cpu", "tensorrt"]
x86 = pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="compares with the x86 kernels")


def ranges_of(student: Exported, images: int = 24) -> dict[str, calibrate.Range]:
    """Return min-max ranges of every tensor that any target quantizes."""
    model = onnx.load(student.path)
    names = {name for target in TARGETS for name in make_plan(qdq.prepare(model, target), target).ranged_tensors()}
    samples = calibrate.collect(qdq.prepare(model, "cpu"), student.images_NHWC[:images], sorted(names))
    return calibrate.ranges(samples, "minmax")


def logits(net: nn.Module, images_NHWC: np.ndarray, training: bool = False) -> np.ndarray:
    """Return a student's logits [N, C] in training or eval mode."""
    with torch.inference_mode():
        return np.asarray(net.train(training)(normalized(images_NHWC)).numpy())


def noise(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return the root mean square difference divided by the standard deviation of `expected`."""
    return float(np.sqrt(np.mean((actual - expected) ** 2)) / expected.std())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NAMES)
def test_torch_and_int8_graph_compute_the_same(name: str, target: Target, exported: Callable[[str], Exported]) -> None:
    student, unseen = exported(name), pictures(64, seed=5)
    model, ranges = onnx.load(student.path), ranges_of(student)
    fake_NC = logits(fake_quant.student(model, ranges, target, learned=True), unseen, training=True)
    graph = qdq.int8_graph(model, ranges, target)
    graph_NC = predict_onnx(graph.SerializeToString(), unseen, simulate=True)
    float_NC = predict_onnx(student.path, unseen)
    # a value halfway between two steps may round either way; the noise of quantization itself is several times larger
    assert noise(fake_NC, graph_NC) < 0.4 * noise(graph_NC, float_NC)
    assert np.mean(fake_NC.argmax(1) == graph_NC.argmax(1)) >= 0.98


@x86
@pytest.mark.parametrize("name", NAMES)
def test_cpu_eval_mode_equals_int8_kernels_exactly(name: str, exported: Callable[[str], Exported]) -> None:
    student, unseen = exported(name), pictures(64, seed=5)
    model, ranges = onnx.load(student.path), ranges_of(student)
    ranges = {key: (0.7 * low, 0.7 * high) for key, (low, high) in ranges.items()}  # so that some values saturate
    net = fake_quant.student(model, ranges, "cpu", learned=True)
    graph_NC = predict_onnx(qdq.int8_graph(model, ranges, "cpu").SerializeToString(), unseen)
    np.testing.assert_array_equal(logits(net, unseen), graph_NC)
    assert (logits(net, unseen, training=True) != graph_NC).any()  # training sums in float32, not in integers


@x86
def test_pixels_halfway_between_two_steps_round_as_in_graph(exported: Callable[[str], Exported]) -> None:
    student, unseen = exported("resnet"), pictures(16, seed=5)
    model, ranges = onnx.load(student.path), ranges_of(student)
    for tensor in model.graph.initializer:  # mean and deviation 0.5
        if tensor.name in ("scale", "shift"):
            constant = {"scale": 1 / 127.5, "shift": -1.0}[tensor.name]
            tensor.CopyFrom(numpy_helper.from_array(np.full(tensor.dims, constant, np.float32), tensor.name))
    last_node = graphs.preprocessing(model)[-1]
    ranges |= {name: (-1.0, 1.0) for node in model.graph.node if node.name == last_node for name in node.output}
    net = fake_quant.student(model, ranges, "cpu", learned=True).eval()
    with torch.inference_mode():
        fake_NC = net(normalize(torch.from_numpy(unseen), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))).numpy()
    graph_NC = predict_onnx(qdq.int8_graph(model, ranges, "cpu").SerializeToString(), unseen)
    np.testing.assert_array_equal(fake_NC, graph_NC)


@pytest.mark.parametrize("name", NAMES)
def test_tensorrt_student_computes_the_same_in_both_modes(name: str, exported: Callable[[str], Exported]) -> None:
    student = exported(name)
    net = fake_quant.student(onnx.load(student.path), ranges_of(student), "tensorrt", learned=True)
    np.testing.assert_array_equal(logits(net, student.images_NHWC), logits(net, student.images_NHWC, training=True))


@pytest.mark.parametrize("name", NAMES)
def test_untrained_student_gives_the_same_graph(name: str, exported: Callable[[str], Exported]) -> None:
    student = exported(name)
    model, ranges = onnx.load(student.path), ranges_of(student)
    for target in TARGETS:
        unchanged, learned = fake_quant.trained_graph(model, fake_quant.student(model, ranges, target, learned=True))
        rebuilt_NC = predict_onnx(
            qdq.int8_graph(unchanged, learned, target).SerializeToString(), student.images_NHWC, simulate=True
        )
        original_NC = predict_onnx(
            qdq.int8_graph(model, ranges, target).SerializeToString(), student.images_NHWC, simulate=True
        )
        np.testing.assert_allclose(rebuilt_NC, original_NC, atol=1e-5 * np.abs(original_NC).max())


def test_pair_rounds_and_saturates_as_calculated_by_hand() -> None:
    values = torch.tensor([-2.0, -0.3, 0.0, 0.3, 1.0, 9.0])
    # [-1, 1.55] in 255 steps of 0.01 about zero point 100
    fine = fake_quant.Pair(-1.0, 1.55, "cpu", learned=False)(values)
    np.testing.assert_allclose(fine.numpy(), [-1.0, -0.3, 0.0, 0.3, 1.0, 1.55], atol=1e-6)
    # the larger end, 12.7, is 127 steps of 0.1
    coarse = fake_quant.Pair(-1.0, 12.7, "tensorrt", learned=False)(torch.tensor([-0.31, 0.04, 20.0, -20.0]))
    np.testing.assert_allclose(coarse.numpy(), [-0.3, 0.0, 12.7, -12.8], atol=1e-6)


def test_ranges_get_gradients_only_when_learned() -> None:
    for learned in (True, False):
        pair = fake_quant.Pair(-1.0, 1.0, "cpu", learned)
        values = torch.linspace(-2, 2, 50, requires_grad=True)
        functional.mse_loss(pair(values), values.detach()).backward()  # type: ignore[no-untyped-call]
        assert (pair.moved.grad is not None) == learned
        if learned:
            assert pair.moved.grad is not None
            assert (pair.moved.grad < 0).all()  # values lie outside the range on both sides: a wider range is better
        inside = values.detach().abs() < 0.99
        assert values.grad is not None
        assert (values.grad[~inside & (values.detach().abs() > 1.01)] == 0).all()  # saturated values get no gradient


def test_weights_are_on_grid_and_pass_gradient() -> None:
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    steps = fake_quant.weight_step(weight, 0, "cpu")
    quantized = fake_quant.round_to_steps(weight, steps)
    stored = quantized.detach() / steps
    np.testing.assert_allclose(stored.numpy(), stored.round().numpy(), atol=1e-4)
    assert stored.abs().amax((1, 2, 3)).tolist() == pytest.approx([127.0] * 4)
    quantized.sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert (weight.grad == 1).all()


def badly_calibrated(student: Exported) -> tuple[onnx.ModelProto, dict[str, calibrate.Range]]:
    """Return a graph and ranges so wide that rounding dominates its int8 values."""
    ranges = {name: (12 * low, 12 * high) for name, (low, high) in ranges_of(student).items()}
    return onnx.load(student.path), ranges


@pytest.mark.parametrize(
    "learned", [pytest.param(True, id="learned"), pytest.param(False, id="frozen", marks=pytest.mark.slow)]
)
def test_training_recovers_most_of_bad_calibration_loss(learned: bool, exported: Callable[[str], Exported]) -> None:
    student = exported("mobilenet")
    model, ranges = badly_calibrated(student)
    images_BCHW = normalized(student.images_NHWC)
    expected_NC = torch.from_numpy(predict_onnx(student.path, student.images_NHWC))
    net = fake_quant.student(model, ranges, "cpu", learned)
    _, start = fake_quant.trained_graph(model, net)
    before = functional.mse_loss(net(images_BCHW), expected_NC).item()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        functional.mse_loss(net(images_BCHW), expected_NC).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    tuned, tuned_ranges = fake_quant.trained_graph(model, net)
    after_NC = predict_onnx(qdq.int8_graph(tuned, tuned_ranges, "cpu").SerializeToString(), student.images_NHWC)
    if platform.machine() in {"x86_64", "AMD64"}:
        np.testing.assert_array_equal(logits(net, student.images_NHWC), after_NC)
    assert np.mean((after_NC - expected_NC.numpy()) ** 2) < 0.5 * before
    moved = [abs(tuned_ranges[name][1] - high) > 1e-3 * abs(high) for name, (_, high) in start.items()]
    assert any(moved) == learned


def test_student_has_backbone_and_head(exported: Callable[[str], Exported]) -> None:
    student = exported("resnet")
    net = fake_quant.student(onnx.load(student.path), ranges_of(student), "cpu", learned=True)
    features = net.backbone(normalized(student.images_NHWC[:2]))  # type: ignore[operator]
    assert features.shape == (2, 128)
    assert net.head.in_features == 128  # type: ignore[union-attr]
    assert not [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]


def test_untrainable_operator_is_refused_by_name(exported: Callable[[str], Exported]) -> None:
    student = exported("resnet")
    model = onnx.load(student.path)
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type = "Softplus"
    with pytest.raises(EdgeDistillError, match=r"quantize\.qat: this student has the operators Softplus"):
        fake_quant.student(model, ranges_of(student), "cpu", learned=True)


@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [
        ("AveragePool", {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}),
        ("Gemm", {"alpha": 0.5}),
        ("Gemm", {"beta": 3.0}),
        ("HardSigmoid", {"alpha": 0.1}),
        ("MaxPool", {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"}),
    ],
)
def test_attribute_that_torch_does_not_compute_is_refused(op_type: str, attributes: dict[str, Any]) -> None:
    assert not operators.is_computed(helper.make_node(op_type, ["a", "b"], ["c"], **attributes))
    kept = {name: attribute for name, attribute in attributes.items() if name == "kernel_shape"}
    assert operators.is_computed(helper.make_node(op_type, ["a", "b"], ["c"], **kept)) == (op_type != "HardSigmoid")


def test_upper_bound_alone_is_not_taken_for_the_lower() -> None:
    assert not operators.is_computed(helper.make_node("Clip", ["a", "", "high"], ["b"]))
    assert operators.is_computed(helper.make_node("Clip", ["a", "low", "high"], ["b"]))


@pytest.mark.parametrize(
    "attributes", [{"ceil_mode": 1}, {"dilations": [2, 2]}, {"pads": [0, 0, 1, 1], "ceil_mode": 1}]
)
def test_max_pool_is_that_of_onnxruntime(attributes: dict[str, Any]) -> None:
    node = helper.make_node("MaxPool", ["a"], ["b"], kernel_shape=[3, 3], strides=[2, 2], **attributes)
    values = np.random.default_rng(0).normal(size=(2, 3, 12, 14)).astype(np.float32)
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("a", "b")]
    model = helper.make_model(
        helper.make_graph([node], "pool", info[:1], info[1:]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    (expected,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"a": values})
    np.testing.assert_array_equal(operators.OPERATORS["MaxPool"](node, torch.from_numpy(values)).numpy(), expected)
