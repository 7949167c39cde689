"""The command line: fixed verbs and options, one-line errors, and no torch import where it is not needed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from edgedistill import cli, session
from edgedistill.agent.backends import BACKENDS
from edgedistill.errors import EdgeDistillError
from tests.helpers import miniature
from tests.helpers.miniature import Project

# the interface that scripts rely on
VERBS = """\
edgedistill --debug --version --install-completion --show-completion
annotate FOLDER|RECIPE|RUN --n --port --runs
audit RECIPE|FOLDER --runs --out --sources
bench RUN|MODEL.ONNX? --device... --backend... --set... --again
check RECIPE --set...
devices NAME?... --inventory --format
doctor --runs --format
export RUN? --int8/--no-int8 --qat/--no-qat
init DATA --out/-o --device --latency-ms --labels-per-class --sources --minutes --download --any-license
predict IMAGE... --run --top --format
quantize MODEL.ONNX --images --labels --out --preprocessing --mean --std --range --channels --fit --px --classes --output --max-drop --calibration-images
report RUN?... --format --import
run RECIPE|DATA --set... --runs --device --latency-ms --labels-per-class --sources --minutes --download --any-license --yes
schema --out/-o
sources NAME?... --format
suggest FOLDER|RECIPE|RUN --n --answers --strategy --seed --runs --out --label-studio
templates --out/-o
train RECIPE --set... --runs
"""  # noqa: E501


def usage(command: Any) -> str:
    """A verb's name, options and arguments in one line."""
    words = [command.name or "edgedistill"]
    for parameter in command.params:
        many = "..." if parameter.multiple or parameter.nargs == -1 else ""
        names = "/".join([*parameter.opts, *parameter.secondary_opts])
        if parameter.param_type_name == "argument":
            names = parameter.metavar.strip("[].").replace("]", "") + ("" if parameter.required else "?")
        words.append(names + many)
    return " ".join(words)


def test_verbs_and_options_are_frozen() -> None:
    group: Any = get_command(cli.app)
    group.name = "edgedistill"
    lines = [usage(group), *(usage(verb) for _, verb in sorted(group.commands.items()))]
    assert "\n".join(lines) + "\n" == VERBS


def error_line(completed: miniature.CommandResult, code: int) -> str:
    """The last line on stderr of a command that failed with exit code `code` and no traceback."""
    assert completed.code == code, completed
    assert "Traceback" not in completed.err
    return completed.err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "verb", ["", "check", "train", "export", "bench", "report", "run", "predict", "devices", "sources", "init"]
)
def test_help_lists_every_option(verb: str) -> None:
    completed = miniature.call(*([verb] if verb else []), "--help")
    (line,) = [line for line in VERBS.splitlines() if line.split()[0] == (verb or "edgedistill")]
    for option in [word.strip(".").split("/")[0] for word in line.split() if word.startswith("--")]:
        assert completed.code == 0 and option in completed.out


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]])
def test_help_does_not_load_torch(arguments: list[str]) -> None:
    completed = miniature.edgedistill(*arguments)
    assert completed.code == 0 and completed.out and "torch was not loaded" in completed.err


def test_report_does_not_load_torch(finished_project: Project) -> None:
    completed = miniature.edgedistill("report", finished_project.run)
    assert completed.code == 0 and "torch was not loaded" in completed.err
    assert "100.0 %" in completed.out and "int8-cpu" in completed.out


def test_devices_does_not_load_torch_and_names_the_backends(tmp_path: Path) -> None:
    completed = miniature.edgedistill("devices", "local", cwd=tmp_path)
    assert completed.code == 0 and "torch was not loaded" in completed.err
    head, row, *notes = completed.out.splitlines()
    assert head.split()[:2] == ["device", "reachable"] and row.split()[:2] == ["local", "yes"]
    assert all(name in " ".join(notes) for name in BACKENDS)


def test_devices_with_problems_exit_with_1(tmp_path: Path) -> None:
    gone = tmp_path / "no-python"
    inventory = tmp_path / "devices.yaml"
    inventory.write_text(f"gone: {{python: {gone}}}\n")
    completed = miniature.call("devices", "--inventory", inventory, "--format", "json")
    assert completed.code == 1
    local, broken = json.loads(completed.out)
    assert (local["device"], local["usable"], local["missing"]) == ("local", True, {})
    assert (broken["device"], broken["usable"]) == ("gone", False) and str(gone) in broken["trouble"]
    completed = miniature.call("devices", "--inventory", inventory, "local")
    assert completed.code == 0 and "gone" not in completed.out
    assert "did you mean gone?" in error_line(miniature.call("devices", "--inventory", inventory, "gnoe"), 2)


def test_command_reports_that_torch_was_loaded() -> None:
    body = miniature.command()[2].replace("import sys\n", "import sys; sys.modules['torch'] = sys\n")
    process = subprocess.run([sys.executable, "-c", body, "--version"], capture_output=True, text=True, check=True)
    assert "torch was loaded" in process.stderr


def test_report_formats_and_comparison(finished_project: Project, project_copy: Project) -> None:
    completed = miniature.call("report", finished_project.run, "--format", "json")
    assert completed.code == 0 and json.loads(completed.out)["run"] == finished_project.run.name
    comparison = miniature.call("report", finished_project.run, project_copy.run, "--format", "json")
    assert [row["run"] for row in json.loads(comparison.out)] == [finished_project.run.name, project_copy.run.name]
    assert miniature.call("report", finished_project.run, project_copy.run).out.count(finished_project.run.name) >= 2
    (project_copy.run / "report.html").unlink()
    page = miniature.call("report", project_copy.run, "--format", "html").out.strip()
    assert Path(page) == project_copy.run.resolve() / "report.html" and Path(page).is_file()


