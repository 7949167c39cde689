"""Advice about runs and devices helps: what a message says is done, and the same command is tried again."""

from __future__ import annotations

import os
import re
import shlex
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgedistill.agent import noise
from edgedistill.devices import bench
from edgedistill.devices.transport import connect
from edgedistill.errors import EdgeDistillError
from edgedistill.export import infer
from edgedistill.export.onnx import loosened
from edgedistill.measurements import Device
from edgedistill.recipe.schema import Export
from edgedistill.run.files import read_json, write_json
from edgedistill.search import study
from edgedistill.similarity.metrics import METRICS
from tests.helpers import miniature, tiny_onnx
from tests.helpers.miniature import CommandResult, Project

FILES = {
    "weigh/weights.json": "train",
    "search/student.json": "train",
    "distill/result.json": "train",
    "data.json": "train",
    "recipe.lock.json": "train",
    "export/models.json": "export",
    "quantize/guard.json": "export",
    "quantize/calibration.json": "export",
    "keep/kept.json": "export",
    "verify/ladder.json": "export",
    "verify/mistakes.npz": "export",
    "bench/local/onnxruntime-cpu-fp32.json": "bench",
    "env.json": "",
}
QUICK = ("data.json", "keep/kept.json", "env.json")


def run_command(project: Project, verb: str) -> CommandResult:
    """Give a command on the project's run, as its user would."""
    training = ("train", project.recipe, "--runs", project.runs)
    return miniature.call(*(training if verb == "train" else (verb, project.run)))


def follow(project: Project, error: str, path: Path) -> None:
    """Do what the message about a file says: delete it, give a command."""
    if "delete" in error:
        path.unlink()
    for verb in re.findall(r"run `edgedistill (\w+)`", error):
        done = run_command(project, verb)
        assert done.code == 0, done.err


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FILES]
)
def test_broken_file_is_written_again_by_the_command_that_is_named(project_copy: Project, name: str) -> None:
    path = project_copy.run / name
    path.write_text("{")
    report = ("report", project_copy.run, "--format", "html")  # it reads all of them
    failed = miniature.call(*report)
    assert failed.code == 2 and str(path) in failed.err, failed.err
    assert re.findall(r"edgedistill (\w+)`", failed.err) == [verb for verb in [FILES[name]] if verb]
    follow(project_copy, failed.err, path)
    reported = miniature.call(*report)
    assert reported.code == 0, reported.err


@pytest.mark.parametrize(
    ("name", "field"), [("keep/kept.json", "why"), pytest.param("distill/result.json", "spec", marks=pytest.mark.slow)]
)
def test_record_of_another_version_is_written_again(project_copy: Project, name: str, field: str) -> None:
    path = project_copy.run / name
    content = read_json(path)
    del (content[0] if isinstance(content, list) else content)[field]
    write_json(path, content)
    failed = run_command(project_copy, "report")
    assert failed.code == 2 and "another version of edgedistill" in failed.err and f"{field} of" in failed.err
    follow(project_copy, failed.err, path)
    assert run_command(project_copy, "report").code == 0


def test_recipe_of_another_version_is_written_again(project_copy: Project) -> None:
    path = project_copy.run / "recipe.lock.json"
    lock = read_json(path)
    lock["recipe"]["distill"]["later"] = 1
    write_json(path, lock)
    failed = run_command(project_copy, "bench")
    assert failed.code == 2 and "another version of edgedistill: distill.later" in failed.err, failed.err
    follow(project_copy, failed.err, path)
    assert run_command(project_copy, "bench").code == 0


def test_manifest_of_another_version_is_left_alone(project_copy: Project, tmp_path: Path) -> None:
    path = project_copy.run / "manifest.json"
    write_json(path, {**read_json(path), "format": 2})
    failed = run_command(project_copy, "train")
    assert failed.code == 2 and "the field format" in failed.err and "another folder by --runs" in failed.err, (
        failed.err
    )
    elsewhere = miniature.call("train", project_copy.recipe, "--runs", tmp_path / "runs", "--set", "distill.steps=2")
    assert elsewhere.code == 0, elsewhere.err


