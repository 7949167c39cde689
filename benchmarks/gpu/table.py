"""Which pieces of `python -m benchmarks.gpu` have a GPU behind them, from the committed lines alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.gpu.pieces import pieces

KIND = "gpu"


def markdown(lines: Iterable[dict[str, Any]]) -> str:
    """One row a piece: the GPU and the commit of its newest complete line, or that it is missing."""
    newest = {line["piece"]: line for line in lines if line.get("complete")}
    rows = ["| piece | measured on | commit |", "|---|---|---|"]
    for piece in pieces(rehearsal=False):
        line = newest.get(piece.name)
        rows.append(
            f"| {piece.name} | {line['where']} | {line['commit']} |"
            if line
            else f"| {piece.name} | missing: no GPU | |"
        )
    return "\n".join(rows)
