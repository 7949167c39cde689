"""The fixtures of training and of export, for what runs on a stand-in GPU."""

from __future__ import annotations

from tests.distill.conftest import cpu
from tests.export.conftest import exported

__all__ = ["cpu", "exported"]
