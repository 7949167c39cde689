"""The Optuna study behind a search: one process on a journal file, or any number of them on a database.

Each trial carries the candidate it stands for (user attribute `spec`). In a database, whoever works on a trial counts
up its `beat`; a trial whose count stands still for three intervals is failed by the others, and its candidate is free
again. No clock is compared with another machine's. (Optuna's own heartbeats live inside Study.optimize, begin after the
trial is already there, and end with the first error of the connection.)
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
MISSED = 3  # heartbeats that a living worker may miss


@dataclass(kw_only=True)
class Shared:
    """A study with what this process knows of it: how often hearts beat, and when it last saw each of them beat.

    `heartbeat_s` is None where nobody else can be at it.
    """

    study: optuna.Study
    heartbeat_s: float | None = None
    identity: str = ""
    seen: dict[int, tuple[int, float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The candidates by what became of them, at one moment: trained to the end, out (too slow, or behind), in work."""

    scored: Trials
    out: Trials
    busy: Trials


def opened(folder: Path, settings: Search, name: str = "students", identity: str = "") -> Shared:
    """The study, made where there is none.

    Args:
        folder: where the journal lies, unless the recipe names a storage.
        settings: the recipe's `search` section.
        name: of the study; workers that share a storage share it by name.
        identity: what the search depends on, as a hash; all workers of a study must have the same.

    Raises:
        InputError: the storage cannot be reached, or holds another recipe's study under this name.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if settings.storage:
        shared = Shared(
            study=_on_database(settings.storage, name, identity), heartbeat_s=settings.heartbeat_s, identity=identity
        )
        _of_one_recipe(shared)
        return shared
    folder.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
    # the run directory is locked: what its journal calls running died with an earlier process
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    return Shared(study=study)


def _on_database(address: str, name: str, identity: str, tries: int = 5) -> optuna.Study:
    try:
        from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

        for left in reversed(range(tries)):
            try:
                storage = optuna.storages.RDBStorage(address, engine_kwargs={"pool_pre_ping": True})
                study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
                break
            except (IntegrityError, ProgrammingError):  # workers that begin at once on an empty database
                if left == 0:
                    raise
                time.sleep(0.5 * random.random() + 0.1)
    except ImportError as error:
        raise InputError(f"search.storage: {_brief(error)}", INSTALL) from None
    except (SQLAlchemyError, optuna.exceptions.OptunaError, ValueError) as error:
        fix = "is the database up, and may this user write to it?"
        raise InputError(f"search.storage: {_brief(error)}", fix) from None
    if IDENTITY not in study.user_attrs:
        study.set_user_attr(IDENTITY, identity)
    return study


def _of_one_recipe(shared: Shared) -> None:
    """Asked again before every trial: of two recipes that begin at once, the one that was written over has to go."""
    if shared.study.user_attrs[IDENTITY] != shared.identity:
        raise InputError(
            f"search.storage: the study {shared.study.study_name} there is of another recipe or of other data, sources "
            "or devices",
            "give all workers the same, or this recipe another `name`",
        )


def reach(address: str) -> None:
    """Connect to a storage, and write nothing.

    Raises:
        InputError: it cannot be reached.
    """
    try:
        import sqlalchemy

        with sqlalchemy.create_engine(address).connect():
            return
    except ImportError as error:
        raise InputError(f"search.storage: {_brief(error)}", INSTALL) from None
    except (sqlalchemy.exc.SQLAlchemyError, ValueError) as error:  # ValueError: a port that is no number
        raise InputError(f"search.storage: {_brief(error)}", "is the database up?") from None


def _brief(error: BaseException) -> str:
    """A driver's error on one line, without the SQL and the links behind it."""
    text = " ".join(str(error).partition("(Background on this error")[0].split())
    return text[:300]


def standing(shared: Shared) -> Standing:
    """Where all candidates stand; what a dead worker was at is free, once its heart stood still for long enough."""
    if shared.heartbeat_s is not None:
        _of_one_recipe(shared)
    _bury(shared)
    trials = shared.study.get_trials(deepcopy=False)
    named = [one for one in trials if SPEC in one.user_attrs]
    scored = {str(one.user_attrs[SPEC]): one for one in named if one.state == TrialState.COMPLETE}
    out = {str(one.user_attrs[SPEC]): one for one in named if _is_out(one)}
    busy = {str(one.user_attrs[SPEC]): one for one in named if one.state == TrialState.RUNNING}
    return Standing(scored=scored, out={name: one for name, one in out.items() if name not in scored}, busy=busy)


