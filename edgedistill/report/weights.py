"""Tables of the source weights and scores, for the output of the weigh step and for the reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from edgedistill.distill.headless import weight_note
from edgedistill.records import MetricScore, SourceWeight, SourceWeights
from edgedistill.report.blocks import WIDTH, Block, Row, clean, format_body
from edgedistill.report.facts import metrics, ranked

SCORE_WIDTH = (
    WIDTH - 2 - 20 - 8
)  # of the terminal's WIDTH: less the indent, a source name of 20 letters, and the weight


def table(weights: SourceWeights) -> str:
    """Format `blocks` for a terminal without their titles; the weigh step prints it."""
    return clean("\n".join(line for block in blocks(weights) for line in format_body(block)))


def blocks(weights: SourceWeights) -> list[Block]:
    """Weight and scores of every source, heaviest first; metrics that do not fit the first table get further ones."""
    ordered = ranked(weights)
    scores = [_columns(ordered, metric, weights.features_only) for metric in metrics(weights)]
    note = f"{weights.metric} on {weights.probe_images} probe images decides, power {weights.power:g}"
    if any(len(columns) > 1 for columns in scores):
        note += "; ceiling: the score of a perfect source"
    name_column: Row = ("source", *(source.name for source in ordered))
    weight_column: Row = ("weight", *(f"{source.weight:.3f}" for source in ordered))
    first, *overflow = _split_to_width(scores)
    return [
        _block("sources", "Sources", columns=[name_column, weight_column, *first], note=note, lines=_notes(weights)),
        *(_block("more-metrics", "Sources, by other metrics", [name_column, *columns]) for columns in overflow),
    ]


def catalog_block(catalog: Sequence[Mapping[str, Any]]) -> Block:
    """What `sources: auto` did with the models of the catalog: those that were asked, and why the others were not."""
    asked = [model for model in catalog if model["taken"] or "score" in model]
    asked.sort(key=lambda model: (not model["taken"], -model.get("score", 0.0)))
    reasons = Counter(model["reason"] for model in catalog if model not in asked)
    rows = [
        (
            model["name"],
            "yes" if model["taken"] else "no",
            f"{model['score']:.3f} [{model['low']:.3f}, {model['high']:.3f}]" if "score" in model else "not asked",
            model.get("reason", ""),
        )
        for model in asked
    ]
    return Block(
        key="catalog",
        title="Sources, chosen from the catalog",
        header=("model", "chosen", "score [95 %]", "why not"),
        rows=tuple(rows),
        lines=tuple(f"{count} not asked: {reason}" for reason, count in reasons.most_common()),
    )


def _block(key: str, title: str, columns: Sequence[Row], note: str = "", lines: Sequence[str] = ()) -> Block:
    header, *rows = zip(*columns, strict=True)
    return Block(key=key, title=title, note=note, header=header, rows=tuple(rows), lines=tuple(lines))


def _columns(sources: Sequence[SourceWeight], metric: str, features_only: Collection[str]) -> list[Row]:
    """Columns of a metric, header first: the score with its interval and, if there is a ceiling, the share of it.

    The number of decimals follows from the metric's scale. Intervals are left out if no source has one: such a score
    is no measurement (`static` takes it from the recipe).
    """
    scores = [source.scores.get(metric) for source in sources]
    decimals = 3 if max(abs(score.score) for score in scores if score) < 10 else 1
    has_intervals = any(score.low < score.high for score in scores if score)
    absent = ["features only" if source.name in features_only else "-" for source in sources]
    score_cells = [
        _score_cell(score, decimals, has_intervals) if score else cell
        for score, cell in zip(scores, absent, strict=True)
    ]
    shares = [score.of_ceiling if score else None for score in scores]
    columns: list[Row] = [(f"{metric} [95 %]" if has_intervals else metric, *score_cells)]
    if any(share is not None for share in shares):
        columns.append(("of ceiling", *("-" if share is None else f"{100 * share:.0f} %" for share in shares)))
    return columns


def _score_cell(score: MetricScore, decimals: int, has_interval: bool) -> str:
    return f"{score.score:.{decimals}f}" + (
        f" [{score.low:.{decimals}f}, {score.high:.{decimals}f}]" if has_interval else ""
    )


def _split_to_width(columns_by_metric: Sequence[list[Row]]) -> list[list[Row]]:
    """Distribute the columns over tables no wider than SCORE_WIDTH, keeping a metric's columns together."""
    tables: list[list[Row]] = [[]]
    for columns in columns_by_metric:
        if tables[-1] and sum(2 + max(map(len, column)) for column in (*tables[-1], *columns)) > SCORE_WIDTH:
            tables.append([])
        tables[-1] += columns
    return tables


def _notes(weights: SourceWeights) -> list[str]:
    count = f"effective number of sources {weights.effective_sources:.1f} (1 / sum alpha^2) of {len(weights.sources)}"
    tied = tie_warning(weights)
    scored = {source.name for source in weights.sources if weights.metric in source.scores}
    few = "" if scored else "fewer than two classes have two labels to score by: all sources weigh the same"
    headless = weight_note(
        weights.metric, weights.features_only, not scored or scored.issuperset(weights.features_only)
    )
    blind = f"not told from chance, so without weight: {', '.join(weights.blind)}" if weights.blind else ""
    return [count, *filter(None, [few, weights.disagreement, headless, blind, tied and f"warning: {tied}"])]


def tie_warning(weights: SourceWeights) -> str:
    """A sentence if the intervals of the two heaviest sources overlap for the deciding metric, else ''."""
    leaders = [
        (source.name, source.scores[weights.metric])
        for source in ranked(weights)[:2]
        if weights.metric in source.scores
    ]
    if len(leaders) < 2:
        return ""
    (best, best_score), (next_best, next_score) = leaders
    measured = best_score.low < best_score.high or next_score.low < next_score.high
    if not measured or max(best_score.low, next_score.low) > min(best_score.high, next_score.high):
        return ""
    return f"the 95 % intervals of {best} and {next_best} overlap; the labels do not settle which source is best"
