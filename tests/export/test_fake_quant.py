"""The float graph in torch with fake quantization: it says what the int8 graph says, and it learns."""

from __future__ import annotations

import platform
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional

from edgedistill.data.pixels import normalise
from edgedistill.errors import EdgeDistillError
from edgedistill.export import calibrate, fake_quant, graphs, qdq
from edgedistill.export.infer import predict_onnx
from edgedistill.export.placement import plan
from edgedistill.records import Target
from tests.helpers.export_nets import Exported, normalized, pictures

NAMES = ["lite", "mobilenet", "resnet", "mnv3"]
TARGETS: list[Target] = ["cpu", "tensorrt"]
x86 = pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="the kernels of x86 are meant")


def ranges_of(made: Exported, images: int = 24) -> dict[str, calibrate.Range]:
    """min-max ranges of all that any target quantizes."""
    model = onnx.load(made.path)
    names = {name for target in TARGETS for name in plan(qdq.prepared(model, target), target).ranged()}
    seen = calibrate.collect(qdq.prepared(model, "cpu"), made.images_NHWC[:images], sorted(names))
    return calibrate.ranges(seen, "minmax")


def logits(net: nn.Module, images_NHWC: np.ndarray, training: bool = False) -> np.ndarray:
    """A student's logits [N, C] in a mode."""
    with torch.inference_mode():
        return np.asarray(net.train(training)(normalized(images_NHWC)).numpy())


def noise(got: np.ndarray, wanted: np.ndarray) -> float:
    """Root mean square difference over the standard deviation."""
    return float(np.sqrt(np.mean((got - wanted) ** 2)) / wanted.std())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NAMES)
def test_torch_and_the_graph_compute_the_same(name: str, target: Target, exported: Callable[[str], Exported]) -> None:
    made, unseen = exported(name), pictures(64, seed=5)
    model, ranges = onnx.load(made.path), ranges_of(made)
    fake_NC = logits(fake_quant.student(model, ranges, target, learned=True), unseen, training=True)
    graph = qdq.int8_graph(model, ranges, target)
    graph_NC = predict_onnx(graph.SerializeToString(), unseen, simulate=True)
    float_NC = predict_onnx(made.path, unseen)
    # a value on the edge between two steps may fall to either side; quantization itself is several times as loud
    assert noise(fake_NC, graph_NC) < 0.4 * noise(graph_NC, float_NC)
    assert np.mean(fake_NC.argmax(1) == graph_NC.argmax(1)) >= 0.98


@x86
@pytest.mark.parametrize("name", NAMES)
def test_what_is_scored_for_a_cpu_is_what_its_int8_kernels_compute(
    name: str, exported: Callable[[str], Exported]
) -> None:
    made, unseen = exported(name), pictures(64, seed=5)
    model, ranges = onnx.load(made.path), ranges_of(made)
    ranges = {key: (0.7 * low, 0.7 * high) for key, (low, high) in ranges.items()}  # so that some values saturate
    net = fake_quant.student(model, ranges, "cpu", learned=True)
    graph_NC = predict_onnx(qdq.int8_graph(model, ranges, "cpu").SerializeToString(), unseen)
    np.testing.assert_array_equal(logits(net, unseen), graph_NC)
    assert (logits(net, unseen, training=True) != graph_NC).any()  # float32 sums are no integer sums


@x86
def test_pixels_halfway_between_two_steps_fall_to_the_graphs_side(exported: Callable[[str], Exported]) -> None:
    made, unseen = exported("resnet"), pictures(16, seed=5)
    model, ranges = onnx.load(made.path), ranges_of(made)
    for tensor in model.graph.initializer:  # mean and deviation 0.5
        if tensor.name in ("scale", "shift"):
            value = {"scale": 1 / 127.5, "shift": -1.0}[tensor.name]
            tensor.CopyFrom(numpy_helper.from_array(np.full(tensor.dims, value, np.float32), tensor.name))
    last = graphs.preprocessing(model)[-1]
    ranges |= {name: (-1.0, 1.0) for node in model.graph.node if node.name == last for name in node.output}
    net = fake_quant.student(model, ranges, "cpu", learned=True).eval()
    with torch.inference_mode():
        fake_NC = net(normalise(torch.from_numpy(unseen), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))).numpy()
    graph_NC = predict_onnx(qdq.int8_graph(model, ranges, "cpu").SerializeToString(), unseen)
    np.testing.assert_array_equal(fake_NC, graph_NC)


@pytest.mark.parametrize("name", NAMES)
def test_tensorrt_is_computed_literally_in_both_modes(name: str, exported: Callable[[str], Exported]) -> None:
    made = exported(name)
    net = fake_quant.student(onnx.load(made.path), ranges_of(made), "tensorrt", learned=True)
    np.testing.assert_array_equal(logits(net, made.images_NHWC), logits(net, made.images_NHWC, training=True))


