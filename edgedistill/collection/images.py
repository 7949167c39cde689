"""The images of a data set, all of its parts together, with the split that each of them is in.

N images that can be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgedistill.collection.subject import Subject
from edgedistill.data import image_store, images
from edgedistill.data.image_store import ImageStore
from edgedistill.data.listing import Items, Listing
from edgedistill.data.load import load_splits
from edgedistill.data.splits import Splits
from edgedistill.errors import InputError
from edgedistill.labels.draws import UNLABELED
from edgedistill.labels.findings import AuditedImage
from edgedistill.recipe.data_section import Data
from edgedistill.run import artifacts
from edgedistill.run.files import digest

PX = 128  # side of the squares where neither the recipe nor a run of it says
AND = " and "
LEFT_OUT = "left out"
BLANK = 2.5  # standard deviation of the brightness, in levels
DARK = 25  # levels: 95 % of a dark image are below
CHUNK = 512


@dataclass(frozen=True, eq=False, kw_only=True)
class Listed:
    """All images of a data set, not decoded; `parts` is the part of each (train, test), "" if there is only one."""

    classes: tuple[str, ...]
    items: Items
    parts: Sequence[str]

    def image(self, row: int, split: str | None = None, stored: int = -1) -> AuditedImage:
        """The record of an image; `stored` is its row in the store."""
        label = int(self.items.labels_N[row])
        name = self.classes[label] if label != UNLABELED else ""
        split = self.parts[row] if split is None else split
        return AuditedImage(name=self.items.names[row], label=name, split=split, row=stored)


@dataclass(frozen=True, eq=False, kw_only=True)
class Collection:
    """The images that can be read: their store, and the label (-1: none) and split of each."""

    listed: Listed
    store: ImageStore
    labels_N: np.ndarray
    splits: Sequence[str]

    @property
    def groups(self) -> list[str | None] | None:
        """The group of each image of the store; None without groups."""
        groups = self.listed.items.groups
        return None if groups is None else [groups[row] for row in self.store.kept_rows]

    def image(self, row: int) -> AuditedImage:
        """The record of an image of the store."""
        return self.listed.image(int(self.store.kept_rows[row]), split=self.splits[row], stored=int(row))


def store_px(subject: Subject, networks: Mapping[str, Any]) -> int:
    """The side of the squares: as the recipe or its run has it, else PX or the sources' input size."""
    facts = artifacts.DATA.find(subject.run) if subject.run else None
    stored = (facts or {}).get("store_px")
    return int(subject.data.store_px or stored or max([PX, *(network.input_px for network in networks.values())]))


def recipe_splits(subject: Subject, folder: Path, px: int) -> tuple[Splits | None, list[str]]:
    """The recipe's splits, and notes; None for a folder, and where a recipe cannot be run with these images.

    Raises:
        EdgeDistillError: the disk is full.
    """
    if subject.run is None:
        return None, []
    try:
        splits = load_splits(subject.data, subject.base, cache=folder, seed=subject.seed, px=px)
    except InputError as error:
        return None, [f"the recipe cannot be run with these images: {error}"]
    near = splits.near_copies
    near_copy = ", near-copies of one" if near and near.images else ""
    left_out = {
        f"with the pixels of a test image{near_copy}, or of its group": splits.duplicates,
        "with the pixels of an image with another label": len(splits.contradicted),
        "with the pixels of another image": splits.copies,
    }
    notes = [f"the recipe leaves out {count} of train {why}" for why, count in left_out.items() if count]
    if near and near.images:
        notes.append(f"the recipe keeps {near.images} near-copies together, by their pixels alone")
    return splits, notes


