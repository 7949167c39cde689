"""A student that may say "unknown": other packs as unknowns, accuracy at 90 % coverage, and what a threshold holds.

    python -m benchmarks.unknown --packs DIR [--runs runs/bank] [--targets A B] [--seeds 0 1] [--minutes M]

The students are those of the suite's profile cpu, trained as its `auto`, with the four sources that need no training.
For each target and seed five fold students and the student that ships are trained, and quantized for a CPU. Temperature
and threshold are fitted on the fold students' answers to the images that each was trained without, and matched on
images that train nothing. All figures are those of the int8 graph that ships. Unknowns are test images of the suite's
other packs, without classes whose name the target has, too.

Scores are compared on the suite's tuning packs, which are trained first. Answers stay in the runs directory, so that a
line can be computed again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lines import append, read, run_program
from benchmarks.suite.bank import Bank
from benchmarks.suite.draws import Draw
from benchmarks.suite.runner import use_one_thread
from benchmarks.unknown.figures import CHOSEN, figures
from benchmarks.unknown.students import METHOD, answers, profile
from benchmarks.unknown.table import KIND, SEEDS
from edgedistill.console import say
from edgedistill.run.artifacts import save_arrays
from edgedistill.run.files import digest


def identity(bank: Bank, target: str, seed: int) -> dict[str, Any]:
    """The fields that tell one cell from another."""
    return {
        "target": target,
        "seed": seed,
        "pack": digest(bank.pack_hashes(target))[:16],
        "config": bank.profile.config(METHOD),
    }


def measure(bank: Bank, target: str, seed: int) -> dict[str, Any]:
    """The line of one cell; students whose answers are kept are not trained again."""
    cell = identity(bank, target, seed)
    path = bank.runs / "unknown" / f"{target}-{seed}-{digest(cell)[:12]}.npz"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_arrays(path, **answers(Draw(bank=bank, target=target, seed=seed)))
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: np.asarray(archive[name]) for name in archive.files}
    return {**cell, "labels_per_class": bank.profile.labels(target), **figures(arrays)}


def run(bank: Bank, targets: Sequence[str], seeds: Sequence[int], minutes: float) -> None:
    """Measure every cell that has no line yet, a line each; no cell is begun after `minutes`."""
    use_one_thread()
    until = time.time() + 60 * minutes
    keys = ("target", "seed", "pack", "config")
    finished = {tuple(line[key] for key in keys) for line in read(KIND)}
    for seed, target in product(seeds, targets):
        if tuple(identity(bank, target, seed).values()) in finished or time.time() > until:
            continue
        started = time.time()
        line = measure(bank, target, seed)
        append(KIND, line)
        chosen = line["scores"][CHOSEN]
        area = np.mean(list(chosen["auroc"].values()))
        say(
            f"{target} seed {seed}: top-1 {line['top1']:.3f}, at 90 % {chosen['accuracy']:.3f}, AUROC {area:.3f}, "
            f"coverage {line['rules']['matched']['coverage']:.3f}, {time.time() - started:.0f} s"
        )


def main() -> int:
    """Measure; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--packs", type=Path, required=True, help="directory of packs: NAME/train.parquet, test.parquet"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/bank"), help="directory of weights and outputs")
    parser.add_argument("--targets", nargs="+", help="packs; default: the suite's tuning packs, then its targets")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no cell after so many minutes")
    options = parser.parse_args()
    bank = Bank(packs=options.packs, runs=options.runs, profile=profile())
    targets = options.targets or [*bank.profile.tuning, *bank.profile.targets]
    bank.check_packs([*targets, *bank.profile.targets])
    run(bank, targets, options.seeds, options.minutes)
    return 0


if __name__ == "__main__":
    run_program(main)
