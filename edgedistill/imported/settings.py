"""The preprocessing and the class names that a user states: by flags, or in small files."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgedistill.errors import InputError
from edgedistill.imported.graph import Size
from edgedistill.imported.student import Preprocessing
from edgedistill.recipe.schema import Quantize
from edgedistill.recipe.yaml_text import YamlTextError, parse

LISTED = "docs/your-model.md lists the options"


def preprocessing(file: Path | None, flags: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing of a file, with what flags state in its place; None is a flag that is not there.

    Raises:
        InputError: a key or a value is wrong.
    """
    stated: dict[str, Any] = dict(_mapping(file)) if file else {}
    for name, flag in flags.items():
        if flag is None:
            continue
        plain = flag.value if isinstance(flag, Enum) else flag
        stated[name] = plain.split(",") if name in ("mean", "std") and isinstance(plain, str) else plain
    if isinstance(stated.get("range"), str) and stated["range"].isdigit():
        stated["range"] = int(stated["range"])
    try:
        return Preprocessing.model_validate(stated)
    except ValidationError as error:
        raise InputError(f"{file or 'preprocessing'}: {_first(error, 'preprocessing')}", LISTED) from None


def guards(max_drop: float, calibration_images: int) -> Quantize:
    """The settings of calibration and guards.

    Raises:
        InputError: one of them is no such number.
    """
    try:
        return Quantize(max_drop=max_drop, calibration_images=calibration_images)
    except ValidationError as error:
        raise InputError(_first(error, "quantize"), LISTED) from None


def _first(error: ValidationError, whole: str) -> str:
    """The first problem with its place; `whole` is the name of the whole."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or whole}: {first['msg']}"


def _mapping(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        raise InputError(f"{file}: is not a file")
    try:
        parsed = parse(file.read_text(encoding="utf-8")).plain
    except (OSError, UnicodeDecodeError, YamlTextError) as error:
        raise InputError(f"{file}: {error}") from None
    if not isinstance(parsed, dict):
        raise InputError(f"{file}: is not a mapping of {', '.join(Preprocessing.model_fields)}")
    return parsed


def size(text: str) -> int | Size:
    """`224`, the side of a square, or `224x320`, height and width.

    Raises:
        InputError: it is neither.
    """
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and len(side) < 6 for side in sides):
        raise InputError(f"--px {text}: is no size", "state a side, such as 224, or height and width: 224x320")
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def names(file: Path) -> tuple[str, ...]:
    """The lines of a file of class names.

    Raises:
        InputError: it cannot be read.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read ({error})") from None
    return tuple(lines)
