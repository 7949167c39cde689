"""The sources' outputs on a shard's images: computed once per shard, cached on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from edgedistill.data import images
from edgedistill.data.images import View
from edgedistill.data.shards import Shard, Squares, open_shard
from edgedistill.sources.outputs import Network, SourceOutputs, compute_outputs


def label_shard(
    url: str,
    view: View,
    networks: Mapping[str, Network],
    cache: Path,
    progress: Callable[[int], object] = lambda done: None,
) -> tuple[Shard, dict[str, SourceOutputs]]:
    """Read a shard and run every source on its images, or read both from the cache.

    An interrupted pass is resumed, also within a shard. All squares of a shard are in memory, for a moment twice.

    Args:
        url: address of the shard.
        view: how it is decoded.
        networks: the sources.
        cache: folder of all caches.
        progress: called with 1 when the shard is done.

    Raises:
        InputError: more than one in a hundred of its samples are no images.
        EdgeDistillError: it cannot be read.
    """
    shard, decoded = open_shard(url, view, cache)

    def resized(px: int) -> Squares:
        squares = decoded().squares
        return squares if px == view.px else np.stack([images.resize(square, px) for square in squares])

    outputs = {
        name: compute_outputs(network, resized, data_hash=shard.data_hash, cache=cache / "sources")
        for name, network in networks.items()
    }
    progress(1)
    return shard, outputs
