"""An audit names every planted case and no clean picture."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgedistill.audit.collect import collect
from edgedistill.audit.copies import doubtful
from edgedistill.collection.subject import of_folder
from edgedistill.errors import InputError
from edgedistill.labels.findings import KINDS, Audit, AuditedImage, Finding
from edgedistill.run.files import read_record, write_record
from tests.helpers import textures
from tests.helpers.clusters import recordings
from tests.helpers.textures import PX

CLASSES = ("ant", "bee", "cat")
COLORS = np.array([[50.0, -25.0, -25.0], [-25.0, 50.0, -25.0], [-25.0, -25.0, 50.0]])
TRAIN, TEST = 16, 4
MARKUP = "<b>two & 'two'.png"


def colored(label: int, n: int, seed: int) -> np.ndarray:
    """Pictures of a class, which its color tells."""
    return textures.squares(22 * textures.textures(n, seed) + COLORS[label])


def save(square: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(square).save(path)


def clean_tree(root: Path) -> Path:
    """root/{train,test}/<class>/NN.png: three classes, no two pictures alike."""
    for label, name in enumerate(CLASSES):
        for row, square in enumerate(colored(label, TRAIN + TEST, seed=label)):
            part, number = ("train", row) if row < TRAIN else ("test", row - TRAIN)
            save(square, root / part / name / f"{number:02d}.png")
    return root


def plant(root: Path) -> None:
    """Add every kind of finding."""
    shutil.copy(root / "train/ant/00.png", root / "train/ant/again.png")
    shutil.copy(root / "train/bee/00.png", root / "test/bee/leak.png")
    shutil.copy(root / "train/ant/01.png", root / "train/cat" / MARKUP)
    opened = {
        name: np.asarray(Image.open(root / "train" / name)) for name in ("ant/02.png", "cat/00.png", "cat/01.png")
    }
    save(textures.compressed(opened["ant/02.png"], quality=80), root / "train/ant/near.png")
    save(textures.resized(opened["cat/00.png"], (1, 1, PX, PX)), root / "test/cat/near.png")
    save(textures.brighter(opened["cat/01.png"], 1.05), root / "train/bee/near-two.png")
    save(colored(1, 1, seed=77)[0], root / "train/ant/wrong.png")
    noise = np.random.default_rng(0)
    save(np.full((PX, PX, 3), 140, dtype=np.uint8), root / "train/bee/gray.png")
    save(np.zeros((PX, PX, 3), dtype=np.uint8), root / "train/bee/black.png")
    night = noise.integers(0, 22, (PX // 8, PX // 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    save(night, root / "train/bee/night.png")
    (root / "train/cat/broken.png").write_bytes((root / "train/cat/05.png").read_bytes()[:900])
    square = colored(2, 2, seed=78)
    save(textures.resized(square[0], (0, 0, PX, PX), px=20), root / "train/cat/tiny.png")
    strip = Image.fromarray(square[1]).resize((PX * 6, PX), box=(0, 40, PX, 56))
    strip.save(root / "train/cat/strip.png")


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    root = clean_tree(tmp_path_factory.mktemp("planted") / "photos")
    plant(root)
    return collect(of_folder(root), root.parent / "cache")[0]


def sets(audit: Audit, kind: str) -> dict[frozenset[str], str]:
    """The note of each finding of a kind by the images' splits and names."""
    return {
        frozenset(f"{image.split}/{image.name}" for image in finding.images): finding.note
        for finding in audit.of_kind(kind)
    }


def names(*names: str) -> frozenset[str]:
    return frozenset(names)


def test_copies_are_named_with_the_splits_that_they_cross(audited: Audit) -> None:
    exact = sets(audited, "copies")
    assert exact == {
        names("train/bee/00.png", "test/bee/leak.png"): "in test and train",
        names("train/ant/00.png", "train/ant/again.png"): "",
    }
    assert [finding.crosses for finding in audited.of_kind("copies")] == [True, False], "the worst first"
    near = sets(audited, "near-copies")
    assert near == {
        names("train/cat/00.png", "test/cat/near.png"): "in test and train",
        names("train/ant/02.png", "train/ant/near.png"): "",
    }


def test_one_picture_with_two_labels_is_named(audited: Audit) -> None:
    assert sets(audited, "two-labels") == {
        names("train/ant/01.png", f"train/cat/{MARKUP}"): "ant and cat, the same pixels",
        names("train/cat/01.png", "train/bee/near-two.png"): "bee and cat, near-copies",
    }


