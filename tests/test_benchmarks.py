"""The committed tables are what the committed lines say, and the benchmarks still run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def test_tables_are_current() -> None:
    from benchmarks import tables

    assert not tables.stale(), "run `python -m benchmarks.tables`"


def test_a_table_without_its_markers_is_an_error() -> None:
    from benchmarks import tables

    with pytest.raises(ValueError, match="lacks the markers"):
        tables.rewritten("no markers here", "quickstart", "| a |")


def test_the_cost_of_sources_is_measured_in_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import step_cost

    monkeypatch.setattr(step_cost, "IMAGES", 140)
    monkeypatch.setattr(step_cost, "CLASSES", 5)
    monkeypatch.setattr(step_cost, "ROUNDS", 2)
    monkeypatch.setattr(step_cost, "STEPS", 1)
    line = step_cost.measure("micro", {"width": 8, "input_px": 16})
    assert len(line["seconds"]) == 2 and all(len(pair) == 2 for pair in line["seconds"])
    low, high = line["ci95"]
    assert 0 < low <= line["ratio"] <= high
    assert "micro at 16 px" in step_cost.table([{**line, "cpu": "a", "cores": 2, "commit": "b"}])


def test_lines_carry_what_they_were_measured_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from benchmarks import lines

    monkeypatch.setattr(lines, "RESULTS", tmp_path)
    path = lines.append("kind", {"value": 1})
    assert path.name.startswith(f"kind_{lines.hardware()}_") and path.suffix == ".jsonl"
    (line,) = lines.read("kind")
    assert line["value"] == 1 and {"packages", "python", "cpu", "cores", "commit", "measured"} <= line.keys()
    assert line["python"].startswith(f"{sys.version_info.major}.")
