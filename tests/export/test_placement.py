"""Where the pairs stand: by hand on chains of a few nodes, and on real blocks for both targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper

from edgedistill.export import graphs, qdq
from edgedistill.export.infer import predict_onnx
from edgedistill.export.placement import Plan, layers, plan
from edgedistill.records import Target
from tests.helpers.export_nets import NETS, Exported, Ranged
from tests.helpers.small_graphs import chain, model_of

TARGETS: tuple[Target, ...] = ("cpu", "tensorrt")


def prepared(exported: Exported, target: Target) -> ModelProto:
    return qdq.prepared(onnx.load(exported.path), target)


CHAIN = Plan(
    target="tensorrt",
    pairs=("x", "t1", "t2", "t3"),
    behind=frozenset({("Conv0", "x"), ("Conv2", "t1"), ("MaxPool3", "t2"), ("Conv4", "t3")}),
    weights=frozenset({"Conv0", "Conv2", "Conv4"}),
    absorbed=frozenset(),
    shares={"t3": "t2"},
)


def test_a_chain_for_the_cpu_has_a_pair_everywhere_but_before_its_activation_and_at_the_end() -> None:
    got = plan(chain("Conv", "Relu", "Conv", "MaxPool", "Conv"), "cpu")
    assert got == replace(CHAIN, target="cpu", absorbed=frozenset({"Relu1"}))
    assert got.ranged() == ["t1", "t2", "x"]


def test_a_chain_for_tensorrt_has_pairs_on_what_is_read_alone() -> None:
    assert plan(chain("Conv", "Relu", "Conv", "MaxPool", "Conv"), "tensorrt") == CHAIN


def test_pools_in_a_row_share_the_range_of_the_first() -> None:
    got = plan(chain("Conv", "MaxPool", "MaxPool", "Conv"), "cpu")
    assert got.shares == {"t1": "t0", "t2": "t0"}
    assert got.ranged() == ["t0", "x"]


@pytest.mark.parametrize("op_type", ["Relu", "Clip"])
def test_an_activation_is_absorbed_unless_somebody_reads_what_is_before_it(op_type: str) -> None:
    model = chain("Conv", op_type, "Conv")
    assert plan(model, "cpu").absorbed == {f"{op_type}1"}
    assert "t0" not in plan(model, "cpu").pairs
    model.graph.node.append(helper.make_node("Relu", ["t0"], ["unread"], name="other"))
    assert plan(model, "cpu").absorbed == frozenset()
    assert "t0" in plan(model, "cpu").pairs


def test_a_clip_that_does_not_start_at_zero_stays() -> None:
    model = chain("Conv", "Clip", "Conv")
    zero = next(one for one in model.graph.initializer if one.name == "zero")
    zero.CopyFrom(onnx.numpy_helper.from_array(np.array(-1, np.float32), "zero"))
    got = plan(model, "cpu")
    assert got.absorbed == frozenset()
    assert got.pairs == ("x", "t0", "t1")


def test_an_activation_at_the_end_is_not_absorbed() -> None:
    assert plan(chain("Conv", "Relu"), "cpu").absorbed == frozenset()


def test_the_add_of_a_constant_is_no_residual_connection() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Add", ["c", "b"], ["a"], name="bias"),
        helper.make_node("Mul", ["a", "b"], ["y"], name="scale"),
    ]
    constants = {"w": np.ones((2, 2, 1, 1), np.float32), "b": np.ones((2, 1, 1), np.float32)}
    model = model_of(nodes, [1, 2, 4, 4], [1, 2, 4, 4], **constants)
    assert plan(model, "cpu").pairs == ("x", "c")
    assert plan(model, "tensorrt").pairs == ("x",)


def test_layers_are_what_has_weights() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("MatMul", ["c", "m"], ["d"], name="weighted"),
        helper.make_node("MatMul", ["d", "c"], ["y"], name="attention"),
    ]
    weights = {"w": np.ones((2, 2, 1, 1), np.float32), "m": np.ones((4, 4), np.float32)}
    model = model_of(nodes, [1, 2, 4, 4], [1, 2, 4, 4], **weights)
    assert layers(model) == ["conv", "weighted"]
    for target in TARGETS:
        assert plan(model, target).weights == {"conv", "weighted"}


def readers(model: ModelProto, op_type: str) -> list[onnx.NodeProto]:
    """The nodes of an operator, those of the preprocessing left out."""
    before = set(graphs.preprocessing(model))
    return [node for node in model.graph.node if node.op_type == op_type and node.name not in before]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NETS)
def test_every_layer_of_a_real_net_reads_a_pair_and_has_int8_weights(
    name: str, target: Target, exported: Callable[[str], Exported]
) -> None:
    model = prepared(exported(name), target)
    got = plan(model, target)
    assert got.weights == set(layers(model))
    nodes = {node.name: node for node in model.graph.node}
    assert {(one, nodes[one].input[0]) for one in got.weights} <= got.behind
    assert "logits" not in got.pairs
    # nothing of the preprocessing but its last tensor, and that once
    before = graphs.preprocessing(model)
    assert [tensor for one in before for tensor in nodes[one].output if tensor in got.pairs] == [
        *nodes[before[-1]].output
    ]
    assert len(got.pairs) == len(set(got.pairs))
    assert {tensor for _, tensor in got.behind} == set(got.pairs)


@pytest.mark.parametrize("name", NETS)
def test_one_branch_of_every_residual_add_stays_float_for_tensorrt_alone(
    name: str, exported: Callable[[str], Exported]
) -> None:
    behind = {}
    for target in TARGETS:
        model = prepared(exported(name), target)
        adds, edges = readers(model, "Add"), plan(model, target).behind
        assert len(adds) >= 2
        behind[target] = [[(add.name, one) in edges for one in add.input] for add in adds]
    assert all(both == [True, True] for both in behind["cpu"])
    assert all(sorted(one) == [False, True] for one in behind["tensorrt"])


def test_where_both_branches_end_in_a_convolution_the_deeper_one_is_float(exported: Callable[[str], Exported]) -> None:
    model = prepared(exported("resnet"), "tensorrt")
    add, edges = readers(model, "Add")[-1], plan(model, "tensorrt").behind
    (name,) = [one for one in add.input if (add.name, one) not in edges]
    # the downsample branch has a 1 x 1 kernel, the main branch a 3 x 3
    conv = graphs.producers(model)[name]
    assert (conv.op_type, next(list(one.ints) for one in conv.attribute if one.name == "kernel_shape")) == (
        "Conv",
        [3, 3],
    )


def test_a_branch_that_is_read_elsewhere_gets_its_pair(exported: Callable[[str], Exported]) -> None:
    model = prepared(exported("mobilenet"), "tensorrt")
    add = readers(model, "Add")[0]
    (free,) = [one for one in add.input if (add.name, one) not in plan(model, "tensorrt").behind]
    model.graph.node.append(helper.make_node("Neg", [free], ["negative"], name="elsewhere"))
    edges = plan(model, "tensorrt").behind
    assert {(add.name, one) for one in add.input} <= edges
    assert ("elsewhere", free) not in edges


def test_squeeze_and_excitation_is_int8_on_the_cpu_and_float_between_convolutions_for_tensorrt(
    exported: Callable[[str], Exported],
) -> None:
    model = prepared(exported("mnv3"), "cpu")
    edges = plan(model, "cpu").behind
    for node in (*readers(model, "Mul"), *readers(model, "HardSigmoid"), *readers(model, "GlobalAveragePool")):
        assert {(node.name, one) for one in node.input} <= edges
    model = prepared(exported("mnv3"), "tensorrt")
    types = {node.name: node.op_type for node in model.graph.node}
    assert {types[name] for name, _ in plan(model, "tensorrt").behind} == {"Conv", "Gemm", "Add"}


def dequantized(model: ModelProto, node: onnx.NodeProto) -> list[bool]:
    """Of each input of a node: whether it comes out of a pair, activations that keep the values on the way."""
    made, known = graphs.producers(model), []
    for name in node.input:
        one = made.get(name)
        while one is not None and one.op_type in ("Relu", "Clip", "Cast"):
            one = made.get(one.input[0])
        known.append(one is not None and one.op_type == "DequantizeLinear")
    return known


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NETS)
def test_a_layer_kept_in_float_reads_and_multiplies_floats(
    name: str, target: Target, exported: Callable[[str], Exported], ranged: Callable[[str], Ranged]
) -> None:
    model, ranges = ranged(name)
    for layer in layers(model):
        graph = qdq.int8_graph(model, ranges, target, [layer])
        node = next(one for one in graph.graph.node if one.name == layer)
        assert not any(dequantized(graph, node)), layer
        others = [one for one in graph.graph.node if one.op_type in graphs.WEIGHTED and one.name != layer]
        assert sum(dequantized(graph, one)[1] for one in others) >= len(others) - 2
        # a pair that nobody reads is work for nothing
        assert {one.output[0] for one in graph.graph.node if one.op_type == "DequantizeLinear"} <= set(
            graphs.consumers(graph)
        )


@pytest.mark.parametrize(("target", "fused"), [("cpu", False), ("tensorrt", True)])
def test_what_feeds_a_float_layer_has_int8_weights_only_where_that_needs_no_pair_behind_it(
    target: Target, fused: bool
) -> None:
    """ONNX Runtime has no kernel that takes int8 and gives float: such a convolution would be unpacked at each run."""
    got = plan(chain("Conv", "Conv", "Conv"), target, ["Conv1"])
    assert got.weights == ({"Conv0", "Conv2"} if fused else {"Conv2"})
    assert got.behind == {("Conv0", "x"), ("Conv2", "t1")}


@pytest.mark.parametrize("op_type", ["Relu", "Clip"])
def test_an_activation_before_or_behind_a_float_layer_is_not_absorbed(op_type: str) -> None:
    model = chain("Conv", op_type, "Conv", op_type, "Conv", op_type, "Conv")
    assert plan(model, "cpu", ["Conv2"]).absorbed == {f"{op_type}5"}
    assert "t1" not in {tensor for _, tensor in plan(model, "cpu", ["Conv2"]).behind}


@pytest.mark.parametrize("name", NETS)
def test_every_layer_can_be_kept_with_the_ranges_that_calibration_asks_for(
    name: str, exported: Callable[[str], Exported], ranged: Callable[[str], Ranged]
) -> None:
    model, ranges = ranged(name)
    for target in TARGETS:
        ready = qdq.prepared(model, target)
        known = {tensor: ranges[tensor] for tensor in plan(ready, target).ranged()}
        for floats in (*([layer] for layer in layers(model)), layers(model)):
            qdq.int8_graph(model, known, target, floats)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NETS)
def test_all_in_float_is_fp32(
    name: str, target: Target, exported: Callable[[str], Exported], ranged: Callable[[str], Ranged]
) -> None:
    model, ranges = ranged(name)
    everything = [node.name for node in qdq.prepared(model, target).graph.node]
    graph = qdq.int8_graph(model, ranges, target, everything)
    assert not {"QuantizeLinear", "DequantizeLinear", "LeakyRelu"} & {node.op_type for node in graph.graph.node}
    images = exported(name).images_NHWC
    wanted = predict_onnx(model.SerializeToString(), images)
    np.testing.assert_allclose(
        predict_onnx(graph.SerializeToString(), images), wanted, atol=1e-4 * np.abs(wanted).max()
    )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NETS)
def test_with_all_layers_in_float_what_is_left_is_the_noise_of_a_few_sums(
    name: str, target: Target, exported: Callable[[str], Exported], ranged: Callable[[str], Ranged]
) -> None:
    model, ranges = ranged(name)
    images, noise = exported(name).images_NHWC, []
    wanted = predict_onnx(model.SerializeToString(), images)
    for floats in ([], layers(model)):
        graph = qdq.int8_graph(model, ranges, target, floats)
        got = predict_onnx(graph.SerializeToString(), images, simulate=True)
        noise.append(float(np.sqrt(np.mean((got - wanted) ** 2)) / wanted.std()))
    assert noise[1] < 0.6 * noise[0] < 0.15
