"""Every command in the documentation and the recipes is valid as written."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from edgedistill import check, cli
from edgedistill.draft.look import is_recipe
from edgedistill.recipe.file import read_recipe
from tests.helpers.paths import ROOT

PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("*/README.md")),
    *sorted(ROOT.glob("deploy/*.md")),
    *sorted(ROOT.glob("deploy/*/*.md")),
    *sorted(ROOT.glob("docs/*.md")),
]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
MODULE = re.compile(r"python3? -m ([\w.]+)")


def code_lines(text: str) -> Iterator[str]:
    """Lines of code blocks, without comments and prompts; lines that end in a backslash are joined."""
    fenced = False
    for line in text.replace("\\\n", " ").splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.split(" #")[0].strip().removeprefix("$ ")


def commands(path: Path, program: str) -> list[str]:
    text = path.read_text(encoding="utf-8")
    lines = code_lines(text) if path.suffix == ".md" else (line.lstrip("# ") for line in text.splitlines())
    return [line for line in lines if line.startswith(f"{program} ")]


COMMANDS = [(path, line) for path in (*PAGES, *RECIPES) for line in commands(path, "edgedistill")]


def parse(line: str) -> dict[str, Any]:
    """The parsed arguments of a command line; raises click's error for wrong usage."""
    group: Any = get_command(cli.app)
    context = group.make_context("edgedistill", shlex.split(line)[1:])
    # click keeps the verb and its arguments in two lists
    verb, *arguments = [*context._protected_args, *context.args]
    assert verb in group.commands, f"edgedistill has no verb {verb}"
    return dict(group.commands[verb].make_context(verb, arguments, parent=context).params)


@pytest.mark.parametrize(("path", "line"), COMMANDS, ids=[f"{path.name}: {line}" for path, line in COMMANDS])
def test_every_documented_command_parses(path: Path, line: str) -> None:
    arguments = parse(line)
    recipe = arguments.get("recipe")
    if recipe is not None and is_recipe(str(recipe)):  # `run` takes data, too
        document = read_recipe(ROOT / recipe, arguments["sets"] or [])
        check.load(document)


def test_documents_contain_commands() -> None:
    assert {path.name for path, _ in COMMANDS} >= {"quickstart.yaml", "digits.yaml", "cub.yaml"}
    assert any(path == PAGES[0] for path, _ in COMMANDS), "the README shows no command"


@pytest.mark.parametrize("wrong", ["edgedistill fly x", "edgedistill run x --no-such", "edgedistill check"])
def test_wrong_command_is_refused(wrong: str) -> None:
    with pytest.raises(Exception, match=r"no verb|No such option|Missing parameter"):
        parse(wrong)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    used = {word for path in PAGES for line in commands(path, "make") for word in line.split()[1:] if "=" not in word}
    assert used and used <= targets
    assert set(re.findall(r"\.PHONY: (.*)", makefile)[0].split()) <= targets


def test_modules_and_links_exist() -> None:
    pages = {path: path.read_text(encoding="utf-8") for path in PAGES}
    modules = {name for text in pages.values() for name in MODULE.findall(text) if name.startswith("benchmarks")}
    assert [name for name in sorted(modules) if importlib.util.find_spec(name) is None] == []
    links = [
        (path, target.partition("#")[0])
        for path, text in pages.items()
        for target in re.findall(r"\]\(([^)\s]+)\)", text)
    ]
    broken = [
        f"{path.name}: {target}"
        for path, target in links
        if "://" not in target and not (path.parent / target).exists()
    ]
    assert broken == []


def test_code_lines_of_fenced_and_indented_blocks() -> None:
    text = "a\n```bash\n$ edgedistill run x  # so\n```\n\n    make demo   # that\nedgedistill no\n"
    assert list(code_lines(text)) == ["edgedistill run x", "make demo"]
