"""Noise verdicts: every cause is detected with its remedy, and only where it is present."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edgedistill.agent import meter, metrics, noise
from edgedistill.agent.machine import RASPBERRY
from edgedistill.agent.nvidia import POLICIES

STEADY = [[[1.0, 1.1, 1.2] * 100] * 5] * 3  # 3 processes, 5 rounds


def process(before: dict[str, Any] | None = None, after: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"before": before or {}, "after": after or {}, "cpu_over_wall": 1.0, **more}


def verdict(
    cells: Any = STEADY, *processes: dict[str, Any], settled: bool = True, threads: int = 1, cpu: bool = True
) -> str:
    return noise.verdict(cells, [settled] * 3, processes=processes or (process(),), threads=threads, on_processor=cpu)


def test_steady_machine_is_quiet() -> None:
    assert verdict() == "quiet"
    # a usual governor or a busy machine does not matter while the samples are steady
    restless = {"governor": ["powersave"], "load_average": [9.0], "power_mode": "15W", "temperature_c": {"z": 80.0}}
    assert verdict(STEADY, process({"temperature_c": {"z": 40.0}}, restless, cpu_over_wall=0.5)) == "quiet"


def test_spread_names_ratio_and_remedy() -> None:
    # p50 = 1.4, min = 1.0: 1.40 > 1.3; p99 = 1.4
    assert verdict([[[1.0] * 2 + [1.4] * 98]]) == (
        "noisy, because p50/min is 1.40 (at most 1.3); "
        "do: edgedistill bench --again --set bench.seconds=10, with nothing else running"
    )
    # three slow in a hundred: p99 is at 98.01 of 0 .. 99, between two slow ones
    assert verdict([[[1.0] * 97 + [9.0] * 3]]).startswith("noisy, because p99/p50 is 9.00 (at most 1.5); do: ")
    assert verdict([[[1.0] * 10 + [1.3] * 10] * 5]) == "quiet"


@pytest.mark.parametrize("samples", [1, 6, 99])
def test_few_samples_are_never_quiet(samples: int) -> None:
    few = f"too few samples ({samples}), at least 100 are needed; do: edgedistill bench --again --set bench.samples=300"
    assert verdict([[[1.0] * samples]]) == few
    assert verdict([[[1.0] * (samples - 1) + [9.0]]]) == few  # the slowest of so few says nothing
    throttled = process({}, {"throttling": ["throttled"]})
    assert verdict([[[1.0] * samples]], throttled).startswith("noisy, because throttling")


def test_least_samples_suffice_to_see_one_slow_query_in_twenty() -> None:
    generator, quiet = np.random.default_rng(3), 0
    for _ in range(300):
        samples = generator.lognormal(0.0, 0.03, noise.LEAST_SAMPLES)
        samples[generator.random(len(samples)) < 0.05] *= 2.0
        quiet += verdict([samples.reshape(5, -1).tolist()]) == "quiet"
    assert 0 < quiet <= 0.08 * 300  # 5 % of many


@pytest.mark.parametrize(("processes", "rounds", "least"), [(1, 4, 5), (2, 3, 4), (3, 2, 3), (9, 1, 2)])
def test_rounds_that_cannot_show_drift_are_never_quiet(processes: int, rounds: int, least: int) -> None:
    assert verdict([[[1.0] * 100] * rounds] * processes) == (
        f"too few rounds a process ({rounds}) to see a drift, at least {least} are needed; "
        "do: edgedistill bench --again --set bench.processes=3 --set bench.rounds=5"
    )
    assert verdict([[[1.0] * 100] * least] * processes) == "quiet"
    rising = [[[1.0 + round_] * 100 for round_ in range(least)]] * processes
    assert "the latency rose" in verdict(rising)


def test_unsettled_warm_up_is_noise() -> None:
    assert verdict(settled=False).startswith(
        "noisy, because warm-up did not become stable in 3 of 3 processes; do: close"
    )


def heating_durations(share: float) -> Iterator[float]:
    """Yield durations of two models in one process that slow down with every round; the second takes half as long."""
    rounds = [1.0 + share * n / 4 for n in range(5)]
    yield from [4.0] * 20 + [2.0] * 20
    for index, slower in enumerate(rounds):
        for base in ([4.0, 2.0], [2.0, 4.0])[index % 2]:
            yield from [base * slower] * 13  # three after the change, ten samples


def heated_cells(share: float) -> dict[str, list[list[list[float]]]]:
    def measure() -> dict[str, meter.Measured]:
        durations = heating_durations(share)
        return meter.interleave(dict.fromkeys(("fp32", "int8"), lambda: next(durations)), meter.Plan(5, 10, 0.0))

    processes = [measure() for _ in range(3)]
    return {name: [process_cells[name].rounds_ms for process_cells in processes] for name in ("fp32", "int8")}


def test_drift_shows_in_latency_and_cancels_in_ratio() -> None:
    cells = heated_cells(0.2)
    medians = {
        name: [[float(np.median(round_)) for round_ in rounds] for rounds in cells_of_model]
        for name, cells_of_model in cells.items()
    }
    # thirds of five rounds are one round each: 1.2 / 1.0
    assert noise.drift(medians["fp32"]) == pytest.approx(0.2)
    assert verdict(cells["int8"]).startswith(
        "noisy, because the latency rose by 20% from the first rounds to the last (at most 5%); do: let the device"
    )
    assert metrics.ratio_interval(medians["fp32"], medians["int8"]) == pytest.approx((2.0, 2.0, 2.0))
    falling = [rounds[::-1] for rounds in medians["fp32"]]
    assert noise.drift(falling) == pytest.approx(1.0 / 1.2 - 1.0)
    assert "the latency fell by 17%" in verdict([[[ms] for ms in rounds] for rounds in falling])


def test_drift_within_warm_up_tolerance_is_quiet() -> None:
    assert verdict(heated_cells(0.04)["fp32"]) == "quiet"


def test_drift_is_measured_across_and_within_processes() -> None:
    # 2 % within a process, but each process starts where the last one ended
    medians = [[(1.0 + 0.02 * p) * (1.0 + 0.005 * r) for r in range(5)] for p in range(6)]
    assert noise.drift(medians) == pytest.approx(np.median(medians[-2:]) / np.median(medians[:2]) - 1.0)
    # where processes go up and down, only drift within them counts: the first stays at 2, the others rise by 20 %
    rising = np.linspace(1.0, 1.2, 5)
    assert noise.drift([[2.0] * 5, list(1.0 * rising), list(3.0 * rising)]) == pytest.approx(0.2)
    # processes that differ without a trend inside them are not drift
    assert noise.drift([[1.0] * 5, [1.1] * 5, [1.2] * 5]) == 0.0


def test_too_few_rounds_show_no_trend() -> None:
    assert noise.drift([[1.0, 2.0, 3.0]]) == 0.0
    assert noise.drift([[1.0]]) == 0.0


def test_random_variation_is_rarely_called_drift() -> None:
    """Run 1000 experiments of 3 x 5 cells whose medians vary by 4 %, and by 8 % between processes."""
    generator = np.random.default_rng(0)
    trials = [generator.normal(1.0, 0.04, (3, 5)) * generator.normal(1.0, 0.08, (3, 1)) for _ in range(1000)]
    alarms = sum(abs(noise.drift(trial)) > noise.MOST_DRIFT for trial in trials)
    assert alarms <= 71  # 5 % and three standard deviations of a thousand trials
    # a drift of 20 % is rarely missed in the same noise
    slope = np.linspace(1.0, 1.2, 5)
    assert sum(noise.drift(trial * slope) > noise.MOST_DRIFT for trial in trials) >= 900


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("core thermal throttle", "hot"),
        ("package thermal throttle", "hot"),
        ("under-voltage alarm", "supply"),
        ("peak over-current alarm", "current"),
        (POLICIES[0], "capped"),
        (POLICIES[1], "hot"),
    ],
)
def test_limit_whose_counter_rose_is_noise(name: str, remedy: str) -> None:
    rose = process({"throttle_counts": {name: 7}}, {"throttle_counts": {name: 19}})
    # earlier events do not count; a counter that was reset or is new is ignored
    same = process({"throttle_counts": {name: 19}}, {"throttle_counts": {name: 19, "new": 4}})
    assert verdict(STEADY, same, same) == "quiet"
    assert verdict(STEADY, same, rose) == (
        f"noisy, because the counter of {name} rose by 12; do: {noise.REMEDIES[remedy]}"
    )


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        (RASPBERRY[0], "supply"),
        (RASPBERRY[2], "hot"),
        ("cpu-throttle-alert at step 1 of 1", "hot"),
        ("GPU power cap", "capped"),
        ("GPU thermal slowdown by the hardware", "hot"),
    ],
)
def test_active_limit_is_noise(name: str, remedy: str) -> None:
    assert verdict(STEADY, process({}, {"throttling": [name]})) == (
        f"noisy, because throttling: {name}; do: {noise.REMEDIES[remedy]}"
    )
    assert verdict(STEADY, process({"throttling": [name]}, {})) == "quiet"


NOISY = [[[1.0] * 2 + [1.45] * 98]]


@pytest.mark.parametrize(
    ("before", "after", "cause", "remedy"),
    [
        (
            {"clock_mhz": [800.0, 1500.0]},
            {"clock_mhz": [1100.0, 900.0]},
            "the clock fell from 1500 to 1100 MHz",
            "clock",
        ),
        (
            {"gpu": {"clock_mhz": 1980}},
            {"gpu": {"clock_mhz": 1200}},
            "the GPU's clock fell from 1980 to 1200 MHz",
            "clock",
        ),
        (
            {"temperature_c": {"a": 45.0, "b": 48.0}},
            {"temperature_c": {"a": 83.5, "b": 50.0}},
            "it warmed up from 48 to 84 degrees Celsius",
            "drift",
        ),
        ({"load_average": [3.2, 1.0, 1.0]}, {}, "the load average was 3.2 with 1 of our threads", "load"),
        ({}, {"governor": ["powersave"]}, "the governor is powersave", "governor"),
        ({}, {"power_mode": "MAXN", "fixed_clocks": {"cpu": True, "gpu": False}}, "the clocks are not fixed", "loose"),
    ],
)
def test_cause_of_noise_is_named_with_remedy(before: Any, after: Any, cause: str, remedy: str) -> None:
    assert verdict(NOISY, process(before, after)) == (
        f"noisy, because p50/min is 1.45 (at most 1.3) and {cause}; "
        f"do: {noise.REMEDIES['spread']}; {noise.REMEDIES[remedy]}"
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"clock_mhz": [1500.0]}, {"clock_mhz": [1400.0]}),
        ({"gpu": {"clock_mhz": 345}}, {"gpu": {"clock_mhz": 1980}}),
        ({"clock_mhz": [1500.0]}, {}),
        ({"temperature_c": {"a": 45.0}}, {"temperature_c": {"a": 54.0}}),
        ({"load_average": [1.4, 1.0, 1.0]}, {}),
        ({}, {"governor": ["performance"]}),
        ({}, {"governor": ["schedutil"], "fixed_clocks": {"cpu": True}}),
        (
            {},
            {"power_mode": "MAXN_SUPER", "power_modes": {"0": "15W", "2": "MAXN_SUPER"}, "fixed_clocks": {"cpu": True}},
        ),
        ({}, {"power_mode": "15W", "power_modes": {"0": "15W", "1": "7W"}, "fixed_clocks": {"cpu": True}}),
    ],
)
def test_normal_state_is_not_named_as_cause(before: Any, after: Any) -> None:
    assert verdict(NOISY, process(before, after)) == (
        f"noisy, because p50/min is 1.45 (at most 1.3); do: {noise.REMEDIES['spread']}"
    )


def test_remedy_names_power_mode_by_number() -> None:
    modes = {"0": "15W", "1": "25W", "2": "MAXN_SUPER"}
    after = {"power_mode": "15W", "power_modes": modes, "fixed_clocks": {"cpu": True, "gpu": True}}
    assert verdict(NOISY, process({}, after)).endswith(
        f"and the power mode is 15W; do: {noise.REMEDIES['spread']}; sudo nvpmodel -m 2"
    )


def test_starved_process_and_shared_gpu_are_named() -> None:
    starved = process(cpu_over_wall=0.62)
    assert "and a process had a processor for only 62% of its time; do: " in verdict(NOISY, process(), starved)
    # with a backend on another processor the process may sleep until that one is done
    assert "processor" not in verdict(NOISY, starved, cpu=False)
    shared = process({}, {"gpu": {"programs": 3}})
    assert "and 3 programs computed on the GPU; do: " in verdict(NOISY, shared, cpu=False)
    assert "programs computed" not in verdict(NOISY, shared)
    assert "programs computed" not in verdict(NOISY, process({}, {"gpu": {"programs": 1}}), cpu=False)


def test_several_causes_share_one_line_and_common_remedies() -> None:
    spread = [[[1.0] * 50 + [1.4] * 47 + [9.0] * 3] * 2]
    line = verdict(spread, process({"load_average": [7.0]}, {"governor": ["ondemand"]}), settled=False)
    assert "\n" not in line
    causes, _, remedies = line.partition("; do: ")
    assert causes == (
        "noisy, because p99/p50 is 7.50 (at most 1.5), warm-up did not become stable in 3 of 3 processes, "
        "the load average was 7.0 with 1 of our threads and the governor is ondemand"
    )
    assert remedies.split("; ") == [noise.REMEDIES[name] for name in ("spread", "unsettled", "load", "governor")]
    both = verdict(STEADY, process({}, {"throttling": ["throttled", "soft temperature limit"]}))
    assert both.partition("; do: ")[2] == noise.REMEDIES["hot"]


def test_every_limit_has_remedy_and_remedies_are_single_steps() -> None:
    assert {key for _, key in noise.LIMITS} <= set(noise.REMEDIES)
    assert all(remedy and "; " not in remedy for remedy in noise.REMEDIES.values())
