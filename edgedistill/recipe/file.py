"""Reading and validation of a recipe file.

A recipe is plain YAML; its paths are relative to the file. All problems are reported at once, with their lines.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic import ValidationError as PydanticError

from edgedistill.errors import InputError
from edgedistill.recipe import presets
from edgedistill.recipe.options import Key, Problem, did_you_mean, shortened
from edgedistill.recipe.schema import Recipe
from edgedistill.recipe.yaml_text import YamlTextError, parse

MAX_PROBLEMS = 100
TYPES = ("function-", "literal[", "constrained-", "tuple[")  # pydantic's names for what a value may be
MAX_FIELD, MAX_MESSAGE = 160, 800  # characters of a line: keys and values may be of any length


class RecipeError(InputError):
    """All problems of a recipe, one per line: `file:line: field: problem, and the fix`."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__(lines)


@dataclass(frozen=True, kw_only=True)
class Document:
    """A recipe as plain data with the line of every key; the preset and the values of --set are filled in.

    `text` is the file as it was read: it may be edited while it is run.
    """

    path: Path
    text: str
    raw: dict[str, Any]
    lines: Mapping[Key, int]
    overridden: frozenset[Key] = frozenset()
    duplicates: tuple[Problem, ...] = ()

    @property
    def base(self) -> Path:
        """The folder that the recipe's paths are relative to."""
        return self.path.resolve().parent

    def line(self, key: Key) -> int:
        """The line of a key; for a key that is not in the file, the line of its nearest parent."""
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key, 1)

    def describe(self, problem: Problem) -> str:
        """Format a problem as one line, `file:line: field: message`."""
        field = shortened(_one_line(".".join(str(part) for part in problem.key) or "recipe"), MAX_FIELD)
        message = shortened(_one_line(problem.message), MAX_MESSAGE)
        if problem.line is None and any(problem.key[: len(key)] == key for key in self.overridden):
            return f"--set {field}: {message}"
        return f"{self.path}:{self._line_of(problem)}: {field}: {message}"

    def error(self, problems: Sequence[Problem]) -> RecipeError:
        """The problems as one error, without duplicates, in the order of the file."""
        ordered = sorted(dict.fromkeys(problems), key=self._line_of)
        lines = [self.describe(problem) for problem in ordered[:MAX_PROBLEMS]]
        if len(ordered) > MAX_PROBLEMS:
            lines.append(f"{self.path}: these are the first of more than {MAX_PROBLEMS} problems")
        return RecipeError(lines)

    def _line_of(self, problem: Problem) -> int:
        return self.line(problem.key) if problem.line is None else problem.line


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Document:
    """Read a recipe file, apply `key.path=value` overrides (values in YAML), and fill in its preset.

    Raises:
        RecipeError: the file is missing, is not YAML, or an override is not of the form key=value.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError([f"{path}: cannot be read ({error.strerror}); name an existing recipe file"]) from None
    except UnicodeDecodeError:
        raise RecipeError([f"{path}: is not text in UTF-8; is it a recipe?"]) from None
    return parse_recipe(text, path, overrides)


def parse_recipe(text: str, path: Path, overrides: Sequence[str] = ()) -> Document:
    """As `read_recipe`, from the text of a recipe; `path` is where it is or will be."""
    try:
        content = parse(text)
    except YamlTextError as error:
        raise RecipeError([f"{path}:{error.line or 1}: {error}"]) from None
    raw, lines = content.plain, dict(_lines(content.node, ()))
    if not isinstance(raw, dict):
        raise RecipeError([f"{path}:1: recipe: must be a mapping of sections, with `data:`"])
    raw.setdefault("name", _name(path))
    raw = _unshared(raw)  # an alias of YAML is the same object: a value is replaced in one place
    keys = [_override(raw, override) for override in overrides]
    filled, lines = presets.fill(raw, lines)
    return Document(
        path=path,
        text=text,
        raw=filled,
        lines=lines,
        overridden=frozenset(keys),
        duplicates=content.duplicates,
    )


def _name(path: Path) -> str:
    """The name of a recipe that states none: that of its file."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._") or "recipe"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _lines(node: yaml.Node | None, key: Key) -> Iterable[tuple[Key, int]]:
    if isinstance(node, yaml.MappingNode):
        for name_node, entry_node in node.value:
            yield (*key, name_node.value), name_node.start_mark.line + 1
            yield from _lines(entry_node, (*key, name_node.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, entry_node in enumerate(node.value):
            yield (*key, index), entry_node.start_mark.line + 1
            yield from _lines(entry_node, (*key, index))


def _unshared(value: Any) -> Any:
    """A copy whose mappings and lists are in one place each."""
    if isinstance(value, dict):
        return {name: _unshared(entry) for name, entry in value.items()}
    return [_unshared(entry) for entry in value] if isinstance(value, list) else value


def _override(raw: dict[str, Any], text: str) -> Key:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise RecipeError([f"--set {text}: must be key=value, for example --set distill.steps=200"])
    parts: list[str | int] = [int(part) if part.isdecimal() else part for part in name.split(".")]
    section: Any = raw
    try:
        for part in parts[:-1]:
            section = section.setdefault(part, {}) if isinstance(section, dict) else section[part]
        setting = parse(value)
        section[parts[-1]] = setting.plain
    except (TypeError, IndexError, AttributeError):
        raise RecipeError([f"--set {text}: the recipe has no such place; give an existing list index or key"]) from None
    except YamlTextError as error:
        raise RecipeError([f"--set {shortened(text)}: {error}"]) from None
    if setting.duplicates:
        raise RecipeError(
            [f"--set {'.'.join(map(str, (name, *key.key)))}: is given twice" for key in setting.duplicates]
        )
    return tuple(parts)


def validate_recipe(document: Document) -> tuple[Recipe | None, list[Problem]]:
    """The recipe, or None, and its problems by the schema."""
    unknown = [*document.duplicates, *presets.problems(document.raw)]
    try:
        recipe = Recipe.model_validate(document.raw)
    except PydanticError as error:
        details = _without_alternatives(error.errors())
        return None, unknown + [_problem(detail) for detail in details[: MAX_PROBLEMS + 1]]
    names = [source.name for source in recipe.sources]
    same_names = [
        Problem(key=("sources", index, "name"), message=f"{name} is used twice; give every source a name of its own")
        for index, name in enumerate(names)
        if name in names[:index]
    ]
    return recipe, unknown + same_names


def _without_alternatives(details: Sequence[Any]) -> list[Any]:
    """One problem for a value that is a word or something else: what is wrong with the something else."""
    others = [_key(detail) for detail in details if detail["type"] != "literal_error"]

    def is_other(key: Key) -> bool:
        return any(other[: len(key)] == key for other in others)

    return [detail for detail in details if detail["type"] != "literal_error" or not is_other(_key(detail))]


def _key(detail: Any) -> Key:
    """The place of a problem, without pydantic's names for the types that it tried there."""
    return tuple(part for part in detail["loc"] if not (isinstance(part, str) and part.startswith(TYPES)))


def _problem(detail: Any) -> Problem:
    key = _key(detail)
    if detail["type"] == "extra_forbidden":
        return Problem(key=key, message=f"unknown key{did_you_mean(str(key[-1]), _fields(key[:-1]))}")
    if detail["type"] == "missing":
        return Problem(key=key, message="is required")
    got = "" if isinstance(detail["input"], dict) else f" (got {shortened(repr(detail['input']))})"
    return Problem(key=key, message=detail["msg"][0].lower() + detail["msg"][1:] + got)


def _fields(key: Key) -> list[str]:
    """The fields of the section at `key`, from the annotated types of the sections."""
    model: Any = Recipe
    for part in key:
        annotation = model.model_fields[part].annotation if isinstance(part, str) else None
        if not (inspect.isclass(annotation) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
