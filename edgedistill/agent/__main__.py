"""`python agent.pyz job.json` writes report.json beside the job; `python agent.pyz --facts` prints what is here.

Progress goes to stdout as `progress DONE/ALL`. Errors are one line on stderr; exit code 2 when the job or the device
is not as it should be, 130 and 143 after Ctrl-C and SIGTERM, 1 for anything else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, Dict, Iterator, List, NoReturn, Optional, Sequence

from . import job as jobs
from .alone import alone
from .job import AgentError, Job

PICK_UP_S = 24 * 3600.0  # how old what an interrupted run left may be


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run one job, or one process of it; returns the exit code."""
    given = _arguments(argv)
    try:
        if given.facts:
            print(json.dumps(_facts()))
        elif given.worker is not None:
            _work(given.job, given.worker, given.part)
        else:
            with _ending_on_sigterm():
                _run(given.job)
    except KeyboardInterrupt:
        # one line: a worker gets the terminal's signal, too
        return 130 if given.worker is not None else _say("stopped; the same command goes on from here", 130)
    except AgentError as error:
        return _say(str(error), error.exit_code)
    except ImportError as error:
        return _say(f"{error}; {sys.executable} -m pip install {error.name or 'numpy'}", 2)
    except Exception as error:
        return _say(f"{type(error).__name__}: {error}", 1)
    return 0


@contextlib.contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into SystemExit: by default it would leave the worker running, which slows the next measurement."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _exit(number: int, frame: Optional[FrameType]) -> NoReturn:
    raise SystemExit(128 + number)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait for the end of the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: List[int] = []
    former = {number: signal.signal(number, lambda number, frame: arrived.append(number))
              for number in (signal.SIGINT, signal.SIGTERM)}  # fmt: skip
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        for first in arrived[:1]:
            signal.raise_signal(first)


def _arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="agent.pyz", description="measure a bundle on this device")
    parser.add_argument("job", nargs="?", type=Path, help="job.json")
    parser.add_argument("--facts", action="store_true", help="print what this machine and its runtimes are")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--part", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.job is None and not given.facts:
        parser.error("name the job.json")
    return given


def _say(message: str, code: int) -> int:
    print(f"agent: {' '.join(message.split())[:2000]}", file=sys.stderr, flush=True)
    return code


def _work(path: Path, index: int, part: Path) -> None:
    job = jobs.read(path)
    jobs.check_hashes(job)
    # numpy is asked for only after the files are known to be the right ones
    from . import worker

    jobs.write_json(part, {"job": jobs.sha256_file(path), **worker.work(job, index)})


def _run(path: Path) -> None:
    job = jobs.read(path)
    jobs.check_hashes(job)
    from . import backends, machine, verdict, worker

    backends.create(job.backend)
    _, labels_N, host = worker.load_data(job)
    mine = jobs.sha256_file(path)
    places = [path.resolve().with_name(f"part-{index}.json") for index in range(job.processes)]
    kept = [_kept(place, mine) for place in places]
    with alone(lambda said: print(said, flush=True)):
        parts = [part or _process(path, index, job, place)
                 for index, (part, place) in enumerate(zip(kept, places))]  # fmt: skip
    facts = {
        **machine.identity(),
        "threads": job.threads,
        "runtime": parts[0]["backend"],
        "processes": [part["process"] for part in parts],
        "picked_up": sum(part is not None for part in kept),
    }
    report = {
        "version": jobs.VERSION,
        "backend": job.backend,
        "backend_version": parts[0]["backend"]["version"],
        "facts": facts,
        "results": verdict.results(job, parts, labels_N, host),
    }
    jobs.write_json(path.resolve().with_name("report.json"), report)
    for place in places:
        # a part is for a run that was interrupted: the same job asked for again is measured again
        place.unlink()


def _kept(place: Path, mine: str) -> Optional[Dict[str, Any]]:
    """What a process of this very job left behind before the run was interrupted; of long ago, it is another run's."""
    try:
        if time.time() - place.stat().st_mtime > PICK_UP_S:
            return None
        part: Dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return part if part.get("job") == mine else None


def _process(path: Path, index: int, job: Job, part: Path) -> Dict[str, Any]:
    program: Optional["subprocess.Popen[bytes]"] = None
    try:
        with _signals_held():  # else an exception could come between its start and the assignment
            program = subprocess.Popen([*_myself(), str(path), "--worker", str(index), "--part", str(part)])
        code = program.wait()
    finally:
        if program is not None and program.poll() is None:
            program.kill()
            program.wait()
    if code < 0:
        which = f"process {index + 1} of {job.processes}"
        raise AgentError(f"{which} ended by signal {-code}; is there enough memory?", exit_code=1)
    if code:
        # the process has said what was wrong; a second line would bury it
        raise SystemExit(code)
    result: Dict[str, Any] = json.loads(part.read_text(encoding="utf-8"))
    return result


def _myself() -> List[str]:
    root = Path(__file__).absolute().parents[1]
    return [sys.executable, str(root)] if root.is_file() else [sys.executable, "-m", str(__package__)]


def _facts() -> Dict[str, Any]:
    from . import backends, machine

    return {**machine.state(), **machine.identity(), "backends": backends.available()}


if __name__ == "__main__":
    sys.exit(main())
