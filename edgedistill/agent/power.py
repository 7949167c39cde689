"""Energy: joules over a window of time, from the one meter that covers most of the device.

    Jetson            the power of the whole module or board, sampled and integrated (rails.py)
    NVIDIA GPU        the energy counter of the graphics board (NVML), for backends that compute there
    x86 processor     the energy counters of package and memory (RAPL), for backends that compute there

Counters are read between the cells, which costs the measurement nothing; only where no counter exists does a process
of its own sample. Every meter covers idle power too, and whatever else runs on what it covers: energy per image is
what the thing drew divided by the images, not what an image added. A counter of NVML lags by up to about 100 ms, so
cells of half a second or more keep its error within a few percent.

Source: NVML API Reference; Linux, Documentation/power/powercap/powercap.rst.
"""

from __future__ import annotations

import bisect
import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, Iterator, List, Optional, Protocol, Sequence, Tuple

from . import machine, nvidia, rails

POWERCAP = Path("/sys/class/powercap")
ON_PROCESSOR = {f"onnxruntime-{name}" for name in ("cpu", "xnnpack", "openvino", "dnnl", "acl")}
ON_PROCESSOR |= {"openvino", "openvino-reduced", "ncnn", "ncnn-half", "ncnn-bf16"}
ON_NVIDIA = {f"onnxruntime-{name}" for name in ("cuda", "tensorrt", "nvtensorrtrtx")} | {"tensorrt", "tensorrt-rtx"}
MOST_GAP_S = 1.0  # between two samples of power: longer, and what happened between them is anybody's guess
Points = Sequence[Tuple[float, float]]


class Meter(Protocol):
    """What the worker asks: `name` of the source and `covers`, the words that belong to every number from it."""

    name: str
    covers: str

    def mark(self) -> None:
        """Read the counter now; call it right before and right after each window."""

    def between(self, start_s: float, end_s: float) -> Optional[float]:
        """Joules between two moments of the monotonic clock; None where that is not known."""


class Counter:
    """A counter of joules that is read at each mark."""

    def __init__(self, name: str, covers: str, read: Callable[[], Optional[float]]) -> None:
        self.name, self.covers, self.read = name, covers, read
        self.points: List[Tuple[float, float]] = []

    def mark(self) -> None:
        """Read the counter now."""
        joules = self.read()
        if joules is not None:
            self.points.append((time.monotonic(), joules))

    def between(self, start_s: float, end_s: float) -> Optional[float]:
        """Joules between two moments, None outside the marks."""
        return rise(self.points, start_s, end_s)


class Sampler:
    """A file into which another process writes the power, ten times a second."""

    def __init__(self, name: str, covers: str, path: Path) -> None:
        self.name, self.covers, self.path = name, covers, path

    def mark(self) -> None:
        """Nothing: the other process samples on its own."""

    def between(self, start_s: float, end_s: float) -> Optional[float]:
        """Joules between two moments, None where samples are missing."""
        return integrate(points(machine.text(self.path)), start_s, end_s)


class Nothing:
    """No meter here."""

    name, covers = "", ""

    def mark(self) -> None:
        """Nothing to read."""

    def between(self, start_s: float, end_s: float) -> Optional[float]:
        """Unknown."""


@contextlib.contextmanager
def start(backend: str) -> Iterator[Meter]:
    """The meter for a backend of that name, running while the block runs; one that always says None where none is."""
    find = {**dict.fromkeys(ON_PROCESSOR, _processor), **dict.fromkeys(ON_NVIDIA, _nvidia)}.get(backend, _none)
    with contextlib.ExitStack() as stack:
        yield _jetson(stack) or find(stack) or Nothing()


def over(meter: Meter, windows_s: Sequence[Tuple[float, float]]) -> Optional[float]:
    """Joules of several windows together; None where those of any are not known, or there is none."""
    each = [meter.between(start_s, end_s) for start_s, end_s in windows_s]
    known = [joules for joules in each if joules is not None]
    return sum(known) if known and len(known) == len(each) else None


def per_image(joules: Sequence[Optional[float]], images: int) -> Optional[float]:
    """Millijoules an image, from the joules of every process; None where those of any are not known."""
    known = [one for one in joules if one is not None]
    return 1000.0 * sum(known) / images if known and images and len(known) == len(joules) else None


def rise(readings: Points, start_s: float, end_s: float) -> Optional[float]:
    """How far a counter rose between two moments, by linear interpolation; None where readings do not enclose them."""
    at_start, at_end = _at(readings, start_s), _at(readings, end_s)
    return None if at_start is None or at_end is None else at_end - at_start


