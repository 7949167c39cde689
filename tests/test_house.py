"""The house rules that a machine can check: sizes, docstrings, annotations, layers."""

from __future__ import annotations

import ast
import inspect
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from edgedistill.data.datasets import DATASETS
from edgedistill.distill.methods import METHODS
from edgedistill.distill.teachers import TEACHERS
from edgedistill.similarity.metrics import METRICS
from edgedistill.sources.registry import SOURCES
from edgedistill.students.families import FAMILIES
from tests.helpers.paths import ROOT

PACKAGE = sorted((ROOT / "edgedistill").rglob("*.py"))
FILES = [path for folder in ("edgedistill", "tests", "benchmarks", "deploy") for path in (ROOT / folder).rglob("*.py")]
REGISTRIES: dict[str, Mapping[str, Callable[..., Any]]] = {
    "METRICS": {name: metric.score for name, metric in METRICS.items()},
    "METHODS": {name: method.loss for name, method in METHODS.items()},
    "DATASETS": {name: kind.listing for name, kind in DATASETS.items()},
    "TEACHERS": {name: teacher.fit for name, teacher in TEACHERS.items()},
    "SOURCES": SOURCES,
    "FAMILIES": FAMILIES,
}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(source: str) -> Iterator[Function]:
    return (node for node in ast.walk(ast.parse(source)) if isinstance(node, Function))


def length(function: Function) -> int:
    """Lines from `def` to the last statement, the docstring left out: explaining more is never against the rule."""
    assert function.end_lineno is not None
    first = function.body[0]
    has_text = ast.get_docstring(function) is not None and first.end_lineno is not None
    return function.end_lineno - function.lineno + 1 - (first.end_lineno - first.lineno + 1 if has_text else 0)


def test_functions_are_short() -> None:
    sizes = {f"{path.name}:{one.name}": length(one) for path in PACKAGE for one in functions(path.read_text())}
    assert {name: size for name, size in sizes.items() if size > 60} == {}
    assert statistics.median(sizes.values()) <= 12


def test_files_are_short() -> None:
    assert {path.name: count for path in FILES if (count := len(path.read_text().splitlines())) > 400} == {}


def test_length_counts_what_it_should() -> None:
    (one,) = functions('def f(\n    x,\n):\n    """One.\n\n    Two.\n    """\n    return x\n')
    assert length(one) == 4


def public(tree: ast.Module) -> Iterator[Function | ast.ClassDef]:
    """Module-level functions and classes, and the methods of those classes, that do not start with an underscore."""
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (inner for inner in node.body if isinstance(inner, Function) and inner.name[0] != "_")


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_public_is_documented_and_annotated(path: Path) -> None:
    tree = ast.parse(path.read_text())
    silent = [one.name for one in public(tree) if not ast.get_docstring(one)]
    bare = [one.name for one in public(tree) if isinstance(one, Function) and not annotated(one)]
    assert (silent, bare) == ([], [])
    assert ast.get_docstring(tree)


def annotated(function: Function) -> bool:
    given = function.args
    arguments = [one for one in (*given.posonlyargs, *given.args, *given.kwonlyargs) if one.arg not in ("self", "cls")]
    return function.returns is not None and all(one.annotation for one in arguments)


def test_the_annotation_check_can_fail() -> None:
    (one, two) = functions("def f(x) -> int: ...\ndef g(x: int) -> int: ...")
    assert not annotated(one) and annotated(two)


@pytest.mark.parametrize(("registry", "name"), [(title, name) for title, known in REGISTRIES.items() for name in known])
def test_what_a_recipe_can_name_explains_itself(registry: str, name: str) -> None:
    function = REGISTRIES[registry][name]
    assert inspect.getdoc(function)
    options = [one for one in inspect.signature(function).parameters.values() if one.kind is one.KEYWORD_ONLY]
    assert [one.name for one in options if one.annotation is one.empty] == []
    # the README and a recipe call it by this name
    assert re.fullmatch(r"[a-z][a-z0-9_]*", name)


def test_every_registry_has_entries() -> None:
    assert all(len(known) >= 2 for known in REGISTRIES.values())


def test_the_layers_hold() -> None:
    body = "import sys; from importlinter.cli import lint_imports_command; sys.argv = ['lint-imports', '--no-cache']; "
    done = subprocess.run(
        [sys.executable, "-c", body + "lint_imports_command()"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the agent is an island KEPT" in done.stdout and "0 broken" in done.stdout


def test_no_classes_inherit_but_from_what_they_must() -> None:
    """Protocols, errors, pydantic models, what torch wants subclassed and enums are the only bases."""
    allowed = re.compile(
        r"Protocol|Generic\[T\]|Exception|EdgeDistillError|InputError|BaseModel|Section|Open|Choice|nn\.Module|"
        r"torch\.nn\.Module|torch\.autograd\.Function|_BatchNorm|TorchDispatchMode|CalibrationDataReader|str|Enum|"
        r"NamedTuple|TypedDict"
    )
    found = {
        f"{path.name}:{node.name}({ast.unparse(base)})"
        for path in PACKAGE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        if not allowed.fullmatch(ast.unparse(base))
    }
    assert found == set()
