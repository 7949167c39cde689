"""Settings of Python as the command line's KEY=VALUE, whose values are YAML."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import yaml

from edgedistill.errors import InputError

END = "...\n"  # PyYAML ends a document of a plain scalar so
# a bool is an int, too; PyYAML takes no subclass, such as a member of an enumeration
SCALARS: dict[type, Callable[[Any], Any]] = {
    type(None): lambda none: none,
    bool: bool,
    PurePath: str,
    str: str.__str__,
    int: int,
    float: float,
}


def assignments(settings: Mapping[str, Any]) -> list[str]:
    """Settings as KEY=VALUE, which a recipe reads as the same values.

    A path becomes its text, a number or an array of numpy that of Python.

    Args:
        settings: values of a recipe by key, as in {"distill.steps": 200}.

    Raises:
        InputError: a value is of a type that no recipe holds.
    """
    return [f"{key}={_yaml(_plain(setting, key))}" for key, setting in settings.items()]


def _yaml(plain: Any) -> str:
    """A value as YAML on one line, with an exponent as YAML reads it: 1.0e-05."""
    text = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, sort_keys=False, width=math.inf)
    return str(text).removesuffix(END).strip()


def _plain(setting: Any, key: str) -> Any:
    """A setting of the types that YAML has, in lists and mappings of its own."""
    if isinstance(setting, np.generic | np.ndarray):
        setting = setting.tolist()
    if isinstance(setting, Mapping):
        return {str(name): _plain(entry, key) for name, entry in setting.items()}
    if isinstance(setting, list | tuple):
        return [_plain(entry, key) for entry in setting]
    for kind, plain in SCALARS.items():
        if isinstance(setting, kind):
            return plain(setting)
    raise InputError(f"settings: {key}: a recipe holds no {type(setting).__name__}", "give text, a number or a list")
