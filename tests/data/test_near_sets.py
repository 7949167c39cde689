"""Near-copies are on one side of every split, found once, and ignored beside an official test split."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from edgedistill.data import near_sets
from edgedistill.data.load import load_splits
from edgedistill.data.splits import KeptTogether, Splits
from edgedistill.labels.divide import divide
from edgedistill.recipe.data_section import Data
from tests.labels.test_divide import pool_of, rules_of

PICTURES = 12  # of a class; each of them twice, the second time compressed


def picture(seed: int) -> Image.Image:
    """A cloudy picture of its own."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(64, 64, 3)), (3, 3, 0))
    return Image.fromarray(np.clip(128 + 400 * noise, 0, 255).astype(np.uint8))


def fill(folder: Path, parts: tuple[str, str]) -> None:
    """Every picture as a PNG in the first part, and as a JPEG in the second one."""
    for index in range(2 * PICTURES):
        for part, suffix in zip(parts, (".png", ".jpg"), strict=True):
            path = folder / part / f"class{index % 2}" / f"picture{index:02d}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(index).save(path, quality=60)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose test set is drawn."""
    folder = tmp_path_factory.mktemp("drawn")
    fill(folder / "photos", ("", ""))
    return folder


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train and test, in which every picture of train is in test, compressed."""
    folder = tmp_path_factory.mktemp("official")
    fill(folder / "photos", ("train", "test"))
    path = folder / "photos/train/class0/alone.png"
    picture(1000).save(path)
    picture(1001).save(path.parent.parent / "class1/alone.png")
    picture(1002).save(path.with_name("other.png"))
    picture(1003).save(path.parent.parent / "class1/other.png")
    return folder


def load(folder: Path, fold: int | None = None, **settings: Any) -> Splits:
    section = Data.model_validate({"kind": "folder", "root": "photos", **settings})
    return load_splits(section, folder, folder / "cache", 0, px=64, fold=fold)


def divided_pairs(sides: list[np.ndarray]) -> int:
    """Pictures whose PNG and JPEG, at rows 2 i + 1 and 2 i, are on different sides."""
    side_by_row = {int(row): side for side, rows in enumerate(sides) for row in rows}
    return sum(side_by_row[row] != side_by_row[row + 1] for row in range(0, 4 * PICTURES, 2))


@pytest.mark.parametrize("protocol", ["holdout", "folds"])
def test_near_copies_are_on_one_side(drawn: Path, protocol: str) -> None:
    def sides(**settings: Any) -> list[np.ndarray]:
        splits = load(drawn, protocol=protocol, **settings)
        if splits.folds is not None:
            return [splits.folds.rows(fold) for fold in range(splits.folds.count)]
        store = splits.test_set.store
        tested, train = store.rows, splits.train.rows  # type: ignore[union-attr]
        return [tested, train[splits.val_rows], train[splits.labeled_rows]]

    assert divided_pairs(sides()) == 0
    assert divided_pairs(sides(near_copies="ignore")) > 0, "the pictures show nothing"


def test_images_of_a_fold_have_no_near_copy_in_training(drawn: Path) -> None:
    splits = load(drawn, protocol="folds", fold=0, labels_per_class=14)
    tested = {row // 2 for row in splits.test_set.store.rows}  # type: ignore[union-attr]
    rows = np.concatenate([splits.labeled_rows, splits.val_rows, splits.unlabeled_rows, splits.reserve_rows])
    assert tested and not tested & {int(row) // 2 for row in rows}


def test_what_is_kept_together_is_said_once(drawn: Path, caplog: pytest.LogCaptureFixture) -> None:
    splits = load(drawn, protocol="folds")
    assert splits.near_copies == KeptTogether(images=4 * PICTURES, sets=2 * PICTURES, inseparable=())
    assert f"{4 * PICTURES} images have a near-copy" in caplog.text
    caplog.clear()
    load(drawn, protocol="folds", fold=1)
    assert "have a near-copy" not in caplog.text


def test_second_call_reads_what_the_first_found(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(drawn, protocol="folds")
    monkeypatch.setattr(near_sets, "near_copies", None)
    assert (load(drawn, protocol="folds").units_N == first.units_N).all()


def test_too_many_images_are_not_compared(
    drawn: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(near_sets, "MOST", 4 * PICTURES - 1)
    assert load(drawn, protocol="folds").near_copies is None
    assert f"near-copies are not looked for among {4 * PICTURES} images" in caplog.text


def test_official_test_split_is_left_as_it_is(official: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    splits = load(official)
    assert splits.near_copies is None and splits.duplicates == 0 and "near-copies" not in caplog.text
    strict = load(official, near_copies="keep_together")
    assert strict.duplicates == 2 * PICTURES and len(strict.labeled_rows) + len(strict.val_rows) == 4
    assert f"{2 * PICTURES} train images have the pixels of a test image, are near-copies of one" in caplog.text


def test_class_of_one_picture_is_not_joined() -> None:
    labels_N, names = np.array([0, 0, 0, 1, 1, 1]), [f"image{index}" for index in range(6)]
    pool = pool_of(names, labels_N)
    near = replace(pool, near_sets=np.array([0, 0, 0, 1, 1, 2]))
    division = divide(near, rules_of(protocol="folds", classes=2))
    assert division.inseparable == (0,) and division.near_copies == (2, 1)
    assert division.units_N.tolist() == [0, 1, 2, 3, 3, 4], "the other class is kept together"
    near = replace(pool, near_sets=np.array([0, 0, 1, 2, 2, 3]))
    division = divide(near, rules_of(protocol="folds", classes=2))
    assert not division.inseparable and division.near_copies == (4, 2) and division.folds is not None
    assert division.folds.folds_N[0] == division.folds.folds_N[1] and division.folds.count == 2


def test_copies_of_a_class_of_one_picture_stay_together() -> None:
    """Images 0 and 1 have the same pixels, and 2 to 4 are near-copies of them; 8 and 9 join the groups of class 1."""
    labels_N = np.array([0, 0, 0, -1, -1, 1, 1, 1, -1, -1, 2, 2])
    hashes = ["first", "first", *(f"image{index}" for index in range(10))]
    groups = [*[None] * 5, "a", "a", "b", "a", "b", None, None]
    near_sets = np.array([0, 0, 0, 0, 0, 1, 2, 3, 4, 4, 5, 5])
    pool = pool_of([f"image{index}" for index in range(12)], labels_N, hashes)
    division = divide(replace(pool, groups=groups, near_sets=near_sets), rules_of(protocol="test", classes=3))
    assert division.units_N.tolist() == [0, 0, 1, 2, 3, 4, 4, 5, 4, 5, 6, 7]
    assert division.inseparable == (0, 1, 2) and division.near_copies == (0, 0)
