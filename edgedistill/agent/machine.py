"""What the machine is and what state it is in; whatever cannot be read is left out, never guessed."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import numpy as np

CPUS = Path("/sys/devices/system/cpu")
THERMAL = Path("/sys/class/thermal")


def identity() -> Dict[str, Any]:
    """What does not change while measuring: architecture, processor, versions."""
    facts = {
        "machine": platform.machine(),
        "system": platform.platform(),
        "cpu": _cpu_model(),
        "board": _text(Path("/proc/device-tree/model")).strip("\0"),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    return {name: value for name, value in facts.items() if value}


def saturates() -> bool:
    """Do products of uint8 and int8 saturate here, an x86 processor without VNNI? False where that cannot be read."""
    flags = _text(Path("/proc/cpuinfo"))
    return platform.machine() in {"x86_64", "AMD64"} and bool(flags) and "vnni" not in flags


def state() -> Dict[str, Any]:
    """What may change: governor, clocks in MHz, temperatures in degrees Celsius, load average, power mode."""
    facts = {
        "governor": sorted({_text(path) for path in CPUS.glob("cpu[0-9]*/cpufreq/scaling_governor")} - {""}),
        "clock_mhz": _clocks_mhz(),
        "temperature_c": _temperatures_c(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else [],
        "power_mode": _power_mode(),
    }
    return {name: value for name, value in facts.items() if value}


def cpu_seconds() -> float:
    """Processor time that this process has used so far, all its threads together."""
    used = os.times()
    return used.user + used.system


def peak_memory_mb() -> float:
    """The most resident memory that this process ever held, in MB; 0.0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0.0
    unit = 1.0 if sys.platform == "darwin" else 1024.0  # getrusage(2): bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _cpu_model() -> str:
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor()


def _clocks_mhz() -> List[float]:
    files = [_text(path) for path in sorted(CPUS.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))]
    if any(files):
        return [int(value) / 1000 for value in files if value.isdigit()]
    lines = [line.partition(":") for line in _text(Path("/proc/cpuinfo")).splitlines()]
    return [float(value) for name, _, value in lines if name.strip() == "cpu MHz"]


def _temperatures_c() -> Dict[str, float]:
    zones: Dict[str, float] = {}
    for zone in sorted(THERMAL.glob("thermal_zone*")):
        value = _text(zone / "temp")
        if value.lstrip("-").isdigit():
            # several zones may bear the same type; the zone's number keeps them apart
            zones[f"{zone.name} {_text(zone / 'type')}"] = int(value) / 1000
    return zones


def _power_mode() -> str:
    """The Jetson power model, as `nvpmodel -q` prints it."""
    program = shutil.which("nvpmodel")
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, "-q"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return " ".join(done.stdout.decode("utf-8", "replace").split())
