"""From a data set to its splits: list, decode, divide.

The images are decoded first, since those with the same pixels count once; labels/divide.py divides them.
N images of train, C target classes.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgedistill.agent.pictures import Limits
from edgedistill.data import datasets, image_store, images, near_sets, refusals
from edgedistill.data.image_store import ImageStore, Selection
from edgedistill.data.limits import Decoder
from edgedistill.data.listing import Items, Listing
from edgedistill.data.splits import KeptTogether, LabeledImages, Splits, Store, evenly_spaced
from edgedistill.errors import InputError
from edgedistill.labels import divide, prior, protocol, units
from edgedistill.labels.divide import Division, Pool, Rules
from edgedistill.labels.draws import UNLABELED
from edgedistill.labels.protocol import Protocol
from edgedistill.recipe.data_section import Data
from edgedistill.run.files import canonical, digest

log = logging.getLogger(__name__)


def load_splits(section: Data, base: Path, cache: Path, seed: int, *, px: int, fold: int | None = None) -> Splits:
    """Split the data set of a recipe, and decode what is not in `cache` yet.

    Args:
        section: the recipe's data section; its `store_px` takes precedence over `px`.
        base: the folder that the recipe's paths are relative to.
        cache: folder of the image stores.
        seed: seed of the label budget; the test set and the folds do not depend on it.
        px: side of the stored squares in pixels.
        fold: with folds, the fold that is the test set; None for the student that ships.

    Raises:
        InputError: the data set cannot be listed, a class has too few images, or too many images are corrupt.
        EdgeDistillError: the disk is full.
    """
    listing = datasets.listing(section, base)
    prior.require_all_classes(section.prior, listing.classes)
    train, val, test = _parts(listing)
    choice = protocol_of(listing, section)
    if fold is None:
        log_notes(listing)
    left_C = refusals.trainable(train.labels_N, listing, section, choice)
    refusals.refuse_small_classes(left_C, listing, section, choice)
    n_train, pool_items = len(train), train if val is None else train.followed_by(val)
    rules = [listing.pictures, section.store_px or px, section.fit, section.range]
    name, view = f"{section.kind}-{digest(rules)[:12]}", images.View(px=section.store_px or px, fit=section.fit)
    store = image_store.build(
        pool_items, cache / f"{name}-train", view=view, data_range=section.range, desc="decode train"
    )
    if section.range != "auto" and store.limits is None:
        log.warning("data.range is not used: no picture of train has more than 8 bits")
    limits = store.limits if section.range == "auto" else section.range
    items, official = pool_items.take(store.kept_rows), None
    if test is not None:
        test_store = image_store.build(test, cache / f"{name}-test", view=view, data_range=limits, desc="decode test")
        official = (test.take(test_store.kept_rows), test_store)
    near = _near_sets(section, choice, store, official[1] if official else None)
    pool = Pool(
        names=items.names,
        labels_N=items.labels_N,
        hashes=store.hashes,
        is_val_N=store.kept_rows >= n_train,
        groups=items.groups,
        test_hashes=official[1].hashes if official else store.hashes[:0],
        test_groups=(official[0].groups or ()) if official else (),
        near_sets=near,
    )
    division = divide.divide(pool, division_rules(listing, section, choice, seed=seed, fold=fold))
    splits = _assembled(listing, section, pool, division, store=store, official=official, limits=limits, choice=choice)
    _log_empty_val(splits)
    if fold is None:
        _log_recordings(pool)
        _log_beside_val(division, choice)
        _log_near_copies(splits.near_copies, store.n, near_sets.are_kept_together(section, choice))
    return splits


def _near_sets(section: Data, choice: Protocol, store: ImageStore, test_store: ImageStore | None) -> np.ndarray | None:
    """The sets of near-copies of train and an official test split; None where they are ignored."""
    images = store.n + (test_store.n if test_store else 0)
    if not near_sets.are_kept_together(section, choice) or images > near_sets.MOST:
        return None
    return near_sets.near_sets(store, test_store)


def _kept_together(pool: Pool, division: Division, listing: Listing) -> KeptTogether | None:
    if pool.near_sets is None:
        return None
    images, sets = division.near_copies
    classes = tuple(listing.classes[label] for label in division.inseparable)
    return KeptTogether(images=images, sets=sets, inseparable=classes)


def _log_near_copies(near: KeptTogether | None, n: int, asked: bool) -> None:
    """Log which images are kept together because they are near-copies, and why others are not."""
    if near is None and asked:
        log.warning("near-copies are not looked for among %d images, only images with the same pixels", n)
    if near and near.images:
        text = "%d images have a near-copy; each set of them is on one side of every split (sets: %d)"
        log.warning(text, near.images, near.sets)
    if near and near.inseparable:
        text = "near-copies with labels of these classes are not kept together, since they are of one picture each: %s"
        log.warning(text, ", ".join(near.inseparable))


def division_rules(listing: Listing, section: Data, choice: Protocol, *, seed: int, fold: int | None) -> Rules:
    """The rules by which a recipe divides its images."""
    return Rules(
        protocol=choice,
        classes=len(listing.classes),
        per_class=section.labels_per_class,
        val_fraction=refusals.val_fraction(listing, section),
        test_fraction=section.test_fraction,
        seed=seed,
        fold=fold,
        reserve=section.reserve,
    )


def log_notes(listing: Listing) -> None:
    """Log how the data set was understood, and what was left out."""
    for note in listing.notes:
        log.warning("%s", note)


def protocol_of(listing: Listing, section: Data) -> Protocol:
    """How the accuracy of the student is measured, from the labels that there are and their groups."""
    labels_N, groups = listing.train.labels_N, listing.train.groups
    labeled = np.flatnonzero(labels_N != UNLABELED)
    hashes, has_budget = _stand_ins(0, len(labels_N)), section.labels_per_class is not None
    pairs = np.unique(np.stack([labels_N, units.unit_ids(hashes, groups)], axis=1)[labeled], axis=0)
    return protocol.resolve(
        section.protocol,
        np.bincount(pairs[:, 0], minlength=len(listing.classes)),
        has_test=listing.test is not None,
        has_budget=has_budget,
        total=len(np.unique(pairs[:, 1])),
        leaves_budget=not has_budget or listing.test is not None or _leaves_budget(listing, section),
    )


def _stand_ins(start: int, stop: int) -> np.ndarray:
    """As many hashes of pixels, none of them equal, for images that are not decoded yet."""
    return np.array([str(number) for number in range(start, stop)], dtype="S64")


def _undecoded(listing: Listing) -> Pool:
    """The pool of a data set in which no image is decoded yet, as if no two had the same pixels."""
    train, val, test = _parts(listing)
    items = train if val is None else train.followed_by(val)
    return Pool(
        names=items.names,
        labels_N=items.labels_N,
        hashes=_stand_ins(0, len(items)),
        is_val_N=np.arange(len(items)) >= len(train),
        groups=items.groups,
        test_hashes=_stand_ins(len(items), len(items) + len(test or ())),
        test_groups=(test.groups or ()) if test else (),
    )


def _leaves_budget(listing: Listing, section: Data) -> bool:
    """Whether a hold-out leaves every class the labels of the budget, and one to test."""
    rules = division_rules(listing, section, "holdout", seed=0, fold=None)
    pool = _undecoded(listing)
    division = divide.divide(pool, replace(rules, per_class=None, val_fraction=0.0))
    left_C, tests_C = (
        np.bincount(pool.labels_N[rows], minlength=rules.classes) for rows in (division.labeled, division.test)
    )
    return bool((left_C >= (section.labels_per_class or 0)).all() and (tests_C > 0).all())


def _parts(listing: Listing) -> tuple[Items, Items | None, Items | None]:
    """Train, and the official val and test where there are any, sorted by name."""
    train, val, test = (part and _by_name(part) for part in (listing.train, listing.val, listing.test))
    for name, part in (("val", val), ("test", test)):
        if part is not None and (part.labels_N == UNLABELED).any():
            fix = f"label them or leave them out; where data.{name} is a key, set it to a labeled split or to null"
            raise InputError(f"data: the {name} split has images without a label", fix)
    assert train is not None, "a listing has images to train on"
    return train, val, test


def _by_name(items: Items) -> Items:
    return items.take(np.array(sorted(range(len(items)), key=items.names.__getitem__), dtype=np.int64))


def _assembled(
    listing: Listing,
    section: Data,
    pool: Pool,
    division: Division,
    *,
    store: ImageStore,
    official: tuple[Items, ImageStore] | None,
    limits: Limits | None,
    choice: Protocol,
) -> Splits:
    """The splits of a division; a hold-out leaves the train store."""
    labels_N, hashes = pool.labels_N, store.hashes
    corrupt = (*store.corrupt, *(official[1].corrupt if official else ()))
    contradicted = tuple(pool.names[row] for row in division.contradicted)
    _warn(corrupt, contradicted, division, pool)
    refusals.refuse(division, pool, listing, section, choice=choice)
    train: Store = store
    kept = np.arange(store.n)
    test_set = LabeledImages(
        store=Selection(store=store, rows=division.test),
        labels_N=labels_N[division.test],
        units_N=division.units_N[division.test],
    )
    if official:
        test_set = LabeledImages(store=official[1], labels_N=official[0].labels_N, units_N=division.official_units)
    elif choice == "holdout":
        kept = np.setdiff1d(kept, division.test)
        train = Selection(store=store, rows=kept)
    parts = (division.labeled, division.val, division.unlabeled)
    beside = np.sort(np.concatenate([division.labeled_beside_val, division.unlabeled_beside_val]))
    in_train = (np.searchsorted(kept, part) for part in (*parts, division.reserve, beside))
    labeled, val, unlabeled, reserve, beside_val = in_train
    return Splits(
        classes=listing.classes,
        licence=listing.licence,
        protocol=choice,
        train=train,
        labeled_rows=labeled,
        labeled_labels=labels_N[division.labeled],
        val_rows=val,
        val_labels=labels_N[division.val],
        unlabeled_rows=unlabeled,
        reserve_rows=reserve,
        beside_val_rows=beside_val,
        beside_val_labels=np.where(np.isin(beside, division.labeled_beside_val), labels_N[beside], UNLABELED),
        data_hash=_data_hash(hashes, labels_N, parts, counted=listing.val is not None or choice == "folds"),
        corrupt=corrupt,
        contradicted=contradicted,
        duplicates=division.tested,
        copies=division.copies,
        test_set=test_set,
        limits=limits,
        units_N=division.units_N[kept],
        near_copies=_kept_together(pool, division, listing),
        folds=division.folds,
        official_val=listing.val is not None,
    )


def _warn(corrupt: Sequence[str], contradicted: Sequence[str], division: Division, pool: Pool) -> None:
    """Log what is left out."""
    if corrupt:
        log.warning("%d images cannot be decoded and are left out: %s", len(corrupt), _examples(corrupt))
    if contradicted:
        text = "%d images have the pixels of an image with another label and are left out: %s"
        log.warning(text, len(contradicted), _examples(contradicted))
    if division.tested:
        near = ", are near-copies of one" if division.near_copies[0] else ""
        group = " or are of its group" if pool.groups is not None else ""
        log.warning(f"%d train images have the pixels of a test image{near}{group} and are left out", division.tested)
    if division.copies:
        log.warning("%d images have the pixels of another image and are left out", division.copies)


def _log_recordings(pool: Pool) -> None:
    """Log that names look like frames of recordings, where there are no groups."""
    count = units.recordings(pool.names, pool.labels_N) if pool.groups is None else None
    if count == 1:
        log.warning(
            "names look like frames of one recording, and frames beside each other are on two sides of a split; set "
            "data.group to a pattern that takes the number without its last digits"
        )
    elif count:
        text = "names look like frames of %d recordings; set data.group, or frames of one are on two sides of a split"
        log.warning(text, count)


def _log_empty_val(splits: Splits) -> None:
    """Log that no label is left to choose by, and why."""
    if len(splits.val_rows):
        return
    pairs = np.unique(np.stack([splits.labeled_labels, splits.units_N[splits.labeled_rows]], axis=1), axis=0)
    is_one_each = np.bincount(pairs[:, 0]).max(initial=0) < 2
    why = "all labels of a class are of one group" if is_one_each else "each group has all labels of a class"
    log.warning("val is empty, so that no label chooses between students: %s, and no group is divided", why)


def _log_beside_val(division: Division, choice: Protocol) -> None:
    """Log how many images are left out because they belong together with one of val."""
    outcome = "train in the last training alone" if choice == "folds" else "are left out"
    for rows, kind in (
        (division.labeled_beside_val, "labeled images"),
        (division.unlabeled_beside_val, "images without a label"),
    ):
        if len(rows):
            text = "%d %s are of the group of an image of val, or near-copies of one, and %s"
            log.warning(text, len(rows), kind, outcome)


def _examples(names: Sequence[str]) -> str:
    return ", ".join(names[: image_store.MAX_LISTED]) + (", ..." if len(names) > image_store.MAX_LISTED else "")


def _data_hash(hashes: np.ndarray, labels_N: np.ndarray, parts: Sequence[np.ndarray], *, counted: bool) -> str:
    """The hash of the splits (Splits.data_hash); `parts` are the rows of labeled, val and unlabeled."""
    sha256 = hashlib.sha256()
    if counted:  # an image that moves from one part to the next keeps its place
        sha256.update(canonical([len(part) for part in parts]))
    for part in parts:
        sha256.update(hashes[part].tobytes())
    for part in parts[:2]:
        sha256.update(labels_N[part].astype("<i8").tobytes())
    return sha256.hexdigest()


def rehearse(listing: Listing, section: Data, seed: int) -> tuple[Protocol, Division]:
    """The protocol of a recipe and its division, as far as names, labels and groups tell; no image is decoded.

    Raises:
        InputError: as `load_splits`, where it does not depend on pixels.
    """
    choice, pool = protocol_of(listing, section), _undecoded(listing)
    left_C = refusals.trainable(listing.train.labels_N, listing, section, choice)
    refusals.refuse_small_classes(left_C, listing, section, choice)
    division = divide.divide(pool, division_rules(listing, section, choice, seed=seed, fold=None))
    refusals.refuse(division, pool, listing, section, choice=choice)
    return choice, division


def preview(section: Data, base: Path, px: int, n: int = 8) -> tuple[Listing, np.ndarray, np.ndarray]:
    """The listing and at most `n` of its labeled train images, evenly spaced: uint8 [n, px, px, 3], int64 [n].

    All checks that need no further decoding are made; nothing is written. `data.range: auto` is measured over these
    images alone. One that cannot be decoded is left out and named in the listing's notes.

    Raises:
        InputError: as in `load_splits`, or more of the images cannot be decoded than a run leaves out.
    """
    listing = datasets.listing(section, base)
    prior.require_all_classes(section.prior, listing.classes)
    train, _, _ = _parts(listing)
    choice = protocol_of(listing, section)
    left_C = refusals.trainable(train.labels_N, listing, section, choice)
    refusals.refuse_small_classes(left_C, listing, section, choice)
    labeled_rows = np.flatnonzero(train.labels_N != UNLABELED)
    rows = labeled_rows[evenly_spaced(len(labeled_rows), n)]
    sample = train.take(rows)
    decoder = Decoder(sample, images.View(px=px, fit=section.fit), section.range)
    squares, kept, problems = list[np.ndarray](), list[int](), list[str]()
    for row, name in enumerate(sample.names):
        square, reason = decoder(row)
        if square is None:
            problems.append(f"data: {name} cannot be decoded ({reason}); repair or remove it")
        else:
            squares.append(square)
            kept.append(row)
    if len(problems) > image_store.allowed_corrupt(len(train)) or not kept:
        raise InputError(problems[0])
    return replace(listing, notes=(*listing.notes, *problems)), np.stack(squares), sample.labels_N[kept]
