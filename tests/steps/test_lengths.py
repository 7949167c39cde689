"""How long trainings are: the number of steps of a run does not change with the machine that goes on with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgedistill.distill import schedule
from edgedistill.run import artifacts
from edgedistill.run.directory import Run
from edgedistill.steps import lengths
from edgedistill.steps.context import Context
from tests.helpers import miniature

AUTO = ("distill.steps=auto", "distill.minutes=0.001", "distill.method=transfer", "search.trials=1", "search.steps=1")


def test_speed_is_that_of_the_machine_that_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "LEAST_IN_TIME", 3)
    monkeypatch.setattr(schedule, "speed", lambda: 0.25)
    project = miniature.write(tmp_path)
    sets = [part for setting in AUTO for part in ("--set", setting)]
    outcome = miniature.call("train", project.recipe, "--runs", project.runs, *sets)
    assert outcome.code == 0, outcome.err
    run = Run(path=project.run)
    recipe, base = run.recipe()
    context, student = Context(recipe=recipe, base=base, run=run), artifacts.RESULT.read(run)
    monkeypatch.setattr(schedule, "speed", lambda: 64.0)
    assert lengths.training_steps(context, student.spec) == student.steps < schedule.LEAST
    artifacts.SPEED.path_in(run).unlink()  # as a run of an older edgedistill
    assert lengths.training_steps(context, student.spec) > student.steps
