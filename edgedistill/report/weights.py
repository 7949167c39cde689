"""How much each source counts, in words: one table for the step that finds it out and for every report."""

from __future__ import annotations

from collections.abc import Sequence

from edgedistill.records import MetricScore, SourceWeight, SourceWeights
from edgedistill.report.blocks import WIDTH, Block, Row, body, clean
from edgedistill.report.facts import metrics, ranked

ROOM = WIDTH - 2 - 20 - 8  # for scores: a terminal's width less indent, a name of 20 letters, and the weight


def table(weights: SourceWeights) -> str:
    """What the weigh step says as soon as it knows: `blocks` for a terminal, without their titles."""
    return clean("\n".join(line for block in blocks(weights) for line in body(block)))


def blocks(weights: SourceWeights) -> list[Block]:
    """Weight and scores of every source, heaviest first; metrics that no longer fit follow in tables of their own."""
    ordered = ranked(weights)
    scores = [_columns(ordered, metric) for metric in metrics(weights)]
    note = f"{weights.metric} on {weights.probe_images} probe images decides, power {weights.power:g}"
    if any(len(columns) > 1 for columns in scores):
        note += "; ceiling: the score of a perfect source"
    names: Row = ("source", *(one.name for one in ordered))
    alphas: Row = ("weight", *(f"{one.weight:.3f}" for one in ordered))
    first, *more = _fitted(scores)
    return [
        _block("sources", "Sources", columns=[names, alphas, *first], note=note, lines=_remarks(weights)),
        *(_block("more-metrics", "Sources, by other metrics", [names, *part]) for part in more),
    ]


def _block(key: str, title: str, columns: Sequence[Row], note: str = "", lines: Sequence[str] = ()) -> Block:
    header, *rows = zip(*columns, strict=True)
    return Block(key=key, title=title, note=note, header=header, rows=tuple(rows), lines=tuple(lines))


def _columns(everyone: Sequence[SourceWeight], metric: str) -> list[Row]:
    """A metric's columns, header first: the score with its interval and, where there is a ceiling, the share of it.

    A score has as many decimals as its metric's scale asks for. Where no source has an interval none is shown: the
    score is no measurement (`static` reads it off the recipe).
    """
    known = [one.scores.get(metric) for one in everyone]
    places = 3 if max(abs(one.score) for one in known if one) < 10 else 1
    spread = any(one.low < one.high for one in known if one)
    shown = [_score(one, places, spread) if one else "-" for one in known]
    shares = [one.of_ceiling if one else None for one in known]
    columns: list[Row] = [(f"{metric} [95 %]" if spread else metric, *shown)]
    if any(one is not None for one in shares):
        columns.append(("of ceiling", *("-" if one is None else f"{100 * one:.0f} %" for one in shares)))
    return columns


def _score(one: MetricScore, places: int, spread: bool) -> str:
    return f"{one.score:.{places}f}" + (f" [{one.low:.{places}f}, {one.high:.{places}f}]" if spread else "")


def _fitted(metrics: Sequence[list[Row]]) -> list[list[Row]]:
    """The metrics' columns, as many metrics a table as there is room for; one table at least."""
    tables: list[list[Row]] = [[]]
    for columns in metrics:
        if tables[-1] and sum(2 + max(map(len, one)) for one in (*tables[-1], *columns)) > ROOM:
            tables.append([])
        tables[-1] += columns
    return tables


def _remarks(weights: SourceWeights) -> list[str]:
    count = f"effective number of sources {weights.effective_sources:.1f} (1 / sum alpha^2) of {len(weights.sources)}"
    tied = unsettled(weights)
    return [count, *filter(None, [weights.disagreement, tied and f"warning: {tied}"])]


def unsettled(weights: SourceWeights) -> str:
    """A sentence where the intervals of the two heaviest sources overlap by the deciding metric; else empty."""
    first = [(one.name, one.scores[weights.metric]) for one in ranked(weights)[:2] if weights.metric in one.scores]
    if len(first) < 2:
        return ""
    (best, ours), (next_best, theirs) = first
    measured = ours.low < ours.high or theirs.low < theirs.high
    if not measured or max(ours.low, theirs.low) > min(ours.high, theirs.high):
        return ""
    return f"the 95 % intervals of {best} and {next_best} overlap; the labels do not settle which source is best"
