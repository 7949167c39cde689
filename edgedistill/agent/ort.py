"""ONNX Runtime with any of its execution providers.

PROVIDERS is the one place where a provider is entered: the backend is called `onnxruntime-<name>`. What a provider
cannot run, ONNX Runtime runs on the CPU; `facts` says whether it had to.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any, Dict, NamedTuple

import numpy as np

from . import graph_types, machine
from .cache import folder
from .job import AgentError, sha256_file

WINDOW = "session.run of ONNX Runtime: host arrays in, host arrays out; no decoding, no resizing"


class Provider(NamedTuple):
    """How ONNX Runtime calls it, the package that brings it, and whose int8 graphs it wants."""

    name: str
    package: str
    target: str


PROVIDERS: Dict[str, Provider] = {
    "cpu": Provider("CPUExecutionProvider", "onnxruntime", "cpu"),
    "cuda": Provider("CUDAExecutionProvider", "onnxruntime-gpu", "any"),
    "tensorrt": Provider("TensorrtExecutionProvider", "onnxruntime-gpu", "tensorrt"),
    "nvtensorrtrtx": Provider("NvTensorRTRTXExecutionProvider", "onnxruntime-trt-rtx", "tensorrt"),
    "openvino": Provider("OpenVINOExecutionProvider", "onnxruntime-openvino", "cpu"),
    "xnnpack": Provider("XnnpackExecutionProvider", "onnxruntime", "cpu"),
    "dnnl": Provider("DnnlExecutionProvider", "onnxruntime", "cpu"),
    "acl": Provider("ACLExecutionProvider", "onnxruntime", "cpu"),
    "migraphx": Provider("MIGraphXExecutionProvider", "onnxruntime-migraphx", "any"),
    "qnn": Provider("QNNExecutionProvider", "onnxruntime-qnn", "cpu"),
    "cann": Provider("CANNExecutionProvider", "onnxruntime-cann", "any"),
    "coreml": Provider("CoreMLExecutionProvider", "onnxruntime", "any"),
    "directml": Provider("DmlExecutionProvider", "onnxruntime-directml", "any"),
    "webgpu": Provider("WebGpuExecutionProvider", "onnxruntime-webgpu", "any"),
}


class OnnxRuntime:
    """One session with one execution provider."""

    def __init__(self, provider: str) -> None:
        self.provider = PROVIDERS[provider]
        self.modes = {"host-to-host": WINDOW}
        self.session: Any = None

    def build(self, model_path: Path, threads: int, batch: int = 1) -> None:
        """A session of `threads` threads inside an operator and one operator at a time; `batch` needs no preparation.

        Raises:
            AgentError: exit code 2; the runtime or its provider is missing, or the graph is made for another target.
        """
        runtime = _runtime(self.provider)
        refuse(model_path, self.provider)
        made_by = f"{runtime.__version__}-{batch}"
        providers = [(self.provider.name, _options(self.provider.name, threads, model_path, made_by))]
        self.whole = self.provider.name == "CPUExecutionProvider"
        if not self.whole:
            # a session that may not fall back tells whether the provider takes every node
            with contextlib.suppress(Exception):
                self.session = _session(runtime, model_path, threads, providers, fallback=False)
                self.whole = True
        if self.session is None:
            self.session = _session(runtime, model_path, threads, providers, fallback=True)
        # ONNX Runtime goes on without a provider whose libraries do not load, and says so only in its log
        if self.provider.name not in self.session.get_providers():
            raise AgentError(f"{self.provider.name} did not start; are its libraries (CUDA, cuDNN, ...) installed?")
        self.threads = threads
        self.input = self.session.get_inputs()[0].name
        self.outputs = [self.session.get_outputs()[0].name]

    def infer(self, images_BHWC: np.ndarray, mode: str = "host-to-host") -> np.ndarray:
        """uint8 [B, H, W, 3] -> float32 logits [B, C]."""
        logits_BC: np.ndarray = self.session.run(self.outputs, {self.input: images_BHWC})[0]
        return logits_BC

    def compute_ms(self, images_BHWC: np.ndarray, mode: str) -> float:
        """ONNX Runtime does not tell its time on the device apart.

        Raises:
            AgentError: always; `modes` has no such mode.
        """
        raise AgentError(f"ONNX Runtime has no mode {mode}; one of: {', '.join(self.modes)}")

    def facts(self) -> Dict[str, Any]:
        """The runtime's version and, once built, providers, threads, and whether the provider runs the whole graph.

        Raises:
            AgentError: exit code 2; the runtime or its provider is missing.
        """
        version = {"version": _runtime(self.provider).__version__}
        if self.session is None:
            return version
        return {**version, "providers": self.session.get_providers(), "threads": self.threads,
                "whole_graph": self.whole}  # fmt: skip

    def close(self) -> None:
        """Let go of the session."""
        self.session = None


def refuse(model_path: Path, provider: Provider) -> None:
    """Refuse an int8 graph that a provider would compute otherwise than its target does.

    Raises:
        AgentError: exit code 2; the graph is made for TensorRT and the provider is another, or the reverse.
    """
    target = graph_types.target(model_path.read_bytes()) if model_path.is_file() else "any"
    if target != "any" and (target == "tensorrt") != (provider.target == "tensorrt"):
        instead = {"any": "fp32"}.get(provider.target, f"int8-{provider.target}")
        raise AgentError(f"{model_path.name} is made for the target {target}, and {provider.name} would answer "
                         f"otherwise; take {instead}")  # fmt: skip


def keep_arithmetic(options: Any) -> None:
    """Have a session compute a quantized graph as it is written.

    The keys are those of onnxruntime_session_options_config_keys.h. ONNX Runtime 1.21 and later quantizes float biases
    itself, in steps of float16 where the graph for TensorRT has them: too coarse or zero, and TensorRT refuses int32.
    """
    options.add_session_config_entry("optimization.disable_specified_optimizers", "WeightBiasQuantization")
    if machine.saturates():
        # pairs of uint8 x int8 products saturate at 16 bits; the flag picks exact, slower kernels. With VNNI it would
        # only make int8 slow: 5.2 ms for 3.0 ms
        options.add_session_config_entry("session.x64quantprecision", "1")


def _session(runtime: Any, model_path: Path, threads: int, providers: Any, fallback: bool) -> Any:
    options = runtime.SessionOptions()
    # XNNPACK has threads of its own, and ONNX Runtime's would only fight with them
    options.intra_op_num_threads = 1 if providers[0][0] == "XnnpackExecutionProvider" else threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    keep_arithmetic(options)
    if not fallback:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options.log_severity_level = 4
    return runtime.InferenceSession(str(model_path), options, providers=providers)


def _options(provider: str, threads: int, model_path: Path, made_by: str) -> Dict[str, str]:
    if provider == "OpenVINOExecutionProvider":
        return {"device_type": "CPU", "num_of_threads": str(threads)}
    if provider == "XnnpackExecutionProvider":
        return {"intra_op_num_threads": str(threads)}
    if provider == "TensorrtExecutionProvider":
        # the provider names an engine after the graph's names, not its weights: another student would get this one's
        cached = str(folder(f"onnxruntime-tensorrt/{sha256_file(model_path)[:16]}-{made_by}"))
        int8, half = ("int8" in model_path.name), ("fp16" in model_path.name)
        return {"trt_engine_cache_enable": "1", "trt_engine_cache_path": cached, "trt_timing_cache_enable": "1",
                "trt_timing_cache_path": cached, "trt_int8_enable": str(int(int8)),
                "trt_fp16_enable": str(int(int8 or half))}  # fmt: skip
    return {}


def _runtime(provider: Provider) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        fix = f"{sys.executable} -m pip install {provider.package}"
        raise AgentError(f"onnxruntime does not import in {sys.executable} ({error}); {fix}") from None
    if provider.name not in onnxruntime.get_available_providers():
        has = ", ".join(onnxruntime.get_available_providers())
        what = f"onnxruntime {onnxruntime.__version__} has no {provider.name}, it has {has}"
        raise AgentError(f"{what}; {sys.executable} -m pip install {provider.package}")
    if provider.name != "CPUExecutionProvider" and hasattr(onnxruntime, "preload_dlls"):
        # CUDA and cuDNN that pip installed lie where the dynamic linker does not look
        onnxruntime.preload_dlls()
    return onnxruntime
