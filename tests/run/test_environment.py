"""env.json: machine, packages, commit and command of a run."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from edgedistill.run import environment
from tests.helpers.paths import ROOT


def test_describe_names_machine_and_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["edgedistill", "run", "x.yaml"])
    facts = environment.describe()
    assert facts["command"] == "edgedistill run x.yaml"
    assert facts["python"] == platform.python_version() and facts["cores"] >= 1
    assert facts["packages"]["numpy"] == metadata.version("numpy")
    assert set(facts["packages"]) <= set(environment.PACKAGES) and "" not in facts["packages"].values()
    assert facts["cpu"] and facts["started"].endswith("Z")


def checkout(root: Path) -> Path:
    """A source checkout with one commit; returns a file in it where environment.py is in ours."""
    file = root / Path(environment.__file__).relative_to(ROOT)
    file.parent.mkdir(parents=True)
    file.write_text("")
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for arguments in (["init", "--quiet"], ["add", "."], [*author, "commit", "--quiet", "--message", "x"]):
        subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True)
    return file


def test_commit_of_checkout_marks_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = checkout(tmp_path)
    monkeypatch.setattr(environment, "__file__", str(file))
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert environment.commit() == head[:12]
    file.write_text("changed")
    assert environment.commit() == f"{head[:12]}+"


def test_commit_is_empty_outside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "package/run/environment.py"))
    assert environment.commit() == ""
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))  # without git
    assert environment.commit() == ""


def test_processor_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", absent)
    assert environment.processor() == (platform.processor() or platform.machine())
