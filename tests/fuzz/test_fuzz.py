"""Hostile inputs of every kind: no traceback, no hang, nothing executed; a message for a person, or success."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz import batch, kinds

SEED = 0
FEW = 10  # inputs of a kind in the default tier
LEAST = 10_000  # inputs of all kinds in the slow tier


@pytest.fixture(autouse=True)
def saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Failing inputs are kept in pytest's folder."""
    monkeypatch.setenv(batch.SAVED, str(tmp_path / "failed"))
    yield


@pytest.mark.parametrize("name", kinds.FUZZED)
def test_few_inputs(name: str, tmp_path: Path) -> None:
    kind = kinds.load(name)
    folder = tmp_path / "inputs"
    folder.mkdir()
    outcomes = list(batch.run_here(kind, SEED, range(FEW), folder))
    few = batch.Batch(kind=name, seed=SEED, outcomes=outcomes)
    assert len(outcomes) == FEW and not few.failures, few.report()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", kinds.FUZZED)
def test_many_inputs(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind = kinds.load(name)
    outcomes = batch.run_children(kind, SEED, kind.indices(), tmp_path / "work")
    with capsys.disabled():
        print(f"\n{outcomes.summary()}")
    assert len(outcomes.outcomes) == len(kind.indices()) and not outcomes.failures, outcomes.report()


def test_slow_tier_runs_enough_inputs() -> None:
    assert sum(kinds.load(name).inputs for name in kinds.FUZZED) >= LEAST


@pytest.mark.parametrize("name", kinds.FUZZED)
def test_input_is_made_by_its_seed_and_number(name: str) -> None:
    kind = kinds.load(name)
    numbers = range(3)
    made = [kind.input(1, number) for number in numbers]
    assert made == [kind.input(1, number) for number in numbers]
    assert made != [kind.input(2, number) for number in numbers]
