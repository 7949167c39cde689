"""The data kind `folder`: which folders are splits, classes and unlabeled images, and which are none of them.

Each layout is understood, and said in one line where it is not plain, or refused by name.
"""

from __future__ import annotations

import contextlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgedistill.data.listing import Files, Listing, class_order, files_listing, split_in, split_of
from edgedistill.data.walk import Walk, count_of, hidden_images, shown
from edgedistill.errors import InputError, first_names
from edgedistill.labels.draws import UNLABELED
from edgedistill.recipe.options import did_you_mean

NOT_STATED = "not stated: images of your own"
ADVICE = "put each class's images in a folder of its own, or list them in a CSV file (kind: csv)"


def folder(base: Path, *, root: Path, unlabeled: Path | None = None) -> Listing:
    """A folder for each class: root/train/<class>/ with root/test/<class>/ and root/val/<class>/, or root/<class>/.

    Without a folder `test` the test images are drawn from train (`data.test_fraction`), without `val` the val images
    (`data.val_fraction`). Images below root/unlabeled/ or root/train/unlabeled/ join train without a label, as do those
    of `unlabeled`. Other usual names of the splits are understood: `Training`, `valid`, `validation`, `dev`, `testing`.

    Args:
        base: the recipe's folder.
        root: the folder of the images.
        unlabeled: a folder of more images, at any depth, without a label.

    Raises:
        InputError: a folder is missing, cannot be read or holds no image, it is not plain which folders are classes, or
            test or val has a class that train lacks.
    """
    if not root.is_dir():
        fix = "unpack it, and name the folder" if root.is_file() else "name a folder that holds one folder a class"
        raise InputError(f"data.root: {root} is not a folder", fix)
    walk = Walk(root=root, apart=unlabeled)
    layout = _layout(walk)
    _refuse_wrapper(walk, layout.train)
    names = {unicodedata.normalize("NFC", name) for name in layout.train.classes}
    classes = {name: index for index, name in enumerate(class_order(names))}
    train = _labeled(walk, layout.train, classes)
    test, val = (_labeled(walk, part, classes) if part else None for part in (layout.test, layout.val))
    rest, joined = _unlabeled(walk, layout, unlabeled)
    files = Files(
        names=[*train.names, *rest.names], paths=[*train.paths, *rest.paths], labels=[*train.labels, *rest.labels]
    )
    notes = [*layout.notes, *_cases(classes), *joined, *_loose(walk, layout), *walk.left_out()]
    return files_listing(list(classes), files, test, NOT_STATED, val=val, notes=[f"data: {note}" for note in notes])


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The folders in a folder that may be classes, and those of unlabeled images, by name."""

    folder: Path
    classes: tuple[str, ...]
    unlabeled: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which folders hold which split's class folders; `unlabeled` are the folders of unlabeled images.

    `between` are folders whose own images, beside class folders or splits, belong to nothing.
    """

    train: Candidates
    test: Candidates | None = None
    val: Candidates | None = None
    unlabeled: tuple[Path, ...] = ()
    between: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def _candidates(walk: Walk, parent: Path) -> Candidates:
    """The folders in `parent` that may be classes.

    Raises:
        InputError: a hidden folder, which is no system's, holds images.
    """
    level = walk.level(parent)
    for name in level.hidden_folders:
        number = 0 if walk.is_apart(parent / name) else hidden_images(parent / name)
        if number:
            raise InputError(
                f"{shown(parent / name)}: is hidden by the dot in its name, and holds {count_of(number, 'image')}",
                "rename it if it is a class, or move it away",
            )
    classes, unlabeled = [], []
    for name in level.folders:
        path = parent / name
        if not walk.enters(path, name in level.links, walk.skipped):
            continue
        if walk.holds_runs(path) and not walk.level(path).images:
            walk.skipped[path] = f"{walk.shown(path)}, the runs of edgedistill"
        elif split_of(name) == "unlabeled":
            unlabeled.append(name)
        elif not _holds_only_apart(walk, path):
            classes.append(name)
    return Candidates(folder=parent, classes=tuple(classes), unlabeled=tuple(unlabeled))


