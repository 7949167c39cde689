"""A latency budget from recipe to report: candidates are exported, quantized and timed before any of them trains."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from edgedistill import check
from edgedistill.pipeline import TRAIN
from edgedistill.recipe.file import read_recipe
from edgedistill.run import artifacts
from edgedistill.run.directory import run_directory
from edgedistill.steps import search
from edgedistill.steps.context import Context
from edgedistill.steps.step import run_steps
from tests.helpers import miniature


def write_project(folder: Path, bound: object) -> miniature.Project:
    recipe = yaml.safe_load(miniature.RECIPE)
    recipe["student"]["budget"] = {"latency_ms": bound}
    recipe["distill"]["steps"] = 2
    return miniature.write(folder, yaml.safe_dump(recipe))


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), "int8"])
def test_candidates_are_timed_once_before_training(tmp_path: Path, precision: str) -> None:
    project = write_project(tmp_path, {"at_most": 60_000, "precision": precision})
    outcome = miniature.call("train", project.recipe, "--runs", project.runs)
    assert outcome.code == 0, outcome.err
    assert outcome.err.count(f"in {precision} on local") == 2 and " ms on the device: score" in outcome.err
    with (project.run / "search/trials.csv").open(newline="") as stream:
        latencies_ms = [float(row["latency_ms"]) for row in csv.DictReader(stream)]
    paths = sorted((project.runs / ".cache/latency/measured").glob("*.json"))
    samples = [json.loads(path.read_text()) for path in paths]
    assert len(paths) == len(latencies_ms) == 2 and all(0.0 < latency_ms < 60_000 for latency_ms in latencies_ms)
    assert all(len(measurement["samples_ms"]) >= 4 and measurement["precision"] == precision for measurement in samples)
    # another seed starts another study with the same graphs, so nothing is timed again
    second_run = miniature.call("train", project.recipe, "--runs", project.runs, "--set", "seed=1")
    assert second_run.code == 0 and "on local" not in second_run.err


def test_search_without_fast_candidate_is_refused(tmp_path: Path) -> None:
    project = write_project(tmp_path, 0.000001)
    outcome = miniature.call("train", project.recipe, "--runs", project.runs)
    assert outcome.code == 2 and "none of 2 candidates meets it on local; the nearest is micro" in outcome.err
    assert not (project.run / "distill").exists()


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
def test_unmeasurable_bound_is_reported_before_any_work(tmp_path: Path, bound: object, message: str) -> None:
    project = write_project(tmp_path, bound)
    sets = ["--set", "quantize.enabled=false"] if "int8 graph" in message else []
    for verb in ("check", "train"):
        outcome = miniature.call(verb, project.recipe, *sets, *(["--runs", project.runs] if verb == "train" else []))
        assert outcome.code == 2 and message in outcome.err
    assert not project.runs.exists() or not project.directories()


def test_search_identity_is_independent_of_folder(tmp_path: Path) -> None:
    """The same recipe, data and sources under two roots are one search; another seed starts another search."""
    project = write_project(tmp_path, 60_000)
    identities = []
    for root, overrides in (("here", []), ("there", []), ("other", ["seed=1"])):
        document = read_recipe(project.recipe, overrides)
        recipe = check.load(document)
        context = Context(recipe=recipe, base=document.base, run=run_directory(recipe, project.root / root))
        context.run.path.mkdir(parents=True)
        run_steps(context, TRAIN[:1])
        identities.append(search.identity(context))
    assert identities[0] == identities[1] != identities[2]
    sources = artifacts.SOURCES.read(context.run)
    first = next(iter(sources))
    artifacts.SOURCES.write(context.run, {**sources, first: {**sources[first], "input_px": 17}})
    assert search.identity(context) != identities[2], "the same weights see other pictures"


def test_int8_score_is_computed_from_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The score counts the graph's predictions, not the student's."""
    from edgedistill.export import infer

    recipe = yaml.safe_load(miniature.RECIPE)
    recipe["search"] |= {"objective": "int8", "trials": 1, "rungs": 1}
    recipe["distill"]["steps"] = 2
    project = miniature.write(tmp_path, yaml.safe_dump(recipe))
    predictions = iter([0, 1] * 100)
    predict_onnx = infer.predict_onnx

    def one_sided(graph: bytes | Path, images_NHWC: np.ndarray) -> np.ndarray:
        logits_NC = predict_onnx(graph, images_NHWC)
        return np.eye(2)[np.full(len(logits_NC), next(predictions))] if isinstance(graph, bytes) else logits_NC

    monkeypatch.setattr(infer, "predict_onnx", one_sided)
    outcome = miniature.call("train", project.recipe, "--runs", project.runs)
    assert outcome.code == 0, outcome.err
    with (project.run / "search/trials.csv").open(newline="") as stream:
        [score] = [float(row["value"]) for row in csv.DictReader(stream) if row["value"]]
    assert score == 0.5  # val is balanced, and one class was predicted for all images