def test_runs_latest_is_the_default(project_copy: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(project_copy.root)
    assert miniature.call("report").code == 0
    monkeypatch.chdir(tmp_path)
    assert error_line(miniature.call("report"), 2).startswith("runs/latest: not a run directory; give one that")


@pytest.mark.parametrize(
    "arguments", [["report"], ["export"], ["bench"], ["predict", "x.png", "--run"]], ids=lambda arguments: arguments[0]
)
def test_directory_that_is_not_a_run_is_refused(tmp_path: Path, arguments: list[str]) -> None:
    line = error_line(miniature.call(*arguments, tmp_path), 2)
    assert line == f"{tmp_path}: not a run directory; give one that `edgedistill train` made, such as runs/latest"


def test_wrong_usage_exits_with_2() -> None:
    for arguments in (
        ["no-such-verb"],
        ["train"],
        ["train", "x.yaml", "--no-such-option"],
        ["report", "--format", "x"],
    ):
        completed = miniature.call(*arguments)
        assert completed.code == 2 and "Traceback" not in completed.err and completed.err


@pytest.mark.parametrize(("processes", "finalized"), [("1", "finalized\n"), ("2", "")])
def test_process_of_several_exits_without_the_end_of_the_interpreter(processes: str, finalized: str) -> None:
    # threads of gloo that meet the end of the interpreter abort the process
    script = (
        "import atexit, sys\nfrom edgedistill import __main__, cli\natexit.register(print, 'finalized')\n"
        "def end() -> None:\n    print('the last words')\n    sys.exit(3)\n"
        "cli.main = end\n__main__.main()"
    )
    environment = {**os.environ, "WORLD_SIZE": processes}
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, f"the last words\n{finalized}", "")


def test_missing_recipe_is_refused(tmp_path: Path) -> None:
    for verb in ("check", "train", "run"):
        line = error_line(miniature.call(verb, tmp_path / "none.yaml"), 2)
        assert line.endswith("none.yaml: cannot be read (No such file or directory); name an existing recipe file")


@pytest.mark.parametrize(
    ("option", "message"),
    [("--device", "no device is called locla; did you mean local?"), ("--backend", "no backend is called locla")],
)
def test_bench_refuses_unknown_device_and_backend(project_copy: Project, option: str, message: str) -> None:
    assert message in error_line(miniature.call("bench", project_copy.run, option, "locla"), 2)
    assert miniature.call("bench", project_copy.run).code == 0  # the refused option is not recorded


def test_second_process_in_run_directory_is_refused(project_copy: Project) -> None:
    hold = "from pathlib import Path\nfrom edgedistill.run.directory import Run\nimport sys\n"
    hold += "with Run(path=Path(sys.argv[1])).lock():\n    print('held', flush=True)\n    sys.stdin.read()\n"
    before = (project_copy.run / "recipe.lock.json").stat().st_mtime_ns
    with subprocess.Popen(
        [sys.executable, "-c", hold, project_copy.run], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        line = error_line(miniature.call("run", project_copy.recipe, "--runs", project_copy.runs), 1)
        holder.communicate("")
    assert line == f"{project_copy.run}: another edgedistill is at work in this run directory; wait for it or end it"
    assert (project_copy.run / "recipe.lock.json").stat().st_mtime_ns == before
    assert miniature.call("run", project_copy.recipe, "--runs", project_copy.runs).code == 0


def test_full_disk_is_one_line_and_changes_no_files(project_copy: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("recipe.yaml", "manifest.json", "recipe.lock.json")
    before = {name: (project_copy.run / name).read_bytes() for name in names}

    def disk_full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", disk_full)
    line = error_line(miniature.call("run", project_copy.recipe, "--runs", project_copy.runs), 1)
    assert line == "disk: the disk is full; what was there before is intact; free some and run again"
    assert {name: (project_copy.run / name).read_bytes() for name in before} == before


UNEXPECTED = [
    (
        ZeroDivisionError("x"),
        1,
        "edgedistill: unexpected ZeroDivisionError: x; `edgedistill --debug COMMAND` shows where",
    ),
    (PermissionError(errno.EACCES, "Permission denied", "runs"), 1, "[Errno 13] Permission denied: 'runs'"),
]


@pytest.mark.parametrize(("raised", "code", "line"), UNEXPECTED)
def test_unexpected_exception_is_one_line(
    monkeypatch: pytest.MonkeyPatch, finished_project: Project, raised: Exception, code: int, line: str
) -> None:
    def fails(*_: object) -> None:
        raise raised

    monkeypatch.setattr(session, "run", fails)
    assert error_line(miniature.call("train", finished_project.recipe), code) == line
    with pytest.raises(type(raised)):  # Python prints it with its traceback
        miniature.call("--debug", "train", finished_project.recipe)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("consequence", [None, OSError("broken pipe"), EdgeDistillError("another process is gone")])
def test_signal_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    finished_project: Project,
    number: signal.Signals,
    code: int,
    consequence: Exception | None,
) -> None:
    def is_interrupted(*_: object) -> None:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            if consequence is None:
                raise
            raise consequence from None

    monkeypatch.setattr(session, "run", is_interrupted)
    for option in ([], ["--debug"]):
        completed = miniature.call(*option, "train", finished_project.recipe)
        assert (completed.code, completed.err) == (code, "stopped; the same command goes on from here\n")
    monkeypatch.setattr("edgedistill.check.load", is_interrupted)
    completed = miniature.call("check", finished_project.recipe)
    assert (completed.code, completed.err) == (code, "stopped; the same command can be run again\n")
