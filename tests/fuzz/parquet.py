"""Parquet files, as the data kind `hf` lists them with the library `datasets`, and the first pictures opened."""

from __future__ import annotations

import functools
import io
import json
import shutil
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from edgedistill.data import datasets
from edgedistill.recipe.data_section import Data
from tests.fuzz.kind import CANARY, Kind
from tests.fuzz.mutations import PLACES, TEXTS, leaf, mangled

ROWS = 6


def png(number: int) -> bytes:
    """An encoded picture."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 1, 2)).save(stream, "png")
    return stream.getvalue()


def written(columns: dict[str, Any], features: Any = None) -> bytes:
    """A parquet file with the features of `datasets` in its metadata."""
    table = pa.table(columns)
    if features is not None:
        about = {"info": {"features": features}} if isinstance(features, dict) else features
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()


IMAGE = {"_type": "Image"}
NAMES = {"_type": "ClassLabel", "names": ["cat", "dog"]}
PRINTABLE = [text for text in TEXTS if text.isprintable()]
ODD_LABELS: tuple[list[Any], ...] = (
    [-1, 0, 1, 5, -7, 2**62],
    [0.0, float("nan"), 1.0, 2.0, None, float("inf")],
    ["", "a", "\0", "b\n", "\x1b[31m", None],
    [[1], [], [2], None, [1, 2], [3]],
    [{"a": 1}] * ROWS,
    [True, False, None, True, False, True],
    [b"a", b"\xff", None, b"", b"b", b"c"],
    [None] * ROWS,
    ["9" * 5000, "1"] * 3,
)
CELLS = [{"bytes": png(number), "path": f"{number}.png"} for number in range(ROWS)]


def valid() -> bytes:
    """Six pictures of two classes."""
    return written({"image": CELLS, "label": [number % 2 for number in range(ROWS)]}, {"image": IMAGE, "label": NAMES})


def make(random: Random) -> bytes:
    """A file with changed bytes, odd labels, odd pictures or odd features."""
    change = random.random()
    if change < 0.35:
        return mangled(random, valid())
    labels: list[Any] = [number % 2 for number in range(ROWS)]
    images: list[Any] = [dict(cell) for cell in CELLS]
    label_type: Any = random.choice((None, NAMES, {"dtype": "string", "_type": "Value"}))
    if change < 0.6:
        labels = random.choice((*ODD_LABELS, ["", "a", "b", "a", random.choice(PRINTABLE), random.choice(PRINTABLE)]))
    elif change < 0.8:
        cell = random.choice(
            (
                None,
                {
                    "bytes": None,
                    "path": random.choice((*PLACES, "0.png", f"https://{CANARY}.invalid/a.png", "pipe:x", "a\0")),
                },
                {"bytes": b"", "path": None},
                {"bytes": mangled(random, png(1)), "path": "../x.png"},
                {"bytes": b"%!PS-Adobe-3.0 EPSF-3.0\n", "path": "a.eps"},
            )
        )
        images[random.randrange(ROWS)] = cell
        if random.random() < 0.3:
            images = [random.choice((*PLACES, "train.parquet", "", None, "a\0b", "\x1b[31m")) for _ in range(ROWS)]
    names = random.choice((["a"], [], ["a", "a"], ["", " "], "ab", None, [1, 2], ["x" * 5000, "b"], ["a", "b", "c"]))
    if random.random() < 0.3:
        label_type = {
            "_type": random.choice(("ClassLabel", "Value", "Sequence", "Image", "Pickle", "os.system")),
            "names": names,
        }
    features: Any = {"image": IMAGE, "label": label_type} if label_type else None
    if features and random.random() < 0.2:
        features = random.choice(([], {"image": 3}, {"image": IMAGE}, {"info": leaf(random) and str(leaf(random))}))
    return written({"image": images, "label": labels}, features)


def cases() -> list[bytes]:
    """Crafted files: no parquet at all, no rows, one class, columns of other names."""
    whole = valid()
    return [
        *(
            b"",
            b"PAR1",
            b"PAR1" * 3,
            whole[:-1],
            whole[:100],
            b"PAR1" + bytes(100) + b"\xff\xff\xff\x7fPAR1",
            b"\x80\x04\x95",
        ),
        written({"image": CELLS[:0], "label": pa.array([], pa.int64())}),
        written({"image": CELLS, "label": [0] * ROWS}),
        written({"picture": CELLS, "class": [0, 1] * 3}),
        written({"image": CELLS, "label": [str(number) * 5 for number in range(ROWS)]}),
        written({"image": [1, 2], "label": [0, 1]}),
        *(written({"image": CELLS, "label": labels}) for labels in ODD_LABELS),
        *(written({"image": CELLS, "label": labels}, {"image": IMAGE, "label": NAMES}) for labels in ODD_LABELS[:2]),
        *(written({"image": [text] * ROWS, "label": [0, 1] * 3}) for text in (*PLACES, "x" * 300, "a\0b")),
    ]


def call(path: Path) -> None:
    """List the folder of the file, and open its first pictures; the library's cache is in the sandbox."""
    import datasets as library

    cache = path.parents[1] / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    section = Data.model_validate({"kind": "hf", "path": "set", "test": None})
    library.disable_progress_bars()
    with mock.patch.object(library.config, "HF_DATASETS_CACHE", cache):
        dataset = datasets.listing(section, path.parents[1])
        assert set(dataset.train.labels_N) <= set(range(-1, len(dataset.classes))), dataset.train.labels_N
        for row in range(min(3, len(dataset.train))):
            decode(dataset.train.load, row)


def decode(load: Any, row: int) -> None:
    """Open a picture: what it raises is kept by the store, as the reason why it is left out."""
    try:
        load(row).close()
    except MemoryError:
        raise
    except Exception:  # as in the image store
        return


KIND = Kind(
    name="parquet",
    file="set/train.parquet",
    valid=valid,
    make=make,
    call=call,
    inputs=300,
    cases=functools.cache(cases),
)
