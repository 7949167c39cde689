"""The archive's first lines: an old Python reports in one line that it is too old, a newer one continues."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgedistill.devices.bundle import ENTRY, agent_archive

TOO_OLD = "is too old, 3.8 or later is needed; name another in deploy/devices.yaml (python:)"


@pytest.mark.parametrize("version", ["2.7", "3.5", "3.6", "3.7"])
def test_old_python_is_reported(tmp_path: Path, version: str) -> None:
    python = shutil.which(f"python{version}")
    # a version manager's shim exists without the version it names
    if python is None or subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip(f"no python{version} here")
    (tmp_path / "agent.pyz").write_bytes(agent_archive())
    process = subprocess.run([python, str(tmp_path / "agent.pyz")], capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert process.stderr.startswith(f"agent: Python {version}.")
    assert process.stderr.endswith(f"{TOO_OLD}\n") and process.stderr.count("\n") == 1


@pytest.mark.parametrize(("version", "old"), [((2, 7, 18), True), ((3, 7, 16), True), ((3, 8, 0), False)])
def test_python_3_8_is_the_oldest(version: tuple[int, int, int], old: bool) -> None:
    # without the archive around it, a Python that is new enough fails at the next line
    body = f"import sys; sys.version_info = {version}\n{ENTRY}"
    process = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, check=False)
    assert (TOO_OLD in process.stderr) is old
    assert ("No module named 'agent'" in process.stderr) is not old
