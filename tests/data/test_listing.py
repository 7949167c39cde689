"""Fingerprints tell names apart whatever they contain, and change with the rules; classes that are numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgedistill.data import datasets, shards
from edgedistill.data.listing import RULES, Files, class_order, files_listing, hash_lines
from edgedistill.recipe.data_section import Data, Unlabeled
from tests.helpers.trees import bare_tree, memory_items, pictures


@pytest.mark.parametrize(
    ("labels", "ordered"),
    [
        (["10", "9", "2"], ["2", "9", "10"]),
        (["1", "-2", "0.5", "+3", "-10", ".25"], ["-10", "-2", ".25", "0.5", "1", "+3"]),
        (["1", "02", "01", "2"], ["01", "1", "02", "2"]),
        (["1.0", "1", "1.00"], ["1", "1.0", "1.00"]),
        (["10", "9", "x"], ["10", "9", "x"]),
        (["1e3", "20", "3"], ["1e3", "20", "3"]),
        (["nan", "2", "10"], ["10", "2", "nan"]),
        (
            ["010000000000000000000002", "10000000000000000000001"],
            ["10000000000000000000001", "010000000000000000000002"],
        ),
        ([], []),
    ],
)
def test_numbers_are_ordered_as_numbers(labels: list[str], ordered: list[str]) -> None:
    assert class_order(labels) == class_order(reversed(labels)) == ordered


Part = list[tuple[str, int]]


def fingerprint(folder: Path, classes: tuple[str, ...], train: Part, test: Part | None = None) -> str:
    """The fingerprint of empty files of one age, whatever they are called."""

    def files(part: Part) -> Files:
        return Files(
            names=[name for name, _ in part], paths=[str(folder)] * len(part), labels=[label for _, label in part]
        )

    return files_listing(classes, files(train), None if test is None else files(test), "none").fingerprint


@pytest.mark.parametrize("separator", ["|", "\n", "\0", ",", " ", "/", "\\", '"', '", "'])
def test_names_that_contain_a_separator_are_told_apart(tmp_path: Path, separator: str) -> None:
    x, y, z = (f"a{separator}b", "c"), ("a", f"b{separator}c"), ("a", "b", "c")
    marks = [fingerprint(tmp_path, classes, []) for classes in (x, y, z)]
    marks += [fingerprint(tmp_path, ("a",), [(name, 0) for name in names]) for names in (x, y, z)]
    marks += [fingerprint(tmp_path, ("a",), [(x[0], 0)], [(x[1], 0)]), fingerprint(tmp_path, ("a",), [("a", 0)], None)]
    marks += [fingerprint(tmp_path, ("a",), [("a", 0)], [])]
    assert len(set(marks)) == len(marks)


def test_name_cannot_imitate_the_lines_behind_it(tmp_path: Path) -> None:
    line = hash_lines([["a", 0, 5, 7], ["b", 1, 5, 7]])
    for imitation in ('a",0,5,7]\n["b', "a\0000\0005\0007\nb", 'a\\",0,5,7]\\n["b'):
        assert hash_lines([[imitation, 1, 5, 7]]) != line
    assert hash_lines(["a", "b"]) != hash_lines(["a\nb"]) != hash_lines([["a", "b"]])
    assert hash_lines(["\udcff"]) != hash_lines(["\\udcff"]), "a byte that is no UTF-8, and its escape"


def kinds(folder: Path) -> dict[str, Callable[[], str]]:
    """The fingerprint of every kind of images that needs no network."""
    bare_tree(folder / "set", pictures("ant", "bee"))
    (folder / "list.csv").write_text("path,label\nant/0.jpg,x\nbee/0.jpg,y\n")
    bare_tree(folder / "pack", ("train.parquet",))
    bare_tree(folder / "tars", ("0.tar",))
    sections = {
        "folder": {"root": "set"},
        "csv": {"file": "list.csv", "root": "set"},
        "hf": {"path": "pack"},
        "hf hub": {"kind": "hf", "path": "owner/name"},
        "torchvision": {"name": "MNIST", "root": "set"},
        "digits": {},
    }
    validated = {name: Data.model_validate({"kind": name, **options}) for name, options in sections.items()}
    marks: dict[str, Callable[[], str]] = {
        name: lambda section=section: datasets.fingerprint(section, folder) for name, section in validated.items()
    }
    return {**marks, "wds": lambda: shards.fingerprint(Unlabeled(kind="wds", urls="tars/0.tar"), folder)}


def test_version_of_the_rules_enters_every_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marks = kinds(tmp_path)
    before = {name: mark() for name, mark in marks.items()}
    assert before == {name: mark() for name, mark in marks.items()} and len(set(before.values())) == len(before)
    for module in (datasets, shards):
        monkeypatch.setattr(module, "RULES", -1)
    assert [name for name, mark in marks.items() if mark() == before[name]] == []


def test_options_written_out_at_their_default_change_no_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    pairs = [
        ({"kind": "hf", "path": "pack"}, {"val": None, "test": "test", "revision": None}),
        ({"kind": "hf", "path": "owner/name"}, {"val": None, "image": "image"}),
        ({"kind": "torchvision", "name": "MNIST", "root": "x"}, {"options": None, "train": "train"}),
    ]
    for short, more in pairs:
        marks = {datasets.fingerprint(Data.model_validate(options), tmp_path) for options in (short, {**short, **more})}
        assert len(marks) == 1
    first_options = {"image": "image", "label": "label", "train": "train", "test": "test"}  # val came later
    expected = hash_lines([RULES, hash_lines(["hf", "owner/name", None, first_options])])
    assert datasets.fingerprint(Data.model_validate({"kind": "hf", "path": "owner/name"}), tmp_path) == expected
    other = {"kind": "hf", "path": "owner/name", "val": "validation"}
    assert datasets.fingerprint(Data.model_validate(other), tmp_path) not in marks


def test_items_follow_items() -> None:
    first, second = memory_items(3), memory_items(2)
    both = first.followed_by(second)
    assert list(both.names) == ["0000", "0001", "0002", "0000", "0001"] and both.labels_N.tolist() == [0, 1, 0, 0, 1]
    for row, (items, inner) in enumerate([(first, 0), (first, 1), (first, 2), (second, 0), (second, 1)]):
        np.testing.assert_array_equal(np.asarray(both.load(row)), np.asarray(items.load(inner)))
    assert list(both.take(np.array([4, 0])).names) == ["0001", "0000"]
