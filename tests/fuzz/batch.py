"""Runs inputs and judges what came of each; in this process, or in children that may crash or hang."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.fuzz.kind import CANARY, Kind
from tests.fuzz.sandbox import ForbiddenError, watch
from tests.helpers.paths import ROOT

LIMIT_S = 60.0  # for one input, of which most take milliseconds: a machine that is busy is no hang
START_S = 300.0  # for what a child imports and prepares
MEMORY_BYTES = 6 << 30  # what a child may allocate
MAX_LINE = 2000  # characters of a line that is printed to a person
CHILDREN = 2  # at a time
MAX_ENDED = 20  # children of a part, after which it is given up
OUTCOMES, LOG, DONE = "outcomes.jsonl", "log", "done"
SAVED = "EDGEDISTILL_FUZZ_SAVED"  # the variable by which a child knows where its parent keeps inputs


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of an input: accepted, refused, or failed (`problem`), with the file that it was saved to."""

    index: int
    refused: str = ""
    problem: str = ""
    saved: str = ""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The outcomes of a kind's inputs, and how long they took."""

    kind: str
    seed: int
    outcomes: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def failures(self) -> list[Outcome]:
        """The outcomes with a problem."""
        return [outcome for outcome in self.outcomes if outcome.problem]

    def summary(self) -> str:
        """One line: how many inputs, and what came of them."""
        refused = sum(bool(outcome.refused) for outcome in self.outcomes)
        return (
            f"{self.kind}: {len(self.outcomes)} inputs of seed {self.seed} in {self.seconds:.1f} s: "
            f"{refused} refused, {len(self.failures)} failed"
        )

    def report(self) -> str:
        """The summary, and each kind of failure once, with the command that repeats the first one."""
        alike: dict[str, list[Outcome]] = {}
        for outcome in self.failures:
            alike.setdefault(
                re.sub(r"[0-9]+|'[^']*'|0x\w+", "", outcome.problem)[:80] + outcome.problem[-60:], []
            ).append(outcome)
        blocks = [
            f"{outcomes[0].problem}\n  inputs: {', '.join(str(outcome.index) for outcome in outcomes)[:300]}\n"
            f"  again: python -m tests.fuzz {self.kind} --seed {self.seed} --only {outcomes[0].index}\n"
            f"  saved: {outcomes[0].saved}"
            for outcomes in alike.values()
        ]
        return "\n\n".join([self.summary(), *blocks])


def run_here(
    kind: Kind,
    seed: int,
    indices: Iterable[int],
    folder: Path,
    announce: Callable[[int, bytes], object] = lambda index, content: None,
) -> Iterator[Outcome]:
    """Run inputs in this process; `folder` is empty, and `announce` is called before each."""
    prepare(kind, folder)
    for index in indices:
        content = kind.input(seed, index)
        announce(index, content)
        try:
            refused, problem = judged(kind, content, folder)
        except Exception as error:
            refused, problem = "", _traceback(error)
        saved = str(save(kind, seed, index, content)) if problem else ""
        yield Outcome(index=index, refused=refused, problem=problem, saved=saved)


def prepare(kind: Kind, folder: Path) -> None:
    """Fill the folder, and make sure that a valid input is accepted: else no change of it would reach far."""
    kind.prepare(folder)
    path = folder / kind.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(kind.valid())
    with _quiet():
        kind.call(path)


def judged(kind: Kind, content: bytes, folder: Path) -> tuple[str, str]:
    """What an input was refused with, and what is wrong with the answer; any other error is raised."""
    path = folder / kind.file
    path.write_bytes(content)
    refused, problem = "", ""
    with watch(folder) as watched, _quiet():
        try:
            kind.call(path)
        except kind.errors as error:
            refused = str(error)
            problem = unreadable(refused, kind.lines)
        except ForbiddenError:
            pass
        except SystemExit as error:
            problem = f"exits with {error.code!r}"
    if watched.violations:
        problem = f"forbidden: {watched.violations[0]}"
    for trace in folder.rglob(CANARY):
        trace.unlink()
        problem = "a command of the input was run"
    return refused, problem


def unreadable(message: str, may_have_lines: bool = False) -> str:
    """Why a message is none for a person: it is empty, of several lines, too long, or moves the cursor."""
    lines = message.split("\n")
    if not message.strip() or (len(lines) > 1 and not may_have_lines):
        return f"the message is not one line: {message!r}"
    if long_lines := [line for line in lines if len(line) > MAX_LINE]:
        return f"a line of the message has {len(long_lines[0])} characters: {long_lines[0][:300]!r}..."
    if any(ord(letter) < 32 or letter == "\x7f" for line in lines for letter in line):
        return f"the message has control characters: {message[:300]!r}"
    return ""


