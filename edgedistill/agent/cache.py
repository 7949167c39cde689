"""Where things that only this device can use are kept from one measurement to the next."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def folder(name: str) -> Path:
    """The cache folder of that name, made where it can be: $EDGEDISTILL_CACHE, else edgedistill in the user's cache."""
    own = os.environ.get("EDGEDISTILL_CACHE")
    user = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = Path(own) / name if own else Path(user) / "edgedistill" / name
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
        path.mkdir(parents=True, exist_ok=True)
    return path
