"""ONNX -> TensorRT engine on the device that will run it, for TensorRT 8.6 to 11 and TensorRT-RTX.

What differs between versions stands in BRANCHES, and nowhere else. A function whose name holds `timing_cache` or
`just_in_time` is called only where the branch of that name is taken. Precision lives in the graph: Q/DQ nodes for
int8, float16 tensors for fp16; TensorRT 8 and 9 also want builder flags for that, from 10 on networks are strongly
typed, and from 11 on there is no other kind (its STRONGLY_TYPED is accepted and ignored). Sums of float32 run in TF32
where the GPU has it, TensorRT's default. DLA, the Jetsons' second accelerator, is left out.
"""

from __future__ import annotations

import collections
import functools
import importlib
import sys
from typing import Any, Deque, Dict, List, NamedTuple, Tuple

from .graph_types import GraphTypes
from .job import AgentError

WORKSPACE_MB = 1024
NAMES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
INSTALL = {
    "tensorrt": f"{sys.executable} -m pip install tensorrt; on a Jetson it comes with JetPack (python3-libnvinfer), "
    "and a virtual environment needs --system-site-packages",
    "tensorrt_rtx": f"{sys.executable} -m pip install tensorrt-rtx",
}


class Branch(NamedTuple):
    """What differs between versions.

    network_flags: members of NetworkDefinitionCreationFlag.
    builder_flags: members of BuilderFlag; those of `precision_flags` only for graphs with such types.
    memory_size: the attribute of ICudaEngine that holds the bytes of an execution context.
    timing_cache: kernels are timed while building, and the timings can be kept.
    just_in_time: kernels are compiled when a context is made, and can be kept (TensorRT-RTX).
    """

    network_flags: Tuple[str, ...]
    builder_flags: Tuple[str, ...]
    precision_flags: Dict[str, str]
    memory_size: str
    timing_cache: bool
    just_in_time: bool


PRECISION_FLAGS = {"quantized": "INT8", "half": "FP16"}
# package -> (from this version on, branch), ascending; older versions than the first are refused
BRANCHES: Dict[str, List[Tuple[Tuple[int, int], Branch]]] = {
    "tensorrt": [
        ((8, 6), Branch(("EXPLICIT_BATCH",), (), PRECISION_FLAGS, "device_memory_size", True, False)),
        ((10, 0), Branch(("STRONGLY_TYPED",), (), {}, "device_memory_size", True, False)),
        ((11, 0), Branch((), (), {}, "device_memory_size_v2", True, False)),
    ],
    # REQUIRE_USER_ALLOCATION: nothing is allocated while running, which capturing a CUDA graph asks for
    "tensorrt_rtx": [
        ((1, 2), Branch(("STRONGLY_TYPED",), ("REQUIRE_USER_ALLOCATION",), {}, "device_memory_size_v2", False, True)),
    ],
}


def package(name: str) -> Any:
    """The module of that name.

    Raises:
        AgentError: exit code 2; it does not import.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise AgentError(f"{name} does not import in {sys.executable} ({error}); {INSTALL[name]}") from None


def branch_of(name: str, version: str) -> Branch:
    """The branch for a version of a package.

    Raises:
        AgentError: exit code 2; the version is too old.
    """
    major, minor = (int(part) for part in version.split(".")[:2])
    taken = [branch for since, branch in BRANCHES[name] if since <= (major, minor)]
    if not taken:
        oldest = ".".join(map(str, BRANCHES[name][0][0]))
        raise AgentError(f"{NAMES[name]} {version} is older than {oldest}, the first that can be used; {INSTALL[name]}")
    return taken[-1]


def settings(branch: Branch, types: GraphTypes) -> Dict[str, Any]:
    """How to build, as part of an engine's key."""
    wanted = [flag for kind, flag in branch.precision_flags.items() if getattr(types, kind)]
    return {
        "network_flags": list(branch.network_flags),
        "builder_flags": [*branch.builder_flags, *wanted],
        "workspace_mb": WORKSPACE_MB,
    }


class Journal(NamedTuple):
    """A logger to hand to TensorRT, and the last warnings and errors that it was told."""

    logger: Any
    lines: Deque[str]

    def last_errors(self, otherwise: str = "it does not say why") -> str:
        """The last errors in one line."""
        errors = [line.partition(": ")[2] for line in self.lines if line.startswith("error: ")]
        return "; ".join(errors[-3:]) or otherwise


@functools.lru_cache(maxsize=None)
def journal(trt: Any) -> Journal:
    """The one journal of a package in this process: TensorRT keeps the first logger and complains about a second."""
    lines: Deque[str] = collections.deque(maxlen=100)

    def log(self: Any, severity: Any, message: str) -> None:
        if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
            lines.append(f"error: {_one_line(message)}")
        elif severity == trt.ILogger.Severity.WARNING:
            lines.append(f"warning: {_one_line(message)}")

    # the base is known only now; its constructor has to run, and does since this class has none
    return Journal(type("Logger", (trt.ILogger,), {"log": log})(), lines)


