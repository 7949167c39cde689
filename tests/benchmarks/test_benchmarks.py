"""The committed tables match the committed result lines, and the benchmarks run on small inputs."""

from __future__ import annotations

import json
import platform
import re
import sys
from pathlib import Path

import pytest

from tests.helpers import tiny_onnx
from tests.helpers.paths import ROOT


@pytest.fixture(autouse=True)
def import_from_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def test_tables_are_current() -> None:
    from benchmarks import tables

    assert not tables.stale(), "run `python -m benchmarks.tables`"


def test_page_without_markers_is_an_error() -> None:
    from benchmarks import pages

    with pytest.raises(ValueError, match="lacks the markers"):
        pages.replace_section("no markers here", "quickstart", "| a |")


def test_quickstart_says_what_distilling_bought_and_with_which_other_labels() -> None:
    from benchmarks import quickstart

    def accuracy(balanced: float) -> dict[str, float]:
        return {"top1": 0.1, "balanced": balanced}

    gains = [{"points": points, "low": points - 3.0, "high": points + 3.0} for points in (6.0, 1.0)]
    record = {"distilled": accuracy(0.72), "labels_alone": accuracy(0.66), "over_labels_alone": gains[0]}
    record |= {"source": "lite1", "probe": accuracy(0.71), "over_probe": gains[1]}
    draws = [
        {"seed": seed, "baseline": {"over_labels_alone": {"points": points}, "over_probe": {"points": points - 2}}}
        for seed, points in ((2, -1.0), (1, 4.0))
    ]
    text = "\n".join(quickstart.bought({"data": {"score": "balanced"}, "baseline": record}, draws))
    assert "| the same student on labels alone | 66.0 % | +6.0 [+3.0, +9.0] |" in text
    assert "| a linear probe of lite1 | 71.0 % | +1.0 [-2.0, +4.0] |" in text
    assert (
        "the gain in points is +1.5 on average (+4.0, -1.0) over labels alone, and -0.5 on average (+2.0, -3.0)" in text
    )
    draws[0]["baseline"]["over_probe"] = None  # without sources there is no probe
    assert "over labels alone." in "\n".join(
        quickstart.bought({"data": {"score": "balanced"}, "baseline": record}, draws)
    )
    assert quickstart.bought({"data": {"score": "balanced"}}, draws) == []


