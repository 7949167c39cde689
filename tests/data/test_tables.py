"""CSV files as people write them: what is read, and what is refused by file and line."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from edgedistill.data import datasets
from edgedistill.data.listing import RULES, Listing, hash_lines
from edgedistill.errors import InputError
from edgedistill.labels.draws import UNLABELED
from edgedistill.recipe.data_section import Data

PLAIN = "path,label\na.png,cat\nb.png,dog\nc.png,\n"


def listed(folder: Path, text: str | bytes, **options: str) -> Listing:
    """The listing of a CSV file with this text, beside the empty files a.png to d.png."""
    content = text if isinstance(text, bytes) else text.encode()
    (folder / "list.csv").write_bytes(content)
    for name in ("a", "b", "c", "d"):
        (folder / f"{name}.png").touch()
        os.utime(folder / f"{name}.png", ns=(7, 7))
    return datasets.listing(Data.model_validate({"kind": "csv", "file": "list.csv", **options}), folder)


def refusal(folder: Path, text: str | bytes, **options: str) -> str:
    with pytest.raises(InputError) as error:
        listed(folder, text, **options)
    assert "\n" not in str(error.value)
    return str(error.value).replace(f"{folder}/", "")


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        PLAIN.rstrip("\n"),
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        "\ufeff" + PLAIN,
        PLAIN.replace("\n", "\n\n") + "  \n,\n",
        "\n" + PLAIN,
        PLAIN.replace("\n", ",\n"),
        PLAIN.replace("\n", ",\n").replace("label,", "label"),
        PLAIN.replace("label", "label,,"),
        '"path","label"\n"a.png","cat"\n"b.png",dog\n"c.png",""\n',
        "path,label\na.png, cat \n b.png,dog\nc.png, \n",
        'note,path,label\n"two\nlines, one comma",a.png,cat\nNaN,b.png,dog\nNULL,c.png,\n',
        ",path,label\n0,a.png,cat\n1,b.png,dog\n2,c.png,\n",
        "note,note,path,label\n,,a.png,cat\n,,b.png,dog\n,,c.png,\n",
    ],
)
def test_the_same_table_is_listed_however_it_is_written(tmp_path: Path, text: str) -> None:
    dataset = listed(tmp_path, text)
    assert list(dataset.train.names) == ["a.png", "b.png", "c.png"] and dataset.classes == ("cat", "dog")
    assert dataset.train.labels_N.tolist() == [0, 1, UNLABELED]
    lines = [["classes", "cat", "dog"], "train", ["a.png", 0, 0, 7], ["b.png", 1, 0, 7], ["c.png", UNLABELED, 0, 7]]
    assert dataset.fingerprint == hash_lines([RULES, hash_lines(lines)])


def test_quoted_labels_keep_delimiters_and_quotes(tmp_path: Path) -> None:
    dataset = listed(tmp_path, 'path,label\na.png,"cat, big"\nb.png,"a ""dog"""\n')
    assert dataset.classes == ('a "dog"', "cat, big")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,label\na.png,cat\nb.png,dog, big\nc.png,dog, small\n",
            'list.csv:3: has 3 fields, and the header has 2; quote the field that holds ",", or set data.delimiter',
        ),
        ("path,label,\na.png,cat,\nb.png,dog, big\n", "list.csv:3: has 3 fields, and the header has 2; quote"),
        ('note,path,label\n"x\ny",a.png,cat\n\n0,b.png,dog,1\n', "list.csv:5: has 4 fields, and the header has 3"),
        (
            "path,label\na.png,cat\nb.png\n",
            "list.csv:3: has 1 field, and the header has 2; complete the row (an empty field for no label), or set",
        ),
        ("path,label,label\na.png,cat,dog\n", "list.csv:1: names the column label twice; rename one of them"),
        (
            "path,label\na.png,cat\nb.png,NaN\nc.png,nan\nd.png,nan\n",
            "list.csv:3: label: NaN, nan in 3 rows, which is the text of an empty cell; leave the cell empty for no"
            " label, or rename the class",
        ),
        ('path,label\na.png,cat\nb.png,"dog\nc.png,cat\n', "list.csv:3: a quote is not closed; close it"),
        ('path,label\na.png,"cat\nb.png,"dog\n', "list.csv:2: label runs on over the next line; close the quote"),
        ('path,label\na.png,"cat\n"\nb.png,"do\ng"\n', "list.csv:4: label runs on over the next line; close the quote"),
        ('path,label\n"a.p\rng",cat\n', "list.csv:2: path runs on over the next line; close the quote"),
        (f"path,label\na.png,{'9' * 5000}\n", "list.csv:2: label: has 5000 characters, and a label has 200 at most"),
        ('"path\n",label\na.png,cat\n', r"list.csv:1: there is no column path; did you mean path\n?"),
        (f"pa,label\n{'x' * 300}.png,cat\n", "list.csv:1: there is no column path; did you mean pa?"),
        ("path,label\n", "data.file: list.csv has a header and no rows"),
        ("", "list.csv:1: there is no column path"),
        (PLAIN.encode("utf-16"), "data.file: list.csv: is in UTF-16; save it as CSV in UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "data.file: list.csv: is a binary file, no text; name a CSV file in UTF-8"),
        (b"path,label\na.png,\xe9t\xe9\n", "data.file: list.csv: cannot be read ("),
        ("path,label\n" + "x" * 200_000, "list.csv:2: field larger than field limit"),
    ],
)
def test_a_broken_table_is_refused_by_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert refusal(tmp_path, text).startswith(message)


