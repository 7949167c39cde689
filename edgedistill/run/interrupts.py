"""Ctrl-C, SIGTERM and SIGHUP end a command soon, whatever it is doing.

The first signal raises KeyboardInterrupt in the main thread, so that connections are closed and temporary files
removed. A thread watches: after GRACE_S seconds, or at a second signal, it ends the process by force, because a lock or
native code may keep the main thread from ever raising. Nothing is lost then either: files are written atomically, and
the operating system releases the locks.

An import is not interrupted: the initialization of torch's and onnx's native modules calls Python code, and aborts or
crashes if that raises. It is waited for, for IMPORT_S seconds.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_S = 10.0  # from the first signal to the end by force
IMPORT_S = 2.0  # the same during an import
# timeout(1) and torchrun signal a process and its group: what arrives so close together is one signal
TOGETHER_S = 0.5
CHILD_GRACE_S = 3.0  # between a child's SIGTERM and SIGKILL
POLL_S = 0.05
# a round of the watching thread counts as no more: while the whole process is stopped, or swapped out, no grace is used
MOST_ROUND_S = 5 * POLL_S
IMPORT_SYSTEM = "<frozen importlib._bootstrap>"  # the code that every import statement and import_module() runs
END = b"\0"  # no signal has this number


@dataclass(kw_only=True)
class _State:
    """The first signal received, what became of its exception, and the running children.

    Attributes:
        number: the signal's number.
        noticed: the main thread has run its handler.
        raised: its exception was raised.
        again: its exception is to be raised a moment later.
        importing: it is not raised because of an import.
        over: nothing is raised any more.
        shields: the number of blocks that hold it back.
        children: the programs of `child_session`.
        folders: those of `temporary_folder`.
        starting: held while a child is started and not yet among them.
    """

    number: int | None = None
    noticed: bool = False
    raised: bool = False
    again: bool = False
    importing: bool = False
    over: bool = False
    shields: int = 0
    children: set[subprocess.Popen[Any]] = field(default_factory=set)
    folders: set[Path] = field(default_factory=set)
    starting: threading.Lock = field(default_factory=threading.Lock)


_state = _State()


def exit_code() -> int | None:
    """128 and the number of the signal that ends this command; None if there was none."""
    return None if _state.number is None else 128 + _state.number


@contextlib.contextmanager
def handled(farewell: str, grace_s: float = GRACE_S) -> Iterator[None]:
    """Handle the signals within the block; after one it ends the children, prints `farewell` and raises SystemExit.

    A signal that the process was started to ignore, as by nohup(1), stays ignored. Outside the main thread, which alone
    can handle signals, nothing is done.

    Args:
        farewell: the line that a stopped command leaves on stderr; "" for none.
        grace_s: seconds from the first signal to the end by force.
    """
    if not _in_main_thread():
        yield
        return
    _state.number, _state.noticed = None, False
    _state.raised, _state.again, _state.importing, _state.over = False, False, False, False
    try:
        with _restored_handlers(), _watchdog(farewell, grace_s), _handlers():
            yield
    finally:
        code = exit_code()
        if code is not None:
            if farewell:
                print(farewell, file=sys.stderr)
            raise SystemExit(code)


@contextlib.contextmanager
def _watchdog(farewell: str, grace_s: float) -> Iterator[None]:
    """Run `_watch` in a thread that C code wakes when a signal arrives, even if the main thread is busy."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    former = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=_watch, args=(reader, farewell, grace_s), name="interrupts", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(former)
        os.write(writer, END)
        thread.join()
        os.close(writer)
        os.close(reader)


@contextlib.contextmanager
def _restored_handlers() -> Iterator[None]:
    """Restore the handlers of the signals after the block, when `_watch` has ended and sends no more."""
    former, former_hook = {number: signal.getsignal(number) for number in SIGNALS}, sys.unraisablehook
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        sys.unraisablehook = former_hook


@contextlib.contextmanager
def _handlers() -> Iterator[None]:
    """Handle the signals within the block, then end the children that it left behind."""
    former_hook = sys.unraisablehook

    def on_unraisable(event: sys.UnraisableHookArgs) -> None:
        # raised where Python can only report and drop it, as in the callback of a weak reference
        if event.exc_type is KeyboardInterrupt and _state.raised:
            _state.again = True
        else:
            former_hook(event)

    try:
        try:
            sys.unraisablehook = on_unraisable
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, _on_signal)
            yield
        finally:
            _state.over = True
    finally:
        end_children()


def _on_signal(number: int, frame: FrameType | None) -> None:
    _state.number, _state.noticed = _state.number or number, True
    if _state.raised or _state.over:
        return
    _state.importing = _imports(frame)
    if _state.importing:
        _state.again = True
    else:
        _raise_once()


