"""Is a recipe right? Schema, names, options, and then whether what it names is there; no work is done.

Problems are gathered, so that a person mends a recipe once and not five times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgedistill.errors import EdgeDistillError, InputError
from edgedistill.recipe import presets
from edgedistill.recipe.file import Document, read_recipe, validate_recipe
from edgedistill.recipe.options import Key, Problem, choose, option_problems
from edgedistill.recipe.schema import Choice, Data, Open, Recipe, Source

Functions = Mapping[str, Callable[..., Any]]


def load(document: Document) -> Recipe:
    """The recipe with every name bound.

    Raises:
        RecipeError: everything that is wrong with it, a line each.
    """
    found, problems = validate_recipe(document)
    problems += unbound(document.raw)
    if problems or found is None:
        raise document.error(problems)
    return found


def unbound(raw: Mapping[str, Any]) -> list[Problem]:
    """Names that no registry knows and options that no function takes, in the plain data of a recipe.

    It reads the data as written, not the validated recipe, so that a misspelt method and a wrong type elsewhere come
    in one answer. What is of the wrong type here is left to the schema.
    """
    return [problem for part in (_data, _sources, _weigh, _student, _distill, _bench, _int8) for problem in part(raw)]


def _data(raw: Mapping[str, Any]) -> Iterator[Problem]:
    from edgedistill.data.datasets import DATASETS

    listings = {name: kind.listing for name, kind in DATASETS.items()}
    yield from _plugin(raw.get("data"), "kind", functions=listings, what="data kind", key=("data",), schema=Data)


def _sources(raw: Mapping[str, Any]) -> Iterator[Problem]:
    from edgedistill.sources.registry import SOURCES

    given = raw.get("sources")
    for at, section in enumerate(given if isinstance(given, list) else []):
        yield from _plugin(section, "kind", functions=SOURCES, what="source kind", key=("sources", at), schema=Source)
        if isinstance(section, dict) and section.get("kind") == "run" and not section.keys() & {"path", "recipe"}:
            yield Problem(
                key=("sources", at), message="kind run needs `path` (a run directory) or `recipe` (to train one)"
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
    if method and method.asks_sources and not raw.get("sources"):
        yield Problem(
            key=("distill", "method"), message=f"{name} learns from sources, and the recipe lists none; add `sources:`"
        )
    elif method and isinstance(choice, dict):
        sources = [str(source.get("name")) for source in raw.get("sources") or [] if isinstance(source, dict)]
        if problem := method.problem(choice, sources):
            yield Problem(key=("distill", "method"), message=problem)


def _bench(raw: Mapping[str, Any]) -> Iterator[Problem]:
    from edgedistill.agent.backends import BACKENDS

    backends = _mapping(raw.get("bench")).get("backends")
    for at, name in enumerate(backends if isinstance(backends, list) else []):
        yield from choose(str(name), BACKENDS, "backend", ("bench", "backends", at))
    bound = _mapping(_mapping(_mapping(raw.get("student")).get("budget")).get("latency_ms"))
    if isinstance(bound.get("backend"), str):
        yield from choose(bound["backend"], BACKENDS, "backend", ("student", "budget", "latency_ms", "backend"))


def _int8(raw: Mapping[str, Any]) -> Iterator[Problem]:
    """A search that times or scores int8 graphs, in a recipe that makes none for what would run them."""
    from edgedistill.agent.backends import BACKENDS, target_of

    quantize, student = _mapping(raw.get("quantize")), _mapping(raw.get("student"))
    targets = quantize.get("targets")
    made = set(targets) if isinstance(targets, list | tuple) else {"cpu", "tensorrt"}
    if quantize.get("enabled", True) is not True:
        made = set()
    bound = _mapping(student.get("budget")).get("latency_ms")
    backend = _mapping(bound).get("backend", "onnxruntime-cpu")
    timed = bound is not None and _mapping(bound).get("precision", "int8") == "int8"
    if timed and backend in BACKENDS and target_of(backend) not in made:
        yield Problem(
            key=("student", "budget", "latency_ms"),
            message=f"is for int8, and the recipe makes no int8 graph for "
            f"{backend}; say `precision: fp32`, or let `quantize` make one",
        )
    if "cpu" not in made and _mapping(raw.get("search")).get("objective") == "int8":
        yield Problem(key=("search", "objective"), message="is int8, and the recipe makes no int8 graph for a CPU")


def _mapping(given: Any) -> Mapping[str, Any]:
    return given if isinstance(given, dict) else {}


def _choice(choice: Any, functions: Functions, what: str, key: Key) -> Iterator[Problem]:
    """`weighted`, or a mapping with a name and the options of what it names."""
    yield from _plugin(
        {"name": choice} if isinstance(choice, str) else choice,
        "name",
        functions=functions,
        what=what,
        key=key,
        schema=Choice,
    )


def _plugin(
    plain: Any, name_key: str, functions: Functions, what: str, key: Key, schema: type[Open]
) -> Iterator[Problem]:
    """What is wrong with the name in a section, or with the options beside it."""
    section = _mapping(plain)
    name = section.get(name_key)
    if not isinstance(name, str):
        return
    unknown = choose(name, functions, what, (*key, name_key) if name_key in section else key)
    yield from unknown
    if not unknown:
        options = {option: value for option, value in section.items() if option not in schema.model_fields}
        yield from option_problems(functions[name], options, key)


def missing(wanted: Recipe, base: Path) -> list[str]:
    """What the recipe names and this machine lacks: images, sources, a device, a student within the budget."""
    found: list[str] = []
    for look in (_images, _shards, _each_source, _initial_weights, _devices, _storage, _first_batch):
        if look is _first_batch and found:
            break  # what is missing is known, and would only be said twice
        try:
            found += look(wanted, base)
        except EdgeDistillError as error:
            found.append(str(error))
    return found


def bench(wanted: Recipe, base: Path) -> None:
    """Raise InputError where the recipe measures on a device or with a backend that is not there."""
    for problem in _bench(wanted.model_dump(mode="json")):
        raise InputError(f"{'.'.join(map(str, problem.key))}: {problem.message}")
    _devices(wanted, base)


def _images(wanted: Recipe, base: Path) -> list[str]:
    from edgedistill.data.splits import glance

    glance(wanted.data, base, wanted.data.store_px or 64)
    return []


def _shards(wanted: Recipe, base: Path) -> list[str]:
    """The first image of the first shard."""
    from edgedistill.data import shards

    if wanted.unlabeled:
        url = shards.addresses(wanted.unlabeled, base)[0]
        view = shards.View(px=wanted.data.store_px or 64, fit=wanted.data.fit)
        _, name, square = next(shards.squares(url, view), (0, "", None))
        if square is None:
            return [f"{url}: {name or 'its first sample'} is no image; name shards with jpg, png or webp files"]
    return []


def _storage(wanted: Recipe, base: Path) -> list[str]:
    if wanted.search.storage:
        from edgedistill.search import study

        study.reach(wanted.search.storage)
    return []


def _each_source(wanted: Recipe, base: Path) -> list[str]:
    from edgedistill.sources import registry

    problems = []
    for section in wanted.sources:
        try:
            if section.options.get("recipe"):
                document = read_recipe(base / section.options["recipe"])
                problems += missing(load(document), document.base)
            elif section.kind == "timm" and section.options.get("pretrained", True):
                registry.reachable(section.options["model"])
            else:
                registry.load(section, base)
        except EdgeDistillError as error:
            problems.append(str(error) if str(error).startswith("sources.") else f"sources.{section.name}: {error}")
    return problems


def _initial_weights(wanted: Recipe, base: Path) -> list[str]:
    """Every candidate's initial weights; how many classes the target has does not matter for that."""
    from edgedistill.students import space
    from edgedistill.students.build import weights_problem

    candidates = space.candidates(wanted.student, num_classes=2)
    return sorted({problem for one in candidates if (problem := weights_problem(one))})


def _first_batch(wanted: Recipe, base: Path) -> list[str]:
    """One batch of real images through the smallest student that the budget admits."""
    from edgedistill.data import datasets
    from edgedistill.data.splits import glance
    from edgedistill.distill import evaluate
    from edgedistill.students import space
    from edgedistill.students.build import build_student

    classes = len(datasets.listing(wanted.data, base).classes)
    within = space.feasible(space.candidates(wanted.student, classes), wanted.student.budget)
    spec = min(within, key=lambda one: one.cost.macs_m)
    _, images_NHWC, _ = glance(wanted.data, base, spec.input_px)
    evaluate.logits(build_student(spec), spec, images_NHWC)
    return []


def _devices(wanted: Recipe, base: Path) -> list[str]:
    from edgedistill.devices import inventory

    known = inventory.load(inventory.path_for(wanted.bench.inventory, base))
    bound = wanted.student.budget.latency_ms
    for name in (*wanted.bench.devices, *([bound.device] if bound else [])):
        inventory.find(known, name)
    return []
