"""The data kinds that use a library: data sets of the Hugging Face hub and of torchvision.

Both libraries are imported inside the functions that list; the fingerprints need neither.
"""

from __future__ import annotations

import inspect
import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image

from edgedistill.agent.pictures import open_picture
from edgedistill.data.listing import Items, Listing, class_order, hash_lines, split_of, stamp
from edgedistill.data.tables import MAX_LABEL
from edgedistill.errors import InputError
from edgedistill.labels.draws import UNLABELED
from edgedistill.recipe.options import LATER, did_you_mean, options_for_key

TEXT = ("string", "large_string", "string_view")  # types of a column that holds the images' paths
# attributes in which torchvision's sets keep their labels: a list or array, or (image, label) pairs
LABELS = ("targets", "labels", "_labels", "y")
PAIRS = ("_samples", "samples")
UNCHECKED = ("DatasetFolder", "ImageFolder")  # torchvision's sets of a user's own files, without checksums


def hf(
    base: Path,
    *,
    path: str,
    image: str = "image",
    label: str = "label",
    train: str = "train",
    test: str | None = "test",
    revision: str | None = None,
    val: Annotated[str | None, LATER] = None,
    group: Annotated[str | None, LATER] = None,
) -> Listing:
    """A data set of the Hugging Face hub, or a local directory in a form that `datasets` reads (parquet, folders).

    `path` is a directory (relative to the recipe) if it exists, else an id on the hub. `test: null` draws the test
    images from train. The library keeps its own cache (HF_HOME); images are decoded one by one, when they are loaded.

    Args:
        base: the recipe's folder.
        path: a directory of parquet files or image folders, or an id on the hub.
        image: column of the images, or of their paths as text, which start at the directory `path`.
        label: column of the labels.
        train: split to train on.
        test: split to test on; null draws the test images from train.
        revision: commit, branch or tag on the hub.
        val: split to validate on; without it the val images are drawn from train.
        group: column that names what belongs together (`data.group`); an empty cell means no group.

    Raises:
        InputError: no such data set, no network for one on the hub, no such split or column, one split is named twice,
            or `image` is a column of neither images nor paths of files.
    """
    local = os.path.isdir(base / path)  # noqa: PTH112 - False, and no error, for a name that no folder can have
    dataset = _hf_loaded(base, path, local, revision)
    splits = [name for name in (train, test, val) if name is not None]
    if len(set(splits)) < len(splits):
        raise InputError("data: train, test and val name one split twice", "name each once, or null for none")
    parts = {name: _hf_split(dataset, name, (image, label, *([group] if group else []))) for name in splits}
    classes = _hf_classes(parts[train], label)
    licence = parts[train].info.license or f"not stated: see {path}"
    loads = {name: _hf_load(part, name, image, base / path if local else None) for name, part in parts.items()}
    listed = {name: _hf_items(part, name, label, classes=classes, load=loads[name]) for name, part in parts.items()}
    if group:
        cells = {name: _column(part, group) for name, part in parts.items()}
        groups = {name: [None if _is_empty(cell) else str(cell) for cell in cells[name]] for name in cells}
        listed = {name: replace(items, groups=groups[name]) for name, items in listed.items()}
    options = {"image": image, "label": label, "train": train, "test": test, "val": val, "group": group}
    mark = hf_fingerprint(base, path=path, revision=revision, **options)
    unused = [name for name in dataset if split_of(name) == "val" and name not in splits]
    notes = [f"data: the split {name} is not used; set data.val to it to validate on it" for name in unused]
    return Listing(
        classes=tuple(classes),
        train=listed[train],
        test=listed[test] if test is not None else None,
        licence=licence,
        fingerprint=mark,
        val=listed[val] if val is not None else None,
        notes=(*notes, *_minus_one_notes(parts, listed, label)),
    )


def _minus_one_notes(parts: Mapping[str, Any], listed: Mapping[str, Items], label: str) -> list[str]:
    """A line if -1 stands for no label in a column whose classes have no names, where it may be meant as a class."""
    suspects = [part for name, part in parts.items() if (listed[name].labels_N == UNLABELED).any()]
    rows = sum(_column(part, label).count(UNLABELED) for part in suspects if not _names(part, label))
    return [f"data: {rows} rows with the label -1 count as unlabeled; a class needs another name"] if rows else []


def _hf_loaded(base: Path, path: str, local: bool, revision: str | None) -> Any:
    """All splits of a local directory, or of an id on the hub."""
    import datasets

    try:
        return datasets.load_dataset(str(base / path) if local else path, revision=revision)
    except Exception as error:  # the library passes on the errors of file systems, readers and the network
        fix = "give a directory of parquet files" if local else "give a hub id and a network, or an existing directory"
        raise InputError(f"data.path: {path}: {_first_line(error)}", fix) from None


