"""A run whose unlabeled images stand in shards."""

from __future__ import annotations

import io
import json
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import miniature, tars

ADAPTED = "{name: adapted, lam: 0.5}"


def losses(project: miniature.Project) -> list[float]:
    lines = (project.run / "distill/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> miniature.Project:
    """A finished training; look at it, and copy it before changing anything."""
    project = tars.beside(miniature.write(tmp_path_factory.mktemp("shards") / "one"), ADAPTED)
    # one picture of test and one that stands in the first shard already
    test = (project.root / "pictures/test/lying/00.png").read_bytes()
    tars.write(project.root / "shards/02.tar", {"0.png": test, "1.png": shards_first(project), "2.png": extra(9)})
    said = miniature.call("train", project.recipe, "--runs", project.runs)
    assert said.code == 0, said.err
    assert "35 more without a label in 4 shards, 2 left out: seen before, or in data" in unwrapped(said.out)
    return project


def unwrapped(text: str) -> str:
    return " ".join(text.split())


def extra(seed: int) -> bytes:
    out = io.BytesIO()
    miniature.picture(True, 9000 + seed).save(out, "png")
    return out.getvalue()


def shards_first(project: miniature.Project) -> bytes:
    import tarfile

    with tarfile.open(project.root / "shards/00.tar") as tar:
        found = tar.extractfile("000.png")
        assert found is not None
        return found.read()


def test_what_was_streamed_is_written_down(trained: miniature.Project) -> None:
    data = json.loads((trained.run / "data.json").read_text())
    assert data["shards"] == 4 and data["streamed"] == 10 + 11 + 1 + 13
    assert data["streamed_duplicates"] == 2 and data["streamed_corrupt"] == 0


def test_a_second_run_does_nothing_without_torch(trained: miniature.Project) -> None:
    said = miniature.edgedistill("train", trained.recipe, "--runs", trained.runs)
    assert said.code == 0 and "distill    up to date" in said.err and "torch was not loaded" in said.err


def test_the_student_saw_the_shards(trained: miniature.Project, tmp_path: Path) -> None:
    without = miniature.write(tmp_path / "without")
    said = miniature.call("train", without.recipe, "--runs", without.runs, "--set", f"distill.method={ADAPTED}")
    assert said.code == 0, said.err
    assert len(losses(without)) == len(losses(trained)) and losses(without)[1:] != losses(trained)[1:]


def test_a_changed_shard_is_labeled_and_trained_anew(trained: miniature.Project, tmp_path: Path) -> None:
    changed = trained.copy(tmp_path)
    labels = sorted((changed.runs / ".cache/sources").glob("*/done.json"))
    before = {path: path.stat().st_mtime_ns for path in labels}
    tars.write(changed.root / "shards/03.tar", {f"{at}.png": extra(at) for at in range(5)})
    said = miniature.call("train", changed.recipe, "--runs", changed.runs)
    assert said.code == 0 and "27 more without a label in 4 shards" in unwrapped(said.out)
    assert losses(changed) != losses(trained)
    # two sources asked about the one shard; the other three and the store were not touched
    now = sorted((changed.runs / ".cache/sources").glob("*/done.json"))
    assert len(now) == len(labels) + 2 and all(path.stat().st_mtime_ns == known for path, known in before.items())


def test_check_looks_at_the_first_shard(tmp_path: Path) -> None:
    project = tars.beside(miniature.write(tmp_path / "one"))
    assert miniature.call("check", project.recipe).code == 0
    tars.write(project.root / "shards/00.tar", {"a.txt": b"x"})
    said = miniature.call("check", project.recipe)
    assert said.code == 2 and "00.tar: a is no image; name shards with jpg, png or webp files" in said.err
    (project.root / "shards/03.tar").unlink()
    said = miniature.call("check", project.recipe)
    assert said.code == 2 and "03.tar: No such file or directory; bring the file back" in said.err
    said = miniature.call("check", project.recipe, "--set", "unlabeled.kind=tar")
    assert said.code == 2 and "unlabeled.kind: input should be 'wds' (got 'tar')" in said.err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    longer = ("--set", "distill.steps=300", "--set", "distill.evaluate_every=1000")
    whole, broken = (tars.beside(miniature.write(tmp_path / name), ADAPTED) for name in ("whole", "broken"))
    assert miniature.edgedistill("train", whole.recipe, "--runs", whole.runs, *longer).code == 0
    strikes = 0
    for _ in range(20):
        argv = miniature.command("train", broken.recipe, "--runs", broken.runs, *longer)
        with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            seen, until = len(losses(broken)) if list(broken.runs.glob("mini-*/distill/metrics.jsonl")) else 0, 60
            started = time.monotonic()
            while process.poll() is None and time.monotonic() - started < until:
                if list(broken.runs.glob("mini-*/distill/metrics.jsonl")) and len(losses(broken)) > seen + 40:
                    process.kill()
                    strikes += 1
                time.sleep(0.02)
            if process.wait() == 0:
                break
    assert strikes >= 2 and losses(broken) == losses(whole)
    ours, theirs = ((one.run / "distill/student.safetensors").read_bytes() for one in (broken, whole))
    assert np.array_equal(np.frombuffer(ours, np.uint8), np.frombuffer(theirs, np.uint8))
