"""Training by several processes: real ones, started by torchrun, on gloo and loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.helpers import miniature, tars


def started(project: miniature.Project, processes: int, *more: str) -> subprocess.Popen[str]:
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    argv = [
        sys.executable,
        *(several if processes > 1 else []),
        "-m",
        "edgedistill",
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


def trained(project: miniature.Project, processes: int, *more: str) -> str:
    one = started(project, processes, *more)
    out, err = one.communicate(timeout=240)
    assert one.returncode == 0, err
    return out


def losses(project: miniature.Project) -> list[float]:
    lines = (project.run / "distill/metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def weights(project: miniature.Project) -> dict[str, np.ndarray]:
    return dict(load_file(project.run / "distill/student.safetensors"))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", ["{name: weighted, lam: 0.8}", "{name: consistent, threshold: 0.5}"])
def test_two_processes_train_what_one_trains(tmp_path: Path, method: str) -> None:
    # a rung in the search, and a source that the others must help to ask
    how = ("--set", f"distill.method={method}", "--set", "search.rungs=1", "--set", "search.steps=4")
    alone, both = (miniature.write(tmp_path / name) for name in ("alone", "both"))
    trained(alone, 1, *how)
    out = trained(both, 2, *how)
    assert out.count("The student is ") == 1  # the leader alone speaks
    assert alone.run.name == both.run.name
    # sums in another order differ in their last digit, and training makes more of it with every step
    np.testing.assert_allclose(losses(both)[:10], losses(alone)[:10], rtol=1e-5)
    np.testing.assert_allclose(losses(both), losses(alone), rtol=5e-3)
    ours = weights(both)
    for name, expected in weights(alone).items():
        assert np.linalg.norm(ours[name] - expected) <= 1e-2 * np.linalg.norm(expected), name
    rows = [(one.run / "search/trials.csv").read_text().splitlines() for one in (alone, both)]
    assert [line.split(",")[:4] for line in rows[0]] == [line.split(",")[:4] for line in rows[1]]
    known = sorted((alone.runs / ".cache/sources").rglob("features.npy"))
    found = sorted((both.runs / ".cache/sources").rglob("features.npy"))
    assert len(known) == 2 and [one.parent.name for one in known] == [one.parent.name for one in found]
    for one, other in zip(known, found, strict=True):
        np.testing.assert_allclose(np.load(one), np.load(other), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_divide_the_shards(tmp_path: Path) -> None:
    alone, both = (
        tars.beside(miniature.write(tmp_path / name), "{name: adapted, lam: 0.5}") for name in ("alone", "both")
    )
    trained(alone, 1)
    trained(both, 2)
    np.testing.assert_allclose(losses(both)[:10], losses(alone)[:10], rtol=1e-4)
    np.testing.assert_allclose(losses(both), losses(alone), rtol=1e-2)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_goes_wrong_for_one_is_told_and_ends_all(tmp_path: Path) -> None:
    project = tars.beside(miniature.write(tmp_path / "one"))
    tars.write(project.root / "shards/01.tar", {"a.txt": b"x"})  # the second process's
    one = started(project, 2)
    err = one.communicate(timeout=120)[1]
    assert one.returncode != 0
    assert "process 1: " in err and "01.tar: holds no images; name shards with jpg, png or webp files" in err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_of_two_is_killed(tmp_path: Path) -> None:
    how = ("--set", "distill.steps=400", "--set", "distill.evaluate_every=1000")
    whole, broken = (miniature.write(tmp_path / name) for name in ("whole", "broken"))
    trained(whole, 2, *how)
    launcher = started(broken, 2, *how)
    until = time.monotonic() + 120
    while not list(broken.runs.glob("mini-*/distill/last.pt")):
        assert time.monotonic() < until and launcher.poll() is None, launcher.communicate()
        time.sleep(0.02)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    assert len(children) == 2
    os.kill(int(children[-1]), signal.SIGKILL)
    launcher.communicate(timeout=120)  # the launcher ends the other one, too
    assert launcher.returncode != 0
    done = len(losses(broken))
    assert 0 < done < 400
    trained(broken, 2, *how)
    assert losses(broken) == losses(whole)  # it went on as if nothing had been
    for name, expected in weights(whole).items():
        np.testing.assert_array_equal(weights(broken)[name], expected, err_msg=name)


@pytest.mark.slow
def test_batches_that_cannot_be_shared(tmp_path: Path) -> None:
    project = miniature.write(tmp_path / "three")
    one = started(project, 2, "--set", "distill.batch_unlabeled=3")
    err = one.communicate(timeout=120)[1]
    assert one.returncode != 0
    assert "distill.batch_unlabeled: 3 images cannot be shared evenly by 2 processes; make it a multiple of 2" in err
    assert not list(project.runs.glob("mini-*/distill/metrics.jsonl"))
