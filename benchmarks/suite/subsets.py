"""Packs of some of the classes of another pack, drawn at random: more targets of the same kind of picture.

A subset is written once, in the layout of packs: its classes are numbered anew, in the order of the whole pack.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, PositiveInt

from edgedistill.run.files import atomic

PARTS = ("train", "test")


class Subset(BaseModel):
    """So many classes of a pack, drawn by a seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pack: str
    seed: int
    classes: PositiveInt = 10


def write(whole: Path, subset: Subset, folder: Path) -> Path:
    """The directory of a subset below `folder`, written if it is not there.

    Args:
        whole: the directory of the whole pack.
        subset: which classes.
        folder: of all subsets.
    """
    import datasets

    directory = folder / f"{subset.pack}-{subset.classes}-{subset.seed}"
    directory.mkdir(parents=True, exist_ok=True)
    with FileLock(directory / ".lock"):
        for part in PARTS:
            if (directory / f"{part}.parquet").exists():
                continue
            dataset = datasets.Dataset.from_parquet(str(whole / f"{part}.parquet"))
            names = dataset.features["label"].names
            drawn = np.sort(np.random.default_rng(subset.seed).permutation(len(names))[: subset.classes])
            labels_N = np.asarray(dataset.data.column("label"))
            rows = dataset.select(np.flatnonzero(np.isin(labels_N, drawn)))
            rows = rows.cast_column("image", datasets.Image(decode=False))
            renumbered = np.searchsorted(drawn, np.asarray(rows["label"])).tolist()
            classes = datasets.ClassLabel(names=[names[label] for label in drawn])
            features = datasets.Features({"image": datasets.Image(decode=False), "label": classes})
            written = datasets.Dataset.from_dict({"image": rows["image"], "label": renumbered}, features=features)
            with atomic(directory / f"{part}.parquet") as temporary:
                written.cast_column("image", datasets.Image()).to_parquet(str(temporary))
    return directory
