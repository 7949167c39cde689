"""A run that is interrupted thirty times ends soon each time, leaves nothing behind, and gives the same student."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks import interrupts

BOUND_S = 20.0  # generous: `python -m benchmarks.interrupts` measures the times


def interrupted_student(recipe: Path, number: signal.Signals) -> tuple[list[interrupts.Interruption], str]:
    events = list(interrupts.interruptions(recipe, [number]))
    return events, interrupts.finish(recipe)


@pytest.mark.slow
@pytest.mark.usefixtures("heeded_ctrl_c")
@pytest.mark.timeout(1200)
def test_thirty_interrupts_end_soon_and_change_nothing(tmp_path: Path) -> None:
    recipes = [interrupts.write_project(tmp_path / name) for name in ("ctrl-c", "sigterm", "uninterrupted")]
    with ThreadPoolExecutor(2) as pool:  # of the two cores each has one
        lanes = list(pool.map(interrupted_student, recipes, interrupts.SIGNALS))
    events = [event for lane, _ in lanes for event in lane]
    assert len(events) == 30
    for event in events:
        assert event.code == 128 + signal.Signals[event.signal], event
        assert event.stderr.splitlines()[-1] == "stopped; the same command goes on from here", event
        assert "Traceback" not in event.stderr, event
        assert event.seconds < BOUND_S and event.left == (), event
    assert {student for _, student in lanes} == {interrupts.finish(recipes[2])}
    assert not list(tmp_path.glob("*/runs/**/*.tmp"))
