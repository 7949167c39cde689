"""The part of the double that runs engines, from Runtime to IExecutionContext. See trt_double.py."""

from __future__ import annotations

import ctypes
import json
import os
import weakref
from typing import Any

import numpy as np
import onnx
import onnxruntime

HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Runtime:
    __slots__ = ("__weakref__", "_logger")

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._trt.gpu_objects.append(weakref.ref(self))

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        head, _, model = serialized_engine.partition(b"\n")
        header = json.loads(head)
        if (header["package"], header["version"]) != (self._trt.__name__, self._trt.__version__):
            self._logger.log(self._trt.ILogger.Severity.ERROR, "Version tag does not match")
            return None
        if os.environ.get("DOUBLE_REFUSES") == "deserialize":
            self._logger.log(self._trt.ILogger.Severity.ERROR, "Serialization assertion magicTagRead failed")
            return None
        return self._trt.ICudaEngine(header, model, self._logger)


class ICudaEngine:
    __slots__ = ("__weakref__", "_head", "_logger", "_model", "_session")

    def __init__(self, head: dict[str, Any], model: bytes, logger: Any) -> None:
        self._head, self._model, self._logger = head, onnx.load_model_from_string(model), logger
        self._session = session(model)
        self._trt.gpu_objects.append(weakref.ref(self))

    def _tensors(self) -> list[Any]:
        graph = self._model.graph
        return [self._trt.ITensor(value_info, self._trt) for value_info in (*graph.input, *graph.output)]

    num_io_tensors = property(lambda self: len(self._tensors()))
    device_memory_size = property(lambda self: 3_000_000)
    device_memory_size_v2 = property(lambda self: 3_000_000)

    def get_tensor_name(self, index: int) -> str:
        return self._tensors()[index].name  # type: ignore[no-any-return]

    def get_tensor_mode(self, name: str) -> Any:
        return self._trt.TensorIOMode.INPUT if name == self.get_tensor_name(0) else self._trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return next(tensor.dtype for tensor in self._tensors() if tensor.name == name)

    def get_tensor_shape(self, name: str) -> Any:
        return next(tensor.shape for tensor in self._tensors() if tensor.name == name)

    def create_engine_inspector(self) -> Any:
        return self._trt.EngineInspector(self)

    def create_runtime_config(self) -> Any:
        return self._trt.IRuntimeConfig()

    def create_execution_context(self) -> Any:
        return self._trt.IExecutionContext(self, None)


class EngineInspector:
    __slots__ = ("_engine",)

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def get_engine_information(self, format: Any) -> str:
        assert format.name == "JSON"
        nodes = self._engine._model.graph.node
        if not self._engine._head["detailed"]:
            return json.dumps({"Layers": [node.name for node in nodes]})
        as_10 = {"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}
        as_11 = {"DataType": "Int8", "Format": "Thirty-two wide channel vectorized"}
        int8 = as_11 if self._trt.numbers >= (11, 0) else as_10
        side = {"Name": "y", "Format/Datatype": "Row major linear FP32"}
        layers = [
            {"Name": node.name, "Inputs": [int8 if node.op_type == "DequantizeLinear" else {}], "Outputs": [side]}
            for node in nodes
        ]
        return json.dumps({"Layers": layers})


class IRuntimeCache:
    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = b""

    def deserialize(self, blob: bytes) -> bool:
        self._data = blob
        return True

    def serialize(self) -> Any:
        return self._trt.IHostMemory(self._data)


class IRuntimeConfig:
    __slots__ = ("_cache", "_strategy")

    def __init__(self) -> None:
        self._cache, self._strategy = None, self._trt.DynamicShapesKernelSpecializationStrategy.LAZY

    dynamic_shapes_kernel_specialization_strategy = property(
        lambda self: self._strategy, lambda self, to: setattr(self, "_strategy", to)
    )

    def create_runtime_cache(self) -> Any:
        return self._trt.IRuntimeCache()

    def set_runtime_cache(self, cache: Any) -> bool:
        self._cache = cache
        return True


class IExecutionContext:
    __slots__ = ("__weakref__", "_addresses", "_callback", "_config", "_engine", "_ready", "_shape", "_verbosity")

    def __init__(self, engine: Any, config: Any) -> None:
        self._engine, self._config, self._shape, self._addresses = engine, config, None, {}
        self._ready, self._verbosity = False, self._trt.ProfilingVerbosity.DETAILED
        self._callback = HOST_FUNCTION(self._compute)
        self._trt.gpu_objects.append(weakref.ref(self))

    nvtx_verbosity = property(lambda self: self._verbosity, lambda self, to: setattr(self, "_verbosity", to))

    def set_input_shape(self, name: str, shape: Any) -> bool:
        profiles = self._engine._head["profiles"]
        if profiles and list(shape) not in profiles[0][name]:
            self._engine._logger.log(self._trt.ILogger.Severity.ERROR, f"{shape} is outside of profile 0")
            return False
        self._shape = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> Any:
        batch, *rest = self._engine.get_tensor_shape(name)
        return (self._shape[0] if batch == -1 else batch, *rest)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        eager = self._config is not None and self._config._strategy.name == "EAGER"
        refused = os.environ.get("DOUBLE_REFUSES") == "capture"
        return bool(eager and self._engine._head["capturable"] and not refused)

    def execute_async_v3(self, stream_handle: int) -> bool:
        capturing = ctypes.c_int()
        self._trt.cudart.cudaStreamIsCapturing(ctypes.c_void_p(stream_handle), ctypes.byref(capturing))
        why = "the input shape was not set" if self._shape is None else ""
        if len(self._addresses) < 2:
            why = "an address was not set"
        if capturing.value and not self._ready:
            why = "what the first enqueue does cannot be captured"
        if os.environ.get("DOUBLE_REFUSES") == "enqueue":
            why = "Cask convolution execution"
        if why:
            self._engine._logger.log(self._trt.ILogger.Severity.ERROR, why)
            return False
        self._ready = True
        if self._config is not None and self._config._cache is not None:
            self._config._cache._data = b"kernels"
        self._trt.cudart.cudaLaunchHostFunc(ctypes.c_void_p(stream_handle), self._callback, None)
        return True

    def _compute(self, _: object) -> None:
        images_tensor, logits_tensor = self._engine._tensors()
        images = array_at(self._addresses[images_tensor.name], self.get_tensor_shape(images_tensor.name), np.uint8)
        logits = array_at(self._addresses[logits_tensor.name], self.get_tensor_shape(logits_tensor.name), np.float32)
        logits[...] = self._engine._session.run(None, {images_tensor.name: images})[0]


def array_at(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * nbytes).from_address(address), dtype).reshape(shape)


def session(model: bytes) -> Any:
    """An ONNX Runtime session with the double's options."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def with_runtime_config(self: Any, runtime_config: Any = None) -> Any:
    """create_execution_context of TensorRT-RTX."""
    return self._trt.IExecutionContext(self, runtime_config)
