"""The search, replayed over the exhaustive table: the product's own code, with training replaced by a look-up.

The scores and costs of a candidate are in the table's lines; edgedistill.search.search decides which candidate is next,
which are pruned and which one wins. Random search gets the same seconds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, create_trial

from benchmarks.lines import read
from benchmarks.search.exhaustive import SPACE, config, settings
from edgedistill.recipe.file import read_recipe, validate_recipe
from edgedistill.recipe.schema import Recipe, Search
from edgedistill.records import StudentSpec
from edgedistill.search.search import Rungs, chosen, name_of, search
from edgedistill.students import space as students_space

REPEATS = 10
POLICIES: dict[str, dict[str, int]] = {
    "all, halved twice": {"trials": 24, "rungs": 2},
    "8 trials": {"trials": 8, "rungs": 0},
    "8 trials, halved twice": {"trials": 8, "rungs": 2},
}
DEFAULT = "8 trials"
CLASSES = {"cifar10": 10, "gtsrb": 43, "trash": 6, "neu_steel": 6}
Line = Mapping[str, Any]


@dataclass(kw_only=True)
class Column:
    """One pack and seed of the table; `spent`: the cost so far in seconds and millions of MACs x steps."""

    lines: dict[str, Line]
    spent: dict[str, float] = field(default_factory=lambda: {"seconds": 0.0, "macs": 0.0})

    def pay(self, line: Line, seconds: float, steps: int) -> None:
        """Add the cost of a training, or of the completed part of it."""
        self.spent["seconds"] += seconds
        self.spent["macs"] += line["macs_m"] * steps

    def train(self, spec: StudentSpec, seed: int, rungs: Rungs) -> tuple[float, dict[str, float]]:
        """Return what candidate.score would; a rung's exception ends the training and its cost."""
        line = self.lines[name_of(spec)]
        step, seconds = 0, 0.0
        try:
            for step in sorted(rungs):
                seconds = line["rung_seconds"][str(step)]
                rungs[step](line.get("agreement_rungs", line["rungs"])[str(step)])
            step, seconds = line["steps"], line["seconds"]
        finally:
            self.pay(line, seconds, step)
        return line["value"], {"seconds": seconds, **_facts(line)}

    def finish(self, winner: str) -> None:
        """Add the cost of the full distillation of the winner."""
        line = self.lines[winner]
        self.pay(line, line["full_seconds"], line["full_steps"])


def _facts(line: Line) -> dict[str, float]:
    """What a search records of a candidate; the agreement with the teacher where it was measured."""
    names = ("standard_error", "loss", "agreement", "agreement_error")
    return {name: line[name] for name in names if name in line}


def table_recipe() -> Recipe:
    """The recipe of the table."""
    recipe, problems = validate_recipe(read_recipe(SPACE))
    assert recipe is not None and not problems, problems
    return recipe


def columns() -> dict[tuple[str, int], dict[str, Line]]:
    """The table's lines by pack and seed, the newest of each student; columns with gaps are left out.

    The students' agreement with the teacher is added to columns in which all of them have it.
    """
    by_column: dict[tuple[str, int], dict[str, Line]] = {}
    agreements = {
        (line["pack"], line["seed"], line["student"], line["config"]): line for line in read("search-agreement")
    }
    for line in sorted(read("search-table"), key=lambda line: line["measured"]):
        if line["config"] == config(settings(Path(), line["pack"], line["seed"])):
            by_column.setdefault((line["pack"], line["seed"]), {})[line["student"]] = line
    students = max((len(column) for column in by_column.values()), default=0)
    complete = {key: column for key, column in sorted(by_column.items()) if len(column) == students}
    return {key: _with_agreement(column, agreements) for key, column in complete.items()}


def _with_agreement(column: dict[str, Line], agreements: Mapping[tuple[str, int, str, str], Line]) -> dict[str, Line]:
    lines = {name: agreements.get((line["pack"], line["seed"], name, line["config"])) for name, line in column.items()}
    names = ("agreement", "agreement_error", "agreement_rungs")
    if any(line is None for line in lines.values()):
        return column
    return {
        name: {**line, **{fact: added[fact] for fact in names}}
        for name, line in column.items()
        if (added := lines[name]) is not None
    }


