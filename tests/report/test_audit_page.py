"""The page of an audit: escaped, self-contained, bounded in size; the terminal names the worst findings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgedistill.errors import InputError
from edgedistill.labels.findings import KINDS, Audit, AuditedImage, Finding
from edgedistill.report import audit as page
from edgedistill.run.files import usable_folder
from tests.report.test_html import Page

HOSTILE = "<script>alert(1)</script>"
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)


def image(row: int, label: str = "bee", split: str = "train") -> AuditedImage:
    return AuditedImage(name=f"{HOSTILE}/{row:02d}.png", label=label, split=split, row=row)


def record(findings: tuple[Finding, ...], notes: tuple[str, ...] = ()) -> Audit:
    return Audit(
        name="photos",
        source="data/photos",
        licence="not stated",
        images=1234,
        counts={HOSTILE: {"train": 1000, "test": 200}, "bee": {"train": 20}, "": {"train": 14}},
        sizes={"smallest": "20 x 20"},
        findings=findings,
        notes=notes,
        teacher="linear probes",
        px=64,
        seconds=3.2,
    )


@pytest.fixture
def audit() -> Audit:
    """An audit with findings of every kind."""
    pair = (image(0), image(1, split="test"))
    sets = [
        Finding(kind=kind, images=pair, note="in test and train", crosses=True)
        for kind in ("two-labels", "copies", "near-copies")
    ]
    single = ("doubtful", "blank", "dark", "long", "small")
    others = [Finding(kind=kind, images=(image(row),), note=HOSTILE) for row, kind in enumerate(single)]
    broken = Finding(kind="corrupt", images=(AuditedImage(name=HOSTILE, label="", split=""),), note="no picture")
    return record((*sets, *others, broken), notes=(HOSTILE,))


def test_page_escapes_and_loads_nothing(audit: Audit) -> None:
    text = page.html(audit, IMAGES)
    parsed = Page(text)
    assert parsed.open == []
    assert "script" not in parsed.tags
    assert text.count("&lt;script&gt;") > 10
    assert [link for link in parsed.values("src", "href") if not link.startswith("data:")] == []
    assert "default-src 'none'" in text
    assert "edgedistill audit</title>" in text
    # two of each set, one of the others but the broken one
    assert parsed.tags.count("img") == 3 * 2 + 5
    assert all(parsed.values("alt"))


def test_every_kind_has_its_part(audit: Audit) -> None:
    text = page.html(audit, IMAGES)
    assert {finding.kind for finding in audit.findings} == set(KINDS) == set(page.NOTES)
    assert all(text.count(title) >= 2 for title in KINDS.values()), "in the table and as a part"
    assert "How this was produced" not in text and "bench/" not in text


def test_page_of_many_findings_stays_small() -> None:
    crowd = Finding(kind="copies", images=tuple(image(row) for row in range(40)), note="")
    singles = [Finding(kind="blank", images=(image(row),), note="") for row in range(40)]
    text = page.html(record((*[crowd] * 200, *singles)), IMAGES)
    assert len(text.encode()) < 3_000_000
    assert Page(text).tags.count("img") == page.SHOWN_SETS * (page.SHOWN_IMAGES + 1)
    assert "32 more images" in text
    assert "176 more are in audit.json" in text and "16 more are in audit.json" in text


def test_terminal_names_the_worst(audit: Audit) -> None:
    text = page.text(audit)
    assert "1,234 images of 2 classes, 14 of them without a label" in text
    assert "Exact copies: 1 set of 2 images, 1 in several splits" in text
    assert f"train: {HOSTILE}/00.png" in text
    assert f"note: {HOSTILE}" in text
    many = record(tuple(Finding(kind="blank", images=(image(row),), note="") for row in range(5)))
    assert "Blank images: 5" in page.text(many) and "and 2 more" in page.text(many)
    assert "nothing was found" in page.text(record(()))


def test_page_and_record_are_written(audit: Audit, tmp_path: Path) -> None:
    path = page.write(audit, IMAGES, usable_folder(tmp_path / "new/folder"))
    assert path == tmp_path / "new/folder/audit.html" and path.is_file()
    assert json.loads((tmp_path / "new/folder/audit.json").read_text(encoding="utf-8"))["images"] == 1234


def test_a_file_is_no_folder_to_write_into(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for folder in (tmp_path / "file", tmp_path / "file/inner"):
        with pytest.raises(InputError, match="is not a folder; name another folder"):
            usable_folder(folder)
