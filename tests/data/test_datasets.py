"""Every data kind on a miniature tree: its listing, its error messages and its fingerprint."""

from __future__ import annotations

import importlib.util
import inspect
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgedistill.data import datasets, listing
from edgedistill.errors import InputError
from edgedistill.labels.draws import UNLABELED
from edgedistill.recipe.data_section import Data
from edgedistill.recipe.options import option_problems
from tests.helpers.trees import BIRDS, csv_file, cub_tree, folder_tree, noise


def section(kind: str, **options: object) -> Data:
    return Data.model_validate({"kind": kind, **options})


def test_cub_reads_published_tables(tmp_path: Path) -> None:
    cub_tree(tmp_path / "CUB_200_2011", train=4, test=2)
    dataset = datasets.listing(section("cub", root="CUB_200_2011"), tmp_path)
    assert dataset.classes == BIRDS
    assert dataset.test is not None
    assert Counter(dataset.train.labels_N.tolist()) == {0: 4, 1: 4, 2: 4}
    assert Counter(dataset.test.labels_N.tolist()) == {0: 2, 1: 2, 2: 2}
    assert dataset.train.names[0] == "001.Black_footed_Albatross/Black_footed_Albatross_0000_1.jpg"
    assert set(dataset.train.names).isdisjoint(dataset.test.names)


@pytest.mark.parametrize("name", ["classes.txt", "images.txt", "image_class_labels.txt", "train_test_split.txt"])
def test_cub_names_missing_table_and_its_download(tmp_path: Path, name: str) -> None:
    (cub_tree(tmp_path) / name).unlink()
    with pytest.raises(InputError, match=rf"{name} is missing; download CUB_200_2011.tgz .* point data.root"):
        datasets.listing(section("cub", root="."), tmp_path)


def test_cub_names_missing_image_and_broken_table(tmp_path: Path) -> None:
    cub_tree(tmp_path)
    missing = next((tmp_path / "images").rglob("*.jpg"))
    image_bytes = missing.read_bytes()
    missing.unlink()
    with pytest.raises(InputError, match=f"{missing.name}: No such file"):
        datasets.listing(section("cub", root="."), tmp_path)
    missing.write_bytes(image_bytes)
    (tmp_path / "train_test_split.txt").write_text("1 1\n2\n")
    with pytest.raises(InputError, match=r"train_test_split.txt:2: must be an id and a value"):
        datasets.listing(section("cub", root="."), tmp_path)
    (tmp_path / "train_test_split.txt").write_text("1 1\n2 0\n")
    with pytest.raises(InputError, match="do not list the same images"):
        datasets.listing(section("cub", root="."), tmp_path)


def rows(*lines: tuple[str, str, str]) -> list[dict[str, str]]:
    return [{"path": path, "label": label, "part": part} for path, label, part in lines]


def test_csv_with_split_delimiter_and_empty_labels(tmp_path: Path) -> None:
    lines = rows(("a.png", "10", "train"), ("b.png", "2", "train"), ("c.png", "", "train"), ("d.png", "2", "test"))
    csv_file(tmp_path / "set/list.csv", lines, delimiter=";")
    dataset = datasets.listing(section("csv", file="set/list.csv", split="part", delimiter=";"), tmp_path)
    assert dataset.classes == ("2", "10")
    assert dataset.train.labels_N.tolist() == [1, 0, UNLABELED]
    assert dataset.test is not None and list(dataset.test.names) == ["d.png"]
    with dataset.test.load(0) as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(noise("d.png")))


def test_csv_leaves_out_pictures_that_are_marked_as_unusable(tmp_path: Path) -> None:
    marks = {"a.png": ("x", "random"), "b.png": ("y", "unusable"), "c.png": ("", "unusable"), "d.png": ("", "")}
    lines = [{"path": path, "label": label, "how": how} for path, (label, how) in marks.items()]
    csv_file(tmp_path / "labels.csv", lines)
    dataset = datasets.listing(section("csv", file="labels.csv"), tmp_path)
    assert list(dataset.train.names) == ["a.png", "b.png", "d.png"], "a label outweighs the mark"
    assert dataset.notes[0].startswith("data: 1 pictures that ")


