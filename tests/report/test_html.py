"""report.html: well-formed, escaped, self-contained, small, and the same bytes for the same run."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from edgedistill.errors import InputError
from edgedistill.measurements import BenchReport
from edgedistill.report import plots, render
from edgedistill.report.facts import read
from edgedistill.report.plots import jpeg, thin
from edgedistill.run.files import read_json, read_record, write_json, write_record
from tests.helpers.report_runs import make_run, ramp

HOSTILE = ("<script>alert(1)</script>", '"><img src=http://evil.example/x.png onerror=alert(1)>')


class Page(HTMLParser):
    """Tags and attributes of a page; raises on wrong nesting."""

    VOID = frozenset({"meta", "link", "br", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, text or "") for name, text in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, text or "") for name, text in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def values(self, *names: str) -> list[str]:
        return [text for _, name, text in self.attributes if name in names]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    """The page of a run whose class names are markup."""
    run = make_run(tmp_path_factory.mktemp("hostile"), classes=HOSTILE)
    text = render.html(run)
    return text, Page(text)


def test_html_loads_nothing(page: tuple[str, Page]) -> None:
    text, parsed = page
    links = parsed.values("src", "href", "xlink:href", "srcset", "data", "action", "poster")
    assert links
    assert [link for link in links if not link.startswith(("data:", "#"))] == []
    assert re.findall(r"url\((?!#)", text) == []
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_html_escapes_class_names(page: tuple[str, Page]) -> None:
    text, parsed = page
    assert "script" not in parsed.tags
    assert parsed.values("onerror") == []
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_html_is_well_formed(page: tuple[str, Page]) -> None:
    _, parsed = page
    assert parsed.open == []
    ids = parsed.values("id")
    assert len(ids) == len(set(ids)) > 50
    assert {link[1:] for link in parsed.values("href", "xlink:href") if link.startswith("#")} <= set(ids)
    assert parsed.tags.count("svg") == 9
    assert parsed.tags.count("img") == 12 + 4
    alts = [text for tag, name, text in parsed.attributes if (tag, name) in {("img", "alt"), ("figure", "aria-label")}]
    assert len(alts) == 16 + 9
    assert all(alts)


def test_clip_paths_refer_to_existing_ids(page: tuple[str, Page]) -> None:
    text, parsed = page
    clips = set(re.findall(r"url\(#([^)]+)\)", text))
    assert clips
    assert clips <= set(parsed.values("id"))


def test_drawings_follow_color_scheme(page: tuple[str, Page]) -> None:
    drawings = "".join(re.findall(r"<svg.*?</svg>", page[0], re.DOTALL))
    assert "var(--ink)" in drawings
    assert "#000000" not in drawings
    assert "#0a00" not in drawings


def test_html_is_reproducible_and_small(tmp_path: Path, page: tuple[str, Page]) -> None:
    second = render.html(make_run(tmp_path, classes=HOSTILE))
    assert second == page[0]
    assert len(second.encode()) < 3_000_000


def test_page_of_large_run_stays_small(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (24, 224, 224, 3), dtype=np.uint8)
    np.savez(
        run / "verify/mistakes.npz",
        images=images,
        labels=np.zeros(24, int),
        predicted=np.full(24, 7),
        confidence=np.ones(24),
    )
    samples = tuple(generator.lognormal(0, 0.3, 50_000).tolist())
    path = run / "bench/local/onnxruntime-cpu-int8-cpu.json"
    latency = dataclasses.replace(ramp(1.0), samples_ms=samples)
    write_record(path, dataclasses.replace(read_record(path, BenchReport), latency=latency))
    line = {"loss": 1.0, "terms": {"$x_1$": 0.5, "a": 0.25}, "lr": 1e-3}
    lines = [json.dumps({"step": step, **line}) for step in range(20_000)]
    (run / "distill/metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    text = render.html(run)
    assert len(text.encode()) < 3_000_000
    assert "class 7" in text
    assert "$x_1$" in text


def test_failed_report_keeps_previous_page(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    before = render.write(run)[1].read_bytes()
    (run / "verify/mistakes.npz").write_bytes(b"")
    with pytest.raises(InputError):
        render.write(run)
    assert (run / "report.html").read_bytes() == before
    assert list(run.path.glob(".*tmp")) == []


def test_thin_keeps_first_and_last() -> None:
    assert thin(list(range(1000)), 5) == [0, 250, 500, 749, 999]
    assert thin([1, 2], 5) == [1, 2]


def test_small_pictures_are_not_enlarged() -> None:
    assert jpeg(np.zeros((8, 8, 3), np.uint8)).startswith("data:image/jpeg;base64,")
    assert len(jpeg(np.zeros((8, 8, 3), np.uint8))) < 1200


def test_search_plot_is_drawn_against_bounded_cost(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    against_macs = plots.search(read(run))
    assert against_macs is not None and "against their M MACs: 4 candidates trained, 2 not" in against_macs.alt
    lock = read_json(run / "recipe.lock.json")
    bound = {"at_most": 5.0, "device": "my-jetson", "backend": "onnxruntime-cpu", "precision": "int8", "percentile": 90}
    lock["recipe"]["student"]["budget"] = {"latency_ms": bound}
    write_json(run / "recipe.lock.json", lock)
    trials = run / "search/trials.csv"
    with trials.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    with trials.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, [*rows[0], "latency_ms"])
        table.writeheader()
        table.writerows({**row, "latency_ms": "" if index == 3 else 1.5 * index} for index, row in enumerate(rows))
    against_latency = plots.search(read(run))
    # the candidate without a latency was refused before it was measured
    assert against_latency is not None
    assert "against their ms (int8, p90, on my-jetson): 4 candidates trained, 1 not feasible" in against_latency.alt
