"""The JSON schema of recipes: an editor completes each kind, method, metric and family with its own options.

It is made from the recipe's sections and from the registries, and is in draft 7, which editors of YAML know.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args

from pydantic import TypeAdapter

from edgedistill.data.datasets import DATASETS
from edgedistill.distill.methods import METHODS
from edgedistill.distill.teachers import TEACHERS
from edgedistill.recipe.options import annotation_of, keyword_only
from edgedistill.recipe.presets import PRESETS
from edgedistill.recipe.schema import Recipe
from edgedistill.similarity.metrics import METRICS
from edgedistill.sources.registry import SOURCES
from edgedistill.students.families import FAMILIES
from edgedistill.students.space import LEAST_PX, MAX_PX

DRAFT = "http://json-schema.org/draft-07/schema#"
Schema = dict[str, Any]
Functions = Mapping[str, Callable[..., Any]]


def schema() -> Schema:
    """The schema, as plain JSON."""
    whole = _plain(Recipe.model_json_schema())
    sections = whole["$defs"]
    sections.pop("Choice", None)
    metrics = {name: metric.score for name, metric in METRICS.items()}
    methods: dict[str, Callable[..., Any]] = {name: method.loss for name, method in METHODS.items()}
    sections["Data"] = _by_name(sections["Data"], "kind", {name: kind.listing for name, kind in DATASETS.items()})
    sections["Source"] = _by_name(sections["Source"], "kind", SOURCES)
    weigh, distill = sections["Weigh"]["properties"], sections["Distill"]["properties"]
    _set(weigh["metric"], _choice(metrics))
    _set(weigh["also"], {"type": "array", "items": _choice(metrics)})
    _set(distill["method"], _choice(methods, others=("auto",)))
    _set(distill["teacher"], _choice({name: teacher.fit for name, teacher in TEACHERS.items()}))
    families = {name: _family(function) for name, function in FAMILIES.items()}
    _set(
        sections["Student"]["properties"]["families"],
        {"type": "object", "minProperties": 1, "properties": families, "additionalProperties": False},
    )
    # what the recipe takes besides the section itself (the validators of recipe/schema.py)
    _or(sections["Budget"]["properties"]["latency_ms"], {"type": "number", "exclusiveMinimum": 0})
    _or(sections["Quantize"]["properties"]["qat"], {"type": "boolean"})
    _or(sections["Bundle"]["properties"]["unknown"], {"type": "boolean"})
    keys = whole["properties"]
    _set(keys["sources"], {"anyOf": [{"const": "auto"}, {"type": "array", "items": {"$ref": "#/$defs/Source"}}]})
    _set(keys["preset"], {"anyOf": [{"enum": sorted(PRESETS)}, {"type": "null"}]})
    return {"$schema": DRAFT, **whole, "title": "Recipe of edgedistill"}


def arguments_of(function: Callable[..., Any]) -> dict[str, str]:
    """The `Args:` of a docstring: name -> text."""
    _, _, block = (inspect.getdoc(function) or "").partition("Args:\n")
    block = re.split(r"\n\n?(?=\S)", block)[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", block, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def description_of(annotation: Any) -> str:
    """The description in an annotation's metadata; "" where it has none."""
    return next((part.description for part in get_args(annotation) if getattr(part, "description", None)), "")


def paragraph(owner: Any) -> str:
    """The first paragraph of a docstring as one line."""
    return " ".join((inspect.getdoc(owner) or "").split("\n\n")[0].split())


def _set(field: Schema, content: Schema) -> None:
    """Replace what a field may be; its description and its default stay."""
    kept = {key: field[key] for key in ("description", "default") if key in field}
    field.clear()
    field.update(content | kept)


def _or(field: Schema, other: Schema) -> None:
    """Let a field be something else, too."""
    field["anyOf"] = [*field["anyOf"], other]


def _by_name(section: Schema, key: str, functions: Functions, others: Iterable[str] = ()) -> Schema:
    """A section whose `key` names a function: with each name go that function's options, and no other keys."""
    own = section["properties"]
    names = {"enum": [*functions, *others]}
    branches = [
        {
            "if": {"properties": {key: {"const": name}}, "required": [key]},
            "then": {
                "description": paragraph(function),
                "properties": {**dict.fromkeys(own, True), **_options(function)},
                "required": _required(function),
                "additionalProperties": False,
            },
        }
        for name, function in functions.items()
    ]
    described = {**own, key: {**own.get(key, {}), **names}}
    return {**section, "properties": described, "additionalProperties": True, "allOf": branches}


def _choice(functions: Functions, others: Iterable[str] = ()) -> Schema:
    """A name, or a mapping of a name and its options; the name may be that of the preset."""
    mapping = {"type": "object", "properties": {"name": {"type": "string"}}}
    return {"anyOf": [{"enum": [*functions, *others]}, _by_name(mapping, "name", functions, others)]}


def _options(function: Callable[..., Any]) -> Schema:
    """The schema of each option of a function."""
    meanings = arguments_of(function)
    options = {}
    for name, parameter in keyword_only(function).items():
        annotation = annotation_of(function, parameter)
        meaning = meanings.get(name) or description_of(annotation)
        options[name] = _type(annotation) | ({"description": meaning} if meaning else {})
    return options


def _required(function: Callable[..., Any]) -> list[str]:
    return [name for name, parameter in keyword_only(function).items() if parameter.default is parameter.empty]


def _type(annotation: Any) -> Schema:
    """The schema of a type, without references."""
    described: Schema = _plain(TypeAdapter(annotation).json_schema())
    return described


def _family(function: Callable[..., Any]) -> Schema:
    """A family's options: each takes a value or a list of choices; every family takes `input_px`."""
    options = {"input_px": {"type": "integer", "minimum": LEAST_PX, "maximum": MAX_PX}, **_options(function)}
    several = {
        name: {"anyOf": [option, {"type": "array", "items": option}], "description": option.get("description", "")}
        for name, option in options.items()
    }
    return {
        "description": paragraph(function),
        "type": ["object", "null"],
        "properties": several,
        "additionalProperties": False,
    }


def _plain(part: Any) -> Any:
    """A schema of pydantic in draft 7, without titles: tuples are lists of `items`."""
    if isinstance(part, list):
        return [_plain(inner) for inner in part]
    if not isinstance(part, dict):
        return part
    plain = {key: _plain(inner) for key, inner in part.items() if not (key == "title" and isinstance(inner, str))}
    if "prefixItems" in plain:
        plain["items"] = plain.pop("prefixItems")
    return plain
