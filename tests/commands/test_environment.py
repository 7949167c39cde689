"""`doctor` says what is here and what a missing thing costs; the shell completes commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from edgedistill import doctor
from edgedistill.students import pretrained
from tests.helpers import miniature
from tests.helpers.paths import ROOT

DEVELOPERS = {"dev", "docs"}  # extras that no user lacks


def test_missing_things_have_a_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "hub_answers", lambda: False)
    monkeypatch.setattr(doctor, "find_spec", lambda module: None)
    monkeypatch.setattr(doctor, "LEAST_FREE_GB", 1e9)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache/x").write_bytes(bytes(20_000_000))
    findings = json.loads(miniature.call("doctor", "--runs", tmp_path, "--format", "json").out)
    by_topic = {finding["topic"]: finding for finding in findings}
    assert "cannot be fetched" in by_topic["hub"]["cost"] and "--runs" in by_topic["disk"]["cost"]
    assert by_topic["cache"]["text"].startswith("0.02 GB") and not by_topic["packages"]["cost"]
    extras = [finding["cost"] for finding in findings if finding["topic"] == "extra"]
    assert len(extras) == len(doctor.EXTRAS) and all("pip install" in cost for cost in extras)


def test_every_extra_is_looked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {extra for _, extra, _ in doctor.EXTRAS} == set(project["optional-dependencies"]) - DEVELOPERS


def test_what_is_here_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "hub_answers", lambda: True)
    lines = miniature.call("doctor", "--runs", tmp_path / "none").out.splitlines()
    hub = next(index for index, line in enumerate(lines) if line.startswith("hub "))
    assert lines[hub].endswith(" answers") and lines[hub + 1].startswith("runtime")
    assert any(line.startswith("runtime      onnxruntime-cpu: ") for line in lines)


def test_shell_completes_commands() -> None:
    words = {"_EDGEDISTILL_COMPLETE": "complete_bash", "COMP_WORDS": "edgedistill pre", "COMP_CWORD": "1"}
    program = "import sys; sys.argv[0] = 'edgedistill'; from edgedistill.cli import main; main()"
    completed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, **words}, check=False
    )
    assert completed.stdout.split() == ["predict"]
