"""Several workers on one study in a real PostgreSQL: no trial is lost or repeated, even if a worker is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import postgres
from tests.helpers.paths import HELPERS

WORKER = HELPERS / "search_worker.py"


@pytest.fixture
def database() -> Iterator[str]:
    with postgres.server() as address:
        yield address


def worker(address: str, folder: Path, seconds: float, *more: str) -> subprocess.Popen[str]:
    argv = [sys.executable, str(WORKER), address, str(folder), str(folder.parent / "log"), str(seconds), *more]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def log_entries(folder: Path) -> list[tuple[str, str, str]]:
    log = folder / "log"
    lines = log.read_text().splitlines() if log.is_file() else []
    return [(pid, word, name) for pid, word, name in (line.split(" ", 2) for line in lines)]


@pytest.mark.slow
def test_killed_worker_loses_no_trial(tmp_path: Path, database: str) -> None:
    first, second = (worker(database, tmp_path / name, 0.3) for name in ("a", "b"))
    deadline = time.monotonic() + 90
    while sum(word == "begins" for pid, word, _ in log_entries(tmp_path) if pid == str(first.pid)) < 3:
        assert time.monotonic() < deadline and first.poll() is None, first.communicate()
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    out, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    first.communicate()
    n_ended = Counter(name for _, word, name in log_entries(tmp_path) if word == "ends")
    n_begun = Counter(name for _, word, name in log_entries(tmp_path) if word == "begins")
    assert len(n_ended) == 24 and set(n_ended.values()) == {1}  # no trial is lost, none runs twice
    unfinished = {name for pid, word, name in log_entries(tmp_path) if pid == str(first.pid) and word == "begins"} - {
        name for pid, word, name in log_entries(tmp_path) if pid == str(first.pid) and word == "ends"
    }
    assert {
        name for name, count in n_begun.items() if count > 1
    } == unfinished  # only the killed worker's trial starts again
    assert {pid for pid, word, _ in log_entries(tmp_path) if word == "ends"} == {str(first.pid), str(second.pid)}
    # a late worker finds all trials finished and the same winner
    late = worker(database, tmp_path / "c", 0.3)
    assert late.communicate(timeout=60)[0] == out and len(log_entries(tmp_path)) == 24 * 2 + len(unfinished)


@pytest.mark.slow
def test_parallel_workers_never_repeat_a_trial(tmp_path: Path, database: str) -> None:
    workers = [worker(database, tmp_path / str(index), 0.0) for index in range(3)]
    winners = {process.communicate(timeout=120)[0] for process in workers}
    assert all(process.returncode == 0 for process in workers) and len(winners) == 1
    assert Counter(Counter(name for _, word, name in log_entries(tmp_path) if word == "begins").values()) == {1: 24}


@pytest.mark.slow
def test_lost_database_is_reported(tmp_path: Path) -> None:
    with postgres.server() as address:
        process = worker(address, tmp_path / "a", 0.3)
        deadline = time.monotonic() + 60
        while len(log_entries(tmp_path)) < 3:
            assert time.monotonic() < deadline and process.poll() is None, process.communicate()
            time.sleep(0.02)
    err = process.communicate(timeout=120)[1]
    last = err.strip().splitlines()[-1]
    assert process.returncode == 1 and "EdgeDistillError: search.storage: " in last, err
    assert "what was trained is kept; train again when the database is back" in last


@pytest.mark.slow
def test_study_of_another_recipe_is_refused(tmp_path: Path, database: str) -> None:
    first = worker(database, tmp_path / "a", 0.0)
    assert first.communicate(timeout=60)[1] == "" and first.returncode == 0
    other = worker(database, tmp_path / "b", 0.0, "two")
    err = other.communicate(timeout=60)[1]
    assert other.returncode == 1 and "search.storage: the study shared there is of another recipe" in err


def test_unreachable_storage_is_an_input_error(tmp_path: Path) -> None:
    address = f"postgresql://edge@127.0.0.1:{postgres.free_port()}/postgres"
    err = worker(address, tmp_path / "a", 0.0).communicate(timeout=60)[1]
    assert "InputError: search.storage: " in err and "Connection refused" in err and "is the database up" in err
    err = worker("not an address", tmp_path / "a", 0.0).communicate(timeout=60)[1]
    assert "InputError: search.storage: " in err