def _holds_only_apart(walk: Walk, path: Path) -> bool:
    """Whether all images below a folder are those of the option `unlabeled`."""
    apart = walk.apart
    return apart is not None and apart.resolve().is_relative_to(path.resolve()) and not walk.count(path)


def _filled(walk: Walk, parent: Path) -> list[str]:
    """Names of the folders in a folder that hold images."""
    level = walk.level(parent)
    return [
        name for name in level.folders if walk.enters(parent / name, name in level.links) and walk.count(parent / name)
    ]


def _class_like(walk: Walk, parent: Path) -> list[str]:
    """Names of the folders with images in a folder, without those of unlabeled images."""
    return [name for name in _filled(walk, parent) if split_of(name) != "unlabeled"]


def _layout(walk: Walk) -> Layout:
    root = _candidates(walk, walk.root)
    if any(split_of(name) == "train" and _class_like(walk, walk.root / name) for name in root.classes):
        return _with_splits(walk, root)
    return _without_splits(walk, root)


def _with_splits(walk: Walk, root: Candidates) -> Layout:
    """The layout root/train/<class>/.

    Raises:
        InputError: two folders mean the same split, or one means none and holds images.
    """
    names: dict[str | None, list[str]] = defaultdict(list)
    for name in root.classes:
        names[split_of(name)].append(name)
    nameless, train = names.pop(None, []), names["train"][0]
    for split, same in names.items():
        if len(same) > 1:
            raise InputError(f"data.root: {_some(same)} in {walk.root} mean the same, {split}", "keep one of them")
    for name in nameless:
        if walk.count(walk.root / name):
            raise InputError(
                f"{shown(walk.root / name)}: holds images and is none of train, val, test and unlabeled, and"
                f" {train} beside it holds class folders",
                f"rename it if it is a split, move it into {train} if it is a class, else move it away",
            )
    parts = {split: _candidates(walk, walk.root / same[0]) for split, same in names.items() if split}
    read = [f"{names[split][0]} is {split}" for split in ("train", "val", "test") if split in parts]
    read += [] if "test" in parts else ["the test images are drawn from train"]
    notes = [] if read == ["train is train", "test is test"] else [f"{walk.root}: {', '.join(read)}"]
    notes += _called_like_splits(walk, parts["train"])
    notes += [f"left out: {walk.root / name}, which holds no images" for name in nameless]
    unlabeled = [walk.root / name for name in root.unlabeled]
    return Layout(
        train=parts["train"],
        test=parts.get("test"),
        val=parts.get("val"),
        unlabeled=(*unlabeled, *(parts["train"].folder / name for name in parts["train"].unlabeled)),
        between=(walk.root, *(part.folder for part in parts.values())),
        notes=tuple(notes),
    )


def _without_splits(walk: Walk, root: Candidates) -> Layout:
    """The layout root/<class>/, in which a class may be called train or test if nothing contradicts it.

    Raises:
        InputError: folders that are called like splits are no classes by what they hold.
    """
    filled = [name for name in root.classes if walk.count(walk.root / name)]
    flat = [name for name in filled if not _class_like(walk, walk.root / name)]
    if filled and all(map(split_of, filled)):
        if flat:
            raise InputError(f"data.root: {_some(flat)} in {walk.root}: images and no class folders", ADVICE)
        raise InputError(
            f"data.root: {_some(filled)} in {walk.root}, and no folder train beside",
            "name the folder to train on train",
        )
    _refuse_renamed_splits(walk.root, filled)
    notes = [*_beside(walk.root), *_called_like_splits(walk, root), *_alike(walk, filled)]
    unlabeled = tuple(walk.root / name for name in root.unlabeled)
    return Layout(train=root, unlabeled=unlabeled, between=(walk.root,), notes=tuple(notes))


def _refuse_renamed_splits(root: Path, names: Sequence[str]) -> None:
    """Raise InputError for names that differ in the word for a split alone, such as seg_train and seg_test."""
    groups: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for name in names:
        split, others = split_in(name)
        if split:
            groups[others][split] = name
    for group in groups.values():
        if "train" in group and len(group) > 1:
            raise InputError(
                f"data.root: {_some(group.values())} in {root} are called like splits",
                ADVICE
                if all(map(split_of, group.values()))
                else f"rename them to {_some(group)}, with class folders in them",
            )


