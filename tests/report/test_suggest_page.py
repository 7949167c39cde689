"""The sheet of suggestions: escaped, self-contained, every picture; the table can be filled in."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from edgedistill.labels.to_label import Suggestion, Suggestions
from edgedistill.records import MoreLabels
from edgedistill.report import suggest as page
from edgedistill.run.files import read_record
from tests.report.test_html import Page

HOSTILE = "<script>alert(1)</script>"
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)


def record() -> Suggestions:
    entries = [
        Suggestion(
            path=f"{HOSTILE}/{row}.png", how="suggested", why="typical", cluster=row % 2, guess="nut", sure=0.4, row=row
        )
        for row in range(7)
    ]
    drawn = Suggestion(path='a,"b".png', how="random", why="drawn at random", cluster=0, row=7)
    return Suggestions(
        name="photos",
        source="data/photos",
        pictures=1234,
        labels={HOSTILE: 3, "nut": 4},
        strategy="herding",
        sources=("lite0",),
        suggestions=(*entries, drawn),
        clusters={HOSTILE: 0},
        more=MoreLabels(labels=7, next=50),
        notes=(HOSTILE,),
        seconds=3.2,
    )


def test_sheet_escapes_and_loads_nothing() -> None:
    text = page.html(record(), IMAGES)
    parsed = Page(text)
    assert parsed.open == []
    assert "script" not in parsed.tags
    assert [link for link in parsed.values("src", "href") if not link.startswith("data:")] == []
    assert text.count("data:image/jpeg") == len(record().suggestions)
    assert "nut, 40 %" in text


def test_table_has_a_row_a_picture_and_an_empty_label(tmp_path: Path) -> None:
    page.write(record(), IMAGES, tmp_path)
    rows = list(csv.DictReader((tmp_path / page.TABLE).read_text(encoding="utf-8").splitlines()))
    assert [row["path"] for row in rows] == [entry.path for entry in record().suggestions]
    assert {row["label"] for row in rows} == {""}
    assert (rows[0]["how"], rows[0]["guess"], rows[0]["sure"]) == ("suggested", "nut", "0.400")
    assert (rows[-1]["how"], rows[-1]["sure"]) == ("random", "")
    assert read_record(tmp_path / page.RECORD, Suggestions) == record()


def test_terminal_says_whether_more_labels_pay() -> None:
    text = page.text(record())
    assert "8 of 1,234 pictures to label next, 1 of them drawn at random; 7 have a label" in text
    assert "do more labels pay? 7 labels are too few to tell: label more" in " ".join(text.split())
