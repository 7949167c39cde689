"""Checks of a recipe: schema, names, options, and then whether what it names exists; no work is done.

Problems are collected, so that a recipe can be fixed in one go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from edgedistill.console import say
from edgedistill.errors import EdgeDistillError, InputError
from edgedistill.recipe import presets
from edgedistill.recipe.data_section import Data
from edgedistill.recipe.file import Document, read_recipe, validate_recipe
from edgedistill.recipe.options import Key, Problem, choose, did_you_mean, option_problems
from edgedistill.recipe.schema import Recipe, Source
from edgedistill.recipe.section import Choice, Open
from edgedistill.records import StudentSpec
from edgedistill.run.files import canonical

Functions = Mapping[str, Callable[..., Any]]


def load(document: Document) -> Recipe:
    """Validate a recipe and resolve every name in it.

    Raises:
        RecipeError: all problems of the recipe, a line each.
    """
    recipe, problems = validate_recipe(document)
    problems += unbound(document.raw)
    if problems or recipe is None:
        raise document.error(problems)
    return recipe


def unbound(raw: Mapping[str, Any]) -> list[Problem]:
    """Find names that are in no registry and options that no function takes.

    It reads the recipe as written, not the validated one, so that a misspelled method and a wrong type elsewhere are
    reported together. Values of the wrong type are left to the schema.
    """
    return [problem for part in (_data, _sources, _weigh, _student, _distill, _bench, _int8) for problem in part(raw)]


def _data(raw: Mapping[str, Any]) -> Iterator[Problem]:
    from edgedistill.data.datasets import DATASETS

    listings = {name: kind.listing for name, kind in DATASETS.items()}
    section = _mapping(raw.get("data"))
    yield from _plugin(section, "kind", functions=listings, noun="data kind", key=("data",), schema=Data)
    if section.get("prior") == "labels" and section.get("labels_per_class") is not None:
        yield Problem(
            key=("data", "prior"),
            message="is labels, and labels_per_class draws as many of every class; state the share of each class",
        )


def _sources(raw: Mapping[str, Any]) -> Iterator[Problem]:
    from edgedistill.sources.registry import SOURCES

    listed = raw.get("sources")
    sections = listed if isinstance(listed, list) else []
    autos = [index for index, section in enumerate(sections) if _mapping(section).get("kind") == "auto"]
    for index in autos[1:]:
        yield Problem(key=("sources", index), message="kind auto is there twice; one chooses `most` sources")
    for index, section in enumerate(sections):
        yield from _plugin(
            section, "kind", functions=SOURCES, noun="source kind", key=("sources", index), schema=Source
        )
        if isinstance(section, dict) and section.get("kind") == "run" and not section.keys() & {"path", "recipe"}:
            yield Problem(
                key=("sources", index), message="kind run needs `path` (a run directory) or `recipe` (to train one)"
            )


def _weigh(raw: Mapping[str, Any]) -> Iterator[Problem]:
    from edgedistill.similarity.metrics import METRICS

    section, scores = _mapping(raw.get("weigh")), {name: metric.score for name, metric in METRICS.items()}
    also = section.get("also")
    yield from _choice(section.get("metric"), scores, "metric", ("weigh", "metric"))
    for index, choice in enumerate(also if isinstance(also, list) else []):
        yield from _choice(choice, scores, "metric", ("weigh", "also", index))


def _student(raw: Mapping[str, Any]) -> Iterator[Problem]:
    from edgedistill.students import space

    families = _mapping(_mapping(raw.get("student")).get("families"))
    yield from space.problems(families, ("student", "families"))


def _distill(raw: Mapping[str, Any]) -> Iterator[Problem]:
    from edgedistill.distill.methods import METHODS
    from edgedistill.distill.teachers import TEACHERS

    section = _mapping(raw.get("distill"))
    choice = section.get("method", "auto")
    losses = {name: method.loss for name, method in METHODS.items()}
    fits = {name: teacher.fit for name, teacher in TEACHERS.items()}
    yield from _choice(choice, {**losses, "auto": presets.auto}, "method", ("distill", "method"))
    yield from _choice(section.get("teacher"), fits, "teacher", ("distill", "teacher"))
    name = choice.get("name") if isinstance(choice, dict) else choice
    method = METHODS.get(name) if isinstance(name, str) else None
    if method and method.uses_sources and not raw.get("sources"):
        yield Problem(
            key=("distill", "method"), message=f"{name} learns from sources, and the recipe lists none; add `sources:`"
        )
    elif section.get("peer") is True and not _has_teacher(name, raw):
        have = ", ".join(other for other, method in METHODS.items() if "teacher" in method.needs)
        yield Problem(
            key=("distill", "peer"), message=f"a peer joins a teacher: use it with {have}, or auto with sources"
        )
    elif method and isinstance(choice, dict):
        listed = raw.get("sources")
        sections = listed if isinstance(listed, list) else []
        sources = [str(source.get("name")) for source in sections if isinstance(source, dict)]
        if problem := method.problem(choice, sources):
            yield Problem(key=("distill", "method"), message=problem)


def _has_teacher(name: Any, raw: Mapping[str, Any]) -> bool:
    """Whether a method has a teacher; what is no method is reported elsewhere."""
    from edgedistill.distill.methods import METHODS

    if name == "auto":
        return bool(raw.get("sources"))
    return name not in METHODS or "teacher" in METHODS[name].needs


def _bench(raw: Mapping[str, Any]) -> Iterator[Problem]:
    from edgedistill.agent.backends import BACKENDS

    backends = _mapping(raw.get("bench")).get("backends")
    for index, name in enumerate(backends if isinstance(backends, list) else []):
        yield from choose(str(name), BACKENDS, "backend", ("bench", "backends", index))
    bound = _mapping(_mapping(_mapping(raw.get("student")).get("budget")).get("latency_ms"))
    if isinstance(bound.get("backend"), str):
        yield from choose(
            bound["backend"], {**BACKENDS, "any": None}, "backend", ("student", "budget", "latency_ms", "backend")
        )


def _int8(raw: Mapping[str, Any]) -> Iterator[Problem]:
    """Problems of a search that times or scores int8 graphs which the recipe does not make."""
    from edgedistill.agent.backends import BACKENDS, target_of

    quantize, student = _mapping(raw.get("quantize")), _mapping(raw.get("student"))
    targets = quantize.get("targets")
    int8_targets = {str(target) for target in targets} if isinstance(targets, list | tuple) else {"cpu", "tensorrt"}
    if quantize.get("enabled", True) is not True:
        int8_targets = set()
    bound = _mapping(student.get("budget")).get("latency_ms")
    backend = str(_mapping(bound).get("backend", "onnxruntime-cpu"))
    target = "cpu" if backend == "any" else target_of(backend) if backend in BACKENDS else ""
    timed = bound is not None and _mapping(bound).get("precision", "int8") == "int8"
    if timed and target and target not in ({"ncnn", *int8_targets}):
        yield Problem(
            key=("student", "budget", "latency_ms"),
            message=f"is for int8, and the recipe makes no int8 graph for "
            f"{backend}; say `precision: fp32`, or let `quantize` make one",
        )
    if target == "ncnn":
        yield Problem(
            key=("student", "budget", "latency_ms", "backend"),
            message=f"{backend} has a graph of its own, which is made of the finished student; name another, such as "
            "onnxruntime-cpu, and measure this one with bench",
        )
    if "cpu" not in int8_targets and _mapping(raw.get("search")).get("objective") == "int8":
        yield Problem(
            key=("search", "objective"),
            message="is int8, and the recipe makes no int8 graph for a CPU; say `objective: fp32`, or let `quantize` "
            "make one",
        )


def _mapping(section: Any) -> Mapping[str, Any]:
    return section if isinstance(section, dict) else {}


def _choice(choice: Any, functions: Functions, noun: str, key: Key) -> Iterator[Problem]:
    """Problems of a choice: a name, or a mapping with a name and options."""
    yield from _plugin(
        {"name": choice} if isinstance(choice, str) else choice,
        "name",
        functions=functions,
        noun=noun,
        key=key,
        schema=Choice,
    )


def _plugin(
    plain: Any, name_key: str, functions: Functions, noun: str, key: Key, schema: type[Open]
) -> Iterator[Problem]:
    """Problems of the name in a section, or of the options beside it."""
    section = _mapping(plain)
    name = section.get(name_key)
    if not isinstance(name, str):
        return
    unknown = choose(name, functions, noun, (*key, name_key) if name_key in section else key)
    yield from unknown
    if not unknown:
        options = {option: setting for option, setting in section.items() if option not in schema.model_fields}
        yield from option_problems(functions[name], options, key)


def missing(recipe: Recipe, base: Path, ancestors: tuple[Document, ...] = ()) -> list[str]:
    """Problems of what the recipe names: images, sources, initial weights, devices, a student within the budget.

    `ancestors` are the recipe's own document and those that include it, innermost last. Where the outermost document is
    not among them, a recipe that is its own source is noticed one recipe further in.
    """
    problems: list[str] = []
    sources = partial(_each_source, ancestors=ancestors)
    for checker in (_images, _shards, sources, _initial_weights, _devices, _storage, _first_batch):
        if checker is _first_batch and problems:
            break  # it would only repeat the problems found so far
        try:
            problems += checker(recipe, base)
        except EdgeDistillError as error:
            problems.append(str(error))
    return problems


def measured_by(recipe: Recipe, base: Path) -> str:
    """How the accuracy of a recipe without problems is measured, in a line.

    The numbers may be smaller in a run: images that cannot be decoded and those with equal pixels are not known yet.
    """
    from edgedistill.data import datasets, load

    listing = datasets.listing(recipe.data, base)
    choice, division = load.rehearse(listing, recipe.data, recipe.seed)
    if folds := division.folds:
        scored = int((folds.folds_N >= 0).sum())
        return f"accuracy is measured on {scored} labels in {folds.count} folds (data.protocol: folds)"
    if listing.test is not None:
        return f"accuracy is measured on the test split, {len(listing.test)} images (data.protocol: test)"
    return f"accuracy is measured on {len(division.test)} images that are held out (data.protocol: {choice})"


def bench(recipe: Recipe, base: Path) -> None:
    """Raise InputError if the recipe measures on an unknown device or with an unknown backend."""
    for problem in _bench(recipe.model_dump(mode="json")):
        raise InputError(f"{'.'.join(map(str, problem.key))}: {problem.message}")
    _devices(recipe, base)


def _images(recipe: Recipe, base: Path) -> list[str]:
    from edgedistill.data import load

    listing, _, _ = load.preview(recipe.data, base, recipe.data.store_px or 64)
    load.log_notes(listing)
    load.rehearse(listing, recipe.data, recipe.seed)
    return []


def _shards(recipe: Recipe, base: Path) -> list[str]:
    """Decode the first image of the first shard."""
    from edgedistill.data import shards
    from edgedistill.data.images import View

    if recipe.unlabeled:
        limits = None if recipe.data.range == "auto" else recipe.data.range
        view = View(px=recipe.data.store_px or 64, fit=recipe.data.fit, limits=limits)
        shards.require_image(shards.addresses(recipe.unlabeled, base)[0], view)
    return []


def _storage(recipe: Recipe, base: Path) -> list[str]:
    if recipe.search.storage:
        from edgedistill.search import study

        study.check_connection(recipe.search.storage)
    return []


def refuse_own_source(name: str, document: Document, ancestors: tuple[Document, ...]) -> None:
    """Raise InputError if the recipe of a source includes the source.

    Args:
        name: the source's name.
        document: its recipe.
        ancestors: the recipe that lists the source and those that include that one, innermost last.
    """
    if any(document.path.samefile(outer.path) for outer in ancestors):
        raise InputError(f"{ancestors[-1].path}: sources.{name}: {document.path} would be a source of itself")


def _each_source(recipe: Recipe, base: Path, ancestors: tuple[Document, ...]) -> list[str]:
    """Problems of the sources; headless ones are named on stderr."""
    from edgedistill.distill import headless
    from edgedistill.sources import chosen, registry

    problems, headless_names = [], []
    for section in recipe.sources:
        try:
            if section.options.get("recipe"):
                document = read_recipe(base / section.options["recipe"])
                refuse_own_source(section.name, document, ancestors)
                problems += missing(load(document), document.base, (*ancestors, document))
            elif section.kind == "auto":
                say(chosen.candidates(recipe, section).told())
            elif not registry.has_classes(section, base):
                headless_names.append(section.name)
        except EdgeDistillError as error:
            problems.append(str(error) if str(error).startswith("sources.") else f"sources.{section.name}: {error}")
    if not problems and headless_names:
        headless.require_usable(recipe, headless_names)
        for note in headless.notes(recipe, headless_names):
            say(note)
    return problems


def _initial_weights(recipe: Recipe, base: Path) -> list[str]:
    """Problems of the candidates' initial weights; the number of classes does not matter for that."""
    from edgedistill.students import space
    from edgedistill.students.build import weights_problem

    candidates = space.candidates(recipe.student, num_classes=2)
    return sorted({problem for candidate in candidates if (problem := weights_problem(candidate))})


