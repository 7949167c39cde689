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
    everything = [(path, function) for path in PACKAGE for function in functions(path.read_text())]
    sizes = {f"{path.name}:{function.name}": length(function) for path, function in everything}
    assert {name: size for name, size in sizes.items() if size > 60} == {}
    assert statistics.median(sizes.values()) <= 12


def test_files_are_short() -> None:
    assert {path.name: count for path in FILES if (count := len(path.read_text().splitlines())) > 400} == {}


def test_length_leaves_out_the_docstring() -> None:
    (function,) = functions('def f(\n    x,\n):\n    """One.\n\n    Two.\n    """\n    return x\n')
    assert length(function) == 4


def public(tree: ast.Module) -> Iterator[Function | ast.ClassDef]:
    """Module-level functions and classes, and the methods of those classes, that do not start with an underscore."""
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (inner for inner in node.body if isinstance(inner, Function) and inner.name[0] != "_")


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_names_are_documented_and_annotated(path: Path) -> None:
    tree = ast.parse(path.read_text())
    silent = [node.name for node in public(tree) if not ast.get_docstring(node)]
    bare = [node.name for node in public(tree) if isinstance(node, Function) and not annotated(node)]
    assert (silent, bare) == ([], [])
    assert ast.get_docstring(tree)


def annotated(function: Function) -> bool:
    signature = function.args
    arguments = (*signature.posonlyargs, *signature.args, *signature.kwonlyargs)
    bare = [argument for argument in arguments if argument.arg not in ("self", "cls") and not argument.annotation]
    return function.returns is not None and not bare


def test_annotation_check_can_fail() -> None:
    (bare, complete) = functions("def f(x) -> int: ...\ndef g(x: int) -> int: ...")
    assert not annotated(bare) and annotated(complete)


@pytest.mark.parametrize(("registry", "name"), [(title, name) for title, names in REGISTRIES.items() for name in names])
def test_registry_entry_explains_itself(registry: str, name: str) -> None:
    function = REGISTRIES[registry][name]
    assert inspect.getdoc(function)
    options = [
        option for option in inspect.signature(function).parameters.values() if option.kind is option.KEYWORD_ONLY
    ]
    assert [option.name for option in options if option.annotation is option.empty] == []
    # the README and a recipe call it by this name
    assert re.fullmatch(r"[a-z][a-z0-9_]*", name)


def test_registries_have_entries() -> None:
    assert all(len(names) >= 2 for names in REGISTRIES.values())


def test_import_contracts_hold() -> None:
    body = "import sys; from importlinter.cli import lint_imports_command; sys.argv = ['lint-imports', '--no-cache']; "
    command = [sys.executable, "-c", body + "lint_imports_command()"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "the agent is an island KEPT" in process.stdout and "0 broken" in process.stdout


def test_classes_inherit_only_from_what_they_must() -> None:
    """Protocols, errors, pydantic models, what torch wants subclassed and enums are the only bases."""
    allowed = re.compile(
        r"Protocol|Generic\[T\]|Exception|EdgeDistillError|InputError|ModuleType|BaseModel|Section|Open|Choice|nn\.Module|"
        r"torch\.nn\.Module|torch\.autograd\.Function|_BatchNorm|TorchDispatchMode|CalibrationDataReader|StrEnum|"
        r"NamedTuple|TypedDict"
    )
    others = {
        f"{path.name}:{node.name}({ast.unparse(base)})"
        for path in PACKAGE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        if not allowed.fullmatch(ast.unparse(base))
    }
    assert others == set()
