"""What is installed has no known vulnerability; `make lowest` runs the tests with the lowest declared versions."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_installed_packages_have_no_known_vulnerability() -> None:
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--local",
        "--skip-editable",
        "--progress-spinner",
        "off",
        "-f",
        "json",
    ]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if "ConnectionError" in process.stderr or not process.stdout.strip():
        pytest.skip(f"the advisory service cannot be reached: {process.stderr.strip().splitlines()[-1:]}")
    packages = json.loads(process.stdout)["dependencies"]
    audited = [package for package in packages if "skip_reason" not in package]
    if len(audited) < len(packages) / 2:
        pytest.skip(f"the package index has no advisories here: {len(audited)} of {len(packages)} packages audited")
    vulnerable = {
        package["name"]: [advisory["id"] for advisory in package["vulns"]] for package in audited if package["vulns"]
    }
    assert vulnerable == {}