def test_exact_copies_with_two_labels_are_named_beside_their_near_copies(tmp_path: Path) -> None:
    root = clean_tree(tmp_path / "photos") / "train"
    shutil.copy(root / "ant/03.png", root / "bee/same.png")
    save(textures.compressed(np.asarray(Image.open(root / "ant/03.png")), quality=80), root / "ant/near.png")
    audit, _ = collect(of_folder(root.parent), tmp_path / "cache")
    assert sets(audit, "two-labels") == {
        names("train/ant/03.png", "train/bee/same.png"): "ant and bee, the same pixels",
        names("train/ant/03.png", "train/bee/same.png", "train/ant/near.png"): "ant and bee, near-copies",
    }


def test_exact_copies_of_near_copies_are_a_set_of_their_own(tmp_path: Path) -> None:
    root = clean_tree(tmp_path / "photos") / "train"
    shutil.copy(root / "ant/03.png", root / "ant/same.png")
    save(textures.compressed(np.asarray(Image.open(root / "ant/03.png")), quality=80), root / "ant/near.png")
    audit, _ = collect(of_folder(root.parent), tmp_path / "cache")
    assert list(sets(audit, "copies")) == [names("train/ant/03.png", "train/ant/same.png")]
    assert list(sets(audit, "near-copies")) == [names("train/ant/03.png", "train/ant/near.png")]


def checked(read: np.ndarray, labels_N: np.ndarray, groups: Sequence[str | None] | None) -> tuple[list[Finding], str]:
    """The doubtful labels of images with these features, and how they were checked."""
    collection: Any = SimpleNamespace(
        store=SimpleNamespace(n=len(read), hashes=np.arange(len(read))),
        labels_N=labels_N,
        groups=groups,
        listed=SimpleNamespace(classes=CLASSES[: labels_N.max() + 1]),
        image=lambda row: AuditedImage(name=str(row), label="", split="", row=row),
    )
    by_source: Any = SimpleNamespace(
        arrays={"s": read}, rows=lambda: np.arange(len(read)), readers=lambda: {"s": read.__getitem__}
    )
    copies: Any = SimpleNamespace(units_N=np.arange(len(read)))
    return doubtful(collection, by_source, copies, excluded=set())


def test_labels_that_no_teacher_tested_count_as_neither_right_nor_wrong() -> None:
    labels_N = np.arange(60) % 3
    read = (4 * np.eye(3, 8)[labels_N] + 0.3 * np.random.default_rng(0).standard_normal((60, 8))).astype(np.float32)
    recorded = 2  # its pictures are one recording, so that the teacher of their fold sees no other of its class
    groups = ["one" if label == recorded else None for label in labels_N]
    assert "right about 100 % of 40 labels" in checked(read, labels_N, groups)[1]
    findings, how = checked(read, labels_N, [f"recording {label}" for label in labels_N])
    assert how == "not checked: all labels of each class are of copies or of one group" and not findings


def test_recording_whose_labels_are_all_wrong_is_contradicted() -> None:
    """Its frames confirm each other, unless they are on one side of a fold."""
    features, labels_N, units_N = recordings(n_recordings=24, frames=10, classes=2)
    read = (features["class"] + features["recording"]).astype(np.float32)
    wrong_N = np.where(units_N == 0, 1 - labels_N, labels_N)

    def contradicted(groups: list[str | None] | None) -> set[int]:
        findings, _ = checked(read, wrong_N, groups)
        return {image.row for finding in findings for image in finding.images}

    first = set(np.flatnonzero(units_N == 0).tolist())
    apart, grouped = contradicted(None), contradicted([f"recording {unit}" for unit in units_N])
    assert len(apart & first) < 5 and len(grouped & first) > 5


def test_label_that_the_teacher_contradicts_is_named(audited: Audit) -> None:
    doubted = sets(audited, "doubtful")
    assert list(doubted) == [names("train/ant/wrong.png")]
    assert next(iter(doubted.values())).startswith("bee, ")
    assert "small pixels" in audited.teacher


def test_bad_pictures_are_named_with_the_reason(audited: Audit) -> None:
    assert sets(audited, "corrupt") == {names("train/cat/broken.png"): "image file is truncated"}
    assert set(sets(audited, "blank")) == {names("train/bee/gray.png"), names("train/bee/black.png")}
    assert set(sets(audited, "dark")) == {names("train/bee/night.png")}
    assert sets(audited, "long") == {names("train/cat/strip.png"): "576 x 96: the cropped square shows 17 % of it"}
    assert sets(audited, "small") == {names("train/cat/tiny.png"): "20 x 20"}