def test_export_time_compares_both_forms_of_a_graph(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from benchmarks import export_time

    monkeypatch.setattr(export_time, "ROUNDS", 3)
    line = export_time.measure("int8-tensorrt", tiny_onnx.write(tmp_path / "m.onnx", "int8"), tiny_onnx.PX)
    assert line["ci95"][0] <= line["ratio"] <= line["ci95"][1] and line["largest_difference"] == 0.0
    holds = {**line, "ratio": 0.5, "ci95": [0.4, 0.6], "ms": {"written": 90.0, "float32": 45.0}}
    text = export_time.table([{**holds, "ci95": [0.4, 0.7]}, holds])
    assert "| int8-tensorrt | 90.0 | 45.0 | 0.50 [0.40, 0.60] | 0 |" in text and text.endswith("holds.")
    assert export_time.table([{**holds, "largest_difference": 1e-3}]).endswith("FAILS.")


def test_step_cost_measures_sources_in_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's memory can be kept")
def test_freed_memory_is_measured_in_pairs_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import freed_memory

    tiny = {"families": {"micro": {"width": 8, "input_px": 16}}, "images": 4, "learns": True}
    monkeypatch.setattr(freed_memory, "JOBS", {"tiny": tiny})
    monkeypatch.setattr(freed_memory, "PAIRS", 1)
    line = freed_memory.measure("tiny")
    assert line["pairs"][0]["kept"]["mb"] > 50 and line["ratio"] > 0
    assert "| tiny |" in freed_memory.table([{**line, "cpu": "a", "commit": "b"}])


def test_lines_record_machine_and_versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from benchmarks import lines

    monkeypatch.setattr(lines, "RESULTS", tmp_path)
    path = lines.append("kind", {"value": 1})
    assert path.name.startswith(f"kind_{lines.hardware()}_") and path.suffix == ".jsonl"
    (line,) = lines.read("kind")
    assert line["value"] == 1 and {"packages", "python", "cpu", "cores", "commit", "measured"} <= line.keys()
    assert line["python"].startswith(f"{sys.version_info.major}.")


def committed(path: Path, *records: dict[str, str]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_lines_are_read_by_age_and_not_by_name_of_the_processor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from benchmarks import lines

    monkeypatch.setattr(lines, "RESULTS", tmp_path)
    newest = {"name": "newest", "measured": "2026-11-30T00:00:00Z"}
    committed(tmp_path / "kind_amd-2-cores_202611.jsonl", newest, {"name": "undated"})
    same = [{"name": name, "measured": "2026-11-20T00:00:00Z"} for name in ("b", "a")]
    committed(tmp_path / "kind_intel-2-cores_202611.jsonl", *same)
    assert [line["name"] for line in lines.read("kind")] == ["undated", "b", "a", "newest"]


def test_lines_whose_commit_is_gone_are_counted_by_kind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from benchmarks import lines

    monkeypatch.setattr(lines, "RESULTS", tmp_path)
    committed(tmp_path / "a_b_amd-2-cores_202611.jsonl", *({"commit": name} for name in ("here", "gone+", "gone", "")))
    committed(tmp_path / "c_amd-2-cores_202611.jsonl", {"commit": "here+"}, {})
    unnamed, lost = lines.lost_commits(lambda commit: commit == "here")
    assert dict(unnamed) == {"a_b": 1, "c": 1} and dict(lost) == {"a_b": 2}
    assert not lines.in_history("0" * 40)


def test_verdict_on_the_announced_minutes_is_that_of_the_newest_line() -> None:
    from benchmarks.lines import read

    line = list(read("first-report"))[-1]
    announced = float(re.findall(r"about (\d+) minutes", line["predicted"])[0])
    verdict = "holds" if abs(line["seconds"] / 60 / announced - 1) <= 0.25 else "fails"
    page = (ROOT / "benchmarks/README.md").read_text(encoding="utf-8")
    assert f"about the minutes that the command announces: {verdict}" in page


def test_scale_measures_inference_and_shard_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import scale

    for name, number in (("IMAGES", 2), ("ROUNDS", 2), ("PHOTO_PX", 24), ("STORE_PX", 16), ("SHARD_IMAGES", 5)):
        monkeypatch.setattr(scale, name, number)
    inference, reading = scale.time_inference("resnet10t", 32), scale.time_shard_reading()
    assert inference["bytes"] == 512 * 4 + 1000 * 2 and len(inference["seconds"]) == 2
    assert reading["images"] == 5 and len(reading["seconds"]) == 2
    steps = {"kind": "steps", "student": "one", "batch": 64, "seconds": {"one": [[3.0], [3.0]], "two": [[1.0], [2.0]]}}
    machine = {"cpu": "a", "cores": 2, "commit": "c"}
    lines = [{**line, **machine} for line in (inference, {**inference, "seconds": [1.0, 1.0]}, steps)]
    text = scale.table(lines)
    assert text.count("`resnet10t`") == 1 and "500,000 s; 4.05 GB of cache" in text  # the newer of two lines
    assert "2.25 times as fast (1.50 to 3.00)" in text


def test_replay_of_search_matches_committed_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.lines import read
    from benchmarks.search import replay

    monkeypatch.setattr(replay, "REPEATS", 1)
    monkeypatch.setattr(replay, "POLICIES", {replay.DEFAULT: replay.POLICIES[replay.DEFAULT]})
    first = next(iter(replay.columns().items()))
    monkeypatch.setattr(replay, "columns", lambda: dict([first]))
    replayed = next(replay.replays())
    [*_, committed] = [
        line
        for line in read("search-replay")
        if (line["pack"], line["seed"], line["policy"]) == (*first[0], replay.DEFAULT)
    ]
    assert replayed["repeats"][0] == committed["repeats"][0]


def test_replayed_training_costs_its_completed_steps() -> None:
    from benchmarks.search.replay import Column, table_recipe
    from edgedistill.search.search import name_of
    from edgedistill.students import space

    spec = space.candidates(table_recipe().student, 2)[0]
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
    column, scores = Column(lines={name_of(spec): line}), []
    assert column.train(spec, 0, {2: scores.append, 4: scores.append})[0] == 0.5
    assert scores == [0.2, 0.3] and column.spent == {"seconds": 4.0, "macs": 16.0}

    def stop(score: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        column.train(spec, 0, {2: scores.append, 4: stop})
    assert column.spent == {"seconds": 6.0, "macs": 24.0}
    column.finish(name_of(spec))
    assert column.spent == {"seconds": 16.0, "macs": 84.0}
