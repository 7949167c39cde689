"""Signals end a program soon, with its children, whatever it is doing; real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgedistill.run import interrupts

pytestmark = pytest.mark.usefixtures("heeded_ctrl_c")

HEAD = """\
import os, signal, sys, threading, time
from edgedistill.run import interrupts
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as python -m edgedistill does
with interrupts.handled("stopped"{grace}):
"""
READY = "print('ready', flush=True)"
# a session whose leader ignores SIGTERM and has a child; both hold the pipe open
STUBBORN = """\
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("ready", flush=True)
time.sleep(600)
"""


def start(body: str, grace: str = "") -> subprocess.Popen[str]:
    """Start a program with `body` inside `interrupts.handled`, and wait until the body prints READY."""
    program = HEAD.format(grace=grace) + "".join(f"    {line}\n" for line in body.splitlines())
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code and stderr of a program that must end soon."""
    _, err = process.communicate(timeout=60)
    return process.returncode, err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signal_leaves_one_line_and_its_exit_code(number: signal.Signals, code: int) -> None:
    process = start(f"try:\n    {READY}\n    time.sleep(600)\nfinally:\n    print('cleaned up', file=sys.stderr)")
    process.send_signal(number)
    assert end(process) == (code, "cleaned up\nstopped\n")


def test_program_that_swallows_the_exception_is_ended_by_force() -> None:
    body = (
        f"while True:\n    try:\n        {READY}\n        time.sleep(600)\n    except KeyboardInterrupt:\n        pass"
    )
    process = start(body, grace=", grace_s=0.3")
    process.send_signal(signal.SIGTERM)
    assert end(process) == (143, "stopped\n")


def test_time_in_which_the_whole_process_is_stopped_is_not_counted() -> None:
    body = f"try:\n    {READY}\n    time.sleep(600)\nfinally:\n    for _ in range(10):\n        time.sleep(0.1)"
    process = start(f"{body}\n    print('cleaned up', file=sys.stderr)", grace=", grace_s=4.0")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    process.send_signal(signal.SIGSTOP)
    time.sleep(4.5)
    process.send_signal(signal.SIGCONT)
    assert end(process) == (143, "cleaned up\nstopped\n")


def test_second_signal_ends_at_once() -> None:
    # a shield that does not end stands for native code that does not return
    body = f"with interrupts.shielded():\n    {READY}\n    time.sleep(600)"
    process = start(body, grace=", grace_s=500.0")
    process.send_signal(signal.SIGINT)
    time.sleep(2 * interrupts.TOGETHER_S)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert end(process) == (130, "stopped\n")


def test_signals_that_arrive_together_are_one() -> None:
    clean_up = "time.sleep(0.2); print('cleaned up', file=sys.stderr)"
    process = start(f"try:\n    {READY}\n    time.sleep(600)\nfinally:\n    {clean_up}")
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.02)
    assert end(process) == (143, "cleaned up\nstopped\n")


def test_signal_that_another_thread_gets_wakes_the_main_thread() -> None:
    body = f"""\
other = threading.Thread(target=time.sleep, args=(600,), daemon=True)
other.start()
threading.Timer(0.5, lambda: signal.pthread_kill(other.ident, signal.SIGTERM)).start()
{READY}
try:
    waiting = threading.Condition()
    with waiting:
        waiting.wait(600)
except KeyboardInterrupt:
    print('woken', flush=True)
    raise"""
    process = start(body, grace=", grace_s=5")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (143, "woken\n", "stopped\n")


def test_exception_dropped_by_python_is_raised_again() -> None:
    body = """\
class Late:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
print("ready", flush=True)
Late()
time.sleep(600)
"""
    process = start(body, grace=", grace_s=500.0")
    assert end(process) == (130, "stopped\n")


def test_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = start(f"{READY}; time.sleep(1); print('done', file=sys.stderr)")
    process.send_signal(signal.SIGINT)
    assert end(process) == (0, "done\n")


def test_handlers_are_restored(capsys: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(number) for number in interrupts.SIGNALS]
    threads = threading.active_count()
    with interrupts.handled("stopped"):
        assert interrupts.exit_code() is None
    with pytest.raises(SystemExit) as caught, interrupts.handled("stopped"):
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == interrupts.exit_code() == 143
    assert capsys.readouterr().err == "stopped\n"
    assert [signal.getsignal(number) for number in interrupts.SIGNALS] == before
    assert threading.active_count() == threads


