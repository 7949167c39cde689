"""The draft: a recipe as text with the reason of every choice, and five lines on it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from edgedistill import check
from edgedistill.console import say
from edgedistill.data.walk import count_of
from edgedistill.draft.look import Look, is_recipe, look
from edgedistill.draft.settings import Plan, Setting, Wishes, plan, require_labels
from edgedistill.errors import InputError, printable
from edgedistill.recipe.file import Document, parse_recipe, read_recipe
from edgedistill.recipe.schema import Recipe
from edgedistill.run.directory import require_usable_root, run_directory
from edgedistill.run.files import atomic, digest
from edgedistill.sources import chosen

DRAFTED = "\n# as drafted: "  # before the hash of the text above
COMMAND = "#   edgedistill run "
NAME = "recipe.yaml"  # of the file where a run keeps it
WIDTH = 118  # where a comment goes above its key
SCHEMA = Path(__file__).with_name("recipe.schema.json")  # by docs/generate.py from json_schema.py


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A recipe for somebody's data.

    Attributes:
        name: the recipe's name.
        text: the recipe.
        lines: what the data are, what was chosen, and what it costs.
        megabytes: what is downloaded.
    """

    name: str
    text: str
    lines: tuple[str, ...]
    megabytes: float


def first_recipe(path: str, wishes: Wishes, base: Path | None = None) -> Draft:
    """Look at the data at `path`, and draft a recipe for them.

    Args:
        path: a folder, a table, a folder of parquet files or an id of the hub.
        wishes: what the recipe must heed.
        base: the folder of the recipe: paths below it are written relative to it; without one all are absolute.

    Raises:
        InputError: there are no labeled pictures at `path`, or a wish cannot be met.
    """
    subject = look(path)
    require_labels(subject, wishes)
    choices = plan(subject, wishes)
    text = _text(subject, choices, base)
    megabytes, sources = _sources(text, base or Path())
    lines = (_data_line(subject), _choice_line(choices), sources, _cost_line(choices, megabytes))
    return Draft(name=subject.name, text=text, lines=lines, megabytes=megabytes)


def write(draft: Draft, path: Path) -> None:
    """Write a drafted recipe into a new file; its head names the file.

    Raises:
        InputError: there is a file already.
    """
    if path.exists():
        raise InputError(f"{path}: is there already", "move it away, or name another file by -o")
    path.parent.mkdir(parents=True, exist_ok=True)
    text = draft.text.replace(f"{COMMAND}{NAME}\n", f"{COMMAND}{printable(shlex.quote(str(path)))}\n", 1)
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def into_run(draft: Draft, root: Path, sets: Sequence[str] = ()) -> Document:
    """Write a drafted recipe into the run directory that it leads to under `root`, and read it there.

    It ends with its own hash. An earlier draft there is replaced: pictures, or the settings of a measurement, which do
    not enter the directory's name, may have changed.

    Raises:
        InputError: somebody has edited the recipe there.
    """
    document = parse_recipe(draft.text, Path(f"{draft.name}.yaml"), sets)
    target = run_directory(check.load(document), root).path / NAME
    if target.is_file():
        _refuse_edited(target, document, sets)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic(target) as temporary:
        temporary.write_text(f"{draft.text}{DRAFTED}{digest(draft.text)}\n", encoding="utf-8")
    return read_recipe(target, sets)


def _refuse_edited(target: Path, document: Document, sets: Sequence[str]) -> None:
    text = target.read_text(encoding="utf-8")
    draft, mark, stated = text.rpartition(DRAFTED)
    is_draft = bool(mark) and digest(draft) == stated.strip()
    if not is_draft and parse_recipe(text, target, sets).raw != document.raw:
        raise InputError(
            f"{target}: was edited", f"run it: `edgedistill run {target}`; or move it away to start from the data again"
        )


