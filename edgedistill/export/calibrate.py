"""Calibration: statistics of every tensor, collected in one pass over real images, and rules that derive ranges.

N images, B batch, M values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, TensorProto, helper

from edgedistill.console import slices
from edgedistill.errors import EdgeDistillError
from edgedistill.export import infer

Range = tuple[float, float]

BATCH = 4  # all tensors of a batch are in memory at once
VALUES_PER_IMAGE = 2048  # sampled values of a tensor per image, evenly spaced; extremes count all values
SEARCH_VALUES = 32_768  # at most: values on which `mse` evaluates each candidate range
PERCENTILE = 99.99
BINS, LEVELS, STRIDE = 2048, 128, 16
FRACTIONS = np.linspace(0.2, 1.0, 33)  # of an end of the range; the second search of the upper end refines the first


@dataclass(frozen=True, kw_only=True)
class TensorStatistics:
    """Statistics of a tensor: the extremes of all values, and a sample of the values, float32 [M]."""

    low: float
    high: float
    values: np.ndarray


def image_hash(image_HWC: np.ndarray) -> str:
    """sha256 of an image's raw pixels, in hex; identifies the calibration images in calibration.json."""
    return hashlib.sha256(np.ascontiguousarray(image_HWC).tobytes()).hexdigest()


def collect(model: ModelProto, images_NHWC: np.ndarray, names: Sequence[str]) -> dict[str, TensorStatistics]:
    """Run a float graph on images and collect statistics of the named tensors.

    Args:
        model: a float graph with the input `images`.
        images_NHWC: uint8 [N, px, px, 3]; memory grows by 8 kB per tensor and image.
        names: tensors of the graph.

    Raises:
        EdgeDistillError: a tensor has values that are not finite.
    """
    session = infer.session(with_outputs(model, names))
    lows, highs = (dict.fromkeys(names, start) for start in (np.inf, -np.inf))
    samples: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for batch_index, batch in enumerate(slices("calibrate", len(images_NHWC), BATCH)):
        arrays = session.run(list(names), {"images": np.ascontiguousarray(images_NHWC[batch])})
        for name, array in zip(names, arrays, strict=True):
            lows[name] = min(lows[name], float(array.min()))
            highs[name] = max(highs[name], float(array.max()))
            samples[name].append(sample(array, batch_index))
    for name in names:
        _refuse_infinite(name, lows[name], highs[name])
    return {
        name: TensorStatistics(low=lows[name], high=highs[name], values=np.concatenate(samples[name])) for name in names
    }


def peaks(model: ModelProto, images_NHWC: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """The largest absolute value of each named float tensor on images, uint8 [N, px, px, 3]."""
    session, largest = infer.session(with_outputs(model, names)), dict.fromkeys(names, 0.0)
    for start in range(0, len(images_NHWC), BATCH):
        arrays = session.run(list(names), {"images": np.ascontiguousarray(images_NHWC[start : start + BATCH])})
        for name, array in zip(names, arrays, strict=True):
            largest[name] = float(np.maximum(largest[name], np.abs(array).max(initial=0.0)))  # NaN stays
    return largest


def with_outputs(model: ModelProto, names: Sequence[str]) -> bytes:
    """Serialize a copy of a graph that has the named float tensors as additional outputs."""
    extended = ModelProto()
    extended.CopyFrom(model)
    outputs = {output.name for output in model.graph.output}
    extended.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in outputs
    )
    return bytes(extended.SerializeToString())


