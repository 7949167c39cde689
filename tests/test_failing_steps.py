"""A step that fails, wherever it fails, leaves the run as it was, and the same command goes on."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from edgedistill import session
from edgedistill.errors import EdgeDistillError
from edgedistill.run.files import sha256_file
from edgedistill.steps.context import Context
from edgedistill.steps.step import Step, run_steps
from tests.helpers import miniature
from tests.helpers.miniature import Project
from tests.test_pipeline import STEPS, outcomes

BENCH = "bench-local-onnxruntime-cpu"


def files(project: Project) -> dict[str, str]:
    """sha256 of every file of the run but its log and what lies aside."""
    paths = (path for path in project.run.rglob("*") if path.is_file())
    names = {str(path.relative_to(project.run)): path for path in paths}
    return {
        name: sha256_file(path)
        for name, path in sorted(names.items())
        if not name.startswith((".aside", ".lock", "log.jsonl", "manifest.json"))
    }


def command(project: Project, step: str) -> tuple[str | Path, ...]:
    """The command that runs a step again."""
    training = step in STEPS[: STEPS.index("export")]
    return ("train", project.recipe, "--runs", project.runs) if training else ("bench", project.run)


def require_usable(project: Project) -> None:
    """The old artifacts can be measured and label pictures; nothing runs for that."""
    measured = miniature.call("bench", project.run)
    assert measured.code == 0, measured.err
    assert set(outcomes(measured.err).values()) == {"up to date"}
    picture = next((project.root / "pictures/test").rglob("*.png"))
    predicted = miniature.call("predict", picture, "--run", project.run)
    assert predicted.code == 0 and "lying" in predicted.out, predicted.err


def broken(step: Step, when: str) -> Step:
    """A new version of a step that fails before its first file, after it, or after the last one."""

    def fail(context: Context) -> None:
        raise EdgeDistillError(f"{step.name}: broken for the test")

    def fail_midway(context: Context) -> None:
        with pytest.MonkeyPatch.context() as patches:
            written: list[Path] = []
            replace: Callable[[Path, Path], Path] = Path.replace

            def only_once(self: Path, target: Path) -> Path:
                if written:
                    fail(context)
                written.append(target)
                return replace(self, target)

            patches.setattr(Path, "replace", only_once)
            step.work(context)
        fail(context)

    def fail_at_end(context: Context) -> None:
        step.work(context)
        fail(context)

    works = {"first": fail, "midway": fail_midway, "last": fail_at_end}
    return dataclasses.replace(step, version=99, work=works[when])


Change = Callable[[str, Callable[[Step], Step]], None]


@pytest.fixture
def change(monkeypatch: pytest.MonkeyPatch) -> Change:
    """Let a session run another version of a step."""

    def changed(name: str, version: Callable[[Step], Step]) -> None:
        def steps_with_it(context: Context, steps: Sequence[Step], *rest: Any) -> None:
            run_steps(context, [version(step) if step.name == name else step for step in steps], *rest)

        monkeypatch.setattr(session, "run_steps", steps_with_it)

    return changed


CASES = [(name, when) for name in STEPS for when in ("first", "midway", "last")]
QUICK = [(name, "midway") for name in ("distill", "quantize", "bundle", BENCH)]


@pytest.mark.parametrize(
    ("name", "when"), [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES]
)
def test_failed_step_leaves_run_as_before(project_copy: Project, change: Change, name: str, when: str) -> None:
    before, manifest = files(project_copy), project_copy.manifest()
    change(name, lambda step: broken(step, when))
    failed = miniature.call(*command(project_copy, name))
    assert failed.code == 1 and "broken for the test" in failed.err and f"{name}: as before" in failed.err, failed.err
    assert files(project_copy) == before and project_copy.manifest() == manifest
    change(name, lambda step: step)
    require_usable(project_copy)
    assert files(project_copy) == before
    change(name, lambda step: dataclasses.replace(step, version=99))
    mended = miniature.call(*command(project_copy, name))
    assert mended.code == 0 and outcomes(mended.err)[name] == "ran", mended.err
    assert not list((project_copy.run / ".aside").rglob("*.*"))


def test_failed_export_leaves_int8_graphs_and_settings(project_copy: Project) -> None:
    moved = miniature.call("train", project_copy.recipe, "--runs", project_copy.runs)  # the recipe's paths are new
    assert moved.code == 0, moved.err
    before = files(project_copy)
    (project_copy.root / "pictures").rename(project_copy.root / "away")
    failed = miniature.call("export", project_copy.run, "--no-int8")
    assert failed.code == 2 and "pictures" in failed.err, failed.err
    assert files(project_copy) == before
    measured = miniature.call("bench", project_copy.run, "--again", "--set", "bench.samples=6")
    assert measured.code == 0 and outcomes(measured.err)[BENCH] == "ran", measured.err
    (project_copy.root / "away").rename(project_copy.root / "pictures")
    mended = miniature.call("export", project_copy.run, "--no-int8")
    assert mended.code == 0 and outcomes(mended.err)["quantize"] == "up to date", mended.err  # finished by the attempt
    assert not list((project_copy.run / "quantize").glob("*.onnx"))


def test_failed_measurement_leaves_the_former_one(project_copy: Project, change: Change) -> None:
    before = files(project_copy)
    change(BENCH, lambda step: dataclasses.replace(step, work=broken(step, "midway").work))
    failed = miniature.call("bench", project_copy.run, "--again")
    assert failed.code == 1 and files(project_copy) == before


def test_failed_export_of_run_leaves_recipe_of_its_artifacts(project_copy: Project, change: Change) -> None:
    before = files(project_copy)
    change("export", lambda step: broken(step, "midway"))
    bound = "export.max_relative_error=0.01"
    failed = miniature.call("run", project_copy.recipe, "--runs", project_copy.runs, "--set", bound)
    assert failed.code == 1 and files(project_copy) == before, failed.err
    change("export", lambda step: step)
    require_usable(project_copy)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_training_leaves_run_as_before_and_goes_on(tmp_path: Path) -> None:
    longer = miniature.RECIPE.replace("  steps: 30\n", "  steps: 400\n")
    project = miniature.write(tmp_path / "killed", longer)
    assert miniature.edgedistill("run", project.recipe, "--runs", project.runs).code == 0
    before = files(project)
    miniature.picture(False, 777).save(project.root / "pictures/train/lying/00.png")
    run = ("run", project.recipe, "--runs", project.runs)
    with subprocess.Popen(miniature.command(*run), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        metrics = project.run / "distill/metrics.jsonl"
        while not metrics.is_file() or not 23 < len(metrics.read_text().splitlines()) < 390:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert files(project) != before
    require_usable(project)
    assert files(project) == before
    completed = miniature.edgedistill(*run)
    assert completed.code == 0 and outcomes(completed.err)["weigh"] == "up to date", completed.err
    uninterrupted = miniature.write(tmp_path / "uninterrupted", longer)
    miniature.picture(False, 777).save(uninterrupted.root / "pictures/train/lying/00.png")
    assert miniature.edgedistill("train", uninterrupted.recipe, "--runs", uninterrupted.runs).code == 0
    students = [sha256_file(each.run / "distill/student.safetensors") for each in (project, uninterrupted)]
    assert students[0] == students[1] != before["distill/student.safetensors"]
