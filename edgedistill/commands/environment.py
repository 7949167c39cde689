"""The commands about edgedistill itself: what is here, and what a recipe may say."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from edgedistill.commands.options import Listing, Root

app = typer.Typer()
TEMPLATES = Path(__file__).resolve().parents[1] / "templates"


@app.command()
def doctor(
    runs: Root = Path("runs"),
    form: Annotated[Listing, typer.Option("--format", help="text or json.")] = Listing.text,
) -> None:
    """Say what is installed, reachable and free here, and what each missing thing costs."""
    from edgedistill import doctor as diagnosis

    findings = diagnosis.findings(runs)
    if form is Listing.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        print(diagnosis.as_text(findings))


@app.command()
def schema(
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="A file to write; default: the terminal.")
    ] = None,
) -> None:
    """Write the JSON schema of recipes, by which editors complete and check them."""
    from edgedistill.draft import json_schema
    from edgedistill.run.files import atomic

    text = json.dumps(json_schema.schema(), indent=1, ensure_ascii=False) + "\n"
    if out is None:
        print(text, end="")
        return
    with atomic(out) as temporary:
        temporary.write_text(text, encoding="utf-8")


@app.command()
def templates(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where they are written.")] = Path(),
) -> None:
    """Write the recipes and the inventory that come with edgedistill; files that are there stay as they are."""
    from edgedistill.run.files import atomic

    inventory = TEMPLATES / "devices.yaml"
    for source in [*sorted(TEMPLATES.glob("recipes/*.yaml")), *sorted(TEMPLATES.glob("recipes/*/*.yaml")), inventory]:
        name = Path("deploy/devices.yaml") if source == inventory else source.relative_to(TEMPLATES)
        target = out / name
        if target.exists():
            print(f"{target}: is there already")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic(target) as temporary:
            temporary.write_bytes(source.read_bytes())
        print(target)
