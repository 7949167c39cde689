"""Which layers stay in float: sets of layers that hold the bound, and the fastest of them.

A layer that adds much noise may be a costly one, and several cheap ones may do as well: sets are sought among the
layers with the most noise, and among those with the most noise for each multiply-accumulate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from onnx import ModelProto

from edgedistill.console import bar
from edgedistill.records import Drop

Ratio = tuple[float, float, float]
LAYERS_PER_FLOAT_LAYER = 4  # at most one layer in four stays float: with more, fp32 is the better graph
MOST_REMOVED = 8  # layers of a set that are tried in int8 again, the costliest first


@dataclass(frozen=True, kw_only=True)
class FloatSet:
    """Layers in float whose graph holds the bound, worst first; `ratio` is fp32's time over the graph's."""

    layers: tuple[str, ...]
    graph: ModelProto = field(repr=False)
    drop: Drop
    ratio: Ratio | None = None


Hold = Callable[[tuple[str, ...]], FloatSet | None]


def holding_sets(noise: Mapping[str, float], macs: Mapping[str, float], hold: Hold) -> list[FloatSet]:
    """The sets that hold the bound, none of whose costlier layers can be spared; the cheapest first.

    Args:
        noise: noise of each layer, worst first.
        macs: multiply-accumulates of each layer.
        hold: makes and measures the graph with these layers in float; None if the bound does not hold.
    """
    most = max(1, len(noise) // LAYERS_PER_FLOAT_LAYER)
    counts = float_counts(most)
    orders = (list(noise), sorted(noise, key=lambda name: -noise[name] / max(macs[name], 1.0)))
    sets: dict[frozenset[str], FloatSet] = {}
    with bar("keep layers in float", len(orders) * len(counts)) as advance:
        for order in orders:
            for count in counts:
                advance(1)
                if holding := hold(tuple(order[:count])):
                    holding = _without_needless(holding, macs, hold)
                    sets.setdefault(frozenset(holding.layers), holding)
                    break
    return sorted(sets.values(), key=lambda holding: (sum(macs[name] for name in holding.layers), len(holding.layers)))


def _without_needless(holding: FloatSet, macs: Mapping[str, float], hold: Hold) -> FloatSet:
    for name in sorted(holding.layers, key=lambda name: -macs[name])[:MOST_REMOVED]:
        rest = tuple(layer for layer in holding.layers if layer != name)
        if rest and (smaller := hold(rest)):
            holding = smaller
    return holding


def float_counts(most: int) -> list[int]:
    """Numbers of float layers to try: one more each time, later a third more, up to `most`."""
    counts = [1]
    while counts[-1] < most:
        counts.append(min(most, max(counts[-1] + 1, counts[-1] * 4 // 3)))
    return counts


def fastest(sets: Sequence[FloatSet]) -> FloatSet:
    """The fastest of the sets, cheapest first; the cheapest, unless another one is faster by its whole interval."""
    cheapest = sets[0]
    timed = [timed_set for timed_set in sets if timed_set.ratio is not None]
    if cheapest.ratio is None or not timed:
        return cheapest
    best = max(timed, key=lambda timed_set: timed_set.ratio[0] if timed_set.ratio else 0.0)
    return best if best.ratio and best.ratio[1] > cheapest.ratio[0] else cheapest