def test_damaged_manifest_is_deleted_and_steps_run_again(project_copy: Project) -> None:
    path = project_copy.run / "manifest.json"
    path.write_text("{")
    failed = run_command(project_copy, "train")
    assert failed.code == 2 and "delete it; the steps then run again" in failed.err
    path.unlink()
    assert run_command(project_copy, "train").code == 0


def test_bundle_that_is_missing_or_altered_is_exported(project_copy: Project) -> None:
    picture = next((project_copy.root / "pictures/test").rglob("*.png"))
    for change in (lambda path: path.unlink(), lambda path: path.write_text("altered")):
        change(project_copy.run / "bundle/bundle.json")
        failed = miniature.call("predict", picture, "--run", project_copy.run)
        assert failed.code == 2 and "run `edgedistill export` again" in failed.err, failed.err
        assert run_command(project_copy, "export").code == 0
        assert miniature.call("predict", picture, "--run", project_copy.run).code == 0


@pytest.mark.slow
def test_run_without_student_is_trained(tmp_path: Path) -> None:
    project = miniature.write(tmp_path, miniature.RECIPE.replace("steps: 30", "steps: 2"))
    stopped = miniature.call("train", project.recipe, "--runs", project.runs, "--set", "distill.freeze=[stemm]")
    assert stopped.code == 2
    failed = run_command(project, "export")
    assert failed.code == 2 and "run `edgedistill train` with its recipe to the end" in failed.err
    trained = miniature.call("train", project.recipe, "--runs", project.runs, "--set", "distill.freeze=[stem]")
    assert trained.code == 0 and miniature.call("export", project.runs / "latest").code == 0


