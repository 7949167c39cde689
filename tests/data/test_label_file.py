"""labels.csv: what is written is read, by `kind: csv`, too; mistakes are named by line."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from edgedistill.data import datasets, label_file
from edgedistill.data.images import View, to_square
from edgedistill.data.label_file import (
    Label,
    locked,
    pictures_listing,
    read_answers,
    read_labels,
    updated,
    write_labels,
)
from edgedistill.data.load import load_splits
from edgedistill.errors import InputError
from edgedistill.recipe.data_section import Data
from tests.helpers.trees import noise, write_picture

VIEW = View(px=12, fit="crop")

LABELS = {
    "b/1.png": Label(name="bolt, long", how="random"),
    "a.png": Label(name="nut", how="suggested"),
    "c.png": Label(),
    "d.png": Label(name='"nut"', how="bulk"),
    "e.png": Label(how="unusable"),
}


def section(file: Path) -> Data:
    return Data.model_validate({"kind": "csv", "file": str(file)})


def test_written_labels_are_read(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    write_labels(file, LABELS)
    assert read_labels(file) == LABELS
    assert file.read_text().splitlines()[:2] == ["path,label,how", "a.png,nut,suggested"]


def test_recipe_takes_the_file_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    write_labels(file, LABELS)
    for path in LABELS:
        write_picture(tmp_path / path)
    listing = datasets.listing(section(file), tmp_path)
    assert set(listing.classes) == {"bolt, long", "nut", '"nut"'}
    assert dict(zip(listing.train.names, listing.train.labels_N, strict=True))["c.png"] == -1
    assert label_file.counts(section(file), tmp_path) == {"suggested": 1, "random": 1, "bulk": 1}


def test_table_without_how_counts_as_given(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text("path,label,place\na.png,nut,here\nb.png,,there\n")
    assert read_labels(file) == {"a.png": Label(name="nut", how="given"), "b.png": Label()}
    assert label_file.counts(section(file), tmp_path) == {}


def test_answers_join_and_replace(tmp_path: Path) -> None:
    file, answers = tmp_path / "labels.csv", tmp_path / "suggestions.csv"
    pictures = ["a.png", "b.png", "c.png"]
    updated(file, {"a.png": Label(name="nut", how="random")}, pictures)
    assert read_labels(file) == {"a.png": Label(name="nut", how="random"), "b.png": Label(), "c.png": Label()}
    answers.write_text(
        "path,label,how,why,cluster,guess,sure\nb.png,bolt,suggested,typical,0,nut,0.5\nc.png,,random,,1,,\n"
    )
    assert read_answers(answers) == {"b.png": Label(name="bolt", how="suggested")}
    updated(file, read_answers(answers), pictures)
    assert read_labels(file)["b.png"] == Label(name="bolt", how="suggested")
    assert read_labels(file)["a.png"] == Label(name="nut", how="random")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label,how\na.png,nut,random\na.png,bolt,random\n", "labels.csv:3: a.png has two rows"),
        ("path,label\n./a.png,nut\nb/../a.png,\n", "labels.csv:3: b/../a.png has two rows, the other as ./a.png"),
        ("path,label,how\na.png,nut,guessed\n", "labels.csv:2: how: 'guessed' is unknown"),
        ("path,name\na.png,nut\n", "there is no column label"),
    ],
)
def test_mistake_is_named_by_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(text)
    with pytest.raises(InputError) as raised:
        read_labels(file)
    assert message in str(raised.value)


def test_answers_without_an_answer_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "suggestions.csv"
    file.write_text("path,label,how\na.png,,random\n")
    with pytest.raises(InputError, match="no label is filled in"):
        read_answers(file)


def test_folder_of_pictures_has_the_labels_of_its_file(tmp_path: Path) -> None:
    for path in LABELS:
        write_picture(tmp_path / path)
    assert label_file.pictures_listing(tmp_path).classes == ()
    write_labels(tmp_path / "labels.csv", LABELS)
    listing = label_file.pictures_listing(tmp_path)
    by_name = dict(zip(listing.train.names, listing.train.labels_N, strict=True))
    assert {name: listing.classes[label] for name, label in by_name.items() if label >= 0} == {
        name: label.name for name, label in LABELS.items() if label.name
    }
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match=r"a\.png is not in the folder"):
        label_file.pictures_listing(tmp_path)


@pytest.mark.parametrize(
    ("path", "name"),
    [(" a.png", "bolt"), ("a\nb.png", ""), ("a.png", "None"), ("a.png", " bolt"), ("a.png", 201 * "x")],
)
def test_rows_that_would_be_read_otherwise_are_not_written(tmp_path: Path, path: str, name: str) -> None:
    file = tmp_path / "labels.csv"
    with pytest.raises(InputError, match="rename"):
        write_labels(file, {path: Label(name=name, how="given" if name else "")})
    assert not file.exists()


def test_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link.csv").symlink_to(tmp_path / "labels.csv")
    write_labels(tmp_path / "link.csv", {"a.png": Label(name="bolt", how="given")})
    assert (tmp_path / "link.csv").is_symlink() and read_labels(tmp_path / "labels.csv")["a.png"].name == "bolt"


def test_answers_wait_for_another_writer(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    write_labels(file, {"a.png": Label(name="bolt", how="random"), "b.png": Label()})
    answers = {"b.png": Label(name="nut", how="suggested")}
    writer = threading.Thread(target=updated, args=(file, answers, ["a.png", "b.png"]))
    with locked(file):
        writer.start()
        writer.join(0.2)
        assert writer.is_alive()
        write_labels(file, {"a.png": Label(name="washer", how="random"), "b.png": Label()})
    writer.join()
    assert read_labels(file) == {"a.png": Label(name="washer", how="random"), **answers}


def test_path_with_a_dot_is_the_picture(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", "a")
    (tmp_path / "labels.csv").write_text("path,label\n./a.png,bolt\n")
    listing = pictures_listing(tmp_path)
    assert listing.classes == ("bolt",) and listing.train.labels_N.tolist() == [0]


def test_label_of_a_path_with_a_dot_survives_another_answer(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_picture(tmp_path / name, name)
    file = tmp_path / "labels.csv"
    file.write_text("path,label\n./a.png,bolt\n")
    answers = {"./b.png": Label(name="nut", how="random")}
    labels = updated(file, answers, pictures_listing(tmp_path).train.names)
    assert read_labels(file) == labels == {"a.png": Label(name="bolt", how="given"), "b.png": answers["./b.png"]}
    assert pictures_listing(tmp_path).train.labels_N.tolist() == [0, 1]


def test_table_of_a_recipe_keeps_its_spelling(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("path,label\n./a.png,bolt\n./b.png,\n")
    updated(file, {"./b.png": Label(name="nut", how="random")}, list(read_labels(file)))
    assert {path: label.name for path, label in read_labels(file).items()} == {"./a.png": "bolt", "./b.png": "nut"}


def test_other_labels_decode_no_picture_again(tmp_path: Path) -> None:
    names = [f"{index}.png" for index in range(12)]
    for name in names:
        write_picture(tmp_path / name, name)
    marks = []
    for labels in (["bolt", "nut"] * 6, ["nut", "bolt"] * 6, ["bolt", "nut", "washer"] * 4):
        write_labels(
            tmp_path / "labels.csv", {name: Label(name=label) for name, label in zip(names, labels, strict=True)}
        )
        table = datasets.listing(section(tmp_path / "labels.csv"), tmp_path)
        splits = load_splits(section(tmp_path / "labels.csv"), tmp_path, cache=tmp_path / "cache", seed=0, px=12)
        everything = np.concatenate([splits.labeled_rows, splits.val_rows])
        for row, label in zip(everything, np.concatenate([splits.labeled_labels, splits.val_labels]), strict=True):
            name = next(name for name in names if (to_square(noise(name), VIEW) == splits.train.images_NHWC[row]).all())
            assert splits.classes[label] == labels[names.index(name)]
        marks.append((table.fingerprint, table.pictures))
    assert len({fingerprint for fingerprint, _ in marks}) == 3 and len({pictures for _, pictures in marks}) == 1
    assert len(list((tmp_path / "cache").glob("*-train"))) == 1
    os.utime(tmp_path / "0.png", ns=(7, 7))
    assert datasets.listing(section(tmp_path / "labels.csv"), tmp_path).pictures != marks[0][1]
