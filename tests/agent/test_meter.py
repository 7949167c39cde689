"""The meter under a virtual clock: which samples it keeps, which it drops, and the order of its queries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedistill.agent import meter, metrics


class Clock:
    """Virtual clock in nanoseconds that only queries advance."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now

    def model(self, durations_ms: Iterator[float], queried: list[str], name: str = "") -> meter.Query:
        def infer(_: int) -> None:
            queried.append(name)
            self.now += round(next(durations_ms) * 1e6)

        return meter.timed(infer, [0], self)


def durations(first: Sequence[float], last: float) -> Iterator[float]:
    yield from first
    while True:
        yield last


def test_only_query_is_timed_and_batches_repeat() -> None:
    clock, batches = Clock(), []

    def infer(batch: str) -> None:
        batches.append(batch)
        clock.now += 2_500_000

    query = meter.timed(infer, ["a", "b", "c"], clock)
    times = []
    for _ in range(5):
        clock.now += 7_000_000  # time outside the window
        times.append(query())
    assert times == [2.5] * 5
    assert batches == ["a", "b", "c", "a", "b"]


def test_query_may_return_its_own_duration() -> None:
    # time between two events on a GPU; the time that passes on the host meanwhile is ignored
    clock, durations = Clock(), {"a": 0.25, "b": 0.5}

    def compute_ms(batch: str) -> float:
        clock.now += 9_000_000
        return durations[batch]

    query = meter.given(compute_ms, ["a", "b"])
    assert [query() for _ in range(5)] == [0.25, 0.5, 0.25, 0.5, 0.25]


def test_slow_first_calls_stay_in_warm_up() -> None:
    # windows of ten: medians 1 (with three slow calls), then 1: equal, so warm-up ends after two windows
    measured = meter.warm_up(Clock().model(durations([90, 50, 20], 1.0), []))
    assert measured.settled
    assert measured.warmup_ms == [90, 50, 20] + [1.0] * 17


def test_warm_up_goes_on_while_windows_differ() -> None:
    # medians 8, 4, 2, 1, 1: only the last two lie within 5 %
    falling = [8.0] * 10 + [4.0] * 10 + [2.0] * 10
    measured = meter.warm_up(Clock().model(durations(falling, 1.0), []))
    assert measured.settled
    assert len(measured.warmup_ms) == 50


