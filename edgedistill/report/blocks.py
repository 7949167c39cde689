"""The blocks that a report consists of (title, table, lines), number formats, and layout for a terminal."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from edgedistill.records import Accuracy

WIDTH = 100
METRICS = {"top1": "top-1 accuracy", "balanced": "balanced accuracy"}

Row = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Block:
    """A titled part of the report: a note, a table (first column left-aligned, the others right), lines below it."""

    key: str
    title: str
    note: str = ""
    header: Row = ()
    rows: tuple[Row, ...] = ()
    lines: tuple[str, ...] = ()


def format_block(block: Block) -> str:
    """Format a block for a terminal: its title in capitals, then `format_body`."""
    first, space, rest = block.title.partition(" ")  # a device's name may follow, and its case matters
    return "\n".join([first.upper() + space + rest, *format_body(block)])


def format_body(block: Block) -> list[str]:
    """Format a block without its title as lines: note, table and lines, indented by two spaces."""
    lines = [wrap(block.note, "  ")] if block.note else []
    lines += [f"  {line}" for line in format_table(block.header, block.rows, WIDTH - 2)]
    return lines + [wrap(line, "  ") for line in block.lines]


def format_table(header: Row, rows: Sequence[Row], width: int = WIDTH) -> list[str]:
    """Format a table as lines: two spaces between columns, the first column left-aligned, the others right.

    If the table is wider than `width`, the names in the first column are shortened, to no less than 12 characters.
    """
    if not header:
        return []
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    widths[0] = min(widths[0], max(12, width - sum(widths[1:]) - 2 * (len(widths) - 1)))
    shortened = [(shorten(row[0], widths[0]), *row[1:]) for row in (header, *rows)]
    return [
        "  ".join(
            cell.rjust(cell_width) if column else cell.ljust(cell_width)
            for column, (cell, cell_width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in shortened
    ]


def wrap(text: str, indent: str = "") -> str:
    """Wrap `text` to lines of at most WIDTH columns; paths and long words are not broken."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + ("  " if indent else ""),
        break_long_words=False,
        break_on_hyphens=False,
    )


def shorten(name: str, max_length: int) -> str:
    """Shorten `name` to `max_length` characters by cutting its middle: names of one family differ at their ends."""
    if len(name) <= max_length:
        return name
    tail = (max_length - 3) // 2
    return f"{name[: max_length - 3 - tail]}...{name[len(name) - tail :]}"


def clean(text: str) -> str:
    """Replace control characters and characters that UTF-8 cannot encode: names come from untrusted files."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", "?", text)


def one_line(name: str) -> str:
    """A name that may hold anything as one clean line: a table has a line for each row."""
    return " ".join(clean(name).split())


def number(figure: float) -> str:
    """Format a number with about three significant digits, without an exponent: 0.123, 1.23, 12.3, 1234."""
    size = abs(figure)
    return f"{figure:.{3 if size < 1 else 2 if size < 10 else 1 if size < 100 else 0}f}"


def share(fraction: float) -> str:
    """Format a fraction as a percentage, rounded down, so that 100.0 % means all."""
    return f"{math.floor(round(fraction * 1000, 6)) / 10:.1f} %"


def interval(accuracy: Accuracy, metric: str) -> str:
    """Format an accuracy with its 95 % interval: `91.2 % [88.9, 93.1]`."""
    low, high = accuracy.interval(metric)
    return f"{100 * accuracy.score(metric):.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def not_run(verb: str) -> str:
    """The line for a part that has not run yet, with the command that runs it."""
    return f"not run yet: edgedistill {verb}"
