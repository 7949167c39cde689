"""Modules that look like TensorRT to the backend and compute with ONNX Runtime, on streams of the fake libcudart.

`module(package, version)` has the names of that version's bindings that are used, and lacks those that they lack
(LACKS); test_tensorrt_surface.py compares it with the real bindings. Like the real classes, these reject unknown
attributes. `enqueue` is a host function on the stream, so that stream order and captures are real.
"""

from __future__ import annotations

import enum
import json
import os
from types import ModuleType
from typing import Any

import onnx
from onnx import TensorProto

from tests.helpers.trt_double_run import (
    EngineInspector,
    ICudaEngine,
    IExecutionContext,
    IRuntimeCache,
    IRuntimeConfig,
    Runtime,
    session,
    with_runtime_config,
)

__all__ = ["module", "session"]

DTYPES = {TensorProto.UINT8: "UINT8", TensorProto.FLOAT: "FLOAT", TensorProto.FLOAT16: "HALF"}

ENUMS = {
    "NetworkDefinitionCreationFlag": "EXPLICIT_BATCH STRONGLY_TYPED",
    "BuilderFlag": "FP16 INT8 REQUIRE_USER_ALLOCATION",
    "MemoryPoolType": "WORKSPACE",
    "ProfilingVerbosity": "NONE DETAILED",
    "LayerInformationFormat": "JSON",
    "TensorIOMode": "NONE INPUT OUTPUT",
    "DataType": "FLOAT HALF UINT8",
    "ComputeCapability": "NONE CURRENT",
    "DynamicShapesKernelSpecializationStrategy": "LAZY EAGER",
}
JIT = {
    "BuilderFlag.REQUIRE_USER_ALLOCATION",
    "ComputeCapability",
    "DynamicShapesKernelSpecializationStrategy",
    "IRuntimeConfig",
    "IRuntimeCache",
    "ICudaEngine.create_runtime_config",
    "IExecutionContext.is_stream_capturable",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
}
PRECISION = {"BuilderFlag.FP16", "BuilderFlag.INT8"}
TIMINGS = {"ITimingCache", *(f"IBuilderConfig.{verb}_timing_cache" for verb in ("create", "set", "get"))}
OLD = {"ICudaEngine.device_memory_size", "NetworkDefinitionCreationFlag.EXPLICIT_BATCH"}
# what a version lacks: the first matching row; in TensorRT-RTX a timing cache only warns
LACKS = [
    ("tensorrt", (8, 6), {*JIT, "NetworkDefinitionCreationFlag.STRONGLY_TYPED", "ICudaEngine.device_memory_size_v2"}),
    ("tensorrt", (10, 99), {*JIT}),
    ("tensorrt", (11, 99), {*JIT, *PRECISION, *OLD}),
    ("tensorrt_rtx", (99, 99), {*PRECISION, *TIMINGS, *OLD}),
]


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class IHostMemory:
    __slots__ = ("_data",)

    def __init__(self, content: bytes) -> None:
        self._data = content

    def __bytes__(self) -> bytes:
        return self._data


class ITensor:
    __slots__ = ("_dtype", "_name", "_shape")

    def __init__(self, value_info: Any, trt: Any) -> None:
        tensor = value_info.type.tensor_type
        self._name, self._dtype = value_info.name, getattr(trt.DataType, DTYPES[tensor.elem_type])
        self._shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]

    name = property(lambda self: self._name)
    dtype = property(lambda self: self._dtype)
    shape = property(lambda self: tuple(self._shape))


class INetworkDefinition:
    __slots__ = ("_flags", "_model")

    def __init__(self, flags: int) -> None:
        self._flags, self._model = flags, None

    num_inputs = property(lambda self: len(self._model.graph.input))
    num_outputs = property(lambda self: len(self._model.graph.output))

    def get_input(self, index: int) -> Any:
        return self._trt.ITensor(self._model.graph.input[index], self._trt)


class OnnxParser:
    __slots__ = ("_errors", "_network")

    def __init__(self, network: Any, logger: Any) -> None:
        self._network, self._errors = network, []

    num_errors = property(lambda self: len(self._errors))

    def parse(self, model: bytes) -> bool:
        try:
            self._network._model = onnx.load_model_from_string(model)
            unknown = [node for node in self._network._model.graph.node if node.domain not in ("", "ai.onnx")]
        except Exception as error:
            self._errors.append(f"In node -1 (parse): not a model: {type(error).__name__}")
            return False
        self._errors += [
            f"In node 0 with name: {node.name} and operator: {node.op_type}\n(check): UNSUPPORTED_NODE"
            for node in unknown
        ]
        return not unknown

    def get_error(self, index: int) -> Any:
        return self._errors[index]


class IOptimizationProfile:
    __slots__ = ("_shapes",)

    def __init__(self) -> None:
        self._shapes: dict[str, Any] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self._shapes[input] = [list(min), list(opt), list(max)]


class ITimingCache:
    __slots__ = ("_data",)

    def __init__(self, content: bytes) -> None:
        self._data = content

    def serialize(self) -> Any:
        return self._trt.IHostMemory(self._data)