def build_plan(trt: Any, branch: Branch, how: Dict[str, Any], onnx: bytes, batch: int, timings: bytes = b"") -> Any:
    """Parse and build.

    Args:
        how: of `settings`.
        onnx: the whole file, weights inline.
        batch: images in a batch; the only size the engine will take.
        timings: of an earlier build on this device with this version; used where there is a timing cache.

    Returns:
        The engine and the new timings, both bytes.

    Raises:
        AgentError: exit code 2; TensorRT cannot, with what it said.
    """
    journal(trt).lines.clear()
    builder = made(trt, trt.Builder)
    network = builder.create_network(sum(1 << int(getattr(trt.NetworkDefinitionCreationFlag, flag))
                                         for flag in how["network_flags"]))  # fmt: skip
    parser = trt.OnnxParser(network, journal(trt).logger)
    if not parser.parse(onnx):
        said = "; ".join(_one_line(parser.get_error(index)) for index in range(min(parser.num_errors, 3)))
        raise AgentError(f"{_version(trt)} cannot parse it: {said or journal(trt).last_errors()}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, how["workspace_mb"] << 20)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the inspector knows no types
    for flag in how["builder_flags"]:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    _set_batch(builder, network, config, batch)
    if branch.just_in_time:
        _just_in_time_for_this_gpu(trt, config)
    if branch.timing_cache:
        _use_timing_cache(config, timings)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise AgentError(f"{_version(trt)} cannot build it: {journal(trt).last_errors()}")
    return bytes(plan), _timing_cache_bytes(config) if branch.timing_cache else b""


def made(trt: Any, kind: Any) -> Any:
    """A Builder or Runtime.

    Raises:
        AgentError: exit code 2; TensorRT does not start, for want of a driver or of memory.
    """
    try:
        return kind(journal(trt).logger)
    except (TypeError, RuntimeError) as error:  # what the bindings make of a null pointer
        why = journal(trt).last_errors(str(error))
        raise AgentError(f"{_version(trt)} does not start: {why}; does nvidia-smi work here?") from None


def _one_line(said: Any) -> str:
    return " ".join(str(said).split())


def _version(trt: Any) -> str:
    return f"{NAMES[trt.__name__]} {trt.__version__}"


def _set_batch(builder: Any, network: Any, config: Any, batch: int) -> None:
    if network.num_inputs != 1 or network.num_outputs != 1:
        has = f"{network.num_inputs} inputs and {network.num_outputs} outputs"
        raise AgentError(f"the graph has {has}, expected one of each; export it again")
    tensor = network.get_input(0)
    shape = tuple(tensor.shape)
    if shape[0] == batch:
        return
    if shape[0] != -1:
        raise AgentError(f"the graph takes batches of {shape[0]}, not {batch}; export it with a dynamic batch")
    profile = builder.create_optimization_profile()
    profile.set_shape(tensor.name, *[(batch, *shape[1:])] * 3)
    config.add_optimization_profile(profile)


def _just_in_time_for_this_gpu(trt: Any, config: Any) -> None:
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.CURRENT, 0)


def _use_timing_cache(config: Any, timings: bytes) -> None:
    for data in (timings, b""):
        timing = config.create_timing_cache(data)
        # timings of another GPU are refused, for they are not of use here
        if timing is not None and config.set_timing_cache(timing, False):
            return


def _timing_cache_bytes(config: Any) -> bytes:
    timing = config.get_timing_cache()
    return b"" if timing is None else bytes(timing.serialize())


def just_in_time_context(trt: Any, engine: Any, compiled: bytes) -> Any:
    """An execution context whose kernels are compiled at once for the shapes in use, and the cache that holds them.

    The default compiles them beside the first queries, which run slower ones meanwhile.

    Args:
        compiled: what the cache serialized the last time, or nothing.
    """
    runtime_config = engine.create_runtime_config()
    eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    runtime_config.dynamic_shapes_kernel_specialization_strategy = eager
    runtime_cache = runtime_config.create_runtime_cache()
    if compiled:
        runtime_cache.deserialize(compiled)
    runtime_config.set_runtime_cache(runtime_cache)
    return engine.create_execution_context(runtime_config), runtime_cache


def just_in_time_capturable(context: Any, stream: int) -> bool:
    """Whether a CUDA graph can be captured of this context; some allocate or choose kernels while running."""
    return bool(context.is_stream_capturable(stream))


def just_in_time_bytes(runtime_cache: Any) -> bytes:
    """The compiled kernels that a cache holds, for `just_in_time_context` of the next process."""
    return bytes(runtime_cache.serialize())