def _traceback(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    places = "".join(f"\n    {frame.filename}:{frame.lineno} {frame.name}" for frame in frames)
    return f"{type(error).__name__}: {str(error)[:500]}{places}"


def save(kind: Kind, seed: int, index: int, content: bytes) -> Path:
    """Write an input to a file that outlives the run."""
    folder = Path(os.environ.get(SAVED) or Path(tempfile.gettempdir()) / "edgedistill-fuzz")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kind.name}-{seed}-{index}{Path(kind.file).suffix}"
    path.write_bytes(content)
    return path


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what is printed away from the terminal."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def work(kind: Kind, seed: int, indices: range, folder: Path, limit_s: float) -> None:
    """The work of a child: write an outcome a line, the index of an input before it runs, and a mark at the end."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    inputs = folder / "inputs"
    inputs.mkdir()
    os.chdir(inputs)
    with (folder / OUTCOMES).open("a", encoding="utf-8", buffering=1) as lines, (folder / LOG).open("w") as log:

        def announce(index: int, content: bytes) -> None:
            lines.write(json.dumps({"index": index}) + "\n")
            faulthandler.dump_traceback_later(limit_s, exit=True, file=log)

        faulthandler.enable(log)
        faulthandler.dump_traceback_later(START_S, exit=True, file=log)
        for outcome in run_here(kind, seed, indices, inputs, announce=announce):
            lines.write(json.dumps(asdict(outcome)) + "\n")
        faulthandler.cancel_dump_traceback_later()
    (folder / DONE).touch()


def run_children(kind: Kind, seed: int, indices: range, folder: Path, limit_s: float = LIMIT_S) -> Batch:
    """Run inputs in children, two at a time; after a crash or a hang, a failure of that input, another one goes on.

    Raises:
        RuntimeError: a child ends before its first input, or between two.
    """
    begin = time.monotonic()

    def run_part(part: int) -> list[Outcome]:
        return list(_run_part(kind, seed, indices[part::CHILDREN], folder=folder / str(part), limit_s=limit_s))

    with ThreadPoolExecutor(CHILDREN) as pool:
        parts = list(pool.map(run_part, range(CHILDREN)))
    outcomes = sorted((outcome for part in parts for outcome in part), key=lambda outcome: outcome.index)
    return Batch(kind=kind.name, seed=seed, outcomes=outcomes, seconds=time.monotonic() - begin)


def _run_part(kind: Kind, seed: int, indices: range, *, folder: Path, limit_s: float) -> Iterator[Outcome]:
    """Run inputs in one child after another: each crash and each hang takes one."""
    for number in range(MAX_ENDED):
        child_folder = folder / str(number)
        child_folder.mkdir(parents=True)
        command = [sys.executable, "-m", "tests.fuzz", kind.name, "--seed", str(seed), "--limit", str(limit_s)]
        command += ["--work", str(child_folder), f"--range={indices.start}:{indices.stop}:{indices.step}"]
        process = subprocess.run(command, cwd=ROOT, env=_environment(child_folder), capture_output=True, check=False)
        announced, ended = _read(child_folder)
        yield from ended
        if (child_folder / DONE).exists():
            return
        if len(announced) == len(ended):
            text = process.stderr.decode("utf-8", "replace")
            raise RuntimeError(f"{kind.name}: a child ended with {process.returncode} between inputs:\n{text[-3000:]}")
        index, log = announced[-1], (child_folder / LOG).read_text(encoding="utf-8", errors="replace")
        ending = f"took longer than {limit_s:g} s" if "Timeout" in log else f"ended the process ({process.returncode})"
        saved = save(kind, seed, index, kind.input(seed, index))
        yield Outcome(index=index, problem=f"it {ending}\n{log[:3000]}", saved=str(saved))
        indices = range(index + indices.step, indices.stop, indices.step)


def _read(folder: Path) -> tuple[list[int], list[Outcome]]:
    """The inputs that a child announced, and the outcomes of those that it ended."""
    path = folder / OUTCOMES
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    ended = [Outcome(**entry) for entry in entries if len(entry) > 1]
    return [entry["index"] for entry in entries if len(entry) == 1], ended


def _environment(folder: Path) -> dict[str, str]:
    """This environment with every cache in the folder, libraries offline, and one thread for each."""
    caches = {name: str(folder / "cache") for name in ("HF_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "TORCH_HOME")}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    saved = os.environ.get(SAVED) or str(Path(tempfile.gettempdir()) / "edgedistill-fuzz")
    return {**os.environ, **caches, **offline, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1", SAVED: saved}
