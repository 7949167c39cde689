"""Callbacks are told of the start, each step, each evaluation and the end; without any, nothing is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import edgedistill as ed
from tests.helpers import miniature


class Recorder(ed.Callback):
    """Writes down what it is told; raises at a step if it shall."""

    def __init__(self, fails_after: int = 10**6) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.fails_after = fails_after

    def on_start(self, run: Path, recipe: Mapping[str, Any]) -> None:
        self.calls.append(("start", run, recipe["distill"]["steps"]))

    def on_step(self, stage: str, step: int, scalars: Mapping[str, float]) -> None:
        self.calls.append(("step", stage, step, scalars["loss"]))
        if step == self.fails_after:
            raise RuntimeError("full")

    def on_evaluation(self, stage: str, step: int, scalars: Mapping[str, float]) -> None:
        self.calls.append(("evaluation", stage, step, scalars["top1"]))

    def on_end(self, run: Path, error: BaseException | None) -> None:
        self.calls.append(("end", run, error))


def test_callbacks_hear_all_and_a_failing_one_ends_a_run_that_can_go_on(tmp_path: Path) -> None:
    project = miniature.write(tmp_path)
    first = Recorder(fails_after=12)
    with pytest.raises(RuntimeError, match="full"):
        ed.train(project.recipe, runs=project.runs, callbacks=[first])
    assert first.calls[0][::2] == ("start", 30) and repr(first.calls[-1][2]) == "RuntimeError('full')"
    second = Recorder()
    run = ed.train(project.recipe, runs=project.runs, callbacks=[second])
    assert second.calls[0] == ("start", run.path, 30) and second.calls[-1] == ("end", run.path, None)
    told = [call for call in first.calls + second.calls if call[1] == "distill"]
    steps = [call[2] for call in told if call[0] == "step"]
    assert steps[:12] == list(range(1, 13)) and steps[12:] == list(range(11, 31))  # a checkpoint every 5 steps
    lines = [json.loads(line) for line in (run.path / "distill/metrics.jsonl").read_text().splitlines()]
    assert {call[2]: call[3] for call in told if call[0] == "step"} == {line["step"]: line["loss"] for line in lines}
    evaluated = {line["step"]: line["val"]["top1"] for line in lines if "val" in line}
    assert {call[2]: call[3] for call in told if call[0] == "evaluation"} == evaluated
    ed.train(project.recipe, runs=project.runs)
    assert second.calls[-1] == ("end", run.path, None)
