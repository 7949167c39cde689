"""Names say what a thing is: the share of bound names that say how it was come by, or nothing at all, only falls."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

# pronouns and participles: `found` for a listing, `one` for a source, `said` for an answer
STAND_INS = {
    *("found", "said", "known", "made", "given", "wanted", "told", "one", "asked", "at", "taken", "seen", "here"),
    *("whole", "held", "mine", "what"),
}
HOLLOW = {"result", "data", "value", "item", "info", "obj", "tmp"}
# shares measured when this was written; lower them when they fall, never raise them
BOUNDS = {"edgedistill": (0.005, 0.03), "benchmarks": (0.005, 0.03), "tests": (0.005, 0.03)}
# the agent's bytes are shipped: its names follow with its next real change
LEFT_OUT = ROOT / "edgedistill/agent"


NAMED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.ExceptHandler, ast.MatchAs, ast.MatchStar)


def bound_names(tree: ast.AST) -> Iterator[str]:
    """Every name that is bound: variables, attributes, parameters, functions, classes, exceptions, patterns."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, NAMED) and node.name:
            yield node.name


def names_below(folder: Path) -> list[str]:
    paths = [path for path in folder.rglob("*.py") if LEFT_OUT not in path.parents]
    return [name for path in paths for name in bound_names(ast.parse(path.read_text(encoding="utf-8")))]


@pytest.mark.parametrize("folder", BOUNDS)
def test_names_say_what_they_hold(folder: str) -> None:
    names = names_below(ROOT / folder)
    stand_ins = [name for name in names if name in STAND_INS]
    hollow = [name for name in names if name in HOLLOW]
    most_stand_ins, most_hollow = BOUNDS[folder]
    assert len(names) > 1000
    assert len(stand_ins) <= most_stand_ins * len(names), sorted(set(stand_ins))
    assert len(hollow) <= most_hollow * len(names), sorted(set(hollow))


def test_every_kind_of_binding_is_counted() -> None:
    program = """
import os
def found(said, *known, given=None, **wanted):
    told: int = 1
    for one, (asked, at) in os.x: pass
    with os.y as taken: self.seen = [here for here in os.z]
    try: (whole := 1)
    except ValueError as held: pass
    lambda mine: mine
class what: pass
match os.m:
    case [*result]: pass
    case data: pass
"""
    assert set(bound_names(ast.parse(program))) == STAND_INS - {"made"} | {"result", "data"}
