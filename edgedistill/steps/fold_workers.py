"""Folds that several workers share: each takes one that nobody has, and reads the answers of the others.

The workers are those of the search (`search.storage`, docs/scale.md), each with a run directory of its own. A fold is a
trial of a study beside that of the search. Its answers are attributes of the trial, so that no file is shared. The fold
of a killed worker is free again after the heartbeats that a trial may miss. A fold's own search is not shared: a fold
ends the same whoever has it.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from edgedistill.console import say
from edgedistill.records import FoldScore
from edgedistill.run.files import as_plain, digest
from edgedistill.steps import candidate, lengths, peer, search
from edgedistill.steps.context import Context

if TYPE_CHECKING:
    import numpy as np
    import optuna

POLL_S = 1.0
ANSWERS, SCORE = "answers", "score"  # attributes of a trial


@dataclass(frozen=True, eq=False, kw_only=True)
class FoldOutcome:
    """What is kept of a fold: its score, and its answers as `folds.fold_answers` returns them."""

    score: FoldScore
    answers: dict[str, np.ndarray]


RunFold = Callable[[int], FoldOutcome]


def outcomes(context: Context, count: int, run_fold: RunFold, *, version: int) -> list[FoldOutcome]:
    """The outcomes of all folds.

    Args:
        context: the run.
        count: number of folds.
        run_fold: computes one of them here.
        version: of what a fold computes.

    Raises:
        InputError: the database cannot be reached, or holds another recipe's folds under this name.
        EdgeDistillError: the connection to the database was lost.
    """
    if not context.recipe.search.storage:
        return [run_fold(fold) for fold in range(count)]
    return _shared_outcomes(context, count, run_fold, identity(context, version))


def _shared_outcomes(context: Context, count: int, run_fold: RunFold, identity: str) -> list[FoldOutcome]:
    from edgedistill.search import study

    settings, names = context.recipe.search, [f"fold {fold + 1}" for fold in range(count)]
    shared = study.open_study(context.run.path, settings, f"{context.recipe.name}, folds", identity)
    own: set[str] = set()
    with study.storage_errors(shared):
        while True:
            states = study.candidate_states(shared)
            free = [name for name in names if name not in states.scored and name not in states.running]
            if not free and not states.running:
                break
            if not free:
                time.sleep(POLL_S)  # other workers run the last folds; those of dead workers become free again
                continue
            trial = study.begin_trial(shared, free[0], {}, {})
            if trial is None:  # another worker has begun this fold
                continue
            with study.heartbeat(shared, trial):
                outcome = run_fold(names.index(free[0]))
                _keep(trial, outcome)
                study.end_trial(shared, trial, outcome.score.fp32.top1)
                own.add(free[0])
    if others := [name for name in names if name not in own]:
        say(f"  {', '.join(others)}: by other workers")
    return [_read(states.scored[name]) for name in names]


def identity(context: Context, version: int) -> str:
    """Hash of everything that the folds read: those of workers with equal hashes are the same."""
    peers = [peer.STEP.version] if context.has_peer else []
    speed = [lengths.speed(context)] if context.recipe.distill.steps == "auto" else []
    graphs = [candidate.answered_by(context)] if candidate.ships_int8(context) else []
    newer = [*peers, *speed, *graphs]
    return digest([search.identity(context), context.recipe.sections(("quantize",)), version, *newer])


def _keep(trial: optuna.Trial, outcome: FoldOutcome) -> None:
    import numpy as np

    stream = io.BytesIO()
    np.savez_compressed(stream, **outcome.answers)  # type: ignore[arg-type]
    trial.set_user_attr(SCORE, as_plain(outcome.score))
    trial.set_user_attr(ANSWERS, base64.b64encode(stream.getvalue()).decode())


def _read(trial: optuna.trial.FrozenTrial) -> FoldOutcome:
    import numpy as np

    content = io.BytesIO(base64.b64decode(trial.user_attrs[ANSWERS]))
    with np.load(content, allow_pickle=False) as archive:
        answers = {name: np.asarray(archive[name]) for name in archive.files}
    return FoldOutcome(score=TypeAdapter(FoldScore).validate_python(trial.user_attrs[SCORE]), answers=answers)