def _imports(frame: FrameType | None) -> bool:
    """Whether a frame is part of an import."""
    while frame is not None:
        if frame.f_code.co_filename == IMPORT_SYSTEM:
            return True
        frame = frame.f_back
    return False


def _raise_once() -> None:
    if _state.raised or _state.shields or _state.over:
        return
    _state.raised, _state.again, _state.importing = True, False, False
    # not a subclass: subprocess.Popen waits for its child without end unless the exception is exactly this
    raise KeyboardInterrupt


def _watch(reader: int, farewell: str, grace_s: float) -> None:
    """End the process by force `grace_s` after the first signal, or at the second; return at END."""
    watched_s: float | None = None  # since the first signal
    now = time.monotonic()
    repeats = 0  # signals that this thread sent
    woken = False
    while True:
        before, now = now, time.monotonic()
        if watched_s is not None:
            watched_s += min(now - before, MOST_ROUND_S)
        limit_s = min(grace_s, IMPORT_S) if _state.importing else grace_s
        if watched_s is not None and watched_s >= limit_s:
            _end_by_force(farewell)
        if watched_s is not None and not (_state.noticed or woken):
            # the system gave the signal to another thread, and the main thread waits for a lock, which it does not end
            woken, repeats = True, repeats + 1
            _send_to_main_thread()
        if _state.again:
            time.sleep(POLL_S)
            if _state.again:  # else the end of a shield raised it meanwhile
                repeats += 1
                _repeat()
        if not select.select([reader], [], [], None if watched_s is None else POLL_S)[0]:
            continue
        numbers = os.read(reader, 64)
        if END in numbers:
            return
        signals = [number for number in numbers if number in SIGNALS]
        repeats, signals = max(0, repeats - len(signals)), signals[repeats:]
        if not signals:
            continue
        if watched_s is None:
            watched_s, now = 0.0, time.monotonic()
            _state.number = _state.number or signals[0]
            time.sleep(POLL_S)  # for the main thread to notice
        elif watched_s > TOGETHER_S:
            _end_by_force(farewell)


def _repeat() -> None:
    """Let the signal arrive in the main thread again."""
    _state.again = _state.raised = False
    _send_to_main_thread()


def _send_to_main_thread() -> None:
    """Send the signal, a real one, so that it also ends a call that waits."""
    signal.pthread_kill(threading.main_thread().ident or 0, _state.number or signal.SIGINT)


def _end_by_force(farewell: str) -> None:
    for child in list(_state.children):
        _signal_session(child, signal.SIGKILL)
    for folder in list(_state.folders):
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        # not through sys.stderr, whose lock the main thread may hold
        os.write(2, f"{farewell}\n".encode() if farewell else b"")
    os._exit(exit_code() or 1)


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Hold a signal's exception back until the block ends; the block must be short.

    For what an exception between two lines would break: a lock taken and not yet guarded, a child not yet listed.
    """
    if not _in_main_thread():
        yield
        return
    _state.shields += 1
    try:
        yield
    finally:
        _state.shields -= 1
        if _state.number is not None:
            _raise_once()


@contextlib.contextmanager
def child_session(argv: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Start a program in a session of its own; with the block, at an error or a signal, all its processes end.

    Args:
        argv: the program and its arguments.
        options: of subprocess.Popen.

    Raises:
        OSError: the program cannot be started.
    """
    with shielded(), _state.starting:
        process = subprocess.Popen(argv, start_new_session=True, **options)
        _state.children.add(process)
    try:
        with process:
            try:
                yield process
            finally:
                if process.returncode is None:
                    end_session(process)
    finally:
        _state.children.discard(process)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder for temporary files; it is removed with the block, and when the process is ended by force."""
    with tempfile.TemporaryDirectory(prefix="edgedistill-") as name:
        folder = Path(name)
        _state.folders.add(folder)
        try:
            yield folder
        finally:
            _state.folders.discard(folder)


def end_session(process: subprocess.Popen[Any]) -> None:
    """End a program of `child_session` and all its processes, by SIGTERM, and by SIGKILL after CHILD_GRACE_S.

    SIGTERM comes first because the program may be a client of another, as of a container, and has to end that one.
    """
    _end_sessions([process])


def end_children() -> None:
    """End every program of `child_session` that is still running, in whatever thread it was started."""
    with _state.starting:
        children = list(_state.children)
    _end_sessions(children)


def _end_sessions(processes: Sequence[subprocess.Popen[Any]]) -> None:
    for process in processes:
        _signal_session(process, signal.SIGTERM)
    deadline = time.monotonic() + CHILD_GRACE_S
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        _signal_session(process, signal.SIGKILL)


def _signal_session(process: subprocess.Popen[Any], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
