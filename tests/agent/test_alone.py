"""Only one measurement runs at a time, and an interrupted one is resumed."""

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
def private_lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Use a private lock, so that a real measurement on this machine does not interfere."""
    monkeypatch.setattr(lock, "LOCK", str(tmp_path / "agent.lock"))


def test_second_agent_waits_until_first_ends() -> None:
    messages: list[str] = []
    with subprocess.Popen([sys.executable, "-c", HOLD, lock.LOCK], stdout=subprocess.PIPE, text=True) as other_process:
        assert other_process.stdout is not None and other_process.stdout.readline() == "held\n"
        with (
            pytest.raises(AgentError, match="another measurement has been running here"),
            lock.alone(messages.append, most_s=0.2, pause_s=0.05),
        ):
            raise AssertionError("two at once")
        assert messages == ["waiting for another measurement on this device"]
        # the lock is released however the other process ends
        other_process.kill()
        other_process.wait()
    with lock.alone(messages.append, most_s=5.0, pause_s=0.05):
        pass
    with lock.alone(messages.append, most_s=5.0):
        pass
    assert len(messages) == 1


def test_only_recent_part_of_same_job_is_resumed(tmp_path: Path) -> None:
    path = tmp_path / "part-0.json"
    assert agent._kept(path, "a") is None
    path.write_text("{")
    assert agent._kept(path, "a") is None
    path.write_text(json.dumps({"job": "a", "variants": {}}))
    assert agent._kept(path, "a") == {"job": "a", "variants": {}}
    assert agent._kept(path, "b") is None
    old = time.time() - agent.PICK_UP_S - 60
    os.utime(path, (old, old))
    assert agent._kept(path, "a") is None


def test_lock_file_is_readable_by_other_users(tmp_path: Path) -> None:
    umask = os.umask(0o077)
    try:
        with lock.alone(print):
            assert Path(lock.LOCK).stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(umask)
