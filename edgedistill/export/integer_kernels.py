"""The int8 nodes of a CPU's graph in torch, bit for bit as ONNX Runtime's x86 kernels compute them.

If a value lies halfway between two steps, another order of roundings stores another byte, which can change the label
after more layers. So every kernel here rounds as ONNX Runtime's does (onnxruntime/core/mlas/lib and
contrib_ops/cpu/quantization, in the files named below), in float32; sums of integers are exact.
Kernels for ARM round Add and global average pooling differently, and so does Add on x86 without AVX2.
B batch, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from onnx import NodeProto
from torch import Tensor
from torch.nn import functional

from edgedistill.export import graphs, qdq
from edgedistill.export.operators import OPERATORS, attributes
from edgedistill.export.placement import RANGE_PRESERVING

MAX_EXACT_FLOAT32 = 2**24  # float32 represents every integer up to here


@dataclass(frozen=True, kw_only=True)
class Grid:
    """value = step * (byte - zero), float32 []. Both are tensors because CUDA divides by a Python number inexactly."""

    step: Tensor
    zero: Tensor


@dataclass(frozen=True, kw_only=True)
class QuantizedTensor:
    """A quantized tensor of any shape: integers from 0 to 255, stored as float32, and their grid."""

    values: Tensor
    grid: Grid

    def centered(self) -> Tensor:
        """The bytes minus their zero point, the operand of an integer kernel."""
        return self.values - self.grid.zero

    def floats(self) -> Tensor:
        """The dequantized values (DequantizeLinear)."""
        return self.centered() * self.grid.step


@dataclass(frozen=True, kw_only=True)
class IntegerLayer:
    """Constants of a Conv or Gemm: int8 weights (as float32), an int32 bias [C] or None, steps of the channels [C]."""

    weight: Tensor
    bias: Tensor | None
    steps: Tensor


def make_grid(affine: qdq.Affine, device: torch.device) -> Grid:
    """The grid of a Q/DQ pair, on a device."""
    return Grid(
        step=torch.tensor(affine.scale, device=device), zero=torch.tensor(float(affine.zero_point), device=device)
    )


def quantize_layer(
    node: NodeProto, weight: np.ndarray, bias: np.ndarray | None, input_affine: qdq.Affine, device: torch.device
) -> IntegerLayer:
    """The integers that qdq.py writes for a layer, as tensors on a device.

    `input_affine` is the step and zero point of the pair on the layer's input.
    """
    axis = qdq.output_axis(node)
    integers, scales, integer_bias = qdq.layer_integers(
        weight, bias, axis, target="cpu", input_scale=input_affine.scale
    )
    return IntegerLayer(
        weight=torch.from_numpy(integers.astype(np.float32)).to(device),
        bias=None if integer_bias is None else torch.from_numpy(integer_bias).to(device),
        steps=torch.from_numpy(scales).to(device),
    )


def renormalize(images_BCHW: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Normalize pixels again in the graph's own arithmetic: pixel * scale + shift; both are [3, 1, 1].

    With mean 0.5, deviation 0.5 and extremes of -1 and 1 every pixel lies halfway between two steps, and the last bit
    of the normalization decides the rounding. Values that are no whole pixels are returned unchanged.
    """
    recovered = (images_BCHW - shift) / scale
    pixels = recovered.round()
    return torch.where((recovered - pixels).abs() < 0.01, pixels * scale + shift, images_BCHW)


def quantize(values: Tensor, grid: Grid) -> QuantizedTensor:
    """Quantize floats to a grid (QuantizeLinear, quantize.cpp)."""
    return _saturate((values / grid.step).round() + grid.zero, grid)


def _saturate(rounded: Tensor, grid: Grid) -> QuantizedTensor:
    return QuantizedTensor(values=rounded.clamp(0, 255), grid=grid)


def _requantize(sums: Tensor, ratio: Tensor, grid: Grid) -> QuantizedTensor:
    """Convert integers to the steps of another grid (MlasRequantizeOutput in quantize.cpp)."""
    return _saturate((sums.float() * ratio).round() + grid.zero, grid)


