"""Nothing public is undocumented: each name of the API, each parameter, each command and each option is on a page."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
from typer.main import get_command

import edgedistill as ed
from edgedistill import api, cli
from tests.helpers.paths import ROOT

PYTHON = (ROOT / "docs/python.md").read_text(encoding="utf-8")
COMMANDS = (ROOT / "docs/command-line.md").read_text(encoding="utf-8")
GUIDE = "\n".join(
    path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    if path.name not in ("command-line.md", "changelog.md")
)
CLASSES = ("Run", "Quantized", "Student", "Prediction", "Callback")


def named(word: str, page: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", page) is not None


@pytest.mark.parametrize("name", [name for name in ed.__all__ if not name.startswith("_")])
def test_name_is_on_the_page_and_has_a_docstring(name: str) -> None:
    assert named(name, PYTHON) and inspect.getdoc(getattr(api, name))


@pytest.mark.parametrize("name", [name for name in ed.__all__ if inspect.isfunction(getattr(api, name, None))])
def test_every_parameter_is_in_the_docstring_and_on_the_page(name: str) -> None:
    function = getattr(api, name)
    text, parameters = inspect.getdoc(function) or "", inspect.signature(function).parameters
    if name == "load":
        return  # a path alone, which its first line explains
    assert [parameter for parameter in parameters if f"    {parameter}:" not in text] == []
    keywords = [key for key, entry in parameters.items() if entry.kind is inspect.Parameter.KEYWORD_ONLY]
    assert [key for key in keywords if not named(key, PYTHON)] == []


@pytest.mark.parametrize("name", CLASSES)
def test_every_attribute_is_on_the_page(name: str) -> None:
    subject = getattr(api, name)
    annotated = [word for word in getattr(subject, "__annotations__", {}) if word != "probabilities_C"]
    members = [word for word in vars(subject) if not word.startswith("_")]
    assert [word for word in {*annotated, *members} if word != "probabilities_C" and not named(word, PYTHON)] == []


def commands() -> dict[str, Any]:
    group: Any = get_command(cli.app)
    return dict(group.commands)


def test_every_command_has_a_place_in_the_guide() -> None:
    assert [name for name in commands() if f"edgedistill {name}" not in GUIDE] == []


def test_every_option_is_on_the_page_of_commands() -> None:
    for name, command in commands().items():
        _, _, rest = COMMANDS.partition(f"## `edgedistill {name}")
        section = rest.partition("\n## ")[0]
        options = [word for parameter in command.params for word in parameter.opts if word.startswith("--")]
        assert section and [word for word in options if not named(word, section)] == [], name
