"""Training by several processes: real ones, started by torchrun, on gloo and loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from benchmarks.interrupts import processes_of
from tests.helpers import miniature, tars
from tests.steps.test_folds import few_labels


def start_training(
    project: miniature.Project, processes: int, *more: str, program: str = "edgedistill"
) -> subprocess.Popen[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    argv = [
        sys.executable,
        *(torchrun if processes > 1 else []),
        "-m",
        program,
        "train",
        str(project.recipe),
        "--runs",
        str(project.runs),
        *more,
    ]
    return subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )


def train(project: miniature.Project, processes: int, *more: str, program: str = "edgedistill") -> str:
    process = start_training(project, processes, *more, program=program)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out


def losses(project: miniature.Project) -> list[float]:
    lines = (project.run / "distill/metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def weights(project: miniature.Project) -> dict[str, np.ndarray]:
    return dict(load_file(project.run / "distill/student.safetensors"))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", ["{name: weighted, lam: 0.8}", "{name: consistent, threshold: 0.5}"])
def test_two_processes_train_the_same_student_as_one(tmp_path: Path, method: str) -> None:
    # with a rung in the search, and sources whose outputs the processes compute together
    options = ("--set", f"distill.method={method}", "--set", "search.rungs=1", "--set", "search.steps=4")
    alone, both = (miniature.write(tmp_path / name) for name in ("alone", "both"))
    train(alone, 1, *options)
    out = train(both, 2, *options)
    assert out.count("The student is ") == 1  # only the leader prints
    assert alone.run.name == both.run.name
    # sums in another order differ in the last digit, and training amplifies the difference with every step
    np.testing.assert_allclose(losses(both)[:10], losses(alone)[:10], rtol=1e-5)
    np.testing.assert_allclose(losses(both), losses(alone), rtol=5e-3)
    weights_of_both = weights(both)
    for name, expected in weights(alone).items():
        assert np.linalg.norm(weights_of_both[name] - expected) <= 1e-2 * np.linalg.norm(expected), name
    rows = [(project.run / "search/trials.csv").read_text().splitlines() for project in (alone, both)]
    assert [line.split(",")[:4] for line in rows[0]] == [line.split(",")[:4] for line in rows[1]]
    alone_paths = sorted((alone.runs / ".cache/sources").rglob("features.npy"))
    both_paths = sorted((both.runs / ".cache/sources").rglob("features.npy"))
    # of two sources on the images of train, and of the better one on those of test
    assert len(alone_paths) == 3 and [path.parent.name for path in alone_paths] == [
        path.parent.name for path in both_paths
    ]
    for alone_path, both_path in zip(alone_paths, both_paths, strict=True):
        np.testing.assert_allclose(np.load(alone_path), np.load(both_path), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_share_the_shards(tmp_path: Path) -> None:
    alone, both = (
        tars.add_shards(miniature.write(tmp_path / name), "{name: adapted, lam: 0.5}") for name in ("alone", "both")
    )
    with_peer = ("--set", "distill.peer=true")  # it answers the shards, too
    train(alone, 1, *with_peer, program="tests.helpers.with_share")
    train(both, 2, *with_peer, program="tests.helpers.with_share")
    np.testing.assert_allclose(losses(both)[:10], losses(alone)[:10], rtol=1e-4)
    np.testing.assert_allclose(losses(both), losses(alone), rtol=1e-2)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("write", [miniature.write, few_labels])
def test_two_processes_learn_from_a_tuned_source(tmp_path: Path, write: Callable[[Path], miniature.Project]) -> None:
    """Also where each fold has tuned sources of its own, and in a run that goes on."""
    changes = ("search.trials=1", "distill.steps=4", "distill.teacher={name: selftrained, tuned: 1}", "baseline=false")
    settings = [part for change in (*changes, "quantize.enabled=false") for part in ("--set", change)]
    projects = [tars.add_shards(write(tmp_path / name), "auto") for name in ("alone", "both")]
    for processes, project in enumerate(projects, 1):
        recipe = project.recipe.read_text(encoding="utf-8")
        project.recipe.write_text(recipe.replace("resnet10t", "test_resnet"), encoding="utf-8")  # for its speed
        train(project, processes, *settings)
        (project.run / "distill/result.json").unlink()
        train(project, processes, *settings)
    alone, both = projects
    np.testing.assert_allclose(losses(both)[:4], losses(alone)[:4], rtol=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("shards", [False, True])
def test_two_processes_share_the_work_of_a_headless_source(tmp_path: Path, shards: bool) -> None:
    headless = "  - {name: second, kind: timm, model: convnextv2_pico.fcmae, pretrained: false, input_px: 32}\n"
    recipe = "".join(
        headless if "name: second" in line else line for line in miniature.RECIPE.splitlines(keepends=True)
    )
    projects = [miniature.write(tmp_path / name, recipe) for name in ("alone", "both")]
    method = "{name: combined, lam: 0.5}"
    for processes, project in enumerate(projects, 1):
        if shards:
            tars.add_shards(project, method)
        train(project, processes, "--set", f"distill.method={method}", "--set", "baseline=false")
    alone, both = projects
    np.testing.assert_allclose(losses(both)[:10], losses(alone)[:10], rtol=1e-4)
    np.testing.assert_allclose(losses(both), losses(alone), rtol=1e-2)
    for project in projects:
        cache = project.runs / ".cache/sources"
        assert 2 * len(list(cache.glob("*/probs.npy"))) == len(list(cache.glob("*/features.npy"))) > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_error_of_one_process_is_reported_and_ends_all(tmp_path: Path) -> None:
    project = tars.add_shards(miniature.write(tmp_path / "one"))
    tars.write(project.root / "shards/01.tar", {"a.txt": b"x"})  # read by the second process
    process = start_training(project, 2)
    err = process.communicate(timeout=120)[1]
    assert process.returncode != 0
    assert "process 1: " in err and "01.tar: holds no images; name shards with jpg, png or webp files" in err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_run_resumes_after_one_process_is_killed(tmp_path: Path) -> None:
    options = ("--set", "distill.steps=400", "--set", "distill.evaluate_every=1000")
    complete, broken = (miniature.write(tmp_path / name) for name in ("whole", "broken"))
    train(complete, 2, *options)
    launcher = start_training(broken, 2, *options)
    deadline = time.monotonic() + 120
    while not list(broken.runs.glob("mini-*/distill/last.pt")):
        assert time.monotonic() < deadline and launcher.poll() is None, launcher.communicate()
        time.sleep(0.02)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    assert len(children) == 2
    os.kill(int(children[-1]), signal.SIGKILL)
    launcher.communicate(timeout=120)  # the launcher also ends the other process
    assert launcher.returncode != 0
    n_steps = len(losses(broken))
    assert 0 < n_steps < 400
    train(broken, 2, *options)
    assert losses(broken) == losses(complete)  # the resumed run equals an uninterrupted one
    for name, expected in weights(complete).items():
        np.testing.assert_array_equal(weights(broken)[name], expected, err_msg=name)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_the_launcher_ends_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setenv("EDGEDISTILL_MARK", str(tmp_path))
    project = miniature.write(tmp_path / "two")
    launcher = start_training(project, 2, "--set", "distill.steps=100000")
    deadline = time.monotonic() + 240
    while not list(project.runs.glob("mini-*/distill/last.pt")):
        assert time.monotonic() < deadline and launcher.poll() is None, launcher.communicate()
        time.sleep(0.02)
    launcher.send_signal(number)
    err = launcher.communicate(timeout=60)[1]
    # the launcher prints a traceback of its own
    assert launcher.returncode != 0 and err.count("stopped; the same command goes on from here\n") == 1
    assert err.count("Traceback") <= 1 and not processes_of(str(tmp_path))


@pytest.mark.slow
def test_unevenly_shared_batch_is_refused(tmp_path: Path) -> None:
    project = miniature.write(tmp_path / "three")
    process = start_training(project, 2, "--set", "distill.batch_unlabeled=3")
    err = process.communicate(timeout=120)[1]
    assert process.returncode != 0
    assert "distill.batch_unlabeled: 3 images cannot be shared evenly by 2 processes; make it a multiple of 2" in err
    assert not list(project.runs.glob("mini-*/distill/metrics.jsonl"))