def _is_out(trial: FrozenTrial) -> bool:
    refused = trial.state == TrialState.FAIL and bool(trial.user_attrs.get(REFUSED))
    return refused or trial.state == TrialState.PRUNED


def _bury(shared: Shared) -> None:
    """Fail the trials whose count stood still for `MISSED` intervals of this process's own clock."""
    if shared.heartbeat_s is None:
        return
    now = time.monotonic()
    for trial in shared.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        beat = int(trial.user_attrs.get(BEAT, 0))
        known, since = shared.seen.get(trial.number, (-1, now))
        if beat != known:
            shared.seen[trial.number] = (beat, now)
        elif now - since > MISSED * shared.heartbeat_s:
            with contextlib.suppress(UpdateFinishedTrialError, ValueError):  # another one was as quick
                shared.study.tell(trial.number, state=TrialState.FAIL)
                say(f"  search: trial {trial.number} was abandoned; its candidate is free again")


def proposal(shared: Shared, space: Space, seed: int) -> dict[str, Any]:
    """What Optuna's TPE (Bergstra et al. 2011) would try next, as parameters; nobody is at it yet."""
    shared.study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=4)
    asked = shared.study.ask(space)
    shared.study.tell(asked, state=TrialState.FAIL)
    return asked.params


def begin(shared: Shared, name: str, params: Mapping[str, Any], space: Space) -> optuna.Trial | None:
    """A running trial for this candidate; None where another worker is at it, or has been.

    The trial enters the storage whole, under its number: of two workers that want the same candidate, the one with the
    higher number sees the other's trial and lets go. (Asking first and naming the candidate after leaves a gap.)
    """
    token = uuid.uuid4().hex
    made = optuna.trial.create_trial(
        state=TrialState.RUNNING,
        params=dict(params),
        distributions={one: space[one] for one in params},
        user_attrs={SPEC: name, "token": token, BEAT: 0},
    )
    shared.study.add_trial(made)
    trials = shared.study.get_trials(deepcopy=False)
    own = next(one for one in trials if one.user_attrs.get("token") == token)
    taken = (one for one in trials if one.number < own.number and one.user_attrs.get(SPEC) == name)
    if any(one.state in (TrialState.RUNNING, TrialState.COMPLETE) or _is_out(one) for one in taken):
        shared.study.tell(own.number, state=TrialState.FAIL)
        return None
    return optuna.Trial(shared.study, own._trial_id)


@contextlib.contextmanager
def beating(shared: Shared, trial: optuna.Trial) -> Iterator[None]:
    """Keep the trial's heart going; what ends in an error ends the trial at once, so that nobody has to wait for it.

    A worker that was taken for dead (a suspended laptop) finds its trial finished: it lets go and lives on.
    """
    over = threading.Event()

    def beat() -> None:
        count = 0
        while not over.wait(shared.heartbeat_s):
            count += 1
            with contextlib.suppress(Exception):  # a database may be away for a moment; the next beat may be heard
                trial.set_user_attr(BEAT, count)

    heart = threading.Thread(target=beat, daemon=True)
    if shared.heartbeat_s is not None:
        heart.start()
    try:
        yield
    except UpdateFinishedTrialError:
        say(f"  search: trial {trial.number} went to another worker")
    except BaseException:
        with contextlib.suppress(Exception):  # the first error is the one to tell
            shared.study.tell(trial, state=TrialState.FAIL)
        raise
    finally:
        over.set()
        if heart.is_alive():
            heart.join()


@contextlib.contextmanager
def reachable(shared: Shared) -> Iterator[None]:
    """Say on one line that the database went away; what was trained before is kept there.

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
        raise EdgeDistillError(f"search.storage: {_brief(cause or error)}", fix) from None


def end(shared: Shared, trial: optuna.Trial, value: float | None, state: TrialState = TrialState.COMPLETE) -> None:
    """Tell how a trial ended.

    Raises:
        UpdateFinishedTrialError: somebody else ended it before.
    """
    try:
        shared.study.tell(trial, value, state=state)
    except ValueError as error:  # "Cannot tell a FAIL trial"
        raise UpdateFinishedTrialError(str(error)) from None


def at_step(shared: Shared, step: int, name: str) -> list[float]:
    """What the other candidates had reached after so many steps: one value each; those of dead trials do not count."""
    states = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)
    trials = shared.study.get_trials(deepcopy=False, states=states)
    found = {
        str(one.user_attrs.get(SPEC)): one.intermediate_values[step]
        for one in trials
        if step in one.intermediate_values
    }
    return [value for spec, value in found.items() if spec != name]