class IBuilderConfig:
    __slots__ = ("_capabilities", "_count", "_flags", "_pools", "_profiles", "_timing", "_verbosity")

    def __init__(self) -> None:
        self._flags, self._profiles, self._pools, self._capabilities = set(), [], {}, {}
        self._timing = self._verbosity = self._count = None

    profiling_verbosity = property(lambda self: self._verbosity, lambda self, to: setattr(self, "_verbosity", to))
    num_compute_capabilities = property(lambda self: self._count, lambda self, to: setattr(self, "_count", to))

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
        self._capabilities[index] = compute_capability
        return index < self._count

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        assert pool_size >= 1 << 20, "bytes, not megabytes"
        self._pools[pool.name] = pool_size

    def set_flag(self, flag: Any) -> None:
        self._flags.add(flag.name)

    def add_optimization_profile(self, profile: Any) -> int:
        self._profiles.append(profile._shapes)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
        return self._trt.ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        fits = cache._data in (b"", b"timings of this device")
        self._timing = cache if fits else self._timing
        return fits

    def get_timing_cache(self) -> Any:
        return self._timing


class Builder:
    __slots__ = ("_logger",)

    def __init__(self, logger: Any) -> None:
        if os.environ.get("DOUBLE_REFUSES") == "start":
            logger.log(self._trt.ILogger.Severity.ERROR, "[checkMacros] Cuda failure: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._logger = logger

    def create_network(self, flags: int = 0) -> Any:
        return self._trt.INetworkDefinition(flags)

    def create_builder_config(self) -> Any:
        return self._trt.IBuilderConfig()

    def create_optimization_profile(self) -> Any:
        return self._trt.IOptimizationProfile()

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        why = self._refusal(network, config)
        if os.environ.get("DOUBLE_REFUSES") == "build":
            why = "Could not find any implementation for node conv1"
        self._logger.log(self._trt.ILogger.Severity.WARNING, "TensorRT was linked against another cuDNN")
        if why:
            self._logger.log(self._trt.ILogger.Severity.ERROR, f"[builder.cpp::build::1] Error Code 10: {why}\n")
            return None
        if config._timing is not None:
            config._timing._data = b"timings of this device"
        self._trt.log.append(("build", sorted(config._flags), config._pools))
        head = {
            "package": self._trt.__name__,
            "version": self._trt.__version__,
            "profiles": config._profiles,
            "capturable": "REQUIRE_USER_ALLOCATION" in config._flags,
            "detailed": config._verbosity.name == "DETAILED",
        }
        return self._trt.IHostMemory(json.dumps(head).encode() + b"\n" + network._model.SerializeToString())

    def _refusal(self, network: Any, config: Any) -> str:
        """The text of the error with which TensorRT would refuse the build; empty if it would build."""
        version, flags = self._trt.numbers, self._trt.NetworkDefinitionCreationFlag
        types = {initializer.data_type for initializer in network._model.graph.initializer}
        quantized = any(node.op_type == "QuantizeLinear" for node in network._model.graph.node)
        if version[0] < 10 and self._trt.__name__ == "tensorrt" and not network._flags & 1 << int(flags.EXPLICIT_BATCH):
            return "Network must have explicit batch"
        weak = version[0] < 10 or not network._flags & 1 << int(flags.STRONGLY_TYPED)
        if self._trt.__name__ == "tensorrt" and version[0] < 11 and weak:
            if quantized and "INT8" not in config._flags:
                return "Q/DQ layers need BuilderFlag INT8"
            if TensorProto.FLOAT16 in types and "FP16" not in config._flags:
                return "float16 tensors need BuilderFlag FP16"
        if -1 in network.get_input(0).shape and not config._profiles:
            return "Network has dynamic or shape inputs, but no optimization profile has been defined."
        capabilities = [capability.name for capability in config._capabilities.values()]
        if self._trt.__name__ == "tensorrt_rtx" and capabilities != ["CURRENT"]:
            return "no compute capability"
        return ""


CLASSES = [
    ILogger,
    IHostMemory,
    ITensor,
    INetworkDefinition,
    OnnxParser,
    IOptimizationProfile,
    ITimingCache,
    IBuilderConfig,
    Builder,
    Runtime,
    ICudaEngine,
    EngineInspector,
    IRuntimeCache,
    IRuntimeConfig,
    IExecutionContext,
]


def module(package: str, version: str, cudart: Any = None) -> Any:
    """A module as returned by `import tensorrt`.

    Added for tests: `gpu_objects`, weak references to objects that use a GPU, and `log`, a tuple per built engine.
    """
    bindings: Any = ModuleType(package)
    bindings.numbers = tuple(int(part) for part in version.split(".")[:2])
    lacks = next(without for name, until, without in LACKS if name == package and bindings.numbers <= until)
    bindings.__version__, bindings.cudart, bindings.gpu_objects, bindings.log = version, cudart, [], []
    for name, members in ENUMS.items():
        values = {member: index for index, member in enumerate(members.split()) if f"{name}.{member}" not in lacks}
        if name not in lacks:
            setattr(bindings, name, enum.IntEnum(name, values))
    for double in CLASSES:
        instance_names = {*vars(double).get("__slots__", ()), "__dict__", "__weakref__"}
        attributes = {
            name: attribute
            for name, attribute in vars(double).items()
            if name not in instance_names and f"{double.__name__}.{name}" not in lacks
        }
        if package == "tensorrt_rtx" and double is ICudaEngine:
            attributes["create_execution_context"] = with_runtime_config
        if double.__name__ not in lacks:
            setattr(bindings, double.__name__, type(double.__name__, (), {**attributes, "_trt": bindings}))
    return bindings
