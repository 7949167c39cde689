"""The command line: what it offers is frozen, trouble is one line, and torch is loaded only where it must be."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from edgedistill import cli, session
from edgedistill.agent.backends import BACKENDS
from tests.helpers import miniature
from tests.helpers.miniature import Project

# what scripts may rely on: changing a line is a change of the interface
VERBS = """\
edgedistill --debug --version
bench RUN? --device... --backend... --set... --again
check RECIPE --set...
devices NAME?... --inventory --format
export RUN? --int8/--no-int8 --qat/--no-qat
predict IMAGE... --run
report RUN?... --format
run RECIPE --set... --runs
train RECIPE --set... --runs
"""


def offered(command: Any) -> str:
    words = [command.name or "edgedistill"]
    for one in command.params:
        many = "..." if one.multiple or one.nargs == -1 else ""
        names = "/".join([*one.opts, *one.secondary_opts])
        if one.param_type_name == "argument":
            names = one.metavar.strip("[].").replace("]", "") + ("" if one.required else "?")
        words.append(names + many)
    return " ".join(words)


def test_verbs_and_options_are_frozen() -> None:
    group: Any = get_command(cli.app)
    group.name = "edgedistill"
    lines = [offered(group), *(offered(verb) for _, verb in sorted(group.commands.items()))]
    assert "\n".join(lines) + "\n" == VERBS


def one_line(said: miniature.Answer, code: int) -> str:
    """The last line on stderr of a process that failed as it should."""
    assert said.code == code, said
    assert "Traceback" not in said.err
    return said.err.strip().splitlines()[-1]


@pytest.mark.parametrize("verb", ["", "check", "train", "export", "bench", "report", "run", "predict", "devices"])
def test_help_speaks_of_every_option(verb: str) -> None:
    said = miniature.call(*([verb] if verb else []), "--help")
    (line,) = [line for line in VERBS.splitlines() if line.split()[0] == (verb or "edgedistill")]
    for option in [word.strip(".").split("/")[0] for word in line.split() if word.startswith("--")]:
        assert said.code == 0 and option in said.out


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]])
def test_help_does_not_load_torch(arguments: list[str]) -> None:
    said = miniature.edgedistill(*arguments)
    assert said.code == 0 and said.out and "torch was not loaded" in said.err


def test_report_does_not_load_torch(finished: Project) -> None:
    said = miniature.edgedistill("report", finished.run)
    assert said.code == 0 and "torch was not loaded" in said.err
    assert "100.0 %" in said.out and "int8-cpu" in said.out


def test_devices_does_not_load_torch_and_names_the_backends(tmp_path: Path) -> None:
    said = miniature.edgedistill("devices", "local", cwd=tmp_path)
    assert said.code == 0 and "torch was not loaded" in said.err
    head, row, *notes = said.out.splitlines()
    assert head.split()[:2] == ["device", "reachable"] and row.split()[:2] == ["local", "yes"]
    assert all(name in " ".join(notes) for name in BACKENDS)


def test_devices_that_lack_something_are_exit_code_1(tmp_path: Path) -> None:
    gone = tmp_path / "no-python"
    inventory = tmp_path / "devices.yaml"
    inventory.write_text(f"gone: {{python: {gone}}}\n")
    said = miniature.call("devices", "--inventory", inventory, "--format", "json")
    assert said.code == 1
    local, broken = json.loads(said.out)
    assert (local["device"], local["usable"], local["missing"]) == ("local", True, {})
    assert (broken["device"], broken["usable"]) == ("gone", False) and str(gone) in broken["trouble"]
    said = miniature.call("devices", "--inventory", inventory, "local")
    assert said.code == 0 and "gone" not in said.out
    assert "did you mean gone?" in one_line(miniature.call("devices", "--inventory", inventory, "gnoe"), 2)


def test_torch_would_be_noticed() -> None:
    body = miniature.command()[2].replace("import sys\n", "import sys; sys.modules['torch'] = sys\n")
    done = subprocess.run([sys.executable, "-c", body, "--version"], capture_output=True, text=True, check=True)
    assert "torch was loaded" in done.stderr


def test_report_in_its_forms(finished: Project, copied: Project) -> None:
    said = miniature.call("report", finished.run, "--format", "json")
    assert said.code == 0 and json.loads(said.out)["run"] == finished.run.name
    both = miniature.call("report", finished.run, copied.run, "--format", "json")
    assert [one["run"] for one in json.loads(both.out)] == [finished.run.name, copied.run.name]
    assert miniature.call("report", finished.run, copied.run).out.count(finished.run.name) >= 2
    (copied.run / "report.html").unlink()
    page = miniature.call("report", copied.run, "--format", "html").out.strip()
    assert Path(page) == copied.run.resolve() / "report.html" and Path(page).is_file()


def test_runs_latest_is_the_default(copied: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(copied.root)
    assert miniature.call("report").code == 0
    monkeypatch.chdir(tmp_path)
    assert one_line(miniature.call("report"), 2).startswith("runs/latest: not a run directory; give one that")


@pytest.mark.parametrize(
    "arguments", [["report"], ["export"], ["bench"], ["predict", "x.png", "--run"]], ids=lambda given: given[0]
)
def test_a_directory_that_is_no_run(tmp_path: Path, arguments: list[str]) -> None:
    line = one_line(miniature.call(*arguments, tmp_path), 2)
    assert line == f"{tmp_path}: not a run directory; give one that `edgedistill train` made, such as runs/latest"


def test_wrong_usage_exits_with_2() -> None:
    for arguments in (
        ["no-such-verb"],
        ["train"],
        ["train", "x.yaml", "--no-such-option"],
        ["report", "--format", "x"],
    ):
        said = miniature.call(*arguments)
        assert said.code == 2 and "Traceback" not in said.err and said.err


def test_a_missing_recipe(tmp_path: Path) -> None:
    for verb in ("check", "train", "run"):
        line = one_line(miniature.call(verb, tmp_path / "none.yaml"), 2)
        assert line.endswith("none.yaml: cannot be read (No such file or directory); name an existing recipe file")


@pytest.mark.parametrize(
    ("option", "said"),
    [("--device", "no device is called locla; did you mean local?"), ("--backend", "no backend is called locla")],
)
def test_bench_knows_its_devices_and_backends(copied: Project, option: str, said: str) -> None:
    assert said in one_line(miniature.call("bench", copied.run, option, "locla"), 2)
    assert miniature.call("bench", copied.run).code == 0  # and the mistake is not remembered


def test_a_second_process_in_a_run_directory_refuses(copied: Project) -> None:
    hold = "from pathlib import Path\nfrom edgedistill.run.directory import Run\nimport sys\n"
    hold += "with Run(path=Path(sys.argv[1])).lock():\n    print('held', flush=True)\n    sys.stdin.read()\n"
    before = (copied.run / "recipe.lock.json").stat().st_mtime_ns
    with subprocess.Popen(
        [sys.executable, "-c", hold, copied.run], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        line = one_line(miniature.call("run", copied.recipe, "--runs", copied.runs), 1)
        holder.communicate("")
    assert line == f"{copied.run}: another edgedistill is at work in this run directory; wait for it or end it"
    assert (copied.run / "recipe.lock.json").stat().st_mtime_ns == before
    assert miniature.call("run", copied.recipe, "--runs", copied.runs).code == 0


def test_a_full_disk_is_one_line_and_harms_nothing(copied: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: (copied.run / name).read_bytes() for name in ("recipe.yaml", "manifest.json", "recipe.lock.json")}

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    line = one_line(miniature.call("run", copied.recipe, "--runs", copied.runs), 1)
    assert line == "disk: the disk is full; what was there before is intact; free some and run again"
    assert {name: (copied.run / name).read_bytes() for name in before} == before


UNEXPECTED = [
    (KeyboardInterrupt(), 130, "stopped; the same command goes on from here"),
    (ZeroDivisionError("x"), 1, "edgedistill: unexpected ZeroDivisionError: x; --debug shows where"),
    (PermissionError(errno.EACCES, "Permission denied", "runs"), 1, "[Errno 13] Permission denied: 'runs'"),
]


@pytest.mark.parametrize(("raised", "code", "line"), UNEXPECTED)
def test_what_nobody_expects_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, finished: Project, raised: BaseException, code: int, line: str
) -> None:
    def fails(*_: object) -> None:
        raise raised

    monkeypatch.setattr(session, "train", fails)
    assert one_line(miniature.call("train", finished.recipe), code) == line
    if isinstance(raised, Exception):
        with pytest.raises(type(raised)):  # which Python prints with its traceback
            miniature.call("--debug", "train", finished.recipe)
