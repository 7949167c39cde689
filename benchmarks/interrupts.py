"""Seconds from a signal to the end of `edgedistill run`, at thirty moments of a small run.

    python -m benchmarks.interrupts

The run is started thirty times. Each time it goes on from where it was, and is interrupted when its log has the start
of a step, or so many seconds after: alternately by Ctrl-C, a SIGINT to the process group, and by SIGTERM to the process
alone. The claim: every one ends within five seconds, leaves no process and no temporary folder, and the student at the
end is that of an uninterrupted run, byte for byte.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.lines import append
from edgedistill.console import say
from edgedistill.run import artifacts
from edgedistill.run.files import json_lines, sha256_file

RECIPE = """\
name: small
data: {kind: folder, root: pictures, unlabeled: more, labels_per_class: 10, val_fraction: 0.3}
sources:
  - {name: first, kind: timm, model: resnet10t, pretrained: false, input_px: 32}
  - {name: second, kind: timm, model: resnet10t, pretrained: false, input_px: 32, seed: 1}
weigh: {metric: parc, also: [], bootstrap: 5}
student:
  families:
    micro: {width: [4, 8], input_px: 32}
search: {trials: 2, steps: 40}
distill: {steps: 400, batch_labeled: 12, batch_unlabeled: 4, checkpoint_every: 5, evaluate_every: 50}
quantize: {calibration_images: 16}
bench: {processes: 1, rounds: 2, samples: 4, seconds: 0.5}
"""
# step -> seconds after its start; a step that was interrupted begins again, or goes on from its checkpoint
MOMENTS: dict[str, tuple[float, ...]] = {
    "weigh": (0.0, 0.1, 0.3),
    "search": (0.0, 0.1, 0.2, 0.3),
    "distill": (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35),
    "export": (0.0, 0.3, 0.6, 0.9),
    "quantize": (0.0, 0.05),
    "keep": (0.0, 0.3, 0.6),
    "verify": (0.0,),
    "bench": (0.0, 0.1, 0.2, 0.3),
    "report": (0.0,),
}
SIGNALS = (signal.SIGINT, signal.SIGTERM)
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # else threads of other programs on the same cores make a step ten times as long
LIMIT_S, START_LIMIT_S, SETTLE_S = 60.0, 300.0, 2.0
STUDENT = artifacts.STUDENT_WEIGHTS.path


@dataclass(frozen=True, kw_only=True)
class Interruption:
    """One interrupted start of the run.

    Attributes:
        step: the step whose start the log had.
        after_s: seconds from there to the signal.
        signal: its name.
        seconds: from the signal to the end of the process; infinite if it had to be killed.
        code: the exit code.
        stderr: what it printed.
        left: its processes that still ran, and its temporary files.
    """

    step: str
    after_s: float
    signal: str
    seconds: float
    code: int
    stderr: str
    left: tuple[str, ...]


def write_project(folder: Path) -> Path:
    """Write pictures of stripes and the recipe; return the recipe's path."""
    random = np.random.default_rng(0)
    parts = {"pictures/train/lying": 14, "pictures/train/upright": 14, "pictures/test/lying": 8}
    for part, count in {**parts, "pictures/test/upright": 8, "more": 12}.items():
        (folder / part).mkdir(parents=True)
        for index in range(count):
            stripes = 60 * np.sin(np.arange(40) * 2 * np.pi / random.uniform(6, 11) + random.uniform(0, 5))
            gray = 128 + (stripes[None, :] if "upright" in part else stripes[:, None]) + random.normal(0, 20, (40, 40))
            Image.fromarray(np.clip(gray, 0, 255).astype(np.uint8)).save(folder / part / f"{index:02d}.png")
    (folder / "temporary").mkdir()
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    return recipe


def command(recipe: Path) -> list[str]:
    """The run's command line."""
    return [sys.executable, "-m", "edgedistill", "run", str(recipe), "--runs", str(recipe.parent / "runs")]


def started_steps(recipe: Path) -> list[str]:
    """The steps that log.jsonl has the start of, in order, without the names behind `bench`."""
    texts = [path.read_text(encoding="utf-8") for path in recipe.parent.glob(f"runs/*/{artifacts.LOG.path}")]
    lines = [line for text in texts for line, _ in json_lines(text)]
    return [line["step"].partition("-")[0] for line in lines if line["event"] == "start"]


