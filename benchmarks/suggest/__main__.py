"""Suggested labels against random ones, by the teacher alone: `stacked` on cached features, the same total of labels.

    python -m benchmarks.suggest --packs DIR --runs DIR [--seeds 24]

A line is one target and one draw. Random labels are drawn uniformly from the pool, so classes may be missing. Suggested
ones come in three batches, as a user gets them: cold at 2 labels a class on average, then at 5 and 10 with the teacher
of the batch before; a fifth of each batch is drawn at random. The teacher is scored on the pictures of the pool without
a label. The source is an ImageNet net that is installed without a network; the default strategy and its constants were
chosen on the tuning packs.

    python -m benchmarks.suggest --students --packs DIR --runs DIR [--seeds 24]

distills a student from the random labels and from the suggested ones at 5 a class, and scores both on the pack's test
set; the sources are the four of the profile `folds`.

    python -m benchmarks.suggest --many 1000000

measures seconds and memory on that many made-up rows of features.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks.lines import append, read, run_program
from benchmarks.suggest import draws, many, students
from benchmarks.suite import protocol, runner
from benchmarks.suite.bank import Bank
from edgedistill.console import say

SEEDS = 24


def main() -> int:
    """Measure what has no line yet, seed by seed; or many rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packs", type=Path, help="directory of packs: NAME/train.parquet, test.parquet")
    parser.add_argument("--runs", type=Path, help="directory of the bank's outputs")
    parser.add_argument("--targets", nargs="+")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no draw after so many minutes")
    parser.add_argument("--students", action="store_true", help="distill a student from the labels of each way")
    parser.add_argument("--many", type=int, help="measure seconds and memory on so many made-up rows")
    options = parser.parse_args()
    if options.many:
        print(append(many.KIND, many.measure(options.many)))
        return 0
    if options.packs is None or options.runs is None:
        parser.error("--packs and --runs are needed")
    kind, profile = (students.KIND, students.PROFILE) if options.students else (draws.KIND, "cpu")
    bank = Bank(packs=options.packs, runs=options.runs, profile=protocol.load(profile))
    config = students.config(bank) if options.students else draws.config()
    runner.use_one_thread()
    deadline = time.time() + 60 * options.minutes
    finished = {(line["target"], line["seed"]) for line in read(kind) if line["config"] == config}
    for seed in range(options.seeds):
        for target in options.targets or bank.profile.targets:
            if (target, seed) in finished or time.time() > deadline:
                continue
            if options.students:
                line = students.measure(bank, target, seed)
            else:
                line = draws.measure(draws.Draw(bank=bank, target=target, seed=seed))
            append(kind, line)
            say(f"{target} {seed}: {line['top1']}")
    return 0


if __name__ == "__main__":
    run_program(main)
