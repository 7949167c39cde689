"""`method: auto` from the recipe to the report: the teacher is made, learned from, and said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from edgedistill.recipe import presets
from tests.helpers import miniature


@pytest.mark.parametrize("teacher", ["selftrained", "stacked", "similarity"])
def test_a_run_with_a_teacher(tmp_path: Path, teacher: str) -> None:
    recipe = yaml.safe_load(miniature.RECIPE)
    recipe["distill"] |= {"method": "auto", "teacher": teacher, "steps": 4}
    recipe["student"]["families"]["micro"]["width"] = 4
    project = miniature.write(tmp_path, yaml.safe_dump(recipe))
    said = miniature.call("train", project.recipe, "--runs", project.runs)
    assert said.code == 0, said.err
    assert "teacher: " in said.err and "balanced accuracy on val" in said.err
    result = json.loads((project.run / "distill/result.json").read_text())
    assert result["method"] == presets.AUTO["method"]["name"]
    assert 0.0 <= result["teacher"]["val"]["balanced"] <= 1.0 and result["teacher"]["val"]["n"] == result["val"]["n"]
    assert sum(result["teacher"]["weights"].values()) == pytest.approx(1.0)
    assert f"teacher {teacher}: " in miniature.call("report", project.run).out
    terms = json.loads((project.run / "distill/metrics.jsonl").read_text().splitlines()[-1])["terms"]
    assert set(terms) == {"labels", "teacher"}
    again = miniature.call("train", project.recipe, "--runs", project.runs)
    assert again.code == 0 and "teacher: " not in again.err and again.err.count("up to date") >= 3


def test_an_unknown_teacher_is_said_before_any_work(tmp_path: Path) -> None:
    project = miniature.write(tmp_path)
    said = miniature.call("train", project.recipe, "--runs", project.runs, "--set", "distill.teacher=nobody")
    assert said.code == 2 and "no teacher is called nobody" in said.err


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("{name: combined, lam: 0.8, sources: 0.5}", "lam + sources is over 1"),
        ("{name: single, source: nosuch}", "no source is called nosuch"),
    ],
)
def test_what_a_signature_cannot_say_is_said_before_any_work(tmp_path: Path, method: str, said: str) -> None:
    project = miniature.write(tmp_path)
    answer = miniature.call("check", project.recipe, "--set", f"distill.method={method}")
    assert answer.code == 2 and said in answer.err
