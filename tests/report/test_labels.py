"""The report says how labels came, whether more of them pay, and warns where they were chosen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgedistill.records import MoreLabels
from edgedistill.report import render
from edgedistill.run import artifacts
from edgedistill.run.directory import Run
from edgedistill.run.files import write_json
from tests.helpers import report_runs


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return report_runs.make_run(tmp_path)


def with_how(run: Run, **how: int) -> str:
    write_json(artifacts.DATA.path_in(run), {**artifacts.DATA.read(run), "how": how})
    return " ".join(render.text(run).split())


def test_chosen_labels_are_a_warning_with_their_number(run: Run) -> None:
    text = with_how(run, random=10, suggested=38, bulk=2)
    assert "labels by how they came: 10 random, 38 suggested, 2 bulk" in text
    assert "labels: 40 of 50 were chosen, not drawn at random: accuracy, prior and threshold" in text
    assert any(line.startswith("labels: 40 of 50") for line in render.collect(run)["warnings"])


def test_random_and_given_labels_are_none(run: Run) -> None:
    text = with_how(run, random=10, given=40)
    assert "10 random, 40 given" in text
    assert "were chosen" not in text


def test_what_more_labels_are_worth_is_in_every_report(run: Run) -> None:
    assert "do more labels pay?" not in render.text(run)
    record = MoreLabels(labels=100, next=50, gain=0.4, low=-0.5, high=2.25)
    artifacts.MORE_LABELS.write(run, record)
    line = "The next 50 are worth +0.4 points [-0.5, +2.2] to the teacher: cannot tell: label more"
    assert line in " ".join(render.text(run).split())
    assert line in render.html(run)
    assert json.loads(json.dumps(render.collect(run)["more_labels"]))["high"] == 2.25
