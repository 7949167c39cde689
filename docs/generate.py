"""What is generated from the code: docs/recipe.md, docs/command-line.md, docs/layers.svg and the schema of recipes.

python docs/generate.py            # write what is not current
python docs/generate.py --check    # exit code 1 where something is not current
"""

from __future__ import annotations

import html
import inspect
import json
import re
import sys
import tomllib
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.main import get_command

from edgedistill import cli
from edgedistill.data.datasets import DATASETS
from edgedistill.distill.methods import METHODS
from edgedistill.distill.teachers import TEACHERS
from edgedistill.draft import json_schema
from edgedistill.draft.json_schema import arguments_of, description_of, paragraph
from edgedistill.recipe.options import annotation_of, keyword_only
from edgedistill.recipe.presets import PRESETS
from edgedistill.recipe.schema import Recipe
from edgedistill.recipe.section import Choice, Section
from edgedistill.similarity.metrics import METRICS
from edgedistill.sources.registry import SOURCES
from edgedistill.students.families import FAMILIES

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
HEAD = """\
# Recipe reference

A recipe is a YAML file. `edgedistill check RECIPE` validates it and says, by file and line, what is wrong.
`--set section.key=value` replaces a value on the command line. Paths are relative to the recipe's file. Only
`data` is required, with its kind and what that kind needs.

This page is generated from the schema by `python docs/generate.py`.
"""
REGISTRIES: dict[str, tuple[str, Mapping[str, Callable[..., Any]]]] = {
    "Data kinds": ("`data.kind`", {name: kind.listing for name, kind in DATASETS.items()}),
    "Source kinds": ("`sources[].kind`", SOURCES),
    "Similarity metrics": ("`weigh.metric`", {name: metric.score for name, metric in METRICS.items()}),
    "Student families": ("`student.families`", FAMILIES),
    "Methods": ("`distill.method`", {name: method.loss for name, method in METHODS.items()}),
    "Teachers": ("`distill.teacher`", {name: teacher.fit for name, teacher in TEACHERS.items()}),
}