def test_shield_holds_the_exception_back_to_its_end() -> None:
    reached = []
    with pytest.raises(SystemExit), interrupts.handled(""):
        with interrupts.shielded():
            with interrupts.shielded():
                signal.raise_signal(signal.SIGINT)
                reached.append("inner")
            reached.append("outer")
        reached.append("behind")
    assert reached == ["inner", "outer"]


def sleepers(pid: int) -> list[str]:
    """Command lines of the running processes of a session."""
    commands = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, session = (folder / "stat").read_text().rpartition(")")[2].split()[0:4:3]
                if session == str(pid) and state != "Z":
                    commands.append((folder / "cmdline").read_text())
            except OSError:
                continue
    return commands


def in_main_thread(work: Callable[[], None]) -> None:
    work()


def in_another_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, daemon=True).start()
    time.sleep(600)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("start_work", [in_main_thread, in_another_thread])
def test_signal_ends_the_session_of_a_child(
    start_work: Callable[[Callable[[], None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupts, "CHILD_GRACE_S", 0.2)
    pids = []

    def work() -> None:
        with interrupts.child_session([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None and child.stdout.readline()
            pids.append(child.pid)
            os.kill(os.getpid(), signal.SIGTERM)
            child.wait()

    with pytest.raises(SystemExit), interrupts.handled(""):
        start_work(work)
    deadline = time.monotonic() + 30
    while sleepers(pids[0]):
        assert time.monotonic() < deadline, sleepers(pids[0])
        time.sleep(0.01)


def import_with_a_signal(folder: Path, seconds: float) -> str:
    """Write a module whose import gets a signal and lasts so long; return the line that makes it importable."""
    (folder / "slow.py").write_text(f"""\
import os, signal, sys, time
def is_called_by_native_code():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep({seconds})
is_called_by_native_code()
print("imported", file=sys.stderr)
""")
    return f"sys.path.insert(0, {str(folder)!r})"


@pytest.mark.parametrize(("seconds", "err"), [(0.3, "imported\nstopped\n"), (600, "stopped\n")])
def test_import_is_not_interrupted_and_not_waited_for_long(tmp_path: Path, seconds: float, err: str) -> None:
    # native modules abort if the Python code that their initialization calls raises an exception
    body = f"{import_with_a_signal(tmp_path, seconds)}\n{READY}\nimport slow\ntime.sleep(600)"
    assert end(start(body, grace=", grace_s=500.0")) == (130, err)


def test_exception_raised_by_the_end_of_a_shield_is_not_raised_again(tmp_path: Path) -> None:
    body = f"""\
{import_with_a_signal(tmp_path, 0.0)}
{READY}
try:
    with interrupts.shielded():
        import slow
    time.sleep(600)
finally:
    time.sleep(0.3)
    print("cleaned up", file=sys.stderr)
"""
    assert end(start(body, grace=", grace_s=500.0")) == (130, "imported\ncleaned up\nstopped\n")


def test_no_signal_is_sent_again_after_the_end(tmp_path: Path) -> None:
    body = f"{import_with_a_signal(tmp_path, 0.0)}\n{READY}\nwith interrupts.shielded():\n    import slow"
    assert end(start(body, grace=", grace_s=500.0")) == (130, "imported\nstopped\n")


def test_child_is_listed_before_an_exception_can_lose_it(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)  # type: ignore[call-overload]
            started.append(self)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    with pytest.raises(SystemExit), interrupts.handled(""), interrupts.child_session(sleep):
        pytest.fail("the signal came before the block")
    assert started[0].wait(timeout=30) < 0


def test_temporary_folder_goes_even_if_the_program_is_ended_by_force() -> None:
    body = f"""\
with interrupts.temporary_folder() as folder, interrupts.shielded():
    (folder / "file").touch()
    print(folder, file=sys.stderr)
    {READY}
    time.sleep(600)
"""
    process = start(body, grace=", grace_s=0.3")
    process.send_signal(signal.SIGTERM)
    code, err = end(process)
    folder, line = err.splitlines()
    assert (code, line) == (143, "stopped")
    assert not Path(folder).exists()