def test_csv_split_takes_the_usual_names(tmp_path: Path) -> None:
    names = ("train", "Training", "TEST", "testing", "val", "Valid", "validation", "dev")
    csv_file(tmp_path / "list.csv", rows(*((f"{i}.png", "xy"[i % 2], name) for i, name in enumerate(names))))
    dataset = datasets.listing(section("csv", file="list.csv", split="part"), tmp_path)
    assert dataset.test is not None and dataset.val is not None
    assert [list(part.names) for part in (dataset.train, dataset.test, dataset.val)] == [
        ["0.png", "1.png"],
        ["2.png", "3.png"],
        ["4.png", "5.png", "6.png", "7.png"],
    ]
    assert dataset.notes == ("data: val is the data set's own, 4 images; data.val_fraction does not apply",)


def test_csv_without_rows_of_test_draws_them_from_train(tmp_path: Path) -> None:
    csv_file(tmp_path / "list.csv", rows(("a.png", "x", "train"), ("b.png", "y", "train"), ("c.png", "x", "val")))
    dataset = datasets.listing(section("csv", file="list.csv", split="part"), tmp_path)
    assert dataset.test is None and dataset.val is not None and "is test: the test images are drawn" in dataset.notes[0]


def test_csv_row_of_a_split_without_labels_is_told_what_to_write(tmp_path: Path) -> None:
    csv_file(tmp_path / "list.csv", rows(("a.png", "x", "train"), ("b.png", "", "unlabeled")))
    with pytest.raises(InputError, match=r"got 'unlabeled'\); write train, and leave the label empty"):
        datasets.listing(section("csv", file="list.csv", split="part"), tmp_path)


def test_csv_images_may_lie_elsewhere(tmp_path: Path) -> None:
    csv_file(tmp_path / "set/list.csv", rows(("a.png", "x", ""), ("b.png", "y", "")))
    (tmp_path / "set/list.csv").rename(tmp_path / "list.csv")
    dataset = datasets.listing(section("csv", file="list.csv", root="set"), tmp_path)
    assert dataset.test is None and len(dataset.train) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"file": "nowhere.csv"}, "nowhere.csv: cannot be read"),
        ({"label": "labels"}, "list.csv:1: there is no column labels; did you mean label?"),
        ({"split": "part"}, "list.csv:3: part: must be train, test or val .got 'tset'."),
        ({"root": "elsewhere"}, "elsewhere/a.png: No such file"),
    ],
)
def test_csv_names_invalid_values(tmp_path: Path, options: dict[str, str], message: str) -> None:
    csv_file(tmp_path / "list.csv", rows(("a.png", "x", "train"), ("b.png", "y", "tset")))
    with pytest.raises(InputError, match=message):
        datasets.listing(section("csv", **{"file": "list.csv", **options}), tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("elpv_dataset") is None, reason="the package elpv-dataset is missing")
def test_elpv_has_published_label_counts() -> None:
    # Buerhop-Lutz et al. 2018: 1508 cells at 0, 295 at 1/3, 106 at 2/3, 715 at 1
    dataset = datasets.listing(section("elpv"), Path())
    assert Counter(dataset.train.labels_N.tolist()) == {0: 1508 + 295, 1: 106 + 715}
    strict = datasets.listing(section("elpv", threshold=0.9), Path())
    assert Counter(strict.train.labels_N.tolist()) == {0: 1508 + 295 + 106, 1: 715}
    assert strict.fingerprint != dataset.fingerprint
    for row in (0, 2623):
        with dataset.train.load(row) as image:
            assert (image.size, image.mode) == ((300, 300), "L")


def test_elpv_without_package_names_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "edgedistill\[demo\]"'):
        datasets.listing(section("elpv"), Path())


