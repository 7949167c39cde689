"""The commands that look at pictures and at source models, or label pictures, and train nothing."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from edgedistill.commands.options import LATEST, Answers, Listing, Root
from edgedistill.errors import InputError

app = typer.Typer()


@app.command()
def audit(
    path: Annotated[Path, typer.Argument(metavar="RECIPE|FOLDER", help="A recipe, or a folder of pictures.")],
    runs: Root = Path("runs"),
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the page is written; default: runs/audit-<name>.")
    ] = None,
    sources: Annotated[
        bool, typer.Option("--sources", help="Compute the features of all images by the recipe's sources first.")
    ] = False,
) -> None:
    """Look for copies, doubtful labels and broken images in a data set; write a page that shows them."""
    from edgedistill import check
    from edgedistill.audit.collect import collect
    from edgedistill.collection.subject import of_folder, of_recipe
    from edgedistill.recipe.file import read_recipe
    from edgedistill.report import audit as page
    from edgedistill.run.directory import CACHE, require_usable_root
    from edgedistill.run.files import usable_folder

    require_usable_root(runs)
    if path.is_dir():
        subject = of_folder(path)
    else:
        document = read_recipe(path, [])
        subject = of_recipe(path, check.load(document), document.base, runs)
    folder = usable_folder(out or runs / f"audit-{subject.name}")
    record, store = collect(subject, runs / CACHE, compute_sources=sources)
    page_path = page.write(record, store.images_NHWC, folder)
    print(f"{page.text(record)}\nPage: {page_path}")


@app.command()
def suggest(
    path: Annotated[
        Path, typer.Argument(metavar="FOLDER|RECIPE|RUN", help="A folder of pictures, a recipe or a run directory.")
    ],
    n: Annotated[int, typer.Option("--n", min=1, help="How many pictures.")] = 50,
    answers: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="First take the labels of this file: a suggestions.csv with some filled in, or Label Studio's export.",
        ),
    ] = None,
    strategy: Annotated[str, typer.Option(help="herding, typical, coreset or random.")] = "herding",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random draws.")] = 0,
    runs: Root = Path("runs"),
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the list is written; default: runs/suggest-<name>.")
    ] = None,
    tasks: Annotated[bool, typer.Option("--label-studio", help="Also write tasks for Label Studio.")] = False,
) -> None:
    """Suggest which pictures to label next: a list and a contact sheet, with the reason for each."""
    from edgedistill.labeling import label_studio
    from edgedistill.labeling import suggest as suggestions
    from edgedistill.report import suggest as page
    from edgedistill.run.directory import require_usable_root
    from edgedistill.run.files import usable_folder

    require_usable_root(runs)
    subject = suggestions.subject_of(path, runs)
    folder = usable_folder(out or runs / f"suggest-{subject.name}")
    if answers is not None:
        print(f"{suggestions.answer(subject, answers)} labels taken from {answers}", file=sys.stderr)
    suggestions.refuse_loss(subject, folder / page.TABLE)
    outcome = suggestions.of_subject(subject, n, runs=runs, strategy=strategy, seed=seed)
    sheet = page.write(outcome.record, outcome.store.images_NHWC, folder)
    print(f"{page.text(outcome.record)}\nList: {folder / page.TABLE}\nSheet: {sheet}")
    if tasks:
        print(f"Label Studio: {label_studio.write(outcome.record, folder)}")


@app.command()
def annotate(
    path: Annotated[
        Path, typer.Argument(metavar="FOLDER|RECIPE|RUN", help="A folder of pictures, a recipe or a run directory.")
    ],
    n: Annotated[int, typer.Option("--n", min=1, help="How many pictures.")] = 50,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0 takes a free one.")] = 0,
    runs: Root = Path("runs"),
) -> None:
    """Label suggested pictures by keys, on a page that this machine alone can open; writes labels.csv."""
    require_annotate()
    from edgedistill.annotate import serve
    from edgedistill.annotate.batch import batch as prepared
    from edgedistill.run.directory import require_usable_root

    require_usable_root(runs)
    batch = prepared(path, n, runs)
    before = batch.answers.current()
    for note in batch.notes:
        print(f"note: {note}", file=sys.stderr)

    def ready(link: str, _: object) -> None:
        print(f"{len(batch.queue)} pictures to label; each answer is saved in {batch.answers.file}")
        print(f"Open {link}\nEnd: the button on the page, or Ctrl-C", flush=True)

    try:
        serve.serve(batch, port, ready)
    finally:
        after = batch.answers.current()
        changed = sum(after[name] != before.get(name) for name in after if after[name].how)
        print(
            f"{changed} pictures labeled; {sum(bool(label.name) for label in after.values())} have a label", flush=True
        )


def require_annotate() -> None:
    """Refuse to go on without the packages of the extra `annotate`.

    Raises:
        InputError: one of them is missing.
    """
    for package in ("starlette", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise InputError(f"annotate: {package} is not installed", "pip install 'edgedistill[annotate]'")


@app.command()
def sources(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Names or ids in the catalog; default: all.")
    ] = None,
    form: Annotated[Listing, typer.Option("--format", help="text or json.")] = Listing.text,
) -> None:
    """List the catalog of source models: domain, size, license, and whether the weights are here."""
    from edgedistill.sources import catalog

    models = catalog.listed([catalog.find(name) for name in names] if names else catalog.ENTRIES)
    if form is Listing.json:
        print(json.dumps(catalog.as_json(models), indent=1))
    else:
        print(catalog.table(models))


@app.command()
def predict(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="Pictures, folders, patterns in quotes, or - for a list of paths."),
    ],
    run: Annotated[Path, typer.Option("--run", metavar="RUN", help="A run directory, or a bundle.")] = LATEST,
    top: Annotated[int, typer.Option("--top", min=1, help="How many classes to name for each picture.")] = 1,
    form: Annotated[Answers, typer.Option("--format", help="text, csv, json or jsonl.")] = Answers.text,
) -> None:
    """Label pictures with the exported student, or say "unknown"; torch is not needed."""
    from edgedistill.console import bar, say
    from edgedistill.predict import listing, output, student

    labeler = student.load(run)
    paths = listing.from_lines(sys.stdin) if images == [listing.STDIN] else listing.listed(images)
    unreadable = 0
    with bar("predict", len(paths) if isinstance(paths, list) else None) as advance:

        def answered() -> Iterator[student.Prediction]:
            nonlocal unreadable
            for answer in labeler.stream(paths):
                advance(1)
                if isinstance(answer, student.Prediction):
                    yield answer
                else:
                    unreadable += 1
                    say(str(answer))

        for line in output.WRITERS[form.value](answered(), min(top, len(labeler.classes))):
            print(line)
    if unreadable:
        raise InputError(f"{unreadable} of the pictures could not be read", "the others are done")
