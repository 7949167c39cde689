"""The command about a classifier that somebody else trained."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


class Range(StrEnum):
    """The largest value of a pixel before the mean is subtracted."""

    one = "1"
    byte = "255"


class Channels(StrEnum):
    """Orders of a model's channels."""

    rgb = "RGB"
    bgr = "BGR"


class Fit(StrEnum):
    """How pictures become squares."""

    crop = "crop"
    squash = "squash"


Numbers = typer.Option(metavar="A,B,C", help="Of each channel; default: ImageNet's.")


@app.command()
def quantize(
    model: Annotated[Path, typer.Argument(metavar="MODEL.ONNX", help="A classifier of images, in float.")],
    images: Annotated[Path, typer.Option("--images", metavar="FOLDER", help="Pictures like those that it will see.")],
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A labels.csv; default: agreement with the float graph.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder of what is written; default: runs/quantize-<model>."),
    ] = None,
    preprocessing: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML with mean, std, range, channels and fit; options below override it."),
    ] = None,
    mean: Annotated[str | None, Numbers] = None,
    std: Annotated[str | None, Numbers] = None,
    range_: Annotated[
        Range | None, typer.Option("--range", help="A pixel's largest value before the mean; default: 1.")
    ] = None,
    channels: Annotated[Channels | None, typer.Option(help="The model's order; default: RGB.")] = None,
    fit: Annotated[Fit | None, typer.Option(help="Crop the center, or squash the whole; default: crop.")] = None,
    px: Annotated[
        str | None,
        typer.Option(metavar="PX|HxW", help="Side of the input, or height and width, of a model that takes any size."),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Names of the classes, a line each, in the order of the outputs."),
    ] = None,
    output: Annotated[str | None, typer.Option(metavar="NAME", help="The output with class scores.")] = None,
    max_drop: Annotated[
        float, typer.Option(min=0.0, help="Points of accuracy, or of agreement without labels, that int8 may lose.")
    ] = 1.0,
    calibration_images: Annotated[int, typer.Option(min=1, help="At most half of the pictures calibrate.")] = 300,
) -> None:
    """Quantize a classifier that somebody else trained: calibration, both guards, a bundle; no recipe, no run."""
    from edgedistill.imported import bench, settings
    from edgedistill.imported.quantize import quantize as quantized

    flags = {"mean": mean, "std": std, "range": range_, "channels": channels, "fit": fit}
    folder = quantized(
        model,
        images,
        labels=labels,
        out=out,
        preprocessing=settings.preprocessing(preprocessing, flags),
        settings=settings.guards(max_drop, calibration_images),
        classes=settings.names(classes) if classes else (),
        output=output,
        px=settings.size(px) if px else None,
    )
    print(bench.quantized_text(folder))
