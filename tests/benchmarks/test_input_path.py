"""The benchmark of the input path: a line in small, its table by hand, and that nothing stated is called measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import input_path, lines

MACHINE = {"cpu": "X", "cores": 2, "commit": "abc"}


def test_line_in_small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"SIZES_PX": (32,), "ROUNDS": 2, "SECONDS": 0.01, "PHOTOS": (((64, 48), 3),)}
    settings["WORKERS"] = (("1 process", "process", 1), ("2 threads", "thread", 2))
    for name, setting in settings.items():
        monkeypatch.setattr(input_path, name, setting)
    monkeypatch.setattr(lines, "RESULTS", tmp_path)
    assert input_path.main(["--gpu-images", "100", "--gpu-px", "64"]) == 0
    (line,) = lines.read(input_path.KIND)
    rates = line["images_per_second"]["32"]
    assert all(len(rates[name]) == 2 and min(rates[name]) > 0 for name in ("gathered", "augmented"))
    assert line["stated"] == {"images_per_second": 100.0, "px": 64, "by": "the caller"}
    (photos,) = line["decoding"]
    assert {name: len(seconds) for name, seconds in photos["seconds"].items()} == {"1 process": 2, "2 threads": 2}
    assert "| 32 px |" in input_path.table([line])


def test_table_by_hand() -> None:
    line = {
        "batch": 64,
        "ahead": 3,
        "pinned": False,
        "threads": 2,
        # medians 4000 and 500; the GPU takes 1000 (224 / 112)^2 = 4000
        "images_per_second": {"112": {"gathered": [4000.0, 9000.0, 1.0], "augmented": [500.0]}},
        "stated": {"images_per_second": 1000.0, "px": 224, "by": "its maker"},
        "decoding": [
            {"photo": [4000, 3000], "images": 8, "bytes": 16_000_000, "seconds": {"1 process": [1.0, 4.0, 2.0]}}
        ],
    }
    text = input_path.table([{**line, "batch": 1, **MACHINE}, {**line, **MACHINE}])
    assert "| 112 px | 4,000 | 500 | 4,000 | 1.00 |" in text and "| 4000 x 3000 (2.00 MB) | 4.0 |" in text
    assert "stated, not measured: 1,000 images/s (its maker)" in text and "Batches of 64" in text
    assert "not pinned, without a GPU" in text


def test_without_a_line_nothing_is_said() -> None:
    assert input_path.table([]) == "Not measured yet."
