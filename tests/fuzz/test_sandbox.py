"""The fuzzers see what they are for: each misdeed is a failure, and what is allowed is none."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import batch, misbehaving
from tests.fuzz.kind import CANARY
from tests.fuzz.sandbox import watch
from tests.helpers.paths import ROOT

EXPECTED = {
    "program": r"forbidden: subprocess\.Popen",
    "shell": r"forbidden: os\.system",
    "spawn": r"forbidden: os\.posix_spawn",
    "network": r"forbidden: socket\.(connect|getaddrinfo)",
    "address": r"forbidden: socket\.getaddrinfo",
    "write": r"forbidden: open",
    "folder": r"forbidden: os\.mkdir",
    "rename": r"forbidden: os\.rename",
    "remove": r"forbidden: os\.remove",
    "pickle": r"forbidden: pickle\.find_class",
    "code": r"forbidden: exec",
    "module": r"forbidden: (import|compile|exec)",
    "library": r"forbidden: ctypes\.dlopen",
    "swallowed": r"forbidden: os\.system",
    "canary": r"a command of the input was run",
    "traceback": r"(?s)KeyError: 'key'\n.*misbehaving\.py:\d+",
    "exit": r"exits with 3",
    "hang": r"took longer than 4 s\nTimeout",
    "crash": r"ended the process \(-11\)\nFatal Python error: Segmentation fault",
    "two lines": r"not one line",
    "long": r"has 5000 characters",
    "cursor": r"control characters",
    "empty": r"not one line",
    "refused": "",
    "accepted": "",
}


def test_every_misdeed_is_a_failure_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(batch.SAVED, str(tmp_path / "saved"))
    kind = misbehaving.KIND
    batch_of_all = batch.run_children(kind, 0, kind.indices(), tmp_path / "work", limit_s=4)
    indices = [outcome.index for outcome in batch_of_all.outcomes]
    assert indices == list(range(-len(EXPECTED), 2))
    crafted = {-index - 1: outcome for index, outcome in zip(indices, batch_of_all.outcomes, strict=True) if index < 0}
    problems = {name: crafted[number].problem for number, name in enumerate(misbehaving.MISDEEDS)}
    assert problems.keys() == EXPECTED.keys()
    wrong = {
        name: problems[name] for name, pattern in EXPECTED.items() if not re.search(pattern or "^$", problems[name])
    }
    assert wrong == {}
    saved = {name: Path(crafted[number].saved) for number, name in enumerate(misbehaving.MISDEEDS) if EXPECTED[name]}
    assert {name: path.read_text(encoding="utf-8") for name, path in saved.items()} == {name: name for name in saved}
    assert f"{len(indices)} inputs of seed 0" in batch_of_all.summary()
    assert "again: python -m tests.fuzz misbehaving --seed 0 --only -" in batch_of_all.report()


def test_child_that_cannot_begin_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="misbehaving: a child ended with 1"):
        batch.run_children(misbehaving.KIND, 0, range(1), tmp_path)


def test_watch_ends_with_its_block(tmp_path: Path) -> None:
    with watch(tmp_path) as watched:
        (tmp_path / "inside").write_bytes(b"")
    assert watched.violations == []
    (tmp_path.parent / "outside").write_bytes(b"")
    assert subprocess.run(["true"], check=False).returncode == 0


def test_saved_input_is_run_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "saved.txt").write_text("shell")
    command = [sys.executable, "-m", "tests.fuzz", "misbehaving", "--file", str(tmp_path / "saved.txt")]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout) == (1, "forbidden: os.system(\"b'true'\",)\n"), process.stderr


def test_canary_is_no_name_of_ours() -> None:
    assert CANARY == "edgedistill_canary"
