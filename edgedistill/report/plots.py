"""The pictures of the HTML report: inline SVG that follows the page's light or dark colors, and JPEG thumbnails.

Every picture is a function of `Facts` and None if there is nothing to draw yet. matplotlib is imported only inside the
functions that draw; the same facts always give the same bytes.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from edgedistill.measurements import BenchReport
from edgedistill.report.blocks import number, shorten
from edgedistill.report.drawing import INK, SERIES, Picture, new_figure, to_svg, with_style
from edgedistill.report.facts import Facts, by_device, metrics, ranked

T = TypeVar("T")

MAX_POINTS = 400  # of a curve: more cannot be seen at this width


def pictures(facts: Facts) -> dict[str, Picture]:
    """All pictures that can be drawn, by the key of the text block that they belong to."""
    drawn: dict[str, Picture | None] = {
        "sources": sources(facts),
        "search": search(facts),
        "learning": learning(facts),
        "accuracy": ladder(facts),
    }
    for index, (device, backend, reports) in enumerate(by_device(facts)):
        drawn[f"latency-{index}"] = latency(f"latency-{index}", device, backend, reports)
    return {key: picture for key, picture in drawn.items() if picture is not None}


def _short_names(names: Sequence[str]) -> list[str]:
    return [shorten(name, 20) for name in names]


def _label_rows(axes: Any, names: Sequence[str]) -> None:
    """Label the rows of a horizontal chart, the first on top."""
    axes.set_yticks(range(len(names)), _short_names(names))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def _error_bars(values: Sequence[float], lows: Sequence[float], highs: Sequence[float]) -> np.ndarray:
    """Distances down and up for matplotlib's error bars, [2, n], clipped at 0: an interval may miss its point."""
    down, up = np.subtract(values, lows), np.subtract(highs, values)
    return np.asarray(np.maximum(np.stack([down, up]), 0.0))


@with_style
def sources(facts: Facts) -> Picture | None:
    """Plot the source weights as bars, and similarity scores with intervals, a panel per metric."""
    if facts.sources is None or not facts.sources.sources:
        return None
    ordered = ranked(facts.sources)
    metric_names = metrics(facts.sources)[:2]
    figure = new_figure(0.9 + 0.24 * len(ordered))
    panels = figure.subplots(1, 1 + len(metric_names), sharey=True, squeeze=False)[0]
    panels[0].barh(range(len(ordered)), [source.weight for source in ordered], color=SERIES[0], height=0.6)
    panels[0].set_title("weight")
    for column, metric in enumerate(metric_names):
        scored = [(row, source.scores[metric]) for row, source in enumerate(ordered) if metric in source.scores]
        values, lows, highs = zip(*((score.score, score.low, score.high) for _, score in scored), strict=True)
        panels[column + 1].errorbar(
            values,
            [row for row, _ in scored],
            xerr=_error_bars(values, lows, highs),
            fmt="o",
            color=SERIES[column + 1],
            markersize=4,
            capsize=2,
        )
        panels[column + 1].set_title(_short_names([metric])[0])
        ceiling = next((score.ceiling for _, score in scored), None)
        below = ["95 % interval"] if any(low < high for low, high in zip(lows, highs, strict=True)) else []
        below += [] if ceiling is None else [f"ceiling {number(ceiling)}"]
        panels[column + 1].set_xlabel("\n".join(below))
    _label_rows(panels[0], [source.name for source in ordered])
    for panel in panels[1:]:
        panel.tick_params(axis="y", length=0)
        panel.grid(visible=False, axis="y")
    shares = ", ".join(f"{source.name} {source.weight:.2f}" for source in ordered)
    shares += f"; effective number of sources {facts.sources.effective_sources:.1f}"
    return Picture(
        svg=to_svg(figure, "sources"), alt=f"Weights of the sources: {shares}; beside them their similarity scores."
    )


