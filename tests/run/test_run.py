"""The run directory: what is written is whole, what is up to date is known, and one process works at a time."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgedistill.errors import EdgeDistillError, InputError
from edgedistill.records import Cost
from edgedistill.run.directory import Run, find_run, point_latest, step_key, usable_root
from edgedistill.run.files import _sha256, atomic, read_json, read_record, sha256_file, write_json, write_record

HOLD = """
import sys, time
from pathlib import Path
from edgedistill.run.directory import Run
with Run(path=Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_atomic_leaves_the_old_file_when_the_writer_fails(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError, match="halfway"), atomic(path) as temporary:
        temporary.write_text("half of")
        raise RuntimeError("halfway")
    assert json.loads(path.read_text()) == {"a": 1} and everything(tmp_path) == ["deep", "deep/x.json"]


@pytest.mark.parametrize("at", ["fsync", "write"])
def test_atomic_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    write_json(tmp_path / "x.json", "old")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if at == "fsync" else (Path, "write_text")), full)
    with pytest.raises(OSError, match="No space left"):
        write_json(tmp_path / "x.json", "new")
    with pytest.raises(OSError, match="No space left"):
        write_json(tmp_path / "y.json", "new")
    assert read_json(tmp_path / "x.json") == "old" and everything(tmp_path) == ["x.json"]


def test_the_rename_comes_after_the_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    sync, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("sync"), sync(handle))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (events.append("rename"), rename(self, to))[1])
    write_json(tmp_path / "x.json", 1)
    assert events == ["sync", "rename", "sync"]  # file, rename, folder


def test_a_step_key_follows_everything_it_is_made_from() -> None:
    known = step_key("distill", 1, {"distill": {"steps": 3}}, {"data": "a"})
    assert known == step_key("distill", 1, {"distill": {"steps": 3}}, {"data": "a"})
    others = {
        step_key("distil", 1, {"distill": {"steps": 3}}, {"data": "a"}),
        step_key("distill", 2, {"distill": {"steps": 3}}, {"data": "a"}),
        step_key("distill", 1, {"distill": {"steps": 4}}, {"data": "a"}),
        step_key("distill", 1, {"distill": {"steps": 3}}, {"data": "b"}),
        step_key("distill", 1, {"distill": {"steps": 3}}, {"date": "a"}),
    }
    assert len(others | {known}) == 6
    first, second = {"a": 1, "b": 2}, {"b": 2, "a": 1}
    assert step_key("x", 1, first, {}) == step_key("x", 1, second, {})


