"""The peers and their virtual environments; each is built once and records installed versions and build time."""

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
RECORD = "installed.json"


class PeerError(Exception):
    """A peer failed; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A virtual environment's requirements.

    Attributes:
        packages: requirements for pip; a line of results names the versions of these packages.
        dependencies: whether pip also installs the packages' own requirements.
        borrows: whether the current interpreter's packages are importable after its own: torch is large, and a CPU
            needs no second copy.
    """

    packages: tuple[str, ...]
    dependencies: bool = True
    borrows: bool = False


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A quantizer: its environment, the script and mode that make the model, and the runtime of the model.

    Attributes:
        simulate: whether the graph is for another runtime, so that it is run as written, for its accuracy alone.
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
    # its [onnx] extra requires onnxruntime-gpu and cupy; int8 on a CPU imports only these
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
        dependencies=False,
        borrows=True,
    ),
    # not a quantizer: benchmarks/meter compares the agent's meter with it
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
    """An environment on disk: its interpreter, the versions of the required packages, and the seconds of its build."""

    python: Path
    versions: Mapping[str, str]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A model on disk, its runtime, and facts of its build."""

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
    """Return the environment `name` under `folder`; build it if it is missing or its requirements have changed."""
    requested, home = ENVIRONMENTS[name], folder / name
    record = home / RECORD
    installed = json.loads(record.read_text()) if record.exists() else {}
    if installed.get("asked") != list(requested.packages):
        say(f"environment {name}: {', '.join(requested.packages)}")
        installed = _build(requested, home)
        record.write_text(json.dumps(installed, indent=1))
        say(f"environment {name}: {installed['seconds']:.0f} s")
    names = [_bare(requirement) for requirement in requested.packages]
    versions = {package: installed["packages"].get(package, "?") for package in names}
    return Built(python=_python(home), versions=versions, seconds=installed["seconds"])


def _python(home: Path) -> Path:
    return home.absolute() / "bin/python"  # not resolve(): the link is what makes it an environment


def _bare(requirement: str) -> str:
    return re.split("[=~><]", requirement, maxsplit=1)[0]


def _build(requested: Environment, home: Path) -> dict[str, Any]:
    shutil.rmtree(home, ignore_errors=True)
    started = time.monotonic()
    run_command([sys.executable, "-m", "venv", str(home)])
    pip = [str(_python(home)), "-m", "pip", "--disable-pip-version-check"]
    run_command([*pip, "install", "--quiet", *([] if requested.dependencies else ["--no-deps"]), *requested.packages])
    if requested.borrows:
        inside = run_command([str(_python(home)), "-c", "import site; print(site.getsitepackages()[0])"]).strip()
        (Path(inside) / "borrowed.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    packages = json.loads(run_command([*pip, "list", "--format", "json"]))
    return {
        "asked": list(requested.packages),
        "seconds": round(time.monotonic() - started, 1),
        "packages": {package["name"].lower().replace("_", "-"): package["version"] for package in packages},
    }


def run_command(command: list[str]) -> str:
    """Run a command and return its stdout; raises PeerError with the last line of stderr where it fails."""
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise PeerError(f"exit status {process.returncode}: {last_line(process.stderr)}")
    return process.stdout


def last_line(text: str) -> str:
    """The last line that is not blank, without this machine's folders, cut to 300 characters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"(?<!\S)(\W?)/\S*/", r"\1", lines[-1])[:300] if lines else ""


def make_model(name: str, folder: Path, out: Path, environments: Path) -> Artifact:
    """Make one peer's model of a student.

    Args:
        name: a key of PEERS.
        folder: the student's folder.
        out: folder for the models of this student.
        environments: folder for the environments.

    Raises:
        PeerError: the peer cannot be installed, or fails on this graph.
    """
    peer = PEERS[name]
    python_env = environment(peer.environment, environments)
    path = out / f"{name}{peer.suffix}"
    run_command(
        [
            str(python_env.python),
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
    return Artifact(
        name=name,
        path=path,
        precision=peer.precision,
        python=python_env.python,
        runtime=peer.runtime,
        simulate=peer.simulate,
        seconds=facts.pop("seconds"),
        versions=python_env.versions,
        facts=facts,
    )