def interrupt(recipe: Path, step: str, after_s: float, number: signal.Signals) -> Interruption:
    """Start the run, and interrupt it `after_s` after the start of `step`, or when it ends before.

    Raises:
        RuntimeError: it ended, or did not come so far within START_LIMIT_S.
    """
    mark, temporary, before = uuid.uuid4().hex, recipe.parent / "temporary", len(started_steps(recipe))
    environment = {**os.environ, **ONE_THREAD, "EDGEDISTILL_MARK": mark, "TMPDIR": str(temporary)}
    with (recipe.parent / "stderr.txt").open("w+", encoding="utf-8") as stderr:
        process = subprocess.Popen(
            command(recipe), stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True, env=environment
        )
        deadline = time.monotonic() + START_LIMIT_S
        while step not in started_steps(recipe)[before:]:
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise RuntimeError(f"{step} was not started: {(recipe.parent / 'stderr.txt').read_text()}")
            time.sleep(0.005)
        time.sleep(after_s)
        began = time.monotonic()
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        try:
            process.wait(LIMIT_S)
            seconds = time.monotonic() - began
        except subprocess.TimeoutExpired:
            seconds = float("inf")
        left = remains(mark, temporary)
        process.kill()
        process.wait()
        stderr.seek(0)
        return Interruption(
            step=step,
            after_s=after_s,
            signal=number.name,
            seconds=seconds,
            code=process.returncode,
            stderr=stderr.read(),
            left=left,
        )


def remains(mark: str, temporary: Path) -> tuple[str, ...]:
    """The processes with the mark that are still there after SETTLE_S, and our folders in the temporary folder."""
    deadline = time.monotonic() + SETTLE_S
    while (running := processes_of(mark)) and time.monotonic() < deadline:
        time.sleep(0.01)
    folders = [path.name for prefix in ("edgedistill-*", "agent-*") for path in temporary.glob(prefix) if path.is_dir()]
    return (*running, *folders)


def processes_of(mark: str) -> list[str]:
    """Command lines of the running processes whose environment has the mark; Linux only."""
    commands = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and mark.encode() in (folder / "environ").read_bytes():
                commands.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return commands


def interruptions(recipe: Path, numbers: Sequence[signal.Signals] = SIGNALS) -> Iterator[Interruption]:
    """Interrupt the run at those of the moments that are a signal's in `numbers`; SIGNALS take turns."""
    moments = [(step, after_s) for step, delays_s in MOMENTS.items() for after_s in delays_s]
    for (step, after_s), number in zip(moments, itertools.cycle(SIGNALS), strict=False):
        if number in numbers:
            yield interrupt(recipe, step, after_s, number)


def finish(recipe: Path) -> str:
    """Run to the end; return the sha256 of the student."""
    subprocess.run(command(recipe), check=True, capture_output=True, env={**os.environ, **ONE_THREAD})
    return sha256_file(next((recipe.parent / "runs").glob(f"*/{STUDENT}")))


def table(lines: Sequence[dict[str, Any]]) -> str:
    """The newest line as Markdown, a row a signal."""
    line = lines[-1]
    rows = [
        "| signal | interrupts | seconds to the end: median | greatest, in | left behind | student at the end | on "
        "| commit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in (number.name for number in SIGNALS):
        events = [event for event in line["events"] if event["signal"] == name]
        slowest = max(events, key=lambda event: float(event["seconds"]))
        median_s = statistics.median(event["seconds"] for event in events)
        left = sum(len(event["left"]) for event in events)
        rows.append(
            f"| {name} | {len(events)} | {median_s:.2f} | {slowest['seconds']:.2f}, {slowest['step']} "
            f"| {left or 'nothing'} | {'the same' if line['same_student'] else 'another'} "
            f"| {line['cpu']}, {line['cores']} cores | {line['commit']} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Interrupt the run at every moment, finish it, compare the student, and append a line."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, and their children, ignore it
    with tempfile.TemporaryDirectory(prefix="edgedistill-") as folder:
        recipes = [write_project(Path(folder) / name) for name in ("interrupted", "uninterrupted")]
        events = []
        for event in interruptions(recipes[0]):
            say(f"{event.signal:<8} {event.seconds:6.2f} s  {event.step} + {event.after_s} s: exit code {event.code}")
            events.append({name: entry for name, entry in asdict(event).items() if name != "stderr"})
        students = {finish(recipe) for recipe in recipes}
    say(str(append("interrupts", {"events": events, "same_student": len(students) == 1})))


if __name__ == "__main__":
    main()
