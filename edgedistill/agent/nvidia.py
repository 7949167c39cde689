"""What NVIDIA's driver says of the GPU, through its library NVML by ctypes.

NVML rather than nvidia-smi: no process is started beside the measurement, a field that a driver does not know costs
that field alone (`nvidia-smi --query-gpu` refuses the whole query, and renamed clocks_throttle_reasons to
clocks_event_reasons), and it alone has the energy counter. The functions asked for exist under these names from
driver 384 on. On a Jetson NVML starts but answers most questions with "not supported": then sysfs has to do.

Source: NVML API Reference, https://docs.nvidia.com/deploy/nvml-api/
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence

LIBRARIES = ("nvml.dll",) if sys.platform == "win32" else ("libnvidia-ml.so.1", "libnvidia-ml.so")
# nvmlClocksEventReasons: the bits that mean "slower than it could be"; idle and chosen clocks are none of them
REASONS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal slowdown by the driver",
    0x40: "thermal slowdown by the hardware",
    0x80: "power brake",
}
# nvmlPerfPolicyType_t: for how long each slowed the clocks down
POLICIES = {0: "GPU power cap (ms)", 1: "GPU thermal limit (ms)"}
SUCCESS, INSUFFICIENT_SIZE = 0, 7
GPU_SENSOR, CLOCK_SM, CLOCK_MEMORY = 0, 1, 2


class Gpu(NamedTuple):
    """The library, started, and the device in it that CUDA calls 0; `certain` where it is known which that is."""

    library: Any
    handle: ctypes.c_void_p
    certain: bool

    def number(self, function: str, kind: Any, *given: Any) -> Optional[int]:
        """What `function` says of the device; None where it is missing or the device does not support it."""
        out = kind()
        code = _call(self.library, function, self.handle, *given, ctypes.byref(out))
        return int(out.value) if code == SUCCESS else None

    def numbers(self, function: str, count: int, kind: Any, *given: Any) -> Optional[List[int]]:
        """The same for a structure of `count` equal numbers."""
        out = (kind * count)()
        code = _call(self.library, function, self.handle, *given, ctypes.byref(out))
        return list(out) if code == SUCCESS else None

    def joules(self) -> Optional[float]:
        """Energy that the board used since the driver was loaded (Volta and newer)."""
        used_mj = self.number("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong)
        return None if used_mj is None else used_mj / 1000.0


@contextlib.contextmanager
def opened() -> Iterator[Optional[Gpu]]:
    """The GPU that CUDA uses first, for as long as the block runs; None without driver or GPU."""
    library = _load(LIBRARIES)
    if library is None or _call(library, "nvmlInit_v2") != SUCCESS:
        yield None
        return
    try:
        yield _chosen(library)
    finally:
        _call(library, "nvmlShutdown")


def identity(gpu: Gpu) -> Dict[str, Any]:
    """What does not change while measuring: name, driver, memory in MB, power limit in W."""
    memory = gpu.numbers("nvmlDeviceGetMemoryInfo", 3, ctypes.c_ulonglong)
    facts = {
        "gpu": _text(gpu.library, "nvmlDeviceGetName", gpu.handle),
        "driver": _text(gpu.library, "nvmlSystemGetDriverVersion"),
        "gpu_memory_mb": memory and round(memory[0] / 1e6),
        "gpu_power_limit_w": _thousandth(gpu.number("nvmlDeviceGetEnforcedPowerLimit", ctypes.c_uint)),
    }
    return {name: value for name, value in facts.items() if value}


def state(gpu: Gpu) -> Dict[str, Any]:
    """What may change: clocks in MHz, temperature in degrees Celsius, power in W, memory in MB, programs there."""
    memory = gpu.numbers("nvmlDeviceGetMemoryInfo", 3, ctypes.c_ulonglong)
    facts = {
        "clock_mhz": gpu.number("nvmlDeviceGetClockInfo", ctypes.c_uint, ctypes.c_uint(CLOCK_SM)),
        "memory_clock_mhz": gpu.number("nvmlDeviceGetClockInfo", ctypes.c_uint, ctypes.c_uint(CLOCK_MEMORY)),
        "temperature_c": gpu.number("nvmlDeviceGetTemperature", ctypes.c_uint, ctypes.c_uint(GPU_SENSOR)),
        "power_w": _thousandth(gpu.number("nvmlDeviceGetPowerUsage", ctypes.c_uint)),
        "memory_used_mb": memory and round(memory[2] / 1e6),
        "programs": _programs(gpu),
    }
    return {name: value for name, value in facts.items() if value is not None}


def throttling(gpu: Gpu) -> List[str]:
    """What holds the clocks down at this moment."""
    bits = gpu.number("nvmlDeviceGetCurrentClocksThrottleReasons", ctypes.c_ulonglong)
    return [f"GPU {name}" for bit, name in REASONS.items() if (bits or 0) & bit]


def throttle_counts(gpu: Gpu) -> Dict[str, int]:
    """For how many milliseconds each limit has held the clocks down since the driver was loaded."""
    counts = {}
    for policy, name in POLICIES.items():
        # nvmlViolationTime_t: reference time, violation time in ns
        times = gpu.numbers("nvmlDeviceGetViolationStatus", 2, ctypes.c_ulonglong, ctypes.c_uint(policy))
        if times is not None:
            counts[name] = times[1] // 1_000_000
    return counts


def _load(libraries: Sequence[str]) -> Any:
    for name in libraries:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    return None


def _call(library: Any, function: str, *given: Any) -> int:
    # a function that this driver's library lacks is a question it does not support
    found = getattr(library, function, None)
    return -1 if found is None else int(found(*given))


def _chosen(library: Any) -> Optional[Gpu]:
    """The device of CUDA_VISIBLE_DEVICES' first entry, or the first; not `certain` where CUDA may count otherwise."""
    count = ctypes.c_uint()
    if _call(library, "nvmlDeviceGetCount_v2", ctypes.byref(count)) != SUCCESS:
        return None
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0].strip()
    handle = ctypes.c_void_p()
    if wanted.isdigit():
        # CUDA counts the fastest first unless told otherwise, NVML by the place on the bus
        certain = count.value == 1 or os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
        code = _call(library, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(int(wanted)), ctypes.byref(handle))
    else:
        certain = True
        code = _call(library, "nvmlDeviceGetHandleByUUID", ctypes.c_char_p(wanted.encode()), ctypes.byref(handle))
    return Gpu(library, handle, certain) if code == SUCCESS else None


def _text(library: Any, function: str, *given: Any) -> str:
    out = ctypes.create_string_buffer(96)
    code = _call(library, function, *given, out, ctypes.c_uint(len(out)))
    return out.value.decode("utf-8", "replace") if code == SUCCESS else ""


def _thousandth(value: Optional[int]) -> Optional[float]:
    return None if value is None else value / 1000.0


def _programs(gpu: Gpu) -> Optional[int]:
    """How many programs hold a compute context, this one included; the list itself is not asked for."""
    count = ctypes.c_uint(0)
    name = "nvmlDeviceGetComputeRunningProcesses"
    code = _call(gpu.library, name, gpu.handle, ctypes.byref(count), None)
    return count.value if code in (SUCCESS, INSUFFICIENT_SIZE) else None
