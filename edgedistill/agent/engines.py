"""Engines on this device's disk: a file named by the digest of its key, and beside it a .json with every part of that.

An engine is native code for one GPU and one version: what is kept is loaded only if each part of the key is the same
and its bytes hash to what the .json says. Nothing here is ever needed: a cache that cannot be read or written costs
the time of building again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any, Dict, Iterator, NamedTuple, Optional

from . import cache
from .job import write_bytes, write_json

Key = Dict[str, Any]


class Kept(NamedTuple):
    """An engine and how long it took to build."""

    plan: bytes
    build_seconds: float


def folder() -> Path:
    """Where engines are kept; only their owner may change what will be run."""
    path = cache.folder("engines")
    with contextlib.suppress(OSError):
        path.chmod(0o700)
    return path


def digest(key: Key) -> str:
    """The name of an engine: sha256 of its key as canonical JSON."""
    return hashlib.sha256(json.dumps(key, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def load(key: Key) -> Optional[Kept]:
    """The engine kept under exactly this key, or None."""
    path = folder() / f"{digest(key)}.engine"
    try:
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        plan = path.read_bytes()
        if record["key"] == key and record["engine_sha256"] == hashlib.sha256(plan).hexdigest():
            return Kept(plan, float(record["build_seconds"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def store(key: Key, kept: Kept) -> bool:
    """Keep an engine, the .json last; False where the disk does not take it."""
    path = folder() / f"{digest(key)}.engine"
    record = {
        "key": key,
        "engine_sha256": hashlib.sha256(kept.plan).hexdigest(),
        "engine_bytes": len(kept.plan),
        "build_seconds": kept.build_seconds,
    }
    try:
        write_bytes(path, kept.plan)
        write_json(path.with_suffix(".json"), record)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def locked(key: Key) -> Iterator[None]:
    """Keep other processes from building the same engine meanwhile; where files cannot be locked, they build twice."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, ImportError):
            import fcntl

            stream = stack.enter_context((folder() / f"{digest(key)}.lock").open("w"))
            # released when the file is closed, and so also when the process is killed
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def load_blob(name: str) -> bytes:
    """What `store_blob` kept under that name, else nothing."""
    try:
        data = (folder() / name).read_bytes()
    except OSError:
        return b""
    # the hash stands before the bytes, so that the runtime is never given what was cut short
    return data[32:] if hashlib.sha256(data[32:]).digest() == data[:32] else b""


def store_blob(name: str, data: bytes) -> None:
    """Keep bytes that a runtime wants back the next time, such as its timings of kernels."""
    with contextlib.suppress(OSError):
        write_bytes(folder() / name, hashlib.sha256(data).digest() + data)