def _beside(root: Path) -> list[str]:
    """A line if the root is a folder train, and its data set has other splits."""
    names = []
    with contextlib.suppress(OSError):
        names = sorted(path.name for path in root.parent.iterdir() if split_of(path.name) in ("test", "val"))
    if split_of(root.name) != "train" or not names:
        return []
    return [f"{_some(names)} beside {root}: not used; name {root.parent} to use all splits"]


def _called_like_splits(walk: Walk, parent: Candidates) -> list[str]:
    """A line about each class that is called like a split.

    Raises:
        InputError: such a folder holds class folders, called like those beside it or in those beside it.
    """
    inside = {name: set(_class_like(walk, parent.folder / name)) for name in parent.classes}
    others = [name for name in parent.classes if not split_of(name)]
    notes = []
    for name in (name for name in parent.classes if split_of(name)):
        reason = f"{shown(parent.folder / name)}: holds class folders, as a split does, and is none"
        classes = [other for other in others if other in inside[name]]
        if classes:
            deeper = f", or {_some(classes)} into {parent.folder / 'train'}" if parent.folder == walk.root else ""
            raise InputError(reason, f"move it out of {parent.folder}{deeper}")
        if alike := [other for other in others if inside[other] & inside[name]]:
            raise InputError(reason, f"rename {_some(alike)} to train if it is one")
        reason = "its folders are called like no class" if inside[name] else "it holds images and no class folders"
        notes.append(f"{parent.folder}: {name}: a class, {reason}")
    return notes


def _alike(walk: Walk, classes: Sequence[str]) -> list[str]:
    """A line if all classes hold the same folders and nothing else: they may be splits of another name."""
    inside = [tuple(_class_like(walk, walk.root / name)) for name in classes]
    if len(classes) < 2 or len(set(inside)) > 1 or len(inside[0]) < 2:
        return []
    if any(walk.level(walk.root / name).images for name in classes):
        return []
    return [
        f"{walk.root}: {_some(classes)} all hold the folders {_some(inside[0])}: they are read as classes; if they are"
        " splits, call them train and test"
    ]


def _some(names: Iterable[str]) -> str:
    return first_names([shown(name) for name in names], 4)


def _refuse_wrapper(walk: Walk, train: Candidates) -> None:
    """Raise InputError if there are no class folders, or one alone, which holds the class folders itself."""
    if not train.classes:
        number = len(walk.level(train.folder).images)
        content = f"{count_of(number, 'image')} and no class folders" if number else "no class folders"
        raise InputError(f"data.root: {train.folder} holds {content}", ADVICE)
    filled = [name for name in train.classes if walk.count(train.folder / name)]
    deepest, inner = train.folder, filled
    while len(inner) == 1 and not walk.level(deepest / inner[0]).images:
        deepest /= inner[0]
        inner = _class_like(walk, deepest)
    if len(filled) == 1 and len(inner) > 1:
        raise InputError(
            f"data.root: {train.folder} holds only one folder of images, {shown(filled[0])}, and {shown(deepest)} holds"
            f" {_some(inner)}",
            f"name {deepest}, or add images of another class"
            if train.folder == walk.root
            else f"move them up into {train.folder}, or add images of another class",
        )


def _cases(classes: Iterable[str]) -> list[str]:
    """A line about classes whose names differ in upper and lower case alone."""
    same = defaultdict(list)
    for name in classes:
        same[name.casefold()].append(name)
    return [f"the classes {_some(names)} differ in case alone" for names in same.values() if len(names) > 1]


