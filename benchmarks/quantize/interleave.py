"""Latency of several models in turn, each in a worker process of its own environment, so that all see the same machine.

In every round each worker runs some queries while the others are blocked; the first worker rotates. Everything is
repeated with fresh processes, because properties of a process's life (its memory layout) are random.
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

from benchmarks.quantize.environments import SERVE, Artifact, PeerError, last_line
from edgedistill.agent.metrics import ratio_interval
from edgedistill.console import bar

Samples = dict[str, list[list[list[float]]]]  # ms by model, process, round


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Numbers of processes, rounds and queries a round; `warm` is the seconds that each worker warms up."""

    processes: int = 3
    rounds: int = 5
    queries: int = 20
    warm: float = 1.0


class Worker:
    """A model in a process of its own, which answers `request`."""

    def __init__(self, artifact: Artifact, images: Path) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self.process = subprocess.Popen(
            [str(artifact.python), str(SERVE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        try:
            self.facts = self.request(
                {
                    "load": str(artifact.path),
                    "runtime": artifact.runtime,
                    "threads": 1,
                    "images": str(images),
                    "simulate": artifact.simulate,
                }
            )["facts"]
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def request(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Send one command and return the reply; raises PeerError where the command fails or the process has died."""
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def predict(artifact: Artifact, images: Path, out: Path, first: int | None) -> tuple[np.ndarray, dict[str, str]]:
    """Compute logits float32 [N, C] of the first images of a file (None: all); also returns the runtime's facts."""
    with Worker(artifact, images) as worker:
        worker.request({"predict": str(images), "out": str(out), "simulate": artifact.simulate, "first": first})
        logits_NC: np.ndarray = np.load(out)
        return logits_NC, worker.facts


def time_in_turns(artifacts: Sequence[Artifact], images: Path, plan: Plan) -> tuple[Samples, dict[str, str]]:
    """Time every model that is not simulated; returns the raw samples in ms and the errors of models that failed."""
    samples: Samples = {}
    failed: dict[str, str] = {}
    for process in range(plan.processes):
        running = [artifact for artifact in artifacts if not artifact.simulate and artifact.name not in failed]
        with bar(f"timing, process {process + 1} of {plan.processes}", plan.rounds) as advance, ExitStack() as stack:
            workers: dict[str, Worker] = {}
            for artifact in running:
                try:
                    workers[artifact.name] = stack.enter_context(Worker(artifact, images))
                    workers[artifact.name].request({"warm": plan.warm})
                except PeerError as error:
                    failed[artifact.name] = str(error)
            for round_ in range(plan.rounds):
                _one_round(workers, (process, round_), queries=plan.queries, samples=samples, failed=failed)
                advance(1)
    return {name: process_samples for name, process_samples in samples.items() if name not in failed}, failed


def _one_round(
    workers: Mapping[str, Worker], cell: tuple[int, int], queries: int, samples: Samples, failed: dict[str, str]
) -> None:
    process, round_ = cell
    names = [name for name in workers if name not in failed]
    for name in (*names[(first := (process + round_) % max(1, len(names))) :], *names[:first]):
        try:
            round_ms = workers[name].request({"time": queries})["samples_ms"]
        except PeerError as error:
            failed[name] = str(error)
            continue
        processes_ms = samples.setdefault(name, [])
        if len(processes_ms) == process:
            processes_ms.append([])
        processes_ms[process].append([round(sample_ms, 3) for sample_ms in round_ms])


def ratio(
    base: Sequence[Sequence[Sequence[float]]], samples: Sequence[Sequence[Sequence[float]]]
) -> list[float] | None:
    """[median, low, high] of the base's latency over that of `samples`; None of too few rounds."""
    cells = [[[float(np.median(round_)) for round_ in process] for process in side] for side in (base, samples)]
    interval = ratio_interval(cells[0], cells[1])
    return None if interval is None else [round(bound, 4) for bound in interval]
