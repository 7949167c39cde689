"""Workers that share folds: none is computed twice, a dead worker's is taken over, and the answers are the same."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgedistill.errors import InputError
from edgedistill.recipe.schema import Search
from edgedistill.search import study
from edgedistill.steps import fold_workers
from edgedistill.steps.fold_workers import FoldOutcome, outcomes
from tests.helpers import postgres
from tests.helpers.report_runs import SPEC, accuracy
from tests.steps.test_folds import few_labels

COUNT = 4


def worker(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str = "mine") -> Any:
    """The part of a context that the workers read; one database for all of a folder."""
    monkeypatch.setattr(fold_workers, "identity", lambda context, version: name)
    monkeypatch.setattr(fold_workers, "POLL_S", 0.01)
    search = Search(storage=f"sqlite:///{folder}/folds.db", heartbeat_s=1)
    return SimpleNamespace(run=SimpleNamespace(path=folder), recipe=SimpleNamespace(name="mini", search=search))


def outcome(fold: int) -> FoldOutcome:
    from edgedistill.records import FoldScore

    answers = {"rows": np.array([fold, fold + COUNT]), "fp32": np.full((2, 2), fold / 3, dtype=np.float32)}
    return FoldOutcome(score=FoldScore(student=SPEC, trained=fold, fp32=accuracy(0.5, 2)), answers=answers)


def test_second_worker_reads_what_the_first_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, computed = worker(tmp_path, monkeypatch), []

    def run_fold(fold: int) -> FoldOutcome:
        computed.append(fold)
        return outcome(fold)

    first = outcomes(context, COUNT, run_fold, version=1)
    second = outcomes(context, COUNT, run_fold, version=1)
    assert computed == [0, 1, 2, 3]
    for mine, read in zip(first, second, strict=True):
        assert mine.score == read.score and mine.answers.keys() == read.answers.keys()
        for name, array in mine.answers.items():
            assert array.dtype == read.answers[name].dtype and (array == read.answers[name]).all()
    assert [read.score.trained for read in second] == [0, 1, 2, 3]


def test_fold_of_a_dead_worker_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = worker(tmp_path, monkeypatch)
    shared = study.open_study(tmp_path, context.recipe.search, "mini, folds", "mine")
    assert study.begin_trial(shared, "fold 2", {}, {}) is not None  # and its process dies
    monkeypatch.setattr(study, "MAX_MISSED_BEATS", 0)
    computed: list[int] = []
    outcomes(context, COUNT, lambda fold: computed.append(fold) or outcome(fold), version=1)
    assert sorted(computed) == [0, 1, 2, 3]


def test_fold_that_fails_is_free_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, computed = worker(tmp_path, monkeypatch), []

    def run_fold(fold: int) -> FoldOutcome:
        computed.append(fold)
        if computed == [0, 1]:
            raise InputError("no space left")
        return outcome(fold)

    with pytest.raises(InputError, match="no space"):
        outcomes(context, COUNT, run_fold, version=1)
    assert len(outcomes(context, COUNT, run_fold, version=1)) == COUNT and computed == [0, 1, 1, 2, 3]


def test_folds_of_another_recipe_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes(worker(tmp_path, monkeypatch), COUNT, outcome, version=1)
    with pytest.raises(InputError, match="is of another recipe"):
        outcomes(worker(tmp_path, monkeypatch, "other"), COUNT, outcome, version=1)


def begun(log: Path) -> list[str]:
    lines = log.read_text().splitlines() if log.is_file() else []
    return [line.strip() for line in lines if line.startswith("  fold ")]


@pytest.mark.slow
def test_workers_after_a_killed_one_end_as_one_alone(tmp_path: Path) -> None:
    """The command line with a real database: two more workers take over, to the bytes of a run without workers."""
    project = few_labels(tmp_path / "project")
    quick = ("distill.steps=6", "search.trials=1", "quantize.enabled=false")

    def start(name: str, *more: str) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "edgedistill", "train", str(project.recipe), "--runs", str(tmp_path / name)]
        argv += [part for setting in (*quick, *more) for part in ("--set", setting)]
        with (tmp_path / f"{name}.log").open("wb") as log:
            return subprocess.Popen(argv, stdout=log, stderr=log)

    def run_of(name: str) -> Path:
        (path,) = (tmp_path / name).glob("mini-*")
        return path

    assert start("alone").wait(600) == 0, (tmp_path / "alone.log").read_text()
    with postgres.server() as address:
        shared = (f"search.storage={address}", "search.heartbeat_s=1")
        killed = start("killed", *shared)
        deadline = time.monotonic() + 300
        while len(begun(tmp_path / "killed.log")) < 2 and killed.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        killed.send_signal(signal.SIGKILL)
        killed.wait(60)
        finished = set(begun(tmp_path / "killed.log")[:-1])
        # Only now, and two: either of them alone could have done every fold before the first one began.
        others = [start("other", *shared), start("third", *shared)]
        codes = [other.wait(600) for other in others]
    text = (tmp_path / "other.log").read_text()
    assert codes == [0, 0], text + (tmp_path / "third.log").read_text()
    assert finished and not finished & set(begun(tmp_path / "other.log")) and "by other workers" in text, text
    for name in ("folds/folds.json", "folds/answers.npz", "distill/student.safetensors"):
        assert len({(run_of(worker) / name).read_bytes() for worker in ("alone", "other", "third")}) == 1, name
    assert len(json.loads((run_of("other") / "folds/folds.json").read_text())["folds"]) == 5