@pytest.mark.parametrize("text", ["NaN", "nan", "NULL", "None", "N/A", "NA"])
def test_the_text_of_an_empty_cell_is_no_label(tmp_path: Path, text: str) -> None:
    refused = refusal(tmp_path, f"path,label\na.png,cat\nb.png,{text}\nc.png,dog\n")
    assert refused.startswith(f"list.csv:3: label: {text} in 1 row,")
    assert "none" in listed(tmp_path, "path,label\na.png,cat\nb.png,none\n").classes


@pytest.mark.parametrize(
    ("delimiter", "wrong", "shown"), [(";", ",", '";"'), ("\t", ",", r'"\t"'), ("|", ",", '"|"'), (",", ";", '","')]
)
def test_another_delimiter_is_named_with_its_columns(tmp_path: Path, delimiter: str, wrong: str, shown: str) -> None:
    text = PLAIN.replace(",", delimiter).replace("path", '"path"')
    refused = refusal(tmp_path, text, delimiter=wrong)
    assert (
        f"list.csv:1: there is no column path; set delimiter: {shown}, which gives the columns path, label" == refused
    )
    assert len(listed(tmp_path, text, delimiter=delimiter).train) == 3


def test_a_delimiter_is_one_character(tmp_path: Path) -> None:
    assert re.match(r"data\.delimiter: '::': .*; set one character", refusal(tmp_path, PLAIN, delimiter="::"))


def test_an_invalid_split_is_named_by_its_line(tmp_path: Path) -> None:
    text = "path,label,part\na.png,cat,train\n\nb.png,dog,tset\n"
    assert refusal(tmp_path, text, split="part").startswith("list.csv:4: part: must be train, test or val (got 'tset')")


def test_group_that_is_the_text_of_an_empty_cell_is_refused(tmp_path: Path) -> None:
    text = "path,label,patient\na.png,cat,p1\nb.png,dog,NaN\nc.png,dog,NA\n"
    problem = "patient: NA, NaN in 2 rows, which is the text of an empty cell; leave the cell empty for no group"
    assert problem in refusal(tmp_path, text, group="patient")


def test_pictures_called_unusable_are_left_out_also_below_a_blank_line(tmp_path: Path) -> None:
    for blank in ("", "\n"):
        dataset = listed(tmp_path, f"{blank}path,label,how\na.png,cat,\nb.png,dog,\nc.png,,unusable\n")
        assert list(dataset.train.names) == ["a.png", "b.png"] and "1 pictures" in dataset.notes[0]
