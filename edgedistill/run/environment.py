"""The environment of a run: versions, machine, commit, command; written to env.json, read by the report."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "edgedistill",
    "torch",
    "torchvision",
    "timm",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "optuna",
    "numpy",
    "scikit-learn",
    "pillow",
    "tensorrt",
    "tensorrt-rtx",
)


def describe() -> dict[str, Any]:
    """Interpreter, platform, processor, package versions, the commit of a source checkout, the command, the time."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": processor(),
        "cores": os.cpu_count(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": commit(),
        "command": " ".join(["edgedistill", *sys.argv[1:]]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def processor() -> str:
    """The processor's name as reported by the system."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def machine() -> list[str]:
    """Identity of this machine for the comparison of latencies: processor, runtime, name."""
    return [processor(), _version("onnxruntime"), platform.node()]


def runtime(backend: str) -> str:
    """Version of the package that a backend runs by on this machine; "" where it is none, or is in `machine`."""
    package = backend if backend.startswith("tensorrt") else backend.partition("-")[0]
    return _version(package) if package != "onnxruntime" else ""


def commit() -> str:
    """The commit of the source checkout, with "+" if files are changed; "" if the package is installed."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return ""
    try:
        completed = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return completed.stdout.strip()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
