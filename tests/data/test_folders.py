"""Layouts of folders that are understood; what is not plain, and what is left out, is said in one line."""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from edgedistill.data import datasets
from edgedistill.data.listing import Items, split_of
from edgedistill.labels.draws import UNLABELED
from edgedistill.recipe.data_section import Data
from tests.helpers.trees import bare_tree, folder_tree, noise, pictures, write_picture


def section(**options: object) -> Data:
    return Data.model_validate({"kind": "folder", "root": "set", **options})


ANT_BEE = pictures("ant", "bee")
TRAIN = pictures("train/ant", "train/bee")
TEST = pictures("test/ant", "test/bee", count=1)
TWO = {"ant": 2, "bee": 2}
ONE = {"ant": 1, "bee": 1}
NO_TEST = "train is train, the test images are drawn from train"
COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
RUN = ("recipe.lock.json", "manifest.json", "log.jsonl", "bundle/images/0.png")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A tree, and how it is listed: images by class in each split, unlabeled images, and every note."""

    files: tuple[str, ...]
    train: dict[str, int] = field(default_factory=lambda: TWO)
    test: dict[str, int] | None = None
    val: dict[str, int] | None = None
    unlabeled: int = 0
    notes: tuple[str, ...] = ()
    option: str | None = None


LAYOUTS = {
    "classes": Layout(files=ANT_BEE),
    "pictures at any depth": Layout(files=(*ANT_BEE, "ant/day/1/x.jpg"), train={"ant": 3, "bee": 2}),
    "train and test": Layout(files=TRAIN + TEST, test=ONE),
    "train alone": Layout(files=TRAIN, notes=(NO_TEST,)),
    # names of splits
    "training and testing": Layout(
        files=pictures("training/ant", "training/bee", "testing/ant"),
        test={"ant": 2},
        notes=("training is train, testing is test",),
    ),
    "other cases": Layout(
        files=pictures("Train/ant", "Train/bee", "TEST/ant"), test={"ant": 2}, notes=("Train is train, TEST is test",)
    ),
    "train, val and test": Layout(
        files=TRAIN + TEST + pictures("val/ant", "val/bee"),
        test=ONE,
        val=TWO,
        notes=("train is train, val is val, test is test", "val is the data set's own, 4 images; data.val_fraction"),
    ),
    "train, valid and test, as exported by labeling programs": Layout(
        files=TRAIN + TEST + pictures("valid/bee") + ("README.dataset.txt",),
        test=ONE,
        val={"bee": 2},
        notes=("valid is val", "val is the data set's own, 2 images", "left out: 1 .txt"),
    ),
    "train and val, as in ImageNet": Layout(
        files=TRAIN + pictures("val/ant", "val/bee"),
        val=TWO,
        notes=("train is train, val is val, the test images are drawn from train", "val is the data set's own"),
    ),
    "names of two words": Layout(
        files=pictures("Training Set/ant", "Training Set/bee", "validation_data/ant", "test-images/bee"),
        val={"ant": 2},
        test={"bee": 2},
        notes=("Training Set is train, validation_data is val, test-images is test", "val is the data set's own"),
    ),
    "folder without images beside splits": Layout(
        files=(*TRAIN, *TEST, "annotations/ant.xml"),
        test=ONE,
        notes=("left out: ROOT/annotations, which holds no images", "left out: 1 .xml"),
    ),
    # classes that are called like splits
    "class called train": Layout(
        files=pictures("train", "bus"),
        train={"bus": 2, "train": 2},
        notes=("train: a class, it holds images and no class folders",),
    ),
    "classes called test and val": Layout(
        files=pictures("test", "val", "bus"),
        train={"bus": 2, "test": 2, "val": 2},
        notes=("test: a class, it holds", "val: a class, it holds"),
    ),
    "class called test with folders of its own": Layout(
        files=(*pictures("bus"), "test/monday/0.jpg"),
        train={"bus": 2, "test": 1},
        notes=("test: a class, its folders are called like no class",),
    ),
    "class called test in train": Layout(
        files=TRAIN + TEST + pictures("train/test"),
        train={"ant": 2, "bee": 2, "test": 2},
        test=ONE,
        notes=("ROOT/train: test: a class, it holds images and no class folders",),
    ),
    "classes with a split's name among their words": Layout(
        files=pictures("test_tube", "train_station", "training_2"),
        train={"test_tube": 2, "train_station": 2, "training_2": 2},
    ),
    # unlabeled images
    "unlabeled beside classes": Layout(
        files=ANT_BEE + pictures("unlabeled", "unlabeled/deep/er"),
        unlabeled=4,
        notes=("unlabeled: 4 images without a label",),
    ),
    "unlabeled beside splits and below train": Layout(
        files=TRAIN + TEST + pictures("Unlabelled", "train/no_labels"),
        test=ONE,
        unlabeled=4,
        notes=("Unlabelled: 2 images without a label", "train/no_labels: 2 images without a label"),
    ),
    "the option names the folder unlabeled": Layout(
        files=ANT_BEE + pictures("unlabeled"),
        option="set/unlabeled",
        unlabeled=2,
    ),
    "the option names a folder below unlabeled": Layout(
        files=ANT_BEE + pictures("unlabeled", "unlabeled/deep"),
        option="set/unlabeled/deep",
        unlabeled=4,
        notes=("unlabeled: 2 images without a label",),
    ),
    "the option names a folder in the root": Layout(
        files=ANT_BEE + pictures("more"), option="set/more", unlabeled=2, notes=()
    ),
    "the option names a folder two levels down": Layout(
        files=ANT_BEE + pictures("extra/more"), option="set/extra/more", unlabeled=2
    ),
    "the option names a hidden folder": Layout(files=ANT_BEE + pictures(".more"), option="set/.more", unlabeled=2),
    "the option names the root": Layout(
        files=(*ANT_BEE, "x.jpg"), option="set", unlabeled=1, notes=("ROOT: 4 images in folders that are read already",)
    ),
    "the option names a folder that links to test": Layout(
        files=(*TRAIN, *TEST, "../more/0.jpg", "../more/again -> ../set/test"),
        option="more",
        test=ONE,
        unlabeled=1,
        notes=("more: 2 images in folders that are read already, and counted once",),
    ),
    # links
    "link to the folder above": Layout(
        files=(*ANT_BEE, "ant/up -> .."), notes=("left out: ant/up, a link to a folder that it lies in",)
    ),
    "link to itself": Layout(files=(*ANT_BEE, "ant/x/up -> ../../ant"), notes=("left out: ant/x/up, a link to",)),
    "link that leads far up": Layout(files=(*ANT_BEE, "bee/up -> ../../.."), notes=("left out: bee/up, a link to",)),
    "link that leads to other files": Layout(
        files=(*ANT_BEE, "../notes.txt", "bee/up -> ../.."), notes=("left out: bee/up, a link to",)
    ),
    "link from elsewhere to the root": Layout(
        files=(*pictures("../store", "bee"), "../store/up -> ../set", "ant -> ../store"),
        notes=("left out: ant/up, a link to a folder that it lies in",),
    ),
    "link to the root beside the classes": Layout(
        files=(*ANT_BEE, "latest -> ."), notes=("left out: latest, a link to a folder that it lies in",)
    ),
    "link to train in train": Layout(
        files=(*TRAIN, *TEST, "train/again -> ../train"), test=ONE, notes=("left out: train/again, a link to",)
    ),
    "links to each other": Layout(
        files=(*ANT_BEE, "ant/a/b -> ../c", "ant/c/d -> ../a", "ant/a/x.jpg", "ant/c/y.jpg"),
        train={"ant": 4, "bee": 2},
        notes=("left out: ant/a/b, a link to a folder that is read already", "left out: ant/c/d, a link to"),
    ),
    "class folder that is a link to elsewhere": Layout(files=(*pictures("ant", "../elsewhere"), "bee -> ../elsewhere")),
    "image that is a link to elsewhere": Layout(
        files=(*ANT_BEE, "../elsewhere/x.jpg", "bee/x.jpg -> ../../elsewhere/x.jpg"), train={"ant": 2, "bee": 3}
    ),
    # what is left out
    "suffixes that are not read": Layout(
        files=(*ANT_BEE, "ant/a.heic", "ant/b.HEIC", "bee/c.heic", "bee/x.txt", "bee/notes", "bee/y.pdf", "list.csv"),
        notes=("left out: 3 .heic, 1 without a suffix, 1 .csv, 1 .pdf, 1 .txt",),
    ),
    "thumbnails of a NAS": Layout(
        files=ANT_BEE + pictures("ant/@eaDir/0.jpg", "@eaDir/x", "#recycle", count=1),
        notes=("left out: 1 image in #recycle, 2 images in @eaDir",),
    ),
    "an archive unpacked on another system": Layout(
        files=(*ANT_BEE, "__MACOSX/ant/._0.jpg", "ant/._0.jpg", "ant/.DS_Store", "ant/Thumbs.db", "desktop.ini"),
        notes=("left out: 1 hidden image (ant/._0.jpg)", "left out: 1 image in __MACOSX"),
    ),
    "folders of desktops and tools": Layout(
        files=(
            *ANT_BEE,
            *pictures(".Trash-1000/files", ".ipynb_checkpoints", "$RECYCLE.BIN", count=1),
            *pictures(".git", ".cache/x", count=1),
            "System Volume Information/x",
            "lost+found/",
        ),
        notes=(
            "1 image in $RECYCLE.BIN, 1 image in .Trash-1000, 1 image in .cache, 1 image in .git, 1 image in .ipynb",
        ),
    ),
    "hidden images in classes": Layout(
        files=(*ANT_BEE, "ant/.x.jpg", "bee/.small/y.jpg", "bee/.empty/notes.txt"),
        notes=("left out: 2 hidden images (ant/.x.jpg, bee/.small)",),
    ),
    "runs in the root": Layout(
        files=(
            *ANT_BEE,
            *(f"runs/one/{name}" for name in RUN),
            "runs/latest -> one",
            "runs/.cache/images/x/store.json",
        ),
        notes=("left out: runs, the runs of edgedistill",),
    ),
    "runs under another name, and one of its own": Layout(
        files=(*ANT_BEE, *(f"{folder}/{name}" for folder in ("tries/one", "best", "ant/best") for name in RUN)),
        notes=("left out: best, a run of edge", "left out: tries, the runs of", "left out: ant/best, a run of edge"),
    ),
    "a first run that was interrupted": Layout(
        files=(*ANT_BEE, "runs/.cache/images/.folder-0.lock"), notes=("left out: runs, the runs of edgedistill",)
    ),
    "images beside class folders": Layout(
        files=(*ANT_BEE, "x.jpg", "y.png"), notes=("left out: 2 images directly in ROOT, of no class",)
    ),
    "images beside class folders in splits": Layout(
        files=(*TRAIN, *TEST, "train/x.jpg", "test/y.jpg", "z.jpg"),
        test=ONE,
        notes=tuple(f"left out: 1 image directly in {folder}, of" for folder in ("ROOT", "ROOT/train", "ROOT/test")),
    ),
    # names of classes
    "numbers": Layout(files=pictures("10", "9", "-1", "0.5", count=1), train={"-1": 1, "0.5": 1, "9": 1, "10": 1}),
    "numbers and words": Layout(files=pictures("10", "9", "x", count=1), train={"10": 1, "9": 1, "x": 1}),
    "spaces, line breaks and quotes": Layout(
        files=pictures("big ant", 'bee\n"two"', count=1), train={'bee\n"two"': 1, "big ant": 1}
    ),
    "a line break in what is said": Layout(
        files=(*pictures("train/a\nb", "train/bee", count=1), "train/a\nb/up -> ..", "train/bee/x.a\nb"),
        train={"a\nb": 1, "bee": 1},
        notes=(NO_TEST, r'left out: 1 ".a\nb"', r'left out: "train/a\nb/up", a link to a folder'),
    ),
    "Unicode forms in train and test": Layout(
        files=pictures(f"train/{COMPOSED}", "train/bee", f"test/{DECOMPOSED}"),
        train={"bee": 2, COMPOSED: 2},
        test={COMPOSED: 2},
    ),
    "a class in two cases": Layout(
        files=pictures("ant", "Ant"), train={"Ant": 2, "ant": 2}, notes=("the classes Ant, ant differ in case alone",)
    ),
    "folder called like a picture": Layout(files=pictures("ant.jpg", "bee"), train={"ant.jpg": 2, "bee": 2}),
    "file called like a split": Layout(files=(*ANT_BEE, "train"), notes=("left out: 1 without a suffix",)),
    "classes with the same folders": Layout(
        files=pictures("fold1/ant", "fold1/bee", "fold2/ant", "fold2/bee", count=1),
        train={"fold1": 2, "fold2": 2},
        notes=("fold1, fold2 all hold the folders ant, bee: they are read as classes; if they are splits, call them",),
    ),
}


def by_class(items: Items | None, classes: tuple[str, ...]) -> dict[str, int] | None:
    if items is None:
        return None
    counts = Counter(items.labels_N[items.labels_N != UNLABELED].tolist())
    return {classes[label]: counts[label] for label in sorted(counts)}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_is_understood_and_said(tmp_path: Path, name: str) -> None:
    layout, root = LAYOUTS[name], tmp_path / "set"
    bare_tree(root, layout.files)
    options = section(**({"unlabeled": layout.option} if layout.option else {}))
    dataset = datasets.listing(options, tmp_path)
    assert by_class(dataset.train, dataset.classes) == layout.train
    assert list(dataset.classes) == list(layout.train), "the order of the classes"
    assert by_class(dataset.test, dataset.classes) == layout.test
    assert by_class(dataset.val, dataset.classes) == layout.val
    assert int((dataset.train.labels_N == UNLABELED).sum()) == layout.unlabeled
    assert len(set(dataset.train.names)) == len(dataset.train), "every image once, under a name of its own"
    notes = [note.replace(str(root), "ROOT") for note in dataset.notes]
    assert len(notes) == len(layout.notes), notes
    assert [text for text in layout.notes if not any(text in note for note in notes)] == [], notes
    assert [note for note in notes if "\n" in note or not any(text in note for text in layout.notes)] == []
    assert datasets.fingerprint(options, tmp_path) == dataset.fingerprint


@pytest.mark.parametrize(
    ("split", "names"),
    {
        "train": ("train", "TRAIN", "Training", "train_set", "train-set", "TrainSet", "training data", "train_images"),
        "test": ("test", "Testing", "test_set", "TestSet", "testing-images"),
        "val": ("val", "Valid", "VALIDATION", "validation_set", "valset", "dev", "Dev Set", "devel", "ｖａｌ"),
        "unlabeled": ("unlabeled", "Unlabelled", "no_label", "No Labels", "unlabeled_data", "not-labeled"),
        None: ("trains", "attest", "value", "devil", "tests", "label", "labeled", "", "train2", "trainval", "valve"),
    }.items(),
)
def test_names_of_splits(split: str | None, names: tuple[str, ...]) -> None:
    assert {name: split_of(name) for name in names} == dict.fromkeys(names, split)


def test_folder_with_own_test_split(tmp_path: Path) -> None:
    folder_tree(tmp_path / "set", train=3, test=2)
    dataset = datasets.listing(section(), tmp_path)
    assert dataset.classes == ("ant", "bee") and dataset.notes == ()
    assert list(dataset.train.names) == [f"{name}/00{index}.png" for name in ("ant", "bee") for index in range(3)]
    assert dataset.train.labels_N.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.test is not None and dataset.test.labels_N.tolist() == [0, 0, 1, 1]
    with dataset.test.load(3) as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(noise("testbee1")))


def test_root_that_is_one_split_of_several_is_said(tmp_path: Path) -> None:
    bare_tree(tmp_path / "set", (*TRAIN, *TEST, "val/ant/0.jpg"))
    dataset = datasets.listing(section(root="set/train"), tmp_path)
    root = tmp_path / "set"
    assert by_class(dataset.train, dataset.classes) == TWO and dataset.test is None
    assert dataset.notes == (f"data: test, val beside {root}/train: not used; name {root} to use all splits",)


def test_names_and_paths_of_unlabeled_images(tmp_path: Path) -> None:
    bare_tree(tmp_path / "set", (*TRAIN, "train/unlabeled/a/x.jpg", "unlabeled/y.jpg"))
    for path in ("more/deep/z.png", "set/unlabeled/y.jpg"):
        write_picture(tmp_path / path, path)
    dataset = datasets.listing(section(unlabeled="more"), tmp_path)
    assert list(dataset.train.names[-3:]) == ["unlabeled/y.jpg", "train/unlabeled/a/x.jpg", "more unlabeled/deep/z.png"]
    for row, path in ((-3, "set/unlabeled/y.jpg"), (-1, "more/deep/z.png")):
        with dataset.train.load(len(dataset.train) + row) as image:
            np.testing.assert_array_equal(np.asarray(image), np.asarray(noise(path)))


def test_notes_stay_out_of_the_fingerprint(tmp_path: Path) -> None:
    bare_tree(tmp_path / "set", ANT_BEE)
    before = datasets.fingerprint(section(), tmp_path)
    (tmp_path / "set/ant/notes.txt").touch()
    bare_tree(tmp_path / "set/runs/one", RUN)
    assert datasets.listing(section(), tmp_path).notes
    assert datasets.fingerprint(section(), tmp_path) == before
