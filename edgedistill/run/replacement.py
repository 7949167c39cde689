"""Replacing the files of a step: the former ones are put aside until the new ones are complete, and put back otherwise.

A step writes into the run directory itself. When it runs under another key, the files of its last finished run move to
`.aside/former`. `commit` deletes them; `roll_back` puts them back, and keeps the files of the attempt in
`.aside/attempt`, where `begin` finds them when the same key comes again. So whatever fails, the run is as before, and
the same command goes on from where it stopped.

Files are moved one at a time by renaming. A folder's name below `.aside` says what a kill has left undone, which
`recover` then does:

    saving      the former files, some of them still in place
    former      all former files; in place are those of an attempt
    restoring   the former files, some of them in place again; the attempt's are all moved away
    attempt     files of an attempt, finished or not
    resuming    the files of an attempt, some of them in place again
    trash       former files that nobody needs
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedistill.errors import InputError
from edgedistill.run.files import atomic, read_json, write_json

if TYPE_CHECKING:
    from edgedistill.run.directory import Run

ASIDE = ".aside"
BEGUN = ".begun"
GENERATION = "generation.json"
UNDONE = ("saving", "former", "restoring", "resuming", "trash")


def begin(run: Run, step: str, key: str, patterns: Iterable[str]) -> None:
    """Make the files of a step those of `key`: files of another key are moved away, files of `key` are taken back.

    So a step resumes only from its own checkpoint, never from one of other data or another recipe.

    Args:
        run: the locked run.
        step: the step's name.
        key: its key.
        patterns: patterns of all its files, relative to the run directory.
    """
    if _begun(run, step) == key:
        return
    patterns = tuple(patterns)
    set_aside(run, step, patterns)
    _forget(run, step)
    for path in _matches(run, patterns):
        path.unlink()
    attempt = _folder(run, "attempt", step)
    if (attempt / GENERATION).is_file() and _generation(attempt)["key"] == key:
        _take_back(run, step, _move(attempt, "resuming"))
    elif attempt.is_dir():
        _discard(run, attempt)
    _mark(run, step, key)


def set_aside(run: Run, step: str, patterns: Iterable[str]) -> None:
    """Put the files of a finished step aside until `commit` or `roll_back`; the step is then not finished."""
    entry = run.manifest()["steps"].get(step)
    if entry is None or _folder(run, "former", step).is_dir():
        return
    saving = _folder(run, "saving", step)
    _store(saving, key=entry["key"], entry=entry, patterns=tuple(patterns))
    _carry(_matches(run, patterns), run.path, saving / "files")
    _move(saving, "former")
    _forget(run, step)


def commit(run: Run) -> None:
    """Delete the former files: the new ones are complete."""
    former = run / ASIDE / "former"
    if former.is_dir():
        _empty_trash(run)
        former.replace(run / ASIDE / "trash")
        _empty_trash(run)


def roll_back(run: Run) -> list[str]:
    """Put the former files back and keep those of the attempt; returns the names of the steps."""
    steps = _steps(run, "former")
    for step in steps:
        _resume(run, step)
        former, key = _folder(run, "former", step), _begun(run, step)
        patterns = tuple(_generation(former)["patterns"])
        if key is not None and _matches(run, patterns):
            _keep_attempt(run, step, key, patterns)
        _forget(run, step)
        _take_back(run, step, _move(former, "restoring"))
    return steps


def _keep_attempt(run: Run, step: str, key: str, patterns: tuple[str, ...]) -> None:
    attempt = _folder(run, "attempt", step)
    try:
        _store(attempt, key=key, entry=run.manifest()["steps"].get(step), patterns=patterns)
        _carry(_matches(run, patterns), run.path, attempt / "files")
    except OSError:  # on a full disk the attempt makes room for what matters more
        for path in _matches(run, patterns):
            path.unlink()
        _discard(run, attempt)


def recover(run: Run) -> None:
    """Put back what a killed process had put aside. The caller holds the run's lock."""
    for step in _steps(run, "saving"):
        saving = _folder(run, "saving", step)
        _carry(_files(saving / "files"), saving / "files", run.path)
        _discard(run, saving)
    for step in _steps(run, "restoring"):
        _take_back(run, step, _folder(run, "restoring", step))
    roll_back(run)
    for step in _steps(run, "resuming"):
        _resume(run, step)
    _empty_trash(run)


def is_undone(run: Run) -> bool:
    """Whether a process is replacing files, or was killed while it did."""
    return any(_steps(run, state) for state in UNDONE)


def _discard(run: Run, folder: Path) -> None:
    """Delete a folder, at once: a kill in the middle of a deletion must not leave half a folder."""
    if folder.is_dir():
        _move(folder, "trash")
    _empty_trash(run)


def _empty_trash(run: Run) -> None:
    shutil.rmtree(run / ASIDE / "trash", ignore_errors=True)


def _resume(run: Run, step: str) -> None:
    resuming = _folder(run, "resuming", step)
    if resuming.is_dir():
        _take_back(run, step, resuming)


def _take_back(run: Run, step: str, folder: Path) -> None:
    """Move the files of a folder into the run, with their key and their entry in the manifest."""
    generation = _generation(folder)
    _carry(_files(folder / "files"), folder / "files", run.path)
    if generation["entry"] is not None:
        run.enter_step(step, generation["entry"])
    _mark(run, step, generation["key"])
    _discard(run, folder)


def _store(folder: Path, key: str, entry: dict[str, Any] | None, patterns: tuple[str, ...]) -> None:
    write_json(folder / GENERATION, {"key": key, "entry": entry, "patterns": patterns})


def _generation(folder: Path) -> dict[str, Any]:
    """The key, the manifest's entry (None if the step was not finished) and the patterns of a folder's files.

    Raises:
        InputError: the file that says so is missing or broken.
    """
    path = folder / GENERATION
    try:
        generation: dict[str, Any] = read_json(path)
    except InputError as error:
        aside = folder.parent.parent
        raise InputError(error.message, f"remove {aside}: the steps whose files are there run again") from None
    return generation


def _carry(paths: Iterable[Path], root: Path, to: Path) -> None:
    """Move files from below `root` to the same places below `to`."""
    for path in paths:
        place = to / path.relative_to(root)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.replace(place)


def _move(folder: Path, state: str) -> Path:
    """Rename a step's folder to another state."""
    moved = folder.parent.parent / state / folder.name
    moved.parent.mkdir(exist_ok=True)
    shutil.rmtree(moved, ignore_errors=True)
    return folder.rename(moved)


def _forget(run: Run, step: str) -> None:
    (run / BEGUN / step).unlink(missing_ok=True)
    run.drop_step(step)


def _mark(run: Run, step: str, key: str) -> None:
    with atomic(run / BEGUN / step) as temporary:
        temporary.write_text(key, encoding="utf-8")


def _begun(run: Run, step: str) -> str | None:
    path = run / BEGUN / step
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _folder(run: Run, state: str, step: str) -> Path:
    return run / ASIDE / state / step


def _steps(run: Run, state: str) -> list[str]:
    folder = run / ASIDE / state
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _matches(run: Run, patterns: Iterable[str]) -> list[Path]:
    """The files in place that belong to a step."""
    paths = (path for pattern in patterns for path in run.path.glob(pattern))
    return sorted({path for path in paths if path.is_symlink() or not path.is_dir()})


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