def load_or_draft(
    path: str, sets: Sequence[str] | None, root: Path, *, wishes: Wishes, yes: bool
) -> tuple[Document, Recipe]:
    """A recipe, or the one that is drafted for the data at `path` into its run; the lines on it go to stderr.

    Before a download a terminal is asked, unless `yes`.

    Raises:
        InputError: as `first_recipe` and `into_run`; or `path` is a recipe and there are wishes.
    """
    if is_recipe(path):
        if wishes != Wishes():
            raise InputError(f"{path}: is a recipe, and the options are for data", "use --set, or edit the recipe")
        document = read_recipe(Path(path), sets or ())
        return document, check.load(document)
    require_usable_root(root)
    draft = first_recipe(path, wishes)
    for line in draft.lines:
        say(line)
    if draft.megabytes and not yes and sys.stdin.isatty():
        say(f"Download {draft.megabytes:,.0f} MB? [y/N]")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise InputError("nothing was downloaded", "leave out --download, or answer y")
    document = into_run(draft, root, sets or ())
    say(f"recipe     {document.path}: copy it to edit and run it again")
    return document, check.load(document)


def _text(subject: Look, choices: Plan, base: Path | None) -> str:
    classes = len(subject.listing.classes)
    head = [
        f"# yaml-language-server: $schema={SCHEMA.as_uri()}",
        f"# A first recipe for {subject.name}, with the reason of every choice. Edit it, and run it:",
        "#",
        f"{COMMAND}{NAME}",
        "",
        f"name: {yaml.safe_dump(subject.name, default_flow_style=True).splitlines()[0]}",
        f"about: {classes} classes, {subject.images} pictures",
    ]
    parts = [head]
    for section, settings in choices.settings.items():
        if section == "sources":
            parts.append(_lines(settings[0], indent=""))
        elif settings:
            inner = [line for setting in settings for line in _lines(_portable(setting, base), indent="  ")]
            parts.append([f"{section}:", *inner])
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _portable(setting: Setting, base: Path | None) -> Setting:
    """The setting with its path as text: relative to `base` if it is below it."""
    if not isinstance(setting.value, str | Path) or not Path(setting.value).is_absolute():
        return setting
    if base is not None and Path(setting.value).is_relative_to(base.resolve()):
        return replace(setting, value=os.path.relpath(setting.value, base.resolve()))
    return replace(setting, value=str(setting.value))


def _lines(setting: Setting, indent: str) -> list[str]:
    """A key with its value in one line, and the reason behind it or, if that is too long, above it."""
    line = f"{indent}{setting.key}: {_flow(setting.value)}"
    if not setting.reason:
        return [line]
    if len(line) + len(setting.reason) + 4 <= WIDTH:
        return [f"{line}  # {setting.reason}"]
    return [f"{indent}# {setting.reason}", line]


def _flow(value: Any) -> str:
    """A value as YAML in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True)
    return text.removesuffix("\n...\n").strip()


def _data_line(subject: Look) -> str:
    counts, classes = subject.counts_C, subject.listing.classes
    labels = f"{min(counts)} to {max(counts)} labels each" if min(counts) < max(counts) else f"{counts[0]} labels each"
    rest = f", {count_of(subject.unlabeled, 'picture')} without a label" if subject.unlabeled else ""
    px = subject.sides[0] if subject.sides[0] == subject.sides[-1] else f"{subject.sides[0]} to {subject.sides[-1]}"
    return f"data       {subject.name}: {sum(counts):,} pictures of {len(classes)} classes, {labels}{rest}; {px} px"


def _choice_line(choices: Plan) -> str:
    return f"student    {choices.students}, in int8 where it pays; accuracy {choices.measured}"


def _sources(text: str, base: Path) -> tuple[float, str]:
    """What is downloaded, in megabytes, and a line on the sources."""
    recipe = check.load(parse_recipe(text, base / NAME))
    section = chosen.auto_section(recipe)
    if section is not None:
        candidates = chosen.candidates(recipe, section)
        return candidates.megabytes, candidates.told()
    return 0.0, f"sources    {', '.join(source.name for source in recipe.sources) or 'none'}"


def _cost_line(choices: Plan, megabytes: float) -> str:
    fetched = f", {megabytes:,.0f} MB to download" if megabytes else ""
    return f"cost       about {max(1, round(choices.minutes))} minutes here{fetched}: {choices.steps:,} training steps"
