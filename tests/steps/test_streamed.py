"""A run whose unlabeled images are in shards."""

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
    """A finished training; copy it before any change."""
    project = tars.add_shards(miniature.write(tmp_path_factory.mktemp("shards") / "one"), ADAPTED)
    # the third shard repeats one picture of test and one of the first shard
    test = (project.root / "pictures/test/lying/00.png").read_bytes()
    tars.write(
        project.root / "shards/02.tar", {"0.png": test, "1.png": first_png_of_shards(project), "2.png": extra_png(9)}
    )
    outcome = miniature.call("train", project.recipe, "--runs", project.runs)
    assert outcome.code == 0, outcome.err
    assert "35 more without a label in 4 shards, 2 left out: seen before, or in data" in unwrapped(outcome.out)
    return project


def unwrapped(text: str) -> str:
    return " ".join(text.split())


def extra_png(seed: int) -> bytes:
    out = io.BytesIO()
    miniature.picture(True, 9000 + seed).save(out, "png")
    return out.getvalue()


def first_png_of_shards(project: miniature.Project) -> bytes:
    import tarfile

    with tarfile.open(project.root / "shards/00.tar") as tar:
        stream = tar.extractfile("000.png")
        assert stream is not None
        return stream.read()


def test_streamed_counts_are_recorded(trained: miniature.Project) -> None:
    facts = json.loads((trained.run / "data.json").read_text())
    assert facts["shards"] == 4 and facts["streamed"] == 10 + 11 + 1 + 13
    assert facts["streamed_duplicates"] == 2 and facts["streamed_corrupt"] == 0


def test_second_run_does_no_work_and_skips_torch(trained: miniature.Project) -> None:
    outcome = miniature.edgedistill("train", trained.recipe, "--runs", trained.runs)
    assert outcome.code == 0 and "distill    up to date" in outcome.err and "torch was not loaded" in outcome.err


def test_shards_change_the_training(trained: miniature.Project, tmp_path: Path) -> None:
    without = miniature.write(tmp_path / "without")
    outcome = miniature.call("train", without.recipe, "--runs", without.runs, "--set", f"distill.method={ADAPTED}")
    assert outcome.code == 0, outcome.err
    assert len(losses(without)) == len(losses(trained)) and losses(without)[1:] != losses(trained)[1:]


def test_changed_shard_is_labeled_again_and_retrains(trained: miniature.Project, tmp_path: Path) -> None:
    project = trained.copy(tmp_path)
    labels = sorted((project.runs / ".cache/sources").glob("*/done.json"))
    before = {path: path.stat().st_mtime_ns for path in labels}
    tars.write(project.root / "shards/03.tar", {f"{index}.png": extra_png(index) for index in range(5)})
    outcome = miniature.call("train", project.recipe, "--runs", project.runs)
    assert outcome.code == 0 and "27 more without a label in 4 shards" in unwrapped(outcome.out)
    assert losses(project) != losses(trained)
    # both sources ran on the changed shard; the other three shards and the store are unchanged
    labels_after = sorted((project.runs / ".cache/sources").glob("*/done.json"))
    assert len(labels_after) == len(labels) + 2 and all(
        path.stat().st_mtime_ns == modified_ns for path, modified_ns in before.items()
    )


def test_check_reads_first_shard(tmp_path: Path) -> None:
    project = tars.add_shards(miniature.write(tmp_path / "one"))
    assert miniature.call("check", project.recipe).code == 0
    tars.write(project.root / "shards/00.tar", {"a.txt": b"x"})
    outcome = miniature.call("check", project.recipe)
    assert outcome.code == 2 and "00.tar: a is no image (is not a picture" in outcome.err
    assert "; name shards with jpg, png or webp files" in outcome.err
    (project.root / "shards/03.tar").unlink()
    outcome = miniature.call("check", project.recipe)
    assert outcome.code == 2 and "03.tar: No such file or directory; bring the file back" in outcome.err
    outcome = miniature.call("check", project.recipe, "--set", "unlabeled.kind=tar")
    assert outcome.code == 2 and "unlabeled.kind: input should be 'wds' (got 'tar')" in outcome.err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_run_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    longer = ("--set", "distill.steps=300", "--set", "distill.evaluate_every=1000")
    complete, broken = (tars.add_shards(miniature.write(tmp_path / name), ADAPTED) for name in ("whole", "broken"))
    assert miniature.edgedistill("train", complete.recipe, "--runs", complete.runs, *longer).code == 0
    strikes = 0
    for _ in range(20):
        argv = miniature.command("train", broken.recipe, "--runs", broken.runs, *longer)
        with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            n_before, limit_s = len(losses(broken)) if list(broken.runs.glob("mini-*/distill/metrics.jsonl")) else 0, 60
            started = time.monotonic()
            while process.poll() is None and time.monotonic() - started < limit_s:
                if list(broken.runs.glob("mini-*/distill/metrics.jsonl")) and len(losses(broken)) > n_before + 40:
                    process.kill()
                    strikes += 1
                time.sleep(0.02)
            if process.wait() == 0:
                break
    assert strikes >= 2 and losses(broken) == losses(complete)
    broken_bytes, complete_bytes = (
        (project.run / "distill/student.safetensors").read_bytes() for project in (broken, complete)
    )
    assert np.array_equal(np.frombuffer(broken_bytes, np.uint8), np.frombuffer(complete_bytes, np.uint8))