def integrate(samples: Points, start_s: float, end_s: float) -> Optional[float]:
    """Joules from samples of power in watts, by trapezoids; None unless they cover the window without a long gap.

    Args:
        samples: (seconds, watts) in the order of time. Up to one gap may be missing before the start and after the
            end, where the power next to it is taken to last.
        start_s: of the window.
        end_s: of the window, not before the start.
    """
    times = [one[0] for one in samples]
    first, last = max(bisect.bisect_right(times, start_s) - 1, 0), bisect.bisect_left(times, end_s)
    near = list(samples[first : last + 1])
    if not near:
        return None
    if near[0][0] > start_s:
        near.insert(0, (start_s, near[0][1]))
    if near[-1][0] < end_s:
        near.append((end_s, near[-1][1]))
    if any(after[0] - before[0] > MOST_GAP_S for before, after in _steps(near)):
        return None
    inside = [one for one in near if start_s < one[0] < end_s]
    curve = [(start_s, _at(near, start_s) or 0.0), *inside, (end_s, _at(near, end_s) or 0.0)]
    return sum((after[0] - before[0]) * (after[1] + before[1]) / 2.0 for before, after in _steps(curve))


def points(written: str) -> List[Tuple[float, float]]:
    """The samples of the other process, without a last line that is not whole yet."""
    whole = re.findall(r"^(\d+\.\d{4}) (-?\d+\.\d{4})$", written, re.MULTILINE)
    return [(float(moment), float(watts)) for moment, watts in whole]


def _steps(curve: Points) -> List[Tuple[Tuple[float, float], Tuple[float, float]]]:
    return [(curve[at], curve[at + 1]) for at in range(len(curve) - 1)]


def _at(curve: Points, moment: float) -> Optional[float]:
    times = [one[0] for one in curve]
    after = bisect.bisect_left(times, moment)
    if after == len(times) or moment < times[0]:
        return None
    if times[after] == moment:
        return curve[after][1]
    (t0, v0), (t1, v1) = curve[after - 1], curve[after]
    return v0 + (v1 - v0) * (moment - t0) / (t1 - t0)


def _none(_: contextlib.ExitStack) -> Optional[Meter]:
    return None


def _jetson(stack: contextlib.ExitStack) -> Optional[Meter]:
    labels = [rail.label for rail in rails.rails(machine.HWMON)] if machine.is_jetson() else []
    if not labels and not (machine.is_jetson() and shutil.which("tegrastats")):
        return None
    what = f"rails {' + '.join(rails.total(labels))}" if labels else "rails that tegrastats tells"
    path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agent-power-"))) / "watts"
    stack.callback(_sampling(path, str(machine.HWMON) if labels else ""))
    return Sampler("power monitor of the Jetson", f"the {what}, idle power included", path)


def _sampling(path: Path, folder: str) -> Callable[[], None]:
    """Start the sampler; returns what ends it."""
    root = Path(__file__).absolute().parents[str(__package__).count(".") + 1]
    code = f"import sys; sys.path.insert(0, {str(root)!r}); from {__package__} import rails; rails.sample({folder!r})"
    with path.open("wb") as out:
        program = subprocess.Popen([sys.executable, "-I", "-c", code], stdin=subprocess.PIPE, stdout=out,
                                   stderr=subprocess.DEVNULL)  # fmt: skip

    def end() -> None:
        assert program.stdin is not None
        program.stdin.close()
        try:
            program.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()

    return end


def _nvidia(stack: contextlib.ExitStack) -> Optional[Meter]:
    gpu = stack.enter_context(nvidia.opened())
    if gpu is None or not gpu.certain or gpu.joules() is None:
        return None
    covers = "the graphics board with its memory, idle power included, without the processor"
    return Counter("energy counter of NVML", covers, gpu.joules)


def _processor(_: contextlib.ExitStack) -> Optional[Meter]:
    domains = _domains()
    if not domains:
        return None
    names = " + ".join(machine.text(domain / "name") for domain in domains)
    covers = f"the processor ({names}), idle power and other programs included, without the rest of the machine"
    return Counter("energy counters of RAPL", covers, _Rapl(domains).joules)


def _domains() -> List[Path]:
    """The packages, and the memory beside them; cores are part of a package, and psys holds them all again."""
    found = [*sorted(POWERCAP.glob("intel-rapl:*"))]
    wanted = [path for path in found if machine.text(path / "name").startswith(("package-", "dram"))]
    # since Linux 5.10 only root may read them unless the administrator lets others; half of them is no answer
    return wanted if all(machine.number(path / "energy_uj") is not None for path in wanted) else []


class _Rapl:
    """The sum of several counters of microjoules, each of which begins again at zero after its own range."""

    def __init__(self, domains: Sequence[Path]) -> None:
        self.domains = domains
        self.ranges = [machine.number(domain / "max_energy_range_uj") or 0 for domain in domains]
        self.last: Optional[List[int]] = None
        self.total_uj = 0

    def joules(self) -> Optional[float]:
        """Energy since the first call; None where a counter cannot be read, which is then tried again."""
        read = [machine.number(domain / "energy_uj") for domain in self.domains]
        now = [value for value in read if value is not None]
        if len(now) < len(read):
            return None
        if self.last is not None:
            self.total_uj += sum(unwrapped(*one) for one in zip(self.last, now, self.ranges))
        self.last = now
        return self.total_uj / 1e6


def unwrapped(before: int, after: int, most: int) -> int:
    """How far a counter rose that begins again at zero after `most`."""
    return after - before if after >= before else after - before + most
