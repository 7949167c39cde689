"""A run that is killed, wherever, and started again ends as one that never was: the same student to the byte."""

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

# long enough that a kill strikes in the middle
LONGER = miniature.RECIPE.replace("  steps: 30\n", "  steps: 400\n").replace("steps: 2}", "steps: 60}")
STRIKES = ("weigh", "search", "search", "distill", "distill", "distill", "export", "quantize", "bench")
DELAY_S = {"weigh": 3.0, "search": 1.0, "distill": 2.0, "export": 2.0, "quantize": 0.1, "bench": 0.5}


def events(project: Project) -> list[tuple[str, str]]:
    """(step, event) as logged so far; a line that a kill cut short is no event."""
    lines = (path.read_text(encoding="utf-8") for path in project.runs.glob("mini-*/log.jsonl"))
    found = []
    for line in "".join(lines).splitlines():
        try:
            one = json.loads(line)
        except ValueError:
            continue
        found.append((one["step"].partition("-")[0], one["event"]))
    return found


def strike(project: Project, step: str, delay_s: float) -> bool:
    """Start the run, and kill it `delay_s` after `step` started; False where it was done before that."""
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
def test_killed_and_restarted_is_the_same_student(tmp_path: Path) -> None:
    whole, broken = (miniature.write(tmp_path / name, LONGER) for name in ("whole", "broken"))
    said = miniature.edgedistill("run", whole.recipe, "--runs", whole.runs)
    assert said.code == 0, said.err
    generator = random.Random(20260101)
    struck = [step for step in STRIKES if strike(broken, step, generator.uniform(0, DELAY_S[step]))]
    assert len(struck) >= 5 and {"weigh", "distill"} <= set(struck)
    assert ("distill", "start") in events(broken)
    said = miniature.edgedistill("run", broken.recipe, "--runs", broken.runs)
    assert said.code == 0, said.err
    for name in ("distill/student.safetensors", "search/student.json", "weigh/weights.json"):
        assert (broken.run / name).read_bytes() == (whole.run / name).read_bytes(), name
    steps = [
        [line["step"] for line in map(json.loads, (one.run / "distill/metrics.jsonl").read_text().splitlines())]
        for one in (broken, whole)
    ]
    assert steps[0] == steps[1] == list(range(1, 401))
    again = miniature.edgedistill("run", broken.recipe, "--runs", broken.runs)
    assert again.code == 0 and "torch was not loaded" in again.err
    assert again.err.count("up to date") == len(broken.manifest())


def steps_done(project: Project) -> list[int]:
    """The steps in metrics.jsonl, in its order; a line that a kill cut short is none."""
    found = []
    for path in project.runs.glob("mini-*/distill/metrics.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line)["step"])
    return found


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
def test_a_kill_in_mid_distill_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    project = miniature.write(tmp_path, LONGER.replace("steps: 400", "steps: 4000"))
    kill_at_step(project, 23)
    checkpoint = project.run / "distill/last.pt"
    assert checkpoint.is_file() and not (project.run / "distill/student.safetensors").exists()
    stamp, reached = sha256_file(checkpoint), max(steps_done(project))
    kill_at_step(project, reached + 20)
    assert sha256_file(checkpoint) != stamp
    further = steps_done(project)
    assert further == list(range(1, further[-1] + 1)) and further[-1] >= reached + 20