def reference() -> str:
    """The recipe reference, in Markdown."""
    parts = [HEAD, *sections(Recipe, ""), options_head()]
    for title, (key, functions) in REGISTRIES.items():
        parts.append(f"## {title}\n\nValues of {key}.\n")
        parts += [entry(name, function) for name, function in functions.items()]
    parts.append(presets())
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def sections(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """A table for each section: the recipe's own keys, then the sections in the schema's order, nested ones behind."""
    title = f"`{prefix.rstrip('.')}`" if prefix else "The recipe"
    rows = [row(prefix + name, field) for name, field in model.model_fields.items()]
    table = ["| key | type | default | meaning |", "|---|---|---|---|", *rows]
    yield f"## {title}\n\n{paragraph(model)}\n\n" + "\n".join(table) + "\n"
    for name, field in model.model_fields.items():
        if (inner := section_of(field.annotation)) is not None:
            yield from sections(inner, f"{prefix}{name}{'[]' if is_list(field.annotation) else ''}.")


def row(key: str, field: FieldInfo) -> str:
    """One key of the schema.

    Raises:
        ValueError: the field has no documentation.
    """
    if not field.description:
        raise ValueError(f"{key}: write a line below the field in the schema")
    default = "required" if field.is_required() else f"`{plain(field.get_default(call_default_factory=True))}`"
    if section_of(field.annotation) is not None and not field.is_required():
        default = "none" if field.default is None else "see below" if field.default != () else "`[]`"
    return f"| `{key}` | {type_name(field.annotation, field.metadata)} | {default} | {cell(field.description)} |"


def section_of(annotation: Any) -> type[Section] | None:
    """The section that a field holds, alone, in a list or optionally; None for other fields and choices by name."""
    candidates = [annotation, *(inner for part in get_args(annotation) for inner in (part, *get_args(part)))]
    for candidate in candidates:
        if inspect.isclass(candidate) and issubclass(candidate, Section) and candidate is not Choice:
            return candidate
    return None


def is_list(annotation: Any) -> bool:
    """Is the field a list of sections?"""
    return get_origin(annotation) is tuple


def type_name(annotation: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> str:
    """A type in words, with its bounds."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(arguments[0], (*arguments[1:], *metadata))
    if origin in COMPOUND:
        return COMPOUND[origin](arguments) + bounds(metadata)
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "name, or `{name: ..., option: ...}`" if issubclass(annotation, Choice) else "section"
    names = {int: "integer", float: "number", str: "text", bool: "true or false", Path: "path"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation))) + bounds(metadata)


def union_name(arguments: tuple[Any, ...]) -> str:
    """The alternatives; `None` is told by the default."""
    return " or ".join(dict.fromkeys(type_name(part) for part in arguments if part is not type(None)))


def tuple_name(arguments: tuple[Any, ...]) -> str:
    """A list of any length, or so many numbers."""
    return f"list of {type_name(arguments[0])}" if arguments[-1] is Ellipsis else f"{len(arguments)} numbers"


COMPOUND: dict[Any, Callable[[tuple[Any, ...]], str]] = {
    Literal: lambda arguments: " or ".join(f"`{plain(choice)}`" for choice in arguments),
    Union: union_name,
    types.UnionType: union_name,
    tuple: tuple_name,
    dict: lambda arguments: "mapping",
    list: lambda arguments: f"list of {type_name(arguments[0])}",
}


def bounds(metadata: list[Any] | tuple[Any, ...]) -> str:
    """`, > 0` and the like, from annotated-types' and pydantic's metadata."""
    texts = []
    for part in metadata:
        for constraint in (part, *getattr(part, "metadata", ())):
            for name, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤")):
                if (bound := getattr(constraint, name, None)) is not None:
                    texts.append(f"{sign} {bound:g}" if bound < 2**62 else "")
    return "".join(f", {text}" for text in dict.fromkeys(texts) if text)


def plain(value: Any) -> str:
    """A default as YAML would have it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Choice):
        return value.name
    if isinstance(value, tuple | list):
        return f"[{', '.join(plain(inner) for inner in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value) if str(value) else '""'


def cell(text: str) -> str:
    """Text that fits a table: one line, no pipe."""
    return " ".join(text.split()).replace("|", "\\|")


def options_head() -> str:
    """What stands before the registries."""
    return (
        "## Names and their options\n\nWhere a recipe names one of these, its options stand beside the name: "
        "`method: {name: weighted, lam: 0.5}`; a data or source kind's options beside `kind`; a family's options take "
        "one value or a list of choices.\n"
    )


def entry(name: str, function: Callable[..., Any]) -> str:
    """One entry of a registry: what it is, and its options."""
    parameters = keyword_only(function).values()
    meanings = arguments_of(function)
    rows = []
    for parameter in parameters:
        default = "required" if parameter.default is parameter.empty else f"`{plain(parameter.default)}`"
        annotation = annotation_of(function, parameter)
        meaning = sentence(meanings.get(parameter.name) or description_of(annotation))
        if not meaning:
            raise ValueError(f"{name}.{parameter.name}: document the option, under Args or in its annotation")
        rows.append(f"| `{parameter.name}` | {type_name(annotation)} | {default} | {meaning} |")
    table = "\n".join(["| option | type | default | meaning |", "|---|---|---|---|", *rows]) if rows else "No options."
    return f"### `{name}`\n\n{paragraph(function)}\n\n{table}\n"


def sentence(text: str) -> str:
    """Text for a table, with a capital at its beginning and a period at its end."""
    text = cell(text)
    return f"{text[0].upper()}{text[1:].rstrip('.')}." if text else ""


def presets() -> str:
    """What each preset sets."""
    lines = []
    for name, settings in PRESETS.items():
        for section, keys in settings.items():
            for key, setting in keys.items():
                shown = (
                    ", ".join(f"{k}: {plain(v)}" for k, v in setting.items()) if isinstance(setting, dict) else setting
                )
                lines.append(f"| `{name}` | `{section}.{key}` | `{shown}` |")
    return "\n".join(["## Presets\n", "| preset | key | value |", "|---|---|---|", *lines]) + "\n"


COMMANDS_HEAD = """\
# Command line

Every command and option. `edgedistill COMMAND --help` says the same; `edgedistill --debug COMMAND` shows the traceback
of an error. The exit code is 0; 2 for what you can mend; 3 if the work is done and a gate failed; 1 for other errors;
128 and its number after a signal.

This page is generated from the commands by `python docs/generate.py`.
"""


def commands() -> str:
    """The reference of the command line, in Markdown."""
    group: Any = get_command(cli.app)
    parts = [COMMANDS_HEAD, options_table(group)]
    for name, command in sorted(group.commands.items()):
        words = [f"edgedistill {name}", *(parameter.metavar for parameter in command.params if is_argument(parameter))]
        parts.append(f"## `{' '.join(words)}`\n\n{cell(command.help)}\n\n{options_table(command)}")
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def is_argument(parameter: Any) -> bool:
    """Is a parameter of a command named by its place?"""
    return bool(parameter.param_type_name == "argument")


def options_table(command: Any) -> str:
    """A command's arguments and options.

    Raises:
        ValueError: one of them has no help.
    """
    rows = []
    for parameter in command.params:
        if not parameter.help:
            raise ValueError(f"{command.name} {parameter.name}: write its help")
        names = "/".join([*parameter.opts, *parameter.secondary_opts])
        shown = cell(parameter.metavar) if is_argument(parameter) else names
        rows.append(f"| `{shown}` | {default_of(parameter)} | {cell(parameter.help).replace('<', '&lt;')} |")
    return "\n".join(["| | default | |", "|---|---|---|", *rows]) + "\n"


def default_of(parameter: Any) -> str:
    """The default of an argument or option as a cell; empty where the help alone says what happens without it."""
    if parameter.required:
        return "required"
    if parameter.default is None or parameter.default is False or callable(parameter.default):
        return ""
    return f"`{plain(parameter.default)}`"


def layers() -> list[list[str]]:
    """The layers of the import contract, the highest first: names of modules and folders."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    return [re.split(r"\s*[|:]\s*", layer) for layer in contracts[0]["layers"]]


def about(name: str) -> str:
    """The first sentence of a module's or folder's docstring."""
    folder = ROOT / "edgedistill" / name
    source = (folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")).read_text(encoding="utf-8")
    match = re.match(r'"""(.*?)[.\n:]', source, re.DOTALL)
    return match.group(1).strip() if match else ""


def layers_svg() -> str:
    """The map of the package: a row a layer; a layer imports only from the rows below it."""
    width, height, gap, left = 960, 52, 14, 10
    rows, boxes = [*layers()], []
    for index, names in enumerate(rows):
        top, each = gap + index * (height + gap), (width - 2 * left - (len(names) - 1) * gap) / len(names)
        for place, name in enumerate(names):
            x = left + place * (each + gap)
            folder = (ROOT / "edgedistill" / name).is_dir()
            title, text = f"{name}/" if folder else f"{name}.py", about(name)
            limit = int(each / 6.3)
            shown = text if len(text) <= limit else text[: limit - 1].rsplit(" ", 1)[0] + " …"
            boxes += [
                f'<rect x="{x:.0f}" y="{top}" width="{each:.0f}" height="{height}" rx="6"/>',
                f'<text class="name" x="{x + 10:.0f}" y="{top + 21}">{title}</text>',
                f'<text x="{x + 10:.0f}" y="{top + 40}">{html.escape(shown)}</text>',
            ]
    total = gap + len(rows) * (height + gap)
    style = (
        "rect{fill:#eef3f8;stroke:#6b8aa8}text{font:11px sans-serif;fill:#333}.name{font:bold 13px monospace;fill:#123}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" role="img" '
        'aria-label="The layers of edgedistill; each imports only from those below it">'
        f"<style>{style}</style>" + "".join(boxes) + "</svg>\n"
    )


def editors_schema() -> str:
    """The JSON schema that the package holds for editors."""
    return json.dumps(json_schema.schema(), indent=1, ensure_ascii=False) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "docs/recipe.md": reference,
    "docs/command-line.md": commands,
    "docs/layers.svg": layers_svg,
    "edgedistill/draft/recipe.schema.json": editors_schema,
}


def stale() -> dict[str, str]:
    """The generated files that are not current, with what they should hold."""
    texts = {name: make() for name, make in PAGES.items()}
    current = {name: (ROOT / name).read_text(encoding="utf-8") if (ROOT / name).exists() else "" for name in texts}
    return {name: text for name, text in texts.items() if text != current[name]}


def main(arguments: list[str]) -> int:
    """Write or check the generated files; returns the exit code."""
    pages = stale()
    for name, text in pages.items():
        print(f"{name}: not current" if "--check" in arguments else f"{name}: written")
        if "--check" not in arguments:
            (ROOT / name).write_text(text, encoding="utf-8")
    return 1 if pages and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
