"""MODEL_CARD.md: its facts, and that a Markdown parser sees hostile names as the words that they are."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgedistill.measurements import BenchReport
from edgedistill.records import LicensedInput, TeacherScore
from edgedistill.report.card import escape, markdown
from edgedistill.report.facts import Facts, read
from edgedistill.run.files import read_json, read_record, write_json, write_record
from tests.helpers.baselines import baseline
from tests.helpers.report_runs import make_run

HOSTILE = (
    "<script>alert(1)</script>",
    "a | b || c\\",
    "[x]: http://evil.example",
    "[click](http://evil.example) ![p](http://evil.example/p.png)",
    "1. first\n\n# second\n---\n| a | b |\n|---|---|",
    "\u202egnp.exe\u2066 \u05d0\u05d1 \u200f",
    "*b* _i_ __init__ snake_case `code` ~~s~~ $x$ &lt; &#60; <!-- -->",
    "- [ ] task",
    "+ list",
    "> quote",
    "```",
    "===",
    "www.evil.example https://evil.example",
    "12) x",
    "\\| \\",
)


@pytest.fixture
def hostile_facts(tmp_path: Path) -> Facts:
    """A run in which classes, sources, licenses, the about line and reasons are hostile."""
    run = make_run(tmp_path, classes=HOSTILE)
    labels = np.arange(len(HOSTILE))
    predictions = {"labels": labels, "fp32": labels, "int8-cpu": np.roll(labels, 1)}
    np.savez(run / "verify/predictions.npz", **predictions)
    lock = read_json(run / "recipe.lock.json")
    lock["recipe"]["about"] = HOSTILE[4]
    lock["recipe"]["sources"][0]["model"] = HOSTILE[1]
    write_json(run / "recipe.lock.json", lock)
    kept = read_json(run / "keep/kept.json")
    kept[0]["why"] = HOSTILE[3]
    write_json(run / "keep/kept.json", kept)
    inputs = tuple(LicensedInput(what="source", name=name, licence=name, commercial="no") for name in HOSTILE)
    return dataclasses.replace(read(run), licences=inputs)


def table_rows(tokens: list[Any]) -> list[list[str]]:
    """The text of every cell of every table, row by row, as a Markdown parser understands it."""
    rows: list[list[str]] = []
    for token, following in itertools.pairwise(tokens):
        if token.type == "tr_open":
            rows.append([])
        elif token.type in ("td_open", "th_open"):
            rows[-1].append("".join(child.content for child in following.children or ()))
    return rows


def words(name: str) -> str:
    """A name as the card shows it: one line, control characters replaced."""
    return " ".join(name.replace("\u202e", "?").replace("\u2066", "?").split())


def test_parser_sees_words_where_names_are_markup(hostile_facts: Facts) -> None:
    markdown_it = pytest.importorskip("markdown_it")
    tokens = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown(hostile_facts))
    inline = [child for token in tokens for child in token.children or ()]
    kinds = {token.type for token in (*tokens, *inline)}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "blockquote_open", "ordered_list_open"}
    assert not kinds & {"fence", "code_block", "hr", "em_open", "s_open", "softbreak", "hardbreak"}
    headings = [tokens[index + 1].content for index, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings[0] == "Model card: demo"
    assert headings[1:] == [
        *("Accuracy", "Classes", "Confusions", "Size and speed", "What it was made from", "Licenses", "Limits")
    ]
    texts = {"".join(child.content for child in token.children or ()) for token in tokens if token.type == "inline"}
    assert {words(name) for name in HOSTILE} <= texts
    assert sum(token.type == "bullet_list_open" for token in tokens) == 4  # classes, kept graphs, origin, limits
    rows = table_rows(tokens)
    assert [[words(name), "1", "0.0 % [0.0, 79.3]"] for name in HOSTILE] == [row[:3] for row in rows[6:21]]
    assert [["source", words(name), words(name), "no"] for name in HOSTILE] == rows[-len(HOSTILE) :]
    # header and rows: of graphs 1 + 4, classes 1 + 15, confusions 1 + 10, speed 1 + 4, sources 1 + 3, licenses 1 + 15
    assert [len(row) for row in rows] == [3] * 5 + [6] * 16 + [5] * 11 + [3] * 5 + [3] * 4 + [4] * 16


def test_ordinary_text_is_left_as_it_is() -> None:
    for text in ("91.2 % [89.2, 92.2]", "int8-cpu for cpu: loses 0.3 points", "sea_ice_2", "R&D", "a > b (c)", "3.5"):
        assert escape(text) == text
    assert escape("- x") == "\\- x" and escape("1. x") == "1\\. x" and escape("_x_") == "\\_x\\_"


def test_card_has_the_facts_of_the_report(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.record_step("distill", "k", [run / "distill/result.json"], 1.0)
    text = markdown(read(run))
    finished = run.manifest()["steps"]["distill"]["finished"][:10]
    assert f"trained by edgedistill on {finished}." in text and "Solar cells, two classes." in text
    for line in (
        "| int8-cpu (default) | 91.2 % [89.2, 92.2] | 98.5 % |",
        "| functional | 500 | 92.0 % [89.3, 94.1] | 94.3 % [91.8, 96.0] | 94.0 % | 94.0 % |",
        "- int8-cpu for cpu: loses 0.3 points; 2.1 [2.0, 2.2] times as fast as fp32",
        "The budget was: at most 150 M MACs.",
        "| local, onnxruntime-cpu, int8-cpu | 1.50 | 2.00 [1.90, 2.10] |",
        "| lite0 | timm | 0.70 |",
        "**commercial: no (data elpv)**",
        "| data | elpv | CC BY-NC-SA 4.0 | no |",
    ):
        assert line in text.splitlines()
    assert "40 with a label to train on, 10 with a label to choose by, 1786 without a label, 788 to test" in text
    assert "Measured on 788 images" in text and "The class with the fewest test images has 288;" in text


def with_checkpoint(facts: Facts, **changes: Any) -> Facts:
    assert facts.checkpoint is not None
    return dataclasses.replace(facts, checkpoint=dataclasses.replace(facts.checkpoint, **changes))


def test_sources_of_a_teacher_have_their_shares_of_it(tmp_path: Path) -> None:
    teacher = TeacherScore(kind="selftrained", val=None, weights={"lite0": 0.25, "mnist-net": 0.0, "lite1": 0.75})
    text = markdown(with_checkpoint(read(make_run(tmp_path)), method="adapted", teacher=teacher))
    table = text.split("Source models, by their share of the teacher:\n\n")[1].split("\n\n")[0].splitlines()
    assert table[2:] == ["| lite1 |  | 0.75 |", "| lite0 | timm | 0.25 |", "| mnist-net |  | 0.00 |"]


def test_card_of_a_student_on_labels_alone_names_no_source(tmp_path: Path) -> None:
    facts = with_checkpoint(read(make_run(tmp_path)), method="transfer")
    record = baseline("labels alone", "labels alone are better on the 40 images of val: that student ships")
    text = markdown(dataclasses.replace(facts, baseline=record))
    assert "Labels alone are better on the 40 images of val: that student ships. It learned from no source" in text
    assert "Source models" not in text and "without a label," not in text
    assert "Source models, by their similarity weight:" in markdown(read(facts.run))


def test_latency_of_an_earlier_graph_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for path in (run / "bench").glob("*/*.json"):
        write_record(path, dataclasses.replace(read_record(path, BenchReport), sha256="9" * 64))
    text = markdown(read(run))
    assert "had not been measured when this file was written" in text and "| local," not in text


def test_card_of_many_classes_names_fifty(tmp_path: Path) -> None:
    run = make_run(tmp_path, classes=tuple(f"k{index}" for index in range(60)))
    text = markdown(read(run))
    assert "\n- k49\n- and 10 more, all in `bundle.json`\n" in text


def test_latency_budget_is_in_words(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    lock = read_json(run / "recipe.lock.json")
    bound = {"at_most": 5.0, "device": "board", "backend": "onnxruntime-cpu", "precision": "int8", "percentile": 90.0}
    lock["recipe"]["student"]["budget"] = {"macs_m": None, "params_m": 2.5, "latency_ms": bound}
    write_json(run / "recipe.lock.json", lock)
    budget = "at most 2.5 M parameters; p90 at most 5 ms in int8 on board (onnxruntime-cpu)"
    assert f"The budget was: {budget}." in markdown(read(run))