def listed_images(listing: Listing) -> Listed:
    """The images of all parts of a data set, one part after the other."""
    contents = {field.name: getattr(listing, field.name) for field in fields(listing)}
    parts = {name: part for name, part in contents.items() if isinstance(part, Items) and len(part)}
    starts = np.cumsum([0, *(len(part) for part in parts.values())])
    loads = [part.load for part in parts.values()]

    def load(row: int) -> Image.Image:
        part = int(np.searchsorted(starts, row, side="right")) - 1
        return loads[part](row - int(starts[part]))

    items = Items(
        names=[name for part in parts.values() for name in part.names],
        labels_N=np.concatenate([part.labels_N for part in parts.values()]),
        load=load,
        groups=_groups(list(parts.values())),
    )
    names = [name if len(parts) > 1 else "" for name, part in parts.items() for _ in range(len(part))]
    return Listed(classes=listing.classes, items=items, parts=names)


def _groups(parts: Sequence[Items]) -> list[str | None] | None:
    """The groups of all parts together; None if none of them has groups."""
    if all(part.groups is None for part in parts):
        return None
    return [group for part in parts for group in (part.groups or [None] * len(part))]


def decoded(
    listed: Listed, section: Data, splits: Splits | None, *, folder: Path, pictures: str, px: int
) -> ImageStore:
    """The store of all images that can be read, whose names are their numbers in `listed`.

    Pictures of more than 8 bits are scaled as in the splits.

    Raises:
        InputError: no image can be read.
        EdgeDistillError: the disk is full.
    """
    data_range = splits.limits if splits is not None and splits.limits is not None else section.range
    numbers = [str(row) for row in range(len(listed.items))]
    return image_store.build(
        Items(names=numbers, labels_N=listed.items.labels_N, load=listed.items.load),
        folder / f"audit-{digest([pictures, px, section.fit, data_range])[:12]}",
        images.View(px=px, fit=section.fit),
        data_range,
        desc="decode",
        max_corrupt=1.0,
    )


def collected(listed: Listed, store: ImageStore, splits: Splits | None) -> Collection:
    """The images of a store with their labels and splits."""
    rows_N = store.kept_rows
    parts = [listed.parts[row] for row in rows_N]
    return Collection(
        listed=listed,
        store=store,
        labels_N=listed.items.labels_N[rows_N],
        splits=parts if splits is None else _split_names(parts, store.hashes, splits),
    )


def _split_names(parts: Sequence[str], hashes: np.ndarray, splits: Splits) -> list[str]:
    """The split of each image: "test" for a test part, else where the recipe's splits have its pixels."""
    contents = {
        field.name.removesuffix("_rows"): splits.train.hashes[getattr(splits, field.name)]
        for field in fields(splits)
        if field.name.endswith("_rows")
    }
    has_test = "test" in parts
    if not has_test:  # the recipe draws its test set
        contents["test"] = splits.test_set.store.hashes
    inside = {name: np.isin(hashes, content) for name, content in contents.items()}
    names = [AND.join(name for name in inside if inside[name][row]) or LEFT_OUT for row in range(len(hashes))]
    return ["test" if part == "test" else name for part, name in zip(parts, names, strict=True)]


def sides(split: str) -> set[str]:
    """The sides that a split is on, of which copies must be on one alone: test, val, and the rest."""
    names = {name for name in split.split(AND) if name != LEFT_OUT}
    return {name if name in ("test", "val") else "train" for name in names}


@dataclass(frozen=True, eq=False, kw_only=True)
class Brightness:
    """The levels of each image, from 0 to 255: mean, standard deviation and 95th percentile, float32 [N] each."""

    mean_N: np.ndarray
    deviation_N: np.ndarray
    bright_N: np.ndarray


def brightness(images_NHWC: np.ndarray) -> Brightness:
    """The brightness of squares, uint8 [N, px, px, 3]; a memory map is read in chunks."""
    parts = []
    for start in range(0, len(images_NHWC), CHUNK):
        # every second pixel tells as much
        levels_NHW = np.asarray(images_NHWC[start : start + CHUNK])[:, ::2, ::2].mean(axis=3, dtype=np.float32)
        axes = (1, 2)
        parts.append((levels_NHW.mean(axes), levels_NHW.std(axes), np.percentile(levels_NHW, 95, axis=axes)))
    mean_N, deviation_N, bright_N = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return Brightness(mean_N=mean_N, deviation_N=deviation_N, bright_N=bright_N)