def run_weighted(
    node: NodeProto, activation: QuantizedTensor, constants: IntegerLayer, output_grid: Grid | None
) -> QuantizedTensor | Tensor:
    """Compute QLinearConv or QGemm: [B, C, H, W] or [B, C]; floats if the output has no grid."""
    shape = [-1, 1, 1] if node.op_type == "Conv" else [-1]
    sums = _integer_sums(node, activation.centered(), constants.weight)
    if constants.bias is not None:
        sums = sums + constants.bias.reshape(shape)
    steps = (activation.grid.step * constants.steps).reshape(shape)
    return sums.float() * steps if output_grid is None else _requantize(sums, steps / output_grid.step, output_grid)


def _integer_sums(node: NodeProto, centered: Tensor, weight: Tensor) -> Tensor:
    """A layer's output without its bias, int32; the float type represents all partial sums exactly, in any order."""
    other_axes = [dim for dim in range(weight.ndim) if dim != qdq.output_axis(node)]
    largest_sum = 255 * float(weight.abs().sum(other_axes).max())
    # a CUDA convolution may use Winograd's algorithm or TF32, which are inexact, but neither exists for float64
    dtype = torch.float32 if largest_sum < MAX_EXACT_FLOAT32 and weight.device.type == "cpu" else torch.float64
    return OPERATORS[node.op_type](node, centered.to(dtype), weight.to(dtype)).to(torch.int32)


