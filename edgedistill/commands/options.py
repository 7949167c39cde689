"""Arguments and options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

LATEST = Path("runs/latest")
RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, such as recipes/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Replace a value of the recipe, such as distill.steps=200; may be repeated."
    ),
]
Root = Annotated[Path, typer.Option("--runs", metavar="DIR", help="The folder of the run directories.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]


class Format(StrEnum):
    """Output formats of `report`."""

    text = "text"
    json = "json"
    html = "html"


class Listing(StrEnum):
    """Output formats of `devices`, `doctor` and `sources`."""

    text = "text"
    json = "json"


class Answers(StrEnum):
    """Output formats of `predict`."""

    text = "text"
    csv = "csv"
    json = "json"
    jsonl = "jsonl"
