"""The outcome of `edgedistill suggest`: a summary for the terminal, suggestions.csv, and a contact sheet in HTML.

The sheet is the audit's page with other content, so style, policy and escaping are the same.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from edgedistill.labels.suggestions import STRATEGIES
from edgedistill.labels.to_label import Suggestion, Suggestions
from edgedistill.report import plots
from edgedistill.report.audit import Group, Part, Thumbnail, sheet_html, sheet_text
from edgedistill.report.blocks import Block, format_block, wrap
from edgedistill.run.files import atomic, write_record

TEMPLATE = "suggest.html"
TABLE, RECORD, SHEET = "suggestions.csv", "suggestions.json", "suggestions.html"
COLUMNS = ("path", "label", "how", "why", "cluster", "guess", "sure")
NAMED = 5  # suggestions that the terminal names


def write(record: Suggestions, images_NHWC: np.ndarray, folder: Path) -> Path:
    """Write the table, the record and the sheet into a folder, each atomically; return the sheet's path.

    Args:
        record: the suggestions.
        images_NHWC: the squares that their rows index, uint8 [N, px, px, 3].
        folder: is made if it is missing.
    """
    page = html(record, images_NHWC)
    write_record(folder / RECORD, record)
    for name, content in ((TABLE, table(record)), (SHEET, page)):
        with atomic(folder / name) as temporary:
            temporary.write_text(content, encoding="utf-8", newline="")
    return folder / SHEET


def table(record: Suggestions) -> str:
    """The suggestions as CSV: a row each, with an empty column `label` to be filled in."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for entry in record.suggestions:
        sure = "" if entry.sure is None else f"{entry.sure:.3f}"
        writer.writerow((entry.path, "", entry.how, entry.why, entry.cluster, entry.guess, sure))
    return stream.getvalue()


def text(record: Suggestions) -> str:
    """The suggestions for a terminal: whether more labels pay, and the first ones by name."""
    named = [f"  {entry.path}  ({_reason(entry)})" for entry in record.suggestions[:NAMED]]
    more = len(record.suggestions) - NAMED
    named += [f"  and {more} more"] if more > 0 else []
    blocks = [format_block(block) for block in _blocks(record)]
    notes = [wrap(f"note: {note}") for note in record.notes]
    parts = (*blocks, "\n".join(named), "\n".join(notes))
    return sheet_text(record.name, record.source, _summary(record), parts=parts)


def html(record: Suggestions, images_NHWC: np.ndarray) -> str:
    """The suggestions as one self-contained HTML page, by cluster: pictures are inline, and it loads nothing."""
    return sheet_html(
        TEMPLATE, record, summary=_summary(record), blocks=_blocks(record), parts=[_part(record, images_NHWC)]
    )


def _summary(record: Suggestions) -> str:
    labels = sum(record.labels.values())
    random = sum(entry.how == "random" for entry in record.suggestions)
    return (
        f"{len(record.suggestions)} of {record.pictures:,} pictures to label next, {random} of them drawn at random; "
        f"{labels} have a label. It took {record.seconds:.0f} s."
    )


def _blocks(record: Suggestions) -> list[Block]:
    basis = f"features of {', '.join(record.sources)}" if record.sources else "small pixels"
    line = f"{record.strategy}: {STRATEGIES[record.strategy].about}; {basis}"
    lines = (line, record.more.text) if record.more else (line,)
    choice = Block(key="choice", title="Choice", lines=lines)
    if not record.labels:
        return [choice]
    rows = tuple((name, f"{count:,}") for name, count in record.labels.items())
    return [choice, Block(key="classes", title="Classes", header=("class", "labels"), rows=rows)]


def _part(record: Suggestions, images_NHWC: np.ndarray) -> Part:
    numbered = list(enumerate(record.suggestions, start=1))
    clusters = sorted({entry.cluster for entry in record.suggestions})
    groups = [
        Group(
            note=f"cluster {cluster}",
            images=tuple(
                _thumbnail(number, entry, images_NHWC) for number, entry in numbered if entry.cluster == cluster
            ),
        )
        for cluster in clusters
    ]
    note = "By cluster: pictures of one cluster look alike to the sources."
    return Part(title="Pictures to label", note=note, groups=tuple(groups), hidden="")


def _thumbnail(number: int, entry: Suggestion, images_NHWC: np.ndarray) -> Thumbnail:
    uri = plots.jpeg(np.asarray(images_NHWC[entry.row])) if entry.row >= 0 else ""
    return Thumbnail(uri=uri, lines=(f"{number}: {entry.path}", _reason(entry)))


def _reason(entry: Suggestion) -> str:
    guess = f"; {entry.guess}, {100 * entry.sure:.0f} %" if entry.sure is not None else ""
    return f"{entry.why}{guess}"
