"""Reading and validation of a recipe file.

A recipe is plain YAML; its paths are relative to the file. All problems are reported at once, with their lines.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic import ValidationError as PydanticError

from edgedistill.errors import InputError
from edgedistill.recipe import presets
from edgedistill.recipe.duplicates import duplicates
from edgedistill.recipe.options import Key, Problem, did_you_mean
from edgedistill.recipe.schema import Recipe


class RecipeError(InputError):
    """All problems of a recipe, one per line: `file:line: field: problem, and the fix`."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))


@dataclass(frozen=True, kw_only=True)
class Document:
    """A recipe as plain data with the line of every key; the preset and the values of --set are filled in."""

    path: Path
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
        field = _one_line(".".join(str(part) for part in problem.key) or "recipe")
        message = _one_line(problem.message)
        if problem.line is None and any(problem.key[: len(key)] == key for key in self.overridden):
            return f"--set {field}: {message}"
        return f"{self.path}:{self._line_of(problem)}: {field}: {message}"

    def error(self, problems: Sequence[Problem]) -> RecipeError:
        """The problems as one error, without duplicates, in the order of the file."""
        ordered = sorted(dict.fromkeys(problems), key=self._line_of)
        return RecipeError([self.describe(problem) for problem in ordered])

    def _line_of(self, problem: Problem) -> int:
        return self.line(problem.key) if problem.line is None else problem.line


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Document:
    """Read a recipe file, apply `key.path=value` overrides (values in YAML), and fill in its preset.

    Raises:
        RecipeError: the file is missing, is not YAML, or an override is not of the form key=value.
    """
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
        lines = dict(_lines(node, ()))
        repeated = duplicates(node)
    except OSError as error:
        raise RecipeError([f"{path}: cannot be read ({error.strerror}); name an existing recipe file"]) from None
    except UnicodeDecodeError:
        raise RecipeError([f"{path}: is not text in UTF-8; is it a recipe?"]) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        reason = _one_line(str(getattr(error, "problem", error)))
        raise RecipeError([f"{path}:{line}: not valid YAML: {reason}"]) from None
    except RecursionError:
        raise RecipeError([f"{path}:1: not valid YAML: nested too deeply"]) from None
    except ValueError as error:  # PyYAML passes a date such as 2024-99-99 to datetime
        raise RecipeError([f"{path}:1: not valid YAML: {error}; quote what is meant as text"]) from None
    if not isinstance(raw, dict):
        raise RecipeError([f"{path}:1: recipe: must be a mapping of sections, starting with `name:`"])
    keys = [_override(raw, text) for text in overrides]
    filled, lines = presets.fill(raw, lines)
    return Document(path=path, raw=filled, lines=lines, overridden=frozenset(keys), duplicates=tuple(repeated))


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


def _override(raw: dict[str, Any], text: str) -> Key:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise RecipeError([f"--set {text}: must be key=value, for example --set distill.steps=200"])
    parts: list[str | int] = [int(part) if part.isdecimal() else part for part in name.split(".")]
    section: Any = raw
    try:
        for part in parts[:-1]:
            section = section.setdefault(part, {}) if isinstance(section, dict) else section[part]
        section[parts[-1]] = yaml.safe_load(value)
        repeated = duplicates(yaml.compose(value, Loader=yaml.SafeLoader))
    except (TypeError, IndexError, AttributeError):
        raise RecipeError([f"--set {text}: the recipe has no such place; give an existing list index or key"]) from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise RecipeError([f"--set {text}: the value is not valid YAML"]) from None
    if repeated:
        raise RecipeError([f"--set {'.'.join(map(str, (name, *key.key)))}: is given twice" for key in repeated])
    return tuple(parts)


def validate_recipe(document: Document) -> tuple[Recipe | None, list[Problem]]:
    """The recipe, or None, and its problems by the schema."""
    unknown = [*document.duplicates, *presets.problems(document.raw)]
    try:
        recipe = Recipe.model_validate(document.raw)
    except PydanticError as error:
        return None, unknown + [_problem(detail) for detail in error.errors()]
    names = [source.name for source in recipe.sources]
    same_names = [
        Problem(key=("sources", index, "name"), message=f"{name} is used twice; give every source a name of its own")
        for index, name in enumerate(names)
        if name in names[:index]
    ]
    return recipe, unknown + same_names


def _problem(detail: Any) -> Problem:
    key = tuple(part for part in detail["loc"] if not (isinstance(part, str) and part.startswith("function-")))
    if detail["type"] == "extra_forbidden":
        return Problem(key=key, message=f"unknown key{did_you_mean(str(key[-1]), _fields(key[:-1]))}")
    if detail["type"] == "missing":
        return Problem(key=key, message="is required")
    got = "" if isinstance(detail["input"], dict) else f" (got {detail['input']!r})"
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
