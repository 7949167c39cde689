"""The Optuna study of a search: one process on a journal file, or any number of processes on a database.

Each trial stores its candidate (user attribute `spec`). On a database, the worker that runs a trial increments its
`beat`. If the count does not change for three intervals, other workers fail the trial and its candidate is free again.
No clock is compared with another machine's. (Optuna's own heartbeats exist only inside Study.optimize, begin after the
trial is already stored, and end with the first connection error.)
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from edgedistill.console import say
from edgedistill.errors import EdgeDistillError, InputError
from edgedistill.recipe.schema import Search

Space = dict[str, BaseDistribution]
Trials = dict[str, FrozenTrial]
IDENTITY, SPEC, REFUSED, BEAT = "recipe", "spec", "refused", "beat"
INSTALL = "pip install 'edgedistill[postgres]'"
ADDRESS = "write it as postgresql://user:password@host/database"
MAX_MISSED_BEATS = 3  # heartbeats that a live worker may miss


@dataclass(kw_only=True)
class SharedStudy:
    """A study and this process's record of its heartbeats: trial number -> last count and the time it changed.

    `heartbeat_s` is the interval; None if no other process can work on the study.
    """

    study: optuna.Study
    heartbeat_s: float | None = None
    identity: str = ""
    last_beats: dict[int, tuple[int, float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CandidateStates:
    """All tried candidates by state: trained to the end, eliminated (refused or pruned), or running."""

    scored: Trials
    eliminated: Trials
    running: Trials


def open_study(folder: Path, settings: Search, name: str = "students", identity: str = "") -> SharedStudy:
    """Open the study, or create it.

    Args:
        folder: folder of the journal, unless the recipe names a storage.
        settings: the recipe's `search` section.
        name: name of the study; workers that share a storage share it by name.
        identity: hash of the inputs of the search; all workers of a study must have the same.

    Raises:
        InputError: the storage cannot be reached, or holds another recipe's study under this name.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if settings.storage:
        shared = SharedStudy(
            study=_on_database(settings.storage, name, identity), heartbeat_s=settings.heartbeat_s, identity=identity
        )
        _require_same_recipe(shared)
        return shared
    folder.mkdir(parents=True, exist_ok=True)
    # the run directory is locked, so a lock on its journal belongs to a dead process; Optuna would wait 30 s for it
    for lock in folder.glob("study.journal.lock*"):
        lock.unlink()
    _cut_half_line(folder / "study.journal")
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
    # for the same reason the journal's running trials are a dead process's
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    return SharedStudy(study=study)


def _cut_half_line(journal: Path) -> None:
    """Cut the journal of a process that died behind its last whole line: Optuna would append to half a line."""
    if not journal.is_file():
        return
    with journal.open("rb+") as stream:
        content = stream.read()
        stream.truncate(content.rfind(b"\n") + 1)


def _on_database(address: str, name: str, identity: str, tries: int = 5) -> optuna.Study:
    try:
        from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

        for tries_left in reversed(range(tries)):
            try:
                storage = optuna.storages.RDBStorage(address, engine_kwargs={"pool_pre_ping": True})
                study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
                break
            except (
                IntegrityError,
                ProgrammingError,
            ):  # several workers create the tables of an empty database at the same time
                if tries_left == 0:
                    raise
                time.sleep(0.5 * random.random() + 0.1)
    except ImportError as error:
        raise InputError(f"search.storage: {_error_line(error)}", _driver_fix(address)) from None
    except (SQLAlchemyError, optuna.exceptions.OptunaError, ValueError) as error:
        fix = "is the database up, and may this user write to it?"
        raise InputError(f"search.storage: {_error_line(error)}", fix) from None
    if IDENTITY not in study.user_attrs:
        study.set_user_attr(IDENTITY, identity)
    return study


def _require_same_recipe(shared: SharedStudy) -> None:
    """Raise if the study is of another recipe.

    Called before every trial: if two recipes create the study at the same time, one overwrites the other's identity.
    """
    if shared.study.user_attrs[IDENTITY] != shared.identity:
        raise InputError(
            f"search.storage: the study {shared.study.study_name} there is of another recipe or of other data, sources "
            "or devices",
            "give all workers the same, or this recipe another `name`",
        )


def check_connection(address: str) -> None:
    """Connect to a storage without writing to it.

    Raises:
        InputError: it cannot be reached.
    """
    try:
        import sqlalchemy

        with sqlalchemy.create_engine(address).connect():
            return
    except ImportError as error:
        raise InputError(f"search.storage: {_error_line(error)}", _driver_fix(address)) from None
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:  # ValueError: a port that is not a number
        raise InputError(f"search.storage: {_error_line(error)}", ADDRESS) from None
    except sqlalchemy.exc.SQLAlchemyError as error:
        fix = "is the database up, and may this user log in?"
        raise InputError(f"search.storage: {_error_line(error)}", fix) from None


def _driver_fix(address: str) -> str:
    """The fix of a missing driver: the extra holds one of PostgreSQL alone."""
    return INSTALL if address.partition(":")[0] in {"postgresql", "postgresql+psycopg"} else ADDRESS


def _error_line(error: BaseException) -> str:
    """A driver's error on one line, without the SQL and the links after it."""
    text = " ".join(str(error).partition("(Background on this error")[0].split())
    return text[:300]


