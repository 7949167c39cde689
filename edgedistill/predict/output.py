"""Predictions as text, CSV and JSON, written one by one."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from edgedistill.predict.student import Prediction

FORMULA = (
    "=",
    "+",
    "-",
    "@",
    "\t",
    "\r",
)  # a spreadsheet takes a cell that begins so for a formula (OWASP, "CSV Injection")
Lines = Iterator[str]


def text(predictions: Iterable[Prediction], top: int) -> Lines:
    """A line for each picture: path, class or `unknown`, probability, then the next most probable classes."""
    for prediction in predictions:
        answer = f"unknown ({prediction.label})" if prediction.unknown else prediction.label
        pairs = [(answer, prediction.probability), *prediction.top(top)[1:]]
        yield "  ".join([str(prediction.path), *(f"{label}  {100 * share:.1f} %" for label, share in pairs)])


def as_csv(predictions: Iterable[Prediction], top: int) -> Lines:
    """A header, and a row for each picture; a cell that a spreadsheet would compute begins with an apostrophe."""
    others = range(2, top + 1)
    more = [f"{name}_{place}" for place in others for name in ("label", "probability")]
    yield _row(["path", "label", "best", "probability", "unknown", *more])
    for prediction in predictions:
        label = "" if prediction.unknown else prediction.label
        cells: list[Any] = [str(prediction.path), label, prediction.label, f"{prediction.probability:.6f}"]
        cells.append(str(prediction.unknown).lower())
        for name, share in prediction.top(top)[1:]:
            cells += [name, f"{share:.6f}"]
        yield _row(cells + [""] * (5 + len(more) - len(cells)))


def as_json(predictions: Iterable[Prediction], top: int) -> Lines:
    """A JSON list, a line for each picture."""
    separator = "["
    for prediction in predictions:
        yield separator + json.dumps(entry(prediction, top))
        separator = ","
    yield "]" if separator == "," else "[]"


def as_jsonl(predictions: Iterable[Prediction], top: int) -> Lines:
    """A JSON object on a line for each picture."""
    for prediction in predictions:
        yield json.dumps(entry(prediction, top))


def entry(prediction: Prediction, top: int = 1) -> dict[str, Any]:
    """A prediction as plain JSON: `label` is None where it is unknown, `best` is the most probable class."""
    plain: dict[str, Any] = {
        "path": None if prediction.path is None else str(prediction.path),
        "label": None if prediction.unknown else prediction.label,
        "best": prediction.label,
        "probability": prediction.probability,
        "unknown": prediction.unknown,
    }
    if top > 1:
        plain["top"] = [{"label": label, "probability": share} for label, share in prediction.top(top)]
    return plain


WRITERS: dict[str, Callable[[Iterable[Prediction], int], Lines]] = {
    "text": text,
    "csv": as_csv,
    "json": as_json,
    "jsonl": as_jsonl,
}


def _row(cells: list[Any]) -> str:
    buffer = io.StringIO()
    # with an empty lineterminator Python before 3.13 quotes no line break
    csv.writer(buffer, lineterminator="\r\n").writerow([_inert(str(cell)) for cell in cells])
    return buffer.getvalue().removesuffix("\r\n")


def _inert(cell: str) -> str:
    return f"'{cell}" if cell.startswith(FORMULA) else cell
