"""What a recipe names, bound: a name to its registry, options to the keyword-only parameters of a function."""

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

from edgedistill.errors import InputError

Key = tuple[str | int, ...]
LISTED = 12  # names in one line of an error


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing wrong with a recipe: the key it concerns, and what to say about it."""

    key: Key
    message: str


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """`; did you mean parc?`, or the whole list where nothing is near; a YAML key need not be text."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]}?"
    shown = ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
    return f"; one of: {shown}" if names else ""


def choose(name: str, known: Mapping[str, Any], what: str, key: Key) -> list[Problem]:
    """Nothing where `name` is in the registry; else one problem with the nearest right name."""
    if name in known:
        return []
    return [Problem(key=key, message=f"no {what} is called {name}{did_you_mean(name, known)}")]


def option_problems(function: Callable[..., Any], options: Mapping[str, Any], key: Key) -> list[Problem]:
    """What is wrong with `options` as keyword-only arguments of `function`: unknown, missing, or of the wrong type."""
    wanted = _keyword_only(function)
    problems = [
        Problem(key=(*key, name), message=f"unknown key{did_you_mean(name, wanted)}")
        for name in options.keys() - wanted
    ]
    for name, parameter in wanted.items():
        if name in options:
            try:
                TypeAdapter(_annotation(function, parameter)).validate_python(options[name])
            except PydanticError as error:
                message = error.errors()[0]["msg"]
                problems.append(
                    Problem(key=(*key, name), message=f"{message[0].lower()}{message[1:]} (got {options[name]!r})")
                )
        elif parameter.default is inspect.Parameter.empty:
            problems.append(Problem(key=(*key, name), message="is required"))
    return problems


def bound_options(function: Callable[..., Any], options: Mapping[str, Any], base: Path | None = None) -> dict[str, Any]:
    """`options` in the types of `function`'s keyword-only parameters; a `Path` is taken relative to `base`.

    Raises:
        InputError: an option does not fit the signature (`check` reports the same with its line).
    """
    problems = option_problems(function, options, ())
    if problems:
        raise InputError("; ".join(f"{'.'.join(map(str, one.key))}: {one.message}" for one in problems))
    wanted = _keyword_only(function)
    bound = {
        name: TypeAdapter(_annotation(function, wanted[name])).validate_python(value) for name, value in options.items()
    }
    if base is None:
        return bound
    return {name: _placed(value, base) if isinstance(value, Path) else value for name, value in bound.items()}


def _placed(path: Path, base: Path) -> Path:
    """`path` from `base` on, "~" and ".." resolved as words: links stay as the user knows them."""
    return Path(os.path.normpath(base / path.expanduser()))


def _keyword_only(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters
    return {name: one for name, one in parameters.items() if one.kind is inspect.Parameter.KEYWORD_ONLY}


def _annotation(function: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    annotation = parameter.annotation
    if annotation is inspect.Parameter.empty:
        return Any
    return eval(annotation, inspect.unwrap(function).__globals__) if isinstance(annotation, str) else annotation
