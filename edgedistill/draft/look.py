"""A look at somebody's data: of which kind it is, how it is labeled, and how large the pictures are.

C target classes.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgedistill.console import say
from edgedistill.data import datasets
from edgedistill.data.label_file import labels_of_folder, read_labels, spelled
from edgedistill.data.listing import SUFFIXES, Listing, split_of
from edgedistill.data.splits import evenly_spaced
from edgedistill.data.walk import Walk, count_of
from edgedistill.errors import InputError
from edgedistill.labels.draws import UNLABELED
from edgedistill.recipe.data_section import Data
from edgedistill.recipe.options import MAX_LISTED

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
RECIPES, TABLES = (".yaml", ".yml"), (".csv", ".tsv", ".txt")
DELIMITERS = ",;\t|"
ROWS = 200  # of a table that are looked at
PICTURES = 64  # whose sizes are looked at
# usual names of columns, the most usual first
IMAGE_COLUMNS = ("image", "path", "file", "filename", "file_name", "filepath", "img", "picture", "photo", "image_path")
LABEL_COLUMNS = (
    "label",
    "class",
    "category",
    "target",
    "species",
    "diagnosis",
    "labels",
    "fine_label",
    "class_name",
    "y",
)
SPLIT_COLUMNS = ("split", "subset", "set", "part", "partition", "usage")
GROUP_COLUMNS = ("group", "patient", "patient_id", "subject", "subject_id", "recording", "board")


@dataclass(frozen=True, kw_only=True)
class Look:
    """What somebody's data are.

    Attributes:
        name: a recipe's name for them.
        section: the recipe's section `data`; its paths are absolute.
        reasons: why a key of the section has its value, where it was not plain.
        listing: the data set.
        counts_C: labeled images of each class in train.
        unlabeled: images of train without a label.
        sides: shorter sides of some pictures in pixels, ascending.
    """

    name: str
    section: dict[str, Any]
    reasons: dict[str, str]
    listing: Listing
    counts_C: tuple[int, ...]
    unlabeled: int
    sides: tuple[int, ...]

    @property
    def images(self) -> int:
        """Number of images to train on, with and without a label."""
        return sum(self.counts_C) + self.unlabeled

    @property
    def px(self) -> int:
        """The median of the shorter sides in pixels."""
        return int(np.median(self.sides))


def is_recipe(path: str) -> bool:
    """Whether a path is meant as a recipe: a file that is neither a table nor pictures, or a name that ends as one."""
    place = Path(path).expanduser()
    return place.suffix in RECIPES or (place.is_file() and place.suffix.lower() not in (*TABLES, *SUFFIXES, ".parquet"))


def look(path: str) -> Look:
    """Look at a folder, a table, a folder of parquet files, or a data set of the hub by its id.

    A folder has class folders, or a labels.csv, which counts before them.

    Raises:
        InputError: there is nothing of that kind, no picture has a label, or the data cannot be listed.
    """
    place = Path(path).expanduser()
    if place.is_dir() and _holds_parquet(place):
        section, reasons = _published(str(place.resolve()))
    elif place.is_dir():
        section, reasons = _folder(place.resolve())
    elif place.is_file() and place.suffix.lower() in TABLES:
        section, reasons = _table(place.resolve())
    elif not place.exists() and HUB_ID.fullmatch(path):
        section, reasons = _published(path)
    elif place.suffix.lower() == ".parquet":
        raise InputError(f"{path}: is one parquet file", "name the folder that it is in")
    elif place.exists():
        raise InputError(f"{path}: is neither a folder of pictures nor a table nor a recipe", "name one of these")
    else:
        raise InputError(f"{path}: there is no such file or folder", "name a folder of pictures, a table or a recipe")
    listing = datasets.listing(Data.model_validate(section), Path.cwd())
    labels_N = listing.train.labels_N
    counts_C = np.bincount(labels_N[labels_N != UNLABELED], minlength=len(listing.classes))
    return Look(
        name=_name(place.stem if place.is_file() else place.resolve().name),
        section=section,
        reasons=reasons,
        listing=listing,
        counts_C=tuple(int(count) for count in counts_C),
        unlabeled=int((labels_N == UNLABELED).sum()),
        sides=_sides(listing),
    )


def _name(text: str) -> str:
    """A recipe's name from that of a file or folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._") or "student"


def _sides(listing: Listing) -> tuple[int, ...]:
    """The shorter sides of some pictures, ascending; those that cannot be opened are left to the run."""
    sides = []
    for row in evenly_spaced(len(listing.train), PICTURES):
        try:
            with listing.train.load(int(row)) as image:
                sides.append(min(image.size))
        except Exception:  # as in data.limits.Decoder: broken bytes raise anything
            continue
    if not sides:
        raise InputError("data: none of the pictures that were tried can be opened", "see `edgedistill audit`")
    return tuple(sorted(sides))


