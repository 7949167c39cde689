"""DATASETS: the kinds of target data sets. A kind is one function; its keyword-only parameters are its options.

No image is decoded here. torch, torchvision, datasets and scikit-learn are imported only by the kinds that need
them; `fingerprint` detects a change of the data for every kind without any of them.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image

from edgedistill.data.folders import NOT_STATED, folder
from edgedistill.data.hubs import hf, hf_fingerprint, torchvision, torchvision_fingerprint
from edgedistill.data.listing import (
    RULES,
    Files,
    Items,
    Listing,
    class_order,
    files_listing,
    hash_lines,
    split_of,
)
from edgedistill.data.tables import UNUSABLE, Row, header, read_rows, refuse_stand_ins
from edgedistill.errors import InputError
from edgedistill.labels.draws import UNLABELED
from edgedistill.labels.units import groups_by_pattern
from edgedistill.recipe.data_section import Data
from edgedistill.recipe.options import LATER, bound_options, choose

CUB_LICENCE = "none published with CUB-200-2011: the photographs belong to their authors (Flickr)"
CUB_FIX = (
    "download CUB_200_2011.tgz from the dataset's page at Caltech Data (CaltechDATA, CUB-200-2011), unpack it, "
    "and point data.root at the folder CUB_200_2011"
)


def listing(section: Data, base: Path, least_classes: int = 2) -> Listing:
    """List the data set of a recipe without decoding it; its paths are relative to `base`.

    Raises:
        InputError: no such kind, an option does not fit, a file is missing, or there are fewer than `least_classes`.
    """
    dataset = _without_empty_classes(_kind(section).listing(base, **_options(section, base)))
    if len(dataset.classes) < least_classes:
        only = f"only one, {dataset.classes[0]}" if dataset.classes else "none"
        raise InputError(f"data: two classes at least are needed, and there is {only}", "add images of another class")
    notes = dataset.notes
    if dataset.val is not None:
        notes += (f"data: val is the data set's own, {len(dataset.val)} images; data.val_fraction does not apply",)
    mark = _with_rules(dataset.fingerprint)
    dataset = replace(dataset, fingerprint=mark, pictures=dataset.pictures or mark, notes=notes)
    return _grouped(dataset, section.group) if section.group and _is_pattern(section.group) else dataset


def fingerprint(section: Data, base: Path) -> str:
    """`listing(section, base).fingerprint`, computed without a heavy import.

    Raises:
        InputError: no such kind, an option does not fit, or a file is missing.
    """
    quick = _kind(section).fingerprint
    if quick is None:
        return listing(section, base).fingerprint
    return _with_rules(quick(base, **_options(section, base)))


def _with_rules(kind_fingerprint: str) -> str:
    """The fingerprint of a data set: that of its kind, and the version of the rules for listing and decoding."""
    return hash_lines([RULES, kind_fingerprint])


def _kind(section: Data) -> DatasetKind:
    for problem in choose(section.kind, DATASETS, "data kind", ("data", "kind")):
        raise InputError(f"data.kind: {problem.message}")
    return DATASETS[section.kind]


def _without_empty_classes(dataset: Listing) -> Listing:
    """Drop the classes without an image in train, test and val (EMNIST's letters start with "N/A")."""
    parts = {"train": dataset.train, "test": dataset.test, "val": dataset.val}
    items = {name: part for name, part in parts.items() if part is not None}
    present = np.unique(np.concatenate([part.labels_N[part.labels_N != UNLABELED] for part in items.values()]))
    if len(present) == len(dataset.classes):
        return dataset
    new_labels = np.full(len(dataset.classes) + 1, UNLABELED)  # index -1, the last one, is UNLABELED
    new_labels[present] = np.arange(len(present))
    moved: dict[str, Any] = {name: replace(part, labels_N=new_labels[part.labels_N]) for name, part in items.items()}
    return replace(dataset, classes=tuple(dataset.classes[label] for label in present), **moved)


def _options(section: Data, base: Path) -> dict[str, Any]:
    """Every option of the kind with defaults filled in: writing out a default must not change the fingerprint."""
    parameters = inspect.signature(_kind(section).listing).parameters.values()
    defaults = {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    column = {"group": section.group} if section.group and not _is_pattern(section.group) else {}
    if column and "group" not in defaults:
        raise InputError(
            f"data.group: {section.group}: kind {section.kind} has no columns",
            "write a pattern on the image's path, with the part that names the group in parentheses",
        )
    return {**defaults, **bound_options(_kind(section).listing, section.options, base), **column}


def _is_pattern(group: str) -> bool:
    return "(" in group


def _grouped(dataset: Listing, pattern: str) -> Listing:
    """The data set with the groups that a pattern names in the images' names."""
    parts = {"train": dataset.train, "test": dataset.test, "val": dataset.val}
    names = [name for part in parts.values() if part is not None for name in part.names]
    group_by_name = dict(zip(names, groups_by_pattern(names, pattern), strict=True))
    changed: dict[str, Any] = {
        key: replace(part, groups=[group_by_name[name] for name in part.names])
        for key, part in parts.items()
        if part is not None
    }
    if without := sum(group is None for group in group_by_name.values()):
        note = (
            f"data.group: {without} of {len(group_by_name)} images have no group: the pattern names none in their path"
        )
        changed["notes"] = (*dataset.notes, note)
    return replace(dataset, **changed)


def cub(base: Path, *, root: Path) -> Listing:
    """CUB-200-2011 in its published files, with its official split (Wah et al. 2011, CNS-TR-2011-001).

    Args:
        base: the recipe's folder.
        root: the unpacked folder CUB_200_2011.

    Raises:
        InputError: a file is missing (the message names it and the download page) or does not match the others.
    """
    classes = _cub_table(root, "classes.txt")
    paths = _cub_table(root, "images.txt")
    labels = _cub_table(root, "image_class_labels.txt")
    training = _cub_table(root, "train_test_split.txt")
    if not paths.keys() == labels.keys() == training.keys() or not classes.keys() >= set(labels.values()):
        raise InputError(f"data.root: the tables in {root} do not list the same images and classes", CUB_FIX)
    class_index = {class_id: index for index, class_id in enumerate(classes)}

    def part(flag: str) -> Files:
        image_ids = [image_id for image_id in paths if training[image_id] == flag]
        names = [paths[image_id] for image_id in image_ids]
        return Files(
            names=names,
            paths=[f"{root}/images/{name}" for name in names],
            labels=[class_index[labels[image_id]] for image_id in image_ids],
        )

    return files_listing(list(classes.values()), part("1"), part("0"), CUB_LICENCE)


def _cub_table(root: Path, name: str) -> dict[str, str]:
    """A table of CUB: `<id> <value>` a line."""
    path = root / name
    if not path.is_file():
        raise InputError(f"data.root: {path} is missing", CUB_FIX)
    rows = [line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    for index, row in enumerate(rows):
        if len(row) != 2:
            raise InputError(f"{path}:{index + 1}: must be an id and a value", CUB_FIX)
    return {identity: text.strip() for identity, text in rows}


def table(
    base: Path,
    *,
    file: Path,
    root: Path | None = None,
    image: str = "path",
    label: str = "label",
    split: str | None = None,
    delimiter: str = ",",
    group: Annotated[str | None, LATER] = None,
) -> Listing:
    """A CSV file with a header and one row per image: its path (below `root` or the file's folder) and its label.

    An empty label means no label; where a column `how` says `unusable`, the picture is left out. `split` names a column
    whose values are train, test or val, in any of their usual names (`Training`, `valid`, ...).

    Args:
        base: the recipe's folder.
        file: the CSV file, in UTF-8.
        root: the folder that the images' paths start from; by default the file's own.
        image: column of the images' paths.
        label: column of the labels; an empty label means none.
        split: column whose values are train, test or val; without rows of test the test set is drawn from train.
        delimiter: character between two columns.
        group: column that names what belongs together (`data.group`); an empty cell means no group.

    Raises:
        InputError: the file, an image or a column is missing, a row has more or fewer fields than the header, a label
            is the text of an empty cell, or a split is none of train, test and val.
    """
    has_how = header(file, delimiter).count("how") == 1
    columns = [image, label, *filter(None, (split, group)), *(["how"] if has_how else [])]
    rows, unusable = _usable(read_rows(file, columns, label=label, delimiter=delimiter), label)
    classes = class_order(row.cells[label] for row in rows if row.cells[label])
    class_index = {name: index for index, name in enumerate(classes)}
    image_root = root if root is not None else file.parent

    def part(part_name: str) -> Files | None:
        part_rows = [row.cells for row in rows if split is None or split_of(row.cells[split]) == part_name]
        if not part_rows and part_name != "train":
            return None
        names = [cells[image] for cells in part_rows]
        return Files(
            names=names,
            paths=[str(image_root / name) for name in names],
            labels=[class_index.get(cells[label], UNLABELED) for cells in part_rows],
            groups=[cells[group] or None for cells in part_rows] if group else None,
        )

    if split is not None:
        _check_splits(file, rows, split)
    if group:
        refuse_stand_ins(file, rows, group, "leave the cell empty for no group")
    train = part("train")
    test, val = (None, None) if split is None else (part("test"), part("val"))
    notes = [f"data: {unusable} pictures that {file} calls unusable are left out"] if unusable else []
    if not test and split is not None:
        notes.append(f"data: no row of {file} is test: the test images are drawn from train")
    assert train is not None, "train may be empty, and is there"
    return files_listing(classes, train, test, NOT_STATED, val=val, notes=notes)


def _check_splits(file: Path, rows: Sequence[Row], split: str) -> None:
    for row in rows:
        if (named := split_of(row.cells[split])) not in ("train", "test", "val"):
            raise InputError(
                f"{file}:{row.line}: {split}: must be train, test or val (got {row.cells[split]!r})",
                "write train, and leave the label empty" if named == "unlabeled" else "",
            )


def _usable(rows: Sequence[Row], label: str) -> tuple[list[Row], int]:
    """The rows but those without a label that are marked as unusable, and how many these are."""
    kept = [row for row in rows if row.cells[label] or row.cells.get("how") != UNUSABLE]
    return kept, len(rows) - len(kept)


def elpv(base: Path, *, threshold: float = 0.5) -> Listing:
    """ELPV: 2,624 photos of solar cells, defective where the published probability reaches `threshold`.

    Buerhop-Lutz et al. 2018, "A Benchmark for Visual Identification of Defective Solar Cells in Electroluminescence
    Imagery"; from the PyPI package elpv-dataset, whose own loader would decode every image at once.

    Args:
        base: the recipe's folder.
        threshold: least published probability of a defect that counts as defective.

    Raises:
        InputError: the package is not installed.
    """
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("data.kind: elpv needs the package elpv-dataset", 'pip install "edgedistill[demo]"')
    package_data = Path(spec.submodule_search_locations[0]) / "data"
    text = (package_data / "labels.csv").read_text(encoding="utf-8")
    rows = [line.split() for line in text.splitlines() if line.strip()]
    labels = [int(float(probability) >= threshold) for _, probability, *_ in rows]
    files = Files(
        names=[name for name, *_ in rows], paths=[f"{package_data}/{name}" for name, *_ in rows], labels=labels
    )
    fingerprint_hash = hash_lines(["elpv", metadata.version("elpv-dataset"), repr(threshold), text])
    return Listing(
        classes=("functional", "defective"),
        train=files.items(),
        test=None,
        licence="CC BY-NC-SA 4.0",
        fingerprint=fingerprint_hash,
    )


def digits(base: Path) -> Listing:
    """scikit-learn's handwritten digits: 1,797 gray images of 8 x 8 pixels with 17 levels, classes "0" to "9"."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    levels_NHW = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    names = [f"{index:04d}" for index in range(len(levels_NHW))]
    items = Items(names=names, labels_N=bunch.target.astype(np.int64), load=lambda i: Image.fromarray(levels_NHW[i]))
    licence = "CC BY 4.0 (UCI Optical Recognition of Handwritten Digits)"
    return Listing(
        classes=tuple("0123456789"), train=items, test=None, licence=licence, fingerprint=digits_fingerprint(base)
    )


def digits_fingerprint(base: Path) -> str:
    """Fingerprint of the digits: scikit-learn's version."""
    return hash_lines(["digits", metadata.version("scikit-learn")])


@dataclass(frozen=True, kw_only=True)
class DatasetKind:
    """A kind of data set.

    Attributes:
        listing: function of the recipe's folder and the keyword-only options that returns a listing.
        fingerprint: function that returns the fingerprint without a heavy import; None where listing is quick.
    """

    listing: Callable[..., Listing]
    fingerprint: Callable[..., str] | None = None


DATASETS: dict[str, DatasetKind] = {
    "folder": DatasetKind(listing=folder),
    "cub": DatasetKind(listing=cub),
    "hf": DatasetKind(listing=hf, fingerprint=hf_fingerprint),
    "torchvision": DatasetKind(listing=torchvision, fingerprint=torchvision_fingerprint),
    "csv": DatasetKind(listing=table),
    "elpv": DatasetKind(listing=elpv),
    "digits": DatasetKind(listing=digits, fingerprint=digits_fingerprint),
}
