"""The committed tables are what the committed lines say, and the benchmarks still run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT


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


def test_what_many_images_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import scale

    for name, value in (("IMAGES", 2), ("ROUNDS", 2), ("PHOTO_PX", 24), ("STORE_PX", 16), ("IN_A_SHARD", 5)):
        monkeypatch.setattr(scale, name, value)
    asked, read = scale.asking("resnet10t", 32), scale.reading()
    assert asked["bytes"] == 512 * 4 + 1000 * 2 and len(asked["seconds"]) == 2
    assert read["images"] == 5 and len(read["seconds"]) == 2
    steps = {"kind": "steps", "student": "one", "batch": 64, "seconds": {"one": [[3.0], [3.0]], "two": [[1.0], [2.0]]}}
    same = {"cpu": "a", "cores": 2, "commit": "c"}
    lines = [{**line, **same} for line in (asked, {**asked, "seconds": [1.0, 1.0]}, steps)]
    text = scale.table(lines)
    assert text.count("`resnet10t`") == 1 and "500,000 s; 4.05 GB of cache" in text  # the newest of two
    assert "2.25 times as fast (1.50 to 3.00)" in text


def test_the_search_is_replayed_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.lines import read
    from benchmarks.search import replay

    monkeypatch.setattr(replay, "REPEATS", 1)
    monkeypatch.setattr(replay, "POLICIES", {replay.DEFAULT: replay.POLICIES[replay.DEFAULT]})
    first = next(iter(replay.columns().items()))
    monkeypatch.setattr(replay, "columns", lambda: dict([first]))
    made = next(replay.replays())
    [*_, known] = [
        line
        for line in read("search-replay")
        if (line["pack"], line["seed"], line["policy"]) == (*first[0], replay.DEFAULT)
    ]
    assert made["repeats"][0] == known["repeats"][0]


def test_a_replayed_training_costs_what_was_done_of_it() -> None:
    from benchmarks.search.replay import Column, wanted
    from edgedistill.search.search import name_of
    from edgedistill.students import space

    spec = space.candidates(wanted().student, 2)[0]
    line = {
        "macs_m": 2.0,
        "value": 0.5,
        "standard_error": 0.1,
        "loss": 1.0,
        "seconds": 4.0,
        "steps": 8,
        "rungs": {"2": 0.2, "4": 0.3},
        "rung_seconds": {"2": 1.0, "4": 2.0},
        "full_seconds": 10.0,
        "full_steps": 30,
    }
    column, seen = Column(lines={name_of(spec): line}), []
    assert column.train(spec, 0, {2: seen.append, 4: seen.append})[0] == 0.5
    assert seen == [0.2, 0.3] and column.spent == {"seconds": 4.0, "macs": 16.0}

    def falls_behind(score: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        column.train(spec, 0, {2: seen.append, 4: falls_behind})
    assert column.spent == {"seconds": 6.0, "macs": 24.0}
    column.finish(name_of(spec))
    assert column.spent == {"seconds": 16.0, "macs": 84.0}
