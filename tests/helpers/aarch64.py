"""An aarch64 Python with ONNX Runtime under qemu-user, put together in a cache folder; nothing is installed.

Debian's packages of the interpreter are unpacked into a folder, the wheels beside them. qemu-user must be 8 or later:
7.2, that of Debian 12, crashes on `import onnxruntime`; where it is older it is taken from Debian 13, as a file.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from filelock import FileLock

QEMU_SUITE, OLDEST_QEMU = "trixie", 8
CPU = "cortex-a76"  # that of a Raspberry Pi 5
TAGS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
DOWNLOAD_S = 600.0  # the time limit on all downloads for one interpreter


@dataclass(frozen=True)
class Python:
    """An interpreter of a Debian release, and the ONNX Runtime that it gets."""

    suite: str
    version: str
    onnxruntime: str

    @property
    def name(self) -> str:
        """The name of its folder and of its test."""
        return f"python{self.version}-onnxruntime{self.onnxruntime}"


# the oldest runtime that a graph of this project's opset must load in, and the one that is used here
PYTHONS = (
    Python(suite="bookworm", version="3.11", onnxruntime="1.19.2"),
    Python(suite="trixie", version="3.13", onnxruntime=metadata.version("onnxruntime")),
)


class MissingError(Exception):
    """The interpreter cannot be built on this machine; the message is one line."""


def cache() -> Path:
    """The folder that keeps downloads from one test run to the next."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgedistill-tests" / "aarch64"


def interpreter(python: Python, folder: Path) -> Path:
    """An executable called as `python` is; a process it starts by sys.executable runs under qemu as well.

    Raises:
        MissingError: the interpreter cannot be built on this machine.
    """
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise MissingError(f"qemu-user is for Linux on x86_64; this is {platform.system()} on {platform.machine()}")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        deadline = time.monotonic() + DOWNLOAD_S
        qemu, home = _qemu(folder, deadline), folder / python.name
        if not home.exists():
            _build(python, home, deadline)
    program = home / "python"
    root, site = (shlex.quote(str(home / part)) for part in ("root", "site"))
    program.write_text(
        f"#!/bin/sh\nexport PYTHONHOME={root}/usr PYTHONPATH={site} QEMU_CPU={CPU}\n"
        f'exec {shlex.quote(str(qemu))} -L {root} -0 "$0" {root}/usr/bin/python{python.version} "$@"\n'
    )
    program.chmod(0o755)
    return program


def _qemu(folder: Path, deadline: float) -> Path:
    """A qemu-aarch64 of at least version OLDEST_QEMU: the system's, or a copy of Debian's."""
    installed = [shutil.which(name) for name in ("qemu-aarch64", "qemu-aarch64-static")]
    fetched = folder / "qemu-aarch64"
    for path in (*(Path(program) for program in installed if program), fetched):
        if path.exists() and _major(path) >= OLDEST_QEMU:
            return path
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        _unpack(Path(temporary) / "qemu", QEMU_SUITE, architecture="amd64", packages=["qemu-user"], deadline=deadline)
        # the package has a program for every processor; keep this one, which is linked statically
        (Path(temporary) / "qemu/usr/bin/qemu-aarch64").rename(fetched)
    if _major(fetched) < OLDEST_QEMU:
        raise MissingError(f"qemu-user of {QEMU_SUITE} does not run here")
    return fetched


def _major(program: Path) -> int:
    process = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=False)
    version = re.search(r"version (\d+)\.", process.stdout)
    return int(version.group(1)) if version else 0


def _build(python: Python, home: Path, deadline: float) -> None:
    with tempfile.TemporaryDirectory(dir=home.parent) as temporary:
        (staging := Path(temporary) / "staging").mkdir()
        packages = [f"python{python.version}-minimal", f"libpython{python.version}-stdlib", "libstdc++6"]
        _unpack(staging / "root", python.suite, architecture="arm64", packages=packages, deadline=deadline)
        wheels = [f"onnxruntime=={python.onnxruntime}", "numpy", "pillow"]
        tags = [part for tag in TAGS for part in ("--platform", tag)]
        _call(
            [
                sys.executable,
                "-m",
                "pip",
                "--disable-pip-version-check",
                "install",
                "--quiet",
                "--no-deps",
                "--target",
                str(staging / "site"),
                "--only-binary=:all:",
                "--python-version",
                python.version,
                *tags,
                *wheels,
            ],
            deadline,
        )
        staging.rename(home)


def _unpack(root: Path, suite: str, architecture: str, packages: Sequence[str], deadline: float) -> None:
    """Unpack Debian packages and their dependencies into a folder; apt's state and lists are private to this call."""
    with tempfile.TemporaryDirectory(dir=root.parent) as temporary:
        private = Path(temporary)
        for part in ("lists/partial", "archives/partial"):
            (private / part).mkdir(parents=True)
        (private / "status").touch()
        (private / "sources.list").write_text(_source(suite))
        apt = ["apt-get", "-qq", *_apt_options(private, architecture)]
        _call([*apt, "update"], deadline)
        _call([*apt, "install", "--download-only", "--yes", *packages], deadline)
        unpacked = private / "root"
        for package in sorted((private / "archives").glob("*.deb")):
            _call(["dpkg-deb", "--extract", str(package), str(unpacked)], deadline)
        for name in ("lib", "lib64", "bin"):
            # Debian merged /lib into /usr/lib, and leaves the link between them to its installer
            if not (unpacked / name).exists() and (unpacked / "usr" / name).exists():
                (unpacked / name).symlink_to(f"usr/{name}")
        shutil.rmtree(root, ignore_errors=True)
        unpacked.rename(root)


def _apt_options(folder: Path, architecture: str) -> list[str]:
    settings = {
        "Dir::State": folder,
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder,
        "Dir::Cache::archives": folder / "archives",
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
        "Acquire::http::Timeout": "60",
    }
    return [part for name, setting in settings.items() for part in ("-o", f"{name}={setting}")]


def _source(suite: str) -> str:
    """A line of sources.list: the mirror that this system uses, with another release of Debian."""
    if shutil.which("apt-get") is None:
        raise MissingError("no apt-get here: the aarch64 interpreter is made of Debian's packages")
    query = ["Created-By: Packages", "--format", "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(SIGNED_BY)"]
    targets = subprocess.run(["apt-get", "indextargets", *query], capture_output=True, text=True, check=False)
    for line in targets.stdout.splitlines():
        uri, release, component, key = line.split("|", maxsplit=3)
        if release.isalpha() and component == "main" and uri.rstrip("/").endswith("debian"):
            options = f"[signed-by={key}] " if key.startswith("/") else ""
            return f"deb {options}{uri} {suite} main\n"
    raise MissingError("apt-get knows no mirror of Debian here: the aarch64 interpreter is made of its packages")


def _call(command: Sequence[str], deadline: float) -> None:
    left_s = deadline - time.monotonic()
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=max(0.0, left_s), check=False)
    except subprocess.TimeoutExpired:
        raise MissingError(f"{command[0]}: the download did not finish within {DOWNLOAD_S:.0f} s") from None
    except OSError as error:
        raise MissingError(f"{command[0]}: {error.strerror}") from None
    if process.returncode:
        errors = [line.strip() for line in process.stderr.splitlines() if line.strip()] or ["nothing on stderr"]
        raise MissingError(f"{Path(command[0]).name}: exit status {process.returncode}: {errors[-1][:300]}")
