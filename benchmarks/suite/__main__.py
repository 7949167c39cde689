"""The evaluation suite: every method compared on every target, above all weighting by similarity.

    python -m benchmarks.suite run --packs DIR [--profile cpu] [--targets A B] [--methods M N] [--seeds 0 1]
    python -m benchmarks.suite cell --packs DIR --target cifar10 --method weighted --seed 0
    python -m benchmarks.suite table [--check]

`run` appends one line a run to benchmarks/results/suite_<profile>_<hardware>_<yyyymm>.jsonl and continues where it was
stopped; `cell` runs one cell again and compares it with its line; `table` makes tables and plots from the lines alone.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.lines import run_program
from benchmarks.suite import table
from benchmarks.suite.protocol import Profile, load
from edgedistill.errors import InputError
from edgedistill.recipe.options import did_you_mean


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("run", "cell"):
        command = verbs.add_parser(verb)
        command.add_argument(
            "--packs", type=Path, required=True, help="directory of packs: NAME/train.parquet, test.parquet"
        )
        command.add_argument("--profile", default="cpu", help="benchmarks/suite/PROFILE.yaml")
        command.add_argument("--runs", type=Path, default=Path("runs/bank"), help="directory of weights and outputs")
    run_command = verbs.choices["run"]
    run_command.add_argument("--targets", nargs="+", help="packs; default: the profile's eight targets")
    run_command.add_argument("--methods", nargs="+", help="default: the profile's methods")
    run_command.add_argument("--seeds", nargs="+", type=int, default=list(range(6)))
    run_command.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    run_command.add_argument("--minutes", type=float, default=float("inf"), help="begin no cell after so many minutes")
    cell_command = verbs.choices["cell"]
    cell_command.add_argument("--target", required=True)
    cell_command.add_argument("--method", required=True)
    cell_command.add_argument("--seed", type=int, required=True)
    verbs.add_parser("table").add_argument("--check", action="store_true", help="exit 1 where a page is not current")
    return parser.parse_args(argv)


def check_options(profile: Profile, methods: Sequence[str], numbers: Sequence[int]) -> None:
    """Raise InputError for a method that the profile does not have, or a negative number, before any work starts."""
    for name in methods:
        if name not in profile.methods:
            raise InputError(f"no method is called {name}{did_you_mean(name, profile.methods)}")
    if min(numbers) < 0:
        raise InputError("--seeds must be 0 or more, and --processes 1 or more")


def main(argv: list[str] | None = None) -> int:
    """Run a verb; returns the exit status."""
    options = arguments(argv)
    if options.verb == "table":
        return table.main(options.check)
    from benchmarks.suite import runner
    from benchmarks.suite.bank import Bank

    bank = Bank(packs=options.packs, runs=options.runs, profile=load(options.profile))
    profile = bank.profile
    if options.verb == "cell":
        check_options(profile, [options.method.partition(":")[0]], [options.seed])
        bank.check_packs([options.target])
        return runner.rerun(bank, options.target, options.method, options.seed)
    targets = tuple(options.targets or profile.targets)
    methods = tuple(options.methods or [name for name in profile.methods if name != "single"])
    check_options(profile, methods, [*options.seeds, options.processes - 1])
    bank.check_packs(targets)
    selection = runner.Selection(targets=targets, methods=methods, seeds=tuple(options.seeds))
    runner.prepare(bank, selection, options.processes)
    runner.run(bank, selection, options.processes, options.minutes)
    return 0


if __name__ == "__main__":
    run_program(main)
