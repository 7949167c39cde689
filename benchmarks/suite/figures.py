"""The suite's plots as small SVG files: differences to transfer by target and method, labels saved, rankers' regret.

The same values always give the same bytes under one version of matplotlib. Versions differ in bytes, so each file has a
hash of the plotted values and of this module's text, which decides whether the file is current.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.suite import contrasts, evidence, rankers
from benchmarks.suite.board import Board
from benchmarks.suite.statistics import Paired, Summary

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "suite",
    "text.parse_math": False,
    "font.size": 9.0,
    "font.family": ["sans-serif"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.0,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
BLUE, RED = "#1f5fa8", "#b5412a"
PANELS_PER_ROW = 4
Row = tuple[str, float, float, float]  # label, mean, low, high


def draw(board: Board) -> dict[str, str]:
    """File name -> SVG of every plot that has values."""
    plots = {evidence.LABELS_PLOT.format(profile=board.profile): labels_saved(board)}
    if board.profile not in evidence.CLAIMS:  # the page of the evidence has tables
        plots |= {
            f"differences_{board.profile}.svg": differences(board),
            f"regret_{board.profile}.svg": regrets(board),
        }
    return {name: svg for name, svg in plots.items() if svg is not None}


def differences(board: Board) -> str | None:
    """One panel a method: points over transfer on each target (t-interval), and their mean (bootstrap interval)."""
    names = [name for name in contrasts.ranked_methods(board) if name != "transfer"]
    summaries = {name: contrasts.difference(board, name, "transfer") for name in names}
    panels = {name: _rows(board.targets, summary) for name, summary in summaries.items() if summary is not None}
    return _figure(panels, "points over transfer, 95 % interval") if panels else None


def _rows(targets: Sequence[str], summary: Summary) -> list[Row]:
    """The mean first, then every target; a target that was not measured has an empty row."""
    empty = Paired(n=0, mean=np.nan, low=np.nan, high=np.nan, p=np.nan)
    pairs = [(target, summary.by_target.get(target, empty)) for target in targets]
    return [
        ("mean of targets", summary.mean, summary.low, summary.high),
        *((name, pair.mean, pair.low, pair.high) for name, pair in pairs),
    ]


def regrets(board: Board) -> str | None:
    """One panel: every ranker's regret in points with its bootstrap interval; 0 is the oracle."""
    summaries = [
        (ranker.name, ranker.regret) for ranker in rankers.evaluate_rankers(board) if ranker.regret is not None
    ]
    rows = [(name, regret.mean, regret.low, regret.high) for name, regret in summaries]
    return _figure({"regret": rows}, "points lost against the best source, 95 % interval") if rows else None


def labels_saved(board: Board) -> str | None:
    """One panel: points of auto over transfer with one to eight times the labels, on the targets that both have."""
    if not evidence.more_labels(board):
        return None
    rows = []
    for label, summary in evidence.auto_beside_labels(board).items():
        targets = len(summary.by_target)
        shown = f"{label}, {targets} target{'s' if targets > 1 else ''}"
        rows.append((shown, summary.mean, summary.low, summary.high))
    return _figure({"labels": rows}, "points of auto over it, 95 % interval") if rows else None


def _figure(panels: dict[str, list[Row]], label: str) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    columns = min(PANELS_PER_ROW, len(panels))
    lines, height = -(-len(panels) // columns), 0.2 * len(next(iter(panels.values()))) + 0.5
    with mpl.rc_context(STYLE):
        figure = Figure(
            figsize=(1.6 + 1.8 * columns + (2.0 if columns == 1 else 0.0), lines * height + 0.4), layout="constrained"
        )
        axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for panel, (title, rows) in zip(axes, panels.items(), strict=False):
            _panel(panel, title, rows)
        for panel in axes[len(panels) :]:
            panel.set_visible(False)
        for panel in axes[len(panels) - columns : len(panels)]:  # the last of each column, above a hidden one too
            panel.tick_params(labelbottom=True)
        axes[0].set_ylim(len(next(iter(panels.values()))) - 0.5, -0.5)
        figure.supxlabel(label, fontsize=9)
        return _svg(figure, digest(panels, label))


def _panel(axes: Any, title: str, rows: Sequence[Row]) -> None:
    """Plot dots with intervals, the first row highlighted; an interval without finite ends is left out."""
    axes.set_title(title, loc="left", fontweight="bold")
    axes.axvline(0, color="#555555", linewidth=0.8)
    for position, (_, mean, low, high) in enumerate(rows):
        color = RED if position == 0 else BLUE
        if np.isfinite(low) and np.isfinite(high):
            axes.hlines(position, low, high, color=color, linewidth=1.4)
        if np.isfinite(mean):
            axes.plot([mean], [position], "D" if position == 0 else "o", color=color, markersize=4)
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.tick_params(length=0)
    axes.grid(visible=False, axis="y")


def _svg(figure: Any, values_hash: str) -> str:
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", metadata={"Date": None, "Creator": None, "Description": f"values {values_hash}"}
    )
    return buffer.getvalue()


def digest(panels: dict[str, list[Row]], label: str) -> str:
    """sha256 of the values, rounded to a thousandth of a point, and of this module's text."""
    rounded = {
        title: [(name, *(f"{number:.3f}" for number in numbers)) for name, *numbers in rows]
        for title, rows in panels.items()
    }
    text = repr((rounded, label)) + Path(__file__).read_text(encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def values_hash(svg: str) -> str:
    """The hash in an SVG of this module; "" where there is none."""
    match = re.search(r"values ([0-9a-f]{64})", svg)
    return match[1] if match else ""
