"""One miniature project, run to the end once for all tests that look at a finished run."""

from __future__ import annotations

import os

# a tiny net trains fastest with one thread, and the two workers of a test run share two cores
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
from filelock import FileLock

from tests.helpers import miniature
from tests.helpers.miniature import Project


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """`edgedistill run` of the miniature recipe, done; look at it, and `copy` it before changing anything."""
    base = tmp_path_factory.getbasetemp()
    # workers of one session have base folders side by side, and share the one project
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    project = Project(root=shared / "miniature")
    with FileLock(shared / "miniature.lock"):
        if not (shared / "miniature.said").exists():
            said = miniature.call("run", miniature.write(project.root).recipe, "--runs", project.runs)
            assert said.code == 0, said.err
            (shared / "miniature.said").write_text(said.out, encoding="utf-8")
    return project


@pytest.fixture
def copied(finished: Project, tmp_path: Path) -> Project:
    """A finished run to change."""
    return finished.copy(tmp_path)
