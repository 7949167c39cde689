"""Binding of a recipe's names to registries, and of its options to the keyword-only parameters of a function."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from pydantic import ValidationError as PydanticError

from edgedistill.errors import InputError, first_names, printable

Key = tuple[str | int, ...]
MAX_NAME_BYTES = 255  # of a file's name, in every common file system
MAX_LISTED = 12  # names in an error message


@dataclass(frozen=True, kw_only=True)
class Later:
    """Marks a recipe key or an option that was added after the first release: `Annotated[int, LATER] = 3`.

    While it has its default (an option of a function: while the recipe leaves it out) it enters no run
    directory's name, no step's key and no configuration of the suite, so that runs and committed lines that were made
    without it stay what they are.
    """


LATER = Later()


@dataclass(frozen=True, kw_only=True)
class Note:
    """Marks a recipe key that changes nothing that is computed: `Annotated[str | None, NOTE] = None`.

    It enters no run directory's name, no step's key and no configuration of the suite, whatever it says; a step that
    writes it down takes it as an input.
    """


NOTE = Note()


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One problem of a recipe: its key, the message, and the line if the key alone does not tell it."""

    key: Key
    message: str
    line: int | None = None


def listed_names(names: str | Iterable[str]) -> tuple[str, ...]:
    """Names in a list, or in a text with commas between them."""
    listed = names.split(",") if isinstance(names, str) else names
    return tuple(name.strip() for name in listed if name.strip())


def shortened(text: str, most: int = 80) -> str:
    """A name or a value for a message: on one line, and cut off behind `most` characters."""
    return printable(text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)")


def did_you_mean(name: object, choices: Iterable[str]) -> str:
    """`; did you mean parc?`, or the list of choices if no name is near; a YAML key need not be text."""
    names = sorted(choices)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {shortened(near[0])}?"
    return f"; one of: {first_names([shortened(name) for name in names], MAX_LISTED)}" if names else ""


def choose(name: str, registry: Mapping[str, Any], kind: str, key: Key) -> list[Problem]:
    """No problem if `name` is in the registry, else one problem with the nearest name."""
    if name in registry:
        return []
    return [Problem(key=key, message=f"no {kind} is called {shortened(name)}{did_you_mean(name, registry)}")]


def option_problems(function: Callable[..., Any], options: Mapping[str, Any], key: Key) -> list[Problem]:
    """Problems of `options` as keyword-only arguments of `function`: unknown, missing, or of the wrong type."""
    parameters = keyword_only(function)
    problems = [
        Problem(key=(*key, name), message=f"unknown key{did_you_mean(name, parameters)}")
        for name in options.keys() - parameters
    ]
    for name, parameter in parameters.items():
        if name in options:
            message = _misfit(annotation_of(function, parameter), options[name])
            if message:
                got = shortened(repr(options[name]))
                problems.append(Problem(key=(*key, name), message=f"{message} (got {got})"))
        elif parameter.default is inspect.Parameter.empty:
            problems.append(Problem(key=(*key, name), message="is required"))
    return problems


def _misfit(annotation: Any, option: Any) -> str:
    """Why an option is not of its annotated type, or is a path that no file can have; "" if it fits."""
    try:
        fitting = TypeAdapter(annotation).validate_python(option)
    except PydanticError as error:
        message = error.errors()[0]["msg"]
        return f"{message[0].lower()}{message[1:]}"
    if isinstance(fitting, Path) and any(len(os.fsencode(part)) > MAX_NAME_BYTES for part in fitting.parts):
        return f"a name in a path has at most {MAX_NAME_BYTES} bytes"
    return ""


def bound_options(function: Callable[..., Any], options: Mapping[str, Any], base: Path | None = None) -> dict[str, Any]:
    """Convert `options` to the types of `function`'s keyword-only parameters; paths are relative to `base`.

    Raises:
        InputError: an option does not fit the signature (`check` reports the same with its line).
    """
    problems = option_problems(function, options, ())
    if problems:
        raise InputError("; ".join(f"{'.'.join(map(str, problem.key))}: {problem.message}" for problem in problems))
    parameters = keyword_only(function)
    bound = {
        name: TypeAdapter(annotation_of(function, parameters[name])).validate_python(value)
        for name, value in options.items()
    }
    if base is None:
        return bound
    return {name: _resolved(value, base) if isinstance(value, Path) else value for name, value in bound.items()}


def options_for_key(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as they enter a key: without those marked LATER that have their default."""
    parameters = keyword_only(function)

    def at_default(name: str, option: Any) -> bool:
        parameter = parameters.get(name)
        return parameter is not None and _is_later(function, parameter) and bool(option == parameter.default)

    return {name: option for name, option in options.items() if not at_default(name, option)}


def _is_later(function: Callable[..., Any], parameter: inspect.Parameter) -> bool:
    return LATER in getattr(annotation_of(function, parameter), "__metadata__", ())


def _resolved(path: Path, base: Path) -> Path:
    """`path` relative to `base`, with "~" and ".." resolved textually: symbolic links stay in the path."""
    return Path(os.path.normpath(base / path.expanduser()))


def keyword_only(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of a function by name: its options in a recipe."""
    parameters = inspect.signature(function).parameters
    return {
        name: parameter for name, parameter in parameters.items() if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def with_defaults(function: Callable[..., Any], choice: Mapping[str, Any]) -> dict[str, Any]:
    """A choice by name with the defaults of the function's options where it leaves them out."""
    return {name: parameter.default for name, parameter in keyword_only(function).items()} | dict(choice)


def annotation_of(function: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """The evaluated annotation of a parameter; Any where it has none."""
    annotation = parameter.annotation
    if annotation is inspect.Parameter.empty:
        return Any
    return eval(annotation, inspect.unwrap(function).__globals__) if isinstance(annotation, str) else annotation
