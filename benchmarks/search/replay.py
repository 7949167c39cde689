"""The search, played again over the exhaustive table: the product's own code, with training looked up.

What a candidate would have scored, and what it would have cost, stands in the table's lines; which candidate comes
next, who is left behind and who wins is decided by edgedistill.search.search. Random search gets the same seconds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import create_trial

from benchmarks.lines import read
from benchmarks.search.exhaustive import SPACE, config, settings
from edgedistill.recipe.file import read_recipe, validate_recipe
from edgedistill.recipe.schema import Recipe, Search
from edgedistill.records import StudentSpec
from edgedistill.search.search import Rungs, name_of, one_standard_error, search
from edgedistill.students import space as students_space

REPEATS = 10
POLICIES: dict[str, dict[str, int]] = {
    "all, halved twice": {"trials": 24, "rungs": 2},
    "8 trials": {"trials": 8, "rungs": 0},
    "8 trials, halved twice": {"trials": 8, "rungs": 2},
}
DEFAULT = "8 trials"
CLASSES = {"cifar10": 10, "gtsrb": 43, "trash": 6}
Line = Mapping[str, Any]


@dataclass(kw_only=True)
class Column:
    """One pack and seed of the table; `spent` is what was trained so far: seconds, and millions of MACs x steps."""

    lines: dict[str, Line]
    spent: dict[str, float] = field(default_factory=lambda: {"seconds": 0.0, "macs": 0.0})

    def pay(self, line: Line, seconds: float, steps: int) -> None:
        """Enter a training, or the part of it that was done."""
        self.spent["seconds"] += seconds
        self.spent["macs"] += line["macs_m"] * steps

    def train(self, spec: StudentSpec, seed: int, rungs: Rungs) -> tuple[float, dict[str, float]]:
        """What rehearsal.score would return; what a rung raises ends it, and is paid for up to there."""
        line = self.lines[name_of(spec)]
        at, seconds = 0, 0.0
        try:
            for at in sorted(rungs):
                seconds = line["rung_seconds"][str(at)]
                rungs[at](line["rungs"][str(at)])
            at, seconds = line["steps"], line["seconds"]
        finally:
            self.pay(line, seconds, at)
        return line["value"], {"standard_error": line["standard_error"], "loss": line["loss"], "seconds": seconds}

    def finish(self, winner: str) -> None:
        """Pay for the full distillation of the winner."""
        line = self.lines[winner]
        self.pay(line, line["full_seconds"], line["full_steps"])


def wanted() -> Recipe:
    """The recipe of the table."""
    found, problems = validate_recipe(read_recipe(SPACE))
    assert found is not None and not problems, problems
    return found


def columns() -> dict[tuple[str, int], dict[str, Line]]:
    """The table's lines by pack and seed, the newest of each student; columns with gaps are left out."""
    found: dict[tuple[str, int], dict[str, Line]] = {}
    for line in sorted(read("search-table"), key=lambda one: one["measured"]):
        if line["config"] == config(settings(Path(), line["pack"], line["seed"])):
            found.setdefault((line["pack"], line["seed"]), {})[line["student"]] = line
    whole = max((len(one) for one in found.values()), default=0)
    return {key: one for key, one in sorted(found.items()) if len(one) == whole}


def searched(column: Column, space: list[StudentSpec], asked: Recipe, policy: str, repeat: int) -> str:
    """Which candidate the search would choose."""
    how = Search.model_validate({**asked.search.model_dump(), **POLICIES[policy]})
    with tempfile.TemporaryDirectory() as folder:
        winner = search(space, asked.student.budget, how, column.train, seed=repeat, folder=Path(folder))
    return name_of(winner)


def random_short(column: Column, seconds: float, draw: Sequence[int]) -> str:
    """Candidates in a random order, trained briefly, until the seconds are spent; chosen as the search chooses."""
    tried = {}
    for name in np.random.default_rng(draw).permutation(sorted(column.lines)):
        line = column.lines[str(name)]
        if tried and column.spent["seconds"] + line["seconds"] > seconds:
            break
        column.pay(line, line["seconds"], line["steps"])
        facts = {"standard_error": line["standard_error"], "loss": line["loss"]}
        tried[str(name)] = create_trial(value=line["value"], user_attrs=facts)
    return one_standard_error(tried)


def random_full(column: Column, seconds: float, draw: Sequence[int]) -> str:
    """Candidates in a random order, trained in full, until the seconds are spent; the best on val is taken."""
    tried: dict[str, float] = {}
    for name in np.random.default_rng(draw).permutation(sorted(column.lines)):
        line = column.lines[str(name)]
        if tried and column.spent["seconds"] + line["full_seconds"] > seconds:
            break
        column.pay(line, line["full_seconds"], line["full_steps"])
        tried[str(name)] = line["full_val"]
    return max(tried, key=lambda name: tried[name])


def replays(packs: Iterable[str] = tuple(CLASSES)) -> Iterator[dict[str, Any]]:
    """A line for each pack, seed and policy: what was chosen and spent in each of the repeats."""
    asked = wanted()
    for (pack, seed), lines in columns().items():
        if pack not in packs:
            continue
        space = students_space.feasible(students_space.candidates(asked.student, CLASSES[pack]), asked.student.budget)
        assert {name_of(spec) for spec in space} == set(lines), "the table is of this space"
        place = [*pack.encode(), seed]
        mark = {"pack": pack, "seed": seed, "config": lines[name_of(space[0])]["config"]}
        for policy in POLICIES:
            found = [
                finished(lines, partial(searched, space=space, asked=asked, policy=policy, repeat=repeat))
                for repeat in range(REPEATS)
            ]
            yield {**mark, "policy": policy, "repeats": found}
            if policy == next(iter(POLICIES)):
                first = found
        # what the first policy spent in the same repeat, random search may spend, too
        short = [
            finished(lines, partial(random_short, seconds=one["searched"]["seconds"], draw=[*place, 7, at]))
            for at, one in enumerate(first)
        ]
        full = [
            played(lines, partial(random_full, seconds=one["spent"]["seconds"], draw=[*place, 8, at]))
            for at, one in enumerate(first)
        ]
        yield {**mark, "policy": "random, briefly", "repeats": short}
        yield {**mark, "policy": "random, in full", "repeats": full}


def played(lines: dict[str, Line], choose: Callable[[Column], str]) -> dict[str, Any]:
    """Who wins, and what was spent on the way."""
    column = Column(lines=lines)
    return {"winner": choose(column), "spent": rounded(column.spent)}


def finished(lines: dict[str, Line], choose: Callable[[Column], str]) -> dict[str, Any]:
    """As `played`, and the winner is then trained in full."""
    column = Column(lines=lines)
    winner = choose(column)
    searched = rounded(column.spent)
    column.finish(winner)
    return {"winner": winner, "searched": searched, "spent": rounded(column.spent)}


def rounded(spent: Mapping[str, float]) -> dict[str, float]:
    """For a line."""
    return {name: round(value, 2) for name, value in spent.items()}
