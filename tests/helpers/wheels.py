"""Wheels to look into, never installed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


def unpacked(requirement: str, folder: Path) -> Path:
    """The wheel of one package for this Python, without what it needs, unpacked; skips where pip cannot have it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*command, "--only-binary=:all:", "--dest", str(folder), requirement],
        text=True,
        capture_output=True,
        timeout=240,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"pip cannot have {requirement}: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"
