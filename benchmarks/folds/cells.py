"""The cells: folds against the student that ships, that student against a hold-out, and folds that search."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.folds.draws import GROUPED, DividedDraw, train
from benchmarks.suite.bank import Bank
from edgedistill.agent.metrics import Z95
from edgedistill.console import say
from edgedistill.distill import evaluate
from edgedistill.labels.protocol import pooled_accuracy
from edgedistill.recipe.schema import Budget, Search
from edgedistill.records import Accuracy, StudentSpec
from edgedistill.run.files import digest
from edgedistill.search.search import search

KIND = "folds"
DRAWS, QUESTION_DRAWS = 24, 3  # draws of the first question, and of the others
HOLDOUT_LABELS = 25
SIZES = (24, 28, 32, 40)  # input sizes among which the folds that search choose
TRIAL_STEPS = 100
VERSION = 2  # of what a cell computes; 2: one reserve for all folds, val of every class
# of packs with several labels of one group; 3: the teacher leaves a group out as one, and intervals count whole groups
GROUPED_VERSION = 3


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell: the question, the pack and the draw."""

    question: str
    target: str
    draw: int

    def key(self, bank: Bank) -> tuple[Any, ...]:
        """The identity of the cell's line."""
        return (self.question, self.target, self.draw, *(identity(bank, self.target).values()))


def identity(bank: Bank, target: str) -> dict[str, Any]:
    """What every line of a target depends on besides question and draw."""
    return {
        "profile": bank.profile.name,
        "pack": digest(bank.pack_hashes(target))[:16],
        "config": bank.profile.config("auto"),
        "version": version_of(target),
    }


def version_of(target: str) -> int:
    """The version of what a cell of a pack computes."""
    return GROUPED_VERSION if target in GROUPED else VERSION


def cells(targets: tuple[str, ...]) -> Iterator[Cell]:
    """All cells, by draw: those of a run that is stopped early are of all packs."""
    for draw in range(DRAWS):
        for question in QUESTIONS if draw < QUESTION_DRAWS else ("folds",):
            for target in targets:
                yield Cell(question=question, target=target, draw=draw)


def line(bank: Bank, cell: Cell) -> dict[str, Any]:
    """The line of a cell."""
    started = time.monotonic()
    measured = QUESTIONS[cell.question](bank, cell)
    place = {"question": cell.question, "target": cell.target, "draw": cell.draw}
    return {**place, **measured, "seconds": round(time.monotonic() - started, 1), **identity(bank, cell.target)}


def folds(bank: Bank, cell: Cell) -> dict[str, Any]:
    """Folds without a search, and the student that ships."""
    return _folds(bank, cell, choose=None)


def folds_with_search(bank: Bank, cell: Cell) -> dict[str, Any]:
    """Folds that each choose among four input sizes, as does the student that ships."""
    return _folds(bank, cell, choose=_winner)


def holdout(bank: Bank, cell: Cell) -> dict[str, Any]:
    """The student that ships with folds, and that of a hold-out, both on the pack's test set."""
    ships = DividedDraw(bank=bank, target=cell.target, seed=cell.draw, per_class=HOLDOUT_LABELS)
    held = ships.changed(protocol="holdout", val=True)
    logits_by_name = {}
    for name, draw in (("ships", ships), ("holdout", held)):
        model = train(draw).model
        logits_by_name[name] = (_answers(draw, model, of_pack=True), len(draw.splits.labeled_rows))
        if draw is held:
            estimate = _accuracy(evaluate.score(*_answers(draw, model, of_pack=False)))
        say(f"  {name}: trained on {len(draw.splits.labeled_rows)} labels")
    scores = {
        name: {**_accuracy(evaluate.score(*answers)), "labels": labels}
        for name, (answers, labels) in logits_by_name.items()
    }
    return {"labels_per_class": HOLDOUT_LABELS, **scores, "estimate": estimate}


QUESTIONS: dict[str, Callable[[Bank, Cell], dict[str, Any]]] = {
    "folds": folds,
    "holdout": holdout,
    "search": folds_with_search,
}


def _folds(bank: Bank, cell: Cell, choose: Callable[[DividedDraw], tuple[DividedDraw, float]] | None) -> dict[str, Any]:
    ships = DividedDraw(
        bank=bank,
        target=cell.target,
        seed=cell.draw,
        per_class=bank.profile.labels(cell.target),
        val=choose is not None,
    )
    assignment = ships.splits.folds
    assert assignment is not None, "the protocol is folds"
    chosen_px, val_scores, predicted, labels, rows = [], [], [], [], []
    for fold in (*range(assignment.count), None):
        draw = ships.changed(fold=fold)
        if choose is not None:
            draw, val_score = choose(draw)
            chosen_px.append(draw.spec.input_px)
            val_scores.append(round(val_score, 6))
        model = train(draw.changed(val=False)).model
        logits_NC, labels_N = _answers(draw, model, of_pack=fold is None)
        if fold is None:
            test = _accuracy(evaluate.score(logits_NC, labels_N))
            break
        predicted.append(logits_NC.argmax(axis=1))
        labels.append(labels_N)
        rows.append(assignment.rows(fold))
    units_N = ships.splits.units_N[np.concatenate(rows)]
    pooled = pooled_accuracy(np.concatenate(labels), np.concatenate(predicted), units_N, assignment.count)
    outcome = {
        "labels_per_class": ships.per_class,
        "labels": len(ships.splits.labeled_rows) + len(ships.splits.val_rows),
        "folds": assignment.count,
        "unscored": len(assignment.unscored),
        "pooled": _accuracy(pooled),
        "by_fold": [round(float((p == y).mean()), 6) for p, y in zip(predicted, labels, strict=True)],
        "ships": test,
    }
    return {**outcome, "chosen_px": chosen_px, "val": val_scores} if choose is not None else outcome


def _winner(draw: DividedDraw) -> tuple[DividedDraw, float]:
    """The draw with the input size that the product's search chooses, and its score on val."""
    _ = draw.teacher_probs  # once for all sizes
    by_px = {px: draw.changed(input_px=px) for px in SIZES}
    scores: dict[int, float] = {}

    def objective(spec: StudentSpec, seed: int, rungs: object) -> tuple[float, dict[str, float]]:
        fitted = train(by_px[spec.input_px], steps=TRIAL_STEPS)
        assert fitted.val is not None, "a part of the labels is val"
        low, high = fitted.val.balanced_ci95
        scores[spec.input_px] = fitted.val.balanced
        return fitted.val.balanced, {"standard_error": (high - low) / 2 / Z95, "loss": fitted.loss, "seconds": 0.0}

    settings = Search(trials=len(SIZES), steps=TRIAL_STEPS)
    with tempfile.TemporaryDirectory(prefix="edgedistill-") as folder:
        specs = [other.spec for other in by_px.values()]
        winner = search(specs, Budget(), settings, objective, seed=draw.seed, folder=Path(folder))
    return by_px[winner.input_px], scores[winner.input_px]


def _answers(draw: DividedDraw, model: Any, *, of_pack: bool) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of the pack's test images, or of the draw's own: a fold, or the test set of a hold-out."""
    test = (draw.bank.splits(draw.target, 0) if of_pack else draw.splits).open_test()
    images_NHWC = np.asarray(test.store.resized(draw.spec.input_px))
    return evaluate.logits(model, draw.spec, images_NHWC, batch=256), test.labels_N


def _accuracy(accuracy: Accuracy) -> dict[str, Any]:
    low, high = accuracy.balanced_ci95
    return {"balanced": round(accuracy.balanced, 6), "ci95": [round(low, 6), round(high, 6)], "n": accuracy.n}
