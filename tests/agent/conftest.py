"""The fake libcudart for the tests that ask for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgedistill.agent import cuda
from tests.helpers.fake_cuda import Fake, compiled


@pytest.fixture(scope="session")
def fake_cudart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fake_cudart.c, compiled."""
    return compiled(tmp_path_factory.mktemp("cudart"))


@pytest.fixture
def fake(fake_cudart: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Fake]:
    """The only libcudart that the agent finds, its ledger empty, and a cache folder of the test's own."""
    monkeypatch.setenv(cuda.EXPLICIT, str(fake_cudart))
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path / "cache"))
    made = Fake(fake_cudart)
    yield made
    made.library.fake_reset()
