"""The pictures of the HTML report: inline SVG that follows the page's light or dark colours, and JPEG thumbnails.

Every picture is a function of `Facts` and gives None where there is nothing to draw yet. matplotlib is imported only
inside the functions that draw; the same facts always give the same bytes.
"""

from __future__ import annotations

import base64
import functools
import io
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from edgedistill.records import BenchReport
from edgedistill.report.blocks import number, shorten
from edgedistill.report.facts import Facts, groups, metrics, ranked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")

WIDTH_IN = 5.0  # 360 points: drawn about as wide as a phone is, so that nobody has to zoom
MOST_POINTS = 400  # a curve on 360 points shows no more
# Colours are drawn as these placeholders and become CSS variables, which change with light and dark.
INK, FAINT = "#010203", "#040506"
SERIES = ("#0a0001", "#0a0002", "#0a0003", "#0a0004", "#0a0005", "#0a0006")
VARIABLES = {INK: "var(--ink)", FAINT: "var(--line)"} | {one: f"var(--c{at})" for at, one in enumerate(SERIES, start=1)}
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
    """A drawing: inline SVG, and what it shows in words, for those who cannot see it."""

    svg: str
    alt: str


def pictures(facts: Facts) -> dict[str, Picture]:
    """Every picture that can be drawn, by the key of the text block it belongs to."""
    drawn: dict[str, Picture | None] = {
        "sources": sources(facts),
        "search": search(facts),
        "learning": learning(facts),
        "accuracy": ladder(facts),
    }
    for at, (device, backend, reports) in enumerate(groups(facts)):
        drawn[f"latency-{at}"] = latency(f"latency-{at}", device, backend, reports)
    return {key: one for key, one in drawn.items() if one is not None}


def _styled(draw: Callable[..., T]) -> Callable[..., T]:
    """Draw in the page's style: rc settings are read both while drawing and while saving."""

    @functools.wraps(draw)
    def inside(*given: Any) -> T:
        import matplotlib as mpl

        with mpl.rc_context(STYLE), warnings.catch_warnings():
            # names may hold letters that matplotlib's font lacks; the browser sets the text in its own font
            warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
            return draw(*given)

    return inside


def _figure(height_in: float) -> Figure:
    from matplotlib.figure import Figure

    figure: Figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    figure.patch.set_visible(False)
    return figure


def to_svg(figure: Figure, key: str) -> str:
    """A figure as an SVG element for a page: no fixed size, ids of its own, CSS variables for colours."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": key}):
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # matplotlib's own style rule would apply to the whole page; the page's style sheet has its like
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    head, _, body = svg.partition(">")
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None, "matplotlib always writes a viewBox"
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{key}-", body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, variable)
    return f'<svg {box.group()} xmlns="http://www.w3.org/2000/svg" aria-hidden="true">{body}'


def _names(names: Sequence[str]) -> list[str]:
    return [shorten(name, 20) for name in names]


def _rows(axes: Any, names: Sequence[str]) -> None:
    """Name the rows of a horizontal chart, the first on top."""
    axes.set_yticks(range(len(names)), _names(names))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def _errors(values: Sequence[float], lows: Sequence[float], highs: Sequence[float]) -> np.ndarray:
    """Distances down and up for matplotlib's error bars, [2, n]; an interval need not hold its point exactly."""
    down, up = np.subtract(values, lows), np.subtract(highs, values)
    return np.asarray(np.maximum(np.stack([down, up]), 0.0))


@_styled
def sources(facts: Facts) -> Picture | None:
    """Similarity scores with intervals, one panel a metric, and the weights as bars."""
    if facts.sources is None or not facts.sources.sources:
        return None
    ordered = ranked(facts.sources)
    shown = metrics(facts.sources)[:2]
    figure = _figure(0.9 + 0.24 * len(ordered))
    panels = figure.subplots(1, 1 + len(shown), sharey=True, squeeze=False)[0]
    panels[0].barh(range(len(ordered)), [one.weight for one in ordered], color=SERIES[0], height=0.6)
    panels[0].set_title("weight")
    for at, metric in enumerate(shown):
        here = [(row, one.scores[metric]) for row, one in enumerate(ordered) if metric in one.scores]
        values, lows, highs = zip(*((one.score, one.low, one.high) for _, one in here), strict=True)
        panels[at + 1].errorbar(
            values,
            [row for row, _ in here],
            xerr=_errors(values, lows, highs),
            fmt="o",
            color=SERIES[at + 1],
            markersize=4,
            capsize=2,
        )
        panels[at + 1].set_title(_names([metric])[0])
        ceiling = next((score.ceiling for _, score in here), None)
        below = ["95 % interval"] if any(low < high for low, high in zip(lows, highs, strict=True)) else []
        below += [] if ceiling is None else [f"ceiling {number(ceiling)}"]
        panels[at + 1].set_xlabel("\n".join(below))
    _rows(panels[0], [one.name for one in ordered])
    for panel in panels[1:]:
        panel.tick_params(axis="y", length=0)
        panel.grid(visible=False, axis="y")
    said = ", ".join(f"{one.name} {one.weight:.2f}" for one in ordered)
    said += f"; effective number of sources {facts.sources.effective_sources:.1f}"
    return Picture(
        svg=to_svg(figure, "sources"), alt=f"Weights of the sources: {said}; beside them their similarity scores."
    )


