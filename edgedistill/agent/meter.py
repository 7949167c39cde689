"""The meter: closed loop, one query after the other, every sample kept; it knows neither runtime nor wall clock.

A query takes the next batch, runs it, and returns how long that took. Warm-up ends when the medians of two
consecutive windows of ten queries lie within 5 % of each other, and in any case after 30 windows or 10 s of queries;
the first three queries after each change of variant, when the caches still hold the other model, count as warm-up too.
The order of variants rotates from round to round, so none always follows the same other (A B C, B C A, C A B).
When each cell began and ended is kept as well, so that energy can be attributed to it afterwards (power.py).
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Mapping, Sequence, Tuple

Query = Callable[[], float]
WINDOW, TOLERANCE, MOST_WINDOWS, MOST_MS = 10, 0.05, 30, 10_000.0
AFTER_CHANGE = 3


@dataclass(frozen=True)
class Plan:
    """What one process measures of each variant: `rounds` cells of at least `queries` queries and `least_ms` ms."""

    rounds: int
    queries: int
    least_ms: float


@dataclass
class Measured:
    """One variant in one process: its warm-up, whether that became stable, and the samples of each round, in ms.

    `windows_s` says when each round's cell began and ended, in seconds of the monotonic clock.
    """

    warmup_ms: List[float]
    settled: bool
    rounds_ms: List[List[float]]
    windows_s: List[Tuple[float, float]] = field(default_factory=list)


def plan(samples: int, seconds: float, processes: int, rounds: int) -> Plan:
    """Split least totals over the cells, rounding up, so that the sum over the processes keeps them."""
    cells = processes * rounds
    return Plan(rounds, math.ceil(samples / cells), 1000.0 * seconds / cells)


def timed(
    infer: Callable[[Any], Any], batches: Sequence[Any], clock: Callable[[], int] = time.perf_counter_ns
) -> Query:
    """A query over `batches`, again and again; only `infer` stands between the two readings of the clock (in ns)."""
    supply = itertools.cycle(batches)

    def query() -> float:
        batch = next(supply)
        start = clock()
        infer(batch)
        return (clock() - start) / 1e6

    return query


def given(function: Callable[[Any], float], batches: Sequence[Any]) -> Query:
    """A query over `batches`, again and again, whose duration in ms `function` itself measures: time on a GPU."""
    supply = itertools.cycle(batches)
    return lambda: function(next(supply))


def warm_up(query: Query) -> Measured:
    """Query until two consecutive windows agree, or a bound is reached."""
    samples: List[float] = []
    before = math.inf
    for _ in range(MOST_WINDOWS):
        window = [query() for _ in range(WINDOW)]
        samples += window
        now = statistics.median(window)
        # the bound on time never cuts the comparison itself short: two windows are always looked at
        if abs(now - before) <= TOLERANCE * min(now, before):
            return Measured(samples, True, [])
        if before < math.inf and sum(samples) >= MOST_MS:
            break
        before = now
    return Measured(samples, False, [])


def cell(query: Query, wanted: Plan) -> List[float]:
    """The samples of one variant in one round: enough queries and enough time, both."""
    samples: List[float] = []
    spent = 0.0
    while len(samples) < wanted.queries or spent < wanted.least_ms:
        samples.append(query())
        spent += samples[-1]
    return samples


def interleave(
    queries: Mapping[str, Query],
    wanted: Plan,
    on_round: Callable[[int], None] = lambda _: None,
    on_edge: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
) -> Dict[str, Measured]:
    """Warm every variant up, then measure them in turn, round by round.

    Args:
        queries: variant name -> timed query; their order is that of the warm-up and of the first round.
        wanted: the least queries and time of each cell.
        on_round: called with the number of each finished round, outside every timed window.
        on_edge: called right before and right after each cell, outside it: the place to read an energy counter.
        clock: seconds; what the samples of power carry too.
    """
    measured = {name: warm_up(query) for name, query in queries.items()}
    names = list(queries)
    for round_ in range(wanted.rounds):
        at = round_ % len(names)
        for name in names[at:] + names[:at]:
            measured[name].warmup_ms += [queries[name]() for _ in range(AFTER_CHANGE)]
            on_edge()
            start = clock()
            measured[name].rounds_ms.append(cell(queries[name], wanted))
            measured[name].windows_s.append((start, clock()))
            on_edge()
        on_round(round_)
    return measured
