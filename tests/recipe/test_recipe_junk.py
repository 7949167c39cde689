"""Whatever a file holds, reading it gives a recipe or one error for people, a line a problem; nothing else."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgedistill import check
from edgedistill.recipe.file import RecipeError, read_recipe
from tests.helpers.miniature import RECIPE

WORDS = st.sampled_from(
    (
        "name",
        "kind",
        "data",
        "sources",
        "metric",
        "method",
        "families",
        "micro",
        "input_px",
        "path",
        "folder",
        "timm",
        "root",
        "model",
        "weighted",
        "probe",
        "budget",
        "backends",
        "preset",
        "paper_style",
    )
)
ATOMS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), WORDS, st.dates())
KEYS = st.one_of(WORDS, st.text(max_size=5), st.integers(-2, 3), st.booleans(), st.none(), st.floats(allow_nan=False))
JUNK = st.recursive(
    ATOMS, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)), max_leaves=6
)
GOOD: dict[str, Any] = yaml.safe_load(RECIPE)


def places(value: Any, where: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [where, *(place for key, one in inner for place in places(one, (*where, key)))]


def replaced(where: tuple[Any, ...], junk: Any) -> Any:
    whole = {"": copy.deepcopy(GOOD)}
    inside: Any = whole
    for part in ("", *where)[:-1]:
        inside = inside[part]
    inside[("", *where)[-1]] = junk
    return whole[""]


def survives(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.yaml"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            check.load(read_recipe(path))
        except RecipeError as error:
            lines = str(error).split("\n")
            assert all(line.startswith(f"{path}:") for line in lines), lines


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(KEYS, JUNK, max_size=4))
def test_any_mapping(raw: dict[Any, Any]) -> None:
    survives(yaml.safe_dump(raw))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(places(GOOD)), JUNK)
@example(("distill", "method", "name"), ["weighted"])
@example(("student", "families"), {1: {}})
@example(("student", "families", "micro"), {"width": {"a": [1]}})
@example(("data",), {"kind": "folder", "root": "x", 3: 4})
@example(("data", "root"), "a\nb: c")
@example((), {"preset": "paper_style", "weigh": {1: [2]}, "distill": {"method": {3: {}}}})
@example((), {"preset": {"paper_style": 1}})
@example(("bench",), {"backends": [["onnxruntime-cpu"]], "devices": {"a": 1}})
def test_a_good_recipe_with_junk_in_one_place(where: tuple[Any, ...], junk: Any) -> None:
    survives(yaml.safe_dump(replaced(where, junk)))


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.sampled_from("abn:-[]{}&*!|>?%@#'\",.0159 \n\t"), max_size=40))
@example("a: 0x_\n")
@example("? [a]\n: b\n")
@example("<<: 3\n")
@example("a: !!python/name:os.system x\n")
def test_any_text(text: str) -> None:
    survives(text)


def test_the_helper_would_notice() -> None:
    survives(RECIPE)
    assert replaced(("distill", "steps"), 3)["distill"]["steps"] == 3
    assert ("sources", 1, "seed") in places(GOOD)
