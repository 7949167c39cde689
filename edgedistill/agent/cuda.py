"""CUDA by ctypes over libcudart: memory, streams, events and graphs, with no package beyond numpy.

Every function here has one signature from CUDA 11.4 to 13 (cuda_runtime_api.h). That is why graphs are made with
cudaGraphInstantiateWithFlags: the arguments of cudaGraphInstantiate changed in 12. The device is always number 0;
CUDA_VISIBLE_DEVICES says which one that is.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from glob import escape, glob
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np

from .job import AgentError

EXPLICIT = "EDGEDISTILL_CUDART"
NAMES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")
# where the wheels nvidia-cuda-runtime-cu11, -cu12 and nvidia-cuda-runtime (13) put it, beside their packages
WHEELS = ("nvidia/cuda_runtime/lib", "nvidia/cu13/lib")
FOLDERS = ("/usr/local/cuda*/lib64", "/usr/local/cuda*/targets/aarch64-linux/lib")

SIGNATURES: Dict[str, List[Any]] = {
    "cudaGetDeviceCount": [POINTER(c_int)],
    "cudaSetDevice": [c_int],
    "cudaDeviceGetAttribute": [POINTER(c_int), c_int, c_int],
    "cudaGetDeviceProperties": [c_void_p, c_int],
    "cudaRuntimeGetVersion": [POINTER(c_int)],
    "cudaDriverGetVersion": [POINTER(c_int)],
    "cudaMemGetInfo": [POINTER(c_size_t), POINTER(c_size_t)],
    "cudaMalloc": [POINTER(c_void_p), c_size_t],
    "cudaFree": [c_void_p],
    "cudaHostAlloc": [POINTER(c_void_p), c_size_t, c_uint],
    "cudaFreeHost": [c_void_p],
    "cudaMemcpyAsync": [c_void_p, c_void_p, c_size_t, c_int, c_void_p],
    "cudaStreamCreateWithFlags": [POINTER(c_void_p), c_uint],
    "cudaStreamSynchronize": [c_void_p],
    "cudaStreamDestroy": [c_void_p],
    "cudaEventCreateWithFlags": [POINTER(c_void_p), c_uint],
    "cudaEventRecord": [c_void_p, c_void_p],
    "cudaEventElapsedTime": [POINTER(c_float), c_void_p, c_void_p],
    "cudaEventDestroy": [c_void_p],
    "cudaStreamBeginCapture": [c_void_p, c_int],
    "cudaStreamEndCapture": [c_void_p, POINTER(c_void_p)],
    "cudaGraphInstantiateWithFlags": [POINTER(c_void_p), c_void_p, c_ulonglong],
    "cudaGraphLaunch": [c_void_p, c_void_p],
    "cudaGraphExecDestroy": [c_void_p],
    "cudaGraphDestroy": [c_void_p],
    "cudaGetLastError": [],
}
TEXTS = ("cudaGetErrorName", "cudaGetErrorString")

HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2  # enum cudaMemcpyKind
NON_BLOCKING = 1  # cudaStreamNonBlocking: no waiting for the default stream, which other libraries may use
THREAD_LOCAL = 1  # cudaStreamCaptureModeThreadLocal: what other threads do cannot break a capture
MULTIPROCESSORS, MAJOR, MINOR = 16, 75, 76  # enum cudaDeviceAttr
NO_DEVICE, DRIVER_TOO_OLD = 100, 35  # enum cudaError
NONE = "0.0"

FIXES = {
    2: "close what else uses this GPU's memory, or take a smaller batch",
    DRIVER_TOO_OLD: f"install or update the driver, or name a libcudart that is not newer than it in {EXPLICIT}",
    46: "another process holds the GPU for itself; end it, or set the compute mode to default",
    NO_DEVICE: "does nvidia-smi list it, does CUDA_VISIBLE_DEVICES hide it, was the container given it?",
    802: "wait for the fabric manager to start it, or start that",
    803: "the driver's parts differ; reboot after its update",
}


class Device(NamedTuple):
    """What an engine is bound to, and the versions beside it.

    The name alone does not tell Jetson Orins apart, and power modes switch multiprocessors off: their number belongs
    to what a device is.
    """

    name: str
    compute_capability: str
    multiprocessors: int
    driver: str
    runtime: str


class Cuda:
    """One libcudart and all that was got from it, which `close` gives back in reverse order.

    Every method raises AgentError when CUDA does: exit code 2 where the device or its installation has to change.
    Streams, events and graphs are plain handles, device memory is an address.
    """

    def __init__(self, library: Any, path: str) -> None:
        self.library, self.path = library, path
        self._owned = contextlib.ExitStack()
        for symbol, arguments in SIGNATURES.items():
            function = getattr(library, symbol)
            function.argtypes, function.restype = arguments, c_int
        for symbol in TEXTS:
            function = getattr(library, symbol)
            function.argtypes, function.restype = [c_int], c_char_p

    def __enter__(self) -> Cuda:
        return self

    def __exit__(self, kind: Any, error: Optional[BaseException], trace: Any) -> None:
        # what went wrong first is what a person should read; after it, freeing may fail for the same reason
        with contextlib.suppress(*([AgentError] if error else [])):
            self.close()

    def close(self) -> None:
        """Give everything back, the latest first; what fails does not keep the rest."""
        self._owned.close()

    def on_close(self, function: Callable[[], None]) -> None:
        """Have `function` called by `close`, before what is older is given back."""
        self._owned.callback(function)

    def status(self, symbol: str, *arguments: Any) -> int:
        """The cudaError_t that a function returns; it is also taken back, so that no later call finds it."""
        code = int(getattr(self.library, symbol)(*arguments))
        if code:
            self.library.cudaGetLastError()
        return code

    def call(self, symbol: str, *arguments: Any) -> None:
        """Call a function of libcudart.

        Raises:
            AgentError: it says so.
        """
        code = self.status(symbol, *arguments)
        if code:
            raise self.error(symbol, code)

    def error(self, symbol: str, code: int) -> AgentError:
        """The one line for a cudaError_t, with the fix where there is one."""
        name, text = (getattr(self.library, one)(code).decode("utf-8", "replace") for one in TEXTS)
        what = f"{symbol}: {name} ({text})"
        if code == DRIVER_TOO_OLD:
            driver, runtime = self.versions()
            # without a driver some versions do not even tell their own
            wants = f"{self.path} wants {'CUDA ' + runtime if runtime != NONE else 'a newer one'}"
            what = f"{what}; driver {driver if driver != NONE else 'missing'}, {wants}"
        fix = FIXES.get(code)
        return AgentError(f"{what}; {fix}" if fix else what, exit_code=2 if fix else 1)

    def versions(self) -> Tuple[str, str]:
        """The newest CUDA that the driver knows (0.0 without a driver), and that of this libcudart."""
        return self._version("cudaDriverGetVersion"), self._version("cudaRuntimeGetVersion")

    def _version(self, symbol: str) -> str:
        number = c_int()
        self.status(symbol, byref(number))
        return f"{number.value // 1000}.{number.value % 1000 // 10}"

    def device(self) -> Device:
        """Name, compute capability (8.7), multiprocessors and versions of device 0."""
        # name is the first field of cudaDeviceProp in every version; the rest of it grew from release to release
        # (about 1 kB in 13), and CUDA fills as much as it knows: the buffer has to hold more than any of them
        properties = ctypes.create_string_buffer(16384)
        self.call("cudaGetDeviceProperties", properties, 0)
        major, minor, multiprocessors = (self._attribute(one) for one in (MAJOR, MINOR, MULTIPROCESSORS))
        name = properties.raw[:256].split(b"\0")[0].decode("utf-8", "replace")
        return Device(name, f"{major}.{minor}", multiprocessors, *self.versions())

    def _attribute(self, attribute: int) -> int:
        value = c_int()
        self.call("cudaDeviceGetAttribute", byref(value), attribute, 0)
        return value.value

    def memory_mb(self) -> Tuple[float, float]:
        """Free and total memory of the device, in MB; on a Jetson that is the board's memory."""
        free, total = c_size_t(), c_size_t()
        self.call("cudaMemGetInfo", byref(free), byref(total))
        return free.value / 1e6, total.value / 1e6

    def device_memory(self, nbytes: int) -> int:
        """The address of `nbytes` bytes of device memory, aligned to 256."""
        return self._own("cudaFree", "cudaMalloc", nbytes)

    def pinned(self, shape: Tuple[int, ...], dtype: Any) -> np.ndarray:
        """A page-locked host array, which can be copied from and to while the CPU goes on.

        It ends with `close`: hand out copies of it.
        """
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        address = self._own("cudaFreeHost", "cudaHostAlloc", nbytes, 0)
        return np.frombuffer((ctypes.c_char * nbytes).from_address(address), dtype=dtype).reshape(shape)

    def stream(self) -> int:
        """A stream of its own."""
        return self._own("cudaStreamDestroy", "cudaStreamCreateWithFlags", NON_BLOCKING)

    def event(self) -> int:
        """An event that keeps time."""
        return self._own("cudaEventDestroy", "cudaEventCreateWithFlags", 0)

    def _own(self, free: str, make: str, *arguments: Any) -> int:
        made = c_void_p()
        self.call(make, byref(made), *arguments)
        self.on_close(lambda: self.call(free, made))
        return int(made.value or 0)

    def upload(self, address: int, pinned: np.ndarray, stream: int) -> None:
        """Copy a pinned array to the device, in the stream's turn."""
        self.call("cudaMemcpyAsync", address, pinned.ctypes.data, pinned.nbytes, HOST_TO_DEVICE, stream)

    def download(self, pinned: np.ndarray, address: int, stream: int) -> None:
        """Copy from the device into a pinned array, in the stream's turn."""
        self.call("cudaMemcpyAsync", pinned.ctypes.data, address, pinned.nbytes, DEVICE_TO_HOST, stream)

    def synchronize(self, stream: int) -> None:
        """Wait until the stream has done all that it was given; errors of that work come up here."""
        self.call("cudaStreamSynchronize", stream)

    def record(self, event: int, stream: int) -> None:
        """Let the event keep the time at which the stream gets to it."""
        self.call("cudaEventRecord", event, stream)

    def elapsed_ms(self, start: int, end: int) -> float:
        """Milliseconds between two events that the device has passed, to about half a microsecond."""
        ms = c_float()
        self.call("cudaEventElapsedTime", byref(ms), start, end)
        return ms.value

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        """A graph of what `work` gives to the stream, which is not done now but each time it is launched.

        Addresses and sizes are part of the graph: fixed buffers, new contents.
        """
        graph, launchable = c_void_p(), c_void_p()
        self.call("cudaStreamBeginCapture", stream, THREAD_LOCAL)
        try:
            work()
        except BaseException:
            # a stream left capturing would refuse everything after
            if not self.status("cudaStreamEndCapture", stream, byref(graph)) and graph:
                self.status("cudaGraphDestroy", graph)
            raise
        self.call("cudaStreamEndCapture", stream, byref(graph))
        try:
            self.call("cudaGraphInstantiateWithFlags", byref(launchable), graph, 0)
        finally:
            self.call("cudaGraphDestroy", graph)
        self.on_close(lambda: self.call("cudaGraphExecDestroy", launchable))
        return int(launchable.value or 0)

    def launch(self, graph: int, stream: int) -> None:
        """Give a captured graph to the stream."""
        self.call("cudaGraphLaunch", graph, stream)


