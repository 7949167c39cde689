"""The command line: one short function a verb, and nothing heavy imported before a verb needs it."""

from __future__ import annotations

import errno
import io
import json
import logging
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgedistill import __version__
from edgedistill.errors import EdgeDistillError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgedistill.recipe.file import Document
    from edgedistill.recipe.schema import Recipe
    from edgedistill.steps.context import Context
    from edgedistill.steps.step import Step

ABOUT = "Few labels, many pictures and the models you have in: a measured int8 student out."
app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help=ABOUT
)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, such as recipes/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Replace a value of the recipe, such as distill.steps=200; may be repeated."
    ),
]
Root = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where run directories stand.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
LATEST = Path("runs/latest")


class Format(str, Enum):
    """How `report` prints."""

    text = "text"
    json = "json"
    html = "html"


class Listing(str, Enum):
    """How `devices` prints."""

    text = "text"
    json = "json"


def _version(wanted: bool) -> None:
    if wanted:
        print(f"edgedistill {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options that stand before the verb."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)


@app.command()
def check(recipe: RecipeFile, sets: Overrides = None) -> None:
    """Validate a recipe, bind every name, load one batch; do no work."""
    from edgedistill import check as edgedistill_check
    from edgedistill.errors import InputError

    document, found = _load(recipe, sets)
    problems = edgedistill_check.missing(found, document.base)
    if problems:
        raise InputError("\n".join(f"{recipe}: {problem}" for problem in dict.fromkeys(problems)))
    print(f"{recipe}: ready to run")


@app.command()
def train(recipe: RecipeFile, sets: Overrides = None, runs: Root = Path("runs")) -> None:
    """Weigh the sources, search the student, distil it."""
    from edgedistill import pipeline

    _trained(recipe, sets, runs, pipeline.nothing)


@app.command()
def run(recipe: RecipeFile, sets: Overrides = None, runs: Root = Path("runs")) -> None:
    """The whole road: train, export, quantize, verify, bench, report."""
    from edgedistill import pipeline

    _trained(recipe, sets, runs, pipeline.to_the_end)


@app.command()
def export(
    run: RunPath = LATEST,
    int8: Annotated[
        bool | None,
        typer.Option(
            "--int8/--no-int8",
            help="With int8 graphs, or without; as the last time where neither is given, at first as in the recipe.",
        ),
    ] = None,
    qat: Annotated[
        bool | None,
        typer.Option(
            "--qat/--no-qat",
            help="With some steps of quantization-aware distillation before int8, or without; else as for --int8.",
        ),
    ] = None,
) -> None:
    """ONNX and int8 graphs of a trained student, verified, and the bundle for a device."""
    from edgedistill import pipeline, session

    asked = {"enabled": int8, "qat": qat}
    if qat and session.reopen(run, {}).recipe.quantize.qat:
        asked["qat"] = None  # with the settings it has
    given = {name: value for name, value in asked.items() if value is not None}
    context = session.reopen(run, {"quantize": given} if given else {})
    session.finish(context, pipeline.to_bundle, remember=bool(given))
    _show(context.run.path)


@app.command()
def bench(
    run: RunPath = LATEST,
    device: Annotated[list[str] | None, typer.Option(help="A device of deploy/devices.yaml; may be repeated.")] = None,
    backend: Annotated[
        list[str] | None, typer.Option(help="A backend, such as onnxruntime-cpu; may be repeated.")
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of bench, such as bench.seconds=10."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Measure once more, though nothing has changed.")] = False,
) -> None:
    """Latency and accuracy of the exported graphs on the devices."""
    from edgedistill import pipeline, session

    asked = {name: given for name, given in (("devices", device), ("backends", backend)) if given}
    context = session.reopen(run, {"bench": {**session.bench_settings(sets or []), **asked}})
    session.finish(context, pipeline.to_the_end, again=pipeline.bench_steps if again else pipeline.nothing)
    _show(context.run.path)


@app.command()
def report(
    runs: Annotated[list[Path] | None, typer.Argument(metavar="[RUN]...", help="Run directories.")] = None,
    form: Annotated[Format, typer.Option("--format", help="text, json, or html.")] = Format.text,
) -> None:
    """What came out of a run, or of several side by side."""
    from edgedistill.report import render
    from edgedistill.run.directory import find_run

    found = [find_run(path) for path in runs or [LATEST]]
    if form is Format.json:
        collected = [render.collect(one) for one in found]
        print(json.dumps(collected if len(collected) > 1 else collected[0], indent=1))
    elif form is Format.html:
        for one in found:
            print(next(path for path in render.write(one) if path.suffix == ".html"))
    else:
        print(render.text(found[0]) if len(found) == 1 else render.compare(found))


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures.")],
    run: Annotated[Path, typer.Option("--run", metavar="RUN", help="A run directory.")] = LATEST,
) -> None:
    """Label pictures with the exported student; torch is not needed."""
    from edgedistill.predict import predict as label
    from edgedistill.run.directory import find_run

    for one in label(find_run(run), images):
        print(f"{one.path}  {one.label}  {100 * one.probability:.1f} %")


@app.command()
def devices(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Devices of the inventory; else all.")
    ] = None,
    inventory: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An inventory; default deploy/devices.yaml.")
    ] = None,
    form: Annotated[Listing, typer.Option("--format", help="text or json.")] = Listing.text,
) -> None:
    """Probe the devices: reachable, runtimes and versions, power mode, memory, what is missing; 1 when one lacks it."""
    from edgedistill.devices import inventory as devices_inventory
    from edgedistill.devices import survey

    known = devices_inventory.load(inventory or devices_inventory.path_for(None, Path()))
    chosen = [devices_inventory.find(known, name) for name in dict.fromkeys(names or known)]
    probed = survey.survey(chosen)
    if form is Listing.json:
        print(json.dumps(survey.as_json(probed), indent=1))
    else:
        print(survey.table(probed, why=bool(names)))
    if not all(one.usable for one in probed):
        raise typer.Exit(1)


def _trained(path: Path, sets: list[str] | None, runs: Path, then: Callable[[Context], Sequence[Step]]) -> None:
    """Train, go on with `then`, and show what came out; of several processes (torchrun) the first one does so."""
    from edgedistill import session
    from edgedistill.steps import workers

    with workers.assembled() as leads:
        if leads:
            document, found = _load(path, sets)
            context = session.train(document, found, runs)
            session.finish(context, then)
            _show(context.run.path)


def _load(path: Path, sets: list[str] | None) -> tuple[Document, Recipe]:
    from edgedistill import check as edgedistill_check
    from edgedistill.recipe.file import read_recipe

    document = read_recipe(path, sets or [])
    return document, edgedistill_check.load(document)


def _show(path: Path) -> None:
    from edgedistill.report import render
    from edgedistill.run.directory import Run

    print(render.text(Run(path=path)))


def main() -> None:
    """The entry point: errors for people are one line on stderr and an exit code, tracebacks only with --debug."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name the terminal cannot show is no reason to stop
    try:
        app()
    except SystemExit as done:
        if done.code == 130:  # what typer makes of Ctrl-C, without a word
            print("stopped; the same command goes on from here", file=sys.stderr)
        raise
    except (EdgeDistillError, OSError) as error:
        if "--debug" in sys.argv:
            raise
        print(_line(error), file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        print(f"edgedistill: unexpected {type(error).__name__}: {error}; --debug shows where", file=sys.stderr)
        sys.exit(1)


def _line(error: Exception) -> str:
    if isinstance(error, EdgeDistillError):
        return str(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"{error.filename or 'disk'}: the disk is full; what was there before is intact; free some and run again"
    return str(error)
