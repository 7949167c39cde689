"""Energy over time windows: exact arithmetic, and the counters and the sampler on a device's files."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedistill.agent import backends, machine, meter, nvidia, power, rails
from edgedistill.devices.bundle import agent_archive

ORIN_NANO = (
    "06-18-2025 11:25:24 RAM 3452/7620MB (lfb 25x4MB) SWAP 1518/16384MB (cached 174MB) CPU [1%@1420,2%@1420,0%@1420,"
    "2%@1420,2%@729,1%@729] EMC_FREQ 0%@2133 GR3D_FREQ 0%@[305] NVDEC off APE 200 cpu@50.031C soc2@49.031C tj@50.25C "
    "VDD_IN 4824mW/4811mW VDD_CPU_GPU_CV 518mW/520mW VDD_SOC 1475mW/1475mW"
)
AGX_ORIN = (
    "11-21-2025 08:49:48 RAM 13983/62780MB (lfb 424x4MB) CPU [90%@2201,100%@2201] GR3D_FREQ 14%@[407,407] CV0@73.625C "
    "tj@77.281C VDD_GPU_SOC 3150mW/2971mW VDD_CPU_CV 14312mW/12415mW VIN_SYS_5V0 4968mW/5048mW NC 0mW/0mW "
    "VDDQ_VDD2_1V8AO 1091mW/1091mW NC 0mW/0mW"
)
AGX_XAVIER = (
    "RAM 1/2MB GPU 1083mW/1083mW CPU 619mW/619mW SOC 1083mW/1083mW CV 0mW/0mW VDDRQ 309mW/309mW SYS5V 1922mW/1922mW"
)
THOR = (
    "RAM 9/125772MB VDD_GPU -392mW/-392mW VDD_CPU_SOC_MSS 3924mW/3924mW VIN_SYS_5V0 6520mW/6520mW VIN 23000mW/23000mW"
)


@pytest.mark.parametrize(
    ("line", "watts"),
    [
        (ORIN_NANO, 4.824),  # the input of the module
        (AGX_ORIN, 3.150 + 14.312 + 4.968),  # no input rail: all rails except one that another rail feeds
        (AGX_XAVIER, 1.083 + 0.619 + 1.083 + 0.309 + 1.922),
        (THOR, 23.0),  # the input of the carrier board
    ],
)
def test_total_power_is_read_from_tegrastats_line(line: str, watts: float) -> None:
    assert rails.whole(rails.tegrastats(line)) == pytest.approx(watts)


def test_rail_may_be_negative_and_without_average() -> None:
    assert rails.tegrastats(THOR)["VDD_GPU"] == -0.392
    assert rails.tegrastats("GR3D_FREQ 45% VDD_GPU_SOC 2171mW") == {"VDD_GPU_SOC": 2.171}


def test_line_without_power_has_no_rails() -> None:
    assert rails.tegrastats("RAM 3452/7620MB CPU [1%@1420,2%@729] GR3D_FREQ 0% cpu@50.031C") == {}


def write_files(root: Path, files: Mapping[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def monitor_files(number: int, *channels: tuple[str, int, int], name: str = "ina3221") -> dict[str, str]:
    """Return the files of an INA3221: label, mV and mA of each channel, and the sums that the driver adds."""
    files = {
        f"hwmon{number}/name": f"{name}\n",
        f"hwmon{number}/in7_label": "sum of shunt voltages\n",
        f"hwmon{number}/in7_input": "760\n",
        f"hwmon{number}/curr4_input": "360\n",
    }
    for n, (label, millivolts, milliamperes) in enumerate(channels, start=1):
        files.update(
            {
                f"hwmon{number}/in{n}_label": f"{label}\n",
                f"hwmon{number}/in{n}_input": f"{millivolts}\n",
                f"hwmon{number}/curr{n}_input": f"{milliamperes}\n",
            }
        )
    return files


def test_rails_of_two_monitors_are_read(tmp_path: Path) -> None:
    write_files(
        tmp_path, monitor_files(3, ("VDD_GPU_SOC", 19800, 160), ("VDD_CPU_CV", 19784, 40), ("VIN_SYS_5V0", 4968, 953))
    )
    write_files(tmp_path, monitor_files(4, ("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 4968, 80), ("NC", 0, 0)))
    write_files(tmp_path, {"hwmon0/name": "pwmfan\n", "hwmon5/name": "tmp451\n", "hwmon5/in1_label": "VDD_IN\n"})
    board_rails = rails.rails(tmp_path)
    assert [rail.label for rail in board_rails] == ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"]
    assert [rail.watts() for rail in board_rails[:2]] == pytest.approx([3.168, 0.79136])
    assert rails.total([rail.label for rail in board_rails]) == ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"]


def test_monitor_with_microwatts_and_no_label_is_read(tmp_path: Path) -> None:
    write_files(
        tmp_path, {"hwmon6/name": "ina238\n", "hwmon6/power1_input": "23125000\n", "hwmon6/in1_input": "19900\n"}
    )
    (rail,) = rails.rails(tmp_path)
    assert (rail.label, rail.watts()) == ("VIN", 23.125)


def test_switched_off_channel_is_ignored(tmp_path: Path) -> None:
    write_files(tmp_path, monitor_files(1, ("VDD_IN", 4984, 1856), ("VDD_SOC", 4984, 300)))
    (tmp_path / "hwmon1" / "curr2_input").unlink()
    assert [rail.label for rail in rails.rails(tmp_path)] == ["VDD_IN"]


@given(
    st.floats(0, 50),
    st.floats(-5, 5),
    st.lists(st.floats(0.01, 0.9), min_size=4, max_size=30),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_linear_power_is_integrated_exactly(
    base: float, slope: float, gaps: list[float], early: float, late: float
) -> None:
    times = [sum(gaps[:n]) for n in range(len(gaps) + 1)]
    samples = [(moment, base + slope * moment) for moment in times]
    start, end = sorted((early * times[-1], late * times[-1]))
    exact = base * (end - start) + slope * (end**2 - start**2) / 2
    assert power.integrate(samples, start, end) == pytest.approx(exact, abs=1e-6)


def test_samples_must_cover_window() -> None:
    flat = [(n / 10, 10.0) for n in range(21)]  # 0 .. 2 s
    assert power.integrate(flat, 0.05, 1.95) == pytest.approx(19.0)
    # the sample next to the edge is extended, but not beyond the longest gap allowed
    assert power.integrate(flat, -0.5, 2.5) == pytest.approx(30.0)
    assert power.integrate(flat, -1.5, 1.0) is None
    assert power.integrate(flat, 1.0, 3.5) is None
    assert power.integrate([], 0.0, 1.0) is None
    # a gap inside the window counts, also across its edge; a gap outside does not
    holed = [(0.0, 10.0), (0.5, 10.0), (1.9, 10.0), (2.0, 10.0), (2.5, 10.0), (4.0, 10.0)]
    assert power.integrate(holed, 0.1, 2.4) is None
    assert power.integrate(holed, 1.0, 2.4) is None
    assert power.integrate(holed, 1.9, 2.4) == pytest.approx(5.0)


def test_counter_is_interpolated_between_readings() -> None:
    readings = [(0.0, 5.0), (1.0, 7.0), (3.0, 17.0)]
    assert power.rise(readings, 0.0, 3.0) == 12.0
    assert power.rise(readings, 0.5, 2.0) == pytest.approx(6.0)
    assert power.rise(readings, 0.5, 3.1) is None
    assert power.rise(readings, -0.1, 1.0) is None


def test_counter_overflow_is_unwrapped() -> None:
    assert power.unwrapped(10, 17, 100) == 7
    assert power.unwrapped(98, 3, 100) == 5


def test_incomplete_lines_are_ignored() -> None:
    assert power.points("1.0000 4.8240\n1.1000 4.9000\n1.2000 5.1") == [(1.0, 4.824), (1.1, 4.9)]
    assert power.points("") == []


def test_joules_become_millijoules_per_image() -> None:
    assert power.per_image([1.5, 2.5], 200) == 20.0
    assert power.per_image([1.5, None], 200) is None
    assert power.per_image([], 200) is None


def test_backends_with_power_meters_exist() -> None:
    assert set(backends.BACKENDS) >= power.ON_PROCESSOR | power.ON_NVIDIA
    assert not power.ON_PROCESSOR & power.ON_NVIDIA


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Point the agent to a machine without power meters."""
    for name in ("HWMON", "L4T", "BOARD"):
        monkeypatch.setattr(machine, name, tmp_path / name.lower())
    monkeypatch.setattr(power, "POWERCAP", tmp_path / "powercap")
    monkeypatch.setattr(nvidia, "LIBRARIES", ())
    return tmp_path


