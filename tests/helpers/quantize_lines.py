"""Result lines of benchmarks/quantize, for the tests of its tables."""

from __future__ import annotations

from typing import Any

Line = dict[str, Any]
QUICK = [3.0, 2.9, 3.1]


def line(artefact: str, top1: float = 0.7, ratio: list[float] | None = None, **fields: Any) -> Line:
    """A model's result line as `run` writes it."""
    return {
        "student": "resnet18",
        "artefact": artefact,
        "ours": artefact.startswith("ours"),
        "n_test": 100,
        "top1": top1,
        "drop_points": [0.1, -0.25, 0.45],
        "agreement": 0.99,
        "simulated": False,
        "size_mb": 2.5,
        "versions": {},
        "runtime": {},
        "facts": {},
        "samples_ms": [[[1.0, 3.0], [2.0, 2.0]], [[9.0, 1.0]]],
        "ratio_to_fp32": ratio,
        "untimed": None,
        **fields,
    }


FP32 = line("fp32", 0.71, drop_points=[0.0, 0.0, 0.0])
REFUSED = {"facts": {"kept": False}}


def by_name(*lines: Line) -> dict[str, Line]:
    return {fields["artefact"]: fields for fields in lines}


def rows(text: str) -> dict[str, list[str]]:
    """First cell -> the other cells of a Markdown table."""
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines() if row[:1] == "|"]
    return {first: rest for first, *rest in cells}
