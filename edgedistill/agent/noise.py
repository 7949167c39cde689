"""Can a latency be believed? One line: "quiet", "noisy, because ...; do: ...", or "too few ..., at least ...; do: ...".

A result is noisy by what its own samples show (they spread, they drift, warm-up never settled) or because something
held the clocks down meanwhile. What else is known of the machine's state explains that: another program, a governor, a
power mode. It is named beside a symptom, never without one, since a still measurement needs no excuse. Where samples or
rounds are too few to show a symptom, nothing is called quiet.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from . import metrics

MOST_P50_OVER_MIN, MOST_P99_OVER_P50 = 1.3, 1.5
# From 100 samples on the p99 is no longer the slowest one. A machine on which one query in twenty takes twice as long
# is quiet in this share of 3000 simulated measurements: 1 sample 100 %, 10 60 %, 30 20 %, 50 10 %, 100 5 %, 300 0 %.
LEAST_SAMPLES = 100
MOST_DRIFT = 0.05  # of the latency, from the first third of the rounds to the last; as much as warm-up tolerates
LEAST_CLOCK = 0.9  # of what it was
MOST_RISE_C = 10.0
LEAST_SHARE = 0.9  # of the wall time, which a process that asks one query after the other should have a processor for
# what to do about each cause
REMEDIES: Dict[str, str] = {
    "spread": "edgedistill bench --again --set bench.seconds=10, with nothing else running",
    "samples": "edgedistill bench --again --set bench.samples=300",
    "rounds": "edgedistill bench --again --set bench.processes=3 --set bench.rounds=5",
    "drift": "let the device reach its working temperature first, or cool it",
    "unsettled": "close other programs or fix the clocks",
    "hot": "cool the device or lower its power mode",
    "supply": "use a stronger power supply and cable",
    "current": "choose a lower power mode or a stronger power supply",
    "capped": "raise the power limit (nvidia-smi -pl) or choose a clock that it allows (nvidia-smi -lgc)",
    "clock": "fix the clocks below what the cooling allows",
    "load": "close other programs",
    "starved": "close other programs, or ask for fewer threads than there are processors",
    "shared": "stop the other programs on the GPU (nvidia-smi lists them)",
    "governor": "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
    "loose": "sudo jetson_clocks",
    "mode": "sudo nvpmodel -m {mode}",
}
# words in the name of a limit -> the remedy; the first that fits
LIMITS = (("under-voltage", "supply"), ("over-current", "current"), ("power", "capped"), ("", "hot"))
Cause = Tuple[str, str]  # what was seen, what to do


def verdict(
    cells_ms: Sequence[Sequence[Sequence[float]]],
    settled: Sequence[bool],
    processes: Sequence[Mapping[str, Any]],
    threads: int,
    on_processor: bool,
) -> str:
    """The line for one result.

    Args:
        cells_ms: samples per process and round, in ms.
        settled: per process, whether warm-up became stable.
        processes: per process {"before": state, "after": state, "cpu_over_wall"}, as `machine.state` says it; what is
            missing is not held against anybody.
        threads: of the job.
        on_processor: whether the backend computes on the processor, which then should never wait.
    """
    symptoms = _spread(cells_ms) + _drifted(cells_ms) + _unsettled(settled) + _throttled(processes)
    if not symptoms:
        return _too_few(cells_ms) or "quiet"
    causes = symptoms + _slowed(processes) + _disturbed(processes, threads, on_processor) + _unset(processes)
    # one remedy may serve several causes
    todo = dict.fromkeys(remedy for _, remedy in causes)
    return f"noisy, because {_and([seen for seen, _ in causes])}; do: {'; '.join(todo)}"


def _too_few(cells_ms: Sequence[Sequence[Sequence[float]]]) -> str:
    """Why these cells could not show a symptom; "" if they could."""
    samples, processes, rounds = _count(cells_ms), len(cells_ms), len(cells_ms[0])
    if samples < LEAST_SAMPLES:
        return f"too few samples ({samples}), at least {LEAST_SAMPLES} are needed; do: {REMEDIES['samples']}"
    least = next(least for least in itertools.count(2) if _trend(np.tile(np.arange(least), (processes, 1))))
    if rounds < least:
        text = f"too few rounds a process ({rounds}) to see a drift"
        return f"{text}, at least {least} are needed; do: {REMEDIES['rounds']}"
    return ""


def _count(cells_ms: Sequence[Sequence[Sequence[float]]]) -> int:
    return sum(len(round_) for process in cells_ms for round_ in process)


def drift(medians_PR: Sequence[Sequence[float]]) -> float:
    """By which share the latency moved from the first rounds to the last, +0.1 for 10 % slower; 0.0 without a trend.

    A trend is one that the seasonal Kendall test sees at 5 %, with a process as a season, since whole processes differ
    for reasons of their own (Hirsch, Slack and Smith, Water Resources Research 18, 1982). Its size is that of the
    medians of the last third against those of the first: within the processes, or over all of them where every process
    went on in that direction, whichever is more.

    Args:
        medians_PR: the median latency of each round, by processes of equally many rounds.
    """
    rounds_PR = np.asarray(medians_PR, dtype=np.float64)
    rises = _trend(rounds_PR)
    if not rises:
        return 0.0
    levels_P1 = np.median(rounds_PR, axis=1, keepdims=True)
    sizes = [_last_over_first((rounds_PR / levels_P1).T)]
    if (np.sign(np.diff(levels_P1[:, 0])) == np.sign(rises)).all():
        sizes.append(_last_over_first(rounds_PR.reshape(-1, 1)))
    return max((size - 1.0 for size in sizes if (size > 1.0) == (rises > 0.0)), key=abs, default=0.0)


def _trend(rounds_PR: np.ndarray) -> float:
    """Kendall's score, rises less falls, where it is significant; else 0.0."""
    processes, rounds = rounds_PR.shape
    earlier, later = np.triu_indices(rounds, 1)
    rises = float(np.sign(rounds_PR[:, later] - rounds_PR[:, earlier]).sum())
    variance = processes * rounds * (rounds - 1) * (2 * rounds + 5) / 18.0
    return rises if abs(rises) - 1.0 > metrics.Z95 * math.sqrt(variance) else 0.0


