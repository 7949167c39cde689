"""The wheel, installed elsewhere, goes the whole road in a folder with nothing but pictures."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.helpers import miniature
from tests.helpers.paths import ROOT


def execute(*command: str | Path, folder: Path) -> str:
    """What a program prints; it does not know of the checkout."""
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    completed = subprocess.run(
        [*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return completed.stdout


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The programs of an environment with the wheel; every other package is that of this one: no second torch."""
    source = tmp_path / "source"
    execute("git", "clone", "--quiet", "--local", ROOT, source, folder=tmp_path)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    execute(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path / "dist", source, folder=tmp_path)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"edgedistill/{name}" for name in ("py.typed", "report/report.html", "draft/recipe.schema.json")} <= names
    assert not any(name.startswith(("tests", "benchmarks", "docs")) for name in names)
    execute(sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", tmp_path / "venv", folder=tmp_path)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    # a path file is read, those in the folders that it names are not: the checkout stays out of reach
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    python = tmp_path / "venv/bin/python"
    execute(python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", wheel, folder=tmp_path)
    return tmp_path / "venv/bin"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_wheel_goes_the_whole_road(installed: Path, tmp_path: Path) -> None:
    project = miniature.write(tmp_path / "elsewhere")
    folder, edgedistill = project.root, installed / "edgedistill"
    place = execute(installed / "python", "-c", "import edgedistill; print(edgedistill.__file__)", folder=folder)
    assert place.startswith(str(installed.parent))
    written = execute(edgedistill, "templates", folder=folder).splitlines()
    assert {"recipes/quickstart.yaml", "recipes/sources/digits.yaml", "deploy/devices.yaml"} <= set(written)
    assert all("is there already" in line for line in execute(edgedistill, "templates", folder=folder).splitlines())
    assert execute(edgedistill, "--version", folder=folder).startswith("edgedistill 0.")
    execute(edgedistill, "devices", "local", folder=folder)
    assert '"required"' in execute(edgedistill, "schema", folder=folder)
    execute(edgedistill, "init", "pictures", "-o", "first.yaml", folder=folder)
    execute(edgedistill, "check", "first.yaml", folder=folder)
    execute(edgedistill, "run", "recipe.yaml", folder=folder)
    lines = execute(edgedistill, "predict", "pictures/test", "--format", "jsonl", folder=folder).splitlines()
    assert len(lines) == 16
    program = "import edgedistill as ed; print(ed.Run().accuracy, len(ed.load().predict('pictures/test')))"
    assert execute(installed / "python", "-c", program, folder=folder).endswith(" 16\n")
