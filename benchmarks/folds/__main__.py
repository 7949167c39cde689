"""Is the accuracy over the folds that of the student that ships? Eight packs, 24 draws of few labels.

    python -m benchmarks.folds --packs DIR [--runs runs/bank] [--targets A B] [--draws 0 1] [--minutes 60]

Appends one line a cell to benchmarks/results/folds_<hardware>_<yyyymm>.jsonl and continues where it was stopped. The
sources and their outputs are those of the suite (benchmarks/suite/folds.yaml).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks.folds.cells import DRAWS, KIND, Cell, cells, line
from benchmarks.lines import append, read, run_program
from benchmarks.suite import runner
from benchmarks.suite.bank import Bank
from benchmarks.suite.protocol import load
from edgedistill.console import say


def key_of(written: dict[str, object], bank: Bank) -> tuple[object, ...]:
    """The identity of a line."""
    names = ("profile", "pack", "config", "version")
    return tuple(written.get(name) for name in ("question", "target", "draw", *names))


def main() -> int:
    """Run every cell that has no line yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--packs", type=Path, required=True, help="directory of packs: NAME/train.parquet, test.parquet"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/bank"), help="directory of weights and outputs")
    parser.add_argument("--targets", nargs="+", help="default: the profile's eight targets")
    parser.add_argument("--draws", nargs="+", type=int, default=list(range(DRAWS)))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no cell after so many minutes")
    options = parser.parse_args()
    bank = Bank(packs=options.packs, runs=options.runs, profile=load(KIND))
    targets = tuple(options.targets or bank.profile.targets)
    bank.check_packs(targets)
    runner.use_one_thread()
    finished = {key_of(written, bank) for written in read(KIND)}
    missing = [cell for cell in cells(targets) if cell.draw in options.draws and cell.key(bank) not in finished]
    say(f"{len(missing)} cells to run")
    deadline = time.time() + 60 * options.minutes
    for cell in missing:
        if time.time() > deadline:
            break
        _run(bank, cell)
    return 0


def _run(bank: Bank, cell: Cell) -> None:
    measured = line(bank, cell)
    path = append(KIND, measured)
    scores = ", ".join(
        f"{name} {measured[name]['balanced']:.3f}" for name in ("pooled", "ships", "holdout") if name in measured
    )
    say(f"{cell.question} {cell.target} draw {cell.draw}: {scores}; {measured['seconds']:.0f} s -> {path.name}")


if __name__ == "__main__":
    run_program(main)
