"""TensorRT and TensorRT-RTX: the engine is built here from the ONNX file, or taken from this device's cache.

B images, H and W pixels, C target classes. Images wait in pinned memory at fixed addresses, so that a CUDA graph,
captured once, answers for new images. DLA is left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

import numpy as np

from . import cuda, engines, graph_types, tensorrt_build
from .engines import Kept
from .job import AgentError

MODES = {
    "host-to-host": "from Python: the images copied into pinned memory and from there to the device, the engine "
    "enqueued, the logits copied back, synchronize; no decoding, no resizing",
    "compute": "on the device: between CUDA events around the enqueue, the images already there and the stream idle",
    "host-to-host-graph": "from Python: the images copied into pinned memory, one launch of a CUDA graph of copy, "
    "engine and copy back, synchronize; no decoding, no resizing",
    "compute-graph": "on the device: between CUDA events around the launch of a CUDA graph of the engine, the images "
    "already there and the stream idle",
}
NARROW = (("int8", ("int8",)), ("fp16", ("half", "fp16")))


class TensorRt:
    """One engine, its buffers and its CUDA graphs; `threads` are the GPU's affair and not used."""

    def __init__(self, package: str = "tensorrt") -> None:
        self.package, self.modes = package, dict(MODES)
        self.cuda: Optional[cuda.Cuda] = None
        self.runtime: Any = None
        self.engine: Any = None
        self.context: Any = None
        self.runtime_cache: Any = None

    def build(self, model_path: Path, threads: int, batch: int = 1) -> None:
        """An engine for batches of exactly `batch` images, from the cache where it holds that very one.

        Raises:
            AgentError: exit code 2; no TensorRT, no GPU, or a graph that TensorRT cannot or should not take.
        """
        self.close()
        self.trt = tensorrt_build.package(self.package)
        self.cuda = cuda.load()
        try:
            self._prepare(model_path, batch)
        except AgentError as error:
            with contextlib.suppress(AgentError):
                self.close()
            raise AgentError(f"{model_path.name}: {error}", error.exit_code) from None
        except BaseException:
            with contextlib.suppress(AgentError):
                self.close()
            raise

    def _prepare(self, model_path: Path, batch: int) -> None:
        onnx = model_path.read_bytes()
        types = graph_types.read(onnx)
        if types.unsigned:
            what = f"quantized to what TensorRT has not ({types.unsigned[0]}; {len(types.unsigned)} tensors in all)"
            raise AgentError(f"{what}; bench the graph made for TensorRT, int8-tensorrt")
        self.branch = tensorrt_build.branch_of(self.package, self.trt.__version__)
        device = self._cuda().device()
        key = {
            "onnx_sha256": hashlib.sha256(onnx).hexdigest(),
            "package": self.package,
            "version": self.trt.__version__,
            # without the driver: engines outlive its updates
            "device": [device.name, device.compute_capability, device.multiprocessors],
            "batch": batch,
            "settings": tensorrt_build.settings(self.branch, types),
        }
        tensorrt_build.journal(self.trt).lines.clear()
        self.runtime = tensorrt_build.made(self.trt, self.trt.Runtime)
        self._cuda().on_close(self._let_go)
        with engines.locked(key):
            kept, how = self._engine(key, onnx)
        self._make_context(key)
        self._make_buffers(batch)
        self._cuda().on_close(self._let_go)  # before the stream and the memory that the context knows
        free_mb, total_mb = self._cuda().memory_mb()
        self.built = {
            "engine": how,
            "build_seconds": kept.build_seconds,
            "engine_sha256": hashlib.sha256(kept.plan).hexdigest(),
            "engine_mb": len(kept.plan) / 1e6,
            "device_memory_mb": getattr(self.engine, self.branch.memory_size) / 1e6,
            "gpu_memory_free_mb": round(free_mb),
            "gpu_memory_total_mb": round(total_mb),
            "layers": layers(self.trt, self.engine),
            "warnings": [one for one in tensorrt_build.journal(self.trt).lines if one.startswith("warning: ")][-3:],
        }

    def _engine(self, key: Dict[str, Any], onnx: bytes) -> Tuple[Kept, str]:
        kept = engines.load(key)
        self.engine = None if kept is None else self.runtime.deserialize_cuda_engine(kept.plan)
        if kept is not None and self.engine is not None:
            return kept, "cached"
        timings = "timings-" + _short(key)
        start = time.perf_counter()
        plan, timed = tensorrt_build.build_plan(
            self.trt, self.branch, key["settings"], onnx, key["batch"], engines.load_blob(timings)
        )
        kept = Kept(plan, time.perf_counter() - start)
        if timed:
            engines.store_blob(timings, timed)
        self.engine = self.runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise AgentError(f"the engine just built does not load: {tensorrt_build.journal(self.trt).last_errors()}")
        return kept, "built" if engines.store(key, kept) else f"built; {engines.folder()} cannot be written"

    def _make_context(self, key: Dict[str, Any]) -> None:
        self.compiled = "compiled-" + engines.digest(key)
        if self.branch.just_in_time:
            kernels = engines.load_blob(self.compiled)
            self.context, self.runtime_cache = tensorrt_build.just_in_time_context(self.trt, self.engine, kernels)
        else:
            self.context = self.engine.create_execution_context()
        if self.context is None:
            raise AgentError(f"no execution context: {tensorrt_build.journal(self.trt).last_errors()}")
        # engines built with details for the inspector would mark every layer for profilers while being measured
        self.context.nvtx_verbosity = self.trt.ProfilingVerbosity.NONE

    def _make_buffers(self, batch: int) -> None:
        trt, device = self.trt, self._cuda()
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        inputs = [name for name in names if self.engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        given, answer = inputs[0], next(name for name in names if name not in inputs)
        types = self.engine.get_tensor_dtype(given), self.engine.get_tensor_dtype(answer)
        if types != (trt.DataType.UINT8, trt.DataType.FLOAT):
            has = f"the graph goes from {types[0]} to {types[1]}"
            raise AgentError(f"{has}, expected uint8 to float32; export it again")
        shape = (batch, *tuple(self.engine.get_tensor_shape(given))[1:])
        if not self.context.set_input_shape(given, shape):
            raise AgentError(f"batches of {batch} are refused: {tensorrt_build.journal(trt).last_errors()}")
        self.images_BHWC = device.pinned(shape, np.uint8)
        self.logits_BC = device.pinned(tuple(self.context.get_tensor_shape(answer)), np.float32)
        self.addresses = device.device_memory(self.images_BHWC.nbytes), device.device_memory(self.logits_BC.nbytes)
        for name, address in zip((given, answer), self.addresses):
            self.context.set_tensor_address(name, address)
        self.stream, self.start, self.end = device.stream(), device.event(), device.event()
        self.graphs: Dict[str, int] = {}

    def infer(self, images_BHWC: np.ndarray, mode: str = "host-to-host") -> np.ndarray:
        """uint8 [B, H, W, 3] -> float32 logits [B, C]; in a compute mode, the way that one launches the engine.

        Raises:
            AgentError: the images are not what the engine was built for, or the GPU fails.
        """
        self._take(images_BHWC, mode)
        if mode == "host-to-host-graph":
            self._cuda().launch(self._graph(mode), self.stream)
        else:
            self._upload()
            self._run(mode)
            self._download()
        self._cuda().synchronize(self.stream)
        logits_BC: np.ndarray = self.logits_BC.copy()
        return logits_BC

    def compute_ms(self, images_BHWC: np.ndarray, mode: str) -> float:
        """Milliseconds on the device for one batch, in the mode compute or compute-graph.

        Raises:
            AgentError: as `infer`; or another mode, which has no window on the device.
        """
        if not mode.startswith("compute"):
            raise AgentError(f"{mode} has no window on the device; compute and compute-graph have")
        self._take(images_BHWC, mode)
        device = self._cuda()
        if mode == "compute-graph":
            self._graph(mode)  # captured outside the window
        self._upload()
        device.synchronize(self.stream)
        device.record(self.start, self.stream)
        self._run(mode)
        device.record(self.end, self.stream)
        device.synchronize(self.stream)
        return device.elapsed_ms(self.start, self.end)

    def facts(self) -> Dict[str, Any]:
        """Versions and device; once built, where the engine came from, its size, and what its layers compute in.

        Layers count by the narrowest type among their inputs and outputs.

        Raises:
            AgentError: exit code 2; TensorRT, libcudart or the GPU is missing.
        """
        trt = tensorrt_build.package(self.package)
        if self.cuda is not None:
            return {"version": trt.__version__, **described(self.cuda.device()), **self.built}
        tensorrt_build.branch_of(self.package, trt.__version__)
        with cuda.load() as library:
            return {"version": trt.__version__, **described(library.device())}

    def close(self) -> None:
        """Let go of everything, CUDA graphs first; a closed backend can be built again."""
        closing, self.cuda = self.cuda, None
        if closing is not None:
            closing.close()

    def _let_go(self) -> None:
        if self.runtime_cache is not None:
            engines.store_blob(self.compiled, tensorrt_build.just_in_time_bytes(self.runtime_cache))
        # one after the other: each needs the next to end
        self.context = None
        self.runtime_cache = None
        self.engine = None
        self.runtime = None

    def _cuda(self) -> cuda.Cuda:
        if self.cuda is None:
            raise AgentError("nothing is built; call build first", exit_code=1)
        return self.cuda

    def _take(self, images_BHWC: np.ndarray, mode: str) -> None:
        self._cuda()
        if mode not in self.modes:
            raise AgentError(f"{self.package} has no mode {mode}; one of: {', '.join(self.modes)}")
        if images_BHWC.shape != self.images_BHWC.shape or images_BHWC.dtype != np.uint8:
            built = f"uint8 {list(self.images_BHWC.shape)}"
            raise AgentError(f"{images_BHWC.dtype} {list(images_BHWC.shape)}: the engine was built for {built}")
        np.copyto(self.images_BHWC, images_BHWC)

    def _upload(self) -> None:
        self._cuda().upload(self.addresses[0], self.images_BHWC, self.stream)

    def _download(self) -> None:
        self._cuda().download(self.logits_BC, self.addresses[1], self.stream)

    def _run(self, mode: str) -> None:
        if mode == "compute-graph":
            self._cuda().launch(self._graph(mode), self.stream)
        else:
            self._enqueue()

    def _enqueue(self) -> None:
        if not self.context.execute_async_v3(self.stream):
            raise AgentError(f"enqueue failed: {tensorrt_build.journal(self.trt).last_errors()}", exit_code=1)

    def _graph(self, mode: str) -> int:
        """The graph of a mode, captured when it is first asked for."""
        if mode not in self.graphs:
            if self.branch.just_in_time and not tensorrt_build.just_in_time_capturable(self.context, self.stream):
                raise AgentError(f"this engine cannot be captured in a CUDA graph; leave out the mode {mode}")
            # what TensorRT puts off until the first enqueue must not happen inside a capture
            self._enqueue()
            self._cuda().synchronize(self.stream)
            self.graphs[mode] = self._cuda().capture(self.stream, self._all if mode[0] == "h" else self._enqueue)
        return self.graphs[mode]

    def _all(self) -> None:
        self._upload()
        self._enqueue()
        self._download()


def described(device: cuda.Device) -> Dict[str, Any]:
    """A device as facts; both versions are CUDA's, the driver's is the newest that it can run."""
    return {
        "device": device.name,
        "compute_capability": device.compute_capability,
        "multiprocessors": device.multiprocessors,
        "driver_cuda": device.driver,
        "cudart": device.runtime,
    }


def _short(key: Dict[str, Any]) -> str:
    """What timings of kernels depend on."""
    return engines.digest({name: key[name] for name in ("package", "version", "device")})


def layers(trt: Any, engine: Any) -> Dict[str, int]:
    """How many layers touch int8, else fp16, else neither, as the engine's inspector lists them.

    The key of a tensor's type differs: Format/Datatype up to 10, DataType and Format in 11.
    """
    inspector = engine.create_engine_inspector()
    try:
        listed = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))["Layers"]
    except (ValueError, KeyError, TypeError):
        return {}
    counts = {"int8": 0, "fp16": 0, "other": 0}
    for layer in listed:
        tensors = [*layer.get("Inputs", []), *layer.get("Outputs", [])] if isinstance(layer, dict) else []
        types = " ".join(str(value) for one in tensors for name, value in one.items()
                         if name in ("Format/Datatype", "DataType", "Format")).lower()  # fmt: skip
        counts[next((name for name, marks in NARROW if any(mark in types for mark in marks)), "other")] += 1
    return counts