def replay_search(column: Column, space: list[StudentSpec], recipe: Recipe, policy: str, repeat: int) -> str:
    """The name of the candidate that the search would choose."""
    search_settings = Search.model_validate({**recipe.search.model_dump(), **POLICIES[policy]})
    with tempfile.TemporaryDirectory() as folder:
        winner = search(space, recipe.student.budget, search_settings, column.train, seed=repeat, folder=Path(folder))
    return name_of(winner)


def random_brief(column: Column, seconds: float, draw: Sequence[int]) -> str:
    """Train candidates briefly, in random order, until the seconds are spent; choose by the rule of the search."""
    tried: dict[str, FrozenTrial] = {}
    for name in np.random.default_rng(draw).permutation(sorted(column.lines)):
        line = column.lines[str(name)]
        if tried and column.spent["seconds"] + line["seconds"] > seconds:
            break
        column.pay(line, line["seconds"], line["steps"])
        tried[str(name)] = create_trial(value=line["value"], user_attrs=_facts(line))
    return chosen(tried)


def random_full(column: Column, seconds: float, draw: Sequence[int]) -> str:
    """Train candidates in full, in random order, until the seconds are spent; choose the best on val."""
    tried: dict[str, FrozenTrial] = {}
    for name in np.random.default_rng(draw).permutation(sorted(column.lines)):
        line = column.lines[str(name)]
        if tried and column.spent["seconds"] + line["full_seconds"] > seconds:
            break
        column.pay(line, line["full_seconds"], line["full_steps"])
        tried[str(name)] = line["full_val"]
    return max(tried, key=lambda name: tried[name])


def replays(packs: Iterable[str] = tuple(CLASSES)) -> Iterator[dict[str, Any]]:
    """Yield a line for each pack, seed and policy: the winner and the cost of each repeat."""
    recipe = table_recipe()
    for (pack, seed), lines in columns().items():
        if pack not in packs:
            continue
        space = students_space.feasible(students_space.candidates(recipe.student, CLASSES[pack]), recipe.student.budget)
        assert {name_of(spec) for spec in space} == set(lines), "the table is of this space"
        seeds = [*pack.encode(), seed]
        identity = {"pack": pack, "seed": seed, "config": lines[name_of(space[0])]["config"]}
        for policy in POLICIES:
            repeats = [
                play_and_finish(lines, partial(replay_search, space=space, recipe=recipe, policy=policy, repeat=repeat))
                for repeat in range(REPEATS)
            ]
            yield {**identity, "policy": policy, "repeats": repeats}
            if policy == next(iter(POLICIES)):
                first_repeats = repeats
        # random search may spend what the first policy spent in the same repeat
        brief = [
            play_and_finish(
                lines, partial(random_brief, seconds=repeat["searched"]["seconds"], draw=[*seeds, 7, index])
            )
            for index, repeat in enumerate(first_repeats)
        ]
        full = [
            play(lines, partial(random_full, seconds=repeat["spent"]["seconds"], draw=[*seeds, 8, index]))
            for index, repeat in enumerate(first_repeats)
        ]
        yield {**identity, "policy": "random, briefly", "repeats": brief}
        yield {**identity, "policy": "random, in full", "repeats": full}


def play(lines: dict[str, Line], choose: Callable[[Column], str]) -> dict[str, Any]:
    """Run a policy on a new column; returns its winner and the cost."""
    column = Column(lines=lines)
    return {"winner": choose(column), "spent": rounded(column.spent)}


def play_and_finish(lines: dict[str, Line], choose: Callable[[Column], str]) -> dict[str, Any]:
    """Run a policy as `play` does, then train the winner in full."""
    column = Column(lines=lines)
    winner = choose(column)
    searched = rounded(column.spent)
    column.finish(winner)
    return {"winner": winner, "searched": searched, "spent": rounded(column.spent)}


def rounded(spent: Mapping[str, float]) -> dict[str, float]:
    """The cost, rounded to two digits for a line."""
    return {name: round(amount, 2) for name, amount in spent.items()}