def _fused_multiply_add(first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """first * second + third with one rounding, as the fused multiply-add instruction computes it."""
    return (first.double() * second.double() + third.double()).float()


def _add(node: NodeProto, inputs: Sequence[QuantizedTensor], output_grid: Grid) -> QuantizedTensor:
    """QLinearAdd of two tensors of one shape (intrinsics/avx2/qladd_avx2.cpp)."""
    first, second = inputs
    ratios = first.grid.step / output_grid.step, second.grid.step / output_grid.step
    # the compiler decides which of the two products is fused; this is the choice in the released wheels
    fixed = output_grid.zero - _fused_multiply_add(ratios[0], first.grid.zero, ratios[1] * second.grid.zero)
    return _saturate(
        _fused_multiply_add(first.values, ratios[0], _fused_multiply_add(second.values, ratios[1], fixed)).round(),
        output_grid,
    )


def _mul(node: NodeProto, inputs: Sequence[QuantizedTensor], output_grid: Grid) -> QuantizedTensor:
    """QLinearMul, which rounds after adding the zero point (qlmul.cpp)."""
    first, second = inputs
    ratio = first.grid.step * second.grid.step / output_grid.step
    return _saturate((first.centered() * second.centered() * ratio + output_grid.zero).round(), output_grid)


def _global_average(node: NodeProto, inputs: Sequence[QuantizedTensor], output_grid: Grid) -> QuantizedTensor:
    """QLinearGlobalAveragePool (qlgavgpool.cpp): the division by the number of pixels is part of the ratio."""
    (operand,) = inputs
    pixels = operand.values.shape[-2] * operand.values.shape[-1]
    sums = operand.centered().sum((-2, -1), keepdim=True, dtype=torch.float64)
    return _requantize(sums, operand.grid.step / (output_grid.step * pixels), output_grid)


def _average(node: NodeProto, inputs: Sequence[QuantizedTensor], output_grid: Grid) -> QuantizedTensor:
    """QLinearAveragePool (qlinear_pool.cc): floats, summed row by row, and rounded after adding the zero point."""
    (operand,), options = inputs, attributes(node)
    shape = OPERATORS[node.op_type](node, operand.values).shape
    sums = _windows(operand.floats(), options, shape)
    counts = _windows(torch.ones_like(operand.values), options, shape)
    if options.get("count_include_pad", 0):
        counts = torch.full_like(counts, float(np.prod(options["kernel_shape"])))
    return _saturate((sums / counts / output_grid.step + output_grid.zero).round(), output_grid)


def _windows(values: Tensor, options: Mapping[str, Any], shape: Sequence[int]) -> Tensor:
    """The sum over each pooling window, of a shape [B, C, H, W]; padding counts as zero."""
    (tall, wide), (down, across) = options["kernel_shape"], options.get("strides", [1, 1])
    top, left = options.get("pads", [0, 0, 0, 0])[:2]
    rows, columns = (shape[-2] - 1) * down + 1, (shape[-1] - 1) * across + 1
    bottom, right = rows + tall - 1 - top - values.shape[-2], columns + wide - 1 - left - values.shape[-1]
    padded = functional.pad(values, (left, max(0, right), top, max(0, bottom)))
    sums = torch.zeros(tuple(shape), device=values.device)
    for row in range(tall):
        for column in range(wide):
            sums = sums + padded[..., row : row + rows : down, column : column + columns : across]
    return sums


def _concat(node: NodeProto, inputs: Sequence[QuantizedTensor], output_grid: Grid) -> QuantizedTensor:
    """QLinearConcat (qlinear_concat.cc): every input is requantized to the common grid separately."""
    return QuantizedTensor(
        values=OPERATORS[node.op_type](node, *(quantize(operand.floats(), output_grid).values for operand in inputs)),
        grid=output_grid,
    )


def _hard_sigmoid(node: NodeProto, inputs: Sequence[QuantizedTensor], output_grid: Grid) -> QuantizedTensor:
    """QLinearLeakyRelu with slope 1 (qlinear_lookup_table.cc), which qdq.py writes in place of a HardSigmoid."""
    (operand,) = inputs
    sigmoid_grid = make_grid(
        qdq.Affine(scale=6 / qdq.HARD_SIGMOID_STEPS, zero_point=qdq.HARD_SIGMOID_STEPS // 2), operand.values.device
    )
    return QuantizedTensor(values=quantize(operand.floats(), sigmoid_grid).values, grid=output_grid)


def _sigmoid(node: NodeProto, inputs: Sequence[QuantizedTensor], output_grid: Grid) -> QuantizedTensor:
    """QLinearSigmoid (qlinear_lookup_table.cc), whose approximation of the sigmoid rounds to the same bytes."""
    (operand,) = inputs
    return quantize(operand.floats().double().sigmoid().float(), output_grid)


def _shape_only(node: NodeProto, inputs: Sequence[Any], output_grid: Grid) -> QuantizedTensor:
    """Operators that only move bytes or take the largest of them; the grid of the input is that of the output."""
    return QuantizedTensor(values=OPERATORS[node.op_type](node, inputs[0].values, *inputs[1:]), grid=output_grid)


KERNELS: Mapping[str, Callable[[NodeProto, Sequence[Any], Grid], QuantizedTensor]] = {
    "Add": _add,
    "Mul": _mul,
    "GlobalAveragePool": _global_average,
    "AveragePool": _average,
    "Concat": _concat,
    "HardSigmoid": _hard_sigmoid,
    "Sigmoid": _sigmoid,
    **dict.fromkeys(RANGE_PRESERVING, _shape_only),
}


def run_node(node: NodeProto, inputs: Sequence[Any], output_grid: Grid | None) -> QuantizedTensor | Tensor:
    """Compute a node without int8 weights: in integers if its inputs and its output are quantized, else in float.

    Args:
        node: its operator is in `operators.OPERATORS`.
        inputs: quantized tensors, floats without a pair, and constants.
        output_grid: the grid of the output, or None if the output has no pair.
    """
    if output_grid is not None and _has_kernel(node, inputs):
        return KERNELS[node.op_type](node, inputs, output_grid)
    floats = OPERATORS[node.op_type](
        node, *(operand.floats() if isinstance(operand, QuantizedTensor) else operand for operand in inputs)
    )
    return floats if output_grid is None else quantize(floats, output_grid)


def _has_kernel(node: NodeProto, inputs: Sequence[Any]) -> bool:
    quantized_inputs = inputs[:1] if node.op_type in RANGE_PRESERVING else inputs
    supported = node.op_type in KERNELS and (node.op_type != "HardSigmoid" or graphs.is_hard_sigmoid(node))
    return supported and all(isinstance(operand, QuantizedTensor) for operand in quantized_inputs)