@pytest.mark.parametrize("name", NAMES)
def test_without_a_step_of_training_the_graph_is_the_same(name: str, exported: Callable[[str], Exported]) -> None:
    made = exported(name)
    model, ranges = onnx.load(made.path), ranges_of(made)
    for target in TARGETS:
        same, learned = fake_quant.trained(model, fake_quant.student(model, ranges, target, learned=True))
        again = predict_onnx(qdq.int8_graph(same, learned, target).SerializeToString(), made.images_NHWC, simulate=True)
        before = predict_onnx(
            qdq.int8_graph(model, ranges, target).SerializeToString(), made.images_NHWC, simulate=True
        )
        np.testing.assert_allclose(again, before, atol=1e-5 * np.abs(before).max())


def test_a_pair_rounds_and_saturates_as_worked_out_by_hand() -> None:
    values = torch.tensor([-2.0, -0.3, 0.0, 0.3, 1.0, 9.0])
    # [-1, 1.55] in 255 steps of 0.01 about zero point 100
    fine = fake_quant.Pair(-1.0, 1.55, "cpu", learned=False)(values)
    np.testing.assert_allclose(fine.numpy(), [-1.0, -0.3, 0.0, 0.3, 1.0, 1.55], atol=1e-6)
    # the larger end, 12.7, is 127 steps of 0.1
    coarse = fake_quant.Pair(-1.0, 12.7, "tensorrt", learned=False)(torch.tensor([-0.31, 0.04, 20.0, -20.0]))
    np.testing.assert_allclose(coarse.numpy(), [-0.3, 0.0, 12.7, -12.8], atol=1e-6)


def test_ranges_learn_only_where_they_may() -> None:
    for learned in (True, False):
        pair = fake_quant.Pair(-1.0, 1.0, "cpu", learned)
        values = torch.linspace(-2, 2, 50, requires_grad=True)
        functional.mse_loss(pair(values), values.detach()).backward()  # type: ignore[no-untyped-call]
        assert (pair.moved.grad is not None) == learned
        if learned:
            assert pair.moved.grad is not None
            assert (pair.moved.grad < 0).all()  # values lie outside on both sides: wider ends are better
        inside = values.detach().abs() < 0.99
        assert values.grad is not None
        assert (values.grad[~inside & (values.detach().abs() > 1.01)] == 0).all()  # what saturates cannot help


def test_weights_are_on_their_grid_and_pass_the_gradient() -> None:
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    steps = fake_quant.weight_step(weight, 0, "cpu")
    made = fake_quant.on_grid(weight, steps)
    stored = made.detach() / steps
    np.testing.assert_allclose(stored.numpy(), stored.round().numpy(), atol=1e-4)
    assert stored.abs().amax((1, 2, 3)).tolist() == pytest.approx([127.0] * 4)
    made.sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert (weight.grad == 1).all()


def spoiled(made: Exported) -> tuple[onnx.ModelProto, dict[str, calibrate.Range]]:
    """A graph and ranges so wide that int8 hears little but its own rounding."""
    ranges = {name: (12 * low, 12 * high) for name, (low, high) in ranges_of(made).items()}
    return onnx.load(made.path), ranges


@pytest.mark.parametrize("learned", [True, False], ids=["learned", "frozen"])
def test_training_wins_back_most_of_what_a_bad_calibration_lost(
    learned: bool, exported: Callable[[str], Exported]
) -> None:
    made = exported("mobilenet")
    model, ranges = spoiled(made)
    images, wanted = normalized(made.images_NHWC), torch.from_numpy(predict_onnx(made.path, made.images_NHWC))
    net = fake_quant.student(model, ranges, "cpu", learned)
    _, start = fake_quant.trained(model, net)
    before = functional.mse_loss(net(images), wanted).item()
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        functional.mse_loss(net(images), wanted).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    tuned, found = fake_quant.trained(model, net)
    after_NC = predict_onnx(qdq.int8_graph(tuned, found, "cpu").SerializeToString(), made.images_NHWC)
    if platform.machine() in {"x86_64", "AMD64"}:
        np.testing.assert_array_equal(logits(net, made.images_NHWC), after_NC)
    assert np.mean((after_NC - wanted.numpy()) ** 2) < 0.5 * before
    moved = [abs(found[name][1] - high) > 1e-3 * abs(high) for name, (_, high) in start.items()]
    assert any(moved) == learned


def test_a_student_has_the_parts_that_training_asks_for(exported: Callable[[str], Exported]) -> None:
    made = exported("resnet")
    net = fake_quant.student(onnx.load(made.path), ranges_of(made), "cpu", learned=True)
    features = net.backbone(normalized(made.images_NHWC[:2]))  # type: ignore[operator]
    assert features.shape == (2, 128)
    assert net.head.in_features == 128  # type: ignore[union-attr]
    assert not [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]


def test_an_operator_that_cannot_be_trained_is_named(exported: Callable[[str], Exported]) -> None:
    made = exported("resnet")
    model = onnx.load(made.path)
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type = "Softplus"
    with pytest.raises(EdgeDistillError, match=r"quantize\.qat: this student has the operators Softplus"):
        fake_quant.student(model, ranges_of(made), "cpu", learned=True)
