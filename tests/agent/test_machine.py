"""Identity and state of a Jetson, a Raspberry Pi and an x86 server, read from recorded files and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from edgedistill.agent import machine, nvidia

RELEASE = """# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025
# KERNEL_VARIANT: oot
TARGET_USERSPACE_LIB_DIR=nvidia
TARGET_USERSPACE_LIB_DIR_PATH=usr/lib/aarch64-linux-gnu/nvidia
"""
MODES = """# default model
< PARAM TYPE=FILE NAME=CPU_ONLINE >
CORE_0 /sys/devices/system/cpu/cpu0/online
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
# < POWER_MODEL ID=9 NAME=COMMENTED >
< PM_CONFIG DEFAULT=1 >
"""
MEMINFO = """MemTotal:        7802936 kB
MemFree:         1204124 kB
MemAvailable:    5331204 kB
"""
PATH_CONSTANTS = ("CPUS", "THERMAL", "HWMON", "DEVFREQ", "MEMORY", "BOARD", "L4T", "POWER_MODES", "POWER_MODE")


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Point the agent to an empty machine: no kernel files, no programs."""
    for name in PATH_CONSTANTS:
        monkeypatch.setattr(machine, name, tmp_path / name.lower())
    monkeypatch.setattr(nvidia, "LIBRARIES", ())
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


