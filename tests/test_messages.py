"""What messages name exists: commands, options, recipe keys, keys of an inventory, extras, pages."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any, get_args

import typer
from pydantic import BaseModel

from edgedistill import cli, session
from edgedistill.data.datasets import DATASETS
from edgedistill.devices import inventory
from edgedistill.distill.methods import METHODS
from edgedistill.distill.teachers import TEACHERS
from edgedistill.recipe.schema import Recipe
from edgedistill.similarity.metrics import METRICS
from edgedistill.sources.registry import SOURCES
from edgedistill.students.families import FAMILIES
from tests.helpers.paths import ROOT

COMMANDS = typer.main.get_command(cli.app)
VERBS: Mapping[str, Any] = COMMANDS.commands  # type: ignore[attr-defined]
# options of other programs that messages name: torchrun, venv, the agent
OTHER_OPTIONS = {"--nproc-per-node", "--system-site-packages", "--facts"}
# words behind the program's name that are no verb, in "another edgedistill is at work"
NO_VERBS = {"is", "runs"}
FUNCTIONS = {
    "data": [kind.listing for kind in DATASETS.values()],
    "sources": list(SOURCES.values()),
    "student": list(FAMILIES.values()),
    "weigh": [metric.score for metric in METRICS.values()],
    "distill": [
        *(method.loss for method in METHODS.values()),
        *(teacher.fit for teacher in TEACHERS.values()),
    ],
}


def messages() -> Iterator[tuple[str, str]]:
    """(place, text) of every string of the package but docstrings and single words; fields of f-strings are {}."""
    for path in sorted((ROOT / "edgedistill").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings | parts:
                text = node.value
            else:
                continue
            if " " in text:
                yield f"{path.relative_to(ROOT)}:{node.lineno}", text


MESSAGES = list(messages())


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The recipe sections in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models(argument)


def keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a section; entries of lists have no number."""
    for name, field in section.model_fields.items():
        yield prefix + name
        for model in models(field.annotation):
            yield from keys(model, f"{prefix}{name}.")


def options() -> Iterator[tuple[str, str]]:
    """(section, option) of every function that a recipe names."""
    for section, functions in FUNCTIONS.items():
        for function in functions:
            yield from ((section, name) for name in inspect.signature(function).parameters)


KEYS = {*keys(Recipe), *(f"{section}.{name}" for section, name in options())}
NAMES = {part for key in KEYS for part in key.split(".")}


def mentioned(pattern: str) -> list[tuple[str, str]]:
    """(place, group) for every match of a pattern in a message."""
    return [(place, match[1]) for place, text in MESSAGES for match in re.finditer(pattern, text)]


def test_messages_are_read() -> None:
    assert len(MESSAGES) > 700 and any(place.startswith("edgedistill/agent/") for place, _ in MESSAGES)


def test_commands_exist() -> None:
    verbs = mentioned(r"edgedistill ([a-z]+)")
    assert {"bench", "export", "train", "devices"} <= {verb for _, verb in verbs}
    assert [row for row in verbs if row[1] not in {*VERBS, *NO_VERBS}] == []


def test_options_exist() -> None:
    options = {option for verb in [*VERBS.values(), COMMANDS] for option in options_of(verb)}
    named = mentioned(r"(?<![\w-])(--[a-z][a-z0-9-]+)")
    assert {"--again", "--set", "--runs", "--debug"} <= {option for _, option in named}
    assert [row for row in named if row[1] not in options | OTHER_OPTIONS and not argument_list(row[0])] == []


def options_of(verb: Any) -> set[str]:
    """The options of a command, with those that switch something off."""
    return {option for parameter in verb.params for option in (*parameter.opts, *parameter.secondary_opts)}


def argument_list(place: str) -> bool:
    """Whether a place is a script, a program's argument list, or a program with options of its own: no message."""
    files = ("devices/shell", "agent/nvidia", "agent/label")
    return place.startswith(tuple(f"edgedistill/{name}.py" for name in files))


def test_options_stand_behind_their_command() -> None:
    for place, command in mentioned(r"edgedistill (--debug [A-Z]+|[a-z]+(?: (?:--[a-z-]+|[\w.]+=[\w.]+|[a-z]+-cpu))+)"):
        verb, *words = command.split()
        if verb in VERBS:
            assert {word for word in words if word.startswith("--")} <= options_of(VERBS[verb]), (place, command)
            if verb == "bench":
                session.bench_settings([word for word in words if "=" in word])


def test_recipe_keys_exist() -> None:
    sections = "|".join(Recipe.model_fields)
    named = mentioned(rf"(?<![\w./{{}}-])((?:{sections})(?:\.[a-z_0-9]+)+)(?![\w/(]|\.[a-z])")
    named = [(place, key) for place, key in named if not re.search(r"\.(py|json|csv|yaml|onnx|html|md)$", key)]
    assert len({key for _, key in named}) > 30
    assert [row for row in named if row[1] not in KEYS] == []


def test_keys_in_backticks_exist() -> None:
    named = mentioned(r"`([a-z_]+)(?:: [^`]+)?`")
    assert {"logits", "file", "weights"} <= {key for _, key in named}
    assert [row for row in named if row[1] not in NAMES | {"latest", "labels"}] == []


def test_extras_and_pages_and_inventory_keys_exist() -> None:
    extras = metadata.metadata("edgedistill").get_all("Provides-Extra") or []
    assert {extra for _, extra in mentioned(r"edgedistill\[([a-z,]+)\]")} <= set(extras)
    assert all((ROOT / page).is_file() for _, page in mentioned(r"\b((?:docs|deploy)/[\w/-]+\.(?:md|yaml))"))
    assert {key for _, key in mentioned(r"\((\w+):\)")} == {"python"} <= set(inventory.KEYS)
    assert "workdir" in inventory.KEYS and mentioned(r"(name another workdir)")
