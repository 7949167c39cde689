"""The split into labeled, val, unlabeled and test images: its properties, its errors and its files."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgedistill.data import images
from edgedistill.data.images import View
from edgedistill.data.limits import Decoder
from edgedistill.data.load import load_splits, preview
from edgedistill.data.splits import Splits, evenly_spaced, rows_of
from edgedistill.errors import InputError
from edgedistill.recipe.data_section import Data
from tests.helpers.trees import csv_file, cub_tree, folder_tree, noise, write_picture


def section(root: str = "set", kind: str = "folder", **options: object) -> Data:
    return Data.model_validate({"kind": kind, "root": root, **options})


def load(folder: Path, data_section: Data, seed: int = 0) -> Splits:
    return load_splits(data_section, folder, cache=folder / "cache", seed=seed, px=12)


def pixels(splits: Splits, rows: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in rows_of(splits.train.images_NHWC, rows)}


def test_test_split_is_the_same_for_every_seed_and_budget(tmp_path: Path) -> None:
    folder_tree(tmp_path / "set", train=20, test=0)
    first = load(tmp_path, section(labels_per_class=4), seed=0)
    other = load(tmp_path, section(labels_per_class=8), seed=1)
    assert first.n_test == 12 and np.bincount(first.open_test().labels_N).tolist() == [6, 6]  # 0.3 of 20, per class
    assert first.test_set.store.hashes.tolist() == other.test_set.store.hashes.tolist()
    assert first.data_hash != other.data_hash
    assert first.labeled_rows.tolist() != other.labeled_rows.tolist()
    assert len(first.labeled_rows) + len(first.val_rows) + len(first.unlabeled_rows) == 28


def test_official_split_unlabeled_images_and_labels_of_every_row(tmp_path: Path) -> None:
    folder_tree(tmp_path / "set", train=6, test=2)
    for index in range(5):
        write_picture(tmp_path / "more" / f"u{index}.png")
    splits = load(tmp_path, section(unlabeled="more", labels_per_class=5))
    assert splits.classes == ("ant", "bee")
    assert (len(splits.labeled_rows), len(splits.val_rows), len(splits.unlabeled_rows)) == (8, 2, 2 + 5)
    by_label = {label: pixels(splits, splits.labeled_rows[splits.labeled_labels == label]) for label in (0, 1)}
    ants = {images.to_square(noise(f"trainant{index}"), View(px=12, fit="crop")).tobytes() for index in range(6)}
    assert by_label[0] <= ants and not by_label[1] & ants
    np.testing.assert_array_equal(
        splits.open_test().store.images_NHWC[3], images.to_square(noise("testbee1"), View(px=12, fit="crop"))
    )
    assert splits.open_test().labels_N.tolist() == [0, 0, 1, 1]


def with_val(root: Path, train: int = 6, val: int = 3) -> Path:
    """root/train, root/val and root/test of two classes."""
    folder_tree(root, train=train, test=2)
    for name in ("ant", "bee"):
        for index in range(val):
            write_picture(root / "val" / name / f"{index:03d}.png", f"val{name}{index}")
    return root


def squares(part: str, count: int) -> set[bytes]:
    names = [f"{part}{name}{index}" for name in ("ant", "bee") for index in range(count)]
    return {images.to_square(noise(name), View(px=12, fit="crop")).tobytes() for name in names}


def test_official_val_is_val_and_train_gives_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with_val(tmp_path / "set")
    write_picture(tmp_path / "set/unlabeled/u.png")
    splits = load(tmp_path, section(val_fraction=0.5))
    assert pixels(splits, splits.val_rows) == squares("val", 3)
    assert pixels(splits, splits.labeled_rows) == squares("train", 6)
    assert len(splits.unlabeled_rows) == 1 and splits.n_test == 4
    for rows, labels in ((splits.labeled_rows, splits.labeled_labels), (splits.val_rows, splits.val_labels)):
        ants = {image.tobytes() for image in rows_of(splits.train.images_NHWC, rows[labels == 0])}
        assert ants == {square for square in squares("train", 6) | squares("val", 3) if square in ants}
        assert len(ants) == len(rows) / 2
    assert caplog.messages[-1] == "data: val is the data set's own, 6 images; data.val_fraction does not apply"
    assert sorted([*splits.labeled_rows, *splits.val_rows, *splits.unlabeled_rows]) == list(range(splits.train.n))


def test_official_val_that_trains_in_the_end_tells_no_shares_of_classes(tmp_path: Path) -> None:
    shutil.rmtree(with_val(tmp_path / "set") / "test")
    splits = load(tmp_path, section(protocol="folds"))
    ships = splits.shipping()
    assert splits.label_counts.tolist() == ships.label_counts.tolist() == [6, 6]
    assert np.bincount(ships.labeled_labels).tolist() == [9, 9] and len(ships.val_rows) == 0


def test_label_budget_with_official_val_is_that_of_train(tmp_path: Path) -> None:
    with_val(tmp_path / "set")
    splits = load(tmp_path, section(labels_per_class=1))
    assert np.bincount(splits.labeled_labels).tolist() == [1, 1] and np.bincount(splits.val_labels).tolist() == [3, 3]
    assert len(splits.unlabeled_rows) == 10 and pixels(splits, splits.unlabeled_rows) <= squares("train", 6)
    more = load(tmp_path, section(labels_per_class=4), seed=3)
    assert more.val_rows.tolist() == splits.val_rows.tolist()
    for check in (load, lambda folder, options: preview(options, folder, 12)):
        with pytest.raises(InputError, match="class ant has 6 labeled images to train on, fewer than the 7 asked for"):
            check(tmp_path, section(labels_per_class=7))


def test_test_images_are_drawn_from_train_beside_an_official_val(tmp_path: Path) -> None:
    shutil.rmtree(with_val(tmp_path / "set", train=10) / "test")
    splits = load(tmp_path, section(protocol="holdout"))
    assert splits.n_test == 6 and len(splits.labeled_rows) == 14  # 0.3 of 10, per class
    assert pixels(splits, splits.val_rows) == squares("val", 3)
    assert {image.tobytes() for image in splits.open_test().store.images_NHWC} <= squares("train", 10)


def test_val_images_that_are_broken_or_in_test_are_left_out(tmp_path: Path) -> None:
    root = with_val(tmp_path / "set", train=150)
    (root / "val/ant/000.png").write_bytes(b"no picture")
    shutil.copy(root / "test/bee/000.png", root / "val/bee/000.png")
    splits = load(tmp_path, section())
    assert splits.corrupt == ("ant/000.png",) and splits.duplicates == 1
    assert splits.val_labels.tolist() == [0, 0, 1, 1] and len(splits.labeled_rows) == 300
    shutil.rmtree(root / "val")
    shutil.copytree(root / "test", root / "val")
    with pytest.raises(InputError, match="no image of the val split can be used"):
        load(tmp_path, section())


def test_image_that_moves_from_train_to_val_changes_the_data_hash(tmp_path: Path) -> None:
    root = with_val(tmp_path / "set")
    shutil.rmtree(root / "val/ant")
    (root / "val/bee/000.png").unlink()
    before = load(tmp_path, section())
    (root / "train/bee/005.png").rename(root / "val/bee/000.png")  # the last of train becomes the first of val
    after = load(tmp_path, section())
    assert after.train.hashes.tolist() == before.train.hashes.tolist()
    assert len(after.val_rows) == len(before.val_rows) + 1 and after.data_hash != before.data_hash


def test_val_without_labels_is_refused(tmp_path: Path) -> None:
    rows = [{"path": f"{index}.png", "label": "ab"[index % 2], "part": "train"} for index in range(8)]
    csv_file(tmp_path / "list.csv", [*rows, {"path": "x.png", "label": "", "part": "val"}])
    table = Data.model_validate({"kind": "csv", "file": "list.csv", "split": "part"})
    for check in (load, lambda folder, options: preview(options, folder, 12)):
        with pytest.raises(InputError, match="the val split has images without a label"):
            check(tmp_path, table)


def grouped_tree(root: Path, groups: int, size: int, unlabeled: int = 0) -> Path:
    """Groups of labeled images in two class folders, root/<class>/<group>-<number>.png, and unlabeled ones beside."""
    for name in ("ant", "bee"):
        for group in range(groups):
            for index in range(size):
                write_picture(root / name / f"{name}{group}-{index}.png", f"{name}{group}-{index}")
            for index in range(unlabeled):
                write_picture(root / "unlabeled" / f"{name}{group}-{index}u.png", f"{name}{group}-{index}u")
    return root


GROUP = r"([a-z]+\d+)-\d+u?\.png"


def test_hold_out_without_an_image_of_a_class_is_refused(tmp_path: Path) -> None:
    grouped_tree(tmp_path / "set", groups=2, size=5)
    one_group = "no image of class {} to {}: its 10 labeled images are of one group, and none is divided"
    with pytest.raises(InputError, match=one_group.format("ant", "test")) as error:
        load(tmp_path, section(group=r"(ant|bee)\d", protocol="holdout"))
    assert "correct data.group" in str(error.value) and "folds" not in str(error.value)
    with pytest.raises(InputError, match=one_group.format("bee", "test")):
        load(tmp_path, section(group=r"(ant0|ant1|bee)", protocol="holdout"))
    with pytest.raises(InputError, match=one_group.format("ant", "train on")):
        load(tmp_path, section(group=r"(ant|bee)\d", protocol="holdout", test_fraction=0.7))


def test_empty_val_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    grouped_tree(tmp_path / "set", groups=2, size=5)
    splits = load(tmp_path, section(group=GROUP, protocol="holdout"))
    assert splits.n_test == 10 and len(splits.labeled_rows) == 10 and not len(splits.val_rows)
    assert "val is empty, so that no label chooses between students: all labels of a class are of one" in caplog.text


def test_recordings_and_images_without_a_group_are_pointed_out_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for row in range(60):
        write_picture(tmp_path / "set" / ("ant", "bee")[row // 5 % 2] / f"cam1_{row:06d}.png", f"cam{row}")
    for fold in (None, 0, 1):
        load_splits(section(), tmp_path, cache=tmp_path / "cache", seed=0, px=12, fold=fold)
    assert caplog.text.count("names look like frames of one recording") == 1
    caplog.clear()
    load(tmp_path, section(group=r"(cam1_0000[1-5])"))
    assert "data.group: 10 of 60 images have no group" in caplog.text and "look like frames" not in caplog.text


def test_groups_count_once_for_the_protocol(tmp_path: Path) -> None:
    grouped_tree(tmp_path / "set", groups=4, size=52)
    assert load(tmp_path, section()).protocol == "holdout"
    assert load(tmp_path, section(group=GROUP)).protocol == "folds"


@pytest.mark.parametrize(("budget", "protocol"), [(7, "holdout"), (8, "folds"), (10, "folds")])
def test_budget_that_a_hold_out_would_not_leave_is_measured_in_folds(
    tmp_path: Path, budget: int, protocol: str
) -> None:
    folder_tree(tmp_path / "set", train=10, test=0)
    splits = load(tmp_path, section(labels_per_class=budget))
    assert splits.protocol == protocol and splits.label_counts.tolist() == [budget, budget]


@pytest.mark.parametrize("protocol", ["holdout", "folds"])
def test_class_without_a_usable_label_is_named_with_the_reason(tmp_path: Path, protocol: str) -> None:
    root = folder_tree(tmp_path / "set", classes=("ant", "bee", "cow"), train=12, test=0)
    shutil.rmtree(root / "cow")
    shutil.copytree(root / "bee", root / "cow")
    for index in range(12):
        write_picture(root / f"bee/more{index}.png")
    with pytest.raises(
        InputError, match="cow has no label to train on: of its 12 labeled images, 12 have the pixels of"
    ):
        load(tmp_path, section(protocol=protocol))


def test_labels_that_are_all_beside_val_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = grouped_tree(tmp_path / "set/train", groups=3, size=3).parent
    for name in ("ant", "bee"):
        for group in range(3):
            write_picture(root / "val" / name / f"{name}{group}-9.png")
    write_picture(root / "test/ant/t.png")
    write_picture(root / "test/bee/t.png")
    with pytest.raises(
        InputError, match="ant has no label to train on: of its 9 labeled images, 9 are in a group with"
    ):
        load(tmp_path, section(group=GROUP))
    for name in ("ant", "bee"):
        (root / "val" / name / f"{name}2-9.png").unlink()
    splits = load(tmp_path, section(group=GROUP))
    assert splits.label_counts.tolist() == [3, 3]
    assert (
        "12 labeled images are of the group of an image of val, or near-copies of one, and are left out" in caplog.text
    )


def test_unlabeled_images_beside_val_are_in_the_last_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    grouped_tree(tmp_path / "set", groups=10, size=1, unlabeled=5)
    for fold in (None, 0):
        splits = load_splits(section(group=GROUP), tmp_path, cache=tmp_path / "cache", seed=0, px=12, fold=fold)
        ships, n_beside = splits.shipping(), 5 * len(splits.val_rows)
        assert n_beside and len(splits.beside_val_rows) == n_beside
        assert len(ships.unlabeled_rows) == len(splits.unlabeled_rows) + n_beside and not len(ships.beside_val_rows)
        assert sorted(set(ships.unlabeled_rows)) == ships.unlabeled_rows.tolist()
    said = "images without a label are of the group of an image of val, or near-copies of one, and train in the last"
    assert caplog.text.count(said) == 1
    assert len(ships.labeled_rows) + len(ships.unlabeled_rows) + splits.n_test + splits.duplicates == 120


def test_cub_keeps_official_test_split(tmp_path: Path) -> None:
    cub_tree(tmp_path / "birds", train=4, test=2)
    splits = load(tmp_path, section("birds", kind="cub", labels_per_class=2, val_fraction=0.5))
    assert (len(splits.labeled_rows), len(splits.val_rows), len(splits.unlabeled_rows), splits.n_test) == (3, 3, 6, 6)


def test_second_load_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_tree(tmp_path / "set")
    first = load(tmp_path, section())

    def refuse(*positional: object, **named: object) -> None:
        raise AssertionError("an image was decoded again")

    monkeypatch.setattr(Decoder, "__call__", refuse)
    again = load(tmp_path, section(labels_per_class=3), seed=4)
    assert again.train == first.train
    with pytest.raises(AssertionError, match="decoded again"):
        load(tmp_path, section(fit="squash"))


def test_test_set_is_opened_only_on_request_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder_tree(tmp_path / "set")
    caplog.set_level(logging.INFO)
    splits = load(tmp_path, section())
    splits.calibration_rows(10, 0)
    shutil.move(splits.test_set.store.folder / "images.12.u8", tmp_path / "aside")  # labels and pixels out of reach
    assert splits.n_test == 4 and "test set opened" not in caplog.text
    splits.calibration_rows(10, 1)
    splits.open_test()
    assert "test set opened: 4 images" in caplog.text


def test_duplicates_of_test_images_are_left_out_of_train(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = folder_tree(tmp_path / "set", train=6, test=2)
    shutil.copy(root / "test/ant/000.png", root / "train/ant/copy.png")
    splits = load(tmp_path, section())
    assert splits.duplicates == 1 and "1 train images have the pixels of a test image" in caplog.text
    assert len(splits.labeled_rows) + len(splits.val_rows) == 12
    used = np.concatenate([splits.labeled_rows, splits.val_rows, splits.unlabeled_rows])
    assert not pixels(splits, used) & {image.tobytes() for image in splits.open_test().store.images_NHWC}


def test_calibration_shares_no_image_with_val_or_test(tmp_path: Path) -> None:
    root = folder_tree(tmp_path / "set", train=10, test=2)
    shutil.copytree(root / "train/ant", tmp_path / "more")  # these once more, without a label
    splits = load(tmp_path, section(unlabeled="more"))
    rows = splits.calibration_rows(1000, seed=0)
    assert len(rows) == 16 == len(pixels(splits, rows))  # 20 pictures, 4 of them in val
    assert not pixels(splits, rows) & pixels(splits, splits.val_rows)
    few, same, other = (splits.calibration_rows(5, seed) for seed in (0, 0, 1))
    assert len(few) == 5 and few.tolist() == same.tolist() != other.tolist() and set(few) <= set(rows)


def test_unlabeled_test_split_is_refused(tmp_path: Path) -> None:
    rows = [{"path": f"{index}.png", "label": "ab"[index % 2], "part": "train"} for index in range(8)]
    csv_file(tmp_path / "list.csv", [*rows, {"path": "x.png", "label": "", "part": "test"}])
    with pytest.raises(InputError, match="the test split has images without a label"):
        load(tmp_path, Data.model_validate({"kind": "csv", "file": "list.csv", "split": "part"}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels_per_class": 7}, "class ant has 6 labeled images to train on, fewer than the 7 asked for; ask for 6"),
        ({"labels_per_class": 1}, "1 leave none to train on once val has its share; ask for 2 at least"),
        ({"labels_per_class": 2, "val_fraction": 0.7}, "ask for 4 at least"),
        ({"val_fraction": 0.9}, "class ant has 6 labeled images to train on, and 10 are needed"),
    ],
)
def test_too_few_images_are_refused_before_any_write(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    folder_tree(tmp_path / "set", train=6)
    with pytest.raises(InputError, match=message):
        load(tmp_path, section(**options))
    assert not (tmp_path / "cache").exists()


def test_glance_writes_nothing_and_names_broken_image(tmp_path: Path) -> None:
    root = folder_tree(tmp_path / "set")
    listing, squares, labels = preview(section(), tmp_path, 12, n=4)
    assert squares.shape == (4, 12, 12, 3) and labels.tolist() == [0, 0, 1, 1] and listing.classes == ("ant", "bee")
    (root / "train/ant/000.png").write_bytes(b"no picture")
    listing, squares, labels = preview(section(), tmp_path, 12, n=4)
    assert len(squares) == len(labels) == 3, "a run leaves a broken one out, too"
    assert "ant/000.png cannot be decoded (is not a picture" in listing.notes[-1]
    for path in root.glob("train/ant/*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"ant/000.png cannot be decoded \(is not a picture"):
        preview(section(), tmp_path, 12)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_corrupt_train_images_are_named_and_labels_stay_aligned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = folder_tree(tmp_path / "set", train=60, test=2)
    (root / "train/ant/005.png").write_bytes(b"no picture")
    splits = load(tmp_path, section())
    assert splits.corrupt == ("ant/005.png",) and "1 images cannot be decoded" in caplog.text
    assert (splits.train.n, np.bincount([*splits.labeled_labels, *splits.val_labels]).tolist()) == (119, [59, 60])
    bees = {images.to_square(noise(f"trainbee{index}"), View(px=12, fit="crop")).tobytes() for index in range(60)}
    assert pixels(splits, splits.labeled_rows[splits.labeled_labels == 1]) <= bees


def test_evenly_spaced_indices_include_both_ends() -> None:
    np.testing.assert_array_equal(evenly_spaced(10, 4), [0, 3, 6, 9])
    np.testing.assert_array_equal(evenly_spaced(3, 5), [0, 1, 2])
    assert len(evenly_spaced(0, 5)) == 0
