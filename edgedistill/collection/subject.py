"""What is looked at: a folder of images, or the data of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgedistill.recipe.data_section import Data
from edgedistill.recipe.schema import Recipe, Source
from edgedistill.run.directory import Run, find_run, run_directory
from edgedistill.sources import chosen, text


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A data set, and the sources whose features tell its images apart.

    Attributes:
        name: of the recipe or the folder.
        path: of the recipe or the folder.
        data: the recipe's section.
        base: the folder that its paths are relative to.
        seed: the recipe's.
        sources: the recipe's.
        run: the recipe's run directory, which may not exist; None for a folder.
    """

    name: str
    path: Path
    data: Data
    base: Path
    seed: int = 0
    sources: tuple[Source, ...] = ()
    run: Run | None = None


def of_folder(path: Path) -> Subject:
    """A folder as `data: {kind: folder, root: ...}` reads it."""
    data = Data.model_validate({"kind": "folder", "root": str(path.resolve())})
    return Subject(name=path.resolve().name or "folder", path=path, data=data, base=Path.cwd())


def of_recipe(path: Path, recipe: Recipe, base: Path, runs: Path) -> Subject:
    """The data and the sources of a recipe whose run directories are in `runs`."""
    return _of(path, recipe, base, run_directory(recipe, runs))


def of_run(path: Path) -> Subject:
    """The data and the sources of a finished or unfinished run.

    Raises:
        InputError: there is no run at `path`.
    """
    run = find_run(path)
    return _of(path, *run.recipe(), run)


def _of(path: Path, recipe: Recipe, base: Path, run: Run) -> Subject:
    """The data of a recipe, and its sources as they are in a run."""
    named = text.with_class_names(chosen.with_chosen(recipe, run), base)
    return Subject(
        name=recipe.name,
        path=path,
        data=recipe.data,
        base=base,
        seed=recipe.seed,
        sources=named.sources,
        run=run,
    )
