"""Settings of Python reach a recipe as the values that they are."""

from __future__ import annotations

import math
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedistill.errors import InputError
from edgedistill.recipe.assignments import assignments
from edgedistill.recipe.yaml_text import parse

TEXTS = st.text(st.characters(exclude_categories=["Cc", "Cs"]))
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


class Fit(StrEnum):
    crop = "crop"


class Level(IntEnum):
    low = 3


def read(setting: Any) -> Any:
    """A setting as a recipe reads it."""
    (text,) = assignments({"a.b": setting})
    name, _, value = text.partition("=")
    assert name == "a.b"
    return parse(value).plain


@given(setting=PLAIN)
def test_plain_values_stay_what_they_are(setting: Any) -> None:
    assert read(setting) == setting and type(read(setting)) is type(setting)


@pytest.mark.parametrize(
    ("setting", "plain"),
    [
        (1e-05, 1e-05),
        (-2.5e30, -2.5e30),
        ({"lr": [1e-05, 3e20]}, {"lr": [1e-05, 3e20]}),
        (math.inf, math.inf),
        ("1e-05", "1e-05"),
        ("no", "no"),
        ("...", "..."),
        ("\N{BIRD} and \N{GRINNING FACE}", "\N{BIRD} and \N{GRINNING FACE}"),
        (Path("pictures/train"), "pictures/train"),
        ((Path("a"), None), ["a", None]),
        (np.float64(1e-05), 1e-05),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.str_("word"), "word"),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        ({"width": np.arange(2)}, {"width": [0, 1]}),
        ({3: 0.5}, {"3": 0.5}),
        (Fit.crop, "crop"),
        (Level.low, 3),
    ],
)
def test_values_of_python_become_those_of_yaml(setting: Any, plain: Any) -> None:
    assert read(setting) == plain and type(read(setting)) is type(plain)


@pytest.mark.parametrize("setting", [object(), {1, 2}, b"bytes", [np.datetime64("2020-01-01")], 1j])
def test_value_that_no_recipe_holds_is_named(setting: Any) -> None:
    with pytest.raises(InputError, match=r"settings: data\.root: a recipe holds no \w+; give text, a number or a list"):
        assignments({"data.root": setting})
