"""Every command that the README and the recipes show can be typed as it stands."""

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
    """Lines of fenced and indented code blocks, comments and prompts taken off, lines ended by a backslash joined."""
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


SHOWN = [(path, line) for path in (*PAGES, *RECIPES) for line in commands(path, "edgedistill")]


def parse(line: str) -> dict[str, Any]:
    """The arguments of a command line as its verb takes them; click's own error where it does not."""
    group: Any = get_command(cli.app)
    context = group.make_context("edgedistill", shlex.split(line)[1:])
    # where click keeps what stands behind the options of the program itself
    verb, *rest = [*context._protected_args, *context.args]
    assert verb in group.commands, f"edgedistill has no verb {verb}"
    return dict(group.commands[verb].make_context(verb, rest, parent=context).params)


@pytest.mark.parametrize(("path", "line"), SHOWN, ids=[f"{path.name}: {line}" for path, line in SHOWN])
def test_every_command_shown_exists(path: Path, line: str) -> None:
    given = parse(line)
    shown = given.get("recipe")
    if shown is not None:
        document = read_recipe(ROOT / shown, given["sets"] or [])
        check.load(document)


def test_there_is_something_to_check() -> None:
    assert {path.name for path, _ in SHOWN} >= {"quickstart.yaml", "digits.yaml", "cub.yaml"}
    assert any(path == PAGES[0] for path, _ in SHOWN), "the README shows no command"


@pytest.mark.parametrize("wrong", ["edgedistill fly x", "edgedistill run x --no-such", "edgedistill check"])
def test_a_wrong_command_would_be_found(wrong: str) -> None:
    with pytest.raises(Exception, match=r"no verb|No such option|Missing parameter"):
        parse(wrong)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    asked = {word for path in PAGES for line in commands(path, "make") for word in line.split()[1:] if "=" not in word}
    assert asked and asked <= targets
    assert set(re.findall(r"\.PHONY: (.*)", makefile)[0].split()) <= targets


def test_modules_and_links_exist() -> None:
    pages = {path: path.read_text(encoding="utf-8") for path in PAGES}
    modules = {name for text in pages.values() for name in MODULE.findall(text) if name.startswith("benchmarks")}
    assert [name for name in sorted(modules) if importlib.util.find_spec(name) is None] == []
    links = [
        (path, to.partition("#")[0]) for path, text in pages.items() for to in re.findall(r"\]\(([^)\s]+)\)", text)
    ]
    gone = [f"{path.name}: {to}" for path, to in links if "://" not in to and not (path.parent / to).exists()]
    assert gone == []


def test_code_lines() -> None:
    text = "a\n```bash\n$ edgedistill run x  # so\n```\n\n    make demo   # that\nedgedistill no\n"
    assert list(code_lines(text)) == ["edgedistill run x", "make demo"]
