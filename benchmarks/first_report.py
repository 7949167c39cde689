"""From an empty folder with nothing but pictures to the first report: seconds and decisions.

    python -m benchmarks.first_report [--per-class 30] [--unlabeled 400] [--minutes 10]

The pictures are those of the quickstart, solar cells of the package elpv-dataset, as a newcomer would have them: a
folder for each of two classes, and one with pictures without a label. `edgedistill run photos` runs there as it is;
every folder is new, so nothing is cached. A decision is what somebody has to choose: an argument, an option, a line of
a file.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.lines import append, read, run_program
from edgedistill.data import datasets
from edgedistill.recipe.data_section import Data
from edgedistill.report import render
from edgedistill.run.directory import find_run

KIND = "first-report"
NAMES = ("fine", "defective")


def photos(folder: Path, per_class: int, unlabeled: int) -> None:
    """Write pictures with a label into a folder for each class, and others into `unlabeled`."""
    listing = datasets.listing(Data.model_validate({"kind": "elpv"}), Path())
    rows_by_class = {label: (listing.train.labels_N == label).nonzero()[0] for label in range(len(NAMES))}
    places = {row: NAMES[label] for label, rows in rows_by_class.items() for row in rows[:per_class]}
    rest = [row for label in rows_by_class for row in rows_by_class[label][per_class:]]
    places |= dict.fromkeys(sorted(rest)[:unlabeled], "unlabeled")
    for row, place in places.items():
        (folder / place).mkdir(parents=True, exist_ok=True)
        with listing.train.load(row) as image:
            image.save(folder / place / f"{row:04d}.png")


def measure(per_class: int, unlabeled: int, minutes: float | None) -> dict[str, Any]:
    """Run the command in a new folder; the line."""
    with tempfile.TemporaryDirectory(prefix="edgedistill-") as name:
        folder = Path(name)
        photos(folder / "photos", per_class, unlabeled)
        options = ["--minutes", f"{minutes:g}"] if minutes else []
        command = [str(Path(sys.executable).parent / "edgedistill"), "run", "photos", *options]
        started = time.monotonic()
        completed = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - started
        if completed.returncode:
            raise SystemExit(completed.stderr)
        predicted = next(line for line in completed.stderr.splitlines() if line.startswith("cost "))
        run = find_run(folder / "runs/latest")
        content = render.collect(run)
        steps = {step: entry["seconds"] for step, entry in run.manifest()["steps"].items()}
        shutil.rmtree(folder / "runs")
    return {
        "per_class": per_class,
        "unlabeled": unlabeled,
        "minutes": minutes,
        "decisions": len(command) - 2,
        "seconds": round(seconds, 1),
        "predicted": predicted.removeprefix("cost").strip(),
        "steps": {step: round(taken, 1) for step, taken in steps.items()},
        "summary": content["summary"],
    }


def table(lines: list[dict[str, Any]]) -> str:
    """The newest line in two sentences."""
    if not lines:
        return "No line yet."
    line = lines[-1]
    labels = line["per_class"] * len(NAMES)
    return (
        f"`edgedistill run photos` in a folder with {labels} labeled and {line['unlabeled']} unlabeled pictures: "
        f"{line['decisions']} decision, {line['seconds'] / 60:.1f} minutes to the first report on {line['cores']} "
        f"cores ({line['cpu']}); it had announced: {line['predicted']}. {line['summary']}"
    )


def main() -> int:
    """Append a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-class", type=int, default=30, help="labels of each of the two classes")
    parser.add_argument("--unlabeled", type=int, default=400, help="pictures without a label")
    parser.add_argument("--minutes", type=float, help="as of the command")
    options = parser.parse_args()
    append(KIND, measure(options.per_class, options.unlabeled, options.minutes))
    print(table(list(read(KIND))))
    return 0


if __name__ == "__main__":
    run_program(main)
