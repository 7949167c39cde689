"""What every drawing of the HTML report shares: its style, and inline SVG that follows the page's light or dark colors.

matplotlib is imported only inside the functions that draw; the same figure always gives the same bytes.
"""

from __future__ import annotations

import functools
import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")

WIDTH_IN = 5.0  # 360 points: about the width of a phone, so that the page needs no zooming
# Plots are drawn in these placeholder colors; CSS variables, which follow light and dark mode, replace them.
INK, FAINT = "#010203", "#040506"
SERIES = ("#0a0001", "#0a0002", "#0a0003", "#0a0004", "#0a0005", "#0a0006")
VARIABLES = {INK: "var(--ink)", FAINT: "var(--line)"} | {
    color: f"var(--c{index})" for index, color in enumerate(SERIES, start=1)
}
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9.0,
    "font.family": ["sans-serif"],
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 9.0,
    "axes.titlecolor": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "lines.linewidth": 1.5,
    "axes.axisbelow": True,
}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A plot: inline SVG, and a text alternative for screen readers."""

    svg: str
    alt: str


def with_style(draw: Callable[..., T]) -> Callable[..., T]:
    """Decorate a function to draw in the page's style: rc settings are read both while drawing and while saving."""

    @functools.wraps(draw)
    def wrapper(*arguments: Any) -> T:
        import matplotlib as mpl

        with mpl.rc_context(STYLE), warnings.catch_warnings():
            # names may contain letters that matplotlib's font lacks; the browser sets the text in its own font
            warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
            return draw(*arguments)

    return wrapper


def new_figure(height_in: float) -> Figure:
    """A figure of the page's width without a background."""
    from matplotlib.figure import Figure

    figure: Figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    figure.patch.set_visible(False)
    return figure


def to_svg(figure: Figure, key: str) -> str:
    """Convert a figure to an SVG element: no fixed size, ids prefixed by `key`, CSS variables for colors."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": key}):
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # matplotlib's style rule would apply to the whole page; the page's style sheet has an equivalent
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    head, _, body = svg.partition(">")
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None, "matplotlib always writes a viewBox"
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{key}-", body)
    for color, variable in VARIABLES.items():
        body = body.replace(color, variable)
    return f'<svg {box.group()} xmlns="http://www.w3.org/2000/svg" aria-hidden="true">{body}'
