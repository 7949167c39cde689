"""Copies, and labels that copies or a teacher contradict. N images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from edgedistill.collection.features import Features, small_pixels
from edgedistill.collection.images import AND, Collection, sides
from edgedistill.distill import doubts
from edgedistill.labels.draws import UNLABELED
from edgedistill.labels.findings import Finding
from edgedistill.labels.near_copies import NearCopies
from edgedistill.labels.units import merged, several, unit_ids


def copied(collection: Collection, copies: NearCopies) -> list[Finding]:
    """Sets of copies: those that are in several splits first, then the large ones.

    Exact copies are a set of their own; a set of near-copies has one of them for each label and split.
    """
    findings = []
    for rows in several(copies.units_N):
        pixels_R = np.unique(collection.store.hashes[rows], return_inverse=True)[1].ravel()
        findings += [_copies(collection, rows[exact]) for exact in several(pixels_R)]
        if pixels_R.any():
            distinct: dict[tuple[int, str, str], int] = {}
            for pixels, row in zip(pixels_R.tolist(), rows.tolist(), strict=True):
                picture = collection.image(row)
                distinct.setdefault((pixels, picture.label, picture.split), row)
            findings.append(_copies(collection, np.array(list(distinct.values()))))
    return sorted(findings, key=lambda finding: (not finding.crosses, -len(finding.images)))


def _copies(collection: Collection, rows: np.ndarray) -> Finding:
    pictures = tuple(collection.image(row) for row in rows)
    labels = sorted({picture.label for picture in pictures} - {""})
    splits = sorted(set().union(*(sides(picture.split) for picture in pictures)))
    is_exact = len(np.unique(collection.store.hashes[rows])) == 1
    kind = "copies" if is_exact else "near-copies"
    notes = [f"in {AND.join(splits)}"] if len(splits) > 1 else []
    if len(labels) > 1:
        kind = "two-labels"
        notes = [AND.join(labels), "the same pixels" if is_exact else "near-copies", *notes]
    return Finding(kind=kind, images=pictures, note=", ".join(notes), crosses=len(splits) > 1)


def doubtful(
    collection: Collection, features: Features, copies: NearCopies, *, excluded: set[int]
) -> tuple[list[Finding], str]:
    """Labels that a teacher contradicts that was not trained on them, and in words how they were checked.

    Args:
        collection: the images.
        features: the sources' features; without any, small pixels are used.
        copies: images that are on one side of a fold, as are those of a group.
        excluded: rows of images that are named already.
    """
    store, labels_N = collection.store, collection.labels_N
    rows = features.rows() if features.arrays else np.arange(store.n)
    rows = rows[labels_N[rows] != UNLABELED]
    counts_C = np.bincount(labels_N[rows], minlength=len(collection.listed.classes))
    rows = rows[counts_C[labels_N[rows]] >= doubts.FOLDS]
    if len(np.unique(labels_N[rows])) < 2:
        return [], f"not checked: fewer than two classes have {doubts.FOLDS} labels"
    by_source = features.readers() or {"pixels": small_pixels(store).__getitem__}
    groups = collection.groups
    units_N = copies.units_N if groups is None else merged([copies.units_N, unit_ids(store.hashes, groups)], store.n)
    probs_LC, is_tested_L = doubts.out_of_fold(
        {name: _at(read, rows) for name, read in by_source.items()},
        labels_N[rows],
        units_N[rows],
        len(collection.listed.classes),
    )
    checked = _check(features, probs_LC[is_tested_L], labels_N[rows][is_tested_L])
    return list(_contradicted(collection, rows, probs_LC, excluded)), checked


def _at(read: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return lambda positions: read(rows[positions])


def _check(features: Features, probs_LC: np.ndarray, labels_L: np.ndarray) -> str:
    if not len(labels_L):
        return "not checked: all labels of each class are of copies or of one group"
    accuracy = 100 * float((probs_LC.argmax(axis=1) == labels_L).mean())
    basis = f"the features of {', '.join(features.arrays)}" if features.arrays else "small pixels, which tell little"
    return (
        f"linear probes on {basis}: right about {accuracy:.0f} % of {len(labels_L)} labels that they did not train on"
    )


def _contradicted(
    collection: Collection, rows: np.ndarray, probs_LC: np.ndarray, excluded: set[int]
) -> Iterator[Finding]:
    classes: Sequence[str] = collection.listed.classes
    for position in doubts.doubtful(probs_LC, collection.labels_N[rows]):
        row, label = int(rows[position]), int(probs_LC[position].argmax())
        if row not in excluded:
            note = f"{classes[label]}, {100 * probs_LC[position, label]:.0f} %"
            yield Finding(kind="doubtful", images=(collection.image(row),), note=note)
