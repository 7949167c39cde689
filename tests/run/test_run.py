"""The run directory: atomic writes, steps that are up to date, and one process at a time."""

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
from edgedistill.run.directory import Run, find_run, point_latest, require_usable_root, step_key
from edgedistill.run.files import atomic, read_json, read_record, sha256_file, write_json, write_record

HOLD_LOCK = """
import sys, time
from pathlib import Path
from edgedistill.run.directory import Run
with Run(path=Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def contents(folder: Path) -> list[str]:
    """Every path in the folder, sorted."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_atomic_keeps_old_file_when_writer_fails(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError, match="halfway"), atomic(path) as temporary:
        temporary.write_text("half of")
        raise RuntimeError("halfway")
    assert json.loads(path.read_text()) == {"a": 1} and contents(tmp_path) == ["deep", "deep/x.json"]


@pytest.mark.parametrize("failing", ["fsync", "write"])
def test_atomic_keeps_old_file_on_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    write_json(tmp_path / "x.json", "old")

    def disk_full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if failing == "fsync" else (Path, "write_text")), disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_json(tmp_path / "x.json", "new")
    with pytest.raises(OSError, match="No space left"):
        write_json(tmp_path / "y.json", "new")
    assert read_json(tmp_path / "x.json") == "old" and contents(tmp_path) == ["x.json"]


def test_atomic_syncs_before_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    sync, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("sync"), sync(handle))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (events.append("rename"), rename(self, to))[1])
    write_json(tmp_path / "x.json", 1)
    assert events == ["sync", "rename", "sync"]  # file, rename, folder


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "9" * 5000])
def test_broken_json_is_an_input_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=r"x\.json: cannot be read"):
        read_json(tmp_path / "x.json")


def test_step_key_depends_on_name_version_settings_and_inputs() -> None:
    key = step_key("distill", 1, {"distill": {"steps": 3}}, {"data": "a"})
    assert key == step_key("distill", 1, {"distill": {"steps": 3}}, {"data": "a"})
    changed = {
        step_key("distil", 1, {"distill": {"steps": 3}}, {"data": "a"}),
        step_key("distill", 2, {"distill": {"steps": 3}}, {"data": "a"}),
        step_key("distill", 1, {"distill": {"steps": 4}}, {"data": "a"}),
        step_key("distill", 1, {"distill": {"steps": 3}}, {"data": "b"}),
        step_key("distill", 1, {"distill": {"steps": 3}}, {"date": "a"}),
    }
    assert len(changed | {key}) == 6
    first, second = {"a": 1, "b": 2}, {"b": 2, "a": 1}
    assert step_key("x", 1, first, {}) == step_key("x", 1, second, {})


