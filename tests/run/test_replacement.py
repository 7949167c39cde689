"""Replacing a step's files: whatever fails or is killed, and at whichever file operation, the run is as before."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgedistill.errors import InputError
from edgedistill.run import replacement
from edgedistill.run.directory import Run, find_run

PATTERNS = ("work/*", "step.json")


class KilledError(BaseException):
    """Ends the work at a file operation, and every later operation as well: nothing is cleaned up."""


def files(run: Run) -> dict[str, str]:
    """The run's own files by name, without what lies aside."""
    paths = [path for path in run.path.rglob("*") if path.is_file()]
    names = {path: str(path.relative_to(run.path)) for path in paths}
    return {name: path.read_text() for path, name in names.items() if not name.startswith((".aside", ".lock"))}


def write(run: Run, text: str) -> None:
    (run / "work").mkdir(exist_ok=True)
    for name in ("work/a.txt", "work/b.txt", "step.json"):
        (run / name).write_text(text)


def finish(run: Run, key: str) -> None:
    replacement.begin(run, "step", key, PATTERNS)
    write(run, key)
    run.record_step("step", key, [run / "work/a.txt", run / "step.json"], 0.0)


def attempt(run: Run, key: str) -> None:
    """An attempt that fails halfway."""
    replacement.begin(run, "step", key, PATTERNS)
    (run / "work/a.txt").write_text(key)
    replacement.roll_back(run)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    finished = Run(path=tmp_path / "run")
    finish(finished, "first")
    return finished


def test_begin_keeps_files_of_same_key_and_of_other_steps(run: Run) -> None:
    (run / "kept.txt").write_text("a user's")
    replacement.begin(run, "step", "first", PATTERNS)
    replacement.begin(run, "other step", "second", ("nothing/*",))
    assert run.up_to_date("step", "first") and (run / "work/b.txt").read_text() == "first"
    replacement.begin(run, "step", "second", PATTERNS)
    assert not list((run / "work").iterdir()) and not (run / "step.json").exists()
    assert (run / "kept.txt").exists() and run.hashes("step") == {}


def test_failed_attempt_leaves_run_as_before_and_goes_on(run: Run) -> None:
    before = files(run)
    attempt(run, "second")
    assert files(run) == before
    replacement.begin(run, "step", "second", PATTERNS)
    assert (run / "work/a.txt").read_text() == "second" and not (run / "work/b.txt").exists()
    replacement.roll_back(run)
    replacement.begin(run, "step", "third", PATTERNS)
    assert not (run / "work/a.txt").exists()  # of another key: nothing to go on from
    assert replacement.roll_back(run) == ["step"] and files(run) == before


def test_finished_attempt_is_taken_back_with_its_entry(run: Run) -> None:
    finish(run, "second")
    replacement.roll_back(run)
    assert run.up_to_date("step", "first") and not run.up_to_date("step", "second")
    replacement.begin(run, "step", "second", PATTERNS)
    assert run.up_to_date("step", "second")
    replacement.commit(run)
    assert not replacement.is_undone(run) and replacement.roll_back(run) == []
    assert run.up_to_date("step", "second")


def test_unfinished_files_of_another_key_are_removed(run: Run) -> None:
    replacement.begin(run, "new", "first", ("new/*",))
    (run / "new").mkdir()
    (run / "new/half.txt").write_text("half")
    replacement.begin(run, "new", "second", ("new/*",))
    assert not (run / "new/half.txt").exists() and replacement.roll_back(run) == []


def kill_at(monkeypatch: pytest.MonkeyPatch, operation: int) -> Callable[[], int]:
    """Let only the first `operation` changes of the file system happen; returns the function that counts them."""
    done = [0]

    def limited(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            done[0] += 1
            if done[0] > operation:
                raise KilledError
            return function(*arguments, **options)

        return call

    for owner, name in ((Path, "replace"), (Path, "rename"), (Path, "unlink"), (os, "rmdir"), (os, "unlink")):
        monkeypatch.setattr(owner, name, limited(getattr(owner, name)))
    return lambda: done[0]


WORKS: dict[str, Callable[[Run], None]] = {
    "attempt": lambda run: attempt(run, "second"),
    "another attempt": lambda run: attempt(run, "third"),
    "success": lambda run: (finish(run, "second"), replacement.commit(run))[1],
}


@pytest.mark.parametrize("work", list(WORKS))
@pytest.mark.parametrize("kills", [1, 2])
def test_kill_at_any_file_operation_leaves_whole_run(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, work: str, kills: int
) -> None:
    """Kill the work at every operation, and with two kills the recovery, too, at every operation."""
    attempt(run, "second")  # so that there is an attempt to take back
    before, states = files(run), set()
    for operation in range(200):
        copy = Run(path=Path(shutil.copytree(run.path, tmp_path / f"copy-{operation}")))
        try:
            with monkeypatch.context() as limits:
                count = kill_at(limits, operation)
                WORKS[work](copy)
        except KilledError:
            pass
        else:
            assert count() == operation
            break
        for again in range(60 if kills == 2 else 0):
            try:
                with monkeypatch.context() as limits:
                    kill_at(limits, again)
                    replacement.recover(copy)
                break
            except KilledError:
                continue
        with copy.lock():
            assert not replacement.is_undone(copy)
        states.add("before" if files(copy) == before else "after")
        if files(copy) != before:
            assert work == "success" and copy.up_to_date("step", "second")
            assert {text for name, text in files(copy).items() if name.startswith("work/")} == {"second"}
    assert operation > 8 and states == ({"before", "after"} if work == "success" else {"before"})


def test_attempt_is_given_up_on_full_disk(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(run)
    replacement.begin(run, "step", "second", PATTERNS)
    write(run, "second")

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(replacement, "_store", full)
        replacement.roll_back(run)
    assert files(run) == before and not list((run / ".aside").rglob("*.txt"))


def test_find_run_puts_back_what_killed_process_had_put_aside(run: Run) -> None:
    (run / "recipe.lock.json").write_text("{}")
    before = files(run)
    replacement.begin(run, "step", "second", PATTERNS)
    assert files(run) != before
    with run.lock():
        pass
    replacement.begin(run, "step", "second", PATTERNS)
    assert files(find_run(run.path)) == before


def test_find_run_leaves_process_at_work_alone(run: Run) -> None:
    (run / "recipe.lock.json").write_text("{}")
    with run.lock():
        replacement.begin(run, "step", "second", PATTERNS)
        assert find_run(run.path).path == run.path.resolve()
        assert replacement.is_undone(run)


def test_damaged_note_is_one_line_error_and_its_fix_helps(run: Run) -> None:
    replacement.begin(run, "step", "second", PATTERNS)
    (run / ".aside/former/step/generation.json").write_text("{")
    with (
        pytest.raises(InputError, match=r"generation\.json: cannot be read .*; remove .*\.aside: the steps"),
        run.lock(),
    ):
        pass
    shutil.rmtree(run / ".aside")
    with run.lock():
        assert json.loads((run / "manifest.json").read_text()) == {"steps": {}}
