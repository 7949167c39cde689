"""`method: auto` from the recipe to the report: the teacher is fitted, learned from, and reported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from edgedistill.recipe import presets
from tests.helpers import miniature, tars


@pytest.mark.parametrize("teacher", ["selftrained", "stacked", "similarity"])
def test_run_with_teacher_records_it(tmp_path: Path, teacher: str) -> None:
    recipe = yaml.safe_load(miniature.RECIPE)
    recipe["distill"] |= {"method": "auto", "teacher": teacher, "steps": 4}
    recipe["student"]["families"]["micro"]["width"] = 4
    project = miniature.write(tmp_path, yaml.safe_dump(recipe))
    outcome = miniature.call("train", project.recipe, "--runs", project.runs)
    assert outcome.code == 0, outcome.err
    assert "teacher: " in outcome.err and "balanced accuracy on val" in outcome.err
    record = json.loads((project.run / "distill/result.json").read_text())
    assert record["method"] == presets.AUTO["method"]["name"]
    assert 0.0 <= record["teacher"]["val"]["balanced"] <= 1.0 and record["teacher"]["val"]["n"] == record["val"]["n"]
    assert sum(record["teacher"]["weights"].values()) == pytest.approx(1.0)
    assert f"teacher {teacher}: " in miniature.call("report", project.run).out
    terms = json.loads((project.run / "distill/metrics.jsonl").read_text().splitlines()[-1])["terms"]
    assert set(terms) == {"labels", "teacher"}
    second_run = miniature.call("train", project.recipe, "--runs", project.runs)
    assert second_run.code == 0 and "teacher: " not in second_run.err and second_run.err.count("up to date") >= 3


def test_tuned_source_teaches_and_is_reported(tmp_path: Path) -> None:
    recipe = yaml.safe_load(miniature.RECIPE)
    recipe["distill"] |= {"method": "auto", "teacher": {"name": "selftrained", "tuned": 1}, "steps": 4}
    project = tars.add_shards(miniature.write(tmp_path, yaml.safe_dump(recipe)), "auto")
    outcome = miniature.call("train", project.recipe, "--runs", project.runs)
    assert outcome.code == 0, outcome.err
    weights = json.loads((project.run / "distill/result.json").read_text())["teacher"]["weights"]
    names = set(weights) - {"first", "second"}
    assert len(names) == 1 and names < {"first (tuned)", "second (tuned)"}
    report = " ".join(miniature.call("report", project.run).out.split())  # its lines may break anywhere
    assert f"{names.pop()} 0." in report
    entries = sorted((project.runs / ".cache/tuned").glob("*.safetensors"))
    before = [entry.stat().st_mtime_ns for entry in entries]
    # one training more: what was tuned is not tuned again
    assert miniature.call("train", project.recipe, "--runs", project.runs, "--set", "distill.steps=5").code == 0
    assert [entry.stat().st_mtime_ns for entry in entries] == before
    assert sorted((project.runs / ".cache/tuned").glob("*.safetensors")) == entries
    fewer = ("--set", "data.labels_per_class=3")
    outcome = miniature.call("train", project.recipe, "--runs", project.runs, *fewer)
    assert outcome.code == 0 and "no source is tuned: that takes three labels of every class" in outcome.err


def test_unknown_teacher_is_reported_before_any_work(tmp_path: Path) -> None:
    project = miniature.write(tmp_path)
    outcome = miniature.call("train", project.recipe, "--runs", project.runs, "--set", "distill.teacher=nobody")
    assert outcome.code == 2 and "no teacher is called nobody" in outcome.err


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("{name: combined, lam: 0.8, sources: 0.5}", "lam + sources is over 1"),
        ("{name: single, source: nosuch}", "no source is called nosuch"),
    ],
)
def test_invalid_combination_of_options_is_reported_before_any_work(tmp_path: Path, method: str, message: str) -> None:
    project = miniature.write(tmp_path)
    outcome = miniature.call("check", project.recipe, "--set", f"distill.method={method}")
    assert outcome.code == 2 and message in outcome.err
