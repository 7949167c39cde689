"""deploy/ and docs/devices.md agree with the program, as far as can be checked without a board."""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from edgedistill.agent import meter, noise, tensorrt_build, verdict
from edgedistill.agent.backends import BACKENDS, create
from edgedistill.devices import bench, survey
from edgedistill.errors import EdgeDistillError
from edgedistill.measurements import Device
from edgedistill.recipe.schema import Bench
from tests.helpers.paths import ROOT

DEPLOY = ROOT / "deploy"
WRAPPER = DEPLOY / "python-in-container"
GUIDE, DOC, BUNDLE = DEPLOY / "jetson.md", ROOT / "docs" / "devices.md", DEPLOY / "bundle" / "README.md"
INSTRUCTIONS = {"FROM", "ARG", "RUN", "ENV", "COPY", "WORKDIR", "USER", "LABEL", "CMD", "ENTRYPOINT"}


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Yield (instruction, arguments) of a Containerfile, without comments and with continued lines joined."""
    text_without_comments = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in text_without_comments.replace("\\\n", " ").splitlines():
        if line.strip():
            word, _, arguments = line.strip().partition(" ")
            yield word, " ".join(arguments.split())


def container_problems(text: str, context: Path) -> list[str]:
    """List what a container engine would refuse, as far as can be checked without one."""
    problems, arguments = [], dict[str, str]()
    for word, line_arguments in instructions(text):
        if word not in INSTRUCTIONS:
            problems.append(f"{word}: no instruction")
        if word == "ARG":
            name, _, default = line_arguments.partition("=")
            arguments[name] = default
        problems += [f"{name}: no ARG" for name in re.findall(r"\$\{(\w+)\}", line_arguments) if name not in arguments]
        filled = re.sub(r"\$\{(\w+)\}", lambda match: arguments.get(match[1], ""), line_arguments)
        if word == "FROM" and not re.fullmatch(r"[\w./-]+:\d[\w.-]*( AS \w+)?", filled):
            problems.append(f"FROM {filled}: an image needs its registry's name and a version")
        if word == "RUN" and subprocess.run(["sh", "-n", "-c", filled], capture_output=True, check=False).returncode:
            problems.append(f"RUN {filled}: no shell")
        if word == "COPY" and "--from" not in filled:
            problems += [f"COPY {name}: not there" for name in filled.split()[:-1] if not list(context.glob(name))]
    return problems


def packages(text: str) -> dict[str, Requirement]:
    arguments = dict(assignment.split("=") for word, assignment in instructions(text) if word == "ARG")
    runs = [
        re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], command)
        for word, command in instructions(text)
        if word == "RUN" and "pip install" in command
    ]
    words = [word for run in runs for word in shlex.split(run) if word not in {"pip", "install"} and word[0] != "-"]
    return {requirement.name: requirement for requirement in map(Requirement, words)}


def lowest(requirement: Requirement) -> Version:
    return max(Version(clause.version) for clause in requirement.specifier if clause.operator in {">=", "~=", "=="})


def test_containerfile_is_well_formed() -> None:
    text = (DEPLOY / "Containerfile").read_text()
    assert container_problems(text, DEPLOY) == []
    assert next(word for word, _ in instructions(text)) in {"FROM", "ARG"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("INSTALL numpy", "INSTALL: no instruction"),
        ("FROM docker.io/library/python", "FROM docker.io/library/python: an image needs"),
        ("FROM docker.io/library/python:latest", "an image needs"),
        ("RUN pip install ${NOTHING}", "NOTHING: no ARG"),
        ("RUN if true; then", "no shell"),
        ("COPY nothing.py /", "COPY nothing.py: not there"),
    ],
)
def test_malformed_containerfile_is_reported(line: str, message: str) -> None:
    assert any(message in problem for problem in container_problems(line, DEPLOY))


def test_container_installs_exactly_what_agent_needs() -> None:
    text = (DEPLOY / "Containerfile").read_text()
    installed = packages(text)
    assert set(installed) == {"numpy", "pillow", "tensorrt-cu13", "onnxruntime-gpu"}
    project = (ROOT / "pyproject.toml").read_text()
    listed = project.partition("\ndependencies = [\n")[2].partition("\n]")[0]
    required = {requirement.name: requirement for requirement in map(Requirement, re.findall(r'"(.+)"', listed))}
    for name, own_name in (("numpy", "numpy"), ("pillow", "pillow"), ("onnxruntime-gpu", "onnxruntime")):
        assert lowest(installed[name]) >= lowest(required[own_name]), name
    assert tensorrt_build.branch_of("tensorrt", str(lowest(installed["tensorrt-cu13"])))
    arguments = dict(assignment.split("=") for word, assignment in instructions(text) if word == "ARG")
    python_range = re.findall(r'(?m)^requires-python = "(.+)"', project)[0]
    assert Version(arguments["PYTHON"]) in Requirement(f"x{python_range}").specifier


def engine(folder: Path, name: str) -> None:
    """Write a fake container engine that logs its arguments and runs the command on the host."""
    (folder / name).write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" >"{folder}/{name}.log"\n'
        f'while [ "$1" != edgedistill-gpu ]; do shift; done\nshift 2\nexec {sys.executable} "$@"\n'
    )
    (folder / name).chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH: it hides a container engine of this machine."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "id", "mkdir"):
        (folder / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path / "my cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return folder


@pytest.mark.parametrize(("name", "gpu"), [("docker", "--gpus all"), ("podman", "--device nvidia.com/gpu=all")])
def test_container_wrapper_serves_as_device_python(tmp_path: Path, programs: Path, name: str, gpu: str) -> None:
    engine(programs, name)
    device = Device(name="box", python=str(WRAPPER), workdir=str(tmp_path / "work dir"))
    assert bench.probe(device)["python"] == ".".join(map(str, sys.version_info[:3]))
    words = (programs / f"{name}.log").read_text().splitlines()
    assert words[0] == "run" and gpu in " ".join(words)
    volumes = [words[index + 1] for index, word in enumerate(words) if word == "--volume"]
    workdir = words[words.index("--workdir") + 1]
    assert Path(workdir).parent == tmp_path / "work dir"
    # the lock is mounted so that only one measurement runs at a time, inside or outside the container
    lock = f"{tmp_path}/edgedistill-agent.lock"
    assert volumes == [
        f"{workdir}:{workdir}",
        f"{tmp_path}/my cache:{tmp_path}/my cache",
        f"{lock}:/tmp/edgedistill-agent.lock",
    ]
    assert Path(lock).stat().st_mode & 0o777 == 0o644
    assert f"EDGEDISTILL_CACHE={tmp_path}/my cache" in words and (tmp_path / "my cache").is_dir()
    image_index = words.index("edgedistill-gpu")
    assert words[image_index : image_index + 2] == ["edgedistill-gpu", "python3"] and words[-1] == "--facts"


def test_missing_container_engine_is_reported(programs: Path) -> None:
    assert os.environ["PATH"] == str(programs)
    with pytest.raises(EdgeDistillError, match="exited with 2: python-in-container: neither docker nor podman is here"):
        bench.probe(Device(name="box", python=str(WRAPPER)))


ORIN = {
    "machine": "aarch64",
    "board": "NVIDIA Jetson Orin Nano Developer Kit Super",
    "python": "3.10.12",
    "l4t": "36.4.3",
    "jetpack": "6.2.1+b38",
    "memory_mb": 7990,
    "memory_available_mb": 6120,
    "power_mode": "MAXN_SUPER",
    "governor": ["schedutil"],
    "fixed_clocks": {"cpu": True, "gpu": True},
    "backends": {"onnxruntime-cpu": "1.23.2", "tensorrt": "10.3.0", "tensorrt-rtx": "not here: tensorrt_rtx"},
}


def test_guide_sample_equals_printed_table() -> None:
    device = Device(name="orin-nano", transport="ssh", host="orin-nano", backends=("tensorrt", "onnxruntime-cpu"))
    sample = re.search(r"<!-- sample: begin -->\n```\n(.*?)```\n<!-- sample: end -->", GUIDE.read_text(), re.DOTALL)
    probed = [survey.DeviceStatus(device=device, facts=ORIN)]
    assert probed[0].usable
    assert sample is not None and sample[1] == survey.table(probed) + "\n"


SOURCES = "\n".join(
    path.read_text() for folder in ("agent", "devices") for path in sorted((ROOT / "edgedistill" / folder).glob("*.py"))
)


def documented_errors() -> list[str]:
    table = DOC.read_text().partition("## When it does not work")[2]
    return re.findall(r"(?m)^\| `([^`]+)`", table)


@pytest.mark.parametrize("message", documented_errors())
def test_documented_error_exists_in_source(message: str) -> None:
    # long messages are joined from string pieces in the source
    joined = re.sub(r'"\s*f?"', "", SOURCES)
    assert message in SOURCES or message in joined


def test_documented_errors_are_found() -> None:
    assert len(documented_errors()) > 15


def test_document_names_existing_backends_and_modes() -> None:
    text = DOC.read_text()
    table = text.partition("## Backends")[2].partition("\n\n")[2].partition("\n\n")[0]
    named = set(re.findall(r"`((?:onnxruntime|tensorrt)[\w-]*)`", table))
    assert {"onnxruntime-cpu", "tensorrt", "tensorrt-rtx"} <= named <= set(BACKENDS)
    modes = text.partition("## Modes")[2].partition("## How")[0]
    assert set(create("tensorrt").modes) <= set(re.findall(r"`([a-z0-9-]+)`", modes))


def test_document_numbers_equal_constants() -> None:
    text = " ".join(DOC.read_text().split())
    defaults = Bench()
    assert f"`samples` ({defaults.samples}) and `seconds` ({defaults.seconds:g})" in text
    assert defaults.processes == 3 and "three fresh processes" in text
    assert f"over {defaults.accuracy_images} test images (`bench.accuracy_images`" in text
    assert f"above {noise.MOST_P50_OVER_MIN} times the minimum" in text
    assert f"above {noise.MOST_P99_OVER_P50} times the p50" in text
    assert f"more than {noise.MOST_DRIFT:.0%} from the first".replace("%", " %") in text
    assert f"more than {1 - verdict.LEAST_AGREEMENT:.0%} differ".replace("%", " %") in text
    bound = f"within {meter.TOLERANCE:.0%}, at most {meter.MOST_WINDOWS} windows or {meter.MOST_MS / 1000:.0f} s"
    assert bound.replace("%", " %") in text and meter.WINDOW == 10


def test_bundle_files_equal_those_of_its_readme(bundle: Path) -> None:
    patterns = re.findall(r"`([\w.*]+)`", "".join(re.findall(r"(?m)^\| (`[^|]*) \|", BUNDLE.read_text())))
    files = [path.name for path in bundle.iterdir()]
    assert [name for name in files if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)] == []
    absent = [pattern for pattern in patterns if not fnmatch.filter(files, pattern)]
    assert absent == ["student.ncnn.zip"], "a recipe has to ask for it"


def test_example_program_has_documented_options(bundle: Path) -> None:
    argv = [sys.executable, str(bundle / "label.py"), "--help"]
    process = subprocess.run(argv, capture_output=True, text=True, check=True)
    examples = set(re.findall(r"(?m)^    python3 label\.py.*", BUNDLE.read_text()))
    options = {word for line in examples for word in line.split() if word.startswith("--")}
    assert options == {"--model", "--camera", "--frames", "--provider", "--backend"}
    assert [option for option in options if option not in process.stdout] == []