def _labeled(walk: Walk, part: Candidates, classes: Mapping[str, int]) -> Files:
    """The images of a split's class folders.

    Raises:
        InputError: train has no class of a folder's name, two folders have one name, or a folder holds no image.
    """
    folders: dict[str, str] = {}
    for name in part.classes:
        composed, path = unicodedata.normalize("NFC", name), shown(part.folder / name)
        if composed not in classes:
            raise InputError(f"{path}: train has no class of this name{did_you_mean(composed, classes)}")
        if composed in folders:
            raise InputError(f"{path}: another folder has this name in another Unicode form", "merge them")
        if any("\udc80" <= letter <= "\udcff" for letter in name):
            raise InputError(f"{path}: the name is not in UTF-8", "rename it")
        folders[composed] = name
    if not folders and (number := len(walk.level(part.folder).images)):
        raise InputError(
            f"{part.folder}: holds {count_of(number, 'image')} and no class folders",
            "sort them into a folder for each class, or rename it to unlabeled",
        )
    if not folders:
        raise InputError(f"{part.folder}: holds no image", "add class folders with images, or remove the folder")
    pairs = []
    for composed in sorted(folders):
        images = _class_images(walk, part.folder / folders[composed])
        pairs += [(f"{folders[composed]}/{name}", classes[composed]) for name in images]
    return Files(
        names=[name for name, _ in pairs],
        paths=[f"{part.folder}/{name}" for name, _ in pairs],
        labels=[label for _, label in pairs],
    )


def _class_images(walk: Walk, path: Path) -> list[str]:
    """The images of a class folder.

    Raises:
        InputError: there are none, or they are divided into splits or into labeled and unlabeled ones.
    """
    splits = {split_of(name): name for name in _filled(walk, path)}
    for split in splits.keys() & {"test", "val"} if "train" in splits else ():
        raise InputError(
            f"{shown(path)}: holds the folders {splits['train']} and {splits[split]}, and splits come above classes",
            f"move them to {shown(walk.root / 'train' / path.name)} and {shown(walk.root / str(split) / path.name)}",
        )
    if "unlabeled" in splits:
        raise InputError(
            f"{shown(path / splits['unlabeled'])}: images without a label lie in a class folder",
            f"move them to {walk.root / 'unlabeled'}",
        )
    names = walk.take(path)
    if not names:
        others = walk.other_files(path)
        raise InputError(
            f"{shown(path)}: holds no image{f' ({others})' if others else ''}",
            "add images (.jpg, .png, ...) or remove the folder",
        )
    return names


def _unlabeled(walk: Walk, layout: Layout, option: Path | None) -> tuple[Files, list[str]]:
    """The unlabeled images of folders in the root and of the option, each once, and a line about each folder in it.

    Raises:
        InputError: the option's folder is missing or holds no image.
    """
    for part in (part for part in (layout.test, layout.val) if part):
        for name in part.unlabeled:
            raise InputError(
                f"{shown(part.folder / name)}: images without a label can only be trained on",
                f"move them to {walk.root / 'unlabeled'}",
            )
    if option is not None and not option.is_dir():
        raise InputError(f"{option}: is not a folder", "name an existing folder of images")
    pairs, notes = [], []
    for path in (*layout.unlabeled, *([option] if option else [])):
        images, owned = walk.take_rest(path)
        if path is option and not images and not owned:
            raise InputError(f"{option}: holds no image", "add images (.jpg, .png, ...) or remove the folder")
        outside = "more unlabeled" if layout.unlabeled else "unlabeled"
        prefix = walk.shown(path) if walk.root in path.parents else outside
        pairs += [(f"{prefix}/{name}", f"{path}/{name}") for name in images]
        if path is not option:
            notes.append(f"{walk.root}: {walk.shown(path)}: {count_of(len(images), 'image')} without a label")
        if owned:
            notes.append(f"{path}: {count_of(owned, 'image')} in folders that are read already, and counted once")
    names, paths = [name for name, _ in pairs], [path for _, path in pairs]
    return Files(names=names, paths=paths, labels=[UNLABELED] * len(names)), notes


def _loose(walk: Walk, layout: Layout) -> list[str]:
    """A line for each folder that holds images beside its class folders."""
    counts = [(path, len(walk.level(path).images)) for path in layout.between if not walk.owned(path)]
    return [
        f"left out: {count_of(number, 'image')} directly in {path}, of no class" for path, number in counts if number
    ]
