"""All cells of a profile, in several processes: what stands in the lines is not run again, a kill loses one cell each.

Seeds come first, then targets, then methods: a suite that is stopped early has whole rows, with fewer seeds.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from filelock import FileLock

from benchmarks.lines import append, read
from benchmarks.suite.bank import Bank
from edgedistill.console import say
from edgedistill.errors import InputError
from edgedistill.run import environment
from edgedistill.run.files import digest


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which cells: every method on every target with every seed."""

    targets: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]


def key_of(line: dict[str, Any]) -> tuple[Any, ...]:
    """What makes two lines the same cell."""
    return tuple(line.get(name) for name in ("kind", "profile", "target", "method", "seed", "pack", "config"))


def run(bank: Bank, wanted: Wanted, processes: int, minutes: float = float("inf")) -> None:
    """Run what no line has yet; no cell is begun after `minutes`."""
    until = time.time() + 60 * minutes
    done = {key_of(line) for line in read("suite")}
    draws = product(dict.fromkeys(wanted.seeds), dict.fromkeys(wanted.targets))
    jobs = [
        (bank, target, seed, missing, until)
        for seed, target in draws
        if (missing := _missing(bank, target, seed=seed, methods=wanted.methods, done=done))
    ]
    say(f"{sum(len(job[3]) for job in jobs)} cells to run, in {len(jobs)} draws, {processes} processes")
    if processes == 1:
        one_thread()
        for job in jobs:
            _work(job)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    with multiprocessing.get_context("spawn").Pool(processes, initializer=one_thread) as pool:
        for _ in pool.imap_unordered(_work, jobs):
            pass


def _missing(bank: Bank, target: str, seed: int, methods: Sequence[str], done: set[tuple[Any, ...]]) -> list[str]:
    """The methods of one draw that no line has, `draw` (what the sources are worth) first."""
    cells = ["draw", *(one for method in methods for one in _expanded(bank, target, method))]
    return [one for one in dict.fromkeys(cells) if key_of(_stub(bank, target, one, seed)) not in done]


def _expanded(bank: Bank, target: str, method: str) -> list[str]:
    """`single` is one cell a source."""
    return [f"single:{source}" for source in bank.names_for(target)] if method == "single" else [method]


def _stub(bank: Bank, target: str, cell: str, seed: int) -> dict[str, Any]:
    """As much of a cell's line as its key is made of."""
    kind = {"kind": "draw"} if cell == "draw" else {"kind": "run", "method": cell}
    return {
        **kind,
        "profile": bank.profile.name,
        "target": target,
        "seed": seed,
        "pack": digest(bank.pictures(target))[:16],
        "config": bank.profile.config(cell),
    }


def one_thread() -> None:
    """One thread for torch and for numpy's matrix products: how many take part shows in the last digits."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    threadpool_limits(1)


def _work(job: tuple[Bank, str, int, list[str], float]) -> None:
    from benchmarks.suite import cells

    bank, target, seed, methods, until = job
    draw = cells.Draw(bank=bank, target=target, seed=seed)
    for method in methods:
        above = multiprocessing.parent_process()
        if time.time() > until or (above is not None and not above.is_alive()):
            return  # out of time, or the suite was killed and this worker is all that is left of it
        line = cells.draw_line(draw) if method == "draw" else cells.cell(draw, method)
        with FileLock(bank.runs / ".lines.lock"):
            if key_of(line) not in {key_of(one) for one in read("suite")}:  # another suite may have been as quick
                append("suite", line)
        found = f"top-1 {line['top1']:.3f} balanced {line['balanced_accuracy']:.3f}" if "top1" in line else ""
        say(f"{target} seed {seed} {method} {found} {line.get('train_seconds', '')}")


def repeat(bank: Bank, target: str, method: str, seed: int) -> int:
    """Run one cell again and print it beside its newest line, of this processor if there is one; 1 where they differ.

    Raises:
        InputError: no line of the cell is committed.
    """
    from benchmarks.suite import cells

    one_thread()
    line = cells.cell(cells.Draw(bank=bank, target=target, seed=seed), method)
    known = sorted(
        (one for one in read("suite") if key_of(one) == key_of(line)),
        key=lambda one: (one["cpu"] == environment.processor(), one["measured"]),
    )
    say(f"now: top-1 {line['top1']} balanced {line['balanced_accuracy']} of {line['n_test']} test images")
    if not known:
        raise InputError(f"no line of {target}, {method}, seed {seed} is committed", "nothing to compare with")
    say(f"committed: top-1 {known[-1]['top1']} balanced {known[-1]['balanced_accuracy']} ({known[-1]['cpu']})")
    return int(any(line[name] != known[-1][name] for name in ("top1", "balanced_accuracy", "n_test")))


def prepare(bank: Bank, targets: Sequence[str], processes: int) -> None:
    """Train the sources and compute what they say of every target: several processes, a source each."""
    bank.initial()
    sources = sorted({name for target in targets for name in bank.names_for(target)})
    with multiprocessing.get_context("spawn").Pool(processes, initializer=one_thread) as pool:
        for name in pool.imap_unordered(_ready, [(bank, name) for name in sources]):
            say(f"source {name}: trained")
        pairs = [(bank, name, target) for target in targets for name in bank.names_for(target)]
        for name, target in pool.imap_unordered(_told, pairs):
            say(f"source {name}: its outputs on {target}")


def _ready(job: tuple[Bank, str]) -> str:
    job[0].section(job[1])
    return job[1]


def _told(job: tuple[Bank, str, str]) -> tuple[str, str]:
    bank, name, target = job
    bank.outputs(name, target)
    return name, target
