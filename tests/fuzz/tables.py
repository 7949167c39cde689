"""CSV files: listed as a data set, and the first picture opened."""

from __future__ import annotations

import csv
import functools
import io
from pathlib import Path
from random import Random

from PIL import Image

from edgedistill.data import datasets
from edgedistill.data.tables import DELIMITERS
from edgedistill.recipe.data_section import Data
from tests.fuzz.kind import Kind
from tests.fuzz.mutations import COMMANDS, PLACES, TEXTS, changed_text, mangled

ROWS = [["path", "label", "split"], *([f"{index}.png", "ab"[index % 2], "train"] for index in range(8))]
VALID = "\n".join(",".join(row) for row in ROWS).encode()
TOKENS = (
    *(
        '"',
        '""',
        "'",
        ",",
        ";",
        "\t",
        "|",
        "\r",
        "\n",
        "\r\n",
        "\r\r\n",
        "\0",
        "\ufeff",
        "\x1a",
        "\\",
        '",',
        ',"',
        '"\n"',
    ),
    *("NaN", "NULL", "#N/A", "=cmd()", "-1", "0.5", "1e3", "²", "٣", "  ", "path", "label", "train", "test", "val"),
    *("9.png", "0.png", "a/../0.png", "x" * 140_000, *TEXTS, *COMMANDS, *PLACES),
)


def prepare(folder: Path) -> None:
    """The pictures of the table."""
    for index in range(8):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / f"{index}.png")


def call(path: Path) -> None:
    """List the table with a delimiter and columns that its own bytes choose, and open its first picture."""
    content = path.read_bytes()
    random = Random(content)
    first_line = content.partition(b"\n")[0].decode("utf-8", "replace")
    options = {"delimiter": max(DELIMITERS, key=first_line.count)}
    if content != VALID and random.random() < 0.1:
        options["delimiter"] = random.choice((*DELIMITERS, "", ",,", '"', "\n", "é"))
    if content != VALID and random.random() < 0.2:
        options["split"] = "split"
    dataset = datasets.listing(Data.model_validate({"kind": "csv", "file": path.name, **options}), path.parent)
    assert len(dataset.classes) >= 2 and set(dataset.train.labels_N) <= set(range(-1, len(dataset.classes)))
    if len(dataset.train):
        try:
            dataset.train.load(0).close()
        except OSError:
            assert not dataset.train.names[0].endswith(".png")


def written(random: Random) -> str:
    """The table as one of csv's dialects writes it."""
    stream = io.StringIO()
    quoting = random.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    end = random.choice(("\n", "\r\n", "\r"))
    csv.writer(stream, delimiter=random.choice(",,,;\t|"), quoting=quoting, lineterminator=end).writerows(ROWS)
    return stream.getvalue()


def make(random: Random) -> bytes:
    """A changed table, in UTF-8 or another encoding."""
    text, change = written(random), random.random()
    if change < 0.1:
        return mangled(random, text.encode())
    code = "utf-8" if change < 0.95 else random.choice(("utf-16", "utf-32", "latin-1", "utf-8-sig", "cp1252"))
    return changed_text(random, text, TOKENS).encode(code, "surrogatepass" if code.startswith("utf") else "replace")


def cases() -> list[bytes]:
    """Crafted tables: numbers as labels, long lines, many columns, none."""
    header = "path,label\n"
    labels = ("9" * 5000, "1e5", "-1", "٣", "²", "None", "a\x1b[31mb", '"a\nb"', '"a,b"', "\u2028")
    texts = [f"{header}0.png,{label}\n1.png,b\n" for label in labels]
    texts += [f"{header}0.png,{'9' * 5000}\n1.png,2\n", f"{header}0.png,{'0' * 150}1\n1.png,1\n"]
    texts += [
        f'{header}"0.png\n",a\n1.png,b\n',
        f"{header}{'x' * 300}.png,a\n",
        f"{header}../../etc/passwd,a\n1.png,b\n",
    ]
    texts += [
        "",
        "\n\n",
        header,
        "," * 100_000,
        "\n".join(["path,label", *["0.png,a"] * 5000]),
        '"' * 10_001,
        "path,label,",
    ]
    texts += [
        f"{','.join(f'c{n}' for n in range(20_000))}\n",
        f"{header}0.png,a\n{'a,b,' * 50_000}\n",
        f"{header}/dev/zero,a\n",
    ]
    return [text.encode() for text in texts]


KIND = Kind(
    name="csv",
    file="labels.csv",
    valid=lambda: VALID,
    make=make,
    call=call,
    inputs=2000,
    prepare=prepare,
    cases=functools.cache(cases),
)
