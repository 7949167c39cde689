"""A latency budget from recipe to report: candidates are exported, quantized and timed before any of them trains."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import miniature
import pytest
import yaml


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
        ({"device": "local"}, "student.budget.latency_ms.at_most: is required"),
    ],
)
def test_a_bound_that_cannot_be_measured_is_said_before_any_work(tmp_path: Path, bound: object, message: str) -> None:
    said = miniature.call("check", project(tmp_path, bound).recipe)
    assert said.code == 2 and message in said.err
