"""Files on disk: hashes, JSON and records; written to a temporary file, synced and renamed."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from edgedistill.errors import InputError
from edgedistill.records import OMITTED_AT_DEFAULT

R = TypeVar("R")


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()


def digest(value: Any) -> str:
    """sha256 of a JSON value, in hex."""
    return hashlib.sha256(canonical(value)).hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def json_lines(text: str) -> Iterator[tuple[Any, str]]:
    """Yield the lines of a JSON Lines text, parsed and as text; a line that a kill cut short is skipped."""
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            yield json.loads(line), line


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed to `path`, else removed.

    Raises:
        OSError: the disk is full or the folder cannot be written; an existing file at `path` is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented, with a final newline."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path, fix: str = "") -> Any:
    """Read JSON.

    Raises:
        InputError: the file is missing or broken; with this fix.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error})", fix) from None


def as_plain(record: Any) -> dict[str, Any]:
    """The fields of a record of records.py by name; its OMITTED_AT_DEFAULT fields only if they differ from it."""
    plain = dataclasses.asdict(record)
    for field in dataclasses.fields(record):
        if OMITTED_AT_DEFAULT.items() <= field.metadata.items() and plain[field.name] == field.default:
            del plain[field.name]
    return plain


def write_record(path: Path, record: Any) -> None:
    """Write a record of records.py as JSON."""
    write_json(path, as_plain(record))


def read_record(path: Path, kind: type[R], command: str = "") -> R:
    """Read a record that `write_record` wrote.

    Args:
        path: the file.
        kind: the record's class, or a tuple of records.
        command: the command that writes the file again, for the fix.

    Raises:
        InputError: the file is missing or broken, is another record, or is one of another version of edgedistill.
    """
    content = read_json(path, command)
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        raise _record_error(path, kind, command, error) from None


def _record_error(path: Path, kind: Any, command: str, error: ValidationError) -> InputError:
    """The error of a file that is no record of this version; fields that this version does not know are ignored."""
    first = error.errors(include_url=False)[0]
    field, of = ".".join(map(str, first["loc"])), getattr(kind, "__args__", (kind,))[0].__name__
    if first["type"] != "missing":
        return InputError(f"{path}: is not a {of} ({field or 'the whole'}: {first['msg']})", command)
    fix = "use that version" + (f", or delete the file and {command}" if command else "")
    return InputError(f"{path}: was written by another version of edgedistill: it lacks the field {field} of {of}", fix)


def usable_folder(folder: Path) -> Path:
    """The folder itself.

    Raises:
        InputError: it cannot be a folder, because it, or what should be above it, is a file.
    """
    nearest = next(above for above in (folder.absolute(), *folder.absolute().parents) if above.exists())
    if not nearest.is_dir():
        raise InputError(f"--out {folder}: {nearest} is not a folder", "name another folder")
    return folder