def sample(array: np.ndarray, batch_index: int) -> np.ndarray:
    """Sample a batch of a tensor, [B, ...], at a fixed stride: float32 [M], at most VALUES_PER_IMAGE per image."""
    flat_BM = array.reshape(len(array), -1)
    stride = -(-flat_BM.shape[1] // VALUES_PER_IMAGE)
    # the offset, a multiple of a prime, changes with the batch, or every image would be sampled at the same columns
    return np.array(flat_BM[:, batch_index * 7919 % stride :: stride], dtype=np.float32).reshape(-1)


def _refuse_infinite(name: str, low: float, high: float) -> None:
    if not (np.isfinite(low) and np.isfinite(high)):
        problem = f"quantize: tensor {name} ranges from {low} to {high}"
        raise EdgeDistillError(problem, "the student's weights diverged: train it again with a smaller distill.lr")


def minmax(statistics: TensorStatistics) -> Range:
    """The lowest and the highest value."""
    return statistics.low, statistics.high


def percentile(statistics: TensorStatistics) -> Range:
    """The range without the outermost ten-thousandth of the values, half of it at each end."""
    tail = (100.0 - PERCENTILE) / 2
    if not statistics.values.any():  # the others are rarer than the sample tells
        return statistics.low, statistics.high
    low, high = np.percentile(statistics.values, [tail, 100.0 - tail])
    return float(low), float(high)


def entropy(statistics: TensorStatistics) -> Range:
    """The bound on |x| with the least Kullback-Leibler divergence between the values and their 128 levels.

    Migacz, "8-bit Inference with TensorRT" (GTC 2017): the bound is between LEVELS and BINS bins of a histogram;
    values beyond it count into the last bin of the reference distribution, but not into the levels.
    """
    largest = max(-statistics.low, statistics.high)
    if largest < np.finfo(np.float32).tiny or not statistics.values.any():  # no bins, or no value to count
        return statistics.low, statistics.high
    values = np.abs(
        statistics.values[statistics.values != 0.0]
    )  # zero is exact within any bound, and after a ReLU half of all
    counts = np.histogram(values, bins=BINS, range=(0.0, largest))[0].astype(np.float64)
    bounds = range(LEVELS, BINS + 1, STRIDE)
    best = min(bounds, key=lambda bound: _divergence(counts, bound))
    limit = largest * best / BINS
    return max(statistics.low, -limit), min(statistics.high, limit)


def _divergence(counts: np.ndarray, bound: int) -> float:
    reference = counts[:bound].copy()
    inside, filled = counts[:bound], counts[:bound] > 0
    reference[-1] += counts[bound:].sum()
    starts = np.arange(LEVELS) * bound // LEVELS
    width = np.maximum(np.add.reduceat(filled.astype(np.float64), starts), 1.0)
    level = np.searchsorted(starts, np.arange(bound), side="right") - 1
    spread = np.where(filled, (np.add.reduceat(inside, starts) / width)[level], 0.0)
    p, q = reference / max(reference.sum(), 1.0), spread / max(spread.sum(), 1.0)
    shared = (p > 0) & (q > 0)
    lost = p[(p > 0) & ~shared].sum()  # mass without a level: 40 nats stand for an infinite divergence
    return float((p[shared] * np.log(p[shared] / q[shared])).sum() + 40.0 * lost)


def mse(statistics: TensorStatistics) -> Range:
    """The range with the least squared error of rounding and clipping to 256 steps; searched one end at a time."""
    values = statistics.values[:: max(1, len(statistics.values) // SEARCH_VALUES)].astype(np.float64)
    ends = [min(statistics.low, 0.0), max(statistics.high, 0.0)]
    if not values.any():
        return ends[0], ends[1]
    for end in (1, 0, 1):
        candidates = [(*ends[:end], ends[end] * fraction, *ends[end + 1 :]) for fraction in FRACTIONS]
        ends = list(min(candidates, key=lambda pair: _squared_error(values, *pair)))
    return float(ends[0]), float(ends[1])


def _squared_error(values: np.ndarray, low: float, high: float) -> float:
    step = max((high - low) / 255, np.finfo(np.float32).tiny)
    rounded = np.rint(values.clip(low, high) / step) * step
    return float(((values - rounded) ** 2).mean())


METHODS: dict[str, Callable[[TensorStatistics], Range]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
    "entropy": entropy,
}


def ranges(statistics: Mapping[str, TensorStatistics], method: str) -> dict[str, Range]:
    """Compute the range of every tensor by one of METHODS; sorted by name."""
    return {name: METHODS[method](statistics[name]) for name in sorted(statistics)}
