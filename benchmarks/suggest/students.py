"""The distilled student of suggested labels against that of random ones, at 5 labels a class on average.

The labels are those of the teacher's track. Both students have the same total of labels, the same steps and the same
initial weights; neither is told the shares of the classes. They are scored on the pack's test set. The sources are the
four of the profile `folds`, which need no training.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from benchmarks.suggest import draws
from benchmarks.suggest.draws import PER_CLASS
from benchmarks.suite import cells
from benchmarks.suite.bank import Bank
from benchmarks.suite.draws import Draw
from edgedistill.data.splits import Splits
from edgedistill.errors import InputError
from edgedistill.labels.suggestions import DEFAULT
from edgedistill.records import SourceWeight, SourceWeights
from edgedistill.run.files import digest

KIND, PROFILE, METHOD = "suggest-students", "folds", "auto"
BUDGET = PER_CLASS.index(5)


@dataclass(frozen=True, kw_only=True, eq=False)
class ChosenLabels(Draw):
    """A target whose labeled images are stated.

    Attributes:
        rows: of train, int64 [L].
    """

    rows: np.ndarray

    @cached_property
    def splits(self) -> Splits:
        """The splits of the pack with these labels; every other image has none."""
        every, truth = self.bank.splits(self.target, 0), self.bank.truth(self.target)
        rows = np.sort(self.rows)
        return replace(
            every,
            labeled_rows=rows,
            labeled_labels=truth[rows],
            val_rows=rows[:0],
            val_labels=truth[rows[:0]],
            unlabeled_rows=np.setdiff1d(np.flatnonzero(truth >= 0), rows),
        )

    @cached_property
    def weights(self) -> SourceWeights:
        """The source weights; equal ones where fewer than two classes have two labels, which no metric can score."""
        try:
            return super().weights
        except InputError:
            names = self.bank.sources_for(self.target)
            equal = tuple(SourceWeight(name=name, weight=1 / len(names), scores={}) for name in names)
            chosen = self.bank.profile.weigh
            return SourceWeights(
                metric=chosen.metric.name, probe_images=len(self.rows), power=chosen.power, sources=equal
            )


def config(bank: Bank) -> str:
    """What lines depend on besides target and seed."""
    return digest([draws.config(), bank.profile.config(METHOD)])[:12]


def measure(bank: Bank, target: str, seed: int) -> dict[str, Any]:
    """The line of one target and draw: the accuracy of both students on the pack's test set."""
    started = time.monotonic()
    pool = draws.Draw(bank=bank, target=target, seed=seed)
    classes = int(pool.labels_M.max()) + 1
    budgets = [classes * per_class for per_class in PER_CLASS[: BUDGET + 1]]
    picked = {"random": np.arange(budgets[-1]), DEFAULT: pool.batches(DEFAULT, budgets)[-1]}
    scores = {}
    for way, picks in picked.items():
        chosen = ChosenLabels(bank=bank, target=target, seed=seed, rows=pool.order[picks])
        scores[way] = cells.run_cell(chosen, METHOD)
    return {
        "target": target,
        "seed": seed,
        "per_class": PER_CLASS[BUDGET],
        "labels": budgets[-1],
        "top1": {way: round(100 * line["top1"], 3) for way, line in scores.items()},
        "balanced": {way: round(100 * line["balanced_accuracy"], 3) for way, line in scores.items()},
        "n_test": scores["random"]["n_test"],
        "seconds": round(time.monotonic() - started, 1),
        "config": config(bank),
    }
