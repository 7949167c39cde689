"""The int8 nodes of a CPU's graph in torch, bit for bit as ONNX Runtime's x86 kernels compute them.

Where a value falls between two steps, another order of roundings stores another byte, which through the layers becomes
another label. So every kernel here makes the roundings of ONNX Runtime's own (onnxruntime/core/mlas/lib and
contrib_ops/cpu/quantization, the files named below), each in float32; sums of integers are exact.
Kernels for ARM round a sum of two tensors, and a global average, in other ways; so does a sum on x86 without AVX2.
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
from edgedistill.export.placement import SHAPES

EXACT = 2**24  # float32 holds every whole number up to here


@dataclass(frozen=True, kw_only=True)
class Grid:
    """value = step * (byte - zero), float32 []. Tensors both: CUDA divides by a Python number inexactly."""

    step: Tensor
    zero: Tensor


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """A quantized tensor of any shape: whole numbers from 0 to 255, in float32, on their grid."""

    values: Tensor
    grid: Grid

    def centred(self) -> Tensor:
        """What an integer kernel multiplies: bytes less their zero point."""
        return self.values - self.grid.zero

    def floats(self) -> Tensor:
        """DequantizeLinear."""
        return self.centred() * self.grid.step


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What a Conv or Gemm holds: int8 weights (as float32), an int32 bias [C] or none, the step of each channel [C]."""

    weight: Tensor
    bias: Tensor | None
    steps: Tensor


def grid(one: qdq.Affine, device: torch.device) -> Grid:
    """A pair's grid, on a device."""
    return Grid(step=torch.tensor(one.scale, device=device), zero=torch.tensor(float(one.zero_point), device=device))


def layer(
    node: NodeProto, weight: np.ndarray, bias: np.ndarray | None, read: qdq.Affine, device: torch.device
) -> Layer:
    """The integers that qdq.py writes for a layer with the pair `read` on its input; in NumPy, to be the same."""
    axis = qdq.output_axis(node)
    least = 0.0 if bias is None else np.abs(bias) / (qdq.MOST_STEPS * read.scale)
    scales = qdq.weight_scales(weight, axis, "cpu", least)
    stored = np.rint(weight / scales.reshape([-1 if at == axis else 1 for at in range(weight.ndim)])).clip(-127, 127)
    steps = (scales * np.float32(read.scale)).astype(np.float64)
    whole = None if bias is None else torch.from_numpy(np.rint(bias / steps).astype(np.int32)).to(device)
    return Layer(weight=torch.from_numpy(stored).to(device), bias=whole, steps=torch.from_numpy(scales).to(device))


