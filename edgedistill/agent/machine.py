"""What the machine is and what state it is in; whatever cannot be read is left out, never guessed.

The files are those of Linux (Documentation/ABI/testing/sysfs-devices-system-cpu and sysfs-class-thermal), of Jetson
Linux (Developer Guide, Platform Power and Performance) and of Raspberry Pi OS (`vcgencmd get_throttled`). None of them
needs root, and none is written.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from . import nvidia

CPUS = Path("/sys/devices/system/cpu")
THERMAL = Path("/sys/class/thermal")
HWMON = Path("/sys/class/hwmon")
DEVFREQ = Path("/sys/class/devfreq")
MEMORY = Path("/proc/meminfo")
STATUS = Path("/proc/self/status")
BOARD = Path("/proc/device-tree/model")
L4T = Path("/etc/nv_tegra_release")
POWER_MODES, POWER_MODE = Path("/etc/nvpmodel.conf"), Path("/var/lib/nvpmodel/status")
# what counts as slowing the processor down; a fan and the offset of a temperature sensor are cooling devices as well
COOLERS = re.compile(r"cpu|gpu|devfreq|throttle|^processor$", re.IGNORECASE)
# soctherm of Orin and Thor: the counters oc1_event_cnt to oc3_event_cnt
ALARMS = {1: "under-voltage alarm", 2: "average over-current alarm", 3: "peak over-current alarm"}
# of x86, then of ARM: Documentation/arch/x86/cpuinfo.rst and Documentation/arch/arm64/elf_hwcaps.rst of Linux
FLAGS = (
    "avx2",
    "avx512f",
    "avx_vnni",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
    "amx_fp16",
    "asimd",
    "asimdhp",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
    "sve2",
)
RASPBERRY = {0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "soft temperature limit"}  # + 16: since boot


def identity() -> Dict[str, Any]:
    """What does not change while measuring: architecture, processor, memory in MB, GPU, versions."""
    release = l4t(text(L4T))
    with nvidia.opened() as gpu:
        gpu_facts = {} if gpu is None else nvidia.identity(gpu)
    facts = {
        "machine": platform.machine(),
        "system": platform.platform(),
        "cpu": _cpu_model(),
        "cpu_flags": _cpu_flags(),
        "board": text(BOARD).strip("\0"),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_mb": memory_mb(text(MEMORY), "MemTotal"),
        **gpu_facts,
        "l4t": release,
        "jetpack": printed("dpkg-query", "-W", "-f=${Version}", "nvidia-jetpack") if release else "",
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    return {name: value for name, value in facts.items() if value}


def saturates() -> bool:
    """Do products of uint8 and int8 saturate here, an x86 processor without VNNI? False where that cannot be read."""
    flags = text(Path("/proc/cpuinfo"))
    return platform.machine() in {"x86_64", "AMD64"} and bool(flags) and "vnni" not in flags


def is_jetson() -> bool:
    """Is this a Jetson? By its release file, or by its board where a container hides that."""
    return bool(l4t(text(L4T))) or "Jetson" in text(BOARD)


def state() -> Dict[str, Any]:
    """What may change: governor, clocks in MHz, temperatures in degrees Celsius, load average, power mode, throttling.

    `throttling` names what holds the clocks down now, `throttled_since_boot` what did on a Raspberry Pi, and
    `throttle_counts` are counters that only grow: between two states their difference counts.
    """
    raspberry = throttled(printed("vcgencmd", "get_throttled"))
    with nvidia.opened() as gpu:
        gpu_facts = _soc_gpu() if gpu is None else {**_soc_gpu(), **nvidia.state(gpu)}
        gpu_now = [] if gpu is None else nvidia.throttling(gpu)
        gpu_counts = {} if gpu is None else nvidia.throttle_counts(gpu)
    facts = {
        "governor": sorted({text(path) for path in CPUS.glob("cpu[0-9]*/cpufreq/scaling_governor")} - {""}),
        "clock_mhz": _clocks_mhz(),
        "fixed_clocks": _fixed_clocks(),
        "temperature_c": _temperatures_c(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else [],
        "memory_available_mb": memory_mb(text(MEMORY), "MemAvailable"),
        "power_mode": power_mode(),
        "power_modes": power_modes(text(POWER_MODES)),
        "gpu": gpu_facts,
        "throttling": raspberry[0] + _cooling() + gpu_now,
        "throttled_since_boot": raspberry[1],
        "throttle_counts": {**_throttle_counts(), **gpu_counts},
    }
    return {name: value for name, value in facts.items() if value}


def cpu_seconds() -> float:
    """Processor time that this process has used so far, all its threads together."""
    used = os.times()
    return used.user + used.system


def peak_memory_mb() -> float:
    """The most resident memory that this process ever held, in MB; 0.0 where the system does not say.

    Linux keeps it with the program's memory. What getrusage tells there includes the memory of the program that started
    this one, at the time that it did.
    """
    peak = memory_mb(text(STATUS), "VmHWM")
    if peak:
        return float(peak)
    try:
        import resource
    except ImportError:
        return 0.0
    unit = 1.0 if sys.platform == "darwin" else 1024.0  # getrusage(2): bytes on macOS, KiB on others
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def text(path: Path) -> str:
    """A file's text without surrounding space; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def number(path: Path) -> Optional[int]:
    """The whole number that a file of sysfs holds; None where it cannot be read or holds something else."""
    value = text(path)
    return int(value) if re.fullmatch(r"-?\d+", value) else None