def _first_batch(recipe: Recipe, base: Path) -> list[str]:
    """Run one batch of real images through the smallest student within the budget, if all have what is frozen."""
    from edgedistill.data import datasets
    from edgedistill.data.load import preview
    from edgedistill.distill import evaluate
    from edgedistill.students import space
    from edgedistill.students.build import build_student

    classes = len(datasets.listing(recipe.data, base).classes)
    affordable = space.feasible(space.candidates(recipe.student, classes), recipe.student.budget)
    if problems := _frozen(recipe.distill.freeze, affordable):
        return problems
    spec = min(affordable, key=lambda spec: spec.cost.macs_m)
    _, images_NHWC, _ = preview(recipe.data, base, spec.input_px)
    evaluate.logits(build_student(spec), spec, images_NHWC)
    return []


def _frozen(names: Sequence[str], candidates: Sequence[StudentSpec]) -> list[str]:
    """The modules of `distill.freeze` that a candidate does not have: the first such candidate of each family."""
    import torch

    from edgedistill.students import space
    from edgedistill.students.build import build_student

    # the input size changes no module
    architectures = {canonical([spec.family, spec.options]): spec for spec in reversed(candidates)} if names else {}
    problems: dict[tuple[str, str], str] = {}
    for spec in reversed(architectures.values()):
        with torch.device("meta"):
            backbone = build_student(spec).get_submodule("backbone")
        modules = [name for name, _ in backbone.named_modules() if name]
        for name in names:
            if name and name not in modules:
                problem = f"distill.freeze: {space.describe(spec)} has no module {name}{did_you_mean(name, modules)}"
                problems.setdefault((spec.family, name), problem)
    return list(problems.values())


def _devices(recipe: Recipe, base: Path) -> list[str]:
    from edgedistill.devices import inventory

    devices = inventory.load(inventory.path_for(recipe.bench.inventory, base))
    bound = recipe.student.budget.latency_ms
    for name in (*recipe.bench.devices, *([bound.device] if bound else [])):
        inventory.find(devices, name)
    return []
