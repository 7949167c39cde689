"""The operators of an exported graph, computed in torch in the float type of their inputs.

B batch, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from onnx import NodeProto, helper
from torch import Tensor
from torch.nn import functional

from edgedistill.export import graphs


def attributes(node: NodeProto) -> dict[str, Any]:
    """All attributes of a node, by name."""
    return {proto.name: helper.get_attribute_value(proto) for proto in node.attribute}


def _conv(node: NodeProto, values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    options = attributes(node)
    top, left, bottom, right = options.get("pads", [0, 0, 0, 0])
    padding: Any = (top, left)
    if (top, left) != (bottom, right):
        values, padding = functional.pad(values, (left, right, top, bottom)), 0
    return functional.conv2d(
        values, weight, bias, options.get("strides", 1), padding, options.get("dilations", 1), options.get("group", 1)
    )


def _gemm(node: NodeProto, values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.linear(values, weight if graphs.attribute(node, "transB", 0) else weight.T, bias)


def _max_pool(node: NodeProto, values: Tensor) -> Tensor:
    options = attributes(node)
    pads = options.get("pads", [0, 0, 0, 0])
    lowest = torch.finfo(values.dtype).min
    padded = functional.pad(values, (pads[1], pads[3], pads[0], pads[2]), value=lowest) if any(pads) else values
    return functional.max_pool2d(
        padded,
        options["kernel_shape"],
        options.get("strides", 1),
        dilation=options.get("dilations", 1),
        ceil_mode=bool(options.get("ceil_mode", 0)),
    )


def _average_pool(node: NodeProto, values: Tensor) -> Tensor:
    options = attributes(node)
    pads = options.get("pads", [0, 0, 0, 0])
    # torch pads both sides equally; pixels that ONNX's ceil_mode adds beyond the right and lower edge are not counted
    return functional.avg_pool2d(
        values,
        options["kernel_shape"],
        options.get("strides", 1),
        tuple(pads[:2]),
        bool(options.get("ceil_mode", 0)),
        bool(options.get("count_include_pad", 0)),
    )


def _clip(node: NodeProto, values: Tensor, low: Any = None, high: Any = None) -> Tensor:
    return values.clamp(*(None if bound is None else float(bound) for bound in (low, high)))


def is_computed(node: NodeProto) -> bool:
    """Whether OPERATORS computes a node with its attributes: what torch has no word for is refused, not left out."""
    options = attributes(node)
    if options.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        return False
    if node.op_type == "AveragePool":
        top, left, bottom, right = options.get("pads", [0, 0, 0, 0])
        return (top, left) == (bottom, right) and set(options.get("dilations", [1])) == {1}
    if node.op_type == "Gemm":
        return bool(options.get("alpha", 1.0) == options.get("beta", 1.0) == 1.0) and not options.get("transA", 0)
    if node.op_type == "HardSigmoid":
        return graphs.is_hard_sigmoid(node)
    if node.op_type == "Clip":  # absent inputs are left out, and the upper bound would be taken for the lower
        return "" not in node.input
    return node.op_type in OPERATORS


OPERATORS: Mapping[str, Callable[..., Tensor]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "Add": lambda node, first, second: first + second,
    "Mul": lambda node, first, second: first * second,
    "Relu": lambda node, values: values.relu(),
    "Clip": _clip,
    "HardSwish": lambda node, values: functional.hardswish(values),
    "HardSigmoid": lambda node, values: functional.hardsigmoid(values),
    "Sigmoid": lambda node, values: values.sigmoid(),
    "GlobalAveragePool": lambda node, values: values.mean((-2, -1), keepdim=True),
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "Flatten": lambda node, values: values.flatten(graphs.attribute(node, "axis", 1)),
    "Reshape": lambda node, values, shape: values.reshape([len(values), *np.asarray(shape).tolist()[1:]]),
    "Concat": lambda node, *values: torch.cat(values, graphs.attribute(node, "axis", 1)),
    "Identity": lambda node, values: values,
}
