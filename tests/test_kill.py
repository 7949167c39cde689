"""A run that is killed at any step and restarted gives the same student, byte for byte, as an uninterrupted run."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import time
from pathlib import Path

import pytest

from edgedistill.run.files import sha256_file
from tests.helpers import miniature
from tests.helpers.miniature import Project

# long enough to be killed in the middle of a step
LONG_RECIPE = miniature.RECIPE.replace("  steps: 30\n", "  steps: 400\n").replace("steps: 2}", "steps: 60}")
KILLED_STEPS = ("weigh", "search", "search", "distill", "distill", "baseline", "export", "quantize", "bench")
DELAY_S = {"weigh": 3.0, "search": 1.0, "distill": 2.0, "baseline": 2.0, "export": 2.0, "quantize": 0.1, "bench": 0.5}


def events(project: Project) -> list[tuple[str, str]]:
    """(step, event) pairs logged so far, without a line that a kill cut short."""
    lines = (path.read_text(encoding="utf-8") for path in project.runs.glob("mini-*/log.jsonl"))
    logged = []
    for line in "".join(lines).splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        logged.append((entry["step"].partition("-")[0], entry["event"]))
    return logged


def kill_during(project: Project, step: str, delay_s: float) -> bool:
    """Start the run, and kill it `delay_s` after `step` started; False if it ended before that."""
    before = len(events(project))
    with subprocess.Popen(
        miniature.command("run", project.recipe, "--runs", project.runs),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while process.poll() is None and (step, "start") not in events(project)[before:]:
            time.sleep(0.01)
        time.sleep(delay_s)
        process.kill()
        return process.wait() == -9


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_and_restarted_run_gives_same_student(tmp_path: Path) -> None:
    uninterrupted, killed = (miniature.write(tmp_path / name, LONG_RECIPE) for name in ("uninterrupted", "killed"))
    completed = miniature.edgedistill("run", uninterrupted.recipe, "--runs", uninterrupted.runs)
    assert completed.code == 0, completed.err
    generator = random.Random(20260101)
    killed_steps = [step for step in KILLED_STEPS if kill_during(killed, step, generator.uniform(0, DELAY_S[step]))]
    assert len(killed_steps) >= 5 and {"weigh", "distill"} <= set(killed_steps)
    assert ("distill", "start") in events(killed)
    completed = miniature.edgedistill("run", killed.recipe, "--runs", killed.runs)
    assert completed.code == 0, completed.err
    students = ("distill/student.safetensors", "baseline/distill/student.safetensors", "baseline/baseline.json")
    for name in (*students, "search/student.json", "weigh/weights.json"):
        assert (killed.run / name).read_bytes() == (uninterrupted.run / name).read_bytes(), name
    steps_logged = [
        [line["step"] for line in map(json.loads, (project.run / "distill/metrics.jsonl").read_text().splitlines())]
        for project in (killed, uninterrupted)
    ]
    assert steps_logged[0] == steps_logged[1] == list(range(1, 401))
    again = miniature.edgedistill("run", killed.recipe, "--runs", killed.runs)
    assert again.code == 0 and "torch was not loaded" in again.err
    assert again.err.count("up to date") == len(killed.manifest())


def steps_done(project: Project) -> list[int]:
    """The steps in metrics.jsonl, in its order, without a line that a kill cut short."""
    steps = []
    for path in project.runs.glob("mini-*/distill/metrics.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                steps.append(json.loads(line)["step"])
    return steps


def kill_at_step(project: Project, step: int) -> None:
    """Start the run and kill it as soon as the distillation has done `step` steps."""
    with subprocess.Popen(
        miniature.command("run", project.recipe, "--runs", project.runs),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while process.poll() is None and max(steps_done(project), default=0) < step:
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -9, "it ended before it was killed"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_distill_killed_midway_resumes_from_checkpoint(tmp_path: Path) -> None:
    project = miniature.write(tmp_path, LONG_RECIPE.replace("steps: 400", "steps: 4000"))
    kill_at_step(project, 23)
    checkpoint = project.run / "distill/last.pt"
    assert checkpoint.is_file() and not (project.run / "distill/student.safetensors").exists()
    digest, reached = sha256_file(checkpoint), max(steps_done(project))
    kill_at_step(project, reached + 20)
    assert sha256_file(checkpoint) != digest
    steps = steps_done(project)
    assert steps == list(range(1, steps[-1] + 1)) and steps[-1] >= reached + 20
