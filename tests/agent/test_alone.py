"""One measurement at a time, and an interrupted one is picked up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgedistill.agent import __main__ as agent
from edgedistill.agent import alone as lock
from edgedistill.agent.job import AgentError

HOLD = """
import sys, time
from edgedistill.agent import alone
alone.LOCK = sys.argv[1]
with alone.alone(print):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A lock of the test's own: a real measurement on this machine is not its affair."""
    monkeypatch.setattr(lock, "LOCK", str(tmp_path / "agent.lock"))


def test_a_second_agent_waits_and_then_goes_on() -> None:
    said: list[str] = []
    with subprocess.Popen([sys.executable, "-c", HOLD, lock.LOCK], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with (
            pytest.raises(AgentError, match="another measurement has been running here"),
            lock.alone(said.append, most_s=0.2, pause_s=0.05),
        ):
            raise AssertionError("two at once")
        assert said == ["waiting for another measurement on this device"]
        # however the other one ends, its lock ends with it
        other.kill()
        other.wait()
    with lock.alone(said.append, most_s=5.0, pause_s=0.05):
        pass
    with lock.alone(said.append, most_s=5.0):
        pass
    assert len(said) == 1


def test_a_part_is_picked_up_only_of_the_same_job_and_of_today(tmp_path: Path) -> None:
    place = tmp_path / "part-0.json"
    assert agent._kept(place, "a") is None
    place.write_text("{")
    assert agent._kept(place, "a") is None
    place.write_text(json.dumps({"job": "a", "variants": {}}))
    assert agent._kept(place, "a") == {"job": "a", "variants": {}}
    assert agent._kept(place, "b") is None
    old = time.time() - agent.PICK_UP_S - 60
    os.utime(place, (old, old))
    assert agent._kept(place, "a") is None


def test_the_lock_of_one_user_is_no_wall_to_another(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with lock.alone(print):
            assert Path(lock.LOCK).stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)
