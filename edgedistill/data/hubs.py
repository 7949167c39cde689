"""The data kinds that use a library: data sets of the Hugging Face hub and of torchvision.

Both libraries are imported inside the functions that list; the fingerprints need neither.
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgedistill.data.listing import UNLABELED, Items, Listing, class_order, hash_lines, refuse_special, stamp
from edgedistill.errors import InputError
from edgedistill.recipe.options import did_you_mean
from edgedistill.run.files import digest

TEXT = ("string", "large_string", "string_view")  # types of a column that holds the images' paths
# attributes in which torchvision's sets keep their labels: a list or array, or (image, label) pairs
LABELS = ("targets", "labels", "_labels", "y")
PAIRS = ("_samples", "samples")


def hf(
    base: Path,
    *,
    path: str,
    image: str = "image",
    label: str = "label",
    train: str = "train",
    test: str | None = "test",
    revision: str | None = None,
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

    Raises:
        InputError: no such data set, no network for one on the hub, no such split or column, or `image` is a
            column of neither images nor paths of files.
    """
    import datasets

    local = (base / path).is_dir()
    try:
        dataset = datasets.load_dataset(str(base / path) if local else path, revision=revision)
    except Exception as error:  # the library passes on the errors of file systems, readers and the network
        fix = "give a directory of parquet files" if local else "give a hub id and a network, or an existing directory"
        raise InputError(f"data.path: {path}: {_first_line(error)}", fix) from None
    parts = {name: _hf_split(dataset, name, (image, label)) for name in (train, test) if name is not None}
    classes = _hf_classes(parts[train], label)
    licence = parts[train].info.license or f"not stated: see {path}"
    loads = {name: _hf_load(part, name, image, base / path if local else None) for name, part in parts.items()}
    listed = {name: _hf_items(part, name, label, classes=classes, load=loads[name]) for name, part in parts.items()}
    mark = hf_fingerprint(base, path=path, image=image, label=label, train=train, test=test, revision=revision)
    return Listing(
        classes=tuple(classes),
        train=listed[train],
        test=listed[test] if test is not None else None,
        licence=licence,
        fingerprint=mark,
    )


def hf_fingerprint(base: Path, *, path: str, revision: str | None = None, **options: Any) -> str:
    """Hash of the options and of a local directory's file sizes and modification times, or of a hub id's revision."""
    directory = base / path
    if not directory.is_dir():
        return digest(["hf", path, revision, options])
    files = sorted(file for file in directory.rglob("*") if file.is_file() and not file.name.startswith("."))
    return hash_lines(["hf", digest(options), *(f"{file.relative_to(directory)}\0{stamp(file)}" for file in files)])


def _hf_split(dataset: Any, name: str, columns: tuple[str, str]) -> Any:
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
    names = getattr(part.features[label], "names", None)
    if names:
        return list(names)
    return class_order(str(cell) for cell in _column(part, label) if cell not in (None, "", UNLABELED))


def _column(part: Any, name: str) -> list[Any]:
    return list(part.select_columns([name])[:][name])


def _hf_items(part: Any, split: str, label: str, *, classes: list[str], load: Callable[[int], Image.Image]) -> Items:
    named = bool(getattr(part.features[label], "names", None))
    class_index = {name: index for index, name in enumerate(classes)}
    labels = []
    for row, cell in enumerate(_column(part, label)):
        if cell in (None, "", UNLABELED):
            labels.append(UNLABELED)
        elif named or str(cell) in class_index:
            labels.append(int(cell) if named else class_index[str(cell)])
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
        if not (directory / cell).is_file():
            raise InputError(
                f"{place}, row {row}: {image}: {directory / cell} is no file", "write paths that start at data.path"
            )
        paths.append(str(directory / cell))
    return paths


def _open(cell: dict[str, Any] | None) -> Image.Image:
    if cell is None:
        raise ValueError("the cell is empty")
    if cell["bytes"] is not None:
        return Image.open(io.BytesIO(cell["bytes"]))
    refuse_special(cell["path"])
    return Image.open(cell["path"])


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
    """Hash of the set's name, folder and options; torchvision checks the files against its own checksums."""
    return digest(["torchvision", name, root.resolve(), options])


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
    if download:
        root.mkdir(parents=True, exist_ok=True)
    try:
        return kind(**options)
    except Exception as error:  # a missing file, a lost network, a wrong split or option: each set raises its own
        raise InputError(
            f"data.name: torchvision's {kind.__name__}: {_first_line(error)}",
            f"put the set's files in {root}, or correct data.train, data.test and data.options",
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
