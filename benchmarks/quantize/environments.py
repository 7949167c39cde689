"""The peers, and an environment for each that is built once, with what was installed and what it cost."""

from __future__ import annotations

import json
import re
import shutil
import site
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from edgedistill.console import say

SCRIPTS = Path(__file__).parent / "peers"
SERVE = SCRIPTS / "serve.py"
MARK = "installed.json"


class PeerError(Exception):
    """Why a peer gave nothing, in one line."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What pip is asked for.

    Attributes:
        packages: requirements; the versions that a line of results names are those of these packages.
        whole: with what the packages themselves require.
        borrows: sees the current interpreter's packages behind its own: torch is large, and a CPU needs no other.
    """

    packages: tuple[str, ...]
    whole: bool = True
    borrows: bool = False


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A quantizer: its environment, the script and the mode that make the model, and how the model is run.

    Attributes:
        simulate: run for its accuracy alone, as the graph is written: it is made for another runtime.
    """

    environment: str
    script: str
    mode: str
    runtime: str
    suffix: str
    simulate: bool = False
    precision: str = "int8"


ENVIRONMENTS = {
    "onnxruntime": Environment(packages=(f"onnxruntime=={metadata.version('onnxruntime')}", "onnx>=1.18", "sympy")),
    "nncf": Environment(packages=("openvino==2026.4.1", "nncf==3.4.0")),
    # its [onnx] extra asks for onnxruntime-gpu and cupy; these are what int8 on a CPU imports
    "modelopt": Environment(
        packages=(
            "nvidia-modelopt==0.47.0",
            "onnxruntime~=1.24.2",
            "onnx~=1.21.0",
            "onnx-graphsurgeon>=0.6.1",
            "onnxconverter-common~=1.16.0",
            "onnxslim>=0.1.76",
            "lief",
            "nvidia-ml-py>=12",
        ),
        whole=False,
        borrows=True,
    ),
    # no quantizer: the meter that benchmarks/meter holds the agent's against
    "loadgen": Environment(packages=(f"onnxruntime=={metadata.version('onnxruntime')}", "mlcommons-loadgen==6.0.17")),
}
PEERS = {
    "onnxruntime-default": Peer(
        environment="onnxruntime", script="make_onnxruntime.py", mode="default", runtime="onnxruntime", suffix=".onnx"
    ),
    "onnxruntime-preset": Peer(
        environment="onnxruntime", script="make_onnxruntime.py", mode="preset", runtime="onnxruntime", suffix=".onnx"
    ),
    "nncf": Peer(environment="nncf", script="make_nncf.py", mode="default", runtime="openvino", suffix=".xml"),
    "openvino-unquantized": Peer(
        environment="nncf",
        script="make_nncf.py",
        mode="unquantized",
        runtime="openvino",
        suffix=".xml",
        precision="fp32",
    ),
    "modelopt": Peer(
        environment="modelopt",
        script="make_modelopt.py",
        mode="default",
        runtime="onnxruntime",
        suffix=".onnx",
        simulate=True,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Built:
    """An environment on disk: its interpreter, the versions of what was asked for, and the seconds it took."""

    python: Path
    versions: Mapping[str, str]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """A model on disk, how it is run, and what is known of it."""

    name: str
    path: Path
    precision: str
    python: Path = field(default=Path(sys.executable))
    runtime: str = "onnxruntime"
    simulate: bool = False
    ours: bool = False
    seconds: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


def environment(name: str, folder: Path) -> Built:
    """The environment called `name` under `folder`, built where it is not there as asked for now."""
    asked, home = ENVIRONMENTS[name], folder / name
    mark = home / MARK
    known = json.loads(mark.read_text()) if mark.exists() else {}
    if known.get("asked") != list(asked.packages):
        say(f"environment {name}: {', '.join(asked.packages)}")
        known = _build(asked, home)
        mark.write_text(json.dumps(known, indent=1))
        say(f"environment {name}: {known['seconds']:.0f} s")
    names = [_bare(one) for one in asked.packages]
    versions = {one: known["packages"].get(one, "?") for one in names}
    return Built(python=_python(home), versions=versions, seconds=known["seconds"])


def _python(home: Path) -> Path:
    return home.absolute() / "bin/python"  # not resolve(): the link is what makes it an environment


def _bare(requirement: str) -> str:
    return re.split("[=~><]", requirement, maxsplit=1)[0]


def _build(asked: Environment, home: Path) -> dict[str, Any]:
    shutil.rmtree(home, ignore_errors=True)
    started = time.monotonic()
    told([sys.executable, "-m", "venv", str(home)])
    pip = [str(_python(home)), "-m", "pip", "--disable-pip-version-check"]
    told([*pip, "install", "--quiet", *([] if asked.whole else ["--no-deps"]), *asked.packages])
    if asked.borrows:
        inside = told([str(_python(home)), "-c", "import site; print(site.getsitepackages()[0])"]).strip()
        (Path(inside) / "borrowed.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    listed = json.loads(told([*pip, "list", "--format", "json"]))
    return {
        "asked": list(asked.packages),
        "seconds": round(time.monotonic() - started, 1),
        "packages": {one["name"].lower().replace("_", "-"): one["version"] for one in listed},
    }


def told(command: list[str]) -> str:
    """A command's stdout; PeerError with what it said last where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerError(f"exit status {done.returncode}: {last_line(done.stderr)}")
    return done.stdout


def last_line(text: str) -> str:
    """The last line that says anything, without the folders of this machine, at most 300 characters of it."""
    lines = [one.strip() for one in text.splitlines() if one.strip()]
    return re.sub(r"(?<!\S)(\W?)/\S*/", r"\1", lines[-1])[:300] if lines else ""


def make(name: str, folder: Path, out: Path, environments: Path) -> Artefact:
    """One peer's model of a student.

    Args:
        name: of PEERS.
        folder: the student's.
        out: where the models of this student are kept.
        environments: where the environments are kept.

    Raises:
        PeerError: the peer cannot be installed, or fails on this graph.
    """
    peer = PEERS[name]
    built = environment(peer.environment, environments)
    path = out / f"{name}{peer.suffix}"
    told(
        [
            str(built.python),
            str(SCRIPTS / peer.script),
            "--model",
            str(folder / "student.fp32.onnx"),
            "--calibration",
            str(folder / "calibration.npy"),
            "--out",
            str(path),
            "--mode",
            peer.mode,
        ]
    )
    facts = json.loads(path.with_suffix(".facts.json").read_text())
    return Artefact(
        name=name,
        path=path,
        precision=peer.precision,
        python=built.python,
        runtime=peer.runtime,
        simulate=peer.simulate,
        seconds=facts.pop("seconds"),
        versions=built.versions,
        facts=facts,
    )
