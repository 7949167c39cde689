"""Fixtures that provide a fake libcudart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgedistill.agent import cuda
from tests.helpers.fake_cuda import Fake, compile_library


@pytest.fixture(scope="session")
def fake_cudart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile fake_cudart.c."""
    return compile_library(tmp_path_factory.mktemp("cudart"))


@pytest.fixture
def fake(fake_cudart: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Fake]:
    """Make the fake the only libcudart that the agent finds, with an empty ledger, and set a private cache folder."""
    monkeypatch.setenv(cuda.EXPLICIT, str(fake_cudart))
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path / "cache"))
    fake_runtime = Fake(fake_cudart)
    yield fake_runtime
    fake_runtime.library.fake_reset()
