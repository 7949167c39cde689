"""The graph for ncnn through the pipeline: converted, shipped, measured, and what it labels."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edgedistill.run import artifacts
from edgedistill.run.directory import Run
from tests.helpers import miniature
from tests.helpers.miniature import Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_ncnn_is_made_shipped_and_measured(project_copy: Project) -> None:
    pytest.importorskip("ncnn", reason="needs the extra `ncnn`")
    pytest.importorskip("pnnx", reason="needs the extra `ncnn`")
    text = project_copy.recipe.read_text()
    project_copy.recipe.write_text(text.replace("export: {", "export: {ncnn: true, "))
    assert miniature.call("run", project_copy.recipe, "--runs", project_copy.runs).code == 0
    outcome = miniature.call("bench", project_copy.run, "--backend", "ncnn")
    assert outcome.code == 0, outcome.err
    run = Run(path=project_copy.run)
    (model,) = artifacts.NCNN.read(run)
    (report,) = [report for report in artifacts.read_bench(run) if report.backend == "ncnn"]
    assert report.artefact == "fp32-ncnn" and report.sha256 == model.sha256 and report.latency.samples_ms
    assert "fp32-ncnn: measured an earlier artifact" not in outcome.out
    picture = next(project_copy.root.glob("pictures/test/*/*.png"))
    answers = [
        subprocess.run(
            [sys.executable, "label.py", "--model", *arguments, str(picture)],
            cwd=project_copy.run / "bundle",
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for arguments in (["fp32"], ["fp32-ncnn", "--backend", "ncnn"])
    ]
    assert answers[0] == answers[1]