def hf_fingerprint(base: Path, *, path: str, revision: str | None = None, **options: Any) -> str:
    """Hash of the options and of a local directory's file sizes and modification times, or of a hub id's revision."""
    directory, chosen = base / path, options_for_key(hf, options)
    if not os.path.isdir(directory):  # noqa: PTH112
        return hash_lines(["hf", path, revision, chosen])
    return hash_lines(["hf", chosen, *_stamps(directory)])


def _hf_split(dataset: Any, name: str, columns: Sequence[str]) -> Any:
    if name not in dataset:
        raise InputError(
            f"data: the data set has no split {name}; it has {', '.join(dataset)}",
            "set data.train, and data.test to one of them or to null",
        )
    for column in columns:
        if column not in dataset[name].column_names:
            raise InputError(
                f"data: split {name} has no column {column}{did_you_mean(column, dataset[name].column_names)}"
            )
    return dataset[name]


def _hf_classes(part: Any, label: str) -> list[str]:
    if names := _names(part, label):
        return names
    cells = [cell for cell in _column(part, label) if not _is_missing(cell)]
    for cell in cells:
        if not isinstance(cell, str | int | float) or len(str(cell)) > MAX_LABEL:
            kind = f"text of {len(cell)} characters" if isinstance(cell, str) else type(cell).__name__
            raise InputError(
                f"data: the column {label} holds a {kind}, not a label", "set data.label to another column"
            )
    return class_order(map(str, cells))


def _names(part: Any, label: str) -> list[str]:
    """The names of the classes that the column itself knows."""
    return list(getattr(part.features[label], "names", None) or [])


def _is_missing(cell: Any) -> bool:
    """Whether a cell holds no label; the `datasets` library writes -1 for it."""
    return cell == UNLABELED or _is_empty(cell)


def _is_empty(cell: Any) -> bool:
    """Whether a cell holds nothing; in a column of numbers, pandas writes NaN for it."""
    return cell in (None, "") or (isinstance(cell, float) and math.isnan(cell))


def _column(part: Any, name: str) -> list[Any]:
    return list(part.select_columns([name])[:][name])


def _hf_items(part: Any, split: str, label: str, *, classes: list[str], load: Callable[[int], Image.Image]) -> Items:
    named = bool(_names(part, label))
    class_index = {name: index for index, name in enumerate(classes)}
    labels = []
    for row, cell in enumerate(_column(part, label)):
        index = cell if named else class_index.get(str(cell), -1)
        if _is_missing(cell):
            labels.append(UNLABELED)
        elif 0 <= index < len(classes):
            labels.append(index)
        else:
            raise InputError(f"data: split {split}, row {row}: train has no class {cell}")
    names = [f"{split}/{row:08d}" for row in range(len(labels))]
    return Items(names=names, labels_N=np.asarray(labels, dtype=np.int64), load=load)


def _hf_load(part: Any, split: str, image: str, directory: Path | None) -> Callable[[int], Image.Image]:
    """The function that opens the image of a row; paths in a column of text start at the data set's directory."""
    import datasets

    if getattr(part.features[image], "dtype", None) in TEXT:
        paths = _image_paths(_column(part, image), f"data: split {split}", image, directory)
        return lambda i: _open(None if paths[i] is None else {"bytes": None, "path": paths[i]})
    try:
        # undecoded: a broken image then fails when it is loaded, and only Pillow decodes
        pictures = part.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    except Exception as error:  # pyarrow's, of several types
        raise InputError(
            f"data: split {split}: the column {image} holds no images ({_first_line(error)})",
            "set data.image to a column of images, or of their paths",
        ) from None
    return lambda i: _open(pictures[i][image])


def _image_paths(cells: Sequence[str | None], place: str, image: str, directory: Path | None) -> list[str | None]:
    paths: list[str | None] = []
    for row, cell in enumerate(cells):
        if not cell or Path(cell).is_absolute():
            paths.append(cell or None)
            continue
        if directory is None:
            raise InputError(
                f"{place}, row {row}: the column {image} holds a path ({cell}), and a data set of the hub holds"
                " no files beside its tables",
                "set data.image to a column of images, or download the data set and name its directory",
            )
        if not os.path.isfile(directory / cell):  # noqa: PTH113
            raise InputError(
                f"{place}, row {row}: {image}: {directory / cell} is no file", "write paths that start at data.path"
            )
        paths.append(str(directory / cell))
    return paths