def _last_over_first(in_time: Any) -> float:
    """Median of the last third of the rows over that of the first."""
    third = max(1, len(in_time) // 3)
    return float(np.median(in_time[-third:]) / np.median(in_time[:third]))


def _spread(cells_ms: Sequence[Sequence[Sequence[float]]]) -> List[Cause]:
    if _count(cells_ms) < LEAST_SAMPLES:
        return []
    at = metrics.percentiles([sample for process in cells_ms for round_ in process for sample in round_])
    spreads = [
        ("p50/min", at["p50"] / at["min"], MOST_P50_OVER_MIN),
        ("p99/p50", at["p99"] / at["p50"], MOST_P99_OVER_P50),
    ]
    return [(f"{name} is {value:.2f} (at most {most})", REMEDIES["spread"])
            for name, value, most in spreads if value > most]  # fmt: skip


def _drifted(cells_ms: Sequence[Sequence[Sequence[float]]]) -> List[Cause]:
    moved = drift([[float(np.median(round_)) for round_ in process] for process in cells_ms])
    if abs(moved) <= MOST_DRIFT:
        return []
    text = f"the latency {'rose' if moved > 0 else 'fell'} by {abs(moved):.0%} from the first rounds to the last"
    return [(f"{text} (at most {MOST_DRIFT:.0%})", REMEDIES["drift"])]


def _unsettled(settled: Sequence[bool]) -> List[Cause]:
    count = sum(not one for one in settled)
    where = f"in {count} of {len(settled)} processes"
    return [(f"warm-up did not become stable {where}", REMEDIES["unsettled"])] if count else []


def _throttled(processes: Sequence[Mapping[str, Any]]) -> List[Cause]:
    """Limits whose counters rose while a process measured, and limits that hold when it ended."""
    rose: Dict[str, int] = {}
    active: Dict[str, None] = {}
    for one in processes:
        before, after = _states(one)
        counts = before.get("throttle_counts", {})
        for name, count in after.get("throttle_counts", {}).items():
            rose[name] = rose.get(name, 0) + max(0, count - counts.get(name, count))
        active.update(dict.fromkeys(after.get("throttling", [])))
    texts = {name: f"the counter of {name} rose by {count}" for name, count in rose.items() if count}
    texts.update({name: f"throttling: {name}" for name in active})
    return [(text, REMEDIES[next(key for word, key in LIMITS if word in name)]) for name, text in texts.items()]


def _slowed(processes: Sequence[Mapping[str, Any]]) -> List[Cause]:
    """Clocks that fell and temperatures that rose while a process measured, the worst of the processes."""
    found: List[Cause] = []
    for whose, clock in (("the clock", _clock), ("the GPU's clock", _gpu_clock)):
        pairs = [(was, now) for was, now in _pairs(processes, clock) if now < LEAST_CLOCK * was]
        if pairs:
            was, now = min(pairs, key=lambda pair: pair[1] / pair[0])
            found.append((f"{whose} fell from {was:.0f} to {now:.0f} MHz", REMEDIES["clock"]))
    pairs = [(was, now) for was, now in _pairs(processes, _hottest) if now > was + MOST_RISE_C]
    if pairs:
        was, now = max(pairs, key=lambda pair: pair[1] - pair[0])
        found.append((f"it warmed up from {was:.0f} to {now:.0f} degrees Celsius", REMEDIES["drift"]))
    return found


def _disturbed(processes: Sequence[Mapping[str, Any]], threads: int, on_processor: bool) -> List[Cause]:
    """Other programs, by the load average, the processor time that the process got, and the GPU's list."""
    states = [state for one in processes for state in _states(one)]
    found: List[Cause] = []
    load = max([state["load_average"][0] for state in states if state.get("load_average")], default=0.0)
    if load > threads + 0.5:
        found.append((f"the load average was {load:.1f} with {threads} of our threads", REMEDIES["load"]))
    share = min([one["cpu_over_wall"] for one in processes if "cpu_over_wall" in one], default=1.0)
    if on_processor and share < LEAST_SHARE:
        found.append((f"a process had a processor for only {share:.0%} of its time", REMEDIES["starved"]))
    programs = max([state.get("gpu", {}).get("programs", 0) for state in states], default=0)
    if programs > 1 and not on_processor:
        found.append((f"{programs} programs computed on the GPU", REMEDIES["shared"]))
    return found


def _unset(processes: Sequence[Mapping[str, Any]]) -> List[Cause]:
    """Settings that leave the clocks to the moment: the governor, a Jetson's power mode and its clocks."""
    state = _states(processes[-1])[1] if processes else {}
    found: List[Cause] = []
    slow = [name for name in state.get("governor", []) if name != "performance"]
    fixed = state.get("fixed_clocks", {})
    jetson = "power_mode" in state
    if jetson and not all(fixed.values()):
        found.append(("the clocks are not fixed", REMEDIES["loose"]))
    elif slow and not fixed.get("cpu"):
        found.append((f"the governor is {', '.join(slow)}", REMEDIES["governor"]))
    mode, most = state.get("power_mode", ""), _largest(state.get("power_modes", {}))
    if jetson and most and not mode.startswith("MAXN"):
        found.append((f"the power mode is {mode}", REMEDIES["mode"].format(mode=most)))
    return found


def _largest(modes: Mapping[str, str]) -> Optional[str]:
    """The number of the mode without a limit of its own, where the board has one."""
    return next((number for number, name in modes.items() if name.startswith("MAXN")), None)


def _states(process: Mapping[str, Any]) -> Tuple[Mapping[str, Any], Mapping[str, Any]]:
    return process.get("before", {}), process.get("after", {})


def _pairs(processes: Sequence[Mapping[str, Any]], read: Any) -> List[Tuple[float, float]]:
    both = [tuple(read(state) for state in _states(one)) for one in processes]
    return [(was, now) for was, now in both if was and now]


def _clock(state: Mapping[str, Any]) -> float:
    return float(max(state.get("clock_mhz", []), default=0.0))


def _gpu_clock(state: Mapping[str, Any]) -> float:
    return float(state.get("gpu", {}).get("clock_mhz", 0.0))


def _hottest(state: Mapping[str, Any]) -> float:
    zones = [*state.get("temperature_c", {}).values(), state.get("gpu", {}).get("temperature_c", 0.0)]
    return float(max(zones))


def _and(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
