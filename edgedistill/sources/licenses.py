"""The licenses of everything that a student is made from: its data, its sources, its initial weights.

A recipe's own `license` takes precedence over what a publisher states. A source that is a run brings all its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgedistill.errors import InputError
from edgedistill.recipe.data_section import Data
from edgedistill.recipe.options import bound_options
from edgedistill.recipe.schema import Recipe, Source
from edgedistill.records import LicensedInput, StudentSpec
from edgedistill.run import artifacts
from edgedistill.run.directory import Run, find_run
from edgedistill.run.files import digest
from edgedistill.sources import registry
from edgedistill.sources.terms import NOT_STATED, commercial
from edgedistill.students.build import initial_weights_license
from edgedistill.students.pretrained import package_license, timm_license

Options = Mapping[str, Any]
MAX_TITLE = 200  # letters of a license's name
# what the publisher states, by source kind; None: nobody's work, so that there is nothing to state
PUBLISHERS: dict[str, Callable[[Options], str | None]] = {
    "timm": lambda options: timm_license(options["model"]) if options.get("pretrained", True) else None,
    "pypi": lambda options: package_license(options["package"]),
}


def of_run(run: Run, recipe: Recipe | None = None) -> tuple[LicensedInput, ...]:
    """The inputs of a run with a chosen student, and their licenses; `recipe` replaces the one as last run.

    Raises:
        InputError: a file of the run is missing or broken.
    """
    return tuple(_inputs(run, (run.path.resolve(),), recipe))


def fingerprint(recipe: Recipe, base: Path) -> str:
    """Hash of the licenses that a recipe states, and those of its sources that are runs; nothing is looked up."""
    return digest(_stated(recipe, base, ()))


def _stated(recipe: Recipe, base: Path, ancestors: tuple[Path, ...]) -> list[Any]:
    unlabeled = recipe.unlabeled.license if recipe.unlabeled else None
    stated = [recipe.data.license, unlabeled, *(section.license for section in recipe.sources)]
    inner = []
    for section in recipe.sources:
        if section.kind == "run":
            run = _source_run(section, base, ancestors)
            inner.append(_stated(*run.recipe(), (*ancestors, run.path)) if run else [])
    return [stated, inner]


def _inputs(run: Run, ancestors: tuple[Path, ...], changed: Recipe | None = None) -> Iterator[LicensedInput]:
    """The inputs of a run that is a source, directly or not, of those in `ancestors`, and is the last of them."""
    as_last_run, base = run.recipe()
    recipe = changed or as_last_run
    recorded = (artifacts.DATA.find(run) or {}).get("licence", "")
    yield _input("data", _data_name(recipe.data, base), recipe.data.license or recorded)
    baseline = artifacts.BASELINE.find(run)
    if baseline is None or baseline.ships != "labels alone":  # that student learned from the labels
        if recipe.unlabeled:
            yield _input("unlabeled data", recipe.unlabeled.kind, recipe.unlabeled.license or "")
        for section in recipe.sources:
            yield from _source_inputs(section, base, ancestors)
    yield from _initial_weights(artifacts.STUDENT.read(run))


def _input(what: str, name: str, licence: str) -> LicensedInput:
    """An input; packages may state the text of their license, of which the first line is kept."""
    title = next((line.strip() for line in licence.splitlines() if line.strip()), NOT_STATED)[:MAX_TITLE]
    return LicensedInput(what=what, name=name, licence=title, commercial=commercial(licence))


def _data_name(section: Data, base: Path) -> str:
    """The kind and, where the data set is published, its name; never a path of this machine."""
    name = section.options.get({"hf": "path", "torchvision": "name"}.get(section.kind, ""))
    return section.kind if name is None or (base / str(name)).exists() else f"{section.kind} {name}"


def _source_inputs(section: Source, base: Path, ancestors: tuple[Path, ...]) -> Iterator[LicensedInput]:
    if section.license:
        yield _input("source", section.name, section.license)
    elif section.kind == "run":
        yield from _inherited(section, base, ancestors)
    else:
        publisher = PUBLISHERS.get(section.kind)
        licence = publisher(section.options) if publisher else ""
        if licence is not None:
            yield _input("source", section.name, licence)


def _inherited(section: Source, base: Path, ancestors: tuple[Path, ...]) -> Iterator[LicensedInput]:
    """The inputs of a source that is a run; what cannot be looked up any more is taken from its bundle."""
    run = _source_run(section, base, ancestors)
    try:
        inputs = list(_inputs(run, (*ancestors, run.path))) if run else []
        recorded = artifacts.read_licences(run) if run else ()
    except InputError:
        inputs, recorded = [], ()
    if not inputs:
        yield _input("source", section.name, "")
    known_licences = {(entry.what, entry.name): entry for entry in recorded}
    for entry in inputs:
        best = known_licences.get((entry.what, entry.name), entry) if entry.licence == NOT_STATED else entry
        yield replace(best, name=f"{section.name}/{entry.name}")


def _source_run(section: Source, base: Path, ancestors: tuple[Path, ...]) -> Run | None:
    """The run that is a source; None if it is missing, unreadable, or one of `ancestors` (`runs/latest` may be)."""
    try:
        path = bound_options(registry.run, section.options, base).get("path")
        run = find_run(path) if path else None
        if run:
            run.recipe()
    except InputError:
        return None
    return run if run and run.path not in ancestors else None


def _initial_weights(spec: StudentSpec) -> Iterator[LicensedInput]:
    if spec.initial_weights != "random":
        try:
            licence = initial_weights_license(spec)
        except InputError:
            licence = ""
        yield _input("initial weights", spec.initial_weights, licence)
