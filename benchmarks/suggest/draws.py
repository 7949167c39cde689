"""One draw: the labels of every way on cached features, and what a teacher of them is worth."""

# ruff: noqa: N802 - a property carries its shape suffix like every other array

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from benchmarks.suite.bank import Bank
from edgedistill.agent import metrics
from edgedistill.distill.more_labels import NEXT, worth
from edgedistill.distill.teachers import stacked
from edgedistill.labeling.pool import DIMS
from edgedistill.labels.draws import UNLABELED, keyed_hashes
from edgedistill.labels.suggestions import DEFAULT, EVERY, SIGMA, Pool, joint_features, suggested
from edgedistill.run.files import digest
from edgedistill.similarity.chance import OFF

KIND = "suggest"
SOURCES = ("imagenet-lite0",)
PER_CLASS = (2, 5, 10)
MORE = 20  # labels a class of random draws alone, for the labels that are saved
# name -> strategy, share drawn at random, whether later batches see the teacher
WAYS = {
    DEFAULT: (DEFAULT, EVERY, True),
    "herding, nothing at random": (DEFAULT, 0, True),
    "herding, in one batch": (DEFAULT, EVERY, False),
    "typical": ("typical", EVERY, True),
    "coreset": ("coreset", EVERY, True),
}


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The pool of a target in the order of one seed."""

    bank: Bank
    target: str
    seed: int

    @cached_property
    def order(self) -> np.ndarray:
        """Rows of the train images with a label, sorted by keyed hashes; those that are also in test have none."""
        rows = np.flatnonzero(self.bank.truth(self.target) >= 0)
        hashes = self.bank.splits(self.target, 0).train.hashes
        keys = keyed_hashes([hashes[row].decode() for row in rows], f"suggest/{self.seed}")
        return np.asarray(rows[np.argsort(keys, kind="stable")])

    @cached_property
    def labels_M(self) -> np.ndarray:
        """The class of each picture of the pool."""
        return np.asarray(self.bank.truth(self.target)[self.order])

    @cached_property
    def features(self) -> dict[str, np.ndarray]:
        """The sources' features of the pool, [M, D]."""
        outputs = {name: self.bank.outputs(name, self.target) for name in SOURCES}
        return {name: np.asarray(arrays.features_ND)[self.order] for name, arrays in outputs.items()}

    @cached_property
    def joint_MD(self) -> np.ndarray:
        """The joint features."""
        return joint_features([array.__getitem__ for array in self.features.values()], len(self.order), DIMS)

    def teacher(self, rows: np.ndarray) -> np.ndarray:
        """The class probabilities of the teacher from the labels of `rows`, [M, C]."""
        classes = int(self.labels_M.max()) + 1
        if len(np.unique(self.labels_M[rows])) < 2:  # it knows one class alone
            return np.asarray(np.eye(classes)[np.full(len(self.labels_M), self.labels_M[rows[0]])])
        alphas = dict.fromkeys(self.features, 1.0)
        labels_L = self.labels_M[rows]
        return stacked(self.features, alphas, rows=rows, labels_L=labels_L, classes=classes, level=OFF).probs_NC

    def scores(self, rows: np.ndarray) -> tuple[float, float]:
        """Top-1 and balanced accuracy, in points, of that teacher on the rest of the pool."""
        rest = np.setdiff1d(np.arange(len(self.labels_M)), rows)
        answers = self.teacher(rows)[rest].argmax(axis=1)
        top1 = float((answers == self.labels_M[rest]).mean())
        return round(100 * top1, 3), round(100 * metrics.balanced(self.labels_M[rest], answers)[0], 3)

    def batches(self, way: str, budgets: list[int]) -> list[np.ndarray]:
        """The labeled rows of each budget."""
        strategy, every, sees_teacher = WAYS[way]
        labels_M = np.full(len(self.labels_M), UNLABELED)
        chosen: list[np.ndarray] = []
        if not sees_teacher:
            picks = suggested(Pool(features_MD=self.joint_MD, labels_M=labels_M), budgets[-1], strategy, every)
            return [np.array([pick.row for pick in picks[:budget]]) for budget in budgets]
        for budget in budgets:
            probs_MC = self.teacher(np.concatenate(chosen)) if chosen else None
            pool = Pool(features_MD=self.joint_MD, labels_M=labels_M, seed=self.seed, probs_MC=probs_MC)
            missing = budget - sum(map(len, chosen))
            rows = np.array([pick.row for pick in suggested(pool, missing, strategy, every)])
            labels_M[rows] = self.labels_M[rows]
            chosen.append(rows)
        return [np.concatenate(chosen[: number + 1]) for number in range(len(budgets))]


def config() -> str:
    """What lines depend on besides target and seed: lines of other settings are not mixed with these."""
    return digest([SOURCES, PER_CLASS, WAYS, SIGMA, DIMS, EVERY])[:12]


def measure(draw: Draw) -> dict[str, Any]:
    """The line of one target and draw."""
    classes = int(draw.labels_M.max()) + 1
    budgets = [classes * per_class for per_class in PER_CLASS]
    random = [np.arange(min(budget, len(draw.order) // 2)) for budget in (*budgets, classes * MORE)]
    rows = {"random": random, **{way: draw.batches(way, budgets) for way in WAYS}}
    scores = {way: [draw.scores(labeled) for labeled in batches] for way, batches in rows.items()}
    return {
        "target": draw.target,
        "seed": draw.seed,
        "sources": list(SOURCES),
        "classes": classes,
        "pictures": len(draw.order),
        "budgets": budgets,
        "top1": {way: [top1 for top1, _ in pairs] for way, pairs in scores.items()},
        "balanced": {way: [balanced for _, balanced in pairs] for way, pairs in scores.items()},
        "missing": {
            way: [classes - len(np.unique(draw.labels_M[labeled])) for labeled in batches]
            for way, batches in rows.items()
        },
        "worth": worth_of(draw, random[1]),
        "config": config(),
    }


def worth_of(draw: Draw, rows: np.ndarray) -> dict[str, float | None]:
    """What NEXT random labels more are said to be worth, and what they are."""
    answer = worth(
        {name: array[rows] for name, array in draw.features.items()}, draw.labels_M[rows], np.arange(len(rows))
    )
    more = np.arange(len(rows) + NEXT)
    rest = np.arange(len(more), len(draw.labels_M))
    before, after = (
        float((draw.teacher(labeled)[rest].argmax(axis=1) == draw.labels_M[rest]).mean()) for labeled in (rows, more)
    )
    return {"gain": answer.gain, "low": answer.low, "high": answer.high, "true": round(100 * (after - before), 3)}
