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

QEMU_FROM, OLDEST_QEMU = "trixie", 8
CPU = "cortex-a76"  # that of a Raspberry Pi 5
TAGS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
DOWNLOAD_S = 600.0  # the bound on all that is fetched for one interpreter


@dataclass(frozen=True)
class Python:
    """An interpreter of a Debian release, and the ONNX Runtime that it gets."""

    suite: str
    version: str
    onnxruntime: str

    @property
    def name(self) -> str:
        """How a folder and a test call it."""
        return f"python{self.version}-onnxruntime{self.onnxruntime}"


# the oldest runtime that a graph of this project's opset must load in, and the one that is used here
PYTHONS = (
    Python(suite="bookworm", version="3.11", onnxruntime="1.19.2"),
    Python(suite="trixie", version="3.13", onnxruntime=metadata.version("onnxruntime")),
)


class MissingError(Exception):
    """Why there is no such interpreter here, in one line."""


def cache() -> Path:
    """Where what was fetched is kept from one run of the tests to the next."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgedistill-tests" / "aarch64"


def interpreter(which: Python, folder: Path) -> Path:
    """A program that is called as `python` is; what it starts by sys.executable runs under qemu as well.

    Raises:
        MissingError: it cannot be put together here.
    """
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise MissingError(f"qemu-user is for Linux on x86_64; this is {platform.system()} on {platform.machine()}")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        end = time.monotonic() + DOWNLOAD_S
        qemu, home = _qemu(folder, end), folder / which.name
        if not home.exists():
            _build(which, home, end)
    program = home / "python"
    root, site = (shlex.quote(str(home / part)) for part in ("root", "site"))
    program.write_text(
        f"#!/bin/sh\nexport PYTHONHOME={root}/usr PYTHONPATH={site} QEMU_CPU={CPU}\n"
        f'exec {shlex.quote(str(qemu))} -L {root} -0 "$0" {root}/usr/bin/python{which.version} "$@"\n'
    )
    program.chmod(0o755)
    return program


def _qemu(folder: Path, end: float) -> Path:
    """A qemu-aarch64 that is young enough: of this system, or a copy of Debian's."""
    known = [shutil.which(name) for name in ("qemu-aarch64", "qemu-aarch64-static")]
    fetched = folder / "qemu-aarch64"
    for path in (*(Path(one) for one in known if one), fetched):
        if path.exists() and _major(path) >= OLDEST_QEMU:
            return path
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        _unpacked(Path(temporary) / "qemu", QEMU_FROM, architecture="amd64", packages=["qemu-user"], end=end)
        # a program for every processor there is: one, linked statically, is all that is kept
        (Path(temporary) / "qemu/usr/bin/qemu-aarch64").rename(fetched)
    if _major(fetched) < OLDEST_QEMU:
        raise MissingError(f"qemu-user of {QEMU_FROM} does not run here")
    return fetched


def _major(qemu: Path) -> int:
    done = subprocess.run([qemu, "--version"], capture_output=True, text=True, timeout=30, check=False)
    found = re.search(r"version (\d+)\.", done.stdout)
    return int(found.group(1)) if found else 0


def _build(which: Python, home: Path, end: float) -> None:
    with tempfile.TemporaryDirectory(dir=home.parent) as temporary:
        (made := Path(temporary) / "made").mkdir()
        packages = [f"python{which.version}-minimal", f"libpython{which.version}-stdlib", "libstdc++6"]
        _unpacked(made / "root", which.suite, architecture="arm64", packages=packages, end=end)
        wheels = [f"onnxruntime=={which.onnxruntime}", "numpy", "pillow"]
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
                str(made / "site"),
                "--only-binary=:all:",
                "--python-version",
                which.version,
                *tags,
                *wheels,
            ],
            end,
        )
        made.rename(home)


def _unpacked(root: Path, suite: str, architecture: str, packages: Sequence[str], end: float) -> None:
    """Debian packages and all they need, unpacked into a folder; apt's state and lists are private to this call."""
    with tempfile.TemporaryDirectory(dir=root.parent) as temporary:
        private = Path(temporary)
        for part in ("lists/partial", "archives/partial"):
            (private / part).mkdir(parents=True)
        (private / "status").touch()
        (private / "sources.list").write_text(_source(suite))
        apt = ["apt-get", "-qq", *_private(private, architecture)]
        _call([*apt, "update"], end)
        _call([*apt, "install", "--download-only", "--yes", *packages], end)
        unpacked = private / "root"
        for package in sorted((private / "archives").glob("*.deb")):
            _call(["dpkg-deb", "--extract", str(package), str(unpacked)], end)
        for name in ("lib", "lib64", "bin"):
            # since Debian merged /lib into /usr/lib its packages leave the link between them to the installer
            if not (unpacked / name).exists() and (unpacked / "usr" / name).exists():
                (unpacked / name).symlink_to(f"usr/{name}")
        shutil.rmtree(root, ignore_errors=True)
        unpacked.rename(root)


def _private(folder: Path, architecture: str) -> list[str]:
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
    return [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]


def _source(suite: str) -> str:
    """A line of sources.list: the mirror that this system itself uses, with another release of Debian."""
    if shutil.which("apt-get") is None:
        raise MissingError("no apt-get here: the aarch64 interpreter is made of Debian's packages")
    wanted = ["Created-By: Packages", "--format", "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(SIGNED_BY)"]
    done = subprocess.run(["apt-get", "indextargets", *wanted], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        uri, release, component, key = line.split("|", maxsplit=3)
        if release.isalpha() and component == "main" and uri.rstrip("/").endswith("debian"):
            options = f"[signed-by={key}] " if key.startswith("/") else ""
            return f"deb {options}{uri} {suite} main\n"
    raise MissingError("apt-get knows no mirror of Debian here: the aarch64 interpreter is made of its packages")


def _call(command: Sequence[str], end: float) -> None:
    left = end - time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(0.0, left), check=False)
    except subprocess.TimeoutExpired:
        raise MissingError(f"{command[0]}: what is fetched did not come within {DOWNLOAD_S:.0f} s") from None
    except OSError as error:
        raise MissingError(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["nothing on stderr"]
        raise MissingError(f"{Path(command[0]).name}: exit status {done.returncode}: {said[-1][:300]}")