def test_up_to_date_only_with_the_same_key_and_untouched_outputs(tmp_path: Path) -> None:
    here = Run(path=tmp_path)
    assert not here.up_to_date("step", "key")
    for name in ("a.txt", "sub/b.txt"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text(name)
    here.enter("step", "key", [here / "a.txt", here / "sub/b.txt"], 1.5)
    assert (
        here.up_to_date("step", "key") and not here.up_to_date("step", "other") and not here.up_to_date("pets", "key")
    )
    assert here.hashes("step") == {name: sha256_file(here / name) for name in ("a.txt", "sub/b.txt")}
    assert here.hashes("none") == {}
    (here / "a.txt").write_text("a.tx_")
    assert not here.up_to_date("step", "key")
    (here / "a.txt").write_text("a.txt")
    assert here.up_to_date("step", "key")
    (here / "sub/b.txt").unlink()
    assert not here.up_to_date("step", "key")


def test_sha256_is_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    wanted = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(tmp_path / "x") == wanted
    with (tmp_path / "x").open("rb") as stream:
        assert _sha256(stream) == wanted


def test_clear_keeps_its_own_scratch_and_removes_another_keys(tmp_path: Path) -> None:
    here, patterns = Run(path=tmp_path), ("work/*.pt", "result.json")
    here.clear("step", "first", patterns)
    (tmp_path / "work").mkdir()
    for name in ("work/last.pt", "result.json", "work/kept.txt"):
        (tmp_path / name).write_text(name)
    here.clear("step", "first", patterns)
    assert (tmp_path / "work/last.pt").exists() and (tmp_path / "result.json").exists()
    here.clear("other step", "second", ("nothing/*",))
    assert (tmp_path / "work/last.pt").exists()
    here.clear("step", "second", patterns)
    assert not (tmp_path / "work/last.pt").exists() and not (tmp_path / "result.json").exists()
    assert (tmp_path / "work/kept.txt").exists()


def test_clear_takes_the_entry_out_before_the_files(tmp_path: Path) -> None:
    here = Run(path=tmp_path)
    here.clear("step", "first", ("x",))
    (here / "x").write_text("x")
    here.enter("step", "first", [here / "x"], 0.0)
    here.clear("step", "first", ("x",))
    assert here.up_to_date("step", "first")
    here.clear("step", "second", ("x",))
    assert here.manifest() == {"steps": {}} and not (here / "x").exists()


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of tmp_path."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_lock_refuses_a_second_process_and_dies_with_its_holder(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    busy = pytest.raises(EdgeDistillError, match="another edgedistill is at work in this run directory; wait")
    with busy as caught, Run(path=tmp_path).lock():
        pass
    assert caught.value.exit_code == 1
    holder.send_signal(signal.SIGKILL)
    assert holder.wait(timeout=10) == -signal.SIGKILL
    with Run(path=tmp_path).lock():
        pass
    with Run(path=tmp_path).lock():
        pass


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export/.student.onnx.123.tmp").write_bytes(b"half")
    (tmp_path / "export/student.onnx").write_bytes(b"whole")
    with Run(path=tmp_path).lock():
        assert [path.name for path in (tmp_path / "export").iterdir()] == ["student.onnx"]


def test_records_are_read_back_as_written(tmp_path: Path) -> None:
    write_record(tmp_path / "cost.json", Cost(macs_m=1.5, params_m=0.25, weights_mb=1.0))
    assert read_record(tmp_path / "cost.json", Cost) == Cost(macs_m=1.5, params_m=0.25, weights_mb=1.0)
    write_json(tmp_path / "cost.json", {"macs_m": "many"})
    with pytest.raises(InputError, match=r"cost\.json: is not a Cost \(3 fields differ\)"):
        read_record(tmp_path / "cost.json", Cost)
    (tmp_path / "cost.json").write_text("{")
    with pytest.raises(InputError, match=r"cost\.json: cannot be read .*; run the step that writes it again"):
        read_record(tmp_path / "cost.json", Cost)


def test_find_wants_a_run_directory(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="not a run directory; give one that `edgedistill train` made"):
            find_run(path)
    (tmp_path / "recipe.lock.json").write_text("{}")
    assert find_run(tmp_path).path == tmp_path.resolve()
    with pytest.raises(InputError, match=r"recipe\.lock\.json is of another version; run the recipe again"):
        find_run(tmp_path).recipe()


def test_latest_points_at_the_last_run(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.lock.json").write_text("{}")
        point_latest(Run(path=tmp_path / name))
        assert find_run(tmp_path / "latest").path == (tmp_path / name).resolve()
    assert everything(tmp_path) == ["latest", "one", "one/recipe.lock.json", "two", "two/recipe.lock.json"]
    assert str((tmp_path / "latest").readlink()) == "two"  # relative: the folder of runs can be moved


def test_log_is_a_line_an_event(tmp_path: Path) -> None:
    Run(path=tmp_path).log("weigh", "start", key="k")
    Run(path=tmp_path).log("weigh", "done", seconds=1.5)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(one["step"], one["event"]) for one in lines] == [("weigh", "start"), ("weigh", "done")]
    assert lines[0]["key"] == "k" and lines[1]["seconds"] == 1.5


@pytest.mark.parametrize("damage", ["[]", "{}", "{", '{"steps": {"weigh": 3}}'])
def test_a_damaged_manifest_is_one_line(tmp_path: Path, damage: str) -> None:
    (tmp_path / "manifest.json").write_text(damage)
    with pytest.raises(InputError, match=r"manifest\.json: is damaged; delete it; the steps then run again"):
        Run(path=tmp_path).manifest()


def test_a_root_must_be_a_folder_with_a_link_called_latest(tmp_path: Path) -> None:
    usable_root(tmp_path / "not/yet/there")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is not a folder"):
        usable_root(tmp_path / "file/runs")
    (tmp_path / "latest").mkdir()
    with pytest.raises(InputError, match="is no link to a run; move it away"):
        usable_root(tmp_path)