def test_warm_up_stops_at_its_bounds_and_is_unsettled() -> None:
    growing = (1.1**n for n in range(10_000))  # medians grow by 1.1^10 = 2.6 from window to window
    measured = meter.warm_up(Clock().model(growing, []))
    assert not measured.settled
    assert sum(measured.warmup_ms[:-10]) < meter.MOST_MS <= sum(measured.warmup_ms)
    flat = [1.0 if (n // 10) % 2 else 2.0 for n in range(10_000)]  # medians 2, 1, 2, 1, ...
    assert len(meter.warm_up(Clock().model(iter(flat), [])).warmup_ms) == 300


def test_slow_device_gets_two_warm_up_windows() -> None:
    measured = meter.warm_up(Clock().model(durations([], 3000.0), []))
    assert measured.settled
    assert len(measured.warmup_ms) == 20


def test_rounds_are_interleaved_and_rotate() -> None:
    clock, queried = Clock(), []
    queries = {name: clock.model(durations([], 1.0), queried, name) for name in "ABC"}
    plan = meter.Plan(rounds=3, queries=4, least_ms=0.0)
    round_indices = []
    measured = meter.interleave(queries, plan, on_round=round_indices.append)
    order = [name for index, name in enumerate(queried) if index == 0 or queried[index - 1] != name]
    # warm-up, then three rounds
    assert order == list("ABC" + "ABC" + "BCA" + "CAB")
    assert round_indices == [0, 1, 2]
    for cells in measured.values():
        assert [len(round_) for round_ in cells.rounds_ms] == [4, 4, 4]
        assert len(cells.warmup_ms) == 20 + 3 * meter.AFTER_CHANGE


def test_slow_calls_after_change_of_variant_are_warm_up() -> None:
    clock = Clock()
    # twenty of warm-up, three after the change (the caches are cold), then the samples
    query = clock.model(durations([1.0] * 20 + [40.0, 9.0, 2.0], 1.0), [])
    measured = meter.interleave({"A": query}, meter.Plan(1, 5, 0.0))["A"]
    assert measured.rounds_ms == [[1.0] * 5]
    assert measured.warmup_ms[20:] == [40.0, 9.0, 2.0]


def test_cells_have_time_windows_without_edge_callbacks() -> None:
    clock, events = Clock(), []

    def seconds() -> float:
        return clock.now / 1e9

    def on_edge() -> None:
        clock.now += 500_000_000  # reading a counter takes time of its own
        events.append(seconds())

    queries = {name: clock.model(durations([], 100.0), [], name) for name in "AB"}
    measured = meter.interleave(queries, meter.Plan(2, 10, 0.0), on_edge=on_edge, clock=seconds)
    # two warm-ups of 20 x 0.1 s = 4 s; each cell: 3 x 0.1 s after the change, an edge, 1 s of samples, an edge
    cell = 0.3 + 0.5 + 1.0 + 0.5
    starts = [4.0 + n * cell + 0.8 for n in range(4)]
    expected = {"A": (starts[0], starts[3]), "B": (starts[1], starts[2])}  # A B, then B A
    for name, windows in expected.items():
        assert measured[name].windows_s == [pytest.approx((start, start + 1.0)) for start in windows]
        assert measured[name].rounds_ms == [[100.0] * 10] * 2
    assert events == pytest.approx([moment for start in starts for moment in (start, start + 1.5)])


def test_samples_after_cold_start_are_exact() -> None:
    # 400 ms to load lazily, 30 ms to tune, then 1 .. 200 ms: the first twenty and three more are not measured
    query = Clock().model(iter([400.0, 30.0, *[5.0] * 18, 70.0, 5.0, 5.0, *[float(n) for n in range(1, 201)]]), [])
    measured = meter.interleave({"A": query}, meter.Plan(1, 200, 0.0))["A"]
    assert (measured.settled, measured.warmup_ms[0], len(measured.warmup_ms)) == (True, 400.0, 23)
    percentiles = metrics.percentiles([sample for round_ in measured.rounds_ms for sample in round_])
    # p is at 1 + p * 199 / 100
    assert percentiles == pytest.approx(
        {"min": 1, "p50": 100.5, "p90": 180.1, "p99": 198.01, "p99.9": 199.801, "max": 200}
    )


def test_percentiles_of_known_samples_are_exact() -> None:
    # 1 .. 1000 ms: by linear interpolation p is at 1 + p * 999 / 100
    query = Clock().model(iter([float(n) for n in range(1, 1001)]), [])
    percentiles = metrics.percentiles(meter.cell(query, meter.Plan(1, 1000, 0.0)))
    expected = {"min": 1.0, "p50": 500.5, "p90": 900.1, "p99": 990.01, "p99.9": 999.001, "max": 1000.0}
    assert percentiles == pytest.approx(expected, abs=1e-9)


@given(st.integers(1, 2000), st.floats(0.01, 20), st.integers(1, 5), st.integers(1, 9), st.floats(0.5, 400))
def test_totals_keep_samples_and_seconds(samples: int, seconds: float, processes: int, rounds: int, ms: float) -> None:
    plan = meter.plan(samples, seconds, processes, rounds)
    count = len(meter.cell(lambda: ms, plan)) * processes * rounds
    assert count >= samples
    assert count * ms >= seconds * 1000 * (1 - 1e-9)
    # at most one query per cell more than requested
    assert count <= max(samples, seconds * 1000 / ms) + 2 * processes * rounds