def thin(values: Sequence[T], limit: int = MAX_POINTS) -> list[T]:
    """Select at most `limit` values, evenly spaced, including the first and the last."""
    if len(values) <= limit:
        return list(values)
    return [values[round(index * (len(values) - 1) / (limit - 1))] for index in range(limit)]


@with_style
def learning(facts: Facts) -> Picture | None:
    """Plot every loss term over the steps, and below it the accuracy on val with its interval."""
    train = thin([line for line in facts.curve if "loss" in line])
    val = [line for line in facts.curve if "val" in line]
    if not train and not val:
        return None
    figure = new_figure(3.9)
    upper, lower = figure.subplots(2, 1, sharex=True)
    terms = list(dict.fromkeys(name for line in train for name in line.get("terms", {})))
    upper.plot([line["step"] for line in train], [_float(line["loss"]) for line in train], color=INK, label="loss")
    for color_index, term in enumerate(terms):
        points = [(line["step"], _float(line["terms"][term])) for line in train if term in line.get("terms", {})]
        upper.plot(
            *zip(*points, strict=True), color=SERIES[color_index % 6], linewidth=1.0, label=term.removeprefix("source/")
        )
    upper.set_ylabel("loss")
    upper.legend(ncols=3, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2)
    if val:
        steps = [line["step"] for line in val]
        low, high = np.transpose([line["val"][f"{facts.score}_ci95"] for line in val]) * 100
        lower.fill_between(steps, low, high, color=SERIES[1], alpha=0.2, linewidth=0)
        lower.plot(steps, [100 * line["val"][facts.score] for line in val], "o-", color=SERIES[1], markersize=3)
    lower.set_ylabel("val accuracy, %")
    lower.set_xlabel("step")
    ending = f", accuracy on val ends at {100 * val[-1]['val'][facts.score]:.1f} %" if val else ""
    return Picture(
        svg=to_svg(figure, "learning"), alt=f"Learning curves: {', '.join(['loss', *terms])} over the steps{ending}."
    )


def _float(cell: Any) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return math.nan


