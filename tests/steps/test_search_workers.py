"""Several workers on one study in a real PostgreSQL: nothing twice, nothing lost, and a dead one's work taken up."""

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


def said(folder: Path) -> list[tuple[str, str, str]]:
    log = folder / "log"
    lines = log.read_text().splitlines() if log.is_file() else []
    return [(pid, word, name) for pid, word, name in (line.split(" ", 2) for line in lines)]


@pytest.mark.slow
def test_two_workers_one_killed(tmp_path: Path, database: str) -> None:
    first, second = (worker(database, tmp_path / name, 0.3) for name in ("a", "b"))
    until = time.monotonic() + 90
    while sum(word == "begins" for pid, word, _ in said(tmp_path) if pid == str(first.pid)) < 3:
        assert time.monotonic() < until and first.poll() is None, first.communicate()
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    out, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    first.communicate()
    ended = Counter(name for _, word, name in said(tmp_path) if word == "ends")
    begun = Counter(name for _, word, name in said(tmp_path) if word == "begins")
    assert len(ended) == 24 and set(ended.values()) == {1}  # no trial lost, none done twice
    lost = {name for pid, word, name in said(tmp_path) if pid == str(first.pid) and word == "begins"} - {
        name for pid, word, name in said(tmp_path) if pid == str(first.pid) and word == "ends"
    }
    assert {name for name, times in begun.items() if times > 1} == lost  # only what the dead one was at was begun anew
    assert {pid for pid, word, _ in said(tmp_path) if word == "ends"} == {str(first.pid), str(second.pid)}
    # who comes late finds everything done, and the same winner
    late = worker(database, tmp_path / "c", 0.3)
    assert late.communicate(timeout=60)[0] == out and len(said(tmp_path)) == 24 * 2 + len(lost)


@pytest.mark.slow
def test_many_at_once_never_try_the_same(tmp_path: Path, database: str) -> None:
    together = [worker(database, tmp_path / str(at), 0.0) for at in range(3)]
    winners = {one.communicate(timeout=120)[0] for one in together}
    assert all(one.returncode == 0 for one in together) and len(winners) == 1
    assert Counter(Counter(name for _, word, name in said(tmp_path) if word == "begins").values()) == {1: 24}


@pytest.mark.slow
def test_a_database_that_goes_away(tmp_path: Path) -> None:
    with postgres.server() as address:
        one = worker(address, tmp_path / "a", 0.3)
        until = time.monotonic() + 60
        while len(said(tmp_path)) < 3:
            assert time.monotonic() < until and one.poll() is None, one.communicate()
            time.sleep(0.02)
    err = one.communicate(timeout=120)[1]
    last = err.strip().splitlines()[-1]
    assert one.returncode == 1 and "EdgeDistillError: search.storage: " in last, err
    assert "what was trained is kept; train again when the database is back" in last


@pytest.mark.slow
def test_another_recipe_under_the_same_name(tmp_path: Path, database: str) -> None:
    first = worker(database, tmp_path / "a", 0.0)
    assert first.communicate(timeout=60)[1] == "" and first.returncode == 0
    other = worker(database, tmp_path / "b", 0.0, "two")
    err = other.communicate(timeout=60)[1]
    assert other.returncode == 1 and "search.storage: the study shared there is of another recipe" in err


def test_storage_that_is_not_there(tmp_path: Path) -> None:
    nobody = f"postgresql://edge@127.0.0.1:{postgres.port_of_its_own()}/postgres"
    err = worker(nobody, tmp_path / "a", 0.0).communicate(timeout=60)[1]
    assert "InputError: search.storage: " in err and "Connection refused" in err and "is the database up" in err
    err = worker("not an address", tmp_path / "a", 0.0).communicate(timeout=60)[1]
    assert "InputError: search.storage: " in err