def _folder(root: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The section of a folder: its labels.csv, as `suggest` and `annotate` read and write it, else its class folders.

    Raises:
        InputError: it holds pictures without a label alone, or its labels.csv cannot be read.
    """
    walk, file = Walk(root=root), labels_of_folder(root)
    labels = read_labels(file) if file else {}
    if file and not any(label.name for label in labels.values()):
        raise InputError(f"{file}: no picture has a label", f"`edgedistill annotate {root}` labels them by keys")
    if file:
        pictures = walk.take(root)
        if others := len(set(pictures) - spelled(labels, pictures).keys()):
            has = "has" if others == 1 else "have"
            say(f"{file}: {count_of(others, 'picture')} of the folder {has} no row, and no part in the run; add rows")
        section, reasons = _table(file)
        return section, {**reasons, "file": "the labels of the folder, which count before its class folders"}
    level = walk.level(root)
    if level.images and not any(walk.count(root / name) for name in level.folders):
        raise InputError(
            f"{root}: {count_of(len(level.images), 'picture')} without a label: there are no class folders",
            f"`edgedistill suggest {root}` says which ones to label first, `edgedistill annotate {root}` labels them by"
            " keys; or move them into a folder for each class",
        )
    return {"kind": "folder", "root": root}, {}


def _table(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The section of a table: its delimiter, and the columns by their names, else by what they hold.

    Raises:
        InputError: it is not text, or no column holds paths of pictures or labels.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            head = stream.readline()
            delimiter = max(DELIMITERS, key=head.count)
            stream.seek(0)
            rows = list(itertools.islice(csv.DictReader(stream, delimiter=delimiter), ROWS))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file}: cannot be read ({error})", "save it as CSV in UTF-8") from None
    columns = [name for name in (rows[0] if rows else {}) if name]
    cells = {name: [str(row[name] or "") for row in rows] for name in columns}
    image = _column(columns, IMAGE_COLUMNS, lambda name: all(map(_is_picture, cells[name])))
    rest = [name for name in columns if name != image]
    label = _column(rest, LABEL_COLUMNS, lambda name: 1 < len(set(cells[name]) - {""}) <= len(rows) / 2)
    if image is None or label is None:
        shown = ", ".join(columns[:MAX_LISTED]) or "none"
        missing = "paths of pictures" if image is None else "labels"
        raise InputError(f"{file}: no column holds {missing} (columns: {shown})", "name it `path`, or `label`")
    others = [name for name in rest if name != label]
    split = _column(others, SPLIT_COLUMNS)
    if split and (strange := [cell for cell in cells[split] if split_of(cell) not in ("train", "test", "val")]):
        if any(map(split_of, cells[split])):
            raise InputError(
                f"{file}: {split}: {strange[0]!r} is none of train, test and val, which other cells are",
                "write one of these (train, with an empty label, if it has none), or rename the column",
            )
        split = None
    group = _column(others, GROUP_COLUMNS)
    chosen = {"image": image, "label": label, "split": split, "group": group}
    defaults = {"image": "path", "label": "label"}
    section = {"kind": "csv", "file": file}
    section |= {key: name for key, name in chosen.items() if name and name != defaults.get(key)}
    if delimiter != ",":
        section["delimiter"] = delimiter
    reasons = {
        "image": "the column with paths of pictures",
        "label": "the column with labels",
        "split": "its cells are splits",
        "group": "what belongs together is on one side of a split",
    }
    return section, reasons


def _is_picture(cell: str) -> bool:
    return Path(cell).suffix.lower() in SUFFIXES


def _column(columns: Iterable[str], names: Sequence[str], holds: Callable[[str], bool] | None = None) -> str | None:
    """The column with the most usual of `names`, in any case; else the first that `holds` what is looked for."""
    by_name = {column.strip().lower(): column for column in columns}
    usual = next((by_name[name] for name in names if name in by_name), None)
    return usual or next(filter(holds, by_name.values()), None) if holds else usual


def _holds_parquet(folder: Path) -> bool:
    return any(itertools.chain(folder.glob("*.parquet"), folder.glob("*/*.parquet")))


def _published(path: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The section of a folder of parquet files or of a data set of the hub: its columns and splits.

    Raises:
        InputError: it cannot be read, or no column holds pictures or labels.
    """
    import datasets as library

    try:
        splits = library.load_dataset(path)
    except Exception as error:  # the library passes on the errors of file systems, readers and the network
        fix = "name an existing folder or table, or a hub id where there is a network"
        raise InputError(f"{path}: {str(error).strip().splitlines()[0]}", fix) from None
    names = list(splits)
    train = next((name for name in names if split_of(name) == "train"), names[0])
    features = splits[train].features
    pictures = [name for name, feature in features.items() if isinstance(feature, library.Image)]
    labels = [name for name, feature in features.items() if isinstance(feature, library.ClassLabel)]
    image = pictures[0] if pictures else _column(features, IMAGE_COLUMNS)
    label = (_column(labels, LABEL_COLUMNS) or labels[0]) if labels else _column(features, LABEL_COLUMNS)
    if image is None or label is None:
        missing = "pictures" if image is None else "labels"
        raise InputError(f"{path}: no column holds {missing} (columns: {', '.join(features)})", "write a recipe for it")
    test = next((name for name in names if split_of(name) == "test"), None)
    val = next((name for name in names if split_of(name) == "val"), None)
    chosen = {"image": image, "label": label, "train": train, "test": test, "val": val}
    defaults = {"image": "image", "label": "label", "train": "train", "test": "test", "val": None}
    section = {"kind": "hf", "path": path}
    section |= {key: name for key, name in chosen.items() if name != defaults[key]}
    reasons = {"test": "there is no split `test`" if test is None else "the split to test on"}
    return section, {**reasons, "val": "the split to validate on", "image": "the pictures", "label": "the labels"}
