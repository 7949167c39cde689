"""The pictures with which a classifier is quantized, their labels, and the names of its classes.

N images, H x W pixels.
"""

from __future__ import annotations

import ast
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgedistill.agent.pictures import Size, UnreadableError
from edgedistill.console import bar, say
from edgedistill.data import images
from edgedistill.data.label_file import read_labels
from edgedistill.data.listing import class_order
from edgedistill.errors import InputError
from edgedistill.export.calibrate import image_hash
from edgedistill.predict import listing

ORDER = "name the model's classes in their order with --classes"
MOST_IMAGES = 2000  # the others are passed over; at 224 px they take 300 MB
LEAST_IMAGES = 16
METADATA_KEYS = ("classes", "names", "labels", "class_names")


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Images for calibration, and others on which graphs are compared, with their labels, -1 for none."""

    calibration_NHWC: np.ndarray
    compared_NHWC: np.ndarray
    labels_N: np.ndarray

    @property
    def labeled(self) -> int:
        """Number of compared images with a label."""
        return int((self.labels_N >= 0).sum())


def class_names(
    metadata: Mapping[str, str], classes: int, listed: Sequence[str], labels: Path | None
) -> tuple[str, ...]:
    """The names of the classes: as listed, of the model's metadata, of the labels, or numbers from 0.

    Raises:
        InputError: there are more or fewer names than classes; the labels' names have no plain order; or labels are to
            be compared, and two classes have one name.
    """
    if listed:
        if len(listed) != classes:
            raise InputError(f"--classes: {len(listed)} names, and the model has {classes} classes", "name every class")
        doubled = [name for name, count in Counter(listed).items() if count > 1]
        if labels and doubled:
            raise InputError(
                f"--classes: {doubled[0]} stands twice, and {labels} names classes", "give each class a name of its own"
            )
        return tuple(listed)
    if stated := _metadata_names(metadata, classes):
        if labels and len(set(stated)) < classes:
            raise InputError(f"{labels}: the model gives two of its classes one name", ORDER)
        return stated
    numbers = tuple(str(index) for index in range(classes))
    names = sorted({label.name for label in read_labels(labels).values() if label.name}) if labels else []
    if not names or set(names) <= set(numbers):
        return numbers
    if len(names) != classes:
        raise InputError(f"{labels}: has {len(names)} classes, and the model has {classes}", ORDER)
    if names != class_order(names):
        raise InputError(f"{labels}: its numbers have one order as numbers and another as text", ORDER)
    return tuple(names)


def _metadata_names(metadata: Mapping[str, str], classes: int) -> tuple[str, ...]:
    for key, text in metadata.items():
        if key.lower() not in METADATA_KEYS:
            continue
        for parse in (json.loads, ast.literal_eval, _split):
            try:
                parsed = parse(text)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
            names = _in_order(parsed) if isinstance(parsed, dict) else parsed
            if isinstance(names, list) and len(names) == classes and all(isinstance(name, str) for name in names):
                return tuple(name.strip() for name in names)
    return ()


def _in_order(names: Mapping[Any, Any]) -> list[str]:
    """The names of {index: name}, whose indices are text in JSON, or of {name: index}; () for any other mapping."""
    if all(isinstance(index, int) for index in names.values()):
        names = {index: name for name, index in names.items()}
    try:
        return [str(names[index]) for index in sorted(names, key=int)]
    except (TypeError, ValueError):
        return []


def _split(text: str) -> list[str]:
    return text.split(",")


def read(
    folder: Path, labels: Path | None, classes: Sequence[str], *, px: Size, fit: images.Fit, calibration_images: int
) -> Pictures:
    """Read the pictures of a folder and divide them: at most half of them calibrate, those without a label first.

    They are brought to the size `px`. A picture that cannot be read is named and passed over. No compared image has the
    pixels of one that calibrates.

    Raises:
        InputError: there are too few pictures, or a label is unknown.
    """
    if not folder.is_dir():
        raise InputError(f"--images {folder}: is not a folder", "name a folder of pictures")
    paths, class_of = listing.listed([str(folder)]), _labels(labels, classes)
    shuffled = [paths[index] for index in np.random.default_rng(0).permutation(len(paths))]
    order = sorted(shuffled, key=lambda path: path.resolve() in class_of)[-MOST_IMAGES:]
    view, read_paths, arrays = images.View(px=px, fit=fit), list[Path](), list[np.ndarray]()
    with bar("read pictures", len(order)) as advance:
        for path in order:
            advance(1)
            try:
                arrays.append(images.read(path, view, px))
            except UnreadableError as error:
                say(f"{path}: not a picture that can be read ({error})")
            else:
                read_paths.append(path)
    if len(arrays) < LEAST_IMAGES:
        raise InputError(f"--images {folder}: {len(arrays)} pictures are too few", f"add some, at least {LEAST_IMAGES}")
    n = min(calibration_images, len(arrays) // 2)
    hashes = {image_hash(array) for array in arrays[:n]}
    rows = [row for row in range(n, len(arrays)) if image_hash(arrays[row]) not in hashes]
    if not rows:
        raise InputError(f"--images {folder}: all pictures are the same", "add others")
    return Pictures(
        calibration_NHWC=np.stack(arrays[:n]),
        compared_NHWC=np.stack([arrays[row] for row in rows]),
        labels_N=np.array([class_of.get(read_paths[row].resolve(), -1) for row in rows], dtype=np.int64),
    )


def _labels(file: Path | None, classes: Sequence[str]) -> dict[Path, int]:
    if file is None:
        return {}
    numbers, class_of = {name: index for index, name in enumerate(classes)}, {}
    for path, label in read_labels(file).items():
        if label.name and label.name not in numbers:
            raise InputError(
                f"{file}: {path} has the label {label.name}, which is no class of the model", "see --classes"
            )
        if label.name:
            class_of[(file.parent / path).resolve()] = numbers[label.name]
    return class_of
