"""The search compared with the exhaustive table: the regret of its choices, and its cost.

    python -m benchmarks.search fill --packs DIR [--names cifar10 gtsrb trash] [--seeds 0 1 2]
    python -m benchmarks.search agree --packs DIR [--names ...] [--seeds ...]
    python -m benchmarks.search replay [--names ...]
    python -m benchmarks.search real --packs DIR --name gtsrb --seed 0

`fill` trains every feasible student briefly and in full, one line each, and continues where it was stopped; `agree`
trains them briefly again, for their agreement with the teacher; `replay` runs the search over those lines; `real` runs
one search with real trainings and compares its winner with the replay's.
Tables: python -m benchmarks.tables.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.lines import append, run_program
from benchmarks.search import exhaustive, replay
from edgedistill.console import say
from edgedistill.errors import InputError
from edgedistill.search.search import name_of, search
from edgedistill.steps import candidate


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("fill", "agree", "real"):
        command = verbs.add_parser(verb)
        command.add_argument(
            "--packs", type=Path, required=True, help="directory of packs: NAME/train.parquet, test.parquet"
        )
        command.add_argument("--runs", type=Path, default=Path("runs/space"), help="directory of the sources' outputs")
    for verb in ("fill", "agree"):
        verbs.choices[verb].add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
        verbs.choices[verb].add_argument("--processes", type=int, default=os.cpu_count() or 1)
    verbs.choices["real"].add_argument("--name", default="gtsrb", choices=exhaustive.LABELS)
    verbs.choices["real"].add_argument("--seed", type=int, default=0)
    verbs.add_parser("replay")
    for verb in ("fill", "agree", "replay"):
        verbs.choices[verb].add_argument(
            "--names", nargs="+", default=list(exhaustive.LABELS), choices=exhaustive.LABELS
        )
    return parser.parse_args(argv)


def real(packs: Path, runs: Path, pack: str, seed: int) -> int:
    """Run one search with real trainings; returns 1 where it chooses another student than its replay."""
    exhaustive.use_one_thread()
    lines = replay.columns().get((pack, seed))
    if lines is None:
        raise InputError(f"the table has no complete column of {pack}, seed {seed}", "fill it first")
    context, recipe = exhaustive.context_of(packs, runs, pack, seed), replay.table_recipe()
    settings = recipe.search.model_copy(update=replay.POLICIES[replay.DEFAULT])
    with tempfile.TemporaryDirectory() as folder:
        winner = search(
            context.candidates,
            recipe.student.budget,
            settings,
            partial(candidate.score, context),
            seed=seed,
            folder=Path(folder),
        )
    space = [spec for spec in context.candidates if name_of(spec) in lines]
    column = replay.Column(lines=lines)
    replayed = replay.replay_search(column, space, recipe=recipe, policy=replay.DEFAULT, repeat=seed)
    say(f"{pack}, seed {seed}: the search chose {name_of(winner)}, its replay {replayed}")
    append("search-real", {"pack": pack, "seed": seed, "winner": name_of(winner), "replayed": replayed})
    return int(name_of(winner) != replayed)


def main(argv: list[str] | None = None) -> int:
    """Run a verb; returns the exit status."""
    options = arguments(argv)
    if options.verb in {"fill", "agree"}:
        work = exhaustive.fill if options.verb == "fill" else exhaustive.agree
        work(options.packs, options.runs, names=options.names, seeds=options.seeds, processes=options.processes)
    elif options.verb == "real":
        return real(options.packs, options.runs, options.name, options.seed)
    else:
        for line in replay.replays(options.names):
            append("search-replay", line)
            say(f"{line['pack']}, seed {line['seed']}: {line['policy']}")
    return 0


if __name__ == "__main__":
    run_program(main)
