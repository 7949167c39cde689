"""Quiet or noisy: every cause is seen where it is, has its remedy, and is not seen where it is not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edgedistill.agent import meter, metrics, noise
from edgedistill.agent.machine import RASPBERRY
from edgedistill.agent.nvidia import POLICIES

STILL = [[[1.0, 1.1, 1.2] * 100] * 5] * 3  # 3 processes, 5 rounds


def process(before: dict[str, Any] | None = None, after: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"before": before or {}, "after": after or {}, "cpu_over_wall": 1.0, **more}


def said(
    cells: Any = STILL, *processes: dict[str, Any], settled: bool = True, threads: int = 1, cpu: bool = True
) -> str:
    return noise.verdict(cells, [settled] * 3, processes=processes or (process(),), threads=threads, on_processor=cpu)


def test_a_still_machine_is_quiet() -> None:
    assert said() == "quiet"
    # neither a usual governor nor a busy machine is held against samples that do not show it
    restless = {"governor": ["powersave"], "load_average": [9.0], "power_mode": "15W", "temperature_c": {"z": 80.0}}
    assert said(STILL, process({"temperature_c": {"z": 40.0}}, restless, cpu_over_wall=0.5)) == "quiet"


def test_spread_names_the_ratio_and_the_remedy() -> None:
    # p50 = 1.4, min = 1.0: 1.40 > 1.3; p99 = 1.4
    assert said([[[1.0] * 2 + [1.4] * 98]]) == (
        "noisy, because p50/min is 1.40 (at most 1.3); "
        "do: edgedistill bench --again --set bench.seconds=10, with nothing else running"
    )
    # three slow in a hundred: p99 is at 98.01 of 0 .. 99, between two slow ones
    assert said([[[1.0] * 97 + [9.0] * 3]]).startswith("noisy, because p99/p50 is 9.00 (at most 1.5); do: ")
    assert said([[[1.0] * 50 + [1.3] * 50]]) == "quiet"


def test_a_warm_up_that_never_settles_is_noise() -> None:
    assert said(settled=False).startswith("noisy, because warm-up did not become stable in 3 of 3 processes; do: close")


def heating(share: float) -> Iterator[float]:
    """Two models in one process, both slower and slower with every round; the second takes half as long."""
    rounds = [1.0 + share * n / 4 for n in range(5)]
    yield from [4.0] * 20 + [2.0] * 20
    for at, slower in enumerate(rounds):
        for base in ([4.0, 2.0], [2.0, 4.0])[at % 2]:
            yield from [base * slower] * 13  # three after the change, ten samples


def measured(share: float) -> dict[str, list[list[list[float]]]]:
    def one_process() -> dict[str, meter.Measured]:
        durations = heating(share)
        return meter.interleave(dict.fromkeys(("fp32", "int8"), lambda: next(durations)), meter.Plan(5, 10, 0.0))

    processes = [one_process() for _ in range(3)]
    return {name: [one[name].rounds_ms for one in processes] for name in ("fp32", "int8")}


def test_drift_is_seen_in_the_latency_and_cancels_in_the_ratio() -> None:
    cells = measured(0.2)
    medians = {name: [[float(np.median(round_)) for round_ in one] for one in of] for name, of in cells.items()}
    # thirds of five rounds are one round each: 1.2 / 1.0
    assert noise.drift(medians["fp32"]) == pytest.approx(0.2)
    assert said(cells["int8"]).startswith(
        "noisy, because the latency rose by 20% from the first rounds to the last (at most 5%); do: let the device"
    )
    assert metrics.ratio_interval(medians["fp32"], medians["int8"]) == pytest.approx((2.0, 2.0, 2.0))
    falling = [one[::-1] for one in medians["fp32"]]
    assert noise.drift(falling) == pytest.approx(1.0 / 1.2 - 1.0)
    assert "the latency fell by 17%" in said([[[ms] for ms in one] for one in falling])


def test_a_drift_that_warm_up_would_tolerate_is_none() -> None:
    assert said(measured(0.04)["fp32"]) == "quiet"


def test_one_device_that_heats_up_over_all_processes() -> None:
    # 2 % within a process, but each starts where the last one ended
    medians = [[(1.0 + 0.02 * p) * (1.0 + 0.005 * r) for r in range(5)] for p in range(6)]
    assert noise.drift(medians) == pytest.approx(np.median(medians[-2:]) / np.median(medians[:2]) - 1.0)
    # where they go up and down, only what happens within counts: the first stands still at 2, the others rise by 20 %
    rising = np.linspace(1.0, 1.2, 5)
    assert noise.drift([[2.0] * 5, list(1.0 * rising), list(3.0 * rising)]) == pytest.approx(0.2)
    # processes that differ without any trend inside them have their own reasons
    assert noise.drift([[1.0] * 5, [1.1] * 5, [1.2] * 5]) == 0.0


def test_too_few_rounds_show_no_trend() -> None:
    assert noise.drift([[1.0, 2.0, 3.0]]) == 0.0
    assert noise.drift([[1.0]]) == 0.0


def test_chance_is_rarely_called_drift() -> None:
    """Over 1000 experiments of 3 x 5 cells whose medians vary by 4 % and by 8 % between processes."""
    generator = np.random.default_rng(0)
    trials = [generator.normal(1.0, 0.04, (3, 5)) * generator.normal(1.0, 0.08, (3, 1)) for _ in range(1000)]
    alarms = sum(abs(noise.drift(trial)) > noise.MOST_DRIFT for trial in trials)
    assert alarms <= 71  # 5 % and three standard deviations of a thousand trials
    # and a drift of 20 % is rarely missed in the same noise
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
def test_a_limit_whose_counter_rose_is_noise(name: str, remedy: str) -> None:
    rose = process({"throttle_counts": {name: 7}}, {"throttle_counts": {name: 19}})
    # what had happened before is no concern; a counter that was reset or that is new says nothing
    same = process({"throttle_counts": {name: 19}}, {"throttle_counts": {name: 19, "new": 4}})
    assert said(STILL, same, same) == "quiet"
    assert said(STILL, same, rose) == (f"noisy, because the counter of {name} rose by 12; do: {noise.REMEDIES[remedy]}")


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
def test_a_limit_that_holds_is_noise(name: str, remedy: str) -> None:
    assert said(STILL, process({}, {"throttling": [name]})) == (
        f"noisy, because throttling: {name}; do: {noise.REMEDIES[remedy]}"
    )
    assert said(STILL, process({"throttling": [name]}, {})) == "quiet"


NOISY = [[[1.0] * 2 + [1.45] * 98]]


@pytest.mark.parametrize(
    ("before", "after", "seen", "remedy"),
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
def test_what_explains_noise_stands_beside_it(before: Any, after: Any, seen: str, remedy: str) -> None:
    assert said(NOISY, process(before, after)) == (
        f"noisy, because p50/min is 1.45 (at most 1.3) and {seen}; "
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
def test_what_is_as_it_should_be_is_not_named(before: Any, after: Any) -> None:
    assert said(NOISY, process(before, after)) == (
        f"noisy, because p50/min is 1.45 (at most 1.3); do: {noise.REMEDIES['spread']}"
    )


def test_the_power_mode_to_choose_is_named_by_its_number() -> None:
    modes = {"0": "15W", "1": "25W", "2": "MAXN_SUPER"}
    after = {"power_mode": "15W", "power_modes": modes, "fixed_clocks": {"cpu": True, "gpu": True}}
    assert said(NOISY, process({}, after)).endswith(
        f"and the power mode is 15W; do: {noise.REMEDIES['spread']}; sudo nvpmodel -m 2"
    )


def test_a_process_without_a_processor_and_a_shared_gpu() -> None:
    starved = process(cpu_over_wall=0.62)
    assert "and a process had a processor for only 62% of its time; do: " in said(NOISY, process(), starved)
    # a backend on another processor may well sleep until that one is done
    assert "processor" not in said(NOISY, starved, cpu=False)
    shared = process({}, {"gpu": {"programs": 3}})
    assert "and 3 programs computed on the GPU; do: " in said(NOISY, shared, cpu=False)
    assert "programs computed" not in said(NOISY, shared)
    assert "programs computed" not in said(NOISY, process({}, {"gpu": {"programs": 1}}), cpu=False)


def test_several_causes_share_a_line_and_their_remedy() -> None:
    spread = [[[1.0] * 50 + [1.4] * 47 + [9.0] * 3] * 2]
    line = said(spread, process({"load_average": [7.0]}, {"governor": ["ondemand"]}), settled=False)
    assert "\n" not in line
    seen, _, todo = line.partition("; do: ")
    assert seen == (
        "noisy, because p99/p50 is 7.50 (at most 1.5), warm-up did not become stable in 3 of 3 processes, "
        "the load average was 7.0 with 1 of our threads and the governor is ondemand"
    )
    assert todo.split("; ") == [noise.REMEDIES[name] for name in ("spread", "unsettled", "load", "governor")]
    both = said(STILL, process({}, {"throttling": ["throttled", "soft temperature limit"]}))
    assert both.partition("; do: ")[2] == noise.REMEDIES["hot"]


def test_the_remedies_are_all_in_use_and_their_limits_known() -> None:
    assert {key for _, key in noise.LIMITS} <= set(noise.REMEDIES)
    assert all(remedy and "; " not in remedy for remedy in noise.REMEDIES.values())
