"""Wheels that are unpacked for inspection and never installed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


def unpacked_wheel(requirement: str, folder: Path) -> Path:
    """Download and unpack the wheel of one package, without dependencies; skip the test where pip cannot get it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    process = subprocess.run(
        [*command, "--only-binary=:all:", "--dest", str(folder), requirement],
        text=True,
        capture_output=True,
        timeout=240,
        check=False,
    )
    if process.returncode:
        pytest.skip(f"pip cannot get {requirement}: {(process.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"
