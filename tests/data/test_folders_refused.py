"""Layouts of folders that are refused by name, with advice that helps."""

from __future__ import annotations

import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgedistill.data import datasets
from edgedistill.errors import InputError
from edgedistill.recipe.data_section import Data
from tests.helpers.trees import bare_tree, pictures


def section(**options: object) -> Data:
    return Data.model_validate({"kind": "folder", "root": "set", **options})


ANT_BEE = pictures("ant", "bee")
TRAIN = pictures("train/ant", "train/bee")
TEST = pictures("test/ant", "test/bee", count=1)
COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A tree that is not listed, and the message, with ROOT for the folder."""

    files: tuple[str, ...]
    message: str
    option: str | None = None


REFUSED = {
    "nothing": Refused(files=(), message="ROOT holds no class folders; put each class's images in a folder of its own"),
    "images and no class folders": Refused(
        files=("x.jpg", "y.jpg"), message="ROOT holds 2 images and no class folders; put each class's images in"
    ),
    "an archive": Refused(files=("../set.zip",), message="ROOT.zip is not a folder; unpack it, and name the folder"),
    "one class": Refused(files=pictures("ant"), message="two classes at least are needed, and there is only one, ant"),
    "empty class folder": Refused(files=(*ANT_BEE, "cow/"), message="ROOT/cow: holds no image; add images"),
    "class folder of other files": Refused(
        files=(*ANT_BEE, "cow/0.heic", "cow/1.heic"), message="ROOT/cow: holds no image (2 .heic); add images"
    ),
    # wrappers
    "a folder around the classes": Refused(
        files=pictures("photos/ant", "photos/bee"),
        message="ROOT holds only one folder of images, photos, and ROOT/photos holds ant, bee; name ROOT/photos",
    ),
    "two folders around the classes, and other things": Refused(
        files=(*pictures("a/photos/ant", "a/photos/bee"), "__MACOSX/a/._x", "notes/readme.txt"),
        message="ROOT holds only one folder of images, a, and ROOT/a/photos holds ant, bee; name ROOT/a/photos",
    ),
    "a folder around the splits": Refused(
        files=pictures("photos/train/ant", "photos/train/bee", "photos/test/ant"),
        message="ROOT/photos holds test, train; name ROOT/photos",
    ),
    "a folder around the classes in train": Refused(
        files=pictures("train/train/ant", "train/train/bee"),
        message="ROOT/train holds only one folder of images, train, and ROOT/train/train holds ant, bee; move them up",
    ),
    # splits
    "two folders for train": Refused(
        files=TRAIN + pictures("Training/ant"), message="Training, train in ROOT mean the same, train; keep one of them"
    ),
    "two folders for val": Refused(
        files=TRAIN + pictures("val/ant", "validation/ant"),
        message="val, validation in ROOT mean the same, val; keep one",
    ),
    "test without class folders": Refused(
        files=TRAIN + pictures("test"),
        message="ROOT/test: holds 2 images and no class folders; sort them into a folder for each class, or rename it"
        " to unlabeled",
    ),
    "val without class folders": Refused(
        files=TRAIN + pictures("valid"), message="ROOT/valid: holds 2 images and no class folders; sort them"
    ),
    "test without images": Refused(files=(*TRAIN, "test/"), message="ROOT/test: holds no image; add class folders"),
    "test with an empty class folder": Refused(files=(*TRAIN, "test/ant/"), message="ROOT/test/ant: holds no image"),
    "class that train lacks, in test": Refused(
        files=TRAIN + pictures("test/bees"),
        message="ROOT/test/bees: train has no class of this name; did you mean bee?",
    ),
    "class that train lacks, in val": Refused(
        files=TRAIN + pictures("val/Ant"), message="ROOT/val/Ant: train has no class of this name; did you mean ant?"
    ),
    "another folder of images beside train": Refused(
        files=TRAIN + pictures("extra/ant"), message="ROOT/extra: holds images and is none of train, val, test and"
    ),
    "classes beside train": Refused(
        files=TRAIN + pictures("cow"), message="rename it if it is a split, move it into train if it is a class, else"
    ),
    "splits in classes": Refused(
        files=pictures("ant/train", "ant/test", "bee/train", "bee/test"),
        message="ROOT/ant: holds the folders train and test, and splits come above classes; move them to ROOT/train/ant"
        " and ROOT/test/ant",
    ),
    "flat train and test": Refused(
        files=pictures("train", "test"), message="test, train in ROOT: images and no class folders; put each class's"
    ),
    "flat train and test beside a class": Refused(
        files=pictures("train", "test", "bus"),
        message="test, train in ROOT are called like splits; put each class's images in a folder of its own",
    ),
    "flat train alone": Refused(files=pictures("train"), message="train in ROOT: images and no class folders"),
    "test and val without train": Refused(
        files=pictures("test/ant", "val/ant"), message="test, val in ROOT, and no folder train beside; name the folder"
    ),
    "test beside its classes": Refused(
        files=ANT_BEE + pictures("test/ant", "test/bee"),
        message="ROOT/test: holds class folders, as a split does, and is none; move it out of ROOT, or ant, bee into"
        " ROOT/train",
    ),
    "train under an unknown name": Refused(
        files=pictures("trainval/ant", "trainval/bee", "test/ant", "test/bee"), message="rename trainval to train"
    ),
    # unlabeled images
    "val in train": Refused(
        files=TRAIN + pictures("train/val/ant"),
        message="ROOT/train/val: holds class folders, as a split does, and is none; move it out of ROOT/train",
    ),
    "splits with another word in their names": Refused(
        files=pictures("seg_train/seg_train/ant", "seg_test/seg_test/ant", "seg_pred"),
        message="seg_test, seg_train in ROOT are called like splits; rename them to test, train, with class folders",
    ),
    "splits with a number in their names": Refused(
        files=pictures("train", "test1"), message="test1, train in ROOT are called like splits; rename them to test"
    ),
    "unlabeled in test": Refused(
        files=TRAIN + TEST + pictures("test/unlabeled"), message="ROOT/test/unlabeled: images without a label can only"
    ),
    "unlabeled in a class": Refused(
        files=ANT_BEE + pictures("ant/unlabeled"), message="lie in a class folder; move them to ROOT/unlabeled"
    ),
    "option without images": Refused(
        files=(*ANT_BEE, "more/x.txt"), option="set/more", message="ROOT/more: holds no image; add images"
    ),
    "option that is missing": Refused(files=ANT_BEE, option="set/more", message="ROOT/more: is not a folder"),
    # links
    "one folder as two classes": Refused(
        files=(*ANT_BEE, "cow -> bee"), message="ROOT/cow and ROOT/bee are one folder, in two classes or splits; remove"
    ),
    "one folder in two splits": Refused(
        files=(*TRAIN, "test/ant -> ../train/ant"), message="ROOT/test/ant and ROOT/train/ant are one folder, in two"
    ),
    "one folder in two classes, below": Refused(
        files=(*ANT_BEE, "ant/more -> ../bee"), message="ROOT/bee and ROOT/ant/more are one folder, in two classes"
    ),
    "image that is a link to nothing": Refused(
        files=(*ANT_BEE, "ant/x.jpg -> gone.jpg"), message="ROOT/ant/x.jpg: is a symbolic link that leads nowhere"
    ),
    "class folder that is a link to nothing": Refused(
        files=(*ANT_BEE, "cow -> /no/such/folder"), message="ROOT/cow: is a symbolic link that leads nowhere (no such"
    ),
    "link to itself": Refused(
        files=(*ANT_BEE, "ant/x -> x"), message="ROOT/ant/x: is a symbolic link that leads nowhere"
    ),
    # names
    "hidden class": Refused(
        files=ANT_BEE + pictures(".cow"),
        message="ROOT/.cow: is hidden by the dot in its name, and holds 2 images; rename",
    ),
    "hidden split": Refused(files=TRAIN + pictures(".test/ant"), message="ROOT/.test: is hidden by the dot"),
    "name that is no text": Refused(
        files=(*ANT_BEE, os.fsdecode(b"caf\xe9/0.jpg")), message='caf\\udce9": the name is not in UTF-8; rename it'
    ),
    "two Unicode forms of one class": Refused(
        files=pictures(COMPOSED, DECOMPOSED), message="another folder has this name in another Unicode form; merge them"
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_layout_is_refused_by_name(tmp_path: Path, name: str) -> None:
    refused, root = REFUSED[name], tmp_path / "set"
    bare_tree(root, refused.files)
    options: dict[str, object] = {"unlabeled": refused.option} if refused.option else {}
    if "set.zip" in "".join(refused.files):
        options["root"] = "set.zip"
    with pytest.raises(InputError) as error:
        datasets.listing(section(**options), tmp_path)
    message = str(error.value).replace(str(root), "ROOT")
    assert refused.message in message and "\n" not in message


def test_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare_tree(tmp_path / "set", (*ANT_BEE, "ant/locked/x.jpg"))
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"ant/locked: cannot be read \(Permission denied\); make it readable"):
        datasets.listing(section(), tmp_path)
