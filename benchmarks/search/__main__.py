"""The search against the exhaustive table: does it find the best student within the budget, and at what cost?

    python -m benchmarks.search fill --packs DIR [--names cifar10 gtsrb trash] [--seeds 0 1 2]
    python -m benchmarks.search replay [--names ...]
    python -m benchmarks.search real --packs DIR --name gtsrb --seed 0

`fill` trains every feasible student briefly and in full, one line each, and goes on where it was stopped; `replay`
plays the search over those lines; `real` runs one search with nothing looked up, and says whether the replay told the
truth.
Tables: python -m benchmarks.tables.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.lines import append, to_the_end
from benchmarks.search import exhaustive, replay
from edgedistill.console import say
from edgedistill.errors import InputError
from edgedistill.search.search import name_of, search
from edgedistill.steps import candidate


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("fill", "real"):
        one = verbs.add_parser(verb)
        one.add_argument(
            "--packs", type=Path, required=True, help="directory of packs: NAME/train.parquet, test.parquet"
        )
        one.add_argument("--runs", type=Path, default=Path("runs/space"), help="where what the sources say is kept")
    verbs.choices["fill"].add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    verbs.choices["fill"].add_argument("--processes", type=int, default=os.cpu_count() or 1)
    verbs.choices["real"].add_argument("--name", default="gtsrb", choices=exhaustive.LABELS)
    verbs.choices["real"].add_argument("--seed", type=int, default=0)
    verbs.add_parser("replay")
    for verb in ("fill", "replay"):
        verbs.choices[verb].add_argument(
            "--names", nargs="+", default=list(exhaustive.LABELS), choices=exhaustive.LABELS
        )
    return parser.parse_args(given)


def real(packs: Path, runs: Path, pack: str, seed: int) -> int:
    """One search with real trainings; 1 where it chooses another student than its replay."""
    exhaustive.one_thread()
    lines = replay.columns().get((pack, seed))
    if lines is None:
        raise InputError(f"the table has no whole column of {pack}, seed {seed}", "fill it first")
    context, asked = exhaustive.context_of(packs, runs, pack, seed), replay.wanted()
    how = asked.search.model_copy(update=replay.POLICIES[replay.DEFAULT])
    with tempfile.TemporaryDirectory() as folder:
        winner = search(
            context.candidates,
            asked.student.budget,
            how,
            partial(candidate.score, context),
            seed=seed,
            folder=Path(folder),
        )
    space = [spec for spec in context.candidates if name_of(spec) in lines]
    told = replay.searched(replay.Column(lines=lines), space, asked=asked, policy=replay.DEFAULT, repeat=seed)
    say(f"{pack}, seed {seed}: the search chose {name_of(winner)}, its replay {told}")
    append("search-real", {"pack": pack, "seed": seed, "winner": name_of(winner), "replayed": told})
    return int(name_of(winner) != told)


def main(given: list[str] | None = None) -> int:
    """Run a verb; returns the exit status."""
    asked = arguments(given)
    if asked.verb == "fill":
        exhaustive.fill(asked.packs, asked.runs, names=asked.names, seeds=asked.seeds, processes=asked.processes)
    elif asked.verb == "real":
        return real(asked.packs, asked.runs, asked.name, asked.seed)
    else:
        for line in replay.replays(asked.names):
            append("search-replay", line)
            say(f"{line['pack']}, seed {line['seed']}: {line['policy']}")
    return 0


if __name__ == "__main__":
    to_the_end(main)
