"""The examples for MLflow and Weights & Biases run, each in an environment of its own."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.helpers import miniature
from tests.helpers.miniature import Project
from tests.helpers.paths import ROOT

PACKAGES = {"mlflow": ("mlflow-skinny", "sqlalchemy", "alembic"), "wandb": ("wandb",)}


def example(name: str) -> str:
    page = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    (program,) = re.findall(rf"^```python {name}\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    return f"import edgedistill as ed\n{program}"


def executed(name: str, folder: Path) -> Project:
    """The miniature after the example; skips the test where pip cannot get the logger."""
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", venv], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n", encoding="utf-8")
    command = [venv / "bin/python", "-m", "pip", "install", "--quiet", *PACKAGES[name]]
    if subprocess.run(command, check=False, capture_output=True, timeout=400).returncode:
        pytest.skip(f"pip cannot get {name}")
    project = miniature.write(folder / "project")
    completed = subprocess.run(
        [venv / "bin/python", "-c", example(name)],
        cwd=project.root,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert completed.returncode == 0, completed.stderr
    return project


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_mlflow_has_every_step(tmp_path: Path) -> None:
    project = executed("mlflow", tmp_path)
    with sqlite3.connect(project.root / "mlflow.db") as database:
        rows = database.execute("select step from metrics where key = 'distill/loss' order by step").fetchall()
        ((status, name),) = database.execute("select status, name from runs").fetchall()
    assert [step for (step,) in rows] == list(range(1, 31))
    assert status == "FINISHED" and name == project.run.name


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_wandb_writes_a_run_offline(tmp_path: Path) -> None:
    project = executed("wandb", tmp_path)
    (record,) = (project.root / "wandb").glob("offline-run-*/*.wandb")
    assert b"distill/val/top1" in record.read_bytes()
