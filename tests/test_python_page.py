"""The examples of docs/python.md run, one after the other."""

from __future__ import annotations

import re
import shutil

import pytest

from tests.helpers.miniature import Project
from tests.helpers.paths import ROOT

PAGE = ROOT / "docs/python.md"
FIRST = 'ed.run("photos/", latency_ms=5)'


def examples(text: str) -> str:
    """The page's Python as one program whose line numbers are the page's."""
    lines, inside = [], False
    for line in text.splitlines():
        inside = line == "```python" or (inside and line != "```")
        lines.append(line if inside and line != "```python" else "")
    return "\n".join(["import edgedistill as ed", *lines[1:]])


def test_examples_run(
    project_copy: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(project_copy.root / "pictures/train", project_copy.root / "photos")
    monkeypatch.chdir(project_copy.root)
    program = examples(PAGE.read_text(encoding="utf-8"))
    assert program.count(FIRST) == 1
    # a training takes minutes: here the recipe, whose run is finished
    exec(compile(program.replace(FIRST, 'ed.run("recipe.yaml")'), str(PAGE), "exec"), {"__name__": "page"})
    printed = capsys.readouterr().out
    assert "no/such/run: not a run directory" in printed and re.search(r"photos/lying/00\.png (lying|upright)", printed)
