"""The command line: a short function per command; heavy modules are imported only by the commands that need them."""

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

ABOUT = "Distill pretrained models into a small, measured int8 student, from few labels and many unlabeled images."
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
Root = Annotated[Path, typer.Option("--runs", metavar="DIR", help="The folder of the run directories.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
LATEST = Path("runs/latest")


class Format(str, Enum):
    """Output formats of `report`."""

    text = "text"
    json = "json"
    html = "html"


class Listing(str, Enum):
    """Output formats of `devices`."""

    text = "text"
    json = "json"


def _version(show: bool) -> None:
    if show:
        print(f"edgedistill {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options that precede the command."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)


@app.command()
def check(recipe: RecipeFile, sets: Overrides = None) -> None:
    """Validate a recipe: resolve every name, load one batch; do no work."""
    from edgedistill import check as checks
    from edgedistill.errors import InputError

    document, loaded = _load(recipe, sets)
    problems = checks.missing(loaded, document.base)
    if problems:
        raise InputError("\n".join(f"{recipe}: {problem}" for problem in dict.fromkeys(problems)))
    print(f"{recipe}: ready to run")


@app.command()
def train(recipe: RecipeFile, sets: Overrides = None, runs: Root = Path("runs")) -> None:
    """Weigh the sources, search the student, distill it."""
    from edgedistill import pipeline

    _run_pipeline(recipe, sets, runs, pipeline.no_steps)


@app.command()
def run(recipe: RecipeFile, sets: Overrides = None, runs: Root = Path("runs")) -> None:
    """Run the whole pipeline: train, export, quantize, verify, bench, report."""
    from edgedistill import pipeline

    _run_pipeline(recipe, sets, runs, pipeline.export_and_bench_steps)


@app.command()
def export(
    run: RunPath = LATEST,
    int8: Annotated[
        bool | None,
        typer.Option(
            "--int8/--no-int8",
            help="With or without int8 graphs; default: as in the last export, at first as in the recipe.",
        ),
    ] = None,
    qat: Annotated[
        bool | None,
        typer.Option(
            "--qat/--no-qat",
            help="With or without quantization-aware distillation before int8; default: as for --int8.",
        ),
    ] = None,
) -> None:
    """Export a trained student: ONNX and int8 graphs, verified, and the bundle for a device."""
    from edgedistill import pipeline, session

    switches = {"enabled": int8, "qat": qat}
    if qat and session.reopen(run, {}).recipe.quantize.qat:
        switches["qat"] = None  # it is on already: keep its settings
    changes = {name: switch for name, switch in switches.items() if switch is not None}
    context = session.reopen(run, {"quantize": changes} if changes else {})
    session.finish(context, pipeline.export_steps, remember=bool(changes))
    _show(context.run.path)


@app.command()
def bench(
    run: RunPath = LATEST,
    device: Annotated[list[str] | None, typer.Option(help="A device in deploy/devices.yaml; may be repeated.")] = None,
    backend: Annotated[
        list[str] | None, typer.Option(help="A backend, such as onnxruntime-cpu; may be repeated.")
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of bench, such as bench.seconds=10."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Measure again even if nothing has changed.")] = False,
) -> None:
    """Measure latency and accuracy of the exported graphs on the devices."""
    from edgedistill import pipeline, session

    choices = {name: names for name, names in (("devices", device), ("backends", backend)) if names}
    context = session.reopen(run, {"bench": {**session.bench_settings(sets or []), **choices}})
    session.finish(context, pipeline.export_and_bench_steps, again=pipeline.bench_steps if again else pipeline.no_steps)
    _show(context.run.path)


@app.command()
def report(
    runs: Annotated[list[Path] | None, typer.Argument(metavar="[RUN]...", help="Run directories.")] = None,
    form: Annotated[Format, typer.Option("--format", help="text, json, or html.")] = Format.text,
) -> None:
    """Report the results of a run, or compare several runs."""
    from edgedistill.report import render
    from edgedistill.run.directory import find_run

    found_runs = [find_run(path) for path in runs or [LATEST]]
    if form is Format.json:
        collected = [render.collect(run) for run in found_runs]
        print(json.dumps(collected if len(collected) > 1 else collected[0], indent=1))
    elif form is Format.html:
        for run in found_runs:
            print(next(path for path in render.write(run) if path.suffix == ".html"))
    else:
        print(render.text(found_runs[0]) if len(found_runs) == 1 else render.compare(found_runs))


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures.")],
    run: Annotated[Path, typer.Option("--run", metavar="RUN", help="A run directory.")] = LATEST,
) -> None:
    """Label pictures with the exported student; torch is not needed."""
    from edgedistill.predict import predict as label
    from edgedistill.run.directory import find_run

    for prediction in label(find_run(run), images):
        print(f"{prediction.path}  {prediction.label}  {100 * prediction.probability:.1f} %")


@app.command()
def devices(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Devices in the inventory; default: all.")
    ] = None,
    inventory: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An inventory; default: deploy/devices.yaml.")
    ] = None,
    form: Annotated[Listing, typer.Option("--format", help="text or json.")] = Listing.text,
) -> None:
    """Probe the devices: reachability, runtimes, power mode, memory, what is missing; exit 1 if one is unusable."""
    from edgedistill.devices import inventory as inventories
    from edgedistill.devices import survey

    entries = inventories.load(inventory or inventories.path_for(None, Path()))
    chosen = [inventories.find(entries, name) for name in dict.fromkeys(names or entries)]
    probed = survey.survey(chosen)
    if form is Listing.json:
        print(json.dumps(survey.as_json(probed), indent=1))
    else:
        print(survey.table(probed, why=bool(names)))
    if not all(status.usable for status in probed):
        raise typer.Exit(1)


def _run_pipeline(
    recipe_path: Path, sets: list[str] | None, runs: Path, next_steps: Callable[[Context], Sequence[Step]]
) -> None:
    """Train, run `next_steps`, and print the report; of several processes (torchrun) the leader does so."""
    from edgedistill import session
    from edgedistill.steps import workers

    with workers.lead_or_serve() as leads:
        if leads:
            document, recipe = _load(recipe_path, sets)
            context = session.train(document, recipe, runs)
            session.finish(context, next_steps)
            _show(context.run.path)


def _load(path: Path, sets: list[str] | None) -> tuple[Document, Recipe]:
    from edgedistill import check as checks
    from edgedistill.recipe.file import read_recipe

    document = read_recipe(path, sets or [])
    return document, checks.load(document)


def _show(path: Path) -> None:
    from edgedistill.report import render
    from edgedistill.run.directory import Run

    print(render.text(Run(path=path)))


def main() -> None:
    """Run the command line: an error is one line on stderr and an exit code, a traceback only with --debug."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot encode is no error
    try:
        app()
    except SystemExit as stop:
        if stop.code == 130:  # typer exits with it on Ctrl-C, without a message
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
