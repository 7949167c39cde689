"""Predictions as text, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np

from edgedistill.predict import output
from edgedistill.predict.student import Prediction

PREDICTIONS = [
    Prediction(
        path=Path(name),
        label=label,
        probability=max(shares),
        unknown=unknown,
        classes=("=cat", "dog", "-eel"),
        probabilities_C=np.array(shares),
    )
    for name, label, unknown, shares in (
        ("@a, b.png", "=cat", False, (0.7, 0.1, 0.2)),
        ("+c.png", "dog", True, (0.3, 0.4, 0.3)),
    )
]


def test_csv_is_safe_in_a_spreadsheet_and_has_a_row_for_each_picture() -> None:
    rows = list(csv.reader(output.as_csv(PREDICTIONS, 3)))
    assert rows[0][:5] == ["path", "label", "best", "probability", "unknown"]
    assert rows[1] == ["'@a, b.png", "'=cat", "'=cat", "0.700000", "false", "'-eel", "0.200000", "dog", "0.100000"]
    assert rows[2][:6] == ["'+c.png", "", "dog", "0.400000", "true", "'=cat"]
    assert {len(row) for row in rows} == {9}


def test_json_and_json_lines_say_the_same() -> None:
    listed = json.loads("".join(output.as_json(PREDICTIONS, 2)))
    assert listed == [json.loads(line) for line in output.as_jsonl(PREDICTIONS, 2)]
    assert listed[1]["label"] is None and listed[0]["top"][1] == {"label": "-eel", "probability": 0.2}
    assert json.loads("".join(output.as_json([], 1))) == [] and "top" not in output.entry(PREDICTIONS[0])


def test_text_names_the_next_classes() -> None:
    assert list(output.text(PREDICTIONS, 2)) == [
        "@a, b.png  =cat  70.0 %  -eel  20.0 %",
        "+c.png  unknown (dog)  40.0 %  =cat  30.0 %",
    ]


def test_line_breaks_stay_in_a_cell() -> None:
    made = Prediction(path=Path("a\nb\rc.png"), label="bolt", probability=0.5, classes=("bolt",))
    rows = list(csv.reader(io.StringIO("\n".join(output.as_csv([made], 1)), newline="")))
    assert [row[:2] for row in rows] == [["path", "label"], ["a\nb\rc.png", "bolt"]]
