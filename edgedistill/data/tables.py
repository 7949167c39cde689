"""CSV files with a header: the rows' used columns, or one line that says where the file is wrong and how to mend it."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgedistill.data.listing import refuse_special
from edgedistill.errors import InputError, first_names
from edgedistill.recipe.options import did_you_mean, shortened

DELIMITERS = (",", ";", "\t", "|")
# written for an empty cell by pandas, databases and spreadsheets
EMPTY_CELL_TEXTS = frozenset({"NaN", "nan", "NULL", "None", "N/A", "NA", "<NA>", "#N/A"})
END = "\x1a\x1a"  # fed to the reader behind the last line: it becomes a row of its own unless a quote is open
UTF16 = (b"\xff\xfe", b"\xfe\xff")
ENCODING_FIX = "name a CSV file in UTF-8"
UNUSABLE = "unusable"  # in a column `how`: the picture shows nothing that can be labeled
MAX_SHOWN = 10
MAX_LABEL = 200  # characters of a class's name


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a CSV file: the line that it begins on, from 1, and the text of each used column."""

    line: int
    cells: dict[str, str]


def read_rows(file: Path, columns: Sequence[str], *, label: str, delimiter: str, least: int = 1) -> list[Row]:
    """The rows of a CSV file with a header; rows without any text are left out.

    Args:
        file: the CSV file, in UTF-8 with or without a byte order mark.
        columns: names of the used columns.
        label: that of the labels, where the text of an empty cell (NaN, NULL, ...) is refused.
        delimiter: character between two columns.
        least: number of rows that there must be, 0 or 1.

    Raises:
        InputError: the file cannot be read or is no CSV file; a used column is missing or named twice; a row has more
            or fewer fields than the header; a quote is not closed; or a label is the text of an empty cell.
    """
    numbered = _fields(file, _text(file), delimiter)
    header_line, header = next(numbered, (1, []))
    _check_header(f"{file}:{header_line}", header, columns, delimiter)
    width = _named_width(header)
    rows = []
    for line, fields in numbered:
        _check_width(f"{file}:{line}", fields, width, delimiter)
        cells = {name: fields[header.index(name)].strip() for name in columns}
        for name, text in cells.items():
            if "\n" in text or "\r" in text:  # a later quote closed it, and the rows between are lost
                raise InputError(f"{file}:{line}: {name} runs on over the next line", "close the quote")
        rows.append(Row(line=line, cells=cells))
    if len(rows) < least:
        raise InputError(f"data.file: {file} has a header and no rows", "add a row an image")
    _check_lengths(file, rows, label)
    refuse_stand_ins(file, rows, label, "leave the cell empty for no label, or rename the class")
    return rows


def header(file: Path, delimiter: str = ",") -> list[str]:
    """The names of a table's columns; none if it cannot be read, which reading its rows explains."""
    try:
        refuse_special(file)
        with file.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.reader(stream, delimiter=delimiter)
            return next((fields for fields in rows if any(field.strip() for field in fields)), [])
    except (OSError, TypeError, ValueError, csv.Error):
        return []


def _text(file: Path) -> str:
    try:
        refuse_special(file)
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"data.file: {file}: cannot be read ({error})", ENCODING_FIX) from None
    if content.startswith(UTF16):
        raise InputError(f"data.file: {file}: is in UTF-16", "save it as CSV in UTF-8")
    if b"\0" in content:
        raise InputError(f"data.file: {file}: is a binary file, no text", ENCODING_FIX)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"data.file: {file}: cannot be read ({error})", ENCODING_FIX) from None


def _fields(file: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield every row that holds text: the line that it begins on, and its fields."""
    try:
        reader = csv.reader(itertools.chain(io.StringIO(text, newline=""), [END]), delimiter=delimiter)
    except (TypeError, ValueError) as error:
        raise InputError(f"data.delimiter: {delimiter!r}: {error}", 'set one character, such as ";"') from None
    line = 1
    try:
        for fields in reader:
            if fields == [END]:
                return
            if fields[-1:] and fields[-1].endswith(END):
                break
            if any(field.strip() for field in fields):
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{file}:{line}: {error}", "name a CSV file, and close every quote") from None
    raise InputError(f"{file}:{line}: a quote is not closed", "close it")


def _named_width(header: Sequence[str]) -> int:
    """Number of columns without the unnamed last ones, which a delimiter at the end of each line makes."""
    return max((index + 1 for index, name in enumerate(header) if name.strip()), default=0)


def _check_header(place: str, header: Sequence[str], columns: Iterable[str], delimiter: str) -> None:
    for name in columns:
        if header.count(name) > 1:
            raise InputError(f"{place}: names the column {name} twice", "rename one of them")
        if name not in header:
            other = _other_delimiter(header, columns, delimiter)
            raise InputError(f"{place}: there is no column {name}{other or did_you_mean(name, header)}")


def _other_delimiter(header: Sequence[str], columns: Iterable[str], delimiter: str) -> str:
    """`; set delimiter: ";"` and its columns, if the header is one field that another delimiter divides."""
    if len(header) != 1:
        return ""
    line = header[0].replace('"', "")
    divided = {other: line.split(other) for other in DELIMITERS if other != delimiter and other in line}
    if not divided:
        return ""
    best = max(divided, key=lambda other: (len(set(columns) & set(divided[other])), len(divided[other])))
    columns_shown = first_names([shortened(name) for name in divided[best]], MAX_SHOWN)
    return f"; set delimiter: {json.dumps(best)}, which gives the columns {columns_shown}"


def _check_width(place: str, fields: Sequence[str], width: int, delimiter: str) -> None:
    used = max(_named_width(fields), min(len(fields), width))  # empty fields behind the last column are tolerated
    if used == width:
        return
    counts = f"has {used} field{'s' if used > 1 else ''}, and the header has {width}"
    if used > width:
        raise InputError(
            f"{place}: {counts}", f"quote the field that holds {json.dumps(delimiter)}, or set data.delimiter"
        )
    raise InputError(f"{place}: {counts}", "complete the row (an empty field for no label), or set data.delimiter")


def _check_lengths(file: Path, rows: Sequence[Row], label: str) -> None:
    for row in rows:
        length = len(row.cells[label])
        if length > MAX_LABEL:
            raise InputError(
                f"{file}:{row.line}: {label}: has {length} characters, and a label has {MAX_LABEL} at most",
                "close a quote, or name another column in data.label",
            )


def refuse_stand_ins(file: Path, rows: Sequence[Row], column: str, fix: str) -> None:
    """Refuse the text that other programs write for an empty cell.

    Raises:
        InputError: a cell of the column holds such a text; it names them, and how to mend it.
    """
    stand_ins = [row for row in rows if row.cells[column] in EMPTY_CELL_TEXTS]
    if stand_ins:
        texts = ", ".join(sorted({row.cells[column] for row in stand_ins}))
        count = f"{len(stand_ins)} row{'s' if len(stand_ins) > 1 else ''}"
        raise InputError(
            f"{file}:{stand_ins[0].line}: {column}: {texts} in {count}, which is the text of an empty cell", fix
        )
