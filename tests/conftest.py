"""The miniature project, run to the end once for all tests that read a finished run."""

from __future__ import annotations

import os

# a tiny net trains fastest with one thread, and the two workers of a test run share two cores
os.environ.setdefault("OMP_NUM_THREADS", "1")

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from edgedistill.run import interrupts
from tests.helpers import miniature
from tests.helpers.miniature import Project


@pytest.fixture(scope="session")
def finished_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The miniature project after `edgedistill run`; read only, `copy` it before changing anything."""
    base = tmp_path_factory.getbasetemp()
    # workers of one session have neighboring base folders, and share one project
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    project = Project(root=shared / "miniature")
    with FileLock(shared / "miniature.lock"):
        if not (shared / "miniature.out").exists():
            completed = miniature.call("run", miniature.write(project.root).recipe, "--runs", project.runs)
            assert completed.code == 0, completed.err
            (shared / "miniature.out").write_text(completed.out, encoding="utf-8")
    return project


@pytest.fixture
def project_copy(finished_project: Project, tmp_path: Path) -> Project:
    """A copy of the finished project, for tests that change it."""
    return finished_project.copy(tmp_path)


@pytest.fixture
def heeded_ctrl_c() -> Iterator[None]:
    """The programs that a test starts heed SIGINT; a shell starts its background jobs to ignore it."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)
    with interrupts.handled(""):
        pass  # a signal of this process is forgotten when the next command begins
