"""The notebook of the documentation runs from its first to its last cell."""

from __future__ import annotations

import shutil
from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient

from tests.helpers import miniature
from tests.helpers.paths import ROOT


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_notebook_runs_and_shows_the_report(tmp_path: Path) -> None:
    pictures = miniature.write(tmp_path / "miniature").root / "pictures"
    folder = tmp_path / "fresh"
    shutil.copytree(pictures, folder / "photos")
    notebook = jupytext.read(ROOT / "docs/notebook.md")
    client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}})
    client.execute()
    cells = {cell.source: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    (page,) = cells["run"]
    assert "<iframe srcdoc=" in page["data"]["text/html"] and "data:image" in page["data"]["text/html"]
    printed = {source: "".join(output.get("text", "") for output in outputs) for source, outputs in cells.items()}
    assert any("kind: folder" in text for text in printed.values()), "the recipe is shown"
    assert any(text.startswith("accuracy ") for text in printed.values())
    scores = next(text for text in printed.values() if text.startswith("useful:")).split()
    assert float(scores[1]) > float(scores[3])
