"""Keys given twice in YAML: each is reported with its own line and that of the first."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from edgedistill.recipe.duplicates import duplicates
from edgedistill.recipe.file import RecipeError, read_recipe
from tests.recipe.test_recipe import GOOD, error_lines, load


def reported(text: str) -> list[tuple[str, int | None, str]]:
    """Path, line and message of every key that is given twice."""
    problems = duplicates(yaml.compose(text, Loader=yaml.SafeLoader))
    return [(".".join(map(str, problem.key)), problem.line, problem.message) for problem in problems]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3\n", [("a", 3, 1)]),
        ("a: 1\na: 2\na: 3\n", [("a", 2, 1), ("a", 3, 1)]),
        ("a: {b: 1, b: 2}\n", [("a.b", 1, 1)]),
        ("a:\n- b: 1\n- b: 1\n  c: {d: 1,\n    d: 2}\n", [("a.1.c.d", 5, 4)]),
        ("a: {x: 1, x: 2}\na: 3\n", [("a.x", 1, 1), ("a", 2, 1)]),
        ("a: 1\n'a': 2\n\"a\": 3\n", [("a", 2, 1), ("a", 3, 1)]),
        ("? a\n: 1\n? a\n: 2\n", [("a", 3, 1)]),
        ("null: 1\n~: 2\n", [("~", 2, 1)]),
        ("yes: 1\ntrue: 2\n", [("true", 2, 1)]),
        ("1: a\n0x1: b\n", [("0x1", 2, 1)]),
        ("a: &x {b: 1, b: 2}\nc: *x\nd: [*x, *x]\n", [("a.b", 1, 1)]),
        ("a: &x {b: 1}\nc:\n  <<: *x\n  d: 1\n  <<: *x\n", [("c.<<", 5, 3)]),
        ("c:\n  <<: {b: 1,\n    b: 2}\n", [("c.b", 3, 2)]),
        ("a: &x {b: 1}\nc: {<<: *x, d: 1, d: 2}\n", [("c.d", 2, 2)]),
    ],
)
def test_repeated_key_is_reported_with_lines(text: str, expected: list[tuple[str, int, int]]) -> None:
    messages = [(key, line, f"is given twice (first on line {first})") for key, line, first in expected]
    assert reported(text) == messages


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1: a\n'1': b\n",
        "true: a\n'true': b\n",
        "a: {b: 1}\nc: {b: 1}\n",
        "[{a: 1}, {a: 1}]\n",
        "a: &x {b: 1}\nc: {<<: *x, b: 2}\n",
        "a: &x {b: 1}\nc: &y {b: 2}\nd: {<<: [*x, *y], b: 3}\n",
        "a: &x {b: 1}\nc: {<<: *x, '<<': 2}\n",
        "a: &x [*x]\n",
        "? [a]\n: 1\n? [a]\n: 2\n",
    ],
)
def test_distinct_and_merged_keys_are_none(text: str) -> None:
    assert reported(text) == []


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("  steps: 20\n", "  steps: 20\n  steps: 30\n", "r.yaml:17: distill.steps: is given twice (first on line 16)"),
        ("lam: 0.8", "lam: 0.8, lam: 1", "r.yaml:15: distill.method.lam: is given twice (first on line 15)"),
        ("kind: timm", "kind: timm, kind: timm", "r.yaml:6: sources.0.kind: is given twice (first on line 6)"),
        ("bench:\n", "name: other\nbench:\n", "r.yaml:17: name: is given twice (first on line 1)"),
    ],
)
def test_recipe_with_repeated_key_is_refused(tmp_path: Path, old: str, new: str, line: str) -> None:
    assert error_lines(tmp_path, GOOD.replace(old, new)) == [line]


def test_repeated_keys_are_reported_with_all_other_problems(tmp_path: Path) -> None:
    text = GOOD.replace("  steps: 20\n", "  steps: 20\n  stpes: 1\n  steps: 30\n").replace("root: pic", "rot: pic")
    assert error_lines(tmp_path, text) == [
        "r.yaml:2: data.root: is required",
        "r.yaml:4: data.rot: unknown key; did you mean root?",
        "r.yaml:17: distill.stpes: unknown key; did you mean steps?",
        "r.yaml:18: distill.steps: is given twice (first on line 16)",
    ]


def test_override_of_repeated_key_does_not_hide_it(tmp_path: Path) -> None:
    text = GOOD.replace("  steps: 20\n", "  steps: 20\n  steps: 30\n")
    line = "r.yaml:17: distill.steps: is given twice (first on line 16)"
    assert error_lines(tmp_path, text, "distill.steps=5") == [line]


def test_override_with_repeated_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(GOOD)
    with pytest.raises(RecipeError) as caught:
        read_recipe(tmp_path / "r.yaml", ["distill.method={name: weighted, lam: 1, lam: 2}"])
    assert str(caught.value) == "--set distill.method.lam: is given twice"


def test_merge_keys_stay_allowed(tmp_path: Path) -> None:
    source = "  - {name: one, kind: timm, model: resnet10t}\n"
    text = GOOD.replace(source, source.replace("- {", "- &first {") + "  - {<<: *first, name: two}\n")
    assert [source.name for source in load(tmp_path, text).sources] == ["one", "two"]
