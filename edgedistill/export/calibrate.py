"""The range of every tensor on real images: one pass that sees them all, and the rules that make a range of it.

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

BATCH = 4  # every tensor of a batch stands in memory at once
PER_IMAGE = 2048  # values kept of a tensor of one image, evenly spread; its extremes are of all of them
TRIED = 32_768  # values that a rule which tries many ranges tries them on
PERCENTILE = 99.99
BINS, LEVELS, STRIDE = 2048, 128, 16
SHARES = np.linspace(0.2, 1.0, 33)  # of an end of the range; the second look at the upper end starts from the first


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was seen of a tensor: the extremes of every value, and a sample of them, float32 [M]."""

    low: float
    high: float
    values: np.ndarray


def image_hash(image_HWC: np.ndarray) -> str:
    """sha256 of an image's raw pixels, in hex: how calibration.json names the images it saw."""
    return hashlib.sha256(np.ascontiguousarray(image_HWC).tobytes()).hexdigest()


def collect(model: ModelProto, images_NHWC: np.ndarray, names: Sequence[str]) -> dict[str, Seen]:
    """Run the images through a float graph and keep what is needed of the named tensors.

    Args:
        model: a float graph with the input `images`.
        images_NHWC: uint8 [N, px, px, 3]; memory grows with N by 8 kB a tensor and image.
        names: tensors of the graph.

    Raises:
        EdgeDistillError: a tensor is not finite.
    """
    running = infer.session(_with_outputs(model, names))
    lows, highs = (dict.fromkeys(names, start) for start in (np.inf, -np.inf))
    kept: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for at, part in enumerate(slices("calibrate", len(images_NHWC), BATCH)):
        found = running.run(list(names), {"images": np.ascontiguousarray(images_NHWC[part])})
        for name, array in zip(names, found, strict=True):
            lows[name] = min(lows[name], float(array.min()))
            highs[name] = max(highs[name], float(array.max()))
            kept[name].append(_sample(array, at))
    for name in names:
        _refuse_infinite(name, lows[name], highs[name])
    return {name: Seen(low=lows[name], high=highs[name], values=np.concatenate(kept[name])) for name in names}


def _with_outputs(model: ModelProto, names: Sequence[str]) -> bytes:
    shown = ModelProto()
    shown.CopyFrom(model)
    known = {output.name for output in model.graph.output}
    shown.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in known
    )
    return bytes(shown.SerializeToString())


def _sample(array: np.ndarray, at: int) -> np.ndarray:
    flat_BM = array.reshape(len(array), -1)
    stride = -(-flat_BM.shape[1] // PER_IMAGE)
    # another offset each time, prime to most strides, or one column of every picture would be all that is seen
    return np.array(flat_BM[:, at * 7919 % stride :: stride], dtype=np.float32).reshape(-1)


def _refuse_infinite(name: str, low: float, high: float) -> None:
    if not (np.isfinite(low) and np.isfinite(high)):
        problem = f"quantize: tensor {name} ranges from {low} to {high}"
        raise EdgeDistillError(problem, "the student's weights diverged: train it again with a smaller distill.lr")


def minmax(seen: Seen) -> Range:
    """Everything that was seen."""
    return seen.low, seen.high


def percentile(seen: Seen) -> Range:
    """All but the outermost ten thousandth of the values."""
    rest = (100.0 - PERCENTILE) / 2
    low, high = np.percentile(seen.values, [rest, 100.0 - rest])
    return float(low), float(high)


def entropy(seen: Seen) -> Range:
    """The bound on |x| with the least Kullback-Leibler divergence between the values and their 128 levels.

    Migacz, "8-bit Inference with TensorRT" (GTC 2017): a bound between LEVELS and BINS bins of a histogram; what lies
    beyond counts into the last bin of the reference, and not into the levels.
    """
    largest = max(-seen.low, seen.high)
    if largest <= 0:
        return seen.low, seen.high
    values = np.abs(seen.values[seen.values != 0.0])  # zero is exact within any bound, and after a ReLU half of all
    counts = np.histogram(values, bins=BINS, range=(0.0, largest))[0].astype(np.float64)
    bounds = range(LEVELS, BINS + 1, STRIDE)
    best = min(bounds, key=lambda bound: _divergence(counts, bound))
    limit = largest * best / BINS
    return max(seen.low, -limit), min(seen.high, limit)


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
    lost = p[(p > 0) & ~shared].sum()  # mass with no level at all: as far off as a float can say
    return float((p[shared] * np.log(p[shared] / q[shared])).sum() + 40.0 * lost)


def mse(seen: Seen) -> Range:
    """The ends that leave the least squared error of rounding and clipping to 256 steps, each end tried in turn."""
    values = seen.values[:: max(1, len(seen.values) // TRIED)].astype(np.float64)
    ends = [min(seen.low, 0.0), max(seen.high, 0.0)]
    for at in (1, 0, 1):
        tried = [(*ends[:at], ends[at] * share, *ends[at + 1 :]) for share in SHARES]
        ends = list(min(tried, key=lambda pair: _squared(values, *pair)))
    return float(ends[0]), float(ends[1])


def _squared(values: np.ndarray, low: float, high: float) -> float:
    step = max((high - low) / 255, np.finfo(np.float32).tiny)
    rounded = np.rint(values.clip(low, high) / step) * step
    return float(((values - rounded) ** 2).mean())


METHODS: dict[str, Callable[[Seen], Range]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
    "entropy": entropy,
}


def ranges(seen: Mapping[str, Seen], method: str) -> dict[str, Range]:
    """The range of every tensor by one of METHODS, sorted by name."""
    return {name: METHODS[method](seen[name]) for name in sorted(seen)}