def _open(cell: dict[str, Any] | None) -> Image.Image:
    if cell is None:
        raise ValueError("the cell is empty")
    return open_picture(cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"]))


def torchvision(
    base: Path,
    *,
    name: str,
    root: Path,
    download: bool = True,
    train: str = "train",
    test: str | None = "test",
    options: dict[str, Any] | None = None,
) -> Listing:
    """Any classification set of `torchvision.datasets`, by its class name; kept in `root`, downloaded if `download`.

    `train` and `test` name the splits where the set has named ones (Flowers102, Food101, ...). A set without splits,
    and `test: null`, draw the test images from train. `options` are passed to the set's constructor unchanged.

    Args:
        base: the recipe's folder.
        name: class name in torchvision.datasets.
        root: the folder that holds the set.
        download: download the set where it is missing.
        train: split to train on, where the set has named splits.
        test: split to test on; null draws the test images from train.
        options: further arguments of the set's constructor.

    Raises:
        InputError: no such set, it cannot be loaded, its options are wrong, or its labels are not classes.
    """
    import torchvision.datasets as library

    if name not in library.__all__ or not inspect.isclass(getattr(library, name)):
        raise InputError(f"data.name: torchvision has no set {name}{did_you_mean(name, library.__all__)}")
    kind, extra = getattr(library, name), options or {}
    splits = split_options(kind, extra, train, test)
    parts = [_construct(kind, root, download, {**extra, **split}) for split in splits]
    listed = [_torchvision_items(part, name) for part in parts]
    classes = _torchvision_classes(parts[0], listed)
    mark = torchvision_fingerprint(base, name=name, root=root, train=train, test=test, options=options)
    return Listing(
        classes=classes,
        train=listed[0],
        test=listed[1] if len(listed) > 1 else None,
        licence=f"see torchvision's {name}",
        fingerprint=mark,
    )


def torchvision_fingerprint(base: Path, *, name: str, root: Path, download: bool = True, **options: Any) -> str:
    """Hash of the set's name, folder and options; torchvision checks most files against its own checksums."""
    files = _stamps(root) if name in UNCHECKED else ()
    return hash_lines(["torchvision", name, str(root.resolve()), options_for_key(torchvision, options), *files])


def _stamps(directory: Path) -> list[list[Any]]:
    """The files of a folder, and of folders that are linked there, with their sizes and modification times.

    Each real folder is read once: a link may lead to a folder that it lies in.
    """
    entered, files = {directory.resolve()}, list[Path]()
    for place, folders, names in os.walk(directory, followlinks=True):
        real = {name: (Path(place) / name).resolve() for name in sorted(folders)}
        folders[:] = [name for name, folder in real.items() if folder not in entered]
        entered.update(real.values())
        files += [Path(place) / name for name in names if not name.startswith(".")]
    return [[str(file.relative_to(directory)), *stamp(file)] for file in sorted(files) if file.is_file()]


def _parameters(kind: type) -> set[str]:
    """Names of the constructor's parameters, including those that a subclass passes on through **kwargs."""
    names: set[str] = set()
    for ancestor in kind.__mro__:
        parameters = inspect.signature(ancestor.__init__).parameters  # type: ignore[misc]
        names |= parameters.keys()
        if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return names


def split_options(kind: type, extra: dict[str, Any], train: str, test: str | None) -> list[dict[str, Any]]:
    """The constructor's options for train and for test; one dict if the set has no splits or `test` is None."""
    parameters = _parameters(kind) - extra.keys()
    if "train" in parameters:
        choices: list[dict[str, Any]] = [{"train": True}, {"train": False}]
    elif "split" in parameters:
        choices = [{"split": train}, {"split": test}]
    else:
        choices = [{}]
    return choices if test is not None else choices[:1]


def _construct(kind: type, root: Path, download: bool, options: dict[str, Any]) -> Any:
    if "root" in _parameters(kind):
        options = {"root": str(root), **options}
    if "download" in _parameters(kind):
        options = {"download": download, **options}
    if "loader" in _parameters(kind):  # torchvision's own converts pictures of more than 8 bits, and clips them
        options = {"loader": open_picture, **options}
    if download:
        root.mkdir(parents=True, exist_ok=True)
    try:
        return kind(**options)
    except Exception as error:  # a missing file, a lost network, a wrong split or option: each set raises its own
        raise InputError(
            f"data.name: torchvision's {kind.__name__}: {_first_line(error)}",
            f"put the set's files in {root}{'' if download else ', set data.download to true'}, or correct data.train,"
            " data.test and data.options",
        ) from None


def _torchvision_items(part: Any, name: str) -> Items:
    labels_N = np.asarray(_torchvision_labels(part))
    if labels_N.shape != (len(part),) or labels_N.dtype.kind not in "iu":
        raise InputError(f"data.name: torchvision's {name} is not a classification set", "choose one with class labels")
    names = [f"{index:08d}" for index in range(len(labels_N))]
    return Items(names=names, labels_N=labels_N.astype(np.int64), load=lambda i: part[i][0])


def _torchvision_labels(part: Any) -> Any:
    for attribute in LABELS:
        if hasattr(part, attribute):
            return getattr(part, attribute)
    for attribute in PAIRS:
        if hasattr(part, attribute):
            return [label for _, label in getattr(part, attribute)]
    return [part[index][1] for index in range(len(part))]  # no list of labels: they are stored with the images


def _torchvision_classes(part: Any, listed: Sequence[Items]) -> tuple[str, ...]:
    count = max(int(items.labels_N.max()) for items in listed) + 1
    names = getattr(part, "classes", None) or getattr(part, "categories", None) or ()
    if len(names) < count:
        return tuple(str(index) for index in range(count))
    return tuple(name if isinstance(name, str) else ", ".join(name) for name in names)  # ImageNet lists synonyms


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
