"""`python -m benchmarks.gpu`, rehearsed without a GPU: every piece runs in tiny sizes, and none runs twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import lines
from benchmarks.gpu import __main__ as program
from benchmarks.gpu import pack, table
from benchmarks.gpu.pieces import Piece, Settings, pieces
from edgedistill.errors import EdgeDistillError, InputError


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(lines, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def written(results: Path) -> list[dict[str, object]]:
    return [json.loads(text) for path in results.glob("gpu_*.jsonl") for text in path.read_text().splitlines()]


def make_packs(folder: Path, size: int = 1000) -> Path:
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
        for part in ("train", "test"):
            (folder / name / f"{part}.parquet").write_bytes(b"x" * size)
    return folder


@pytest.mark.slow
def test_rehearsal_runs_every_piece_once(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--rehearse", str(results), "--packs", str(tmp_path), "--minutes", "9"]
    assert program.main(argv) == 0
    entries = written(results)
    assert [entry["failed"] for entry in entries if "failed" in entry] == []
    complete = [entry["piece"] for entry in entries if entry.get("complete")]
    assert complete == [piece.name for piece in pieces(rehearsal=True)]
    assert all(entry["cpu"] and entry["where"] for entry in entries)
    graphs = {entry["graph"] for entry in entries if entry.get("backend") == "onnxruntime-cpu"}
    assert graphs >= {"fp32", "int8-cpu"}
    program.main(argv)
    assert len(written(results)) == len(entries)


def test_without_a_gpu_nothing_is_measured(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "has_gpu", lambda: False)
    with pytest.raises(InputError, match="torch finds no GPU"):
        program.main(["--packs", str(tmp_path)])
    assert not results.exists()


def test_a_failed_piece_is_a_line_and_the_next_one_is_measured(results: Path, tmp_path: Path) -> None:
    def fail(settings: Settings) -> object:
        raise EdgeDistillError("the runtime fails")

    settings = Settings(packs=tmp_path, runs=tmp_path)
    program.run_piece(Piece(name="bad", measure=fail), settings)  # type: ignore[arg-type]
    program.run_piece(Piece(name="good", measure=lambda settings: iter([{"x": 1}])), settings)
    assert [entry.get("failed", "") for entry in written(results)] == ["EdgeDistillError: the runtime fails", "", ""]
    assert program.measured() == {"good"}


def test_no_piece_begins_without_time(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "has_gpu", lambda: True)
    program.main(["--packs", str(tmp_path), "--minutes", "0.01"])
    assert not results.exists()


def test_order_is_that_of_the_page() -> None:
    names = [piece.name.partition(",")[0] for piece in pieces(rehearsal=False)]
    assert list(dict.fromkeys(names)) == ["tier gpu", "training", "torchdistill", "suite", "runtime", "source"]
    assert sum(name == "training" for name in names) == 4


def test_page_says_which_pieces_are_missing() -> None:
    line = {"piece": "tier gpu", "where": "NVIDIA X", "commit": "abc", "complete": True}
    rows = table.markdown([line, {"piece": "suite", "where": "NVIDIA X", "commit": "abc", "failed": "x"}]).splitlines()
    assert "| tier gpu | NVIDIA X | abc |" in rows and "| suite | missing: no GPU | |" in rows


def test_pack_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packs = make_packs(tmp_path / "packs")
    pack.pack(tmp_path / "out", packs, ["one"], [])
    assert (tmp_path / "out/packs/one/test.parquet").is_file() and not (tmp_path / "out/packs/two").exists()
    monkeypatch.setattr(pack, "MOST_MB", 0.001)
    with pytest.raises(InputError, match="more than 0; name fewer"):
        pack.pack(tmp_path / "out", packs, ["one", "two"], [])
    with pytest.raises(InputError, match="has no pack three"):
        pack.pack(tmp_path / "out", packs, ["three"], [])
