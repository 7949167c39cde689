"""The power monitors of a Jetson, which tell power at a moment and count no energy: reading them, and the sampler.

The sampler is a process of its own at the lowest priority, so that it takes the measuring process neither its
interpreter nor a core that it wants. It reads ten times a second: a reading of the INA3221 takes about half a
millisecond on the I2C bus, and the monitor averages over a longer time anyway.

Source: Jetson Linux Developer Guide r36.4.3, Platform Power and Performance, "Software-Based Power Consumption
Modeling" and "tegrastats Utility"; Linux, Documentation/hwmon/ina3221.rst and ina238.rst.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, NamedTuple, Sequence, Tuple

EVERY_S = 0.1
# driver -> the label of a channel that bears none: the INA238 of Thor watches the input of the carrier board
MONITORS = {"ina3221": "", "ina238": "VIN"}
# the input of the whole, in the order of how much it takes in; POM_5V_IN is that of the first Nano
INPUTS = ("VIN", "VDD_IN", "POM_5V_IN")
PARTS = {"VDDQ_VDD2_1V8AO"}  # fed by VIN_SYS_5V0 of AGX Orin, so it would count twice in a sum


class Rail(NamedTuple):
    """One supply: its label, and the files whose product is its power in microwatts."""

    label: str
    files: Tuple[str, ...]

    def watts(self) -> float:
        """Its power now.

        Raises:
            OSError: the monitor does not answer.
            ValueError: it answers with something else than a number.
        """
        product_uw = 1
        for name in self.files:
            with open(name, encoding="ascii") as stream:
                product_uw *= int(stream.read())
        return product_uw / 1e6


def rails(hwmon: Path) -> List[Rail]:
    """The rails under /sys/class/hwmon that can be read, in the order of their monitors and channels."""
    found = []
    for monitor in sorted(hwmon.glob("hwmon*")):
        if _word(monitor / "name") in MONITORS:
            found += [rail for rail in _channels(monitor) if _answers(rail)]
    return found


def total(labels: Sequence[str]) -> List[str]:
    """The labels whose sum is the power of the whole: its input where there is one, else all that are no part."""
    inputs = [name for name in INPUTS if name in labels]
    return inputs[:1] or [name for name in labels if name not in PARTS]


def tegrastats(line: str) -> Dict[str, float]:
    """label -> watts now, from a line of tegrastats (NAME 1234mW/1200mW: now and on average)."""
    return {name: int(value) / 1000.0 for name, value in re.findall(r"\b([A-Z][A-Z0-9_]*) (-?\d+)mW", line)}


def sample(folder: str) -> None:
    """Print "seconds watts" of the monotonic clock and the whole until standard input ends.

    Args:
        folder: /sys/class/hwmon, or empty to read from tegrastats.
    """
    with contextlib.suppress(OSError):
        os.nice(19)
    for watts in _read(Path(folder)) if folder else _tegrastats():
        print(f"{time.monotonic():.4f} {watts:.4f}", flush=True)


def _read(hwmon: Path) -> Iterator[float]:
    found = rails(hwmon)
    names = total([rail.label for rail in found])
    # the end of standard input is the end of the measuring process, however that came
    while names and not select.select([sys.stdin], [], [], EVERY_S)[0]:
        with contextlib.suppress(OSError, ValueError):
            yield sum(rail.watts() for rail in found if rail.label in names)


def _tegrastats() -> Iterator[float]:
    command = ["tegrastats", "--interval", str(round(1000 * EVERY_S))]
    # without a buffer, so that no line waits in it while select sees nothing new
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, bufsize=0) as program:
        assert program.stdout is not None
        try:
            while sys.stdin not in select.select([sys.stdin, program.stdout], [], [])[0]:
                line = program.stdout.readline()
                if not line:
                    break
                powers = tegrastats(line.decode("utf-8", "replace"))
                if powers:
                    yield whole(powers)
        finally:
            program.kill()


def whole(powers: Mapping[str, float]) -> float:
    """The power of the whole in watts, from that of every rail."""
    return sum(powers[name] for name in total(list(powers)))


def _channels(monitor: Path) -> Iterator[Rail]:
    for at in range(1, 4):
        label = _word(monitor / f"in{at}_label") or MONITORS[_word(monitor / "name")]
        direct = monitor / f"power{at}_input"
        product = [monitor / f"in{at}_input", monitor / f"curr{at}_input"]
        if label not in ("", "NC"):
            # either is in microwatts: read whole, or as millivolts times milliamperes
            yield Rail(label, tuple(str(path) for path in ([direct] if direct.exists() else product)))


def _answers(rail: Rail) -> bool:
    try:
        rail.watts()
    except (OSError, ValueError):
        return False
    return True


def _word(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
