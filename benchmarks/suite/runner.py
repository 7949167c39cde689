"""Run all cells of a profile in several processes; a cell with a line is not run again, a kill loses one cell each.

The order is by seed, then target, then method: a suite that is stopped early has complete rows, with fewer seeds.
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
class Selection:
    """The cells to run: every method on every target with every seed."""

    targets: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]


CELL = ("kind", "profile", "target", "method", "seed", "pack", "config")  # the fields that identify a cell


def key_of(line: dict[str, Any]) -> tuple[Any, ...]:
    """The identity of a line: its cell, and the processor, as lines of two are not compared."""
    return tuple(line.get(name) for name in (*CELL, "cpu"))


def run(bank: Bank, selection: Selection, processes: int, minutes: float = float("inf")) -> None:
    """Run every cell that has no line yet; no cell is begun after `minutes`."""
    deadline = time.time() + 60 * minutes
    finished = {key_of(line) for line in read("suite")}
    draws = product(dict.fromkeys(selection.seeds), dict.fromkeys(selection.targets))
    jobs = [
        (bank, target, seed, missing, deadline)
        for seed, target in draws
        if (missing := _missing(bank, target, seed=seed, methods=selection.methods, finished=finished))
    ]
    say(f"{sum(len(job[3]) for job in jobs)} cells to run, in {len(jobs)} draws, {processes} processes")
    if processes == 1:
        use_one_thread()
        for job in jobs:
            _run_job(job)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    with multiprocessing.get_context("spawn").Pool(processes, initializer=use_one_thread) as pool:
        for _ in pool.imap_unordered(_run_job, jobs):
            pass


def _missing(bank: Bank, target: str, seed: int, methods: Sequence[str], finished: set[tuple[Any, ...]]) -> list[str]:
    """The cells of one draw that have no line; `draw` (the line about the sources) first, if a method uses them."""
    draw = ["draw"] if any(bank.profile.uses_sources(method) for method in methods) else []
    possible = [method for method in methods if _has_labels(bank, target, bank.profile.times(method))]
    cells = [*draw, *(cell for method in possible for cell in _expanded(bank, target, method))]
    return [cell for cell in dict.fromkeys(cells) if key_of(_key_fields(bank, target, cell, seed)) not in finished]


def _has_labels(bank: Bank, target: str, times: int) -> bool:
    """Whether the target's pack has `times` the labels of the profile; the profile's own are taken for granted."""
    return times == 1 or bank.has_labels(target, times * bank.profile.labels(target))


def _expanded(bank: Bank, target: str, method: str) -> list[str]:
    """The cells of a method: `single` has one for each source."""
    return [f"single:{source}" for source in bank.sources_for(target)] if method == "single" else [method]


def _key_fields(bank: Bank, target: str, cell: str, seed: int) -> dict[str, Any]:
    """The fields of a cell's line that its key consists of."""
    kind = {"kind": "draw"} if cell == "draw" else {"kind": "run", "method": cell}
    return {
        **kind,
        "profile": bank.profile.name,
        "target": target,
        "seed": seed,
        "pack": digest(bank.pack_hashes(target))[:16],
        "config": bank.profile.config(cell),
        "cpu": environment.processor(),
    }


def use_one_thread() -> None:
    """Limit torch and numpy's matrix products to one thread: the number of threads changes the last digits."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    threadpool_limits(1)


def _run_job(job: tuple[Bank, str, int, list[str], float]) -> None:
    from benchmarks.suite import cells, draws

    bank, target, seed, methods, deadline = job
    draw = draws.Draw(bank=bank, target=target, seed=seed)
    for method in methods:
        parent = multiprocessing.parent_process()
        if time.time() > deadline or (parent is not None and not parent.is_alive()):
            return  # out of time, or the suite was killed and this worker is an orphan
        line = cells.draw_line(draw) if method == "draw" else cells.run_cell(draw, method)
        with FileLock(bank.runs / ".lines.lock"):
            keys = {key_of(committed) for committed in read("suite")}
            # another suite may have run the cell meanwhile
            if key_of(line | {"cpu": environment.processor()}) not in keys:
                append(f"suite_{bank.profile.name}", line)
        scores = f"top-1 {line['top1']:.3f} balanced {line['balanced_accuracy']:.3f}" if "top1" in line else ""
        say(f"{target} seed {seed} {method} {scores} {line.get('train_seconds', '')}")


def rerun(bank: Bank, target: str, method: str, seed: int) -> int:
    """Run one cell again and compare it with its newest line, preferably of this processor; returns 1 if they differ.

    Raises:
        InputError: no line of the cell is committed.
    """
    from benchmarks.suite import cells, draws

    use_one_thread()
    line = cells.run_cell(draws.Draw(bank=bank, target=target, seed=seed), method)
    committed = sorted(
        (other for other in read("suite") if all(other.get(name) == line.get(name) for name in CELL)),
        key=lambda other: (other["cpu"] == environment.processor(), other["measured"]),
    )
    say(f"now: top-1 {line['top1']} balanced {line['balanced_accuracy']} of {line['n_test']} test images")
    if not committed:
        raise InputError(f"no line of {target}, {method}, seed {seed} is committed", "nothing to compare with")
    newest = committed[-1]
    say(f"committed: top-1 {newest['top1']} balanced {newest['balanced_accuracy']} ({newest['cpu']})")
    return int(any(line[name] != newest[name] for name in ("top1", "balanced_accuracy", "n_test")))


def prepare(bank: Bank, selection: Selection, processes: int) -> None:
    """Train the initial weights and, if a method uses them, the sources, and compute the sources' outputs."""
    bank.initial_run()
    if not any(bank.profile.uses_sources(method) for method in selection.methods):
        return
    targets = selection.targets
    sources = sorted({name for target in targets for name in bank.sources_for(target)})
    with multiprocessing.get_context("spawn").Pool(processes, initializer=use_one_thread) as pool:
        for name in pool.imap_unordered(_prepare_source, [(bank, name) for name in sources]):
            say(f"source {name}: trained")
        pairs = [(bank, name, target) for target in targets for name in bank.sources_for(target)]
        for name, target in pool.imap_unordered(_compute_outputs, pairs):
            say(f"source {name}: its outputs on {target}")


def _prepare_source(job: tuple[Bank, str]) -> str:
    job[0].source_section(job[1])
    return job[1]


def _compute_outputs(job: tuple[Bank, str, str]) -> tuple[str, str]:
    bank, name, target = job
    bank.outputs(name, target)
    return name, target