def change_weights(project: Project, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change the trained student's head, and make the export run again."""
    path = project.run / "distill/student.safetensors"
    state = load_file(path)
    state["head.weight"] = change(state["head.weight"])
    save_file(state, path)
    (project.run / "export/models.json").unlink()


@pytest.mark.slow
def test_weights_that_are_not_finite_are_trained_again(project_copy: Project) -> None:
    change_weights(project_copy, lambda tensor: tensor * float("nan"))
    failed = run_command(project_copy, "export")
    assert failed.code == 1 and "head.weight); train it again with a smaller distill.lr" in failed.err, failed.err
    lower = ("--set", "distill.lr=0.005", "--set", "distill.steps=2")
    trained = miniature.call("train", project_copy.recipe, "--runs", project_copy.runs, *lower)
    assert trained.code == 0 and miniature.call("export", project_copy.runs / "latest").code == 0


@pytest.mark.slow
def test_value_too_large_for_float16_stays_float32(project_copy: Project) -> None:
    change_weights(project_copy, lambda tensor: tensor * 1e7)
    exported = run_command(project_copy, "export")
    assert exported.code == 0, exported.err
    graph = onnx.load(project_copy.run / "export/student.fp16.onnx")
    peaks = [np.abs(onnx.numpy_helper.to_array(tensor)).max() for tensor in graph.graph.initializer if tensor.dims]
    assert max(peaks) > np.finfo(np.float16).max


@pytest.mark.slow
def test_failed_gate_names_a_bound_that_holds(project_copy: Project) -> None:
    run = ("run", project_copy.recipe, "--runs", project_copy.runs, "--set")
    failed = miniature.call(*run, "export.max_relative_error=1e-12")
    assert failed.code == 3, failed.err
    match = re.search(r"set (export\.max_relative_error) to (\S+)", failed.err)
    assert match and miniature.call(*run, f"{match[1]}={match[2]}").code == 0


@pytest.mark.parametrize(("agreement", "error"), [(0.98765, 2e-7), (1.0, 0.0123), (0.5, 7.77e3)])
def test_bounds_that_are_named_are_met(agreement: float, error: float) -> None:
    named = dict(re.findall(r"export\.(\w+) to (\S+)", loosened(agreement, error, Export())))
    loose = Export(**{name: float(bound) for name, bound in named.items()})  # type: ignore[arg-type]
    assert agreement >= loose.min_agreement and error <= loose.max_relative_error
    assert "smaller distill.lr" in loosened(1.0, float("inf"), Export())


def test_graph_of_newer_format_needs_lower_opset(tmp_path: Path) -> None:
    model = onnx.load(tiny_onnx.write(tmp_path / "new.onnx"))
    model.ir_version = 99
    with pytest.raises(EdgeDistillError, match=r"IR version.*; set a lower export\.opset, such as 17"):
        infer.session(model.SerializeToString())
    with pytest.raises(EdgeDistillError, match="run `edgedistill export` again"):
        infer.session(b"nothing")
    assert Export(opset=17).opset == 17


def test_too_few_samples_and_rounds_are_measured_as_the_verdict_says(project_copy: Project) -> None:
    few = run_command(project_copy, "report")
    assert "too few rounds (2 in 1 process) to compare with fp32" in few.out, few.out
    commands = [shlex.split(noise.REMEDIES[name]) for name in ("samples", "rounds")]
    assert [words[:3] for words in commands] == [["edgedistill", "bench", "--again"]] * 2
    measured = miniature.call("bench", project_copy.run, "--again", *(word for words in commands for word in words[3:]))
    assert measured.code == 0 and "too few samples" not in measured.out and "too few rounds" not in measured.out


def test_unexpected_error_is_shown_by_debug(monkeypatch: pytest.MonkeyPatch, finished_project: Project) -> None:
    def fails(*_: object) -> None:
        raise ZeroDivisionError("x")

    monkeypatch.setattr("edgedistill.report.render.text", fails)
    failed = miniature.call("report", finished_project.run)
    assert "`edgedistill --debug COMMAND` shows where" in failed.err
    with pytest.raises(ZeroDivisionError):
        miniature.call("--debug", "report", finished_project.run)


def test_address_of_a_database_is_written_as_advised() -> None:
    for wrong in ("nonsense", "mysql://host/name", "oracle://host/name"):
        with pytest.raises(EdgeDistillError, match="write it as postgresql://user:password@host/database"):
            study.check_connection(wrong)
    pytest.importorskip("psycopg")
    with pytest.raises(EdgeDistillError, match="is the database up"):  # the next stage: nothing listens on port 1
        study.check_connection("postgresql://user:password@127.0.0.1:1/database")


@pytest.mark.parametrize(("advice", "options"), [("debiased: false", {"debiased": False}), ("label more images", {})])
def test_cka_of_three_images(advice: str, options: dict[str, Any]) -> None:
    features_ND, probs_NK = np.random.default_rng(1).normal(size=(2, 4, 4))
    labels_N = np.array([0, 1, 1, 0])
    with pytest.raises(EdgeDistillError, match=advice):
        METRICS["cka"].score(features_ND[:3], probs_NK[:3], labels_N[:3])
    n = 3 if options else 4
    assert np.isfinite(METRICS["cka"].score(features_ND[:n], probs_NK[:n], labels_N[:n], **options))


@pytest.mark.parametrize("name", ["store.json", "at.json"])
def test_broken_cache_is_written_anew(project_copy: Project, name: str) -> None:
    (project_copy.run / "manifest.json").unlink()  # all steps run again
    for path in sorted((project_copy.runs / ".cache").rglob(name)):
        path.write_text("{")
        for done in path.parent.glob("done.json"):
            done.unlink()
    for _ in range(8):
        trained = run_command(project_copy, "train")
        if trained.code == 0:
            break
        match = re.search(r"; delete (\S+); it is written anew", trained.err)
        assert match, trained.err
        for path in sorted(Path(match[1]).rglob("*"), reverse=True):
            path.unlink()
        Path(match[1]).rmdir()
    assert trained.code == 0 and _ > 0, trained.err


@pytest.mark.slow
def test_broken_latency_is_measured_again(tmp_path: Path) -> None:
    recipe = miniature.RECIPE.replace(
        "search: {", "  budget: {latency_ms: {at_most: 60000, precision: fp32}}\nsearch: {"
    )
    project = miniature.write(tmp_path, recipe.replace("steps: 30", "steps: 2"))
    assert run_command(project, "train").code == 0
    for path in (project.runs / ".cache/latency").rglob("*.json"):
        path.write_text("{")
    again = ("train", project.recipe, "--runs", project.runs, "--set", "seed=1")
    for _ in range(8):
        trained = miniature.call(*again)
        if trained.code == 0:
            break
        match = re.search(r"; delete (\S+); the candidate is then measured again", trained.err)
        assert match, trained.err
        Path(match[1]).unlink()
    assert trained.code == 0 and _ > 0, trained.err


def write_program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_local_workdir_that_cannot_be_used_is_another(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = Device(name="box", workdir=str(tmp_path / "file/work"))
    with pytest.raises(EdgeDistillError, match=r"name another workdir in deploy/devices\.yaml"), connect(refused):
        pass
    with connect(Device(name="box", workdir=str(tmp_path / "work"))):
        assert list((tmp_path / "work").iterdir())


@pytest.mark.parametrize("python", ["missing", "silent"])
def test_python_that_cannot_measure_is_another(tmp_path: Path, python: str) -> None:
    write_program(tmp_path / "silent", "exit 0")
    with pytest.raises(EdgeDistillError, match=r"name a.* in deploy/devices\.yaml \(python:\)"):
        bench.probe(Device(name="box", python=str(tmp_path / python)))
    assert bench.probe(Device(name="box", python=sys.executable))["python"]


@pytest.mark.parametrize("program", ["exit 0", "exit 1"])
def test_program_that_measures_nothing_is_another(project_copy: Project, tmp_path: Path, program: str) -> None:
    write_program(tmp_path / "silent", program)
    write_json(tmp_path / "devices.yaml", {"box": {"python": str(tmp_path / "silent")}})
    where = ["--set", f"bench.inventory={tmp_path / 'devices.yaml'}", "--device", "box"]
    failed = miniature.call("bench", project_copy.run, *where)
    assert failed.code == 1 and "name a Python 3.8 or later in deploy/devices.yaml (python:)" in failed.err, failed.err
    write_json(tmp_path / "devices.yaml", {"box": {"python": sys.executable}})
    measured = miniature.call("bench", project_copy.run, *where)
    assert measured.code == 0, measured.err


SSH = """for word in "$@"; do command=$word; done
case "$*" in *" -O exit "*) exit 0;; esac
"""


@pytest.mark.parametrize(
    "forced", ["echo welcome", "echo only backups here >&2; exit 1", 'echo "$command"', "exit 127", "exit 0"]
)
def test_forced_command_is_told_from_a_workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forced: str) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    device = Device(name="edge", transport="ssh", host="edge", python=sys.executable, workdir=str(tmp_path / "work"))
    write_program(tmp_path / "bin/ssh", f"{SSH}{forced}")
    with (
        pytest.raises(EdgeDistillError, match=r"forced command .*: use a key and an account") as caught,
        connect(device),
    ):
        pass
    assert "workdir" not in str(caught.value) and "runs another program than sh, which says: " in str(caught.value)
    write_program(tmp_path / "bin/ssh", f'{SSH}exec sh -c "$command"')
    with connect(device) as transport:
        assert transport.run(["pwd"], 60.0).stdout.startswith(str(tmp_path / "work"))


def test_workdir_of_another_machine_that_cannot_be_used_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    write_program(tmp_path / "bin/ssh", f'{SSH}exec sh -c "$command"')
    (tmp_path / "file").touch()
    for workdir, works in (("file/work", False), ("work", True)):
        device = Device(
            name="edge", transport="ssh", host="edge", python=sys.executable, workdir=str(tmp_path / workdir)
        )
        if works:
            with connect(device):
                continue
        with pytest.raises(EdgeDistillError, match=r"name another workdir in deploy/devices\.yaml"), connect(device):
            pass