@pytest.mark.parametrize("backend", ["onnxruntime-cpu", "tensorrt", "onnxruntime-qnn"])
def test_missing_meter_gives_no_energy(root: Path, backend: str) -> None:
    with power.start(backend) as meter_:
        meter_.mark()
        assert (meter_.name, meter_.covers, power.over(meter_, [(0.0, 1.0)])) == ("", "", None)


def write_rapl(root: Path, **counters: tuple[str, int]) -> Callable[[str, int], None]:
    for domain, (name, microjoules) in counters.items():
        write_files(
            root,
            {
                f"powercap/intel-rapl:{domain.replace('_', ':')[1:]}/{key}": f"{content}\n"
                for key, content in {
                    "name": name,
                    "energy_uj": microjoules,
                    "max_energy_range_uj": 262143328850,
                }.items()
            },
        )
    return lambda domain, microjoules: (
        write_files(root, {f"powercap/intel-rapl:{domain}/energy_uj": f"{microjoules}\n"}) and None
    )


SERVER = {"_0": ("package-0", 262143000000), "_0_0": ("core", 7), "_0_1": ("dram", 1000), "_1": ("psys", 9)}


def test_processor_counters_measure_each_cell(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advance, clock = write_rapl(root, **SERVER), SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(power, "time", clock)

    def query() -> float:
        # a tenth of a second at 10 W for the package, across the end of its range, and 2 W for the memory
        clock.now += 0.1
        advance("0", round(262143000000 + 10e6 * clock.now) % 262143328850)
        advance("0:1", round(1000 + 2e6 * clock.now))
        return 100.0

    with power.start("onnxruntime-cpu") as meter_:
        measured = meter.interleave(
            {"A": query, "B": query}, meter.Plan(2, 10, 0.0), on_edge=meter_.mark, clock=clock.monotonic
        )
        joules = {name: power.over(meter_, cells.windows_s) for name, cells in measured.items()}
        assert power.over(meter_, [(0.0, 1.0)]) is None  # before the first mark
    assert meter_.name == "energy counters of RAPL"
    assert meter_.covers.startswith("the processor (package-0 + dram), idle power and other programs included")
    # two cells of ten queries: 2 s at 12 W; 20 images
    assert joules == {"A": pytest.approx(24.0, abs=1e-4), "B": pytest.approx(24.0, abs=1e-4)}
    assert power.per_image([joules["A"]], 20) == pytest.approx(1200.0, abs=0.01)


def test_unreadable_counters_are_no_meter(root: Path) -> None:
    write_rapl(root, **SERVER)
    (root / "powercap" / "intel-rapl:0" / "energy_uj").unlink()
    with power.start("onnxruntime-cpu") as meter_:
        assert meter_.name == ""


def test_processor_counters_are_not_used_for_gpu(root: Path) -> None:
    write_rapl(root, **SERVER)
    with power.start("tensorrt") as meter_:
        assert meter_.name == ""


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_jetson_is_sampled_by_another_process(root: Path) -> None:
    write_files(root / "hwmon", monitor_files(1, ("VDD_IN", 5000, 2000), ("VDD_SOC", 5000, 300)))
    write_files(root, {"board": "NVIDIA Jetson Orin Nano Developer Kit\0"})
    with power.start("onnxruntime-cpu") as meter_:
        assert isinstance(meter_, power.Sampler)
        wait_until(lambda: len(power.points(machine.text(meter_.path))) >= 2)
        start = time.monotonic()
        time.sleep(0.5)
        end = time.monotonic()
        # the last sample may be a tenth of a second old; its power is extended
        assert meter_.between(start, end) == pytest.approx(10.0 * (end - start))
        assert power.over(meter_, [(start, end), (end + 60.0, end + 61.0)]) is None
        path = meter_.path
    assert not path.parent.exists()
    assert meter_.covers == "the rails VDD_IN, idle power included"


def test_monitors_of_unknown_board_are_not_used(root: Path) -> None:
    write_files(root / "hwmon", monitor_files(1, ("VDD_IN", 5000, 2000)))
    write_files(root, {"board": "Some Router Board\0"})
    with power.start("onnxruntime-cpu") as meter_:
        assert meter_.name == ""


def test_tegrastats_is_used_when_monitors_cannot_be_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(
        root,
        {
            "l4t": "# R36 (release), REVISION: 4.3",
            "bin/tegrastats": f"#!/bin/sh\necho $$ > {root}/pid\n[ \"$1 $2\" = '--interval 100' ] || exit 2\n"
            f"for n in 1 2 3 4; do echo '{ORIN_NANO}'; sleep 0.1; done\nexec sleep 600\n",
        },
    )
    (root / "bin" / "tegrastats").chmod(0o755)
    monkeypatch.setenv("PATH", f"{root / 'bin'}:{os.environ['PATH']}")
    with power.start("tensorrt") as meter_:
        assert isinstance(meter_, power.Sampler)
        wait_until(lambda: len(power.points(machine.text(meter_.path))) >= 4)
        samples = power.points(machine.text(meter_.path))
        assert meter_.between(samples[0][0], samples[2][0]) == pytest.approx(4.824 * (samples[2][0] - samples[0][0]))
    # it prints nothing more, so it would not notice by itself that its reader is gone
    pid = int((root / "pid").read_text())
    wait_until(lambda: not Path(f"/proc/{pid}").exists())


def test_sampler_runs_from_archive_and_ends_with_its_process(root: Path) -> None:
    write_files(root / "hwmon", monitor_files(1, ("VDD_IN", 5000, 2000)))
    write_files(root, {"l4t": "# R36 (release), REVISION: 4.3"})
    (root / "agent.pyz").write_bytes(agent_archive())
    code = (
        f"import sys, time, pathlib; sys.path.insert(0, {str(root / 'agent.pyz')!r})\n"
        "from agent import machine, power\n"
        f"machine.HWMON, machine.L4T = pathlib.Path({str(root / 'hwmon')!r}), pathlib.Path({str(root / 'l4t')!r})\n"
        "with power.start('tensorrt') as meter:\n"
        "    print(meter.path, flush=True)\n"
        "    time.sleep(60)\n"
    )
    environment = {**os.environ, "TMPDIR": str(root)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as program:
        assert program.stdout is not None
        path = Path(program.stdout.readline().strip())
        wait_until(lambda: len(power.points(machine.text(path))) >= 2)
        # a killed process cannot end the sampler, which has to notice by itself
        program.kill()
    points = power.points(machine.text(path))
    assert {watts for _, watts in points} == {10.0}
    time.sleep(0.5)
    final_text = machine.text(path)
    time.sleep(0.5)
    assert machine.text(path) == final_text
