"""Latency of several models in turn, each in a worker of its own environment, so that all see the same machine.

In every round each worker is asked for some queries while the others are blocked; who begins rotates. Everything is
repeated with fresh processes: what a process keeps for its life (its memory layout) is drawn anew.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from benchmarks.quantize.environments import SERVE, Artefact, PeerError, last_line
from edgedistill.agent.metrics import ratio_interval
from edgedistill.console import bar

Samples = dict[str, list[list[list[float]]]]  # ms by model, process, round


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured; `warm` is seconds a worker."""

    processes: int = 3
    rounds: int = 5
    queries: int = 20
    warm: float = 1.0


class Worker:
    """A model in a process that answers `ask`."""

    def __init__(self, artefact: Artefact, images: Path) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self.process = subprocess.Popen(
            [str(artefact.python), str(SERVE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        try:
            self.facts = self.ask(
                {
                    "load": str(artefact.path),
                    "runtime": artefact.runtime,
                    "threads": 1,
                    "images": str(images),
                    "simulate": artefact.simulate,
                }
            )["facts"]
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one command; PeerError where it fails or the process has died."""
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = self.process.wait()
            self.errors.seek(0)
            raise PeerError(f"exit status {status}: {last_line(self.errors.read())}")
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise PeerError(last_line(answer["failed"]))
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def predicted(artefact: Artefact, images: Path, out: Path, first: int | None) -> tuple[np.ndarray, dict[str, str]]:
    """Logits float32 [N, C] of the first images of a file (all for None), and what the runtime says of itself."""
    with Worker(artefact, images) as worker:
        worker.ask({"predict": str(images), "out": str(out), "simulate": artefact.simulate, "first": first})
        logits_NC: np.ndarray = np.load(out)
        return logits_NC, worker.facts


def timed(artefacts: Sequence[Artefact], images: Path, plan: Plan) -> tuple[Samples, dict[str, str]]:
    """Raw samples in ms of every model, and why those are missing that are; those simulated are not timed."""
    samples: Samples = {}
    failed: dict[str, str] = {}
    for at in range(plan.processes):
        going = [one for one in artefacts if not one.simulate and one.name not in failed]
        with bar(f"timing, process {at + 1} of {plan.processes}", plan.rounds) as shown, ExitStack() as stack:
            workers: dict[str, Worker] = {}
            for one in going:
                try:
                    workers[one.name] = stack.enter_context(Worker(one, images))
                    workers[one.name].ask({"warm": plan.warm})
                except PeerError as error:
                    failed[one.name] = str(error)
            for round_ in range(plan.rounds):
                _one_round(workers, (at, round_), queries=plan.queries, samples=samples, failed=failed)
                shown(1)
    return {name: one for name, one in samples.items() if name not in failed}, failed


def _one_round(
    workers: Mapping[str, Worker], cell: tuple[int, int], queries: int, samples: Samples, failed: dict[str, str]
) -> None:
    process, round_ = cell
    names = [name for name in workers if name not in failed]
    for name in (*names[(first := (process + round_) % max(1, len(names))) :], *names[:first]):
        try:
            taken_ms = workers[name].ask({"time": queries})["samples_ms"]
        except PeerError as error:
            failed[name] = str(error)
            continue
        mine = samples.setdefault(name, [])
        if len(mine) == process:
            mine.append([])
        mine[process].append([round(one, 3) for one in taken_ms])


def ratio(base: Sequence[Sequence[Sequence[float]]], mine: Sequence[Sequence[Sequence[float]]]) -> list[float] | None:
    """[median, low, high] of how many times as fast as the base; None below four rounds."""
    cells = [[[float(np.median(round_)) for round_ in part] for part in side] for side in (base, mine)]
    found = ratio_interval(cells[0], cells[1])
    return None if found is None else [round(one, 4) for one in found]