def load() -> Cuda:
    """The first libcudart that finds device 0.

    A library that is newer than the driver is passed over for an older one further down the list.

    Raises:
        AgentError: exit code 2; there is no libcudart, no device, or no driver that is new enough.
    """
    refused: Optional[AgentError] = None
    for path in candidates():
        try:
            cuda = Cuda(ctypes.CDLL(path), path)
        except (OSError, AttributeError):
            continue
        count = c_int()
        code = cuda.status("cudaGetDeviceCount", byref(count))
        if not code and count.value:
            cuda.call("cudaSetDevice", 0)
            return cuda
        refused = refused or cuda.error("cudaGetDeviceCount", code or NO_DEVICE)
        if code != DRIVER_TOO_OLD:
            break
    raise refused or AgentError(_nowhere())


def _nowhere() -> str:
    explicit = os.environ.get(EXPLICIT)
    if explicit:
        return f"{EXPLICIT}={explicit}: is not a libcudart of CUDA 11.4 or later; name one, or unset it"
    fix = f"{sys.executable} -m pip install nvidia-cuda-runtime-cu12, on a Jetson apt install cuda-cudart-*"
    return f"no libcudart (CUDA 11.4 or later) on this machine; {fix}, or name it in {EXPLICIT}"


def candidates() -> Iterator[str]:
    """Where a libcudart may be, the best first; nothing is imported to find it."""
    explicit = os.environ.get(EXPLICIT)
    if explicit:
        yield explicit
        return
    yield from NAMES
    wheels = [os.path.join(escape(entry), wheel) for entry in sys.path if entry for wheel in WHEELS]
    for folder in (*wheels, *FOLDERS):
        yield from sorted(glob(os.path.join(folder, "libcudart.so*")), reverse=True)
