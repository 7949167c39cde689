"""The suite's plots as small SVG files: differences to transfer by target and method, and the rankers' regret.

The same values always give the same bytes under one version of matplotlib. Versions differ in bytes, so what says
whether a file is current is the hash in it: of the values drawn and of this module's text.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.suite import contrasts, rankers
from benchmarks.suite.board import Board
from benchmarks.suite.statistics import Across, Paired

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
PANELS_A_ROW = 4
Row = tuple[str, float, float, float]  # label, mean, low, high


def pictures(board: Board) -> dict[str, str]:
    """File name -> SVG, of what there is to draw."""
    drawn = {f"differences_{board.profile}.svg": differences(board), f"regret_{board.profile}.svg": regrets(board)}
    return {name: svg for name, svg in drawn.items() if svg is not None}


def differences(board: Board) -> str | None:
    """One panel a method: points over transfer on each target (t-interval), and their mean (bootstrap interval)."""
    names = [name for name in contrasts.ordered(board) if name != "transfer"]
    found = {name: contrasts.difference(board, name, "transfer") for name in names}
    panels = {name: _targets(board.targets, one) for name, one in found.items() if one is not None}
    return _draw(panels, "points over transfer, 95 % interval") if panels else None


def _targets(targets: Sequence[str], one: Across) -> list[Row]:
    """The mean first, then every target; one that was not measured keeps an empty row."""
    empty = Paired(n=0, mean=np.nan, low=np.nan, high=np.nan, p=np.nan)
    pairs = [(target, one.by_target.get(target, empty)) for target in targets]
    return [
        ("mean of targets", one.mean, one.low, one.high),
        *((name, pair.mean, pair.low, pair.high) for name, pair in pairs),
    ]


def regrets(board: Board) -> str | None:
    """One panel: every ranker's regret in points with its bootstrap interval; 0 is the oracle."""
    judged = [(one.name, one.regret) for one in rankers.judge(board) if one.regret is not None]
    rows = [(name, one.mean, one.low, one.high) for name, one in judged]
    return _draw({"regret": rows}, "points lost against the best source, 95 % interval") if rows else None


def _draw(panels: dict[str, list[Row]], label: str) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    columns = min(PANELS_A_ROW, len(panels))
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
    """Dots with intervals, the first row marked; an interval that has no ends is not drawn."""
    axes.set_title(title, loc="left", fontweight="bold")
    axes.axvline(0, color="#555555", linewidth=0.8)
    for at, (_, mean, low, high) in enumerate(rows):
        colour = RED if at == 0 else BLUE
        if np.isfinite(low) and np.isfinite(high):
            axes.hlines(at, low, high, color=colour, linewidth=1.4)
        if np.isfinite(mean):
            axes.plot([mean], [at], "D" if at == 0 else "o", color=colour, markersize=4)
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.tick_params(length=0)
    axes.grid(visible=False, axis="y")


def _svg(figure: Any, mark: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Description": f"values {mark}"})
    return buffer.getvalue()


def digest(panels: dict[str, list[Row]], label: str) -> str:
    """sha256 of the values, rounded to a thousandth of a point, and of how they are drawn."""
    rounded = {
        title: [(name, *(f"{value:.3f}" for value in values)) for name, *values in rows]
        for title, rows in panels.items()
    }
    text = repr((rounded, label)) + Path(__file__).read_text(encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def mark(svg: str) -> str:
    """The hash that an SVG of this module carries; "" where it carries none."""
    found = re.search(r"values ([0-9a-f]{64})", svg)
    return found[1] if found else ""
