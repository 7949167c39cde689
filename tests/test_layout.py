"""Where things are and how they are called: the rules of CONTRIBUTING.md that a machine can check."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import re
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import Field

from edgedistill.distill.batches import Material, StepBatch
from edgedistill.distill.methods import METHODS, Batch
from edgedistill.distill.stream import StreamBatch
from edgedistill.run import artifacts
from tests.helpers import miniature
from tests.helpers.paths import ROOT

AGENT = ROOT / "edgedistill/agent"  # shipped as it is, in the syntax of Python 3.8
FOLDERS = ("edgedistill", "benchmarks", "tests", "docs")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")) if path.parent != AGENT]
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def place(path: Path, node: ast.expr | ast.stmt) -> str:
    return f"{path.relative_to(ROOT)}:{node.lineno}"


def test_few_modules_stand_at_the_top() -> None:
    modules = list((ROOT / "edgedistill").glob("*.py"))
    assert len(modules) <= 12


def test_formatter_has_no_exceptions() -> None:
    marker = "# fmt: " + "skip"
    assert [str(path) for path in FILES if marker in path.read_text(encoding="utf-8")] == []


def test_records_are_keyword_only() -> None:
    positional = [
        place(path, node)
        for path, tree in TREES.items()
        if ROOT / "tests" not in path.parents
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for decorator in node.decorator_list
        if "dataclass" in ast.unparse(decorator) and "kw_only=True" not in ast.unparse(decorator)
    ]
    assert positional == []


def definitions() -> Counter[str]:
    """Names of our functions and classes that take a fixed number of positional arguments."""
    names: Counter[str] = Counter()
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) or (isinstance(node, ast.FunctionDef) and not node.args.vararg):
                names[node.name] += 1
    return names


def called(node: ast.Call) -> str:
    """The last part of the callee's name; the first argument's for functools.partial."""
    function = node.args[0] if ast.unparse(node.func) == "partial" and node.args else node.func
    return ast.unparse(function).rpartition(".")[2]


def crowded_calls(trees: dict[Path, ast.Module], names: Counter[str]) -> Iterator[str]:
    """Calls of functions in `names` with more than four positional arguments."""
    external = re.compile(r"(functional|F|torch|np|helper|st|struct)\.")
    for path, tree in trees.items():
        nodes = list(ast.walk(tree))
        variadic = {node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.args.vararg}
        for node in nodes:
            if not isinstance(node, ast.Call) or len(node.args) <= 4 or external.match(ast.unparse(node.func)):
                continue
            count = sum(not isinstance(argument, ast.Starred) for argument in node.args)
            count -= ast.unparse(node.func) == "partial"
            if count > 4 and names[called(node)] and called(node) not in variadic:
                yield f"{place(path, node)}: {called(node)} with {count}"


def test_calls_have_at_most_four_positional_arguments() -> None:
    variadic = {"call", "edgedistill", "command"}  # command lines, word by word
    crowded = crowded_calls(TREES, definitions())
    assert [line for line in crowded if line.partition(": ")[2].split()[0] not in variadic] == []


def test_crowded_call_is_found() -> None:
    tree = ast.parse("def f(a, b, c, d, e): ...\nf(1, 2, 3, 4, 5)\npartial(f, 1, 2, 3, 4, 5)\nf(1, 2, 3, 4, e=5)\n")
    assert len(list(crowded_calls({ROOT / "x.py": tree}, Counter({"f": 1})))) == 2


def underscored(tree: ast.Module) -> Iterator[str]:
    """Underscored names that a module takes from another module of ours."""
    modules: set[str] = set()
    for node in ast.walk(tree):
        # the agent's names change with its next real change
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("edgedistill.agent"):
            continue
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in FOLDERS:
            for alias in node.names:
                if alias.name.startswith("_") and not alias.name.startswith("__"):
                    yield alias.name
                if importlib.util.find_spec(str(node.module)) and is_module(f"{node.module}.{alias.name}"):
                    modules.add(alias.asname or alias.name)
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules):
            continue
        if node.attr.startswith("_") and not node.attr.startswith("__"):
            yield ast.unparse(node)


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or path.is_dir()


def test_tests_use_no_underscored_name_of_another_module() -> None:
    paths = [path for path in TREES if ROOT / "tests" in path.parents]
    names = {f"{path.relative_to(ROOT)}: {name}" for path in paths for name in underscored(TREES[path])}
    assert names == set()


def test_tests_mirror_the_package() -> None:
    own = {"helpers", "benchmarks", "recipes", "fuzz"}
    folders = {path.name for path in (ROOT / "tests").iterdir() if any(path.glob("test_*.py"))} - own
    package = {path.name for path in (ROOT / "edgedistill").iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders <= package
    assert package - folders == set()


def test_paths_of_a_run_stand_in_one_list() -> None:
    folders = "weigh|search|distill|export|quantize|keep|engines|verify|bundle|bench|qat|tensorboard"
    literal = re.compile(rf"(?:{folders})/[\w.]*\.(?:json|csv|jsonl|npz|pt|safetensors|onnx)")
    elsewhere = [
        f"{place(path, node)}: {node.value}"
        for path, tree in TREES.items()
        if ROOT / "edgedistill" in path.parents and path.name != "artifacts.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and literal.fullmatch(node.value)
    ]
    assert elsewhere == []


def test_cuda_is_asked_about_in_one_file() -> None:
    device = ROOT / "edgedistill/distributed/device.py"
    package = [path for path in TREES if ROOT / "edgedistill" in path.parents and path != device]
    asked_about = re.compile(r"torch\.cuda|== \"cuda\"")
    assert [str(path) for path in package if asked_about.search(path.read_text(encoding="utf-8"))] == []


def test_every_file_of_a_run_is_documented() -> None:
    page = (ROOT / "docs/run-directory.md").read_text(encoding="utf-8")
    paths = [entry.path for entry in vars(artifacts).values() if isinstance(entry, artifacts.Artifact)]
    assert len(paths) > 20 and [path for path in paths if f"`{path}`" not in page] == []


def test_source_outputs_reach_the_batch_under_one_name() -> None:
    for record in (Material, StreamBatch, StepBatch, Batch):
        assert "source_probs" in {field.name for field in dataclasses.fields(record)}


def test_five_hops_lead_from_the_command_to_the_loss(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The files of the package that are open when the method computes its loss, in the order of the calls."""
    stacks: list[list[str]] = []
    method = METHODS["weighted"]

    def recorded(batch: Any, alphas: Any, *, lam: float = 0.8) -> Any:
        frames = [Path(frame.filename) for frame in traceback.extract_stack()]
        files = [str(path.relative_to(ROOT / "edgedistill")) for path in frames if ROOT / "edgedistill" in path.parents]
        stacks.append([file for before, file in zip(["", *files], files, strict=False) if file != before])
        return method.loss(batch, alphas, lam=lam)

    monkeypatch.setitem(METHODS, "weighted", dataclasses.replace(method, loss=recorded))
    recipe = yaml.safe_load(miniature.RECIPE)
    recipe["student"]["families"]["micro"]["width"] = 4
    recipe["search"] = {"trials": 1, "steps": 1}
    recipe["distill"]["steps"] = 2
    project = miniature.write(tmp_path, yaml.safe_dump(recipe))
    assert miniature.call("train", project.recipe, "--runs", project.runs).code == 0
    # the last training is that of the step distill; the method's own file is the sixth
    training = next(stack for stack in stacks if "steps/distill.py" in stack)
    assert [*training, "distill/methods.py"] == [
        "cli.py",
        "session.py",
        "steps/step.py",
        "steps/distill.py",
        "distill/loop.py",
        "distill/methods.py",
    ]


def test_generated_pages_are_current() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec and spec.loader
    generate = importlib.util.module_from_spec(spec)
    sys.modules["generate"] = generate
    spec.loader.exec_module(generate)
    assert list(generate.stale()) == [], "run `python docs/generate.py`"
    assert all(f"`{name}`" in generate.reference() for name in METHODS)
    with pytest.raises(ValueError, match="write a line below the field"):
        generate.row("data.new", Field(default=1))
