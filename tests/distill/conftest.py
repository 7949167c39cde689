"""Fixtures of the training tests."""

from __future__ import annotations

import pytest


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train on the CPU even where there is a GPU: half precision and atomics are not the same to the byte."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
