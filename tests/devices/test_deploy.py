"""deploy/ and docs/devices.md: what they show is what the program does, as far as that can be told without a board."""

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
from edgedistill.recipe.schema import Bench
from edgedistill.records import Device
from tests.helpers.paths import ROOT

DEPLOY = ROOT / "deploy"
WRAPPER = DEPLOY / "python-in-container"
GUIDE, DOC, BUNDLE = DEPLOY / "jetson.md", ROOT / "docs" / "devices.md", DEPLOY / "bundle" / "README.md"
INSTRUCTIONS = {"FROM", "ARG", "RUN", "ENV", "COPY", "WORKDIR", "USER", "LABEL", "CMD", "ENTRYPOINT"}


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """(instruction, the rest) of a Containerfile, comments left out and continued lines joined."""
    kept = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in kept.replace("\\\n", " ").splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield word, " ".join(rest.split())


def problems(text: str, context: Path) -> list[str]:
    """What a container engine would refuse, as far as it can be told without one."""
    found, given = [], dict[str, str]()
    for word, rest in instructions(text):
        if word not in INSTRUCTIONS:
            found.append(f"{word}: no instruction")
        if word == "ARG":
            name, _, value = rest.partition("=")
            given[name] = value
        found += [f"{name}: no ARG" for name in re.findall(r"\$\{(\w+)\}", rest) if name not in given]
        filled = re.sub(r"\$\{(\w+)\}", lambda match: given.get(match[1], ""), rest)
        if word == "FROM" and not re.fullmatch(r"[\w./-]+:\d[\w.-]*( AS \w+)?", filled):
            found.append(f"FROM {filled}: an image needs its registry's name and a version")
        if word == "RUN" and subprocess.run(["sh", "-n", "-c", filled], capture_output=True, check=False).returncode:
            found.append(f"RUN {filled}: no shell")
        if word == "COPY" and "--from" not in filled:
            found += [f"COPY {name}: not there" for name in filled.split()[:-1] if not list(context.glob(name))]
    return found


def packages(text: str) -> dict[str, Requirement]:
    given = dict(rest.split("=") for word, rest in instructions(text) if word == "ARG")
    runs = [
        re.sub(r"\$\{(\w+)\}", lambda match: given[match[1]], rest)
        for word, rest in instructions(text)
        if word == "RUN" and "pip install" in rest
    ]
    words = [word for run in runs for word in shlex.split(run) if word not in {"pip", "install"} and word[0] != "-"]
    return {one.name: one for one in map(Requirement, words)}


def least(requirement: Requirement) -> Version:
    return max(Version(one.version) for one in requirement.specifier if one.operator in {">=", "~=", "=="})


def test_the_containerfile_is_well_formed() -> None:
    text = (DEPLOY / "Containerfile").read_text()
    assert problems(text, DEPLOY) == []
    assert next(word for word, _ in instructions(text)) in {"FROM", "ARG"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("INSTALL numpy", "INSTALL: no instruction"),
        ("FROM docker.io/library/python", "FROM docker.io/library/python: an image needs"),
        ("FROM docker.io/library/python:latest", "an image needs"),
        ("RUN pip install ${NOTHING}", "NOTHING: no ARG"),
        ("RUN if true; then", "no shell"),
        ("COPY nothing.py /", "COPY nothing.py: not there"),
    ],
)
def test_a_wrong_containerfile_would_be_found(line: str, said: str) -> None:
    assert any(said in problem for problem in problems(line, DEPLOY))


def test_the_container_has_what_the_agent_needs_and_no_more() -> None:
    text = (DEPLOY / "Containerfile").read_text()
    inside = packages(text)
    assert set(inside) == {"numpy", "pillow", "tensorrt-cu13", "onnxruntime-gpu"}
    project = (ROOT / "pyproject.toml").read_text()
    listed = project.partition("\ndependencies = [\n")[2].partition("\n]")[0]
    ours = {one.name: one for one in map(Requirement, re.findall(r'"(.+)"', listed))}
    for name, same in (("numpy", "numpy"), ("pillow", "pillow"), ("onnxruntime-gpu", "onnxruntime")):
        assert least(inside[name]) >= least(ours[same]), name
    assert tensorrt_build.branch_of("tensorrt", str(least(inside["tensorrt-cu13"])))
    given = dict(rest.split("=") for word, rest in instructions(text) if word == "ARG")
    wanted = re.findall(r'(?m)^requires-python = "(.+)"', project)[0]
    assert Version(given["PYTHON"]) in Requirement(f"x{wanted}").specifier