def thin(values: Sequence[T], most: int = MOST_POINTS) -> list[T]:
    """At most `most` of the values, evenly spaced, the first and the last kept."""
    if len(values) <= most:
        return list(values)
    return [values[round(at * (len(values) - 1) / (most - 1))] for at in range(most)]


@_styled
def learning(facts: Facts) -> Picture | None:
    """Every loss term over the steps, and below it the accuracy on val with its interval."""
    train = thin([line for line in facts.curve if "loss" in line])
    val = [line for line in facts.curve if "val" in line]
    if not train and not val:
        return None
    figure = _figure(3.9)
    upper, lower = figure.subplots(2, 1, sharex=True)
    terms = list(dict.fromkeys(name for line in train for name in line.get("terms", {})))
    upper.plot([line["step"] for line in train], [_float(line["loss"]) for line in train], color=INK, label="loss")
    for at, term in enumerate(terms):
        mine = [(line["step"], _float(line["terms"][term])) for line in train if term in line.get("terms", {})]
        upper.plot(*zip(*mine, strict=True), color=SERIES[at % 6], linewidth=1.0, label=term.removeprefix("source/"))
    upper.set_ylabel("loss")
    upper.legend(ncols=3, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2)
    if val:
        steps = [line["step"] for line in val]
        low, high = np.transpose([line["val"][f"{facts.score}_ci95"] for line in val]) * 100
        lower.fill_between(steps, low, high, color=SERIES[1], alpha=0.2, linewidth=0)
        lower.plot(steps, [100 * line["val"][facts.score] for line in val], "o-", color=SERIES[1], markersize=3)
    lower.set_ylabel("val accuracy, %")
    lower.set_xlabel("step")
    said = f", accuracy on val ends at {100 * val[-1]['val'][facts.score]:.1f} %" if val else ""
    return Picture(
        svg=to_svg(figure, "learning"), alt=f"Learning curves: {', '.join(['loss', *terms])} over the steps{said}."
    )


def _float(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


@_styled
def search(facts: Facts) -> Picture | None:
    """Every candidate: its value after a short training against what it costs; those without a value at the bottom.

    The cost is the latency where the device was asked, else the MACs. The line is the front: the best value that can be
    had for so much.
    """
    cost, label, bound = _cost_axis(facts)
    points = [(_float(one.get(cost)), _float(one.get("value")), one) for one in facts.trials]
    points = [point for point in points if math.isfinite(point[0])]
    if not points:
        return None
    figure = _figure(2.8)
    axes = figure.subplots()
    trained = sorted((point for point in points if math.isfinite(point[1])), key=lambda one: one[:2])
    refused = [point for point in points if not math.isfinite(point[1])]
    axes.scatter([one[0] for one in trained], [100 * one[1] for one in trained], color=SERIES[0], s=22, label="trained")
    if trained:
        axes.step(
            [one[0] for one in trained],
            100 * np.maximum.accumulate([one[1] for one in trained]),
            where="post",
            color=SERIES[0],
            linewidth=0.8,
            label="front",
        )
    if refused:
        axes.plot(
            [one[0] for one in refused],
            np.full(len(refused), 0.02),
            "x",
            color=SERIES[3],
            markersize=4,
            transform=axes.get_xaxis_transform(),
            label="not feasible, or stopped",
        )
    chosen = [point for point in trained if _is_chosen(facts, point[2])]
    if chosen:
        axes.plot(chosen[0][0], 100 * chosen[0][1], "*", color=SERIES[1], markersize=13, label="chosen")
    if bound:
        axes.axvline(bound, color=INK, linestyle="--", linewidth=1.0, label="budget")
    axes.set_xlabel(label)
    axes.set_ylabel("val accuracy after the trial, %")
    axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.25))
    said = f"{len(trained)} candidates trained, {len(refused)} not feasible or stopped."
    return Picture(
        svg=to_svg(figure, "search"), alt=f"Accuracy of the search's candidates against their {label}: {said}"
    )


