"""Placement of Q/DQ pairs: expected plans of short chains, and properties of real blocks for both targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper

from edgedistill.export import graphs, qdq
from edgedistill.export.infer import predict_onnx
from edgedistill.export.placement import Plan, layers, make_plan
from edgedistill.records import Target
from tests.helpers.export_nets import NETS, Exported, Ranged
from tests.helpers.small_graphs import chain, float_model

TARGETS: tuple[Target, ...] = ("cpu", "tensorrt")


def prepared(exported: Exported, target: Target) -> ModelProto:
    return qdq.prepare(onnx.load(exported.path), target)


CHAIN = Plan(
    target="tensorrt",
    pairs=("x", "t1", "t2", "t3"),
    quantized_reads=frozenset({("Conv0", "x"), ("Conv2", "t1"), ("MaxPool3", "t2"), ("Conv4", "t3")}),
    weights=frozenset({"Conv0", "Conv2", "Conv4"}),
    absorbed=frozenset(),
    shared_ranges={"t3": "t2"},
)


def test_cpu_chain_has_pairs_except_before_activation_and_at_output() -> None:
    actual = make_plan(chain("Conv", "Relu", "Conv", "MaxPool", "Conv"), "cpu")
    assert actual == replace(CHAIN, target="cpu", absorbed=frozenset({"Relu1"}))
    assert actual.ranged_tensors() == ["t1", "t2", "x"]


def test_tensorrt_chain_has_pairs_only_on_inputs_of_int8_nodes() -> None:
    assert make_plan(chain("Conv", "Relu", "Conv", "MaxPool", "Conv"), "tensorrt") == CHAIN


def test_consecutive_pools_share_range_of_first_input() -> None:
    actual = make_plan(chain("Conv", "MaxPool", "MaxPool", "Conv"), "cpu")
    assert actual.shared_ranges == {"t1": "t0", "t2": "t0"}
    assert actual.ranged_tensors() == ["t0", "x"]


@pytest.mark.parametrize("op_type", ["Relu", "Clip"])
def test_activation_is_absorbed_unless_its_input_has_another_reader(op_type: str) -> None:
    model = chain("Conv", op_type, "Conv")
    assert make_plan(model, "cpu").absorbed == {f"{op_type}1"}
    assert "t0" not in make_plan(model, "cpu").pairs
    model.graph.node.append(helper.make_node("Relu", ["t0"], ["unread"], name="other"))
    assert make_plan(model, "cpu").absorbed == frozenset()
    assert "t0" in make_plan(model, "cpu").pairs


def test_clip_that_does_not_start_at_zero_is_not_absorbed() -> None:
    model = chain("Conv", "Clip", "Conv")
    zero = next(tensor for tensor in model.graph.initializer if tensor.name == "zero")
    zero.CopyFrom(onnx.numpy_helper.from_array(np.array(-1, np.float32), "zero"))
    actual = make_plan(model, "cpu")
    assert actual.absorbed == frozenset()
    assert actual.pairs == ("x", "t0", "t1")


def test_activation_at_output_is_not_absorbed() -> None:
    assert make_plan(chain("Conv", "Relu"), "cpu").absorbed == frozenset()


def test_addition_of_constant_is_not_residual_connection() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Add", ["c", "b"], ["a"], name="bias"),
        helper.make_node("Mul", ["a", "b"], ["y"], name="scale"),
    ]
    constants = {"w": np.ones((2, 2, 1, 1), np.float32), "b": np.ones((2, 1, 1), np.float32)}
    model = float_model(nodes, [1, 2, 4, 4], [1, 2, 4, 4], **constants)
    assert make_plan(model, "cpu").pairs == ("x", "c")
    assert make_plan(model, "tensorrt").pairs == ("x",)


def test_layers_are_nodes_with_weights() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("MatMul", ["c", "m"], ["d"], name="weighted"),
        helper.make_node("MatMul", ["d", "c"], ["y"], name="attention"),
    ]
    weights = {"w": np.ones((2, 2, 1, 1), np.float32), "m": np.ones((4, 4), np.float32)}
    model = float_model(nodes, [1, 2, 4, 4], [1, 2, 4, 4], **weights)
    assert layers(model) == ["conv", "weighted"]
    for target in TARGETS:
        assert make_plan(model, target).weights == {"conv", "weighted"}


def readers(model: ModelProto, op_type: str) -> list[onnx.NodeProto]:
    """Return the nodes of an operator, without those of the preprocessing."""
    before = set(graphs.preprocessing(model))
    return [node for node in model.graph.node if node.op_type == op_type and node.name not in before]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NETS)
def test_every_layer_of_real_net_reads_pair_and_has_int8_weights(
    name: str, target: Target, exported: Callable[[str], Exported]
) -> None:
    model = prepared(exported(name), target)
    actual = make_plan(model, target)
    assert actual.weights == set(layers(model))
    nodes = {node.name: node for node in model.graph.node}
    assert {(layer, nodes[layer].input[0]) for layer in actual.weights} <= actual.quantized_reads
    assert "logits" not in actual.pairs
    # of the preprocessing only the last tensor has a pair, and only one
    before = graphs.preprocessing(model)
    assert [tensor for node in before for tensor in nodes[node].output if tensor in actual.pairs] == [
        *nodes[before[-1]].output
    ]
    assert len(actual.pairs) == len(set(actual.pairs))
    assert {tensor for _, tensor in actual.quantized_reads} == set(actual.pairs)


@pytest.mark.parametrize("name", NETS)
def test_one_branch_of_every_residual_add_stays_float_only_for_tensorrt(
    name: str, exported: Callable[[str], Exported]
) -> None:
    behind = {}
    for target in TARGETS:
        model = prepared(exported(name), target)
        adds, edges = readers(model, "Add"), make_plan(model, target).quantized_reads
        assert len(adds) >= 2
        behind[target] = [[(add.name, tensor) in edges for tensor in add.input] for add in adds]
    assert all(both == [True, True] for both in behind["cpu"])
    assert all(sorted(paired) == [False, True] for paired in behind["tensorrt"])


def test_deeper_branch_stays_float_when_both_end_in_convolution(exported: Callable[[str], Exported]) -> None:
    model = prepared(exported("resnet"), "tensorrt")
    add, edges = readers(model, "Add")[-1], make_plan(model, "tensorrt").quantized_reads
    (name,) = [tensor for tensor in add.input if (add.name, tensor) not in edges]
    # the downsample branch has a 1 x 1 kernel, the main branch a 3 x 3
    conv = graphs.producers(model)[name]
    kernel_shapes = [list(attribute.ints) for attribute in conv.attribute if attribute.name == "kernel_shape"]
    assert (conv.op_type, kernel_shapes) == ("Conv", [[3, 3]])


def test_branch_with_another_reader_gets_pair(exported: Callable[[str], Exported]) -> None:
    model = prepared(exported("mobilenet"), "tensorrt")
    add = readers(model, "Add")[0]
    (free,) = [tensor for tensor in add.input if (add.name, tensor) not in make_plan(model, "tensorrt").quantized_reads]
    model.graph.node.append(helper.make_node("Neg", [free], ["negative"], name="elsewhere"))
    edges = make_plan(model, "tensorrt").quantized_reads
    assert {(add.name, tensor) for tensor in add.input} <= edges
    assert ("elsewhere", free) not in edges


def test_squeeze_and_excitation_is_int8_on_cpu_and_float_for_tensorrt(
    exported: Callable[[str], Exported],
) -> None:
    model = prepared(exported("mnv3"), "cpu")
    edges = make_plan(model, "cpu").quantized_reads
    for node in (*readers(model, "Mul"), *readers(model, "HardSigmoid"), *readers(model, "GlobalAveragePool")):
        assert {(node.name, tensor) for tensor in node.input} <= edges
    model = prepared(exported("mnv3"), "tensorrt")
    types = {node.name: node.op_type for node in model.graph.node}
    assert {types[name] for name, _ in make_plan(model, "tensorrt").quantized_reads} == {"Conv", "Gemm", "Add"}


def dequantized(model: ModelProto, node: onnx.NodeProto) -> list[bool]:
    """Return for each input of a node whether a Q/DQ pair produces it, directly or through activations and casts."""
    producers, flags = graphs.producers(model), []
    for name in node.input:
        producer = producers.get(name)
        while producer is not None and producer.op_type in ("Relu", "Clip", "Cast"):
            producer = producers.get(producer.input[0])
        flags.append(producer is not None and producer.op_type == "DequantizeLinear")
    return flags


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NETS)
def test_float_layer_reads_and_multiplies_floats(
    name: str, target: Target, exported: Callable[[str], Exported], ranged: Callable[[str], Ranged]
) -> None:
    model, ranges = ranged(name)
    for layer in layers(model):
        graph = qdq.int8_graph(model, ranges, target, [layer])
        node = next(node for node in graph.graph.node if node.name == layer)
        assert not any(dequantized(graph, node)), layer
        other_layers = [node for node in graph.graph.node if node.op_type in graphs.WEIGHTED and node.name != layer]
        assert sum(dequantized(graph, node)[1] for node in other_layers) >= len(other_layers) - 2
        # a pair without a reader costs time for nothing
        assert {node.output[0] for node in graph.graph.node if node.op_type == "DequantizeLinear"} <= set(
            graphs.consumers(graph)
        )


@pytest.mark.parametrize(("target", "fused"), [("cpu", False), ("tensorrt", True)])
def test_input_layer_of_float_layer_has_int8_weights_only_for_tensorrt(target: Target, fused: bool) -> None:
    """ONNX Runtime has no convolution from int8 to float: it would dequantize the weights at each run."""
    actual = make_plan(chain("Conv", "Conv", "Conv"), target, ["Conv1"])
    assert actual.weights == ({"Conv0", "Conv2"} if fused else {"Conv2"})
    assert actual.quantized_reads == {("Conv0", "x"), ("Conv2", "t1")}


@pytest.mark.parametrize("op_type", ["Relu", "Clip"])
def test_activation_next_to_float_layer_is_not_absorbed(op_type: str) -> None:
    model = chain("Conv", op_type, "Conv", op_type, "Conv", op_type, "Conv")
    assert make_plan(model, "cpu", ["Conv2"]).absorbed == {f"{op_type}5"}
    assert "t1" not in {tensor for _, tensor in make_plan(model, "cpu", ["Conv2"]).quantized_reads}


@pytest.mark.parametrize("name", NETS)
def test_every_layer_can_stay_float_with_calibrated_ranges(
    name: str, exported: Callable[[str], Exported], ranged: Callable[[str], Ranged]
) -> None:
    model, ranges = ranged(name)
    for target in TARGETS:
        ready = qdq.prepare(model, target)
        calibrated = {tensor: ranges[tensor] for tensor in make_plan(ready, target).ranged_tensors()}
        for floats in (*([layer] for layer in layers(model)), layers(model)):
            qdq.int8_graph(model, calibrated, target, floats)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NETS)
def test_graph_with_all_nodes_in_float_equals_fp32(
    name: str, target: Target, exported: Callable[[str], Exported], ranged: Callable[[str], Ranged]
) -> None:
    model, ranges = ranged(name)
    all_nodes = [node.name for node in qdq.prepare(model, target).graph.node]
    graph = qdq.int8_graph(model, ranges, target, all_nodes)
    assert not {"QuantizeLinear", "DequantizeLinear", "LeakyRelu"} & {node.op_type for node in graph.graph.node}
    images = exported(name).images_NHWC
    expected_NC = predict_onnx(model.SerializeToString(), images)
    np.testing.assert_allclose(
        predict_onnx(graph.SerializeToString(), images), expected_NC, atol=1e-4 * np.abs(expected_NC).max()
    )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NETS)
def test_noise_shrinks_when_all_layers_stay_float(
    name: str, target: Target, exported: Callable[[str], Exported], ranged: Callable[[str], Ranged]
) -> None:
    model, ranges = ranged(name)
    images, noise = exported(name).images_NHWC, []
    expected_NC = predict_onnx(model.SerializeToString(), images)
    for floats in ([], layers(model)):
        graph = qdq.int8_graph(model, ranges, target, floats)
        actual_NC = predict_onnx(graph.SerializeToString(), images, simulate=True)
        noise.append(float(np.sqrt(np.mean((actual_NC - expected_NC) ** 2)) / expected_NC.std()))
    assert noise[1] < 0.6 * noise[0] < 0.15
