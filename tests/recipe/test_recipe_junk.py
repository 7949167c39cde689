"""Reading any file gives a recipe or a RecipeError with one line per problem, and no other exception."""

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


def key_paths(tree: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every node of nested mappings and lists, from the root."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [prefix, *(path for key, child in children for path in key_paths(child, (*prefix, key)))]


def replaced(path: tuple[Any, ...], junk: Any) -> Any:
    """A copy of GOOD with the node at `path` replaced."""
    root = {"": copy.deepcopy(GOOD)}
    parent: Any = root
    for key in ("", *path)[:-1]:
        parent = parent[key]
    parent[("", *path)[-1]] = junk
    return root[""]


def assert_recipe_or_error(text: str) -> None:
    """Read the text as a recipe; every line of an error must name the file."""
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
def test_any_mapping_gives_recipe_or_error(raw: dict[Any, Any]) -> None:
    assert_recipe_or_error(yaml.safe_dump(raw))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(key_paths(GOOD)), JUNK)
@example(("distill", "method", "name"), ["weighted"])
@example(("student", "families"), {1: {}})
@example(("student", "families", "micro"), {"width": {"a": [1]}})
@example(("data",), {"kind": "folder", "root": "x", 3: 4})
@example(("data", "root"), "a\nb: c")
@example((), {"preset": "paper_style", "weigh": {1: [2]}, "distill": {"method": {3: {}}}})
@example((), {"preset": {"paper_style": 1}})
@example(("bench",), {"backends": [["onnxruntime-cpu"]], "devices": {"a": 1}})
def test_junk_at_one_position_of_good_recipe_gives_recipe_or_error(path: tuple[Any, ...], junk: Any) -> None:
    assert_recipe_or_error(yaml.safe_dump(replaced(path, junk)))


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.sampled_from("abn:-[]{}&*!|>?%@#'\",.0159 \n\t"), max_size=40))
@example("a: 0x_\n")
@example("? [a]\n: b\n")
@example("<<: 3\n")
@example("a: !!python/name:os.system x\n")
def test_any_text_gives_recipe_or_error(text: str) -> None:
    assert_recipe_or_error(text)


def test_helpers_of_this_file() -> None:
    assert_recipe_or_error(RECIPE)
    assert replaced(("distill", "steps"), 3)["distill"]["steps"] == 3
    assert ("sources", 1, "seed") in key_paths(GOOD)
