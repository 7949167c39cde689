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
SEQUENCE_SHARE = 0.8  # share of the images whose names look like frames of few recordings
FRAMES_PER_RECORDING = 5


def groups_by_pattern(names: Iterable[str], pattern: str) -> list[str | None]:
    """The group of each name: the text that the first group of the regular expression matches, or None.

    Raises:
        InputError: the pattern is no regular expression, has no group in parentheses, or matches no name.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise InputError(f"data.group: {pattern!r} is no regular expression ({error})") from None
    if not expression.groups:
        raise InputError(f"data.group: {pattern!r} has no group", "put the part that names the group in parentheses")
    matches = [expression.search(name) for name in names]
    groups = [match.group(1) if match else None for match in matches]
    if not any(groups):
        raise InputError(f"data.group: {pattern!r} matches no image", "match the image's path below the data's root")
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


def contradicted(hashes: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """Whether an image's pixels occur with two different labels, bool [N]; -1 is no label."""
    _, picture_N = np.unique(hashes, return_inverse=True)
    labeled = np.flatnonzero(labels_N >= 0)
    pairs = np.unique(np.stack([picture_N.ravel()[labeled], labels_N[labeled]], axis=1), axis=0)
    pictures, counts = np.unique(pairs[:, 0], return_counts=True)
    return np.isin(picture_N.ravel(), pictures[counts > 1])


def recordings(names: Sequence[str]) -> int | None:
    """The number of recordings that the names look like frames of, as cam1_000123; None if they do not.

    A recording is the name in its folder without its last number. Names that are numbers alone tell nothing.
    """
    stems = [SEQUENCE.match(str(PurePosixPath(name).with_suffix(""))) for name in names]
    prefixes = [match[1] for match in stems if match and not match[1].endswith("/") and match[1]]
    distinct = len(set(prefixes))
    if len(prefixes) < SEQUENCE_SHARE * len(names) or not distinct:
        return None
    is_sequence = len(prefixes) >= FRAMES_PER_RECORDING * distinct and distinct > 1
    return distinct if is_sequence else None