def printed(program: str, *arguments: str) -> str:
    """What a program prints, at most 10 s long; empty where it is missing or fails."""
    found = shutil.which(program)
    if found is None:
        return ""
    try:
        done = subprocess.run(
            [found, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "" if done.returncode else done.stdout.decode("utf-8", "replace").strip()


def memory_mb(meminfo: str, name: str) -> int:
    """A line of /proc/meminfo, or of a process's status, in MB of 10^6 bytes; 0 where there is none."""
    found = re.search(rf"^{name}:\s+(\d+) kB", meminfo, re.MULTILINE)
    return round(int(found.group(1)) * 1024 / 1e6) if found else 0


def l4t(release: str) -> str:
    """The version of Jetson Linux from /etc/nv_tegra_release: "36.4.3"; empty where it is not one."""
    found = re.search(r"R(\d+) ?\(release\), REVISION: ([\d.]+)", release)
    return f"{found.group(1)}.{found.group(2)}" if found else ""


def throttled(said: str) -> Tuple[List[str], List[str]]:
    """What `vcgencmd get_throttled` says is slowing a Raspberry Pi down now, and what did since it was started."""
    found = re.search(r"throttled=0x([0-9a-fA-F]+)", said)
    bits = int(found.group(1), 16) if found else 0
    now, since = ([name for bit, name in RASPBERRY.items() if bits >> (bit + shift) & 1] for shift in (0, 16))
    return now, since


def power_modes(configured: str) -> Dict[str, str]:
    """The modes of /etc/nvpmodel.conf: number -> name."""
    return dict(re.findall(r"^< *POWER_MODEL +ID=(\d+) +NAME=([^ >]+)", configured, re.MULTILINE))


def power_mode() -> str:
    """The name of the Jetson's power mode, from its files or else from `nvpmodel -q`; empty on other machines."""
    stored = re.search(r"pmode:(\d+)", text(POWER_MODE))
    name = power_modes(text(POWER_MODES)).get(str(int(stored.group(1)))) if stored else None
    said = None if name else re.search(r"NV Power Mode: *(\S+)", printed("nvpmodel", "-q"))
    return name or (said.group(1) if said else "")


def _cpu_model() -> str:
    for line in text(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor()


def _cpu_flags() -> List[str]:
    """What the processor has of the instructions that int8 and 16-bit floats are fast with, as Linux names them."""
    for line in text(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() in {"flags", "features"}:
            has = set(value.split())
            return [flag for flag in FLAGS if flag in has]
    return []


def _clocks_mhz() -> List[float]:
    files = [number(path) for path in sorted(CPUS.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))]
    if any(files):
        return [value / 1000 for value in files if value is not None]
    lines = [line.partition(":") for line in text(Path("/proc/cpuinfo")).splitlines()]
    return [float(value) for name, _, value in lines if name.strip() == "cpu MHz"]


def _fixed_clocks() -> Dict[str, bool]:
    """Do processor and GPU have one clock to choose from, as after jetson_clocks (which itself tells only root)?"""
    places = {"cpu": list(CPUS.glob("cpu[0-9]*/cpufreq")), "gpu": _soc_gpus()}
    names = {"cpu": ("scaling_min_freq", "scaling_max_freq"), "gpu": ("min_freq", "max_freq")}
    fixed = {}
    for kind, folders in places.items():
        ranges = [tuple(number(folder / name) for name in names[kind]) for folder in folders]
        known = [one for one in ranges if None not in one]
        if known:
            fixed[kind] = all(low == high for low, high in known)
    return fixed


def _soc_gpus() -> List[Path]:
    # 17000000.gpu or 17000000.ga10b of a Jetson, fb000000.gpu of an RK3588
    return [path for path in sorted(DEVFREQ.glob("*")) if re.search(r"gpu|g[pva]\d\d?b$", path.name)]


def _soc_gpu() -> Dict[str, Any]:
    clocks = [number(path / "cur_freq") for path in _soc_gpus()]
    known = [clock for clock in clocks if clock is not None]
    return {"clock_mhz": max(known) / 1e6} if known else {}


def _temperatures_c() -> Dict[str, float]:
    zones: Dict[str, float] = {}
    for zone in sorted(THERMAL.glob("thermal_zone*")):
        value = number(zone / "temp")
        # a Jetson says -256 degrees of a part that is switched off
        if value is not None and value > -100_000:
            # several zones may bear the same type; the zone's number keeps them apart
            zones[f"{zone.name} {text(zone / 'type')}"] = value / 1000
    return zones


def _cooling() -> List[str]:
    found = []
    for device in sorted(THERMAL.glob("cooling_device*")):
        kind, step, most = text(device / "type"), number(device / "cur_state"), number(device / "max_state")
        if step and step > 0 and COOLERS.search(kind) and "fan" not in kind:
            found.append(f"{kind} at step {step} of {most}")
    return found


def _throttle_counts() -> Dict[str, int]:
    """Counters of x86 (thermal_throttle, summed over the processors) and of Orin and Thor (over-current)."""
    counts: Dict[str, int] = {}
    for kind in ("core", "package"):
        each = [number(path) for path in CPUS.glob(f"cpu[0-9]*/thermal_throttle/{kind}_throttle_count")]
        known = [value for value in each if value is not None]
        if known:
            counts[f"{kind} thermal throttle"] = sum(known)
    for at, name in ALARMS.items():
        for path in HWMON.glob(f"hwmon*/oc{at}_event_cnt"):
            value = number(path)
            if value is not None:
                counts[name] = counts.get(name, 0) + value
    return counts
