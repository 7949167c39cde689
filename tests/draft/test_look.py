"""A look at somebody's data: of which kind they are, and which column is which."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from edgedistill.draft.look import Look, is_recipe, look
from edgedistill.errors import InputError
from tests.helpers.miniature import picture


def pictures(root: Path, classes: int = 2, each: int = 3, px: int = 40) -> list[str]:
    """A folder for each class; the pictures' paths below `root`."""
    paths = []
    for label in range(classes):
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        for index in range(each):
            picture(label == 0, 100 * label + index, px).save(folder / f"{index}.png")
            paths.append(f"class{label}/{index}.png")
    return paths


def table(folder: Path, head: str, rows: list[str]) -> Look:
    (folder / "list.csv").write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return look(str(folder / "list.csv"))


def test_folder_of_class_folders(tmp_path: Path) -> None:
    pictures(tmp_path / "my photos!")
    (tmp_path / "my photos!" / "unlabeled").mkdir()
    picture(True, 9, 64).save(tmp_path / "my photos!" / "unlabeled" / "x.png")
    subject = look(str(tmp_path / "my photos!"))
    assert subject.name == "my-photos" and subject.section == {"kind": "folder", "root": tmp_path / "my photos!"}
    assert (subject.counts_C, subject.unlabeled, subject.images, subject.px) == ((3, 3), 1, 7, 40)
    assert subject.sides[-1] == 64


def test_flat_folder_is_told_how_to_label(tmp_path: Path) -> None:
    picture(True, 0).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=f"1 picture without a label.*`edgedistill suggest {tmp_path}`"):
        look(str(tmp_path))


def test_labels_of_a_folder_count_before_its_class_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = pictures(tmp_path)
    rows = [f"./{path},{'nut' if index % 2 else 'bolt'},p{index}" for index, path in enumerate(paths[:-1])]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,patient", *rows, f"{paths[-1]},,"]), encoding="utf-8")
    subject = look(str(tmp_path))
    assert subject.section == {"kind": "csv", "file": tmp_path / "labels.csv", "group": "patient"}
    assert (subject.name, subject.listing.classes) == (tmp_path.name, ("bolt", "nut"))
    assert (subject.counts_C, subject.unlabeled) == ((3, 2), 1) and "before" in subject.reasons["file"]
    assert "has no row" not in capsys.readouterr().err
    picture(True, 77).save(tmp_path / "later.png")
    look(str(tmp_path))
    assert "1 picture of the folder has no row, and no part in the run" in capsys.readouterr().err
    (tmp_path / "labels.csv").write_text("name,finding\n", encoding="utf-8")  # a table of something else
    assert look(str(tmp_path)).section["kind"] == "folder"


def test_labels_that_name_no_class_yet(tmp_path: Path) -> None:
    paths = pictures(tmp_path)
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,how", *(f"{path},," for path in paths)]))
    with pytest.raises(InputError, match=f"no picture has a label; `edgedistill annotate {tmp_path}`"):
        look(str(tmp_path))
    (tmp_path / "labels.csv").write_text("path;label;how\n")
    with pytest.raises(InputError, match="no table with the columns path and label"):
        look(str(tmp_path))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_table_with_usual_columns(tmp_path: Path, delimiter: str) -> None:
    paths = pictures(tmp_path)
    rows = [delimiter.join([path, path[:6], f"p{i}", "Training" if i % 3 else "test"]) for i, path in enumerate(paths)]
    subject = table(tmp_path, delimiter.join(["Filename", "Diagnosis", "patient", "subset"]), rows)
    expected = {"image": "Filename", "label": "Diagnosis", "split": "subset", "group": "patient"}
    assert subject.section == {
        "kind": "csv",
        "file": tmp_path / "list.csv",
        **expected,
        **({} if delimiter == "," else {"delimiter": delimiter}),
    }
    assert subject.counts_C == (2, 2) and subject.listing.test is not None and subject.listing.train.groups


def test_columns_are_told_by_what_they_hold(tmp_path: Path) -> None:
    paths = pictures(tmp_path)
    rows = [f"{index},{path},{path[:6]},{index % 2}" for index, path in enumerate(paths)]
    subject = table(tmp_path, "id,where,which,set", rows)  # the cells of `set` are no splits
    assert subject.section == {"kind": "csv", "file": tmp_path / "list.csv", "image": "where", "label": "which"}


@pytest.mark.parametrize(
    ("head", "rows", "problem"),
    [
        ("a,b", ["1,2"], "no column holds paths of pictures"),
        ("a,b", ["x.png,1", "y.png,2"], "no column holds labels"),
        ("", [], "no column holds paths"),
    ],
)
def test_table_without_pictures_or_labels_is_refused(tmp_path: Path, head: str, rows: list[str], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        table(tmp_path, head, rows)


def test_folder_of_parquet_files(tmp_path: Path) -> None:
    images = [Image.fromarray(np.full((20, 30, 3), shade, dtype=np.uint8)) for shade in (0, 50, 100, 150)]
    features = datasets.Features(
        {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b"]), "note": datasets.Value("string")}
    )
    columns = {"picture": images, "kind": [0, 1, 0, 1], "note": list("wxyz")}
    dataset = datasets.Dataset.from_dict(columns, features=features)
    for split in ("train", "validation"):
        dataset.to_parquet(tmp_path / "set" / f"{split}-00000-of-00001.parquet")
    subject = look(str(tmp_path / "set"))
    assert subject.section == {
        "kind": "hf",
        "path": str(tmp_path / "set"),
        "image": "picture",
        "label": "kind",
        "test": None,
        "val": "validation",
    }
    assert subject.counts_C == (2, 2) and subject.px == 20


def test_what_is_no_data_is_named(tmp_path: Path) -> None:
    (tmp_path / "one.parquet").write_bytes(b"")
    picture(True, 0).save(tmp_path / "a.png")
    for name, problem in {
        "none": "no such file or folder",
        "one.parquet": "one parquet file",
        "a.png": "neither",
    }.items():
        with pytest.raises(InputError, match=problem):
            look(str(tmp_path / name))


def test_recipes_are_told_from_data(tmp_path: Path) -> None:
    (tmp_path / "list.csv").touch()
    (tmp_path / "recipe").touch()
    assert is_recipe("missing.yaml") and is_recipe(str(tmp_path / "recipe"))
    assert not any(map(is_recipe, [str(tmp_path), str(tmp_path / "list.csv"), "owner/name", "missing"]))


def test_unknown_split_beside_known_ones_is_refused(tmp_path: Path) -> None:
    paths = pictures(tmp_path)
    parts = ["Training", "Training", "PublicTest"] * 2
    rows = [f"{path},{path[:6]},{part}" for path, part in zip(paths, parts, strict=True)]
    with pytest.raises(InputError, match=r"Usage: 'PublicTest' is none of train, test and val"):
        table(tmp_path, "image,label,Usage", rows)