def test_step_is_up_to_date_only_with_same_key_and_unchanged_outputs(tmp_path: Path) -> None:
    run = Run(path=tmp_path)
    assert not run.up_to_date("step", "key")
    for name in ("a.txt", "sub/b.txt"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(name)
    run.record_step("step", "key", [run / "a.txt", run / "sub/b.txt"], 1.5)
    assert run.up_to_date("step", "key") and not run.up_to_date("step", "other") and not run.up_to_date("pets", "key")
    assert run.hashes("step") == {name: sha256_file(run / name) for name in ("a.txt", "sub/b.txt")}
    assert run.hashes("none") == {}
    (run / "a.txt").write_text("a.tx_")
    assert not run.up_to_date("step", "key")
    (run / "a.txt").write_text("a.txt")
    assert run.up_to_date("step", "key")
    (run / "sub/b.txt").unlink()
    assert not run.up_to_date("step", "key")


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert sha256_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of tmp_path."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_lock_refuses_second_process_and_is_freed_when_holder_dies(
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


def test_temporary_files_of_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export/.student.onnx.123.tmp").write_bytes(b"half")
    (tmp_path / "export/student.onnx").write_bytes(b"whole")
    with Run(path=tmp_path).lock():
        assert [path.name for path in (tmp_path / "export").iterdir()] == ["student.onnx"]


def test_records_round_trip_and_malformed_ones_are_refused(tmp_path: Path) -> None:
    write_record(tmp_path / "cost.json", Cost(macs_m=1.5, params_m=0.25, weights_mb=1.0))
    assert read_record(tmp_path / "cost.json", Cost) == Cost(macs_m=1.5, params_m=0.25, weights_mb=1.0)
    write_json(tmp_path / "cost.json", {"macs_m": "many"})
    with pytest.raises(InputError, match=r"cost\.json: is not a Cost \(macs_m: Input should be a valid number"):
        read_record(tmp_path / "cost.json", Cost)
    (tmp_path / "cost.json").write_text("{")
    with pytest.raises(InputError, match=r"cost\.json: cannot be read .*; search again"):
        read_record(tmp_path / "cost.json", Cost, "search again")


def test_record_of_another_version_names_field_and_both_ways_out(tmp_path: Path) -> None:
    fields = {"macs_m": 1.5, "params_m": 0.25}
    write_json(tmp_path / "cost.json", fields)
    version = r"\.json: was written by another version of edgedistill: it lacks the field "
    with pytest.raises(
        InputError, match=f"{version}weights_mb of Cost; use that version, or delete the file and search$"
    ):
        read_record(tmp_path / "cost.json", Cost, "search")
    write_json(tmp_path / "costs.json", [fields])
    with pytest.raises(InputError, match=f"{version}0.weights_mb of Cost; use that version$"):
        read_record(tmp_path / "costs.json", tuple[Cost, ...])
    write_json(tmp_path / "cost.json", {**fields, "weights_mb": 1.0, "joules": 2.0})  # of a newer version
    assert read_record(tmp_path / "cost.json", Cost) == Cost(macs_m=1.5, params_m=0.25, weights_mb=1.0)


def test_find_run_refuses_other_directories(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="not a run directory; give one that `edgedistill train` made"):
            find_run(path)
    (tmp_path / "recipe.lock.json").write_text("{}")
    assert find_run(tmp_path).path == tmp_path.resolve()
    with pytest.raises(InputError, match=r"recipe\.lock\.json: holds no recipe; run `edgedistill train` with"):
        find_run(tmp_path).recipe()


def test_latest_points_at_last_run(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.lock.json").write_text("{}")
        point_latest(Run(path=tmp_path / name))
        assert find_run(tmp_path / "latest").path == (tmp_path / name).resolve()
    assert contents(tmp_path) == ["latest", "one", "one/recipe.lock.json", "two", "two/recipe.lock.json"]
    assert str((tmp_path / "latest").readlink()) == "two"  # relative: the folder of runs can be moved


def test_log_has_one_line_per_event(tmp_path: Path) -> None:
    Run(path=tmp_path).log("weigh", "start", key="k")
    Run(path=tmp_path).log("weigh", "done", seconds=1.5)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["event"]) for line in lines] == [("weigh", "start"), ("weigh", "done")]
    assert lines[0]["key"] == "k" and lines[1]["seconds"] == 1.5


@pytest.mark.parametrize("damage", ["[]", "{}", "{", '{"steps": {"weigh": 3}}', '{"steps": {"weigh": {"key": 1}}}'])
def test_damaged_manifest_is_one_line_error(tmp_path: Path, damage: str) -> None:
    (tmp_path / "manifest.json").write_text(damage)
    with pytest.raises(InputError, match=r"manifest\.json: is damaged; delete it; the steps then run again"):
        Run(path=tmp_path).manifest()


def test_manifest_of_another_version_is_not_called_damaged(tmp_path: Path) -> None:
    write_json(tmp_path / "manifest.json", {"steps": {}, "format": 2})
    with pytest.raises(InputError, match=r"another version of edgedistill: .* the field format; use that version, or"):
        Run(path=tmp_path).manifest()
    entry = {"key": "k", "outputs": {}, "watts": 3}
    write_json(tmp_path / "manifest.json", {"steps": {"weigh": entry}})
    assert Run(path=tmp_path).manifest()["steps"] == {"weigh": entry}


def test_unusable_root_of_runs_is_refused(tmp_path: Path) -> None:
    require_usable_root(tmp_path / "not/yet/there")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is not a folder"):
        require_usable_root(tmp_path / "file/runs")
    (tmp_path / "latest").mkdir()
    with pytest.raises(InputError, match="is not a symbolic link to a run; move it away"):
        require_usable_root(tmp_path)