def test_classes_and_sizes_are_counted(audited: Audit) -> None:
    assert audited.images == 3 * (TRAIN + TEST) + 13
    # without the picture that cannot be read
    assert audited.counts == {
        "ant": {"train": TRAIN + 3, "test": TEST},
        "bee": {"train": TRAIN + 4, "test": TEST + 1},
        "cat": {"train": TRAIN + 3, "test": TEST + 1},
    }
    assert audited.sizes["smallest"] == "20 x 20"
    assert audited.sizes["median"] == f"{PX} x {PX}"
    assert audited.sizes["largest"] == "576 x 96"


def test_clean_pictures_are_not_named(tmp_path: Path) -> None:
    audit, store = collect(of_folder(clean_tree(tmp_path / "photos")), tmp_path / "cache")
    assert audit.findings == ()
    assert audit.notes == ()
    assert store.n == audit.images == 3 * (TRAIN + TEST)


@pytest.mark.parametrize("has_labels", [True, False])
def test_folder_without_class_folders_is_audited_with_the_labels_that_it_has(tmp_path: Path, has_labels: bool) -> None:
    root = tmp_path / "photos"
    for row, square in enumerate(colored(0, 6, seed=1)):
        save(square, root / f"day/{row}.png")
    shutil.copy(root / "day/0.png", root / "again.png")
    if has_labels:
        (root / "labels.csv").write_text("path,label\nday/0.png,ant\nagain.png,bee\nday/1.png,\n")
    audit, _ = collect(of_folder(root), tmp_path / "cache")
    kind, note = ("two-labels", "ant and bee, the same pixels") if has_labels else ("copies", "")
    assert sets(audit, kind) == {names("/again.png", "/day/0.png"): note}
    assert audit.counts == ({"ant": {"": 1}, "bee": {"": 1}, "": {"": 5}} if has_labels else {"": {"": 7}})


def test_record_survives_json(audited: Audit, tmp_path: Path) -> None:
    write_record(tmp_path / "audit.json", audited)
    assert read_record(tmp_path / "audit.json", Audit) == audited
    assert [list(KINDS).index(finding.kind) for finding in audited.findings] == sorted(
        list(KINDS).index(finding.kind) for finding in audited.findings
    )


def test_a_set_of_small_pictures_has_no_small_ones(tmp_path: Path) -> None:
    for label, name in enumerate(CLASSES):
        for row, square in enumerate(colored(label, 6, seed=20 + label)):
            save(textures.resized(square, (0, 0, PX, PX), px=24), tmp_path / "tiny" / name / f"{row}.png")
    audit, _ = collect(of_folder(tmp_path / "tiny"), tmp_path / "cache")
    assert audit.of_kind("small") == ()
    assert audit.counts["ant"] == {"": 6}, "a folder without splits"


def test_frames_of_recordings_are_pointed_out(tmp_path: Path) -> None:
    for label, name in enumerate(CLASSES):
        for row, square in enumerate(colored(label, 12, seed=30 + label)):
            save(square, tmp_path / "video" / name / f"cam{row % 2}_{row:05d}.png")
    audit, _ = collect(of_folder(tmp_path / "video"), tmp_path / "cache")
    (note,) = audit.notes
    assert "frames of 6 recordings; set data.group" in note


def test_numbers_of_a_camera_are_no_recordings(tmp_path: Path) -> None:
    for label, name in enumerate(CLASSES):
        for row, square in enumerate(colored(label, 8, seed=40 + label)):
            save(square, tmp_path / "camera" / name / f"IMG_{1000 + 50 * label + row}.png")
    audit, _ = collect(of_folder(tmp_path / "camera"), tmp_path / "cache")
    assert audit.notes == ()


def test_few_labels_are_not_checked(tmp_path: Path) -> None:
    for label, name in enumerate(CLASSES):
        for row, square in enumerate(colored(label, 3, seed=20 + label)):
            save(square, tmp_path / "few" / name / f"{row}.png")
    audit, _ = collect(of_folder(tmp_path / "few"), tmp_path / "cache")
    assert audit.teacher == "not checked: fewer than two classes have 5 labels"
    assert audit.findings == ()


def test_folder_without_a_picture_that_can_be_read_is_refused(tmp_path: Path) -> None:
    for name in CLASSES:
        (tmp_path / "bad" / name).mkdir(parents=True)
        (tmp_path / "bad" / name / "0.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="there are no images"):
        collect(of_folder(tmp_path / "bad"), tmp_path / "cache")


def test_sources_of_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--sources: names no sources"):
        collect(of_folder(clean_tree(tmp_path / "photos")), tmp_path / "cache", compute_sources=True)