def write_files(root: Path, files: Mapping[str, str]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def write_program(root: Path, name: str, body: str) -> None:
    write_files(root, {f"bin/{name}": f"#!/bin/sh\n{body}\n"})
    (root / "bin" / name).chmod(0o755)


def test_orin_nano_is_described(root: Path) -> None:
    write_files(
        root,
        {
            "board": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
            "l4t": RELEASE,
            "memory": MEMINFO,
            "power_modes": MODES,
            "power_mode": "pmode:0000\n",
            "cpus/cpu0/cpufreq/scaling_governor": "schedutil\n",
            "cpus/cpu0/cpufreq/scaling_cur_freq": "729600\n",
            "cpus/cpu0/cpufreq/scaling_min_freq": "729600\n",
            "cpus/cpu0/cpufreq/scaling_max_freq": "1728000\n",
            "devfreq/17000000.gpu/cur_freq": "624750000\n",
            "devfreq/17000000.gpu/min_freq": "624750000\n",
            "devfreq/17000000.gpu/max_freq": "624750000\n",
            "devfreq/15340000.vic/cur_freq": "115200000\n",
            "thermal/thermal_zone0/type": "cpu-thermal\n",
            "thermal/thermal_zone0/temp": "50031\n",
            "thermal/thermal_zone2/type": "cv0-thermal\n",
            "thermal/thermal_zone2/temp": "-256000\n",
            "cpus/cpu1/cpufreq/scaling_min_freq": "1728000\n",
            "cpus/cpu1/cpufreq/scaling_max_freq": "1728000\n",
            "thermal/cooling_device0/type": "pwm-fan\n",
            "thermal/cooling_device0/cur_state": "2\n",
            "thermal/cooling_device3/type": "cpu-fan\n",
            "thermal/cooling_device3/cur_state": "3\n",
            "thermal/cooling_device1/type": "cpu-throttle-alert\n",
            "thermal/cooling_device1/cur_state": "1\n",
            "thermal/cooling_device1/max_state": "1\n",
            "thermal/cooling_device2/type": "devfreq-17000000.gpu\n",
            "thermal/cooling_device2/cur_state": "0\n",
            "thermal/cooling_device2/max_state": "6\n",
            "hwmon/hwmon3/name": "soctherm_oc\n",
            "hwmon/hwmon3/oc1_event_cnt": "0\n",
            "hwmon/hwmon3/oc3_event_cnt": "27390\n",
        },
    )
    write_program(root, "dpkg-query", "[ \"$*\" = '-W -f=${Version} nvidia-jetpack' ] && printf '6.2+b77'")
    identity, state = machine.identity(), machine.state()
    assert machine.is_jetson()
    assert (identity["l4t"], identity["jetpack"], identity["memory_mb"]) == ("36.4.3", "6.2+b77", 7990)
    assert identity["board"].endswith("Kit Super")
    assert (state["power_mode"], state["power_modes"]) == ("15W", {"0": "15W", "1": "25W", "2": "MAXN_SUPER"})
    assert state["fixed_clocks"] == {"cpu": False, "gpu": True}
    assert (state["clock_mhz"], state["gpu"]) == ([729.6], {"clock_mhz": 624.75})
    assert state["memory_available_mb"] == 5459
    assert state["temperature_c"] == {"thermal_zone0 cpu-thermal": 50.031}
    assert state["throttling"] == ["cpu-throttle-alert at step 1 of 1"]
    assert state["throttle_counts"] == {"under-voltage alarm": 0, "peak over-current alarm": 27390}


def test_server_throttling_is_reported(root: Path) -> None:
    write_files(
        root,
        {
            f"cpus/cpu{cpu}/thermal_throttle/{kind}_throttle_count": f"{count}\n"
            for cpu, counts in enumerate([(3, 10), (4, 10)])
            for kind, count in zip(("core", "package"), counts, strict=True)
        },
    )
    write_files(
        root,
        {
            "thermal/cooling_device0/type": "Processor\n",
            "thermal/cooling_device0/cur_state": "0\n",
            "thermal/cooling_device1/type": "TCC Offset\n",
            "thermal/cooling_device1/cur_state": "5\n",
            "thermal/cooling_device2/type": "intel_powerclamp\n",
            "thermal/cooling_device2/cur_state": "-1\n",
            "thermal/cooling_device3/type": "Processor\n",
            "thermal/cooling_device3/cur_state": "3\n",
            "thermal/cooling_device3/max_state": "10\n",
        },
    )
    state = machine.state()
    assert state["throttle_counts"] == {"core thermal throttle": 7, "package thermal throttle": 20}
    assert state["throttling"] == ["Processor at step 3 of 10"]
    assert not machine.is_jetson()
    assert not {"power_mode", "power_modes", "fixed_clocks", "throttled_since_boot"} & set(state)


def test_raspberry_pi_throttling_is_reported(root: Path) -> None:
    write_program(root, "vcgencmd", '[ "$1" = get_throttled ] && echo throttled=0x50005')
    state = machine.state()
    assert state["throttling"] == ["under-voltage", "throttled"]
    assert state["throttled_since_boot"] == ["under-voltage", "throttled"]


@pytest.mark.parametrize(
    ("output", "now", "since"),
    [
        ("throttled=0x0", [], []),
        ("", [], []),
        ('error=1 error_msg="Command not registered"', [], []),
        ("throttled=0xE0008", ["soft temperature limit"], ["clock capped", "throttled", "soft temperature limit"]),
        ("throttled=0x20002", ["clock capped"], ["clock capped"]),
    ],
)
def test_get_throttled_bits_are_decoded(output: str, now: list[str], since: list[str]) -> None:
    assert machine.throttled(output) == (now, since)


@pytest.mark.parametrize(
    ("release", "version"),
    [
        (RELEASE, "36.4.3"),
        ("# R32(release), REVISION: 6.1, GCID: 27863751, BOARD: t186ref, EABI:aarch64", "32.6.1"),
        ("# R35 (release), REVISION: 4.1", "35.4.1"),
        ("PRETTY_NAME=Debian", ""),
        ("", ""),
    ],
)
def test_jetson_linux_release_is_parsed(release: str, version: str) -> None:
    assert machine.l4t(release) == version


@pytest.mark.parametrize(
    ("printed", "mode"),
    [
        ("NV Power Mode: MAXN_SUPER\n2\n", "MAXN_SUPER"),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: 7W\n1\n", "7W"),
        ("NVPM ERROR: failed to open status file\n", ""),
    ],
)
def test_power_mode_comes_from_nvpmodel_without_file(root: Path, printed: str, mode: str) -> None:
    write_program(root, "nvpmodel", f"[ \"$1\" = -q ] && printf '{printed}'")
    assert machine.power_mode() == mode


def test_missing_or_failing_program_has_empty_output(root: Path) -> None:
    assert machine.printed("vcgencmd", "get_throttled") == ""
    write_program(root, "vcgencmd", "echo throttled=0x5; exit 255")
    assert machine.printed("vcgencmd", "get_throttled") == ""


def test_files_without_number_are_ignored(root: Path) -> None:
    write_files(
        root,
        {
            "cpus/cpu0/cpufreq/scaling_cur_freq": "<unknown>\n",
            "hwmon/hwmon0/oc1_event_cnt": "",
            "cpus/cpu0/thermal_throttle/core_throttle_count": "N/A\n",
        },
    )
    (root / "hwmon" / "hwmon0" / "oc2_event_cnt").mkdir()  # unreadable, like the file of a part without power
    assert "throttle_counts" not in machine.state()
