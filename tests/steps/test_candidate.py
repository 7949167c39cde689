"""A latency budget from recipe to report: candidates are exported, quantized and timed before any of them trains."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from edgedistill.run.directory import find_run
from edgedistill.steps import search
from edgedistill.steps.context import Context
from tests.helpers import miniature


def project(folder: Path, bound: object) -> miniature.Project:
    recipe = yaml.safe_load(miniature.RECIPE)
    recipe["student"]["budget"] = {"latency_ms": bound}
    recipe["distill"]["steps"] = 2
    return miniature.write(folder, yaml.safe_dump(recipe))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_candidates_are_timed_once_and_before_they_train(tmp_path: Path, precision: str) -> None:
    made = project(tmp_path, {"at_most": 60_000, "precision": precision})
    said = miniature.call("train", made.recipe, "--runs", made.runs)
    assert said.code == 0, said.err
    assert said.err.count(f"in {precision} on local") == 2 and " ms on the device: score" in said.err
    with (made.run / "search/trials.csv").open(newline="") as stream:
        took = [float(row["latency_ms"]) for row in csv.DictReader(stream)]
    kept = sorted((made.runs / ".cache/latency/measured").glob("*.json"))
    samples = [json.loads(path.read_text()) for path in kept]
    assert len(kept) == len(took) == 2 and all(0.0 < one < 60_000 for one in took)
    assert all(len(one["samples_ms"]) >= 4 and one["precision"] == precision for one in samples)
    # another seed is another study; the graphs are the same, and nothing is timed again
    again = miniature.call("train", made.recipe, "--runs", made.runs, "--set", "seed=1")
    assert again.code == 0 and "on local" not in again.err


def test_nothing_is_fast_enough(tmp_path: Path) -> None:
    made = project(tmp_path, 0.000001)
    said = miniature.call("train", made.recipe, "--runs", made.runs)
    assert said.code == 2 and "none of 2 candidates meets it on local; the nearest is micro" in said.err
    assert not (made.run / "distill").exists()


@pytest.mark.parametrize(
    ("bound", "message"),
    [
        ({"at_most": 5, "backend": "onnxruntime-cup"}, "did you mean onnxruntime-cpu?"),
        ({"at_most": 5, "device": "lokal"}, "no device is called lokal; did you mean local?"),
        ({"at_most": 5, "precision": "int4"}, "student.budget.latency_ms.precision"),
        ({"at_most": 5, "precision": "int8"}, "the recipe makes no int8 graph for onnxruntime-cpu"),
        ({"device": "local"}, "student.budget.latency_ms.at_most: is required"),
    ],
)
def test_a_bound_that_cannot_be_measured_is_said_before_any_work(tmp_path: Path, bound: object, message: str) -> None:
    made = project(tmp_path, bound)
    sets = ["--set", "quantize.enabled=false"] if "int8 graph" in message else []
    for verb in ("check", "train"):
        said = miniature.call(verb, made.recipe, *sets, *(["--runs", made.runs] if verb == "train" else []))
        assert said.code == 2 and message in said.err
    assert not made.runs.exists() or not made.directories()


def test_workers_agree_wherever_they_stand(tmp_path: Path) -> None:
    """The same recipe, data and sources under two roots are one search; another seed is another one."""
    made = project(tmp_path, 60_000)
    found = []
    for root, more in (("here", []), ("there", []), ("other", ["--set", "seed=1"])):
        said = miniature.call("train", made.recipe, "--runs", made.root / root, *more)
        assert said.code == 0, said.err
        path = (made.root / root / "latest").resolve()
        recipe, base = find_run(path).recipe()
        found.append(search.identity(Context(recipe=recipe, base=base, run=find_run(path))))
    assert found[0] == found[1] != found[2]


def test_the_int8_score_is_that_of_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph's answers decide, not the student's."""
    from edgedistill.export import infer

    recipe = yaml.safe_load(miniature.RECIPE)
    recipe["search"] |= {"objective": "int8", "trials": 1, "rungs": 1}
    recipe["distill"]["steps"] = 2
    made = miniature.write(tmp_path, yaml.safe_dump(recipe))
    answers = iter([0, 1] * 100)
    real = infer.predict_onnx

    def one_sided(path: Path, images_NHWC: np.ndarray) -> np.ndarray:
        logits_NC = real(path, images_NHWC)
        return np.eye(2)[np.full(len(logits_NC), next(answers))] if "int8" in path.name else logits_NC

    monkeypatch.setattr(infer, "predict_onnx", one_sided)
    said = miniature.call("train", made.recipe, "--runs", made.runs)
    assert said.code == 0, said.err
    with (made.run / "search/trials.csv").open(newline="") as stream:
        [value] = [float(row["value"]) for row in csv.DictReader(stream) if row["value"]]
    assert value == 0.5  # val holds as many of either kind, and one answer was given for all