def _cost_axis(facts: Facts) -> tuple[str, str, float | None]:
    """The column of trials.csv to draw against, what it is called, and its bound."""
    budget = facts.recipe.get("student", {}).get("budget") or {}
    timed = budget.get("latency_ms")
    if timed and any(one.get("latency_ms") for one in facts.trials):
        where = f"{timed['precision']}, p{timed['percentile']:g}, on {timed['device']}"
        return "latency_ms", f"ms ({where})", timed["at_most"]
    return "macs_m", "M MACs", budget.get("macs_m")


def _is_chosen(facts: Facts, trial: dict[str, str]) -> bool:
    spec = facts.student
    return (
        spec is not None
        and trial.get("family") == spec.family
        and trial.get("input_px") == str(spec.input_px)
        and math.isclose(_float(trial.get("macs_m")), spec.cost.macs_m, rel_tol=1e-3)
    )


@_styled
def ladder(facts: Facts) -> Picture | None:
    """Accuracy with intervals of each artefact, and its agreement with torch."""
    if facts.ladder is None or not facts.ladder.rungs:
        return None
    rungs = facts.ladder.rungs
    figure = _figure(0.9 + 0.28 * len(rungs))
    left, right = figure.subplots(1, 2, sharey=True)
    values = [100 * one.accuracy.score(facts.score) for one in rungs]
    lows, highs = np.transpose([one.accuracy.interval(facts.score) for one in rungs]) * 100
    left.errorbar(
        values, range(len(rungs)), xerr=_errors(values, lows, highs), fmt="o", color=SERIES[0], markersize=5, capsize=3
    )
    left.set_title("accuracy %, 95 % interval")
    agreement = [100 * one.agreement_with_torch for one in rungs]
    right.plot(agreement, range(len(rungs)), "s", color=SERIES[2], markersize=5)
    right.set_xlim(min(99.0, min(agreement) - 0.5), 100.2)
    right.set_title("same answer as torch, %")
    right.grid(visible=False, axis="y")
    right.tick_params(axis="y", length=0)
    _rows(left, [one.artefact for one in rungs])
    said = ", ".join(f"{one.artefact} {value:.1f} %" for one, value in zip(rungs, values, strict=True))
    return Picture(svg=to_svg(figure, "ladder"), alt=f"Accuracy of each artefact: {said}.")


@_styled
def latency(key: str, device: str, backend: str, reports: Sequence[BenchReport]) -> Picture | None:
    """The share of queries answered within a time, per artefact, over all samples: nothing is clipped."""
    measured = [one for one in reports if one.latency.samples_ms and one.latency.batch == 1]
    if not measured:
        return None
    figure = _figure(2.6)
    axes = figure.subplots()
    for at, one in enumerate(measured):
        ordered = np.sort(one.latency.samples_ms)
        share = np.arange(1, len(ordered) + 1) / len(ordered) * 100
        axes.step(thin(ordered.tolist()), thin(share.tolist()), where="post", color=SERIES[at % 6], label=one.called)
    axes.set_xscale("log")
    _plain_ticks(axes, measured)
    axes.set_xlabel("ms (log scale)")
    axes.set_ylabel("queries answered, %")
    axes.legend(loc="lower right")
    said = ", ".join(f"{one.called} {np.median(one.latency.samples_ms):.2f} ms" for one in measured)
    return Picture(svg=to_svg(figure, key), alt=f"Distribution of latency on {device}, {backend}; medians: {said}.")


def _plain_ticks(axes: Any, measured: Sequence[BenchReport]) -> None:
    """Ticks that read as milliseconds; the log locator alone leaves an axis under a decade bare."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    low = min(min(one.latency.samples_ms) for one in measured)
    high = max(max(one.latency.samples_ms) for one in measured)
    ticks = np.geomspace(low, high, 5) if 0 < low < high else np.array([high])
    axes.set_xticks(sorted({float(f"{tick:.3g}") for tick in ticks}))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def jpeg(image: np.ndarray, most_px: int = 144) -> str:
    """A picture, uint8 [px, px, 3], as a data URI of a JPEG no larger than `most_px`; small ones keep their size."""
    from PIL import Image

    picture = Image.fromarray(image)
    picture.thumbnail((most_px, most_px))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
