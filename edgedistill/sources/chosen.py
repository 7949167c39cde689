"""`kind: auto`: the models of the catalog that may take its place, and those that a run chose.

The choice is a file of the run. What comes behind works with a recipe that names its sources, as if they were written.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveFloat

from edgedistill.agent import machine
from edgedistill.errors import InputError
from edgedistill.recipe import presets
from edgedistill.recipe.options import bound_options
from edgedistill.recipe.schema import Distill, Recipe, Source
from edgedistill.run import artifacts
from edgedistill.run.directory import Run
from edgedistill.sources import catalog
from edgedistill.sources.catalog import ENTRIES, Listed
from edgedistill.sources.outputs import Network

SHARE_OF_MEMORY = 0.25  # all chosen sources are in memory at once, beside images and the student
MOST, IMAGES, GMACS = 4, 300, 10.0  # defaults of `kind: auto`
CHOOSE_FIX = 'pip install "edgedistill[demo]", or set `download: true` where there is a network'


def auto(
    base: Path,
    *,
    download: bool = False,
    any_license: bool = False,
    most: Annotated[int, Field(ge=1, le=50)] = MOST,
    images: Annotated[int, Field(ge=20)] = IMAGES,
    gmacs: PositiveFloat = GMACS,
) -> Network:
    """Sources that the run chooses from the catalog (`edgedistill sources`); `sources: auto` is short for this one.

    Models whose weights are here, that are small enough and that allow commercial use are asked about some labeled
    images; those of the highest similarity take its place. `sources.json` in the run has the choice, and a run that
    goes on keeps it.

    Args:
        base: the recipe's folder.
        download: weights that are not here may be downloaded; how many megabytes is said first.
        any_license: also models that forbid commercial use, allow it with conditions, or state no license.
        most: number of sources that are taken.
        images: number of labeled images that the models are asked about.
        gmacs: most multiply-accumulates of a model for one image, in billions.
    """
    raise InputError("is chosen when the run begins, and cannot be loaded", "run the recipe, or name the models")


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The models that are asked, and why each of the others is not.

    Attributes:
        models: those that are asked, in the catalog's order.
        refused: the reason for each of the others, by name.
        all_models: the catalog as it is on this machine.
        download: whether weights may be downloaded.
    """

    models: tuple[Listed, ...]
    refused: dict[str, str]
    all_models: tuple[Listed, ...]
    download: bool

    @property
    def megabytes(self) -> float:
        """What has to be downloaded."""
        return sum(model.entry.megabytes for model in self.models if not model.is_here)

    def told(self) -> str:
        """A line on what is asked and what a download takes."""
        here = sum(model.is_here for model in self.models)
        line = f"sources    auto: {here} of {len(self.all_models)} in the catalog are here and fit"
        if self.megabytes:
            return f"{line}; {len(self.models) - here} more are downloaded, {self.megabytes:,.0f} MB"
        more = [model for model in self.all_models if self.refused.get(model.entry.name, "").startswith(TO_DOWNLOAD)]
        if more:
            megabytes = sum(model.entry.megabytes for model in more)
            line += f"; {len(more)} more take {megabytes:,.0f} MB, with `download: true`"
        return line


TO_DOWNLOAD = "its weights are not here"


def auto_section(recipe: Recipe) -> Source | None:
    """The source of kind `auto`; None if the recipe has none."""
    return next((section for section in recipe.sources if section.kind == "auto"), None)


def candidates(recipe: Recipe, section: Source) -> Candidates:
    """The models of the catalog that `section`, of kind `auto`, may take."""
    options: dict[str, Any] = {"download": False, "any_license": False, "gmacs": GMACS}
    options |= bound_options(auto, section.options)
    names = {other.name for other in recipe.sources}
    models = tuple(catalog.listed([entry for entry in ENTRIES if entry.name not in names]))
    refused = {model.entry.name: reason for model in models if (reason := _refusal(model, options))}
    return Candidates(
        models=tuple(model for model in models if model.entry.name not in refused),
        refused=refused,
        all_models=models,
        download=options["download"],
    )


def _refusal(model: Listed, options: dict[str, Any]) -> str:
    """Why a model is not asked; "" if it is."""
    entry = model.entry
    if not model.is_free and not options["any_license"]:
        licence = model.licence or "no license stated"
        return f"commercial use: {model.commercial} ({licence}); `any_license: true` takes it"
    if entry.gmacs > options["gmacs"]:
        return f"needs {entry.gmacs:g} GMACs for an image, and `gmacs` is {options['gmacs']:g}"
    if entry.megabytes > memory_mb():
        return f"takes {entry.megabytes:.0f} MB, more than a quarter of the memory"
    if model.state == "out of reach":
        return "its weights are out of reach: no package is installed, nothing is cached, no hub answers"
    if not model.is_here and not options["download"]:
        return f"{TO_DOWNLOAD}; `download: true` fetches {entry.megabytes:.0f} MB"
    return ""


def memory_mb() -> float:
    """Megabytes that sources may take; without a bound where the memory's size is not known."""
    total = machine.memory_mb(machine.text(machine.MEMORY), "MemTotal")
    return SHARE_OF_MEMORY * total if total else float("inf")


def with_chosen(recipe: Recipe, run: Run) -> Recipe:
    """The recipe with the run's chosen sources in place of `auto`; without them if the run has not chosen.

    If no source is left, a method that was not written becomes the one without sources.

    Raises:
        InputError: no source is left, and the recipe's method learns from sources; or sources.json is broken.
    """
    section = auto_section(recipe)
    if section is None:
        return recipe
    sections = _sections(run)
    place = recipe.sources.index(section)
    sources = (*recipe.sources[:place], *sections, *recipe.sources[place + 1 :])
    if sources or not artifacts.CHOSEN.path_in(run).is_file():
        return recipe.model_copy(update={"sources": sources})
    plain = recipe.distill.model_dump(mode="json")
    if {name: plain["method"].get(name) for name in presets.AUTO["method"]} != presets.AUTO["method"]:
        raise InputError(f"distill.method: {recipe.distill.method.name} needs sources, and none is here", CHOOSE_FIX)
    distill = Distill.model_validate({**plain, **presets.WITHOUT_SOURCES})
    return recipe.model_copy(update={"sources": (), "distill": distill})


def _sections(run: Run) -> tuple[Source, ...]:
    content = artifacts.CHOSEN.find(run) or {}
    try:
        return tuple(Source.model_validate(section) for section in content.get("sources", ()))
    except (TypeError, ValueError):
        path = artifacts.CHOSEN.path_in(run)
        raise InputError(f"{path}: its sources are not those of a recipe", artifacts.CHOSEN.command) from None