def candidate_states(shared: SharedStudy) -> CandidateStates:
    """Return the states of all tried candidates, after failing the trials of dead workers."""
    if shared.heartbeat_s is not None:
        _require_same_recipe(shared)
    _fail_dead_trials(shared)
    trials = shared.study.get_trials(deepcopy=False)
    candidate_trials = [trial for trial in trials if SPEC in trial.user_attrs]
    scored = {str(trial.user_attrs[SPEC]): trial for trial in candidate_trials if trial.state == TrialState.COMPLETE}
    eliminated = {str(trial.user_attrs[SPEC]): trial for trial in candidate_trials if _is_eliminated(trial)}
    running = {str(trial.user_attrs[SPEC]): trial for trial in candidate_trials if trial.state == TrialState.RUNNING}
    return CandidateStates(
        scored=scored,
        eliminated={name: trial for name, trial in eliminated.items() if name not in scored},
        running=running,
    )


def _is_eliminated(trial: FrozenTrial) -> bool:
    refused = trial.state == TrialState.FAIL and bool(trial.user_attrs.get(REFUSED))
    return refused or trial.state == TrialState.PRUNED


def _fail_dead_trials(shared: SharedStudy) -> None:
    """Fail the trials whose count has not changed for `MAX_MISSED_BEATS` intervals of this process's own clock."""
    if shared.heartbeat_s is None:
        return
    now = time.monotonic()
    for trial in shared.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        beat = int(trial.user_attrs.get(BEAT, 0))
        last_count, changed_at = shared.last_beats.get(trial.number, (-1, now))
        if beat != last_count:
            shared.last_beats[trial.number] = (beat, now)
        elif now - changed_at > MAX_MISSED_BEATS * shared.heartbeat_s:
            with contextlib.suppress(UpdateFinishedTrialError, ValueError):  # another worker failed it first
                shared.study.tell(trial.number, state=TrialState.FAIL)
                say(f"  search: trial {trial.number} was abandoned; its candidate is free again")


def propose(shared: SharedStudy, space: Space, seed: int) -> dict[str, Any]:
    """The parameters that Optuna's TPE (Bergstra et al. 2011) would try next; no trial is left running."""
    shared.study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=4)
    trial = shared.study.ask(space)
    shared.study.tell(trial, state=TrialState.FAIL)
    return trial.params


def begin_trial(shared: SharedStudy, name: str, params: Mapping[str, Any], space: Space) -> optuna.Trial | None:
    """Begin a trial for this candidate; None if another worker runs it or has run it.

    The trial is added to the storage in one operation: if two workers choose the same candidate, the one with the
    higher trial number sees the other's trial and gives up. (Study.ask followed by a user attribute would leave a gap.)
    """
    token = uuid.uuid4().hex
    new_trial = optuna.trial.create_trial(
        state=TrialState.RUNNING,
        params=dict(params),
        distributions={param: space[param] for param in params},
        user_attrs={SPEC: name, "token": token, BEAT: 0},
    )
    shared.study.add_trial(new_trial)
    trials = shared.study.get_trials(deepcopy=False)
    own = next(trial for trial in trials if trial.user_attrs.get("token") == token)
    earlier_trials = (trial for trial in trials if trial.number < own.number and trial.user_attrs.get(SPEC) == name)
    if any(
        trial.state in (TrialState.RUNNING, TrialState.COMPLETE) or _is_eliminated(trial) for trial in earlier_trials
    ):
        shared.study.tell(own.number, state=TrialState.FAIL)
        return None
    return optuna.Trial(shared.study, own._trial_id)


@contextlib.contextmanager
def heartbeat(shared: SharedStudy, trial: optuna.Trial) -> Iterator[None]:
    """Send heartbeats for the trial; an error fails the trial at once, so that no other worker waits for it.

    A worker that was presumed dead (a suspended laptop) finds its trial finished: it gives the trial up and continues.
    """
    stopped = threading.Event()

    def beat() -> None:
        count = 0
        while not stopped.wait(shared.heartbeat_s):
            count += 1
            with contextlib.suppress(Exception):  # a short outage of the database; the next beat may succeed
                trial.set_user_attr(BEAT, count)

    thread = threading.Thread(target=beat, daemon=True)
    if shared.heartbeat_s is not None:
        thread.start()
    try:
        yield
    except UpdateFinishedTrialError:
        say(f"  search: trial {trial.number} went to another worker")
    except BaseException:
        with contextlib.suppress(Exception):  # report the original error
            shared.study.tell(trial, state=TrialState.FAIL)
        raise
    finally:
        stopped.set()
        if thread.is_alive():
            thread.join()


@contextlib.contextmanager
def storage_errors(shared: SharedStudy) -> Iterator[None]:
    """Turn database errors into one line; completed trials are kept in the database.

    Raises:
        EdgeDistillError: instead of the driver's error.
    """
    if shared.heartbeat_s is None:
        yield
        return
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
        fix = "what was trained is kept; train again when the database is back"
        raise EdgeDistillError(f"search.storage: {_error_line(cause or error)}", fix) from None


def end_trial(
    shared: SharedStudy, trial: optuna.Trial, score: float | None, state: TrialState = TrialState.COMPLETE
) -> None:
    """End a trial with a score or a state.

    Raises:
        UpdateFinishedTrialError: another worker has ended it.
    """
    try:
        shared.study.tell(trial, score, state=state)
    except ValueError as error:  # "Cannot tell a FAIL trial"
        raise UpdateFinishedTrialError(str(error)) from None


def scores_at_step(shared: SharedStudy, step: int, name: str) -> list[float]:
    """The scores of the other candidates at a step, one each; failed trials are ignored."""
    states = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)
    trials = shared.study.get_trials(deepcopy=False, states=states)
    scores = {
        str(trial.user_attrs.get(SPEC)): trial.intermediate_values[step]
        for trial in trials
        if step in trial.intermediate_values
    }
    return [score for spec, score in scores.items() if spec != name]
