"""The operators of an exported graph in torch: what a node makes of its tensors, in whatever float type they have.

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
    """All that a node says of itself, by name."""
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def _conv(node: NodeProto, values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    asked = attributes(node)
    top, left, bottom, right = asked.get("pads", [0, 0, 0, 0])
    padding: Any = (top, left)
    if (top, left) != (bottom, right):
        values, padding = functional.pad(values, (left, right, top, bottom)), 0
    return functional.conv2d(
        values, weight, bias, asked.get("strides", 1), padding, asked.get("dilations", 1), asked.get("group", 1)
    )


def _gemm(node: NodeProto, values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.linear(values, weight if graphs.attribute(node, "transB", 0) else weight.T, bias)


def _max_pool(node: NodeProto, values: Tensor) -> Tensor:
    asked = attributes(node)
    pads = asked.get("pads", [0, 0, 0, 0])
    low = torch.finfo(values.dtype).min
    padded = functional.pad(values, (pads[1], pads[3], pads[0], pads[2]), value=low) if any(pads) else values
    return functional.max_pool2d(padded, asked["kernel_shape"], asked.get("strides", 1))


def _average_pool(node: NodeProto, values: Tensor) -> Tensor:
    asked = attributes(node)
    pads = asked.get("pads", [0, 0, 0, 0])
    # torch pads both sides alike; what ONNX rounds up beyond the right and lower edge is never counted
    return functional.avg_pool2d(
        values,
        asked["kernel_shape"],
        asked.get("strides", 1),
        tuple(pads[:2]),
        bool(asked.get("ceil_mode", 0)),
        bool(asked.get("count_include_pad", 0)),
    )


def _clip(node: NodeProto, values: Tensor, low: Any = None, high: Any = None) -> Tensor:
    return values.clamp(*(None if bound is None else float(bound) for bound in (low, high)))


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