def test_digits_keep_all_seventeen_levels() -> None:
    dataset = datasets.listing(section("digits"), Path())
    assert dataset.classes == tuple("0123456789") and len(dataset.train) == 1797
    levels = {level for row in range(50) for level in np.unique(np.asarray(dataset.train.load(row)))}
    assert levels == {round(level * 255 / 16) for level in range(17)}


def test_unknown_kind_and_options_are_named() -> None:
    with pytest.raises(InputError, match=r"no data kind is called digit; did you mean digits\?"):
        datasets.listing(section("digit"), Path())
    with pytest.raises(InputError, match=r"rot: unknown key; did you mean root\?"):
        datasets.listing(section("cub", rot="x"), Path())


def test_every_kind_takes_base_and_checkable_options() -> None:
    for name, kind in datasets.DATASETS.items():
        function = kind.listing
        positional = [
            parameter
            for parameter in inspect.signature(function).parameters.values()
            if parameter.kind is not parameter.KEYWORD_ONLY
        ]
        assert [parameter.name for parameter in positional] == ["base"], name
        assert option_problems(function, {"no_such_option": 1}, ("data",)), name


def test_fingerprint_depends_on_content_labels_and_names_but_not_path(tmp_path: Path) -> None:
    tree = folder_tree(tmp_path / "set")
    folder_section = section("folder", root="set")
    before = datasets.fingerprint(folder_section, tmp_path)
    assert before == datasets.listing(folder_section, tmp_path).fingerprint
    shutil.copytree(tree, tmp_path / "copy")  # copies the times of change as well
    assert datasets.fingerprint(section("folder", root="copy"), tmp_path) == before
    picture = tree / "train/ant/000.png"
    os.utime(picture, ns=(0, 0))
    touched = datasets.fingerprint(folder_section, tmp_path)
    picture.rename(tree / "train/bee/900.png")
    assert len({before, touched, datasets.fingerprint(folder_section, tmp_path)}) == 3


def test_fingerprint_opens_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: object) -> None:
        raise AssertionError("a fingerprint decodes nothing")

    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.jpg").touch()
    monkeypatch.setattr(Image, "open", opened)
    assert datasets.fingerprint(section("folder", root="."), tmp_path)


def test_fingerprints_need_no_heavy_import(tmp_path: Path) -> None:
    cub_tree(tmp_path)
    kinds = [
        {"kind": "digits"},
        {"kind": "cub", "root": "."},
        {"kind": "hf", "path": "owner/set"},
        {"kind": "hf", "path": "."},
        {"kind": "torchvision", "name": "MNIST", "root": "."},
    ]
    program = f"""
import sys
from pathlib import Path
from edgedistill.recipe.data_section import Data
from edgedistill.data import datasets, splits
for kind in {kinds!r}:
    assert len(datasets.fingerprint(Data.model_validate(kind), Path({str(tmp_path)!r}))) == 64
print(*sorted({{"torch", "torchvision", "datasets", "sklearn"}} & set(sys.modules)))
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == ""


@pytest.mark.timeout(60)
def test_special_file_in_a_list_is_named(tmp_path: Path) -> None:
    csv_file(tmp_path / "list.csv", rows(("x.png", "a", ""), ("fifo.png", "b", "")))
    (tmp_path / "fifo.png").unlink()
    os.mkfifo(tmp_path / "fifo.png")
    for file in ("list.csv", "fifo.png"):
        with pytest.raises(InputError, match=r"fifo\.png: .*is a FIFO, a socket or a device"):
            datasets.listing(section("csv", file=file), tmp_path)


def test_fingerprint_of_regular_files_is_that_of_size_and_time(tmp_path: Path) -> None:
    folder_tree(tmp_path / "set", train=1, test=0)
    for path in sorted((tmp_path / "set").rglob("*.png")):
        path.write_bytes(b"12345")
        os.utime(path, ns=(7, 7))
    lines = [["classes", "ant", "bee"], "train", ["ant/000.png", 0, 5, 7], ["bee/000.png", 1, 5, 7]]
    expected = listing.hash_lines([listing.RULES, listing.hash_lines(lines)])
    assert datasets.fingerprint(section("folder", root="set"), tmp_path) == expected
