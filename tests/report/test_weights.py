"""The table of source weights, in the weigh step's output and in every report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from edgedistill.recipe.schema import Recipe
from edgedistill.records import MetricScore, SourceWeight, SourceWeights
from edgedistill.report import plots, render
from edgedistill.report import weights as report_weights
from edgedistill.report.blocks import WIDTH
from edgedistill.report.facts import ranked, read
from edgedistill.run.directory import Run
from edgedistill.run.files import read_json, read_record, write_json, write_record
from edgedistill.steps import weigh
from edgedistill.steps.context import Context
from tests.helpers import miniature
from tests.helpers.report_runs import make_run

Scores = tuple[float, float, float]
OVERLAP = "the 95 % intervals of a and b overlap; the labels do not settle which source is best"


def metric_score(score: float, low: float, high: float, ceiling: float | None = None) -> MetricScore:
    return MetricScore(score=score, low=low, high=high, ceiling=ceiling)


def weights(*sources: tuple[str, float, Scores], ceiling: float | None = None) -> SourceWeights:
    """Sources as (name, weight, (score, low, high) by probe)."""
    source_weights = [
        SourceWeight(name=name, weight=alpha, scores={"probe": metric_score(*scores, ceiling=ceiling)})
        for name, alpha, scores in sources
    ]
    return SourceWeights(metric="probe", probe_images=20, power=12.0, sources=tuple(source_weights))


A, B, C = ("a", 0.5, (0.8, 0.6, 0.9)), ("b", 0.3, (0.7, 0.5, 0.75)), ("c", 0.2, (0.4, 0.3, 0.55))


def test_table_of_weights() -> None:
    # 1 / (0.25 + 0.09 + 0.04) = 2.63
    assert report_weights.table(weights(B, A, C, ceiling=0.9)).splitlines() == [
        "  probe on 20 probe images decides, power 12; ceiling: the score of a perfect source",
        "  source  weight          probe [95 %]  of ceiling",
        "  a        0.500  0.800 [0.600, 0.900]        89 %",
        "  b        0.300  0.700 [0.500, 0.750]        78 %",
        "  c        0.200  0.400 [0.300, 0.550]        44 %",
        "  effective number of sources 2.6 (1 / sum alpha^2) of 3",
        "  warning: the 95 % intervals of a and b overlap; the labels do not settle which source is best",
    ]


@pytest.mark.parametrize("ceiling", [None, 0.0])
def test_table_without_ceiling_has_no_share_column(ceiling: float | None) -> None:
    table = report_weights.table(weights(A, C, ceiling=ceiling))
    assert "ceiling" not in table and "a        0.500  0.800 [0.600, 0.900]\n" in table


def test_tie_warning_compares_first_two_sources() -> None:
    low = ("b", 0.3, (0.5, 0.45, 0.59))
    assert report_weights.tie_warning(weights(C, B, A)) == OVERLAP
    assert report_weights.tie_warning(weights(A, low, C)) == ""  # 0.59 < 0.6, though c's interval meets b's
    assert report_weights.tie_warning(weights(A, ("b", 0.3, (0.5, 0.45, 0.6)))) == OVERLAP
    # the weights may come from another procedure; the heavier source can score lower
    assert report_weights.tie_warning(weights(("a", 0.9, (0.1, 0.0, 0.2)), ("b", 0.1, (0.8, 0.7, 0.9)))) == ""


def test_single_source_or_no_scores_give_no_tie_warning() -> None:
    assert report_weights.tie_warning(weights(A)) == ""
    assert "effective number of sources 1.0 (1 / sum alpha^2) of 1" in report_weights.table(weights(("a", 1.0, A[2])))
    none = SourceWeights(
        metric="none",
        probe_images=0,
        power=0.0,
        sources=(SourceWeight(name="a", weight=0.5, scores={}), SourceWeight(name="b", weight=0.5, scores={})),
    )
    assert report_weights.tie_warning(none) == "" and "2.0 (1 / sum alpha^2) of 2" in report_weights.table(none)


def test_scores_without_spread_have_no_interval() -> None:
    table = report_weights.table(weights(("a", 0.5, (0.5, 0.5, 0.5)), ("b", 0.5, (0.5, 0.5, 0.5)), ceiling=1.0))
    assert (
        "  source  weight  probe  of ceiling\n  a        0.500  0.500        50 %\n" in table and "warning" not in table
    )
    # next to a score with spread, a score without spread keeps its interval
    table = report_weights.table(weights(A, ("b", 0.5, (1.0, 1.0, 1.0))))
    assert "1.000 [1.000, 1.000]" in table


def test_equal_weights_are_ranked_by_score() -> None:
    tied = weights(("a", 0.5, (0.1, 0.0, 0.2)), ("b", 0.5, (0.3, 0.2, 0.4)))
    assert [source.name for source in ranked(tied)] == ["b", "a"]


def test_disagreement_is_between_count_and_warning(tmp_path: Path) -> None:
    run = make_run(tmp_path, "weigh")
    stored = read_record(run / "weigh/weights.json", SourceWeights)
    a, b = (
        SourceWeight(name=name, weight=alpha, scores={"probe": metric_score(*scores)}) for name, alpha, scores in (A, B)
    )
    write_record(
        run / "weigh/weights.json",
        SourceWeights(metric="probe", probe_images=50, power=12.0, sources=(a, b), disagreement=stored.disagreement),
    )
    count = "effective number of sources 2.9 (1 / sum alpha^2) of 2"  # 1 / (0.25 + 0.09), the weights of two of three
    lines = [count, stored.disagreement, f"warning: {OVERLAP}"]
    assert render.text(run).split("SOURCES\n")[1].split("\n\n")[0].splitlines()[-3:] == [f"  {line}" for line in lines]
    page = render.html(run)
    assert f"<p>{count}</p>" in page and f'<p class="fail">warning: {OVERLAP}</p>' in page


def test_weights_written_without_ceilings_are_read(tmp_path: Path) -> None:
    run = make_run(tmp_path, "weigh")
    with_ceilings = plots.sources(read(run))
    path = run / "weigh/weights.json"
    content = read_json(path)
    for score in (score for source in content["sources"] for score in source["scores"].values()):
        del score["ceiling"]
    write_json(path, content)
    assert "ceiling" not in render.text(run)
    without = plots.sources(read(run))
    assert with_ceilings and without
    assert "ceiling 50.0" in with_ceilings.svg and "ceiling" not in without.svg


def test_bounded_metrics_stay_within_width() -> None:
    scores = {f"metric-{index}": MetricScore(score=-90.5, low=-95.0, high=90.0, ceiling=100.0) for index in range(5)}
    many = SourceWeights(
        metric="metric-3",
        probe_images=50,
        power=12.0,
        sources=(SourceWeight(name="s" * 20, weight=1.0, scores=scores),),
    )
    table = report_weights.table(many)
    assert table.count("-90 %") == 5 and table.count("s" * 20) == 3  # two metrics per table
    assert max(map(len, table.splitlines())) <= WIDTH


def test_weigh_step_prints_table_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = miniature.write(tmp_path)
    recipe = Recipe.model_validate(yaml.safe_load(project.recipe.read_text()))
    context = Context(recipe=recipe, base=tmp_path, run=Run(path=tmp_path / "run"))
    weigh.STEP.work(context)
    stored = read_record(context.run / "weigh/weights.json", SourceWeights)
    captured = capsys.readouterr()
    assert report_weights.table(stored) in captured.err and captured.out == ""
    assert "source  weight  " in captured.err and "effective number of sources" in captured.err


def test_headless_source_is_marked_in_the_table() -> None:
    scores = {"leep": metric_score(-0.5, -0.6, -0.4), "probe": metric_score(0.7, 0.5, 0.75)}
    sources = (
        SourceWeight(name="a", weight=1.0, scores=scores),
        SourceWeight(name="tower", weight=0.0, scores={"probe": metric_score(0.8, 0.6, 0.9)}),
    )
    record = SourceWeights(metric="leep", probe_images=20, power=12.0, sources=sources, features_only=("tower",))
    assert report_weights.table(record).splitlines()[1:] == [
        "  source  weight              leep [95 %]          probe [95 %]",
        "  a        1.000  -0.500 [-0.600, -0.400]  0.700 [0.500, 0.750]",
        "  tower    0.000            features only  0.800 [0.600, 0.900]",
        "  effective number of sources 1.0 (1 / sum alpha^2) of 2",
        "  tower: features only, no classes; leep needs classes, so the weight is 0",
    ]


@pytest.mark.parametrize("headless", [(), ("b",)])
def test_sources_without_classes_are_written_only_if_there_are_any(tmp_path: Path, headless: tuple[str, ...]) -> None:
    record = replace(weights(A, B), features_only=headless)
    write_record(tmp_path / "weights.json", record)
    # files of runs without headless sources, and their hashes, are what they were before there were any
    assert ("features_only" in read_json(tmp_path / "weights.json")) is bool(headless)
    assert read_record(tmp_path / "weights.json", SourceWeights) == record


def test_report_says_what_became_of_the_models_of_the_catalog(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    catalog = [
        {"name": "small", "taken": True, "score": 0.5, "low": 0.4, "high": 0.6},
        {"name": "weak", "taken": False, "reason": "1 come before it", "score": 0.1, "low": 0.0, "high": 0.2},
        {"name": "far", "taken": False, "reason": "its weights are not here"},
        {"name": "farther", "taken": False, "reason": "its weights are not here"},
    ]
    write_json(run / "sources.json", {"sources": [], "catalog": catalog})
    text = render.text(run)
    assert "SOURCES, chosen from the catalog" in text and "2 not asked: its weights are not here" in text
    assert [line.split()[:3] for line in text.splitlines() if line.startswith(("  small", "  weak"))] == [
        ["small", "yes", "0.500"],
        ["weak", "no", "0.100"],
    ]
    assert render.collect(run)["catalog"] == catalog
