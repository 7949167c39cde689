"""The command line: a short function per command; heavy modules are imported only by the commands that need them."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgedistill import __version__
from edgedistill.commands import data, environment, models
from edgedistill.commands.options import LATEST, Format, Listing, Overrides, RecipeFile, Root, RunPath
from edgedistill.draft import wished
from edgedistill.errors import EdgeDistillError
from edgedistill.run import interrupts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgedistill.recipe.file import Document
    from edgedistill.recipe.schema import Recipe
    from edgedistill.steps.context import Context
    from edgedistill.steps.step import Step

ABOUT = "Distill pretrained models into a small, measured int8 student, from few labels and many unlabeled images."
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, help=ABOUT)
app.add_typer(data.app)
app.add_typer(environment.app)
app.add_typer(models.app)


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
        raise InputError([line for problem in dict.fromkeys(problems) for line in f"{recipe}: {problem}".split("\n")])
    print(f"{recipe}: {checks.measured_by(loaded, document.base)}")
    print(f"{recipe}: ready to run")


@app.command()
def train(recipe: RecipeFile, sets: Overrides = None, runs: Root = Path("runs")) -> None:
    """Weigh the sources, search the student, distill it."""
    from edgedistill import pipeline

    _run_pipeline(partial(_load, recipe, sets), runs, pipeline.no_steps)


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE|DATA", help=f"A recipe, or {wished.DATA}")],
    sets: Overrides = None,
    runs: Root = Path("runs"),
    device: wished.Device = None,
    latency_ms: wished.Latency = None,
    labels_per_class: wished.Labels = None,
    sources: wished.Sources = None,
    minutes: wished.Minutes = None,
    download: wished.Download = False,
    any_license: wished.AnyLicense = False,
    yes: wished.Yes = False,
) -> None:
    """Run the whole pipeline: train, export, quantize, verify, bench, report. For data, draft their recipe first."""
    from edgedistill import pipeline
    from edgedistill.draft import recipe as drafts

    wishes = wished.wishes(
        device=device,
        latency_ms=latency_ms,
        labels_per_class=labels_per_class,
        sources=sources,
        minutes=minutes,
        download=download,
        any_license=any_license,
    )
    load = partial(drafts.load_or_draft, recipe, sets, runs, wishes=wishes, yes=yes)
    _run_pipeline(load, runs, pipeline.export_and_bench_steps)


@app.command()
def init(
    data: Annotated[str, typer.Argument(metavar="DATA", help=f"A{wished.DATA[1:]}")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where the recipe is written.")] = Path(
        "recipe.yaml"
    ),
    device: wished.Device = None,
    latency_ms: wished.Latency = None,
    labels_per_class: wished.Labels = None,
    sources: wished.Sources = None,
    minutes: wished.Minutes = None,
    download: wished.Download = False,
    any_license: wished.AnyLicense = False,
) -> None:
    """Look at data, and write a recipe for them with the reason of every choice."""
    from edgedistill.draft import recipe as drafts

    wishes = wished.wishes(
        device=device,
        latency_ms=latency_ms,
        labels_per_class=labels_per_class,
        sources=sources,
        minutes=minutes,
        download=download,
        any_license=any_license,
    )
    draft = drafts.first_recipe(data, wishes, base=out.absolute().parent)
    drafts.write(draft, out)
    print("\n".join([*draft.lines, f"recipe     {out}: edit it, then `edgedistill run {out}`"]))


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
    from edgedistill import session

    context = session.export(run, int8=int8, qat=qat)
    _show(context.run.path)


@app.command()
def bench(
    run: Annotated[
        Path, typer.Argument(metavar="RUN|MODEL.ONNX", help="A run directory, or a model of `edgedistill quantize`.")
    ] = LATEST,
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
    from edgedistill.imported import bench as imported

    choices = {name: names for name, names in (("devices", device), ("backends", backend)) if names}
    if imported.is_imported(run):
        settings = imported.settings({**session.bench_settings(sets or []), **choices})
        print(imported.bench_text(imported.bench(run, settings)))
        return
    context = session.reopen(run, {"bench": {**session.bench_settings(sets or []), **choices}})
    session.finish(context, pipeline.export_and_bench_steps, again=pipeline.bench_steps if again else pipeline.no_steps)
    _show(context.run.path)


@app.command()
def report(
    runs: Annotated[list[Path] | None, typer.Argument(metavar="[RUN]...", help="Run directories.")] = None,
    form: Annotated[Format, typer.Option("--format", help="text, json, or html.")] = Format.text,
    archive: Annotated[
        Path | None,
        typer.Option("--import", metavar="FILE", help="First add measurements that deploy/jetson/measure.sh packed."),
    ] = None,
) -> None:
    """Report the results of a run, or compare several runs."""
    from edgedistill.report import render
    from edgedistill.run.directory import find_run

    found_runs = [find_run(path) for path in runs or [LATEST]]
    if archive is not None:
        from edgedistill.devices.imported import import_reports
        from edgedistill.run import artifacts

        import_reports(archive, found_runs[0] / artifacts.BUNDLE, found_runs[0] / artifacts.BENCH)
    if form is Format.json:
        collected = [render.collect(run) for run in found_runs]
        print(json.dumps(collected if len(collected) > 1 else collected[0], indent=1))
    elif form is Format.html:
        for run in found_runs:
            print(next(path for path in render.write(run) if path.suffix == ".html"))
    else:
        print(render.text(found_runs[0]) if len(found_runs) == 1 else render.compare(found_runs))


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
    load: Callable[[], tuple[Document, Recipe]], runs: Path, next_steps: Callable[[Context], Sequence[Step]]
) -> None:
    """Train, run `next_steps`, and print the report; of several processes (torchrun) the leader does so."""
    from edgedistill import session
    from edgedistill.steps import workers

    with workers.lead_or_serve() as leads:
        if leads:
            context = session.run(*load(), runs, next_steps)
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
    """Run the command line: an error is one line on stderr and an exit code, a traceback only with --debug.

    A signal that ends it is one line, too, and the exit code is 128 and its number.
    """
    if os.environ.get("RANK", "0") == "0":
        handled = interrupts.handled(_farewell(sys.argv[1:]))
    else:
        # torchrun started several: this process writes nothing, and may wait for the leader in native code
        handled = interrupts.handled("", grace_s=0.0)
    with handled:
        _run_command()


def _run_command() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot encode is no error
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # the names of files are bytes, and may be no UTF-8
    try:
        app()
    except (EdgeDistillError, OSError) as error:
        if "--debug" in sys.argv or interrupts.exit_code():
            raise
        print(_line(error), file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
    except Exception as error:
        if "--debug" in sys.argv or interrupts.exit_code():
            raise
        where = "`edgedistill --debug COMMAND` shows where"
        print(f"edgedistill: unexpected {type(error).__name__}: {error}; {where}", file=sys.stderr)
        sys.exit(1)


def _farewell(arguments: Sequence[str]) -> str:
    """The line of a command that a signal ended."""
    verb = next((word for word in arguments if not word.startswith("-")), "")
    goes_on = verb in ("train", "run", "export", "bench", "annotate")
    return f"stopped; the same command {'goes on from here' if goes_on else 'can be run again'}"


def _line(error: Exception) -> str:
    if isinstance(error, EdgeDistillError):
        return str(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"{error.filename or 'disk'}: the disk is full; what was there before is intact; free some and run again"
    return str(error)
