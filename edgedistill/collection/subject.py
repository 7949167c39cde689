"""What is looked at: a folder of images, or the data of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgedistill.data import datasets, label_file
from edgedistill.data.listing import Listing
from edgedistill.data.walk import Walk
from edgedistill.errors import InputError
from edgedistill.recipe.data_section import Data
from edgedistill.recipe.schema import Recipe, Source
from edgedistill.run.directory import Run, find_run, run_directory
from edgedistill.sources import chosen, text

NO_CLASSES = f"if its folders are no classes, write {label_file.NAME} into it with the header path,label,how"


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

    def listing(self) -> Listing:
        """The data set of a recipe; of a folder its labels.csv, else its class folders, else pictures without a label.

        Raises:
            InputError: it cannot be listed, or a folder's labels.csv cannot be read.
        """
        if self.run is not None:
            return datasets.listing(self.data, self.base, least_classes=0)
        root = Path(self.data.options["root"])
        if label_file.labels_of_folder(root) is not None:
            return label_file.pictures_listing(root)
        try:
            return datasets.listing(self.data, self.base)
        except InputError as error:
            if _filled_folders(root) > 1:
                raise InputError(error.message, "; ".join(filter(None, (error.fix, NO_CLASSES)))) from None
            return label_file.pictures_listing(root)


def of_folder(path: Path) -> Subject:
    """A folder of pictures, with a labels.csv, class folders or neither."""
    data = Data.model_validate({"kind": "folder", "root": str(path.resolve())})
    return Subject(name=path.resolve().name or "folder", path=path, data=data, base=Path.cwd())


def _filled_folders(root: Path) -> int:
    """How many folders of a folder hold pictures."""
    walk = Walk(root=root)
    level = walk.level(root)
    return sum(
        bool(walk.enters(root / name, name in level.links) and walk.count(root / name)) for name in level.folders
    )


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