def renormalised(images_BCHW: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Normalised pixels in the graph's own arithmetic: pixel * scale + shift; both are [3, 1, 1].

    Mean 0.5, deviation 0.5 and extremes of -1 and 1 put every pixel halfway between two steps, where the last bit of
    the normalisation decides. What is no whole pixel is left alone.
    """
    found = (images_BCHW - shift) / scale
    pixels = found.round()
    return torch.where((found - pixels).abs() < 0.01, pixels * scale + shift, images_BCHW)


def quantized(values: Tensor, on: Grid) -> Bytes:
    """QuantizeLinear (quantize.cpp)."""
    return _stored((values / on.step).round() + on.zero, on)


def _stored(whole: Tensor, on: Grid) -> Bytes:
    return Bytes(values=whole.clamp(0, 255), grid=on)


def _requantized(sums: Tensor, ratio: Tensor, on: Grid) -> Bytes:
    """Whole numbers in steps of another grid (MlasRequantizeOutput in quantize.cpp)."""
    return _stored((sums.float() * ratio).round() + on.zero, on)


def weighted(node: NodeProto, given: Bytes, constants: Layer, made: Grid | None) -> Bytes | Tensor:
    """QLinearConv or QGemm: [B, C, H, W] or [B, C]; floats where nothing quantizes what the node makes."""
    shape = [-1, 1, 1] if node.op_type == "Conv" else [-1]
    sums = _summed(node, given.centred(), constants.weight)
    if constants.bias is not None:
        sums = sums + constants.bias.reshape(shape)
    steps = (given.grid.step * constants.steps).reshape(shape)
    return sums.float() * steps if made is None else _requantized(sums, steps / made.step, made)


def _summed(node: NodeProto, centred: Tensor, weight: Tensor) -> Tensor:
    """A layer without its bias, int32: the floats hold all sums on the way exactly, in whatever order they are made."""
    others = [at for at in range(weight.ndim) if at != qdq.output_axis(node)]
    most = 255 * float(weight.abs().sum(others).max())
    # a CUDA convolution may choose Winograd's algorithm or TF32, which are not exact, but has neither in float64
    kind = torch.float32 if most < EXACT and weight.device.type == "cpu" else torch.float64
    return OPERATORS[node.op_type](node, centred.to(kind), weight.to(kind)).to(torch.int32)


def _fused(first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """first * second + third with one rounding, as the processor's instruction does it."""
    return (first.double() * second.double() + third.double()).float()


def _add(node: NodeProto, given: Sequence[Bytes], made: Grid) -> Bytes:
    """QLinearAdd of two tensors of one shape (intrinsics/avx2/qladd_avx2.cpp)."""
    first, second = given
    ratios = first.grid.step / made.step, second.grid.step / made.step
    # which of the two products is fused is the compiler's choice: that of the wheels
    fixed = made.zero - _fused(ratios[0], first.grid.zero, ratios[1] * second.grid.zero)
    return _stored(_fused(first.values, ratios[0], _fused(second.values, ratios[1], fixed)).round(), made)


def _mul(node: NodeProto, given: Sequence[Bytes], made: Grid) -> Bytes:
    """QLinearMul, which rounds with the zero point added (qlmul.cpp)."""
    first, second = given
    ratio = first.grid.step * second.grid.step / made.step
    return _stored((first.centred() * second.centred() * ratio + made.zero).round(), made)


def _global_average(node: NodeProto, given: Sequence[Bytes], made: Grid) -> Bytes:
    """QLinearGlobalAveragePool (qlgavgpool.cpp): the mean is part of the ratio."""
    (one,) = given
    pixels = one.values.shape[-2] * one.values.shape[-1]
    sums = one.centred().sum((-2, -1), keepdim=True, dtype=torch.float64)
    return _requantized(sums, one.grid.step / (made.step * pixels), made)


def _average(node: NodeProto, given: Sequence[Bytes], made: Grid) -> Bytes:
    """QLinearAveragePool (qlinear_pool.cc): floats, added up row by row, and rounded with the zero point added."""
    (one,), asked = given, attributes(node)
    shape = OPERATORS[node.op_type](node, one.values).shape
    sums = _windows(one.floats(), asked, shape)
    counts = _windows(torch.ones_like(one.values), asked, shape)
    if asked.get("count_include_pad", 0):
        counts = torch.full_like(counts, float(np.prod(asked["kernel_shape"])))
    return _stored((sums / counts / made.step + made.zero).round(), made)


def _windows(values: Tensor, asked: Mapping[str, Any], shape: Sequence[int]) -> Tensor:
    """The sum over each window of a pooling, of a shape [B, C, H, W]; nothing lies beyond the edges."""
    (tall, wide), (down, across) = asked["kernel_shape"], asked.get("strides", [1, 1])
    top, left = asked.get("pads", [0, 0, 0, 0])[:2]
    rows, columns = (shape[-2] - 1) * down + 1, (shape[-1] - 1) * across + 1
    bottom, right = rows + tall - 1 - top - values.shape[-2], columns + wide - 1 - left - values.shape[-1]
    padded = functional.pad(values, (left, max(0, right), top, max(0, bottom)))
    sums = torch.zeros(tuple(shape), device=values.device)
    for row in range(tall):
        for column in range(wide):
            sums = sums + padded[..., row : row + rows : down, column : column + columns : across]
    return sums


def _concat(node: NodeProto, given: Sequence[Bytes], made: Grid) -> Bytes:
    """QLinearConcat (qlinear_concat.cc): every part goes over to the common grid by itself."""
    return Bytes(
        values=OPERATORS[node.op_type](node, *(quantized(one.floats(), made).values for one in given)), grid=made
    )


def _hard_sigmoid(node: NodeProto, given: Sequence[Bytes], made: Grid) -> Bytes:
    """QLinearLeakyRelu with slope 1 (qlinear_lookup_table.cc), which qdq.py writes for a HardSigmoid."""
    (one,) = given
    stored = grid(qdq.Affine(scale=6 / qdq.STEPS, zero_point=qdq.STEPS // 2), one.values.device)
    return Bytes(values=quantized(one.floats(), stored).values, grid=made)


def _sigmoid(node: NodeProto, given: Sequence[Bytes], made: Grid) -> Bytes:
    """QLinearSigmoid (qlinear_lookup_table.cc), whose approximation of it rounds to these bytes."""
    (one,) = given
    return quantized(one.floats().double().sigmoid().float(), made)


def _shaped(node: NodeProto, given: Sequence[Any], made: Grid) -> Bytes:
    """Bytes that only change places, or the largest of them."""
    return Bytes(values=OPERATORS[node.op_type](node, given[0].values, *given[1:]), grid=made)


KERNELS: Mapping[str, Callable[[NodeProto, Sequence[Any], Grid], Bytes]] = {
    "Add": _add,
    "Mul": _mul,
    "GlobalAveragePool": _global_average,
    "AveragePool": _average,
    "Concat": _concat,
    "HardSigmoid": _hard_sigmoid,
    "Sigmoid": _sigmoid,
    **dict.fromkeys(SHAPES, _shaped),
}


def computed(node: NodeProto, given: Sequence[Any], made: Grid | None) -> Bytes | Tensor:
    """What a node without int8 weights makes: in integers where all that it reads and makes has a pair, else in float.

    Args:
        node: of an operator in `operators.OPERATORS`.
        given: what it reads: bytes, floats without a pair, and constants.
        made: the grid of what it makes, if it has one.
    """
    if made is not None and _has_kernel(node, given):
        return KERNELS[node.op_type](node, given, made)
    floats = OPERATORS[node.op_type](node, *(one.floats() if isinstance(one, Bytes) else one for one in given))
    return floats if made is None else quantized(floats, made)


def _has_kernel(node: NodeProto, given: Sequence[Any]) -> bool:
    read = given[:1] if node.op_type in SHAPES else given
    known = node.op_type in KERNELS and (node.op_type != "HardSigmoid" or graphs.is_hard_sigmoid(node))
    return known and all(isinstance(one, Bytes) for one in read)
