"""The sources' features of the images: those that are cached, or computed where that is asked for.

N images, M of a selection of them, D features of a source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgedistill.collection.subject import Subject
from edgedistill.console import bar
from edgedistill.data import images
from edgedistill.data.image_store import ImageStore
from edgedistill.data.splits import Splits
from edgedistill.errors import InputError
from edgedistill.labels.near_copies import sign_codes
from edgedistill.run import artifacts

PIXELS_PX = 16  # side of the small pictures that stand in for features
CHUNK = 512


@dataclass(frozen=True, eq=False, kw_only=True)
class Features:
    """The sources' features of some of the N images; none if `arrays` is empty.

    Attributes:
        n: N.
        arrays: for each source, one array [n, D] for each entry of `positions`.
        positions: the images' rows in those arrays, -1 for an image that is not in them, int64 [N].
    """

    n: int
    arrays: dict[str, list[np.ndarray]]
    positions: list[np.ndarray]

    def rows(self) -> np.ndarray:
        """Rows of the images that have features, ascending, int64."""
        is_inside_N = np.zeros(self.n, dtype=bool)
        for position_N in self.positions:
            is_inside_N |= position_N >= 0
        return np.flatnonzero(is_inside_N)

    def read(self, rows_M: np.ndarray, name: str) -> np.ndarray:
        """A source's features of images that have them, float32 [M, D]."""
        features_MD = np.zeros((len(rows_M), self.arrays[name][0].shape[1]), dtype=np.float32)
        for array, position_N in zip(self.arrays[name], self.positions, strict=True):
            inside = np.flatnonzero(position_N[rows_M] >= 0)
            features_MD[inside] = array[position_N[rows_M[inside]]]
        return features_MD

    def readers(self) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
        """For each source the function from rows to features."""
        return {name: partial(self.read, name=name) for name in self.arrays}

    def codes(self) -> list[np.ndarray]:
        """A hash of the features for each source, uint64 [N]; random, so near to no other, where there are none."""
        rows, codes = self.rows(), []
        for name in self.arrays:
            codes_N = np.random.default_rng(0).integers(0, 2**64, self.n, dtype=np.uint64)
            codes_N[rows] = sign_codes([self.read(part, name) for part in np.array_split(rows, len(rows) // CHUNK + 1)])
            codes.append(codes_N)
        return codes


def loaded_networks(subject: Subject) -> dict[str, Any]:
    """The recipe's sources, loaded to compute their features.

    Raises:
        InputError: there are none, one of them is missing, or is trained by a recipe of its own.
    """
    from edgedistill.sources import registry

    if not subject.sources:
        raise InputError(f"{subject.path}: --sources: names no sources", "give a recipe that lists some")
    if any(section.options.get("recipe") for section in subject.sources):
        raise InputError(f"{subject.path}: --sources: one is trained by a recipe of its own", "run edgedistill train")
    return {section.name: registry.load(section, subject.base) for section in subject.sources}


def source_features(
    subject: Subject,
    hashes: np.ndarray,
    splits: Splits | None,
    *,
    networks: Mapping[str, Any],
    cache: Path,
    everything: ImageStore | None = None,
) -> Features:
    """The features that a run of the recipe left in the cache, or of all images where there are networks.

    Args:
        subject: the recipe.
        hashes: hash of each image's pixels, [N].
        splits: the recipe's; features are cached by the images of a split.
        networks: loaded sources.
        cache: the folder of all source outputs.
        everything: all images, which the networks are asked about where there are no splits.
    """
    arrays: dict[str, list[np.ndarray]] = {}
    positions: list[np.ndarray] = []
    stores: list[Any] = [everything] if everything is not None else []
    if splits is not None:
        stores = [splits.train, splits.test_set.store]
    if subject.run is not None and subject.sources:
        facts = {name: network.facts() for name, network in networks.items()}
        facts = facts or artifacts.SOURCES.find(subject.run) or {}
        for store in stores:
            outputs = {name: _outputs(store, networks.get(name), facts[name], cache) for name in facts}
            if outputs and all(part is not None for part in outputs.values()):
                positions.append(places_of(hashes, store.hashes))
                for name, part in outputs.items():
                    arrays.setdefault(name, []).append(part.features_ND)
    return Features(n=len(hashes), arrays=arrays, positions=positions)


def _outputs(store: Any, network: Any, facts: Mapping[str, Any], cache: Path) -> Any:
    """A source's outputs on a store: from the cache, or computed if the source is loaded; else None."""
    from edgedistill.sources.outputs import cached_outputs, compute_outputs

    if not store.n:
        return None
    if network is None:
        return cached_outputs(facts, store.pixels_hash, cache)
    with bar(f"features of {store.n} images", store.n) as progress:
        return compute_outputs(network, store.resized, data_hash=store.pixels_hash, cache=cache, progress=progress)


def places_of(hashes: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """The place of each hash among the stored ones, -1 if it is not there, int64 [N]."""
    order = np.argsort(stored, kind="stable")
    places = np.minimum(np.searchsorted(stored[order], hashes), len(stored) - 1)
    return np.where(stored[order][places] == hashes, order[places], -1)


def small_pixels(store: ImageStore) -> np.ndarray:
    """Small pictures as weak features, float32 [N, PIXELS_PX * PIXELS_PX * 3]."""
    squares = store.images_NHWC
    with ThreadPoolExecutor() as pool:
        small = pool.map(lambda row: images.resize(np.asarray(squares[row]), PIXELS_PX), range(store.n))
        return np.stack([picture.ravel() for picture in small]).astype(np.float32) / 255.0
