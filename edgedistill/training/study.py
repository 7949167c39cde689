"""The Optuna study behind a search: one process on a journal file, or any number of them on a database.

Each trial carries the candidate it stands for (user attribute `spec`). Whoever works on a trial keeps its heartbeat
going; a trial whose heart stopped is failed by whoever looks next, and its candidate is free again.
"""

from __future__ import annotations

import contextlib
import random
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from edgedistill.recipe import Search
from edgedistill.records import InputError

Space = dict[str, BaseDistribution]
IDENTITY = "recipe"


def opened(folder: Path, settings: Search, name: str = "students", identity: str = "") -> optuna.Study:
    """The study, made where there is none.

    Args:
        folder: where the journal lies, unless the recipe names a storage.
        settings: the recipe's `search` section.
        name: of the study; workers that share a storage share it by name.
        identity: what the recipe's search depends on, as a hash; all workers of a study must have the same.

    Raises:
        InputError: the storage cannot be reached, or holds another recipe's study under this name.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    study = _together(lambda: _study(folder, settings, name))
    if IDENTITY not in study.user_attrs:
        study.set_user_attr(IDENTITY, identity)
    known = study.user_attrs[IDENTITY]
    if known != identity:
        raise InputError(
            f"search.storage: the study {name} there is of another recipe, or of another version of this one",
            "give all workers the same recipe, or this recipe another `name`",
        )
    if not settings.storage:
        # the run directory is locked: what its journal calls running died with an earlier process
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)
    return study


def _study(folder: Path, settings: Search, name: str) -> optuna.Study:
    return optuna.create_study(storage=_storage(folder, settings), study_name=name, direction="maximize",
                               load_if_exists=True)  # fmt: skip


def _together(make: Callable[[], optuna.Study], tries: int = 5) -> optuna.Study:
    """What `make` returns; workers that begin at once on an empty database are in each other's way at first."""
    for left in reversed(range(tries)):
        try:
            return make()
        except InputError:
            raise
        except Exception as error:  # sqlalchemy is optuna's own affair until a recipe names a database
            crossed = type(error).__name__ in ("IntegrityError", "ProgrammingError", "DuplicatedStudyError")
            if left == 0 or not crossed:
                fix = "is the database up, and may this user write to it?"
                raise InputError(f"search.storage: {_brief(error)}", fix) from None
            time.sleep(0.5 * random.random() + 0.1)
    raise AssertionError("the last try returns or raises")


def _storage(folder: Path, settings: Search) -> BaseStorage:
    if not settings.storage:
        return JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats, for five years now
        try:
            return optuna.storages.RDBStorage(
                settings.storage, engine_kwargs={"pool_pre_ping": True}, heartbeat_interval=settings.heartbeat_s,
                grace_period=3 * settings.heartbeat_s,
            )  # fmt: skip
        except ImportError as error:
            raise InputError(f"search.storage: {_brief(error)}", "pip install 'edgedistill[postgres]'") from None


def _brief(error: Exception) -> str:
    """A driver's error on one line, without the SQL and the links behind it."""
    text = " ".join(str(error).partition("(Background on this error")[0].split())
    return text[:300]


def scored(study: optuna.Study) -> dict[str, FrozenTrial]:
    """The candidates that were trained to the end."""
    return _by_spec(study, TrialState.COMPLETE)


def out(study: optuna.Study) -> dict[str, FrozenTrial]:
    """The candidates that the device found too slow or that fell behind; what a dead process was at is free again."""
    gone = _by_spec(study, TrialState.PRUNED, TrialState.FAIL)
    return {name: one for name, one in gone.items() if one.state == TrialState.PRUNED or one.user_attrs.get("refused")}


def busy(study: optuna.Study) -> dict[str, FrozenTrial]:
    """The candidates that somebody is at, after those whose worker died were freed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)
    return _by_spec(study, TrialState.RUNNING)


def _by_spec(study: optuna.Study, *states: TrialState) -> dict[str, FrozenTrial]:
    trials = study.get_trials(deepcopy=False, states=states)
    # refused ones last: a candidate may have died with one worker before the next one found it too slow
    ordered = sorted(trials, key=lambda one: bool(one.user_attrs.get("refused")))
    return {str(one.user_attrs["spec"]): one for one in ordered if "spec" in one.user_attrs}


def proposal(study: optuna.Study, space: Space, seed: int) -> dict[str, Any]:
    """What Optuna's TPE (Bergstra et al. 2011) would try next, as parameters; nobody is at it yet."""
    study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=4)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Heartbeat of storage", UserWarning)  # `beating` is the heart
        asked = study.ask(space)
    study.tell(asked, state=TrialState.FAIL)
    return asked.params


def begin(study: optuna.Study, name: str, params: Mapping[str, Any], space: Space) -> optuna.Trial | None:
    """A running trial for this candidate; None where another worker is at it, or has been.

    The trial enters the storage whole, under its number: of two workers that want the same candidate, the one with the
    higher number sees the other's trial and lets go. (Asking first and naming the candidate after leaves a gap.)
    """
    token = uuid.uuid4().hex
    made = optuna.trial.create_trial(
        state=TrialState.RUNNING, params=dict(params), distributions={one: space[one] for one in params},
        user_attrs={"spec": name, "token": token},
    )  # fmt: skip
    study.add_trial(made)
    trials = study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED))
    own = next(one for one in trials if one.user_attrs.get("token") == token)
    trial = optuna.Trial(study, own._trial_id)
    if any(one.number < own.number and one.user_attrs.get("spec") == name for one in trials):
        study.tell(trial, state=TrialState.FAIL)
        return None
    return trial


@contextlib.contextmanager
def beating(study: optuna.Study, trial: optuna.Trial) -> Iterator[None]:
    """Keep the trial's heart going; what ends in an error ends the trial at once, so that nobody has to wait for it."""
    from optuna.storages._heartbeat import get_heartbeat_thread

    try:
        with get_heartbeat_thread(trial._trial_id, study._storage):
            yield
    except BaseException:
        with contextlib.suppress(Exception):  # the first error is the one to tell
            study.tell(trial, state=TrialState.FAIL)
        raise
