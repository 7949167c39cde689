"""The run directory: the files of a recipe's steps, and the manifest of finished steps.

A step's key is the sha256 of its name, its version, the recipe sections it reads and the hashes of its inputs. The
manifest holds, per step, the key and the sha256 of every output; the same key with the same outputs is "up to date".
Files are written atomically; the manifest is written last, so an entry implies the files. A step that fails leaves the
files of its last finished run (replacement.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from edgedistill.agent.machine import peak_memory_mb
from edgedistill.errors import EdgeDistillError, InputError
from edgedistill.recipe.file import Document
from edgedistill.recipe.schema import SECTIONS_TO_DISTILL, Recipe
from edgedistill.run import artifacts, replacement
from edgedistill.run.files import atomic, digest, read_json, sha256_file

CACHE = ".cache"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A run directory at `path`; `shared` is the run that it is a part of, such as a fold of its labels."""

    path: Path
    shared: Path | None = None

    @property
    def cache(self) -> Path:
        """Folder of decoded images and source outputs, shared by the runs with one parent folder."""
        return (self.shared or self.path).parent / CACHE

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def recipe(self) -> tuple[Recipe, Path]:
        """The recipe as last run, and the folder that its paths are relative to."""
        lock, path = artifacts.LOCK.read(self), artifacts.LOCK.path_in(self)
        try:
            return Recipe.model_validate(lock["recipe"]), Path(lock["base"])
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise InputError(
                f"{path}: was written by another version of edgedistill: {problem}",
                f"use that version, or {artifacts.TRAIN}",
            ) from None
        except (KeyError, TypeError):
            raise InputError(f"{path}: holds no recipe", artifacts.TRAIN) from None

    def save_recipe(self, recipe: Recipe, document: Document) -> None:
        """Write the recipe as written and as resolved."""
        with atomic(artifacts.RECIPE.path_in(self)) as temporary:
            temporary.write_text(document.text, encoding="utf-8")
        self.save_resolved_recipe(recipe, document.base)

    def save_resolved_recipe(self, recipe: Recipe, base: Path) -> None:
        """Write the resolved recipe, which `export` and `bench` read."""
        artifacts.LOCK.write(self, {"base": str(base), "recipe": recipe.model_dump(mode="json")})

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the directory; the operating system releases the lock when the process ends.

        Raises:
            EdgeDistillError: another process uses this run directory.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        guard = FileLock(self / ".lock")
        try:
            guard.acquire(timeout=0)
        except Timeout:
            raise EdgeDistillError(
                f"{self.path}: another edgedistill is at work in this run directory", "wait for it or end it"
            ) from None
        try:
            # temporary files of a killed process; no other process holds the lock
            for orphan in self.path.rglob(".*.tmp"):
                orphan.unlink()
            replacement.recover(self)
            yield
        finally:
            guard.release()

    def manifest(self) -> dict[str, Any]:
        """{"steps": {name: {"key", "outputs": {file: sha256}, "seconds", "finished", "peak_memory_mb"}}}."""
        path = artifacts.MANIFEST.path_in(self)
        if not path.exists():
            return {"steps": {}}
        damaged = InputError(f"{path}: is damaged", "delete it; the steps then run again")
        try:
            manifest = read_json(path)
        except InputError:
            raise damaged from None
        steps = manifest.get("steps") if isinstance(manifest, dict) else None
        if not isinstance(steps, dict) or not all(map(_is_entry, steps.values())):
            raise damaged
        if unknown := [name for name in manifest if name != "steps"]:
            raise InputError(
                f"{path}: was written by another version of edgedistill: this one does not know the field {unknown[0]}",
                "use that version, or another folder by --runs",
            )
        return {"steps": steps}

    def hashes(self, step: str) -> dict[str, str]:
        """sha256 of every recorded output of `step`, by file."""
        return dict(self.manifest()["steps"].get(step, {}).get("outputs", {}))

    def up_to_date(self, step: str, key: str) -> bool:
        """Whether `step` was finished with this key and its outputs are unchanged."""
        entry = self.manifest()["steps"].get(step)
        if entry is None or entry["key"] != key:
            return False
        return all(
            (self / name).is_file() and sha256_file(self / name) == sha256 for name, sha256 in entry["outputs"].items()
        )

    def record_step(self, step: str, key: str, outputs: Iterable[Path], seconds: float) -> None:
        """Record a finished step in the manifest, with the peak memory of this process so far.

        `outputs` are absolute paths inside the run.
        """
        hashes = {str(path.relative_to(self.path)): sha256_file(path) for path in sorted(outputs)}
        entry = {
            "key": key,
            "outputs": hashes,
            "seconds": round(seconds, 3),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "peak_memory_mb": round(peak_memory_mb()),
        }
        self.enter_step(step, entry)

    def enter_step(self, step: str, entry: Mapping[str, Any]) -> None:
        """Write a finished step's entry into the manifest."""
        manifest = self.manifest()
        manifest["steps"][step] = dict(entry)
        artifacts.MANIFEST.write(self, manifest)

    def drop_step(self, step: str) -> None:
        """Remove a step's entry from the manifest."""
        manifest = self.manifest()
        if manifest["steps"].pop(step, None):
            artifacts.MANIFEST.write(self, manifest)

    def log(self, step: str, event: str, **facts: Any) -> None:
        """Append one line to log.jsonl."""
        line = {"time": round(time.time(), 3), "step": step, "event": event, **facts}
        with artifacts.LOG.path_in(self).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, default=str) + "\n")


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("key"), str) and isinstance(entry.get("outputs"), dict)


def step_key(name: str, version: int, sections: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """The key of a step: sha256 over its name, its version, the sections it reads and its inputs' hashes."""
    return digest([name, version, dict(sections), dict(inputs)])


def run_directory(recipe: Recipe, root: Path) -> Run:
    """The run directory of a recipe: its name and eight hex digits of its sections up to `distill`."""
    return Run(path=root / f"{recipe.name}-{digest(recipe.sections(SECTIONS_TO_DISTILL))[:8]}")


def require_usable_root(root: Path) -> None:
    """Raise InputError if `root` cannot hold run directories, or its `latest` is not a symbolic link."""
    nearest = next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        raise InputError(f"--runs {root}: {nearest} is not a folder", "name a folder for run directories")
    latest = root / "latest"
    if latest.exists() and not latest.is_symlink():
        raise InputError(
            f"{latest}: is not a symbolic link to a run", "move it away: `latest` points at the newest run"
        )


def point_latest(run: Run) -> None:
    """Point the symbolic link `latest` beside the run at it, atomically."""
    link = run.path.parent / "latest"
    temporary = link.with_name(f".latest.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(run.path.name)
    temporary.replace(link)


def find_run(path: Path) -> Run:
    """An existing run directory, as it was before the last command if that was killed.

    Raises:
        InputError: there is no run at `path`.
    """
    resolved = path.resolve()
    if not (resolved / artifacts.LOCK.path).is_file():
        raise InputError(f"{path}: not a run directory", "give one that `edgedistill train` made, such as runs/latest")
    run = Run(path=resolved)
    restore(run)
    return run


def restore(run: Run) -> None:
    """Put back what a killed process had put aside, unless a process is at work there or nothing may be written."""
    if replacement.is_undone(run):
        with contextlib.suppress(EdgeDistillError, OSError), run.lock():
            pass
