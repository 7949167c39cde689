"""The options of the command line that a drafted recipe heeds; a recipe that is written says so itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from edgedistill.draft.settings import Wishes

DATA = (
    "a folder of class folders or with a labels.csv, a table (CSV), a folder of parquet files, or the id of a data set"
    " on the hub."
)
Device = Annotated[
    str | None, typer.Option("--device", metavar="NAME", help="For data: a device of the inventory to measure on.")
]
Latency = Annotated[
    float | None,
    typer.Option("--latency-ms", metavar="MS", min=0.001, help="For data: bound on the latency of one image in int8."),
]
Labels = Annotated[
    int | None, typer.Option("--labels-per-class", metavar="N", min=1, help="For data: labels of a class to use.")
]
Sources = Annotated[
    str | None, typer.Option("--sources", metavar="NAMES", help="For data: names of the catalog with commas, or none.")
]
Minutes = Annotated[
    float | None, typer.Option("--minutes", metavar="N", min=1, help="For data: about how long it may take (10).")
]
Download = Annotated[bool, typer.Option("--download", help="For data: weights may be downloaded.")]
AnyLicense = Annotated[
    bool, typer.Option("--any-license", help="For data: sources may forbid commercial use, or state no license.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Download without a question.")]


def wishes(*, sources: str | None, **others: Any) -> Wishes:
    """The options as wishes; `sources` are names with commas between them."""
    from edgedistill.draft.settings import Wishes
    from edgedistill.recipe.options import listed_names

    return Wishes(sources=listed_names(sources or ""), **others)