@with_style
def search(facts: Facts) -> Picture | None:
    """Plot every candidate's val accuracy after a short training against its cost; those without one at the bottom.

    The cost is the latency if the search measured it, else the MACs. The line is the Pareto front: the best accuracy at
    this cost or less.
    """
    cost, label, bound = _cost_axis(facts)
    points = [(_float(trial.get(cost)), _float(trial.get("value")), trial) for trial in facts.trials]
    points = [point for point in points if math.isfinite(point[0])]
    if not points:
        return None
    figure = new_figure(2.8)
    axes = figure.subplots()
    trained = sorted((point for point in points if math.isfinite(point[1])), key=lambda point: point[:2])
    untrained = [point for point in points if not math.isfinite(point[1])]
    axes.scatter(
        [point[0] for point in trained], [100 * point[1] for point in trained], color=SERIES[0], s=22, label="trained"
    )
    if trained:
        axes.step(
            [point[0] for point in trained],
            100 * np.maximum.accumulate([point[1] for point in trained]),
            where="post",
            color=SERIES[0],
            linewidth=0.8,
            label="front",
        )
    if untrained:
        axes.plot(
            [point[0] for point in untrained],
            np.full(len(untrained), 0.02),
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
    counts = f"{len(trained)} candidates trained, {len(untrained)} not feasible or stopped."
    return Picture(
        svg=to_svg(figure, "search"), alt=f"Accuracy of the search's candidates against their {label}: {counts}"
    )


def _cost_axis(facts: Facts) -> tuple[str, str, float | None]:
    """The column of trials.csv for the cost axis, the label of the axis, and the bound on the cost."""
    budget = facts.recipe.get("student", {}).get("budget") or {}
    latency_bound = budget.get("latency_ms")
    if latency_bound and any(trial.get("latency_ms") for trial in facts.trials):
        conditions = f"{latency_bound['precision']}, p{latency_bound['percentile']:g}, on {latency_bound['device']}"
        return "latency_ms", f"ms ({conditions})", latency_bound["at_most"]
    return "macs_m", "M MACs", budget.get("macs_m")


def _is_chosen(facts: Facts, trial: dict[str, str]) -> bool:
    spec = facts.student
    return (
        spec is not None
        and trial.get("family") == spec.family
        and trial.get("input_px") == str(spec.input_px)
        and math.isclose(_float(trial.get("macs_m")), spec.cost.macs_m, rel_tol=1e-3)
    )


@with_style
def ladder(facts: Facts) -> Picture | None:
    """Plot each artifact's accuracy with its interval, and its agreement with torch."""
    if facts.ladder is None or not facts.ladder.rungs:
        return None
    rungs = facts.ladder.rungs
    figure = new_figure(0.9 + 0.28 * len(rungs))
    left, right = figure.subplots(1, 2, sharey=True)
    percents = [100 * rung.accuracy.score(facts.score) for rung in rungs]
    lows, highs = np.transpose([rung.accuracy.interval(facts.score) for rung in rungs]) * 100
    left.errorbar(
        percents,
        range(len(rungs)),
        xerr=_error_bars(percents, lows, highs),
        fmt="o",
        color=SERIES[0],
        markersize=5,
        capsize=3,
    )
    left.set_title("accuracy %, 95 % interval")
    agreement = [100 * rung.agreement_with_torch for rung in rungs]
    right.plot(agreement, range(len(rungs)), "s", color=SERIES[2], markersize=5)
    right.set_xlim(min(99.0, min(agreement) - 0.5), 100.2)
    right.set_title("same answer as torch, %")
    right.grid(visible=False, axis="y")
    right.tick_params(axis="y", length=0)
    _label_rows(left, [rung.artefact for rung in rungs])
    scores = ", ".join(f"{rung.artefact} {percent:.1f} %" for rung, percent in zip(rungs, percents, strict=True))
    return Picture(svg=to_svg(figure, "ladder"), alt=f"Accuracy of each artifact: {scores}.")


@with_style
def latency(key: str, device: str, backend: str, reports: Sequence[BenchReport]) -> Picture | None:
    """Plot the cumulative distribution of latency per artifact, over all samples without clipping."""
    measured = [report for report in reports if report.latency.samples_ms and report.latency.batch == 1]
    if not measured:
        return None
    figure = new_figure(2.6)
    axes = figure.subplots()
    for index, report in enumerate(measured):
        samples_ms = np.sort(report.latency.samples_ms)
        answered_percent = np.arange(1, len(samples_ms) + 1) / len(samples_ms) * 100
        axes.step(
            thin(samples_ms.tolist()),
            thin(answered_percent.tolist()),
            where="post",
            color=SERIES[index % 6],
            label=report.title,
        )
    axes.set_xscale("log")
    _millisecond_ticks(axes, measured)
    axes.set_xlabel("ms (log scale)")
    axes.set_ylabel("queries answered, %")
    axes.legend(loc="lower right")
    medians = ", ".join(f"{report.title} {np.median(report.latency.samples_ms):.2f} ms" for report in measured)
    return Picture(svg=to_svg(figure, key), alt=f"Distribution of latency on {device}, {backend}; medians: {medians}.")


def _millisecond_ticks(axes: Any, measured: Sequence[BenchReport]) -> None:
    """Set ticks in plain milliseconds: the log locator sets none on an axis that spans less than a decade."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    low = min(min(report.latency.samples_ms) for report in measured)
    high = max(max(report.latency.samples_ms) for report in measured)
    ticks = np.geomspace(low, high, 5) if 0 < low < high else np.array([high])
    axes.set_xticks(sorted({float(f"{tick:.3g}") for tick in ticks}))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def jpeg(image: np.ndarray, max_px: int = 144) -> str:
    """Encode an image, uint8 [px, px, 3], as a data URI of a JPEG of at most `max_px`; small ones keep their size."""
    from PIL import Image

    picture = Image.fromarray(image)
    picture.thumbnail((max_px, max_px))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
