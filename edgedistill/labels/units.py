"""Units: images that belong together and are never on two sides of a split.

A unit holds the images of one group (a patient, a recording, a board), and images with the same pixels. N images.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from edgedistill.errors import InputError

SEQUENCE = re.compile(r"^(.*?)[-_. ]?(\d{3,})$")  # cam1_000123
CAMERA = frozenset(("img", "_mg", "image", "dsc", "dscn", "dscf", "p", "pxl", "pic", "pict", "picture", "photo", "sam"))
FILM = frozenset(
    ("cam", "camera", "clip", "film", "frame", "frames", "mov", "movie", "rec", "seq", "stream", "video", "vid")
)
SEQUENCE_SHARE = 0.8  # share of the images whose names look like frames of few recordings
FRAMES_PER_RECORDING = 5


def groups_by_pattern(names: Iterable[str], pattern: str) -> list[str | None]:
    """The group of each name: the text that the first group of the regular expression matches, or None if it is empty.

    Raises:
        InputError: the pattern is no regular expression, has no group in parentheses, or matches no name.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise InputError(f"data.group: {pattern!r} is no regular expression ({error})") from None
    if not expression.groups:
        raise InputError(f"data.group: {pattern!r} has no group", "put the part that names the group in parentheses")
    names = list(names)
    matches = [expression.search(name) for name in names]
    groups = [match.group(1) or None if match else None for match in matches]
    if not any(groups):
        example = f": one is {names[0]!r}" if names else ""
        raise InputError(f"data.group: {pattern!r} matches no image", f"match the names of the images{example}")
    return groups


def unit_ids(hashes: Sequence[bytes] | np.ndarray, groups: Sequence[str | None] | None) -> np.ndarray:
    """The unit of each image, int64 [N]: numbers from 0, in the order of the units' first images.

    Args:
        hashes: hash of each image's pixels, [N].
        groups: group of each image, None for an image of no group; None without groups.
    """
    n = len(hashes)
    members = [np.unique(np.asarray(hashes), return_inverse=True)[1]]
    if groups is not None:
        distinct = {group: number for number, group in enumerate(dict.fromkeys(groups))}
        alone = max(n, len(distinct))
        members.append(
            np.array([alone + row if group is None else distinct[group] for row, group in enumerate(groups)], dtype=int)
        )
    return merged([np.unique(member, return_inverse=True)[1] for member in members], n)


def merged(partitions: Sequence[np.ndarray], n: int) -> np.ndarray:
    """The finest partition that is coarser than all of `partitions` (each int [N], from 0), int64 [N]."""
    rows, columns, offset = [], [], n
    for part in partitions:
        rows.append(np.arange(n))
        columns.append(offset + part.ravel())
        offset += int(part.max(initial=-1)) + 1
    row, column = np.concatenate(rows), np.concatenate(columns)
    graph = coo_array((np.ones(len(row), dtype=np.int8), (row, column)), shape=(offset, offset))
    components = connected_components(graph, directed=False)[1][:n]
    _, first, inverse = np.unique(components, return_index=True, return_inverse=True)
    order = np.empty(len(first), dtype=np.int64)
    order[np.argsort(first)] = np.arange(len(first))
    return np.asarray(order[inverse.ravel()], dtype=np.int64)


def representatives(labels_L: np.ndarray, units_L: np.ndarray) -> np.ndarray:
    """Positions of the first image of each class in each unit, int64, ascending: one image per unit and class."""
    pairs = np.stack([units_L, labels_L], axis=1)
    return np.sort(np.unique(pairs, axis=0, return_index=True)[1])


def several(units_N: np.ndarray) -> list[np.ndarray]:
    """The positions of the images of each unit that holds several, int64, ascending."""
    order = np.argsort(units_N, kind="stable")
    bounds = np.flatnonzero(np.diff(units_N[order])) + 1
    return [positions for positions in np.split(order, bounds) if len(positions) > 1]


def contradicted(hashes: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """Whether an image's pixels occur with two different labels, bool [N]; -1 is no label."""
    _, picture_N = np.unique(hashes, return_inverse=True)
    labeled = np.flatnonzero(labels_N >= 0)
    pairs = np.unique(np.stack([picture_N.ravel()[labeled], labels_N[labeled]], axis=1), axis=0)
    pictures, counts = np.unique(pairs[:, 0], return_counts=True)
    return np.isin(picture_N.ravel(), pictures[counts > 1])


def recordings(names: Sequence[str], labels_N: np.ndarray | None = None) -> int | None:
    """The number of recordings that the names look like frames of, as cam1_000123; None if they do not.

    A recording is the name in its folder without its last number, or the folder where a camera calls every picture so
    (IMG_1037). Names that are numbers alone tell nothing, and neither do recordings of one class each. A recording can
    also be in several class folders, or the only one: if its frames are numbered through the classes, and its name says
    so (cam1) or classes come and go along the numbers, as in a film.

    Args:
        names: paths of the images.
        labels_N: class of each image, -1 for none; without them no recording is looked for in several classes.
    """
    matches = ((row, SEQUENCE.match(str(PurePosixPath(name).with_suffix("")))) for row, name in enumerate(names))
    frames = [
        (row, *match[1].rpartition("/")[::2], int(match[2]))
        for row, match in matches
        if match and match[1] and not match[1].endswith("/")
    ]
    keys = [(folder, "" if film.casefold() in CAMERA else film) for _, folder, film, _ in frames]
    distinct = len(set(keys))
    if not distinct or len(frames) < max(SEQUENCE_SHARE * len(names), FRAMES_PER_RECORDING * distinct):
        return None
    if labels_N is None or not (distinct == 1 or _are_classes(keys, labels_N[[row for row, *_ in frames]])):
        return distinct if distinct > 1 else None
    frames_by_film: dict[str, list[tuple[int, int]]] = {}
    for (row, *_, number), (_, film) in zip(frames, keys, strict=True):
        if film:
            frames_by_film.setdefault(film, []).append((number, int(labels_N[row])))
    films = {film: pairs for film, pairs in frames_by_film.items() if _is_film(film, np.array(sorted(pairs)))}
    return len(films) if films and sum(map(len, films.values())) >= SEQUENCE_SHARE * len(names) else None


def _are_classes(keys: Sequence[tuple[str, str]], labels_M: np.ndarray) -> bool:
    """Whether each class has one of the keys, and each key one class; images without a label (-1) do not count."""
    pairs = {(key, int(label)) for key, label in zip(keys, labels_M, strict=True) if label >= 0}
    return len(pairs) == len({key for key, _ in pairs}) == len({label for _, label in pairs}) > 0


def _is_film(name: str, frames: np.ndarray) -> bool:
    """Whether frames, given by number and class in the order of their numbers, int64 [F, 2], are of one recording."""
    labels = frames[frames[:, 1] >= 0, 1]
    classes, counts = np.unique(labels, return_counts=True)
    if len(np.unique(frames[:, 0])) < len(frames) or len(classes) < 2:
        return False
    if FILM & set(re.findall("[a-z]+", name.casefold())):
        return True
    changes = int((labels[1:] != labels[:-1]).sum())
    by_chance = float(((counts / counts.sum()) ** 2).sum())
    # a list that is sorted by class has no more stretches than classes
    return changes + 1 >= 2 * len(classes) and 1 - changes / (len(labels) - 1) >= (1 + by_chance) / 2
