"""What a report is made of: blocks with a title, a table and lines, figures in words, and how they fit a terminal."""

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
    """A titled part of the report: a note, a table (first column left, the others right), and lines below it."""

    key: str
    title: str
    note: str = ""
    header: Row = ()
    rows: tuple[Row, ...] = ()
    lines: tuple[str, ...] = ()


def titled(block: Block) -> str:
    """A block for a terminal: its title in capitals, and under it `body`."""
    first, space, rest = block.title.partition(" ")  # the rest may be a device's name, whose case matters
    return "\n".join([first.upper() + space + rest, *body(block)])


def body(block: Block) -> list[str]:
    """A block for a terminal without its title: note, table and lines, two spaces in."""
    lines = [wrap(block.note, "  ")] if block.note else []
    lines += [f"  {line}" for line in aligned(block.header, block.rows, WIDTH - 2)]
    return lines + [wrap(line, "  ") for line in block.lines]


def aligned(header: Row, rows: Sequence[Row], width: int = WIDTH) -> list[str]:
    """A table as lines: two spaces between columns, the first column left, the others right.

    Where it would be wider than `width`, the names of the first column are shortened, to twelve characters at least.
    """
    if not header:
        return []
    widths = [max(len(row[at]) for row in (header, *rows)) for at in range(len(header))]
    widths[0] = min(widths[0], max(12, width - sum(widths[1:]) - 2 * (len(widths) - 1)))
    cut = [(shorten(row[0], widths[0]), *row[1:]) for row in (header, *rows)]
    return [
        "  ".join(
            cell.rjust(wide) if at else cell.ljust(wide)
            for at, (cell, wide) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cut
    ]


def wrap(text: str, indent: str = "") -> str:
    """`text` in lines of at most WIDTH columns; paths and long words stay whole."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + ("  " if indent else ""),
        break_long_words=False,
        break_on_hyphens=False,
    )


def shorten(name: str, most: int) -> str:
    """`name` in at most `most` characters: the middle goes, since names of one family differ at their ends."""
    if len(name) <= most:
        return name
    tail = (most - 3) // 2
    return f"{name[: most - 3 - tail]}...{name[len(name) - tail :]}"


def clean(text: str) -> str:
    """`text` without what a terminal would obey or UTF-8 cannot hold: names come from strangers' files."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", "?", text)


def number(value: float) -> str:
    """About three significant digits, never in powers of ten: 0.123, 1.23, 12.3, 1234."""
    size = abs(value)
    return f"{value:.{3 if size < 1 else 2 if size < 10 else 1 if size < 100 else 0}f}"


def share(value: float) -> str:
    """A fraction as a percentage, rounded down: 100.0 % means every one."""
    return f"{math.floor(round(value * 1000, 6)) / 10:.1f} %"


def interval(accuracy: Accuracy, metric: str) -> str:
    """An accuracy with its 95 % interval: `91.2 % [88.9, 93.1]`."""
    low, high = accuracy.interval(metric)
    return f"{100 * accuracy.score(metric):.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def not_run(verb: str) -> str:
    """What a block says of a part that has not run yet."""
    return f"not run yet: edgedistill {verb}"