def engine(folder: Path, name: str) -> None:
    """A container engine that only notes what it is asked for, and runs it here."""
    (folder / name).write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" >"{folder}/{name}.log"\n'
        f'while [ "$1" != edgedistill-gpu ]; do shift; done\nshift 2\nexec {sys.executable} "$@"\n'
    )
    (folder / name).chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder on PATH: without a container engine that this machine may have."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "id", "mkdir"):
        (folder / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path / "my cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return folder


@pytest.mark.parametrize(("name", "gpu"), [("docker", "--gpus all"), ("podman", "--device nvidia.com/gpu=all")])
def test_a_container_is_a_device(tmp_path: Path, programs: Path, name: str, gpu: str) -> None:
    engine(programs, name)
    device = Device(name="box", python=str(WRAPPER), workdir=str(tmp_path / "work dir"))
    assert bench.probe(device)["python"] == ".".join(map(str, sys.version_info[:3]))
    words = (programs / f"{name}.log").read_text().splitlines()
    assert words[0] == "run" and gpu in " ".join(words)
    volumes = [words[at + 1] for at, word in enumerate(words) if word == "--volume"]
    place = words[words.index("--workdir") + 1]
    assert Path(place).parent == tmp_path / "work dir"
    # the lock, so that one measurement at a time holds inside and outside
    lock = f"{tmp_path}/edgedistill-agent.lock"
    assert volumes == [
        f"{place}:{place}",
        f"{tmp_path}/my cache:{tmp_path}/my cache",
        f"{lock}:/tmp/edgedistill-agent.lock",
    ]
    assert Path(lock).stat().st_mode & 0o777 == 0o644
    assert f"EDGEDISTILL_CACHE={tmp_path}/my cache" in words and (tmp_path / "my cache").is_dir()
    image = words.index("edgedistill-gpu")
    assert words[image : image + 2] == ["edgedistill-gpu", "python3"] and words[-1] == "--facts"


def test_no_container_engine_is_said(programs: Path) -> None:
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


def test_the_guide_shows_what_the_program_prints() -> None:
    device = Device(name="orin-nano", transport="ssh", host="orin-nano", backends=("tensorrt", "onnxruntime-cpu"))
    shown = re.search(r"<!-- sample: begin -->\n```\n(.*?)```\n<!-- sample: end -->", GUIDE.read_text(), re.DOTALL)
    probed = [survey.Probed(device=device, facts=ORIN)]
    assert probed[0].usable
    assert shown is not None and shown[1] == survey.table(probed) + "\n"


SOURCES = "\n".join(
    path.read_text() for folder in ("agent", "devices") for path in sorted((ROOT / "edgedistill" / folder).glob("*.py"))
)


def troubles() -> list[str]:
    table = DOC.read_text().partition("## When it does not work")[2]
    return re.findall(r"(?m)^\| `([^`]+)`", table)


@pytest.mark.parametrize("said", troubles())
def test_every_error_of_the_table_is_one_that_there_is(said: str) -> None:
    # long messages are put together from pieces in the source
    joined = re.sub(r'"\s*f?"', "", SOURCES)
    assert said in SOURCES or said in joined


def test_there_are_errors_to_check() -> None:
    assert len(troubles()) > 15


def test_the_document_names_what_there_is() -> None:
    text = DOC.read_text()
    table = text.partition("## Backends")[2].partition("\n\n")[2].partition("\n\n")[0]
    named = set(re.findall(r"`((?:onnxruntime|tensorrt)[\w-]*)`", table))
    assert {"onnxruntime-cpu", "tensorrt", "tensorrt-rtx"} <= named <= set(BACKENDS)
    modes = text.partition("## Modes")[2].partition("## How")[0]
    assert set(create("tensorrt").modes) <= set(re.findall(r"`([a-z0-9-]+)`", modes))


def test_the_documents_numbers_are_the_programs() -> None:
    text = " ".join(DOC.read_text().split())
    usual = Bench()
    assert f"`samples` ({usual.samples}) and `seconds` ({usual.seconds:g})" in text
    assert usual.processes == 3 and "three fresh processes" in text
    assert usual.accuracy_images == 500 and "over at least 500 images" in text
    assert f"above {noise.MOST_P50_OVER_MIN} times the minimum" in text
    assert f"above {noise.MOST_P99_OVER_P50} times the p50" in text
    assert f"more than {noise.MOST_DRIFT:.0%} from the first".replace("%", " %") in text
    assert f"more than {1 - verdict.LEAST_AGREEMENT:.0%} differ".replace("%", " %") in text
    bound = f"within {meter.TOLERANCE:.0%}, at most {meter.MOST_WINDOWS} windows or {meter.MOST_MS / 1000:.0f} s"
    assert bound.replace("%", " %") in text and meter.WINDOW == 10


def test_the_bundles_files_are_those_of_its_page(bundle: Path) -> None:
    patterns = re.findall(r"`([\w.*]+)`", "".join(re.findall(r"(?m)^\| (`[^|]*) \|", BUNDLE.read_text())))
    files = [path.name for path in bundle.iterdir()]
    assert [name for name in files if not any(fnmatch.fnmatch(name, one) for one in patterns)] == []
    assert [one for one in patterns if not fnmatch.filter(files, one)] == []


def test_the_example_programs_options_exist(bundle: Path) -> None:
    asked = [sys.executable, str(bundle / "label.py"), "--help"]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    shown = set(re.findall(r"(?m)^    python3 label\.py.*", BUNDLE.read_text()))
    options = {word for line in shown for word in line.split() if word.startswith("--")}
    assert options == {"--model", "--camera", "--frames", "--provider"}
    assert [option for option in options if option not in done.stdout] == []
