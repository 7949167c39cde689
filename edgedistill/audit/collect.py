"""The audit of a data set. It reads every image there is, those of a test split, too, and chooses nothing."""

from __future__ import annotations

import time
from pathlib import Path

from edgedistill.audit import pictures
from edgedistill.audit.copies import copied, doubtful
from edgedistill.collection.features import loaded_networks, source_features
from edgedistill.collection.images import Collection, Listed, collected, decoded, listed_images, recipe_splits, store_px
from edgedistill.collection.subject import Subject
from edgedistill.console import say
from edgedistill.data.image_store import ImageStore
from edgedistill.labels import units
from edgedistill.labels.findings import KINDS, Audit, Finding
from edgedistill.labels.near_copies import near_copies


def collect(subject: Subject, cache: Path, compute_sources: bool = False) -> tuple[Audit, ImageStore]:
    """Audit a data set; its images are decoded into `cache` once.

    Args:
        subject: the data set.
        cache: folder of decoded images and source outputs, `.cache` beside the runs.
        compute_sources: compute the features of all images by the recipe's sources; else those that are cached are
            used, and no source is loaded.

    Returns:
        The audit, and the store that the rows of its images index.

    Raises:
        InputError: the data set cannot be listed, none of its images can be read, or a source cannot be loaded.
        EdgeDistillError: the disk is full.
    """
    started = time.perf_counter()
    networks = loaded_networks(subject) if compute_sources else {}
    listing = subject.listing()
    px = store_px(subject, networks)
    splits, notes = recipe_splits(subject, cache / "images", px)
    listed = listed_images(listing)
    store = decoded(listed, subject.data, splits, folder=cache / "images", pictures=listing.pictures, px=px)
    collection = collected(listed, store, splits)
    features = source_features(
        subject, store.hashes, splits, networks=networks, cache=cache / "sources", everything=store
    )
    say(f"images     {store.n} to compare")
    copies = near_copies(store.images_NHWC, store.hashes, codes=features.codes())
    if copies.skipped:
        notes.append(f"{copies.skipped} pairs of images that look alike were not compared: there are too many")
    notes += _recordings(listed)
    copy_sets = copied(collection, copies)
    if splits is not None and splits.near_copies is None and any(map(_divides, copy_sets)):
        notes.append("near-copies are on two sides of a split; data.near_copies: keep_together prevents it")
    two_labels = {image.row for finding in copy_sets if finding.kind == "two-labels" for image in finding.images}
    doubted, teacher = doubtful(collection, features, copies, excluded=two_labels)
    sizes_A2 = pictures.sizes(listed)
    findings = [
        *copy_sets,
        *doubted,
        *pictures.corrupt(listed, store),
        *pictures.blank_and_dark(collection),
        *pictures.long_and_small(collection, sizes_A2, subject.data.fit),
    ]
    kinds = list(KINDS)
    record = Audit(
        name=subject.name,
        source=str(subject.path),
        licence=listing.licence,
        images=len(listed.items),
        counts=_counts(collection),
        sizes=pictures.size_facts(sizes_A2),
        findings=tuple(sorted(findings, key=lambda finding: kinds.index(finding.kind))),
        notes=(*listing.notes, *notes),
        teacher=teacher,
        px=store.px,
        seconds=round(time.perf_counter() - started, 1),
    )
    return record, store


def _recordings(listed: Listed) -> list[str]:
    """A note where names look like frames, and nothing keeps these together."""
    if listed.items.groups is not None or not (n := units.recordings(listed.items.names, listed.items.labels_N)):
        return []
    which = f"{n} recordings" if n > 1 else "one recording"
    return [f"names look like frames of {which}; set data.group, which keeps frames together"]


def _divides(finding: Finding) -> bool:
    """Whether near-copies are on two sides of a split."""
    return finding.crosses and finding.kind == "near-copies"


def _counts(collection: Collection) -> dict[str, dict[str, int]]:
    """The number of images by class, "" without a label, and split."""
    classes = collection.listed.classes
    counts: dict[str, dict[str, int]] = {name: {} for name in classes}
    for label, split in zip(collection.labels_N, collection.splits, strict=True):
        of_class = counts.setdefault(classes[label] if label >= 0 else "", {})
        of_class[split] = of_class.get(split, 0) + 1
    return counts
