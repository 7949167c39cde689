"""What the report says of a student that may say "unknown": a table, a drawing, report.json and the model card."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgedistill.report import card, facts, render, unknown
from edgedistill.run import artifacts
from edgedistill.run.artifacts import save_arrays
from edgedistill.run.directory import Run
from tests.helpers.report_runs import make_run, with_answers


def block(run: Run) -> str:
    (only,) = unknown.blocks(facts.read(run))
    return "\n".join([only.note, *map(str, only.rows), *only.lines])


def test_table_has_accuracy_against_coverage(tmp_path: Path) -> None:
    text = block(with_answers(make_run(tmp_path)))
    assert "on 100 test images" in text
    assert "('at the threshold: 61.0 %', '61', '100.0 %" in text
    assert "('100.0 %', '100', '80.0 %" in text and "('90.0 %', '90', '88.9 %" in text
    assert 'it says "unknown" where its probability is below 40.0 %' in text
    assert "61.0 % are answered, 100.0 % of them rightly" in text
    # ten bins of ten: 95.5 % to 25.5 % all right, 15.5 and 5.5 % all wrong; 0.99 instead of 0.8 without a temperature
    assert "probabilities are off by 33.7 points" in text and "(without the temperature by" in text


def test_report_json_has_record_curve_and_bins(tmp_path: Path) -> None:
    content = render.collect(with_answers(make_run(tmp_path)))["unknown"]
    assert content["record"]["rules"]["fp32"] == {"temperature": 1.5, "threshold": 0.4}
    curve, bins = content["answers"]["curve"], content["answers"]["reliability"]
    assert curve[-1]["coverage"] == 1.0 and curve[-1]["accuracy"] == 0.8 and curve[0]["accuracy"] == 1.0
    assert sum(part["n"] for part in bins) == 100 and content["answers"]["scored"]["n"] == 61


def test_page_draws_both_curves(tmp_path: Path) -> None:
    run = with_answers(make_run(tmp_path))
    picture = unknown.pictures(facts.read(run))["unknown"]
    assert "80.0 % where all images are answered" in picture.alt
    assert "accuracy of the answers, %" in picture.svg and "probability, %" in picture.svg
    assert picture.alt in render.html(run)


def test_card_says_when_it_is_silent(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    artifacts.UNKNOWN.path_in(run).unlink()  # of an older version
    assert "The probability beside an answer is not calibrated." in card.markdown(facts.read(run))
    text = card.markdown(facts.read(with_answers(run)))
    assert 'It says "unknown" where its probability is below 40.0 %.' in text and "is not calibrated" not in text
    silent = card.markdown(facts.read(with_answers(run, threshold=0.0, coverage=None)))
    assert "It never says unknown: bundle.unknown is false, and answers with one of its classes" in silent


def test_run_without_the_step_says_what_runs_it(tmp_path: Path) -> None:
    run = make_run(tmp_path, upto="quantize")
    assert "not run yet: edgedistill export" in block(run)
    assert render.collect(run)["unknown"] is None and not unknown.pictures(facts.read(run))


def test_wish_that_is_not_held_is_a_warning(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    few = block(with_answers(run, threshold=0.0))
    assert "warning: 10 labeled images are too few for a threshold with coverage 0.9" in few
    short = block(with_answers(run, threshold=0.0, coverage=None, accuracy=0.95))
    assert "warning: the answers do not have the accuracy that is asked for" in short
    assert "warning" not in block(with_answers(run, threshold=0.4, coverage=None, accuracy=0.95))


@pytest.mark.parametrize("n", [1, 2, 30])
def test_few_images_are_no_error(tmp_path: Path, n: int) -> None:
    run = with_answers(make_run(tmp_path))
    arrays = {name: array_N[:n] for name, array_N in artifacts.UNKNOWN_ANSWERS.read(run).items()}
    save_arrays(artifacts.UNKNOWN_ANSWERS.path_in(run), **arrays)
    assert f"on {n} test images" in block(run) and "unknown" in unknown.pictures(facts.read(run))
