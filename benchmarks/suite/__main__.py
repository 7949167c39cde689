"""The evaluation suite: does weighting by similarity win, and what wins over it?

    python -m benchmarks.suite run --packs DIR [--profile cpu] [--targets A B] [--methods M N] [--seeds 0 1]
    python -m benchmarks.suite cell --packs DIR --target cifar10 --method weighted --seed 0
    python -m benchmarks.suite table [--check]

`run` appends one line a run to benchmarks/results/suite_<hardware>_<yyyymm>.jsonl and goes on where it was stopped;
`cell` runs one again and says whether the number is the same; `table` makes tables and plots from the lines alone.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.lines import to_the_end
from benchmarks.suite import table
from benchmarks.suite.protocol import Profile, load
from edgedistill.errors import InputError
from edgedistill.recipe.options import did_you_mean


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("run", "cell"):
        one = verbs.add_parser(verb)
        one.add_argument(
            "--packs", type=Path, required=True, help="directory of packs: NAME/train.parquet, test.parquet"
        )
        one.add_argument("--profile", default="cpu", help="benchmarks/suite/PROFILE.yaml")
        one.add_argument("--runs", type=Path, default=Path("runs/bank"), help="where weights and outputs are kept")
    everything = verbs.choices["run"]
    everything.add_argument("--targets", nargs="+", help="packs; the profile's eight targets if left out")
    everything.add_argument("--methods", nargs="+", help="the profile's methods if left out")
    everything.add_argument("--seeds", nargs="+", type=int, default=list(range(6)))
    everything.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    everything.add_argument("--minutes", type=float, default=float("inf"), help="begin no cell after so many minutes")
    single = verbs.choices["cell"]
    single.add_argument("--target", required=True)
    single.add_argument("--method", required=True)
    single.add_argument("--seed", type=int, required=True)
    verbs.add_parser("table").add_argument("--check", action="store_true", help="exit 1 where a page is not current")
    return parser.parse_args(given)


def right(profile: Profile, methods: Sequence[str], numbers: Sequence[int]) -> None:
    """Raise InputError for a method that the profile lacks, or a negative number, before any work starts."""
    for name in methods:
        if name not in profile.methods:
            raise InputError(f"no method is called {name}{did_you_mean(name, profile.methods)}")
    if min(numbers) < 0:
        raise InputError("--seeds must be 0 or more, and --processes 1 or more")


def main(given: list[str] | None = None) -> int:
    """Run a verb; returns the exit status."""
    asked = arguments(given)
    if asked.verb == "table":
        return table.main(asked.check)
    from benchmarks.suite import runner
    from benchmarks.suite.bank import Bank

    bank = Bank(packs=asked.packs, runs=asked.runs, profile=load(asked.profile))
    profile = bank.profile
    if asked.verb == "cell":
        right(profile, [asked.method.partition(":")[0]], [asked.seed])
        bank.complete([asked.target])
        return runner.repeat(bank, asked.target, asked.method, asked.seed)
    targets = tuple(asked.targets or profile.targets)
    methods = tuple(asked.methods or [name for name in profile.methods if name != "single"])
    right(profile, methods, [*asked.seeds, asked.processes - 1])
    bank.complete(targets)
    runner.prepare(bank, targets, asked.processes)
    runner.run(
        bank, runner.Wanted(targets=targets, methods=methods, seeds=tuple(asked.seeds)), asked.processes, asked.minutes
    )
    return 0


if __name__ == "__main__":
    to_the_end(main)
